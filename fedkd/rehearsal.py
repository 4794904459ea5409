"""One round of a method's own steps on made-up answers, before anything is trained.

What only shows when data flow (scores in the wrong space, a payload that says more than the method
declares, a loss that needs labels which are hidden) is refused here, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedkd import data, forecast, optimisers, rng
from fedkd.answers import check
from fedkd.assemble import Plan
from fedkd.client import dense, learnable, restricted
from fedkd.config import ConfigError, Learning
from fedkd.learning import Teacher
from fedkd.privacy import sgd
from fedkd.privacy.ledger import Ledger
from fedkd.transforms import Total, combine, informed, party, stack
from fedkd.types import (
    Effort,
    Linear,
    Predictions,
    PrivateView,
    Shape,
    Target,
    predictions,
)

_ROWS = 4
_EPOCHS = 1000  # of a schedule that are gone through


def rehearse(plan: Plan) -> None:
    """Raises `ConfigError` with what would have gone wrong, and where."""
    _read_weights(plan)
    _measure(plan)
    _schedules(plan)
    _private(plan)
    name, program = plan.config.strategy.name, plan.strategy.program
    _tried(
        f"world: {plan.config.world.name} should work for the first, the last and a lying client",
        "change its parameters or correct it",
        lambda: _world(plan),
    )
    for phase in ("private", "pretrain"):
        if phase == "private" or "pretrain" in program:
            _tried(
                f"learning.{phase}.loss: should work on made-up samples",
                "choose a loss that needs no consensus",
                partial(_lose_labels, plan, phase),
            )
    if "answer" in program:
        rule, whose = plan.config.combine, f"strategy: {name}"
        way_out = "change the method, its losses, or what the experiment gives it"
        if rule != "auto":
            whose = f"combine: {rule.name} with {name}"
            way_out = f"choose another rule or leave combine at auto, or {way_out}"
        _tried(
            f"{whose} should work on made-up answers",
            way_out,
            lambda: _learn(plan, _consensus(plan)),
        )
    forecast.afford(plan, Ledger(), 1)
    _batches(plan)


def _tried(rule: str, way_out: str, act: Callable[[], object]) -> None:
    try:
        act()
    except ConfigError:
        raise
    except Exception as error:  # a plug-in's own code may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        said = " ".join(f"{kind}{error}".split())
        raise ConfigError(f"{rule}, found {said[:500]}; {way_out}") from error


def _read_weights(plan: Plan) -> None:
    """Read given weights once, so that a file that is missing or does not fit is found now."""
    read: set[tuple[Path, int]] = set()
    for client, kind in enumerate(plan.teacher):
        path = plan.stored(client)
        if path is not None and (path, kind) not in read:
            read.add((path, kind))
            plan.fresh(client)


def _measure(plan: Plan) -> None:
    """Whether the test set can measure every client by its own distribution, where it is to."""
    wanted, dataset = plan.config.evaluation, plan.dataset
    if not (wanted.teachers or wanted.local):
        return
    tested = np.unique(dataset.y[dataset.test])
    untold = np.flatnonzero(~dataset.histogram[:, tested].any(1))
    if len(untold):
        try:
            data.own_weights(dataset, int(untold[0]))
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _schedules(plan: Plan) -> None:
    """A schedule may end before the run does, or leave what is finite."""
    for phase in ("private", "client", "server", "pretrain"):
        those: Learning = getattr(plan.config.learning, phase)
        epochs = those.epochs_in(1) + (plan.config.rounds - 1) * those.epochs
        optimisers.schedule(those.schedule, min(epochs, _EPOCHS), f"learning.{phase}.schedule")


def _private(plan: Plan) -> None:
    """Whether what is claimed of private training can be had with these clients and models."""
    training = plan.config.privacy.training
    if training is None:
        return
    times = plan.strategy.program.count("train")
    if times != 1 or plan.strategy.committee:
        found = "a committee" if plan.strategy.committee else f"{times} times"
        raise ConfigError(
            "privacy.training: should go with a method that has its private epochs once a round, as"
            f" is accounted for, found {found} in {plan.config.strategy.name}; leave it out"
            " or choose another strategy"
        )
    for size in {min(filter(None, plan.samples)), max(plan.samples)}:
        _tried(
            "privacy.training: epsilon and delta should be within reach of some noise",
            "raise epsilon or delta",
            partial(sgd.noise_multiplier, plan.config, size),
        )
    for index in sorted(set(plan.teacher)):
        made = plan.architectures[index]
        if made.network.batch_statistics:
            raise ConfigError(
                "clients.model: should look at every record by itself under privacy.training, found"
                f" {made.name}, whose batch normalisation mixes the records of a batch; choose a"
                " model with group normalisation, such as resnet_gn, or with none"
            )
        _tried(
            f"clients.model: {made.name} and its loss should give the gradient of every record by"
            " itself under privacy.training",
            "choose a model and a loss that neither mix records, nor decide by the values they see,"
            " nor keep them, or leave privacy.training out",
            partial(_gradient_of_each, plan, index),
        )


def _gradient_of_each(plan: Plan, index: int) -> None:
    made, loss = plan.architectures[index], plan.losses["private"]
    weights = plan.fresh(plan.teacher.index(index)).to(plan.device)
    private = [sgd.Private(0.0, 1.0, _stream())]
    gradient = sgd.bind(made.network, weights, 0, 1, loss, private, [1.0])
    labels = torch.zeros(1, 2, dtype=torch.int64, device=plan.device)
    module = made.network.module(weights).to(plan.device).train()

    def learnt(row: int) -> torch.Tensor:
        with rng.borrow(_stream()):
            return gradient(plan.public_inputs[[row, row]].unsqueeze(0), labels, labels == 0)

    def said(beside: int) -> torch.Tensor:
        with rng.borrow(_stream()), torch.no_grad():
            found: torch.Tensor = module(plan.public_inputs[[0, beside]])[0]
        return found

    first, _, again = learnt(0), learnt(-1), learnt(0)
    if _apart(first, again):
        raise ValueError("a gradient that depends on what the model has seen before")
    if _apart(said(0), said(-1)):
        raise ValueError("an answer that depends on the other records of a batch")


def _apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two that should be equal differ by more than rounding."""
    return float((one - other).norm()) > 1e-3 * float(one.norm())


