"""`metrics.json`: student, ensemble and every teacher in full, once, after the last round.

All of it is measured through the observer's channel on the global test set. Teachers are heard one
at a time, and what they say is kept only where it is little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fedkd.assemble import Plan
from fedkd.commits import Commit
from fedkd.engine import ensemble
from fedkd.exchange import Exchange
from fedkd.learning import answer
from fedkd.results.finished import METRICS
from fedkd.results.measures import faithful, log_probabilities, measured, mixture_weights
from fedkd.stacks import gather
from fedkd.store import under
from fedkd.tasks import threads

MOST_IN_FULL = 64  # teachers; of more, each is summarised
_MOST_KEPT = 1 << 23  # probabilities of all teachers, 64 MiB; more are asked for once again
_MOST_FITTED = 1 << 21  # likelihoods of all teachers; of more, those of every so many samples
Said = Callable[[], Iterator[tuple[int, Tensor]]]  # by ascending client: log-probabilities [N, C]


def metrics(plan: Plan, exchange: Exchange, state: Commit) -> dict[str, Any]:  # Any: JSON
    """The content of `metrics.json`; None stands for what the run does not have or did not hear."""
    with threads(plan.config.compute.server_threads):  # it is part of the bits
        joint = _ensemble(plan, exchange, state)
        student = _student(plan, state) if plan.has_student else None
        said = _teachers(plan, exchange, state)
        return summed(plan.clients, plan.test_labels, student, joint, said)


def summed(
    clients: int, truth: Tensor, student: Tensor | None, joint: Tensor | None, said: Said
) -> dict[str, Any]:  # Any: JSON
    """The figures of log-probabilities; see `docs/results.md` for the form."""
    teachers: list[Any] = [None] * clients
    near: list[Any] = [None] * clients
    likelihood: dict[int, Tensor] = {}
    fitted_to = torch.arange(0, len(truth), max(1, -(-clients * len(truth) // _MOST_FITTED)))
    known = torch.zeros(len(truth), dtype=torch.bool)
    equal: Tensor | float = 0.0
    for client, own in said():
        teachers[client] = measured(own, truth, summary=clients > MOST_IN_FULL)
        if student is not None:
            near[client] = faithful(student, own)
        known |= own.argmax(-1) == truth
        equal = equal + own.exp()
        likelihood[client] = own[fitted_to, truth[fitted_to]].exp()
    oracle = None
    if isinstance(equal, Tensor) and len(truth):
        fitted = mixture_weights(torch.stack(list(likelihood.values())))
        weights, mixed = dict(zip(likelihood, fitted, strict=True)), torch.zeros_like(equal)
        for client, own in said():
            mixed = mixed + weights.get(client, 0.0) * own.exp()
        # weights of most likelihood need not be those of most accuracy
        candidates = [_share(mixed, truth), _share(equal, truth)]
        candidates += [t["accuracy"] for t in teachers if t is not None]
        oracle = {"any": float(known.double().mean()), "mixture": max(candidates)}
    fidelity = None
    if student is not None:
        fidelity = {
            "ensemble": None if joint is None else faithful(student, joint),
            "teachers": near,
        }
    return {
        "schema": METRICS,
        "student": None if student is None else measured(student, truth),
        "ensemble": None if joint is None else measured(joint, truth),
        "teachers": teachers,
        "oracle": oracle,
        "fidelity": fidelity,
    }


def _ensemble(plan: Plan, exchange: Exchange, state: Commit) -> Tensor | None:
    asked = exchange.observe("teachers", state.round, range(plan.clients), answers=True)
    rule = under("combine/", state.server)
    student = gather([under("student/", state.server)]).to(plan.device)
    made = ensemble(plan, rule, student, state.round, (said["answer"] for said in asked))
    if made is None or made[0].shape[1] != plan.dataset.classes:
        return None
    return log_probabilities(*made)


def _student(plan: Plan, state: Commit) -> Tensor:
    student = gather([under("student/", state.server)]).to(plan.device)
    logits = answer(plan.student.network, student, plan.test_inputs, plan.config.compute.precision)
    return log_probabilities(logits[0].cpu(), "logits")


def _teachers(plan: Plan, exchange: Exchange, state: Commit) -> Said:
    """What the teachers say, as often as it is asked for."""

    def asked() -> Iterator[tuple[int, Tensor]]:
        for said in exchange.observe("logits", state.round, range(plan.clients), answers=True):
            yield said["client"], log_probabilities(said["answer"].scores[0], said["answer"].space)

    if plan.clients * len(plan.test_labels) * plan.dataset.classes > _MOST_KEPT:
        return asked
    kept = list(asked())
    return lambda: iter(kept)


def _share(scores: Tensor, truth: Tensor) -> float:
    return float((scores.argmax(-1) == truth).double().mean())
