"""The client side: train, answer and learn from what comes back; bytes in, bytes out.

A task says which of the steps below to do, in order, for a bundle of stacks. Rerunning a task gives
the same reply and the same shards, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd import rng, transforms, wire
from fedkd.assemble import Architecture, Plan
from fedkd.learning import Feed, Pool, Teacher, answer, fit
from fedkd.privacy import sgd
from fedkd.stacks import Weights, gather
from fedkd.store import Carried, Store, prefixed, under
from fedkd.tasks import FAULTS, Task, fault, serve, within
from fedkd.types import (
    Codec,
    Predictions,
    PrivateView,
    Shape,
    Space,
    State,
    Transform,
    predictions,
)

dense = Codec(
    lambda shape: {},
    lambda state, given, rng: (state, wire.encode(given)),
    lambda state, payload, rows, rng: (state, wire.decode(payload, rows)),
)


def work(message: bytes) -> bytes:
    """Do one task and say for every client how many gradient steps it took and what it uploads."""
    return serve(message, _bundle)


def _bundle(plan: Plan, task: Task, store: Store) -> bytes:
    said: list[dict[str, Any]] = []  # Any: JSON
    blobs: list[bytes] = []
    shards: dict[str, dict[str, Any]] = {}
    for stack in task.head["stacks"]:
        at_work = _Stack(plan, task, stack, states_of(plan, store, stack))
        at_work.do(task.head["steps"])
        if states := at_work.states():
            shards[stack["shard"]] = {"sha256": store.put(stack["shard"], states), "blob": None}
        for k, client in enumerate(at_work.clients):
            if k in at_work.faults:
                said.append({"client": client, "error": at_work.faults[k]})
                continue
            payload = None
            if k in at_work.payloads:
                payload = len(blobs)
                blobs.append(at_work.payloads[k])
            said.append({"client": client, "steps": at_work.steps[k], "payload": payload})
    if isinstance(store, Carried):
        for name, content in store.written.items():
            shards[name]["blob"] = len(blobs)
            blobs.append(content)
    return wire.pack({"clients": said, "shards": shards}, blobs)


def states_of(plan: Plan, store: Store, stack: Mapping[str, Any]) -> list[State]:
    """The clients' states, from the store, or fresh before their first task."""
    pairs = zip(stack["clients"], stack["refs"], strict=True)
    return [store.get(ref) if ref else plan.fresh(client).row(0) for client, ref in pairs]


