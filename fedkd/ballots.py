"""Ballots: a vote for one class, how many votes each class has, and their plurality under noise.

Steps after N. Papernot et al. (ICLR 2017 and 2018), for every method whose teachers vote,
whoever these teachers are: the clients of a server, or models inside of one client. A ballot is
scores [R, C] in the space `votes`: a single 1 a row, or zeros alone where a voter abstains. An
empty ballot is an answer and no gap in the mask: that somebody abstained is as private as a vote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from fedkd.privacy import votes
from fedkd.privacy.ledger import DEPENDENT
from fedkd.transforms import consensus_of, pure
from fedkd.types import Predictions, Release, Shape, State, Step, Transform, Unit

Rule = Literal["confident", "gnmax", "lnmax"]


def _vote(given: Predictions) -> Predictions:
    known = torch.where(given.mask.unsqueeze(-1), given.scores, 0)
    one_hot = torch.nn.functional.one_hot(known.argmax(-1), known.shape[-1])
    if given.space == "votes":
        one_hot = one_hot * (known != 0).any(-1, keepdim=True)
    return replace(given, scores=one_hot.to(given.scores.dtype), space="votes")


def _count(state: State, given: Predictions, rng: Generator) -> Step:
    counts = torch.where(given.mask.unsqueeze(-1), given.scores, 0).double().sum(0)
    return Step(state, consensus_of(given, counts, given.mask.any(0)), {})


def _nothing(shape: Shape) -> State:
    return {}


vote = pure(_vote)
"""The favourite class alone, of any scores; an empty ballot stays empty."""

count = Transform(_nothing, _count, traits=frozenset({"noisy", "abstains"}))
"""n_c(x): how many say so. A vote is one, whatever a voter says of its trust."""


def noisy_plurality(
    rule: Rule,
    sigma: float,
    threshold: float = 0.0,
    threshold_sigma: float = 0.0,
    account_votes: bool = False,
    *,
    unit: Unit = "client",
    kind: str = "",
    beside: Mapping[str, float] = {},
) -> Transform:
    """Counts to argmax_c n_c(x) + noise, as probabilities that are 0 and 1.

    `gnmax` draws N(0, `sigma`^2) for each class, `lnmax` Laplace noise of scale `sigma`;
    `confident` answers by gnmax only where max n_c + N(0, `threshold_sigma`^2) >= `threshold`, and
    other rows have no target. Under noise each row with a ballot has an answer, be all of them
    empty; without any (`sigma` 0) a row needs a vote, and of equal counts the first class wins.

    Releases protect a `unit`. Their mechanisms are gnmax, lnmax and vote_threshold with `kind`
    before that, as the ledger knows them, and have the parameters `beside` the noise. With
    `account_votes` it releases what these very votes come to, too; for lnmax there is no such
    figure, which is refused.
    """
    if account_votes and (rule == "lnmax" or not sigma):
        raise ValueError(
            "strategy.account_votes: should be for Gaussian noise above 0, found"
            f" {rule} with {sigma:g}; leave it out"
        )

    def release(mechanism: str, **noise: float) -> Release:
        return Release(kind + mechanism, unit, {**noise, **beside}, "row")

    confident, tests = rule == "confident", tuple[Release, ...]()
    if not sigma:
        answers = Release("plurality, exact", unit, {}, "row")
    elif rule == "lnmax":
        answers = release("lnmax", scale=sigma)
    else:
        answers = release("gnmax", sigma=sigma)
        tests = (release("vote_threshold", sigma=threshold_sigma),) if confident else ()

    def apply(state: State, counts: Predictions, rng: Generator) -> Step:
        n = counts.scores[0].double()
        answered = counts.mask[0] if sigma else counts.mask[0] & (n > 0).any(-1)
        asked = int(counts.mask[0].sum())
        if confident:
            noise = threshold_sigma * torch.randn(
                answered.shape, generator=rng, dtype=torch.float64
            )
            answered = answered & (n.amax(-1) + noise >= threshold)
        given = int(answered.sum())
        let_out = [*((t, asked) for t in tests), (answers, given)]
        if account_votes:
            tested = asked * votes.threshold(threshold_sigma) if confident else 0 * votes.ORDERS
            let_out.append((_of_these(n[answered], sigma, tested, unit), 1))
        label = torch.where(answered, (n + _noise(rule, sigma, n.shape, rng)).argmax(-1), 0)
        one_hot = torch.nn.functional.one_hot(label, n.shape[-1]).double()
        result = replace(consensus_of(counts, one_hot, answered), space="probs")
        facts = {"asked": float(asked), "answered": float(given)}
        return Step(state, result, facts, tuple(let_out))

    return Transform(_nothing, apply, (*tests, answers))


def _noise(rule: Rule, sigma: float, shape: torch.Size, rng: Generator) -> Tensor:
    if rule != "lnmax":
        return sigma * torch.randn(shape, generator=rng, dtype=torch.float64)
    sizes = torch.empty(shape, dtype=torch.float64).exponential_(generator=rng)
    return sigma * sizes * (2 * torch.randint(0, 2, shape, generator=rng) - 1)


def _of_these(counts: Tensor, sigma: float, tested: votes.Array, unit: Unit) -> Release:
    """RDP by order of answers with these very counts [R, C], and of the tests before them."""
    total = 0 * votes.ORDERS
    for row in counts.numpy():
        total = total + votes.gnmax_dependent(votes.log_q(row, sigma), sigma)
    curve = {str(float(o)): float(v) for o, v in zip(votes.ORDERS, total + tested, strict=True)}
    return Release(DEPENDENT, unit, curve)
