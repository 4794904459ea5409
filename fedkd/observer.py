"""The yardsticks of a simulation: what teachers know of the test set, and what training alone buys.

A deployment has no such channel. What is said here is not communication, and no strategy sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkd import rng, wire
from fedkd.assemble import Architecture, Plan
from fedkd.client import annotated, private_pool, restricted, spoken, states_of
from fedkd.data import own_weights
from fedkd.learning import Feed, Pool, answer, fit
from fedkd.stacks import Weights, gather
from fedkd.store import Store, under
from fedkd.tasks import FAULTS, Task, fault, serve, within
from fedkd.types import Predictions, Shape


def observe(message: bytes) -> bytes:
    """Do one task of the observer: `teachers`, `logits`, `local`, `pooled` or `labels`."""
    return serve(message, lambda plan, task, store: _KINDS[task.head["observe"]](plan, task, store))


def accuracy(plan: Plan, logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest score is at the true class; 0 where there are no rows."""
    return float((logits.argmax(-1) == labels).double().mean()) if len(labels) else 0.0


def known_accuracy(plan: Plan, logits: Tensor, truth: Tensor) -> float | None:
    """The same over the rows whose class is known (0 or more); None where none is."""
    known = truth >= 0
    return accuracy(plan, logits[known], truth[known]) if bool(known.any()) else None


def _teachers(plan: Plan, task: Task, store: Store) -> bytes:
    """Every teacher on the global test set and on its own distribution, and its answers there."""
    said: list[dict[str, Any]] = []  # Any: JSON
    blobs: list[bytes] = []
    round_ = task.head["round"]
    for stack in task.head["stacks"]:
        states = states_of(plan, store, stack)
        models = gather(states).to(plan.device)
        made = plan.architectures[plan.teacher[stack["clients"][0]]]
        logits = _passed(plan, made, models)
        for k, client in enumerate(stack["clients"]):
            about: dict[str, Any] = {"client": client, "payload": None}  # Any: JSON
            try:
                with within(plan.config.execution.deadline_s):
                    stream = rng.stream(plan.config.seed, round_, client, "observe")
                    given = _said(plan, made, models, k, client, logits, round_, stream)
                    about |= _scores(plan, client, given.scores[0])
                    if task.head["answers"]:
                        sent = _uploaded(plan, made, models, k, client, given, states[k], stream)
                        blobs.append(wire.encode(sent))
                        about["payload"] = len(blobs) - 1
            except FAULTS as error:
                about = {"client": client, "error": {**fault(error), "phase": "observe"}}
            said.append(about)
    return wire.pack({"clients": said, "shards": {}}, blobs)


def _logits(plan: Plan, task: Task, store: Store) -> bytes:
    """What every teacher says about the global test set, before anything is done with it."""
    said: list[dict[str, Any]] = []  # Any: JSON
    blobs: list[bytes] = []
    round_ = task.head["round"]
    for stack in task.head["stacks"]:
        models = gather(states_of(plan, store, stack)).to(plan.device)
        made = plan.architectures[plan.teacher[stack["clients"][0]]]
        logits = _passed(plan, made, models)
        for k, client in enumerate(stack["clients"]):
            stream = rng.stream(plan.config.seed, round_, client, "observe")
            given = _said(plan, made, models, k, client, logits, round_, stream)
            said.append({"client": client, "payload": len(blobs)})
            blobs.append(wire.encode(given))
    return wire.pack({"clients": said, "shards": {}}, blobs)


def _passed(plan: Plan, made: Architecture, models: Weights) -> Tensor | None:
    """The test logits [K, R, C] of a whole stack; None where every client replies for itself."""
    if plan.strategy.reply is not None:
        return None
    return answer(made.network, models, plan.test_inputs, plan.config.compute.precision).cpu()


def _said(
    plan: Plan,
    made: Architecture,
    models: Weights,
    k: int,
    client: int,
    logits: Tensor | None,
    round_: int,
    stream: torch.Generator,
) -> Predictions:
    """A client's own words about the test set; `logits` [K, R, C] are those of its stack."""
    own = None if logits is None else logits[k]
    return spoken(plan, made, models, k, client, own, plan.test_inputs, round_, stream)


def _scores(plan: Plan, client: int, logits: Tensor) -> dict[str, float]:
    right = (logits.argmax(-1) == plan.test_labels).double()
    own = (right * own_weights(plan.dataset, client)).sum()
    return {"test": float(right.mean()), "own": min(1.0, float(own))}  # the weights' sum is rounded


