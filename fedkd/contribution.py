"""What each teacher adds to the ensemble, from its stored model, without training anything again.

v(S) is how good the answers of the teachers S are together, combined by the method's own rule (its
`combine`, as at the beginning of a run), on rows whose true labels the observer has: accuracy, or
the negative of the NLL in nats. A row that nobody answers, and all rows of nobody, count as a guess
at random: 1/C, or -ln C.

Leave-one-out is v(all) - v(all but k); the Shapley value (L. S. Shapley, 1953) averages what k adds
over all orders in which teachers may come, so that it sums to v(all) - v(nobody).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedkd import rng
from fedkd.assemble import Plan, assemble, read_weights, resolve
from fedkd.client import annotated, restricted, spoken
from fedkd.learning import answer
from fedkd.runs import Run
from fedkd.sessions import config_of
from fedkd.transforms import probabilities, quotient, stack, weighed
from fedkd.types import Linear, Predictions, Shape, Transform

Value = Callable[[Tensor], Tensor]  # coalitions [M, K] of booleans -> values [M], float64
Measure = Literal["accuracy", "nll"]

_EXACT = 10  # teachers up to whom all 2^K coalitions are valued
_PERMUTATIONS = 200
_LEAST = 1e-12  # the probability that a true class has at least
_TOGETHER = 32  # coalitions in one product


@dataclass(frozen=True, slots=True)
class Contributions:
    """Float64 by client [K]; `error` is the standard error of a sampled `shapley`, 0 of an exact.

    `together` is v of all, `nobody` that of none. `ensemble` is the accuracy of all, `oracle` the
    share of rows on which some teacher is right, `oracle_gap` their difference.
    """

    leave_one_out: Tensor
    shapley: Tensor
    error: Tensor
    together: float
    nobody: float
    ensemble: float
    oracle: float

    @property
    def oracle_gap(self) -> float:
        return self.oracle - self.ensemble


def contributions(
    run: Run | Path | str,
    of: Measure = "accuracy",
    on: Literal["test", "public"] = "test",
    permutations: int | None = None,
    seed: int = 0,
) -> Contributions:
    """The contribution of every teacher in a finished run's folder, as it was at the end.

    Shapley values are exact for up to 10 teachers, else means over 200 random orders; give
    `permutations` for so many orders whatever the number of teachers. Upload steps are as at the
    beginning of a run, lies are not told, public rows of unknown class are left out. Raises
    `ConfigError` where the folder does not hold a finished run, `ValueError` where no label is
    known.
    """
    folder = (run.folder if isinstance(run, Run) else Path(run)).absolute()
    plan = assemble(resolve(config_of(folder)), folder / "data")
    rows, truth = plan.dataset.test, plan.test_labels
    if on == "public":
        rows, truth = plan.dataset.public, torch.from_numpy(plan.dataset.truth.copy())
    known = truth >= 0
    if not bool(known.any()):
        raise ValueError(f"contributions: {on} rows should have true labels, found none")
    answers = _answers(plan, folder, plan.inputs(rows[known.numpy()]))
    labels, shape = truth[known], _shape(plan)
    value = valued(plan.strategy.combine, answers, labels, shape, of)
    accuracy = valued(plan.strategy.combine, answers, labels, shape, "accuracy")
    everybody = torch.ones(1, plan.clients, dtype=torch.bool)
    if permutations is None and plan.clients <= _EXACT:
        worth = exact_shapley(value, plan.clients)
        error = torch.zeros_like(worth)
    else:
        orders = _PERMUTATIONS if permutations is None else permutations
        worth, error = shapley(value, plan.clients, orders, seed)
    right = torch.stack([_right(given, labels) for given in answers])
    return Contributions(
        leave_one_out(value, plan.clients),
        worth,
        error,
        float(value(everybody)),
        float(value(~everybody)),
        float(accuracy(everybody)),
        float(right.any(0).double().mean()),
    )


def leave_one_out(value: Value, players: int) -> Tensor:
    """v(all) - v(all but k), [K]."""
    everybody = torch.ones(1, players, dtype=torch.bool)
    return value(everybody) - value(~torch.eye(players, dtype=torch.bool))


def exact_shapley(value: Value, players: int) -> Tensor:
    """sum_S |S|! (K - |S| - 1)! / K! (v(S + k) - v(S)) over all S without k, [K]."""
    coalitions = torch.arange(2**players).unsqueeze(-1) >> torch.arange(players) & 1 == 1
    worth, sizes = value(coalitions), coalitions.sum(-1)
    orders = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    weights = torch.tensor(orders, dtype=torch.float64)
    found = []
    for k in range(players):
        without = (~coalitions[:, k]).nonzero()[:, 0]
        added = worth[without + 2**k] - worth[without]
        found.append((weights[sizes[without]] * added).sum())
    return torch.stack(found)


def shapley(value: Value, players: int, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means over random orders of what each adds when it comes, and standard errors, [K] each.

    Every order's additions sum to v(all) - v(nobody), so their means do. One order has no error
    that could be told: infinite.
    """
    if permutations < 1:
        raise ValueError(f"permutations: should be at least 1, found {permutations}; raise it")
    stream = rng.stream(seed, rng.SETUP, rng.SERVER, "shapley")
    orders = torch.stack([torch.randperm(players, generator=stream) for _ in range(permutations)])
    come = orders.argsort(-1)  # [P, K]: the place of each in the order
    prefixes = come.unsqueeze(1) < torch.arange(players + 1).view(1, -1, 1)  # [P, K + 1, K]
    distinct, place = prefixes.flatten(0, 1).unique(dim=0, return_inverse=True)
    worth = value(distinct)[place].view(permutations, players + 1)
    added = worth.diff(dim=-1).gather(1, come)
    spread = (
        added.std(0) if permutations > 1 else torch.full((players,), torch.inf, dtype=torch.float64)
    )
    return added.mean(0), spread / permutations**0.5