class _Stack:
    """The clients of one stack during one task; its steps change weights and state in place.

    What fails in a client's own part is that client's fault and keeps nobody else from going on;
    what fails in a pass of all is everybody's.
    """

    def __init__(
        self, plan: Plan, task: Task, stack: Mapping[str, Any], states: Sequence[State]
    ) -> None:
        self.plan, self.task, self.round = plan, task, int(task.head["round"])
        self.clients: list[int] = stack["clients"]
        self.made: Architecture = plan.architectures[plan.teacher[self.clients[0]]]
        self.models = gather(states).to(plan.device)
        self.rest = [
            {n: t for n, t in s.items() if n != "weights" and not n.startswith("buffer/")}
            for s in states
        ]
        self.steps = [0] * len(self.clients)
        self.payloads: dict[int, bytes] = {}
        self.recalled: dict[int, Predictions] = {}  # the last consensus about labels, by place
        self.students: dict[int, Weights] = {}  # those of a client's committee, by place
        self.faults: dict[int, dict[str, Any]] = {}  # Any: JSON
        self._phase = ""
        self.shape = Shape(plan.clients, len(plan.rows), plan.dataset.classes)

    @cached_property
    def rows(self) -> Tensor:
        """The rows [R, 3] that the task is about."""
        return self.task.rows()

    @cached_property
    def inputs(self) -> Tensor:
        """These rows as the inputs of a model, [R, …]."""
        return self.plan.public_inputs[self.rows[:, 1].to(self.plan.device)]

    def do(self, steps: Sequence[str]) -> None:
        """Go through the steps; a fault is noted with the step that it came in."""
        patience = self.plan.config.execution.deadline_s
        together = None if patience is None else patience * len(self.clients)
        for self._phase in steps:
            try:
                with within(together):
                    _STEPS[self._phase](self)
            except FAULTS as error:
                self.blame(range(len(self.clients)), error)
            if len(self.faults) == len(self.clients):
                break

    def sound(self) -> Iterator[int]:
        """The places of the clients with which nothing has gone wrong."""
        return (k for k in range(len(self.clients)) if k not in self.faults)

    @contextmanager
    def own(self, k: int) -> Iterator[None]:
        """A client's own part of a step."""
        try:
            with within(self.plan.config.execution.deadline_s):
                yield
        except FAULTS as error:
            self.blame([k], error)

    def blame(self, places: Iterable[int], error: BaseException) -> None:
        """Note a fault; who has one already keeps it."""
        for k in places:
            self.faults.setdefault(k, {**fault(error), "phase": self._phase})

    def states(self) -> dict[int, State]:
        return {self.clients[k]: {**self.models.row(k), **self.rest[k]} for k in self.sound()}

    def stream(self, client: int, purpose: str) -> torch.Generator:
        return rng.stream(self.plan.config.seed, self.round, client, purpose)

    def learns(self, client: int) -> bool:
        return self.plan.world.learns(client, self.round)

    def apply(
        self,
        k: int,
        name: str,
        step: Transform,
        given: Predictions,
        parties: int | None = None,
    ) -> Predictions:
        """One client's step, with its own state and stream; its `parties` are all clients."""
        client = self.clients[k]
        shape = self.shape._replace(parties=parties or self.shape.parties)
        state = under(f"{name}/", self.rest[k]) or step.init(shape)
        done = step.apply(state, given, self.stream(client, name))
        self.keep(k, name, done.state)
        return done.result

    def keep(self, k: int, name: str, state: State) -> None:
        for key, value in state.items():  # what cannot be stored would take the stack along
            if not isinstance(value, Tensor) or value.layout != torch.strided:
                raise TypeError(
                    f"{name}: its state should be dense tensors, found {type(value).__name__}"
                    f" under {key!r}"
                )
        others = {n: t for n, t in self.rest[k].items() if not n.startswith(f"{name}/")}
        self.rest[k] = others | prefixed(f"{name}/", state)

    def fit(self, phase: str, pool: Pool, feeds: Sequence[Feed]) -> None:
        """Train the stack; a client with an empty feed stays as it is."""
        learning = getattr(self.plan.config.learning, phase)
        keep = self.plan.config.learning.keep_optimizer
        name = f"moments/{learning.optimizer.name}"
        epochs = learning.epochs_in(self.round)
        done = fit(
            self.made.network,
            self.models,
            pool,
            feeds,
            learning,
            self.plan.losses[phase],
            epochs=epochs,
            factors=self.plan.factors(learning, self.round, f"learning.{phase}.schedule"),
            precision=self.plan.config.compute.precision,
            moments=_joined([under(f"{name}/", r) for r in self.rest]) if keep else None,
        )
        self.models = done.weights
        self.steps = [a + b for a, b in zip(self.steps, done.steps, strict=True)]
        if keep:
            for k in range(len(self.clients)):
                self.keep(k, name, {n: t[k] for n, t in done.moments.items()})


def _joined(moments: Sequence[Mapping[str, Tensor]]) -> State | None:
    """Moments of a stack; a client that has none yet starts from zeros."""
    first = next((m for m in moments if m), None)
    if first is None:
        return None
    return {
        n: torch.stack([m.get(n, torch.zeros_like(t)) for m in moments]) for n, t in first.items()
    }


def private_pool(plan: Plan, clients: Sequence[int]) -> tuple[Pool, list[Tensor]]:
    """The private samples of several clients end to end, and where each client's own lie."""
    rows = [plan.dataset.private(c) for c in clients]
    joined = np.concatenate(rows)
    labels = torch.cat([plan.private_labels(c) for c in clients]).to(plan.device)
    own = torch.arange(len(joined)).split([len(r) for r in rows])
    return Pool(plan.inputs(joined), None, "logits", labels), list(own)


def distillation_pool(plan: Plan, targets: Sequence[Predictions]) -> Pool:
    """The public set with one or several consensuses on it, end to end."""
    labels = None
    if plan.dataset.told:
        known = plan.dataset.labels(plan.dataset.public)
        labels = torch.cat([known[t.rows[:, 1]] for t in targets]).to(plan.device)
    scores = torch.cat([t.scores[0] for t in targets]).to(plan.device)
    trust = torch.cat([t.trust[0] for t in targets]).to(plan.device)
    return Pool(plan.public_inputs, scores, targets[0].space, labels, trust)