def _uploaded(
    plan: Plan,
    made: Architecture,
    models: Weights,
    k: int,
    client: int,
    given: Predictions,
    state: Any,  # a State
    stream: torch.Generator,
) -> Predictions:
    """What the client would send about the test set: annotated and transformed, without faults."""
    given = annotated(plan, made, models, k, client, given, plan.test_inputs, stream)
    given = restricted(plan, client, given)
    shape = Shape(plan.clients, len(plan.rows), plan.dataset.classes)
    upload = plan.strategy.upload
    return upload.apply(under("upload/", state) or upload.init(shape), given, stream).result


def _local(plan: Plan, task: Task, store: Store) -> bytes:
    """Teachers that never hear of each other: the same private epochs, evaluated by round."""
    said: list[dict[str, Any]] = []  # Any: JSON
    private, keep = plan.config.learning.private, plan.config.learning.keep_optimizer
    for stack in task.head["stacks"]:
        clients: list[int] = stack["clients"]
        made = plan.architectures[plan.teacher[clients[0]]]
        models = gather([plan.fresh(c).row(0) for c in clients]).to(plan.device)
        pool, own = private_pool(plan, clients)
        rounds: list[list[dict[str, float]]] = [[] for _ in clients]
        steps, moments = [0] * len(clients), None
        for round_ in range(1, plan.config.rounds + 1):
            done = fit(
                made.network,
                models,
                pool,
                [
                    Feed(r, r, rng.stream(plan.config.seed, round_, c, "train"))
                    for c, r in zip(clients, own, strict=True)
                ],
                private,
                plan.losses["private"],
                epochs=private.epochs_in(round_),
                factors=plan.factors(private, round_, "learning.private.schedule"),
                precision=plan.config.compute.precision,
                moments=moments,
            )
            models, moments = done.weights, done.moments if keep else None
            steps = [a + b for a, b in zip(steps, done.steps, strict=True)]
            logits = answer(
                made.network, models, plan.test_inputs, plan.config.compute.precision
            ).cpu()
            for k, client in enumerate(clients):
                rounds[k].append(_scores(plan, client, logits[k]))
        for k, client in enumerate(clients):
            said.append({"client": client, "rounds": rounds[k], "steps": steps[k]})
    return wire.pack({"clients": said, "shards": {}}, [])


def _pooled(plan: Plan, task: Task, store: Store) -> bytes:
    """The student's architecture on all private data at once, for as many private epochs."""
    learning = plan.config.learning.private
    pool, own = private_pool(plan, range(plan.clients))
    return _alone(plan, pool, torch.cat(own), learning, "private", "pooled")


def _labels(plan: Plan, task: Task, store: Store) -> bytes:
    """The student's architecture on the true public labels, for as many server epochs."""
    labels = torch.from_numpy(plan.dataset.truth.copy()).to(plan.device)
    pool = Pool(plan.public_inputs, None, "logits", labels)
    rows = (labels >= 0).nonzero()[:, 0].cpu()
    return _alone(plan, pool, rows, plan.config.learning.server, "server", "labels")


def _alone(plan: Plan, pool: Pool, rows: Tensor, learning: Any, phase: str, name: str) -> bytes:
    from fedkd.losses import cross_entropy

    models = plan.fresh(rng.SERVER).to(plan.device)
    steps, moments = 0, None
    for round_ in range(1, plan.config.rounds + 1):
        done = fit(
            plan.student.network,
            models,
            pool,
            [Feed(rows, rows, rng.stream(plan.config.seed, round_, rng.SERVER, name))],
            learning,
            cross_entropy(),
            epochs=learning.epochs_in(round_),
            factors=plan.factors(learning, round_, f"learning.{phase}.schedule"),
            precision=plan.config.compute.precision,
            moments=moments,
        )
        models, moments = (
            done.weights,
            done.moments if plan.config.learning.keep_optimizer else None,
        )
        steps += done.steps[0]
    logits = answer(plan.student.network, models, plan.test_inputs, plan.config.compute.precision)[
        0
    ].cpu()
    said = {"test": accuracy(plan, logits, plan.test_labels), "steps": steps, "samples": len(rows)}
    return wire.pack({"clients": [], "shards": {}, "said": said}, [])


_KINDS = {
    "teachers": _teachers,
    "logits": _logits,
    "local": _local,
    "pooled": _pooled,
    "labels": _labels,
}
