"""Some clients lose their answer on the way now and then: they have worked for nothing."""

import fractions
import math

import torch
from torch import Generator

from fedkd.rng import SETUP, number
from fedkd.types import Effort, Fraction, Natural, World


def flaky(fraction: Fraction = 0.3, rate: Fraction = 0.5, seed: Natural = 0) -> World:
    """An answer of a flaky client never arrives with probability `rate`, each round for itself.

    It has learnt and keeps what it learnt, other than one that drops out. The clock stands still:
    an answer takes no time or for ever.

    Which clients: ids are cut into blocks [ceil(i/f), ceil((i+1)/f)), and one of each block is
    flaky, drawn from `seed`. So their number is floor(f K) of any K clients where f K is whole and
    at most one more where it is not, and it has nothing to do with the architecture, which goes by
    the id.
    """
    f = fractions.Fraction(str(fraction))  # as written: 0.29 * 100 is 28.999… in floats

    def unreliable(client: int) -> bool:
        block = math.floor(client * f)
        first, after = math.ceil(block / f), math.ceil((block + 1) / f)
        return client == first + number(seed, SETUP, block, "flaky") % (after - first)

    def seconds(client: int, round_: int, effort: Effort, rng: Generator) -> float:
        lost = torch.rand((), generator=rng, dtype=torch.float64).item() < rate
        return math.inf if lost and unreliable(client) else 0.0

    return World(participants=lambda round_, clients, rng: range(clients), seconds=seconds)