def learnable(target: Predictions) -> Tensor:
    """The positions of the rows to learn from: those with a target that counts."""
    return (target.mask[0] & (target.trust[0] > 0)).nonzero()[:, 0]


def _train(at: _Stack) -> None:
    """Private epochs, by DP-SGD where the experiment has it so."""
    pool, own = private_pool(at.plan, at.clients)
    own = [_drawn(at.plan, c, rows) for c, rows in zip(at.clients, own, strict=True)]
    if at.recalled:
        pool = _with_recalled(at, pool, own)
    feeds = []
    for client, rows in zip(at.clients, own, strict=True):
        rows = rows if at.learns(client) else rows[:0]
        private = sgd.private(at.plan.config, len(rows), at.stream(client, "noise"))
        feeds.append(Feed(rows, rows, at.stream(client, "train"), private))
    at.fit("private", pool, feeds)


def _with_recalled(at: _Stack, pool: Pool, own: Sequence[Tensor]) -> Pool:
    """The private samples with what was said of their labels; zeros where nothing was."""
    assert pool.labels is not None
    classes = at.shape.classes
    scores = torch.zeros(len(pool.labels), classes, device=pool.labels.device)
    for k, given in at.recalled.items():
        known = (given.mask & (given.trust > 0))[0].unsqueeze(-1)
        told = torch.where(known, given.scores[0], 0).to(scores.device)
        scores[own[k]] = told[pool.labels[own[k]]]
    space = next(iter(at.recalled.values())).space
    return pool._replace(scores=scores, space=space)


def _recall(at: _Stack) -> None:
    """Take what the server says of labels into the private epochs that follow."""
    for k in at.sound():
        with at.own(k):
            at.recalled[k] = _received(at, k)


def _reset(at: _Stack) -> None:
    """Back to the weights of the beginning, and to an optimiser that knows no others."""
    rows = [at.models.row(k) for k in range(len(at.clients))]
    for k in at.sound():
        if at.learns(at.clients[k]):
            _forget_moments(at, k)
            rows[k] = at.plan.fresh(at.clients[k]).row(0)
    at.models = gather(rows).to(at.plan.device)


def _forget_moments(at: _Stack, k: int) -> None:
    for name in {n.split("/")[1] for n in at.rest[k] if n.startswith("moments/")}:
        at.keep(k, f"moments/{name}", {})


def _drawn(plan: Plan, client: int, rows: Tensor) -> Tensor:
    """The samples that a client trains on, drawn once where the method does not take them all."""
    if plan.strategy.subset is None:
        return rows
    stream = rng.stream(plan.config.seed, rng.SETUP, client, "subset")
    return rows[plan.strategy.subset(len(rows), stream)]


def _pretrain(at: _Stack) -> None:
    """Learn the public labels, before the first round (D. Li and J. Wang, 2019)."""
    labels = at.plan.dataset.labels(at.plan.dataset.public).to(at.plan.device)
    rows = torch.arange(len(labels))
    pool = Pool(at.plan.public_inputs, None, "logits", labels)
    at.fit("pretrain", pool, [Feed(rows, rows, at.stream(c, "pretrain")) for c in at.clients])


def _convene(at: _Stack) -> None:
    """Train the committee of every client that learns; its first student is the client's model."""
    for k in at.sound():
        if at.learns(at.clients[k]):
            with at.own(k):
                at.students[k] = _taught(at, k)
    rows = [at.models.row(k) for k in range(len(at.clients))]
    for k, students in at.students.items():
        _forget_moments(at, k)
        rows[k] = students.row(0)
    at.models = gather(rows).to(at.plan.device)


def _taught(at: _Stack, k: int) -> Weights:
    """The students of one client, each of whom has learnt what the teachers of a partition say."""
    plan, client, committee = at.plan, at.clients[k], at.plan.strategy.committee
    assert committee is not None
    pool, (own,) = private_pool(plan, [client])
    deals = at.stream(client, "deal")
    parts = [
        own[picked]
        for _ in range(committee.partitions)
        for picked in torch.randperm(len(own), generator=deals).split(committee.sizes(len(own)))
    ]
    feeds = [Feed(p, p, at.stream(client, f"teacher {i}")) for i, p in enumerate(parts)]
    teachers, targets = _members(at, k, "teacher", "private", pool, feeds), list[Predictions]()
    for p, places in enumerate(torch.arange(len(teachers)).split(committee.teachers)):
        said = _inner(at, k, teachers.take(places))
        targets.append(at.apply(k, f"teach/{p}", committee.teach, said, committee.teachers))
    starts, feeds = 0, []
    for p, target in enumerate(targets):
        rows = learnable(target)
        feeds.append(Feed(target.rows[rows, 1], rows + starts, at.stream(client, f"student {p}")))
        starts += target.scores.shape[1]
    return _members(at, k, "student", "client", distillation_pool(plan, targets), feeds)


