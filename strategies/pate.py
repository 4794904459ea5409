"""PATE: a student learns from noisy votes of teachers, and nothing else of them gets out.

N. Papernot, M. Abadi, U. Erlingsson, I. Goodfellow, K. Talwar, "Semi-supervised knowledge transfer
for deep learning from private training data", ICLR 2017, https://arxiv.org/abs/1610.05755;
N. Papernot, S. Song, I. Mironov, A. Raghunathan, K. Talwar, U. Erlingsson, "Scalable private
learning with PATE", ICLR 2018, https://arxiv.org/abs/1802.08908
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from fedkd.privacy import votes
from fedkd.privacy.ledger import DEPENDENT
from fedkd.transforms import consensus_of, pure, random_rows
from fedkd.types import (
    Count,
    NonNegative,
    Positive,
    Predictions,
    Release,
    Shape,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
)

Answered = list[tuple[Release, int]]


def pate(
    rule: Literal["confident", "gnmax", "lnmax"] = "gnmax",
    sigma: NonNegative = 40.0,
    threshold: NonNegative = 200.0,
    threshold_sigma: Positive = 150.0,
    rows: Count | None = None,
    account_votes: bool = False,
) -> Strategy:
    """argmax_c n_c(x) + noise, where n_c(x) clients say that x is of class c; one round is usual.

    `gnmax` draws N(0, `sigma`^2) for each class, `lnmax` (2017) Laplace noise of scale `sigma`;
    `confident` answers by gnmax only where max n_c + N(0, `threshold_sigma`^2) >= `threshold`, and
    other rows have no target. Set rounds to 1, and `rows` to how many are asked; each further round
    spends as much again. Defaults are those for 250 teachers: noise has to stay well below the
    number of clients, so with 10 or 20 of them little is left of the votes. `sigma` 0 is plurality
    without a guarantee.

    One client is one teacher, so what is protected is all of a client's data, and each record of it
    a fortiori, against whoever sees the student or the targets; the server sees every vote and is
    trusted. Clients vote with models trained without noise. `account_votes` adds the figure that
    depends on the votes to privacy.json: it is smaller, private itself and not to be published, for
    it is not smoothed by its sensitivity; for lnmax there is none.
    """
    if account_votes and (rule == "lnmax" or not sigma):
        raise ValueError(
            "strategy.account_votes: should be for Gaussian noise above 0, found"
            f" {rule} with {sigma:g}; leave it out"
        )
    released = _releases(rule, sigma, threshold_sigma)
    confident = (threshold, threshold_sigma) if rule == "confident" else None

    def finish(state: State, counts: Predictions, rng: Generator) -> Step:
        answered = counts.mask[0]
        asked = int(answered.sum())
        let_out: Answered = []
        facts: dict[str, float | Tensor] = {"asked": float(asked)}
        if confident is not None:
            noise = confident[1] * torch.randn(answered.shape, generator=rng, dtype=torch.float64)
            sure = counts.scores[0].double().amax(-1) + noise >= confident[0]
            answered = answered & sure
        given = int(answered.sum())
        for release in released:
            tested = release.mechanism == "vote_threshold"
            let_out.append((release, asked if tested else given))
        if account_votes:
            let_out.append((_dependent(counts.scores[0, answered], sigma, confident, asked), 1))
        noisy = counts.scores[0].double() + _noise(rule, sigma, counts.scores[0].shape, rng)
        label = torch.where(answered, noisy.argmax(-1), 0)
        one_hot = torch.nn.functional.one_hot(label, noisy.shape[-1]).double()
        result = replace(consensus_of(counts, one_hot, answered), space="probs")
        return Step(state, result, facts | {"answered": float(given)}, tuple(let_out))

    return Strategy(
        combine=Transform(_nothing, _count, traits=frozenset({"noisy", "abstains"})),
        finish=Transform(_nothing, finish, released),
        request=random_rows(rows),
        upload=pure(_vote),
        feedback="none",
        program=("train", "answer", "combine", "distil_server"),
        shares=Shares(answers="votes", needs=frozenset({"several_clients"})),
    )


def _nothing(shape: Shape) -> State:
    return {}


def _releases(rule: str, sigma: float, threshold_sigma: float) -> tuple[Release, ...]:
    """Of every row that is asked, at most."""
    tested = Release("vote_threshold", "client", {"sigma": threshold_sigma}, "row")
    if not sigma:
        return (Release("plurality, exact", "client", {}, "row"),)
    if rule == "lnmax":
        return (Release("lnmax", "client", {"scale": sigma}, "row"),)
    answer = Release("gnmax", "client", {"sigma": sigma}, "row")
    return (tested, answer) if rule == "confident" else (answer,)


def _vote(given: Predictions) -> Predictions:
    """The favourite class alone."""
    known = torch.where(given.mask.unsqueeze(-1), given.scores, 0)
    one_hot = torch.nn.functional.one_hot(known.argmax(-1), known.shape[-1])
    return replace(given, scores=one_hot.to(given.scores.dtype), space="votes")


def _count(state: State, given: Predictions, rng: Generator) -> Step:
    """n_c(x): how many say so. A vote is one, whatever a client says of its trust."""
    counts = torch.where(given.mask.unsqueeze(-1), given.scores, 0).double().sum(0)
    return Step(state, consensus_of(given, counts, given.mask.any(0)), {})


def _noise(rule: str, sigma: float, shape: torch.Size, rng: Generator) -> Tensor:
    if rule != "lnmax":
        return sigma * torch.randn(shape, generator=rng, dtype=torch.float64)
    sizes = torch.empty(shape, dtype=torch.float64).exponential_(generator=rng)
    return sigma * sizes * (2 * torch.randint(0, 2, shape, generator=rng) - 1)


def _dependent(
    counts: Tensor, sigma: float, confident: tuple[float, float] | None, asked: int
) -> Release:
    """RDP by order of these very votes; the test of the threshold for any votes."""
    total = 0 * votes.ORDERS
    for row in counts.double().numpy():
        total = total + votes.gnmax_dependent(votes.log_q(row, sigma), sigma)
    if confident is not None:
        total = total + asked * votes.threshold(confident[1])
    curve = {str(float(o)): float(v) for o, v in zip(votes.ORDERS, total, strict=True)}
    return Release(DEPENDENT, "client", curve)
