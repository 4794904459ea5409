"""A random part of the clients takes part in each round."""

from collections.abc import Sequence

import torch
from torch import Generator

from fedkd.types import Fraction, World


def partial(fraction: Fraction = 0.5) -> World:
    """fraction * K clients a round, rounded, at least one, drawn afresh without replacement."""

    def participants(round_: int, clients: int, rng: Generator) -> Sequence[int]:
        count = max(1, round(fraction * clients))
        chosen: list[int] = torch.randperm(clients, generator=rng)[:count].sort().values.tolist()
        return chosen

    return World(participants=participants)