def _members(
    at: _Stack, k: int, role: str, phase: str, pool: Pool, feeds: Sequence[Feed]
) -> Weights:
    """Fresh models of a client's architecture, in stacks no larger than those of clients."""
    plan, client, trained = at.plan, at.clients[k], list[State]()
    learning = getattr(plan.config.learning, phase)
    for first in range(0, len(feeds), at.made.stack):
        some = range(first, min(first + at.made.stack, len(feeds)))
        fresh = gather([plan.fresh(client, f"init {role} {i}").row(0) for i in some])
        done = fit(
            at.made.network,
            fresh.to(plan.device),
            pool,
            [feeds[i] for i in some],
            learning,
            plan.losses[phase],
            epochs=learning.epochs_in(at.round),
            factors=plan.factors(learning, at.round, f"learning.{phase}.schedule"),
            precision=plan.config.compute.precision,
        )
        trained += [done.weights.row(i) for i in range(len(some))]
        at.steps[k] += sum(done.steps)
    return gather(trained)


def _inner(at: _Stack, k: int, models: Weights) -> Predictions:
    """What models inside of a client say of the rows asked of it; parties are their places."""
    rows, precision = at.rows, at.plan.config.compute.precision
    asked = _asked(at.task, at.clients[k], len(rows))
    logits = answer(at.made.network, models, at.inputs, precision).cpu()
    return predictions(
        logits[:, asked], "logits", rows=rows[asked], asked=torch.full((len(models),), at.round)
    )


def _distil(at: _Stack) -> None:
    """Learn from what the server sent."""
    received: dict[int, Predictions] = {}
    for k in at.sound():
        with at.own(k):
            received[k] = _received(at, k)
    if not received:
        return
    distinct = list({id(t): t for t in received.values()}.values())
    starts, start = {}, 0
    for target in distinct:
        starts[id(target)] = start
        start += target.scores.shape[1]
    nothing, stand_in = torch.zeros(0, dtype=torch.int64), next(iter(received.values()))
    feeds = []
    for k, client in enumerate(at.clients):
        feed = Feed(nothing, nothing, at.stream(client, "distil"))
        if at.learns(client):
            # with whom nothing is wrong learns in as large a stack, to the same bits, whatever has
            # gone wrong with others; what they learn is thrown away
            target = received.get(k, stand_in)
            rows = learnable(target)
            feed = feed._replace(inputs=target.rows[rows, 1], targets=rows + starts[id(target)])
        feeds.append(feed)
    at.fit("client", distillation_pool(at.plan, distinct), feeds)


def _received(at: _Stack, k: int) -> Predictions:
    """The download of a client, decoded by its own link and passed through `receive`."""
    strategy, client = at.plan.strategy, at.clients[k]
    codec = strategy.download_codec or dense
    link = under("down/", at.rest[k]) or codec.init(at.shape)
    payload = at.task.blobs[_download(at, client)]
    link, target = codec.decode(link, payload, at.task.rows(), at.stream(client, "decode"))
    at.keep(k, "down", link)
    return at.apply(k, "receive", strategy.receive, target)


def _download(at: _Stack, client: int) -> int:
    downloads = at.task.head["downloads"]
    return int(downloads.get(str(client), downloads.get("-1")))


def _load(at: _Stack) -> None:
    """Take over the server's weights; moments of other weights would mislead the optimiser."""
    for k in range(len(at.clients)):
        _forget_moments(at, k)
    rows = [at.models.row(k) for k in range(len(at.clients))]
    for k in at.sound():
        with at.own(k):
            given = wire.decode(at.task.blobs[_download(at, at.clients[k])])
            rows[k] = from_weights(given, at.models).row(0)
    at.models = gather(rows).to(at.plan.device)


def _answer(at: _Stack) -> None:
    """Predict the rows asked of each client and make its payload."""
    plan, rows = at.plan, at.rows
    if plan.strategy.summarise is not None:
        return _summarise(at, rows)
    inputs = at.inputs
    logits = None
    if plan.strategy.reply is None and plan.strategy.committee is None:
        logits = answer(at.made.network, at.models, inputs, plan.config.compute.precision).cpu()
    for k in at.sound():
        with at.own(k):
            asked = _asked(at.task, at.clients[k], len(rows))
            own = None if logits is None else logits[k, asked]
            at.payloads[k] = _payload(at, k, own, rows[asked], inputs[asked.to(plan.device)])


