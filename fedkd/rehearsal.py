"""One round of a method's own steps on made-up answers, before anything is trained.

What only shows when data flow (scores in the wrong space, a payload that says more than the method
declares, a loss that needs labels which are hidden) is refused here, in milliseconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fedkd import rng
from fedkd.assemble import Plan
from fedkd.client import dense, learnable
from fedkd.config import ConfigError
from fedkd.exchange import check
from fedkd.transforms import combine, party, stack
from fedkd.types import Linear, Predictions, Shape, Target, predictions

_ROWS = 4


def rehearse(plan: Plan) -> None:
    """Raises `ConfigError` with what would have gone wrong, and where."""
    _read_weights(plan)
    name, program = plan.config.strategy.name, plan.strategy.program
    try:
        if "answer" in program:
            _learn(plan, _consensus(plan))
    except ConfigError:
        raise
    except Exception as error:  # a method's own code may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"strategy: {name} fails on made-up answers: {kind}{error}; change the method, its"
            " losses, or what the experiment gives it"
        ) from error


def _read_weights(plan: Plan) -> None:
    """Read given weights once, so that a file that is missing or does not fit is found now."""
    read: set[tuple[Path, int]] = set()
    for client, kind in enumerate(plan.teacher):
        path = plan.stored(client)
        if path is not None and (path, kind) not in read:
            read.add((path, kind))
            plan.fresh(client)


def _consensus(plan: Plan) -> Predictions:
    """What the method makes of the answers of the first and the last client."""
    strategy, shape, stream = plan.strategy, _shape(plan), _stream()
    clients = sorted({0, plan.clients - 1})
    rows = plan.public[:_ROWS]
    codec = strategy.upload_codec or dense
    answers = []
    for client in clients:
        given = predictions(
            torch.randn(1, len(rows), shape.classes, generator=stream),
            "logits",
            rows=rows,
            parties=torch.tensor([client]),
            asked=torch.tensor([1]),
        )
        for step in (plan.world.upload(client), strategy.upload):
            given = step.apply(step.init(shape), given, stream).result
        _, payload = codec.encode(codec.init(shape), given, stream)
        _, given = codec.decode(codec.init(shape), payload, rows, stream)
        check(plan, given, 1, client, rows)
        answers.append(given)
    rule = strategy.combine
    state = {} if isinstance(rule, Linear) else rule.init(shape)
    joint = combine(rule, state, stack(answers), stream).result
    return strategy.finish.apply(strategy.finish.init(shape), joint, stream).result


def _learn(plan: Plan, consensus: Predictions) -> None:
    """Whether the student and the clients can learn from that consensus."""
    strategy, shape, stream = plan.strategy, _shape(plan), _stream()
    if "distil_server" in strategy.program:
        if len(consensus.parties) > 1:
            raise ConfigError(
                f"strategy: {plan.config.strategy.name} makes one target a client, so the server's"
                " student has none; leave distil_server out of its program, or reduce the targets"
                " in finish"
            )
        _lose(plan, consensus, "server")
    if "distil_clients" not in strategy.program or strategy.feedback in ("none", "weights"):
        return
    given = consensus
    if strategy.feedback == "student":
        logits = torch.randn(given.scores.shape, generator=stream)
        given = replace(given, scores=logits, space="logits")
    given = strategy.download.apply(strategy.download.init(shape), given, stream).result
    given = party(given, 0)
    codec = strategy.download_codec or dense
    _, payload = codec.encode(codec.init(shape), given, stream)
    _, given = codec.decode(codec.init(shape), payload, plan.public[:_ROWS], stream)
    given = strategy.receive.apply(strategy.receive.init(shape), given, stream).result
    _lose(plan, given, "client")


def _lose(plan: Plan, given: Predictions, phase: str) -> None:
    rows = learnable(given)
    labels = None
    if plan.dataset.told:
        labels = torch.zeros(len(rows), dtype=torch.int64)
    target = Target(given.scores[0, rows], given.space, labels)
    loss = plan.losses[phase](torch.zeros(len(rows), plan.dataset.classes), target)
    if loss.shape != (len(rows),):
        raise ValueError(
            f"losses.{phase}: should give one number a sample, [{len(rows)}], found"
            f" {list(loss.shape)}"
        )


def _shape(plan: Plan) -> Shape:
    return Shape(plan.clients, len(plan.public), plan.dataset.classes)


def _stream() -> torch.Generator:
    return rng.stream(0, rng.SETUP, rng.SERVER, "rehearsal")
