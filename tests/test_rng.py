"""Named streams, and the loan of a generator to code that draws from the global ones."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.rng import SERVER, SETUP, borrow, number, stream

NAME = (7, 3, 2, "train")


def draw(rng: torch.Generator) -> list[float]:
    values: list[float] = torch.rand(4, generator=rng).tolist()
    return values


@pytest.mark.parametrize(
    "other", [(8, 3, 2, "train"), (7, 4, 2, "train"), (7, 3, SERVER, "train"), (7, 3, 2, "answer")]
)
def test_each_part_of_the_name_changes_the_stream(other: tuple[int, int, int, str]) -> None:
    assert draw(stream(*NAME)) != draw(stream(*other))
    assert number(*NAME) != number(*other)


def test_the_same_name_is_the_same_stream() -> None:
    assert draw(stream(*NAME)) == draw(stream(*NAME))


def test_streams_stay_as_they_are_from_version_to_version() -> None:
    """Stored runs are verified by drawing again."""
    # sha256("0/0/-1/split"), its first 8 bytes little-endian, halved
    assert number(0, SETUP, SERVER, "split") == 2189862890071103617


@given(st.tuples(*[st.integers(-1, 2**40)] * 3), st.text(max_size=8))
@settings(deadline=None)
def test_numbers_fit_any_library(name: tuple[int, int, int], purpose: str) -> None:
    assert 0 <= number(*name, purpose) < 2**63


def everything() -> tuple[list[float], float, float]:
    return torch.rand(3).tolist(), float(np.random.rand()), random.random()


def states() -> tuple[bytes, bytes, object]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
        random.getstate(),
    )


def test_borrowing_is_reproducible_and_gives_back_the_globals() -> None:
    before = states()
    with borrow(stream(*NAME)):
        first = everything()
    assert states() == before
    torch.rand(1), np.random.rand(), random.random()
    with borrow(stream(*NAME)):
        second = everything()
    assert first == second


def test_a_loan_uses_up_what_it_draws() -> None:
    rng = stream(*NAME)
    with borrow(rng):
        first = everything()
    with borrow(rng):
        second = everything()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_the_globals_come_back_after_an_error() -> None:
    before = states()
    with pytest.raises(RuntimeError), borrow(stream(*NAME)):
        everything()
        raise RuntimeError
    assert states() == before


def test_loans_nest() -> None:
    with borrow(stream(*NAME)):
        alone = [torch.rand(1).item(), torch.rand(1).item()]
    with borrow(stream(*NAME)):
        first = torch.rand(1).item()
        with borrow(stream(1, 1, 1, "inner")):
            torch.rand(5)
        assert [first, torch.rand(1).item()] == alone
