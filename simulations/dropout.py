"""Clients vanish: they take their question and are not heard of again in that round."""

import torch
from torch import Generator

from fedkd.types import Fraction, World


def dropout(rate: Fraction = 0.1) -> World:
    """All are asked; each is gone with probability `rate`, in every round and for itself.

    Its work of the round is lost, its state stays that of the last round which it finished.
    """

    def stays(client: int, round_: int, rng: Generator) -> bool:
        return torch.rand((), generator=rng, dtype=torch.float64).item() >= rate

    return World(participants=lambda round_, clients, rng: range(clients), stays=stays)
