"""Some private labels are wrong: the data are what they are, and their owners do not know."""

from functools import cache
from typing import Literal

import torch
from torch import Generator, Tensor

from fedkd.rng import SERVER, SETUP, stream
from fedkd.types import Fraction, Natural, Share, World, as_they_are


def noisy_labels(
    share: Share = 0.4,
    kind: Literal["symmetric", "pair"] = "symmetric",
    fraction: Fraction = 1.0,
    seed: Natural = 0,
) -> World:
    """share * n labels, rounded, of a client with n samples are wrong, the same in all rounds.

    symmetric: each becomes one of the C - 1 other classes, all alike. pair: y becomes y + 1, the
    last class the first. It is so with fraction * K of the clients, rounded, at least one, drawn
    from `seed`; which labels is drawn from the seed of the data. Test and public labels are right.
    """

    @cache
    def struck(clients: int) -> frozenset[int]:
        order = torch.randperm(clients, generator=stream(seed, SETUP, SERVER, "noisy"))
        return frozenset(order[: max(1, round(fraction * clients))].tolist())

    def relabel(labels: Tensor, classes: int, rng: Generator) -> Tensor:
        wrong = torch.randperm(len(labels), generator=rng)[: round(share * len(labels))]
        shift = torch.ones(len(wrong), dtype=labels.dtype)
        if kind == "symmetric":
            shift = torch.randint(1, max(2, classes), (len(wrong),), generator=rng)
        found = labels.clone()
        found[wrong] = (labels[wrong] + shift) % classes
        return found

    return World(
        participants=lambda round_, clients, rng: range(clients),
        labels=lambda client, clients: relabel if client in struck(clients) else as_they_are,
    )