def valued(
    rule: Linear | Transform,
    answers: Sequence[Predictions],
    labels: Tensor,
    shape: Shape,
    of: Measure,
) -> Value:
    """v of coalitions among parties that have answered rows of known labels [R]."""
    guess = 1 / shape.classes if of == "accuracy" else -math.log(shape.classes)

    def value(coalitions: Tensor) -> Tensor:
        found = []
        for some in coalitions.split(_TOGETHER):
            if isinstance(rule, Linear):
                scores, answered, space = _folded(rule, answers, some, shape)
            else:
                scores, answered, space = _applied(rule, answers, some, shape)
            if of == "accuracy":
                each = (scores.argmax(-1) == labels).double()
            else:
                probs = probabilities(scores.double(), space, 1.0)
                true = probs.gather(-1, labels.expand(len(some), -1).unsqueeze(-1)).squeeze(-1)
                each = true.clamp_min(_LEAST).log()
            found.append(torch.where(answered, each, guess).mean(-1))
        return torch.cat(found)

    return value


def _folded(
    rule: Linear, answers: Sequence[Predictions], coalitions: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, str]:
    """The consensus of many coalitions [M, R, C] at once: sums are sums."""
    terms = [weighed(rule, given, shape.classes) for given in answers]
    sums = []
    for parts in zip(*terms, strict=True):
        each = torch.stack(parts)  # [K, R, C or 1]
        sums.append((coalitions.double() @ each.flatten(1)).view(-1, *each.shape[1:]))
    scores, answered = quotient(sums[0], sums[1], answers[0].space)
    return scores, answered, answers[0].space


def _applied(
    rule: Transform, answers: Sequence[Predictions], coalitions: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, str]:
    """The same by any rule, one coalition after the other; personal targets as their mean."""
    rows, space = answers[0].scores.shape[1], str(answers[0].space)
    scores = torch.zeros(len(coalitions), rows, shape.classes)
    answered = torch.zeros(len(coalitions), rows, dtype=torch.bool)
    for m, members in enumerate(coalitions.tolist()):
        if not any(members):
            continue
        there = stack(given for given, is_in in zip(answers, members, strict=True) if is_in)
        stream = rng.stream(0, rng.SETUP, rng.SERVER, "contribution")
        joint = rule.apply(rule.init(shape), there, stream).result
        scores[m] = torch.where(joint.mask.unsqueeze(-1), joint.scores, 0).mean(0)
        answered[m], space = joint.mask.any(0), joint.space
    return scores, answered, space


def _answers(plan: Plan, folder: Path, inputs: Tensor) -> list[Predictions]:
    """What every stored teacher would upload about these samples."""
    answers = []
    for client, kind in enumerate(plan.teacher):
        made = plan.architectures[kind]
        path = folder / "teachers" / f"{client:05d}.safetensors"
        like = plan.fresh(client)
        model = read_weights(path, like, made.network, "contributions").to(plan.device)
        stream = rng.stream(plan.config.seed, rng.SETUP, client, "contribution")
        logits, precision = None, plan.config.compute.precision
        if plan.strategy.reply is None:
            logits = answer(made.network, model, inputs, precision)[0].cpu()
        rounds = plan.config.rounds
        given = spoken(plan, made, model, 0, client, logits, inputs, rounds, stream)
        given = annotated(plan, made, model, 0, client, given, inputs, stream)
        given = restricted(plan, client, given)
        upload = plan.strategy.upload
        answers.append(upload.apply(upload.init(_shape(plan)), given, stream).result)
    return answers


def _right(given: Predictions, labels: Tensor) -> Tensor:
    """On which rows a single party has answered the true class, [R]."""
    best = given.scores[0].argmax(-1, keepdim=True)
    if given.classes is not None:
        best = given.classes[0].expand(len(best), -1).gather(-1, best)
    return given.mask[0] & (best.squeeze(-1) == labels)


def _shape(plan: Plan) -> Shape:
    return Shape(plan.clients, len(plan.rows), plan.dataset.classes)
