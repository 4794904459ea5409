"""The client side: train, answer and learn from what comes back; bytes in, bytes out.

A task says which of the steps below to do, in order, for a bundle of stacks. Rerunning a task gives
the same reply and the same shards, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd import rng, wire
from fedkd.assemble import Architecture, Plan
from fedkd.learning import Feed, Pool, answer, fit
from fedkd.stacks import Weights, gather
from fedkd.store import Carried, Store, prefixed, under
from fedkd.tasks import Task, blaming, serve
from fedkd.types import Codec, Predictions, PrivateView, Shape, State, Transform, predictions

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
    for stack in task.head["stacks"]:
        at_work = _Stack(plan, task, stack, states_of(plan, store, stack))
        for step in task.head["steps"]:
            _STEPS[step](at_work)
        store.put(stack["shard"], dict(zip(at_work.clients, at_work.states(), strict=True)))
        for k, client in enumerate(at_work.clients):
            payload = len(blobs) if at_work.payloads else None
            blobs += at_work.payloads[k : k + 1]
            said.append({"client": client, "steps": at_work.steps[k], "payload": payload})
    shards = {}
    if isinstance(store, Carried):
        for name, content in store.written.items():
            shards[name] = len(blobs)
            blobs.append(content)
    return wire.pack({"clients": said, "shards": shards}, blobs)


def states_of(plan: Plan, store: Store, stack: Mapping[str, Any]) -> list[State]:
    """The clients' states, from the store, or fresh before their first task."""
    pairs = zip(stack["clients"], stack["refs"], strict=True)
    return [store.get(ref) if ref else plan.fresh(client).row(0) for client, ref in pairs]


class _Stack:
    """The clients of one stack during one task; its steps change weights and state in place."""

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
        self.payloads: list[bytes] = []
        self.shape = Shape(plan.clients, len(plan.public), plan.dataset.classes)

    def states(self) -> list[State]:
        return [{**self.models.row(k), **rest} for k, rest in enumerate(self.rest)]

    def stream(self, client: int, purpose: str) -> torch.Generator:
        return rng.stream(self.plan.config.seed, self.round, client, purpose)

    def learns(self, client: int) -> bool:
        return self.plan.world.learns(client, self.round)

    def apply(self, k: int, name: str, step: Transform, given: Predictions) -> Predictions:
        """One client's step, with its own state and stream."""
        client = self.clients[k]
        state = under(f"{name}/", self.rest[k]) or step.init(self.shape)
        with blaming(client):
            done = step.apply(state, given, self.stream(client, name))
        self.keep(k, name, done.state)
        return done.result

    def keep(self, k: int, name: str, state: State) -> None:
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
    labels = plan.dataset.labels(joined).to(plan.device)
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
    """Private epochs."""
    pool, own = private_pool(at.plan, at.clients)
    at.fit(
        "private",
        pool,
        [
            Feed(
                rows if at.learns(c) else rows[:0],
                rows if at.learns(c) else rows[:0],
                at.stream(c, "train"),
            )
            for c, rows in zip(at.clients, own, strict=True)
        ],
    )


def _pretrain(at: _Stack) -> None:
    """Learn the public labels, before the first round (D. Li and J. Wang, 2019)."""
    labels = at.plan.dataset.labels(at.plan.dataset.public).to(at.plan.device)
    rows = torch.arange(len(labels))
    pool = Pool(at.plan.public_inputs, None, "logits", labels)
    at.fit("pretrain", pool, [Feed(rows, rows, at.stream(c, "pretrain")) for c in at.clients])


def _distil(at: _Stack) -> None:
    """Learn from what the server sent."""
    received = [_received(at, k) for k in range(len(at.clients))]
    distinct = list({id(t): t for t in received}.values())
    starts, start = {}, 0
    for target in distinct:
        starts[id(target)] = start
        start += target.scores.shape[1]
    feeds = []
    for client, target in zip(at.clients, received, strict=True):
        rows = learnable(target) if at.learns(client) else torch.zeros(0, dtype=torch.int64)
        feeds.append(
            Feed(target.rows[rows, 1], rows + starts[id(target)], at.stream(client, "distil"))
        )
    at.fit("client", distillation_pool(at.plan, distinct), feeds)