def _agreed(at: _Stack, k: int) -> Predictions:
    """What a client's students agree on; who has not learnt is of one mind with itself.

    What goes wrong goes wrong with each student alike, for the world knows of clients alone.
    """
    client, committee = at.clients[k], at.plan.strategy.committee
    assert committee is not None
    alone = at.models.take(torch.full((committee.partitions,), k, device=at.models.flat.device))
    said = _inner(at, k, at.students.get(k, alone))
    me, told = torch.tensor([client]), list[Predictions]()
    for j in range(committee.partitions):
        given = _faulty(at, k, replace(transforms.party(said, j), parties=me))
        told.append(replace(given, parties=said.parties[j : j + 1]))
    agreed = at.apply(k, "agree", committee.agree, transforms.stack(told), committee.partitions)
    return replace(agreed, parties=me)


def _faulty(at: _Stack, k: int, given: Predictions) -> Predictions:
    """What the world makes of a client's logits before anything of the method's."""
    plan = at.plan
    return at.apply(k, "fault", plan.world.upload(at.clients[k], plan.clients), given)


def _payload(at: _Stack, k: int, logits: Tensor | None, rows: Tensor, inputs: Tensor) -> bytes:
    """One client's answer, annotated as the method has it."""
    plan, client = at.plan, at.clients[k]
    if plan.strategy.committee is not None:
        given = _agreed(at, k)
    else:
        stream = at.stream(client, "reply")
        given = spoken(plan, at.made, at.models, k, client, logits, inputs, at.round, stream)
        given = replace(given, rows=rows)
    stream = at.stream(client, "annotate")
    given = annotated(plan, at.made, at.models, k, client, given, inputs, stream)
    return _sent(at, k, restricted(plan, client, given))


def _summarise(at: _Stack, rows: Tensor) -> None:
    """Say of each label what the model makes of the client's own samples of it."""
    plan = at.plan
    assert plan.strategy.summarise is not None
    for k in at.sound():
        with at.own(k):
            client = at.clients[k]
            view, model = own_view(plan, client), teacher(plan, at.made, at.models, k)
            logits, mask = plan.strategy.summarise(view, model, at.stream(client, "summarise"))
            given = predictions(
                logits.cpu().float().unsqueeze(0),
                "logits",
                mask=mask.cpu().unsqueeze(0),
                trust=mask.cpu().float().unsqueeze(0),
                rows=rows,
                parties=torch.tensor([client]),
                asked=torch.tensor([at.round]),
            )
            at.payloads[k] = _sent(at, k, given)


def _sent(at: _Stack, k: int, given: Predictions) -> bytes:
    """A client's payload, through all that lies between its word and the wire."""
    strategy, client = at.plan.strategy, at.clients[k]
    if strategy.committee is None:  # whose students have been through it
        given = _faulty(at, k, given)
    given = at.apply(k, "upload", strategy.upload, given)
    codec = strategy.upload_codec or dense
    link = under("up/", at.rest[k]) or codec.init(at.shape)
    link, payload = codec.encode(link, given, at.stream(client, "encode"))
    if not isinstance(payload, bytes):
        raise TypeError(f"upload_codec: bytes expected of encode, found {type(payload).__name__}")
    at.keep(k, "up", link)
    return payload


def restricted(plan: Plan, client: int, given: Predictions) -> Predictions:
    """The answer about those classes alone that the world has the client know."""
    if plan.world.knows is None:
        return given
    labels = plan.private_labels(client)
    known = plan.world.knows(torch.bincount(labels, minlength=plan.dataset.classes))
    ids = known.nonzero()[:, 0]
    if known.shape != (plan.dataset.classes,) or not len(ids):
        raise ValueError(
            f"knows: some of {plan.dataset.classes} classes expected, found {known.tolist()}"
        )
    return replace(given, scores=given.scores[..., ids], classes=ids.view(1, 1, -1))


def _asked(task: Task, client: int, rows: int) -> Tensor:
    """Which of the task's rows were asked of this client, as positions."""
    masks = task.head["masks"]
    if masks is None:
        return torch.arange(rows)
    bits = np.frombuffer(task.blobs[masks[str(client)]], np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=rows).nonzero()[0])


