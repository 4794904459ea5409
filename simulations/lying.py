"""Some clients lie: what they say about the public rows is not what their models say."""

from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Generator, Tensor

from fedkd.rng import SERVER, SETUP, stream
from fedkd.transforms import require
from fedkd.types import Fraction, Natural, Predictions, State, Step, Transform, World, identity

SURE = 20.0  # a logit that leaves a thousand other classes 2e-6 together


def lying(
    fraction: Fraction = 0.2,
    how: Literal["flip", "random", "same"] = "flip",
    seed: Natural = 0,
) -> World:
    """fraction * K of the clients, rounded, at least one, always the same, drawn from `seed`.

    flip: the negated logits, so that the last class becomes the first. random: Gaussian logits of
    the spread of their own about the mean of each row. same: the first class for every row, all
    liars alike, with certainty. Masks, trust and rows stay as they are; the method's own upload
    comes after the lie.
    """

    @cache
    def liars(clients: int) -> frozenset[int]:
        count = max(1, round(fraction * clients))
        order = torch.randperm(clients, generator=stream(seed, SETUP, SERVER, "liars"))
        return frozenset(order[:count].tolist())

    def lie(state: State, given: Predictions, rng: Generator) -> Step:
        require(given, "logits", "lying")
        return Step(state, replace(given, scores=_LIES[how](given, rng)), {})

    told = Transform(identity.init, lie)
    return World(
        participants=lambda round_, clients, rng: range(clients),
        upload=lambda client, clients: told if client in liars(clients) else identity,
    )


def _flip(given: Predictions, rng: Generator) -> Tensor:
    return -given.scores


def _random(given: Predictions, rng: Generator) -> Tensor:
    answered = given.mask.unsqueeze(-1)
    scores = torch.where(answered, given.scores, 0)
    away = (scores - scores.mean(-1, keepdim=True)).square().sum((1, 2), keepdim=True)
    values = answered.sum((1, 2), keepdim=True).clamp_min(1) * scores.shape[-1]
    noise = torch.randn(scores.shape, generator=rng, dtype=scores.dtype)
    return noise * (away / values).sqrt()  # [J, R, C] * [J, 1, 1]


def _same(given: Predictions, rng: Generator) -> Tensor:
    scores = torch.zeros_like(given.scores)
    scores[..., 0] = SURE
    return scores


_LIES = {"flip": _flip, "random": _random, "same": _same}