def _received(at: _Stack, k: int) -> Predictions:
    """The download of a client, decoded by its own link and passed through `receive`."""
    strategy, client = at.plan.strategy, at.clients[k]
    codec = strategy.download_codec or dense
    link = under("down/", at.rest[k]) or codec.init(at.shape)
    payload = at.task.blobs[_download(at, client)]
    with blaming(client):
        link, target = codec.decode(link, payload, at.task.rows(), at.stream(client, "decode"))
    at.keep(k, "down", link)
    return at.apply(k, "receive", strategy.receive, target)


def _download(at: _Stack, client: int) -> int:
    downloads = at.task.head["downloads"]
    return int(downloads.get(str(client), downloads.get("-1")))


def _load(at: _Stack) -> None:
    """Take over the server's weights; moments of other weights would mislead the optimiser."""
    for k in range(len(at.clients)):
        for name in {n.split("/")[1] for n in at.rest[k] if n.startswith("moments/")}:
            at.keep(k, f"moments/{name}", {})
    given = [wire.decode(at.task.blobs[_download(at, c)]) for c in at.clients]
    at.models = gather([from_weights(g, at.models).row(0) for g in given]).to(at.plan.device)


def _answer(at: _Stack) -> None:
    """Predict the rows asked of each client and make its payload."""
    plan, strategy, rows = at.plan, at.plan.strategy, at.task.rows()
    inputs = plan.public_inputs[rows[:, 1].to(plan.device)]
    logits = answer(at.made.network, at.models, inputs, plan.config.compute.precision).cpu()
    codec = strategy.upload_codec or dense
    for k, client in enumerate(at.clients):
        asked = _asked(at.task, client, len(rows))
        given = predictions(
            logits[k : k + 1, asked],
            "logits",
            rows=rows[asked],
            parties=torch.tensor([client]),
            asked=torch.tensor([at.round]),
        )
        given = annotated(
            plan,
            at.made,
            at.models,
            k,
            client,
            given,
            inputs[asked.to(plan.device)],
            at.stream(client, "annotate"),
        )
        given = at.apply(k, "fault", plan.world.upload(client), given)
        given = at.apply(k, "upload", strategy.upload, given)
        link = under("up/", at.rest[k]) or codec.init(at.shape)
        with blaming(client):
            link, payload = codec.encode(link, given, at.stream(client, "encode"))
        at.keep(k, "up", link)
        at.payloads.append(payload)


def _asked(task: Task, client: int, rows: int) -> Tensor:
    """Which of the task's rows were asked of this client, as positions."""
    masks = task.head["masks"]
    if masks is None:
        return torch.arange(rows)
    bits = np.frombuffer(task.blobs[masks[str(client)]], np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=rows).nonzero()[0])


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
    own = plan.dataset.private(client)
    view = PrivateView(plan.inputs(own), plan.dataset.labels(own), plan.dataset.classes)
    alone = models.take(torch.tensor([k], device=models.flat.device))

    def model(x: Tensor) -> Tensor:
        return answer(made.network, alone, x, plan.config.compute.precision)[0]

    with blaming(client):
        mask, trust = annotate(view, model, inputs, stream)
    return replace(given, mask=mask.cpu().unsqueeze(0), trust=trust.cpu().float().unsqueeze(0))


def _upload_weights(at: _Stack) -> None:
    """Send the weights themselves, and the number of samples behind them."""
    for k, client in enumerate(at.clients):
        examples = torch.tensor([len(at.plan.dataset.private(client))])
        given = to_weights(at.models, k, client, at.round, at.shape.classes)
        extras = {**(given.extras or {}), "examples": (examples,)}
        at.payloads.append(wire.encode(replace(given, extras=extras)))


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
    "train": _train,
    "answer": _answer,
    "upload_weights": _upload_weights,
}