def _batches(plan: Plan) -> None:
    """Batch normalisation learns from two samples at least."""
    learning, smallest = plan.config.learning, min(plan.samples)
    if plan.strategy.committee:
        smallest = min(plan.strategy.committee.sizes(smallest))
    for made in (*plan.architectures, plan.student):
        if not made.network.batch_statistics:
            continue
        for phase in ("server",) if made is plan.student else ("private", "client", "pretrain"):
            if getattr(learning, phase).batch == 1:
                raise ConfigError(
                    f"learning.{phase}.batch: should be at least 2 where a model normalises by"
                    f" batches, found 1 for {made.name}; raise it or choose another model"
                )
        if made is not plan.student and smallest == 1:
            raise ConfigError(
                "data.partition: should give every client, or teacher of its committee, 2 samples"
                f" where a model normalises by batches, found one with 1 beside {made.name}; raise"
                " its min_size, or choose another model"
            )
        if "answer" in plan.strategy.program and len(_asked(plan)) == 1:
            raise ConfigError(
                f"strategy: {plan.config.strategy.name} should ask about 2 public rows where a"
                f" model normalises by batches, found 1 beside {made.name}; raise its rows or"
                " data.public.size, or choose another model"
            )


def _asked(plan: Plan) -> torch.Tensor:
    """The rows of the first question, were it put to the first and the last client."""
    state, clients = plan.strategy.finish.init(_shape(plan)), sorted({0, plan.clients - 1})
    return plan.strategy.request(state, 1, plan.rows, clients, _stream()).rows


def _world(plan: Plan) -> None:
    world, stream = plan.world, _stream()
    clients = [int(c) for c in world.participants(1, plan.clients, stream)]
    if not clients or not set(clients) <= set(range(plan.clients)):
        raise ValueError(f"participants {clients[:5]} of {plan.clients} clients")
    for client in _some_clients(plan):
        world.learns(client, 1)
        world.stays(client, 1, stream)
        plan.private_labels(client)
        if world.seconds is not None:
            seconds = world.seconds(client, 1, Effort(1e6, 1000, 1000), stream)
            if not seconds >= 0:
                raise ValueError(f"{seconds} seconds")


def _consensus(plan: Plan) -> Predictions:
    """What the method makes of the answers of a few clients."""
    strategy, shape, stream = plan.strategy, _shape(plan), _stream()
    clients = _some_clients(plan)
    _asked(plan)
    rows = plan.rows[:_ROWS]
    codec = strategy.upload_codec or dense
    answers = []
    for client in clients:
        given = restricted(plan, client, _said(plan, client, rows, stream))
        if strategy.committee is None:
            given = _faulty(plan, client, given)
        given = strategy.upload.apply(strategy.upload.init(shape), given, stream).result
        _, payload = codec.encode(codec.init(shape), given, stream)
        _, given = codec.decode(codec.init(shape), payload, rows, stream)
        check(plan, given, 1, client, rows)
        answers.append(given)
    rule = strategy.combine
    if isinstance(rule, Linear) and plan.world.conspire is None:
        total = Total(rule, shape.classes)
        for answer in answers:
            total.add(answer)
        joint = total.consensus()
    else:
        everyone = stack(answers)
        if plan.world.conspire is not None:
            liars = plan.world.liars(plan.clients)
            lying = torch.tensor([c in liars for c in clients])
            everyone = plan.world.conspire(everyone, lying, stream)
            for k, client in enumerate(clients):
                check(plan, party(everyone, k), 1, client, rows)
        known = {
            "public_labels": ("labels", torch.zeros(len(rows), dtype=torch.int64)),
            "student": ("student", torch.randn(len(rows), shape.classes, generator=stream)),
        }
        everyone = informed(everyone, **dict(v for n, v in known.items() if n in rule.needs))
        state = {} if isinstance(rule, Linear) else rule.init(shape)
        joint = combine(rule, state, everyone, stream).result
    return strategy.finish.apply(strategy.finish.init(shape), joint, stream).result