def spoken(
    plan: Plan,
    made: Architecture,
    models: Weights,
    k: int,
    client: int,
    logits: Tensor | None,
    inputs: Tensor,
    round_: int,
    stream: torch.Generator,
) -> Predictions:
    """What a client makes of inputs [R, …] by itself: its logits [R, C], or the method's `reply`.

    Raises `ValueError` where a reply is not a row of scores for each input.
    """
    space: Space = "logits"
    scores, reply = logits, plan.strategy.reply
    if reply is not None:
        space = plan.strategy.shares.answers or space
        model = teacher(plan, made, models, k)
        scores = reply(own_view(plan, client), model, inputs, stream).cpu().float()
        if scores.dim() != 2 or len(scores) != len(inputs):
            raise ValueError(
                f"reply: scores should be [{len(inputs)}, S], found {list(scores.shape)}"
            )
    assert scores is not None, "there is a pass of all where nobody replies"
    return predictions(
        scores.unsqueeze(0),
        space,
        parties=torch.tensor([client]),
        asked=torch.tensor([round_]),
    )


def annotated(
    plan: Plan,
    made: Architecture,
    models: Weights,
    k: int,
    client: int,
    given: Predictions,
    inputs: Tensor,
    stream: torch.Generator,
) -> Predictions:
    """The answer with the client's own mask and trust, where the method has it look at its data."""
    annotate = plan.strategy.annotate
    if annotate is None:
        return given
    model = teacher(plan, made, models, k)
    mask, trust = annotate(own_view(plan, client), model, inputs, stream)
    mask = given.mask & mask.cpu().unsqueeze(0)
    return replace(given, mask=mask, trust=trust.cpu().float().unsqueeze(0))


def own_view(plan: Plan, client: int) -> PrivateView:
    """What a client may look at when it says something of its data."""
    return PrivateView(
        plan.inputs(plan.dataset.private(client)),
        plan.private_labels(client),
        plan.dataset.classes,
        plan.public_inputs,
        rng.stream(plan.config.seed, rng.SETUP, client, "once"),
    )


def teacher(plan: Plan, made: Architecture, models: Weights, k: int) -> Teacher:
    """The k-th model of a stack, to be asked."""
    alone = models.take(torch.tensor([k], device=models.flat.device))
    return Teacher(made.network, alone, plan.config.compute.precision)


def _upload_weights(at: _Stack) -> None:
    """Send the weights themselves, and the number of samples behind them."""
    for k in at.sound():
        client = at.clients[k]
        examples = torch.tensor([len(at.plan.dataset.private(client))])
        given = to_weights(at.models, k, client, at.round, at.shape.classes)
        extras = {**(given.extras or {}), "examples": (examples,)}
        at.payloads[k] = wire.encode(replace(given, extras=extras))


def to_weights(models: Weights, k: int, party: int, round_: int, classes: int) -> Predictions:
    """Weights as knowledge beyond answers: no rows, one vector [1, P] of parameters and buffers."""
    parts = [models.flat[k], *(b[k].reshape(-1).float() for b in models.buffers.values())]
    return predictions(
        torch.zeros(1, 0, classes),
        "logits",
        parties=torch.tensor([party]),
        asked=torch.tensor([round_]),
        extras={"weights": (torch.cat(parts).cpu().unsqueeze(0),)},
    )


def from_weights(given: Predictions, like: Weights) -> Weights:
    """The inverse of `to_weights`; buffers get back their shapes and types."""
    if given.extras is None or "weights" not in given.extras:
        raise ValueError("weights: the message holds none")
    vector = given.extras["weights"][0][0]
    sizes = [like.flat.shape[1], *(b[0].numel() for b in like.buffers.values())]
    if len(vector) != sum(sizes):
        raise ValueError(f"weights: {sum(sizes)} values expected, found {len(vector)}")
    flat, *buffers = vector.split(sizes)
    return Weights(
        flat.unsqueeze(0),
        {
            n: part.view(1, *b.shape[1:]).to(b.dtype)
            for (n, b), part in zip(like.buffers.items(), buffers, strict=True)
        },
    )


_STEPS = {
    "pretrain": _pretrain,
    "load": _load,
    "distil": _distil,
    "reset": _reset,
    "recall": _recall,
    "train": _train,
    "convene": _convene,
    "answer": _answer,
    "upload_weights": _upload_weights,
}
