"""Networks that are quickened make the same values and gradients as those they were made of."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedkd.pooling import ByTwos, quicken

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def images(shape: tuple[int, ...], seed: int, layout: torch.memory_format) -> Tensor:
    """Values of which many are equal: what a gradient goes to is then a matter of order."""
    rng = torch.Generator().manual_seed(seed)
    found = torch.randint(-3, 4, shape, generator=rng) / 2
    return found.contiguous(memory_format=layout)


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """With a gradient, its gradients, and without."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    found = module(leaf)
    weight = torch.arange(1.0, found.numel() + 1).view(found.shape)  # tells each from each
    gradients = torch.autograd.grad((found * weight).sum(), [leaf, *module.parameters()])
    with torch.no_grad():
        return (found.detach(), module(x), *gradients)


@given(
    st.tuples(*[st.integers(2, 9)] * 2), st.integers(1, 9), st.integers(0, 2**32),
    st.sampled_from(LAYOUTS),
)  # fmt: skip
@settings(deadline=None)
def test_pooling_by_twos_is_that_of_torch(
    size: tuple[int, int], channels: int, seed: int, layout: torch.memory_format
) -> None:
    plain, quick = nn.MaxPool2d(2), quicken(nn.MaxPool2d(2))
    assert type(quick) is ByTwos
    x = images((3, channels, *size), seed, layout)
    assert all(torch.equal(a, b) for a, b in zip(run(plain, x), run(quick, x), strict=True))
    with torch.no_grad():
        assert torch.equal(plain(x[0]), quick(x[0]))  # no batch


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("window", [2, 3, (1, 2)])
def test_relu_may_come_after_pooling(
    window: Any, inplace: bool, layout: torch.memory_format
) -> None:
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(inplace), nn.MaxPool2d(window), nn.Conv2d(4, 3, 1), nn.ReLU(),
        nn.MaxPool2d(window),
    )  # fmt: skip
    quick = quicken(copy.deepcopy(plain))
    assert isinstance(quick, nn.Sequential)
    assert [type(layer) for layer in quick][2::3] == [nn.ReLU, nn.ReLU]
    x = images((4, 2, 18, 20), 1, layout)
    assert all(torch.equal(a, b) for a, b in zip(run(plain, x), run(quick, x), strict=True))


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, 2), nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(2),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_left_alone(layer: nn.Module) -> None:
    made = quicken(nn.Sequential(nn.ReLU(), copy.deepcopy(layer)))
    assert isinstance(made, nn.Sequential)
    assert [type(one) for one in made] == [nn.ReLU, type(layer)]


def test_a_layer_in_two_places_is_not_taken_for_its_neighbour() -> None:
    """Of one that comes again `named_children` knows the first place only."""
    square, act = nn.Conv2d(2, 2, 1), nn.ReLU()
    plain = nn.Sequential(square, act, square, nn.MaxPool2d(2), act)
    quick = quicken(copy.deepcopy(plain))
    x = images((2, 2, 6, 6), 5, torch.contiguous_format)
    assert torch.equal(plain(x), quick(x))


def test_nothing_is_lost_of_what_is_not_a_number() -> None:
    x = torch.tensor([[[[float("nan"), 1.0], [2.0, 3.0]]]])
    with torch.no_grad():
        assert quicken(nn.MaxPool2d(2))(x).isnan().all()