def _said(plan: Plan, client: int, rows: torch.Tensor, stream: torch.Generator) -> Predictions:
    """Made-up logits of a client, what its committee makes of those, or its reply."""
    strategy, shape = plan.strategy, _shape(plan)

    def logits(parties: int) -> Predictions:
        scores = torch.randn(parties, len(rows), shape.classes, generator=stream)
        return predictions(
            scores, "logits", rows=rows, asked=torch.ones(parties, dtype=torch.int64)
        )

    given = logits(1)
    if strategy.reply is not None:
        replied = _replied(plan, client, len(rows), stream).unsqueeze(0)
        given = replace(given, scores=replied, space=strategy.shares.answers or "logits")
    if (committee := strategy.committee) is not None:
        inner = shape._replace(parties=committee.teachers)
        answers = logits(committee.teachers)
        target = committee.teach.apply(committee.teach.init(inner), answers, stream).result
        if len(target.parties) != 1:
            raise ValueError(f"committee.teach: should make one target, {len(target.parties)}")
        _lose(plan, target, "client")
        inner = shape._replace(parties=committee.partitions)
        answers = stack(
            replace(_faulty(plan, client, logits(1)), parties=torch.tensor([j]))
            for j in range(committee.partitions)
        )
        given = committee.agree.apply(committee.agree.init(inner), answers, stream).result
    return replace(given, parties=torch.tensor([client]))


def _replied(plan: Plan, client: int, rows: int, stream: torch.Generator) -> torch.Tensor:
    """What a client replies [R, S] to made-up public rows from made-up records."""
    classes, reply = plan.dataset.classes, plan.strategy.reply
    assert reply is not None
    samples = torch.randn(2 * rows, *plan.dataset.shape, generator=stream).to(plan.device)
    own, asked = samples[rows:], samples[:rows]
    made = plan.architectures[plan.teacher[client]]
    model = plan.fresh(client).to(plan.device)
    view = PrivateView(own, torch.arange(rows) % classes, classes, asked, _stream())
    teacher = Teacher(made.network, model, plan.config.compute.precision)
    return reply(view, teacher, asked, stream).cpu().float()


def _faulty(plan: Plan, client: int, given: Predictions) -> Predictions:
    step = plan.world.upload(client, plan.clients)
    return step.apply(step.init(_shape(plan)), given, _stream()).result


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
    recalls = "recall" in strategy.program
    learns = recalls or "distil_clients" in strategy.program
    if not learns or strategy.feedback in ("none", "weights"):
        return
    given = consensus
    if strategy.feedback == "student":
        logits = torch.randn(given.scores.shape, generator=stream)
        given = replace(given, scores=logits, space="logits")
    given = strategy.download.apply(strategy.download.init(shape), given, stream).result
    given = party(given, 0)
    codec = strategy.download_codec or dense
    _, payload = codec.encode(codec.init(shape), given, stream)
    _, given = codec.decode(codec.init(shape), payload, plan.rows[:_ROWS], stream)
    given = strategy.receive.apply(strategy.receive.init(shape), given, stream).result
    if recalls:
        rows = learnable(given)
        target = Target(given.scores[0, rows], given.space, torch.zeros_like(rows))
        return _check_loss(plan, "private", target, len(rows))
    _lose(plan, given, "client")


def _lose_labels(plan: Plan, phase: str) -> None:
    labels = torch.zeros(_ROWS, dtype=torch.int64)
    _check_loss(plan, phase, Target(None, "logits", labels), _ROWS)


def _lose(plan: Plan, given: Predictions, phase: str) -> None:
    rows = learnable(given)
    labels = None
    if plan.dataset.told:
        labels = torch.zeros(len(rows), dtype=torch.int64)
    _check_loss(plan, phase, Target(given.scores[0, rows], given.space, labels), len(rows))


def _check_loss(plan: Plan, phase: str, target: Target, rows: int) -> None:
    loss = plan.losses[phase](torch.zeros(rows, plan.dataset.classes), target)
    if loss.shape != (rows,):
        raise ValueError(
            f"losses.{phase}: should give one number a sample, [{rows}], found {list(loss.shape)}"
        )
    if not bool(torch.isfinite(loss).all()):
        raise ValueError(f"losses.{phase}: should be finite, found {loss.tolist()}")


def _some_clients(plan: Plan) -> list[int]:
    """The first and the last client, and one that lies, if there is one."""
    return sorted({0, plan.clients - 1, *sorted(plan.world.liars(plan.clients))[:1]})


def _shape(plan: Plan) -> Shape:
    return Shape(plan.clients, len(plan.rows), plan.dataset.classes)


def _stream() -> torch.Generator:
    return rng.stream(0, rng.SETUP, rng.SERVER, "rehearsal")
