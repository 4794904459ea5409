"""Worlds: who takes part, and who learns."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.rng import SERVER, stream
from fedkd.types import identity
from simulations.everyone import everyone
from simulations.frozen_teachers import frozen_teachers
from simulations.partial import partial


def test_everyone_is_everyone() -> None:
    world = everyone()
    assert list(world.participants(3, 5, torch.Generator())) == [0, 1, 2, 3, 4]
    assert world.learns(4, 99) and world.upload(4) is identity


@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_part_is_ascending_of_the_stated_size_and_never_empty(
    clients: int, fraction: float, seed: int
) -> None:
    chosen = list(partial(fraction).participants(1, clients, torch.Generator().manual_seed(seed)))
    assert len(chosen) == max(1, round(fraction * clients))
    assert chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < clients
    assert all(type(c) is int for c in chosen)


def test_parts_are_drawn_from_the_generator() -> None:
    draws = [
        tuple(partial(0.3).participants(t, 20, stream(1, t, SERVER, "participants")))
        for t in (1, 1, 2, 3)
    ]
    assert draws[0] == draws[1] and len(set(draws)) == 3
    # a fair draw of 6 out of 20 leaves nobody out for 60 rounds
    seen = {
        c
        for t in range(60)
        for c in partial(0.3).participants(t, 20, stream(1, t, SERVER, "participants"))
    }
    assert seen == set(range(20))


def test_frozen_teachers_learn_at_first_and_answer_always() -> None:
    world = frozen_teachers(until=2)
    assert [world.learns(0, t) for t in (1, 2, 3)] == [True, True, False]
    assert list(world.participants(3, 4, torch.Generator())) == [0, 1, 2, 3]
    assert not frozen_teachers().learns(0, 2)
