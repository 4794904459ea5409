import pytest
import torch
from pydantic import ConfigDict, ValidationError, validate_call
from torch import nn

from fedkd import models

FLAT = ("mlp", "cnn", "lenet5", "shao_cnn", "itahara_mnist_cnn", "itahara_fashion_cnn")
PLAIN = (nn.Flatten, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.BatchNorm1d, nn.BatchNorm2d)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        # 64 * 64 + 64 and 64 * 10 + 10
        ("mlp", (1, 8, 8), 4_810),
        # 160 + 4640 of convolutions, 128 * 64 + 64 and 64 * 10 + 10
        ("cnn", (1, 8, 8), 13_706),
        ("cnn", (1, 28, 28), 105_866),
        ("lenet5", (1, 28, 28), 61_706),
        ("lenet5", (1, 32, 32), 61_706),
        ("shao_cnn", (1, 28, 28), 21_840),
        ("itahara_mnist_cnn", (1, 28, 28), 583_242),
        ("itahara_fashion_cnn", (1, 28, 28), 2_760_228),
        ("resnet_gn", (1, 28, 28), 77_754),
    ],
)
def test_number_of_parameters(name, shape, expected):
    assert trainable(getattr(models, name)(shape, 10)) == expected


@pytest.mark.parametrize("name", [*FLAT, "resnet_gn"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 28, 36)])
def test_gives_one_logit_a_class_and_learns(name, shape):
    model = getattr(models, name)(shape, 7)
    logits = model(torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (3, 7)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model[-1].parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FLAT)
def test_is_a_flat_row_of_torch_layers(name):
    model = getattr(models, name)((1, 28, 28), 10)
    assert type(model) is nn.Sequential
    assert {type(layer) for layer in model} <= set(PLAIN)


def test_parameters_are_used():
    assert trainable(models.mlp((20,), 2, hidden=())) == 42
    assert [layer.out_features for layer in models.mlp((20,), 2, hidden=(5, 6))[1::2]] == [5, 6, 2]
    assert trainable(models.cnn((1, 8, 8), 10, channels=(4,), hidden=8)) == 40 + 64 * 8 + 8 + 90
    deep = models.resnet_gn((3, 32, 32), 10, blocks=2, width=8)
    assert sum(type(layer).__name__ == "_Residual" for layer in deep) == 6
    assert deep[-1].in_features == 32


@pytest.mark.parametrize("width", [1, 6, 12])
def test_any_width_can_be_group_normalised(width):
    assert models.resnet_gn((1, 8, 8), 3, width=width)(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("cnn", 4), ("lenet5", 12), ("shao_cnn", 16), ("itahara_mnist_cnn", 16),
     ("itahara_fashion_cnn", 4), ("resnet_gn", 8)],
)  # fmt: skip
def test_smallest_image(name, smallest):
    model = getattr(models, name)((1, smallest, smallest), 10).eval()
    assert model(torch.zeros(2, 1, smallest, smallest)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"model {name}: images should be large enough.*found "):
        getattr(models, name)((1, smallest, smallest - 1), 10)


@pytest.mark.parametrize("name", [*FLAT[1:], "resnet_gn"])
def test_convolutions_need_images(name):
    with pytest.raises(ValueError, match=rf"model {name}: shape should be.*\[64\]; choose mlp"):
        getattr(models, name)((64,), 10)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("mlp", {"hidden": [0]}), ("cnn", {"channels": []}), ("cnn", {"hidden": -1}),
     ("cnn", {"channels": [8, 0]}), ("resnet_gn", {"blocks": 0}), ("resnet_gn", {"width": 0})],
)  # fmt: skip
def test_annotations_refuse_impossible_sizes(name, wrong):
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(getattr(models, name))
    with pytest.raises(ValidationError):
        checked((1, 8, 8), 10, **wrong)
