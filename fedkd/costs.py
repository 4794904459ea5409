"""What a round of a plan costs: passes, gradient steps, bytes, memory, without training.

Steps and bytes are those that the engine counts. Where a method decides only as it goes what it
asks for (a cache), they are what it comes to at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkd import rng
from fedkd.assemble import Architecture, Plan
from fedkd.bundles import MOST_CLIENTS, stacks_of
from fedkd.config import Learning
from fedkd.types import Ask, Linear, Shape, State, Traffic
from fedkd.wire import HEADER_BYTES

_LEARNT = {"pretrain": ("pretrain",), "train": ("private",), "convene": ("private", "client"),
           "distil_clients": ("client",), "distil_server": ("server",)}  # fmt: skip
_FLOAT = 4  # bytes
_ORDER = 40  # bytes of one place in an epoch: two indices and a share, by client and joined
_ANSWERED = 256  # samples of a model in a pass without gradients, as in `learning`


class Bytes(NamedTuple):
    """Communication of one round over all clients that take part."""

    up: int
    down: int


def traffic(plan: Plan, round_: int) -> Bytes:
    """By the method's own formulas, with the fixed header of every message."""
    strategy, classes = plan.strategy, plan.dataset.classes
    shares, program = strategy.shares, strategy.program
    clients, ask = asked(plan, round_)
    up = down = 0
    for k, client in enumerate(clients):
        network = plan.architectures[plan.teacher[client]].network
        size = network.parameters + sum(b.numel() for b in network.buffers.values())
        rows = len(ask.rows) if ask.mask is None else int(ask.mask[k].sum())
        if "answer" in program:
            up += HEADER_BYTES + shares.uplink(Traffic(rows, classes, size, rows))
            if not ask.known:
                down += 4 * rows
            elif ask.mask is not None:
                down += -(-len(ask.rows) // 8)
        if "average_weights" in program:
            up += HEADER_BYTES + shares.uplink(Traffic(0, classes, size, 0))
        if strategy.feedback == "weights":
            down += HEADER_BYTES + shares.downlink(Traffic(0, classes, size, 0))
        elif _learns_back(plan, round_):
            known = len(ask.rows)
            down += HEADER_BYTES + shares.downlink(Traffic(known, classes, size, known))
    return Bytes(up, down)


class Passes(NamedTuple):
    """Samples that go through models in one phase of a round, all clients together."""

    forward: int
    backward: int
    steps: int  # gradient steps


def passes(plan: Plan, round_: int) -> Mapping[str, Passes]:
    """What the phases of a round come to, in their order; measuring and yardsticks are beside it.

    An epoch passes each sample once, a masked row that is asked of others is passed as well. For a
    reply from records these and the public rows are passed at most.
    """
    clients, ask = asked(plan, round_)
    committee, counted = plan.strategy.committee, dict[str, Passes]()
    for phase in _passing(plan, round_):
        lessons = list(_lessons(plan, phase, round_, clients, len(ask.rows)))
        learnt, answered = sum(one.samples for one in lessons), 0
        if phase == "answer" and plan.strategy.summarise:
            answered = sum(plan.samples[c] for c in clients)
        elif phase == "answer":
            answered = len(clients) * len(ask.rows) * (committee.partitions if committee else 1)
            if plan.strategy.reply is not None:
                answered += sum(plan.samples[c] for c in clients)
        elif phase == "convene" and committee:  # its teachers answer, too
            learns = sum(plan.world.learns(c, round_) for c in clients)
            answered = learns * len(ask.rows) * committee.partitions * committee.teachers
        counted[phase] = Passes(learnt + answered, learnt, sum(one.steps for one in lessons))
    return counted


def steps(plan: Plan, round_: int) -> Mapping[str, int]:
    """Gradient steps of a round by kind of learning; those of the clients summed."""
    clients, ask = asked(plan, round_)
    counted: dict[str, int] = {}
    for phase in _passing(plan, round_):
        counted |= {kind: counted.get(kind, 0) for kind in _LEARNT.get(phase, ())}
        for one in _lessons(plan, phase, round_, clients, len(ask.rows)):
            counted[one.kind] += one.steps
    return counted


def _passing(plan: Plan, round_: int) -> Iterator[str]:
    """The phases of a round in which anything goes through a model."""
    for phase in plan.strategy.program:
        if phase in ("answer", *_LEARNT) and (phase != "pretrain" or round_ == 1):
            yield phase


class _Lesson(NamedTuple):
    """What one model learns in a phase, all epochs together."""

    kind: str
    samples: int
    steps: int


def _lessons(
    plan: Plan, phase: str, round_: int, clients: Sequence[int], asked_rows: int
) -> Iterator[_Lesson]:
    for kind, made, size in _learners(plan, phase, round_, clients, asked_rows):
        learning: Learning = getattr(plan.config.learning, kind)
        alone = made.network.batch_statistics and size % learning.batch == 1
        epochs, batches = learning.epochs_in(round_), -(-size // learning.batch)
        yield _Lesson(kind, epochs * (size - alone), epochs * (batches - alone))


def _learners(
    plan: Plan, phase: str, round_: int, clients: Sequence[int], asked_rows: int
) -> Iterator[tuple[str, Architecture, int]]:
    """Who learns what kind of thing in a phase, and on how many samples an epoch."""
    if phase == "distil_server":
        yield "server", plan.student, asked_rows
    if phase == "distil_server" or phase not in _LEARNT:
        return
    for client in range(plan.clients) if phase == "pretrain" else clients:
        made, own = plan.architectures[plan.teacher[client]], plan.samples[client]
        learns = phase == "pretrain" or plan.world.learns(client, round_)
        if not learns or (phase == "distil_clients" and not _learns_back(plan, round_)):
            continue
        if phase == "convene" and (committee := plan.strategy.committee):
            for _ in range(committee.partitions):
                yield from (("private", made, part) for part in committee.sizes(own))
                yield "client", made, asked_rows
        else:
            size = {"train": own, "pretrain": len(plan.public)}.get(phase, asked_rows)
            yield _LEARNT[phase][0], made, size


def memory(plan: Plan) -> Mapping[str, int]:
    """Bytes in all by place; see `memory_parts` for what is counted."""
    return {place: sum(parts.values()) for place, parts in memory_parts(plan).items()}


def memory_parts(plan: Plan) -> Mapping[str, Mapping[str, int]]:
    """Bytes of the tensors that fedkd itself holds at once, by place and use.

    An estimate, which can be too low: not counted are the libraries, their work space (tens of
    megabytes), what the allocator keeps, and what a method, a loss or a model makes on the way.
    A worker is counted at its largest stack;
    the local runtime holds worker and server in one process.
    """
    data, learning = plan.dataset, plan.config.learning
    floats, sample = _FLOAT, _FLOAT * math.prod(data.shape)
    seen = {"public and test samples": sample * (len(data.public) + len(data.test))}
    answers = floats * len(data.public) * data.classes
    tested = floats * len(data.test) * data.classes
    moments = 3 if learning.keep_optimizer else 1
    together = min(plan.clients, MOST_CLIENTS)
    carried = 2 * together if plan.config.execution.store == "carried" else 0  # there and back
    worker: Mapping[str, int] = {}
    committee = plan.strategy.committee
    for stack in stacks_of(plan, range(plan.clients)):
        made, own = plan.architectures[plan.teacher[stack[0]]], [plan.samples[c] for c in stack]
        shuffled = max(
            max(own) * learning.private.epochs_in(1),
            len(data.public) * max(learning.client.epochs_in(r) for r in (1, 2)),
        )
        batch = max(learning.private.batch, learning.client.batch)
        # committees are trained one after the other; their students stay till all have answered
        inner = committee.partitions * committee.teachers if committee else 0
        kept = inner + len(stack) * committee.partitions if committee else 0
        parts = {
            "private samples": sample * sum(own),
            **_model(made, data.shape, batch, max(len(stack), min(inner, made.stack))),
            # as logits, as payloads of all that travels together, what comes back; the test answers
            "answers": len(stack) * (2 * answers + tested) + (together + inner) * answers,
            # as read, in one piece, and as the bytes of a shard
            "states": _FLOAT
            * made.network.parameters
            * (moments * (3 * len(stack) + carried) + kept),
            "order of samples": len(stack) * _ORDER * shuffled,
        }
        worker = max(worker, parts, key=lambda p: sum(p.values()))
    gathered = 2 * plan.clients * answers  # one by one and stacked
    if isinstance(plan.strategy.combine, Linear):
        gathered = 2 * 8 * len(data.public) * (data.classes + 1)  # folded in float64
    server = {
        **_model(plan.student, data.shape, learning.server.batch, 1),
        "answers": gathered + 3 * answers + tested,
        "order of samples": _ORDER * len(data.public) * learning.server.epochs_in(1),
    }
    held = moments * floats * sum(plan.architectures[t].network.parameters for t in plan.teacher)
    return {"worker": {**seen, **worker}, "server": {**seen, **server}, "state": {"models": held}}


def _model(
    made: Architecture, shape: Sequence[int], batch: int, together: int
) -> Mapping[str, int]:
    passed = max(2 * batch, _ANSWERED)  # with gradients, or in a pass without
    return {
        # weights before, during and after; gradients in parts and flat; two moments as often; and
        # the weights and moments of the stack before
        "models, gradients and moments": together * 14 * _FLOAT * made.network.parameters,
        "activations": together * _FLOAT * passed * _activations(made, shape),
    }


def asked(
    plan: Plan, round_: int, clients: Sequence[int] | None = None, state: State | None = None
) -> tuple[Sequence[int], Ask]:
    """Who takes part, and what they are asked.

    `clients` are those of the world unless given; `state` is that of the method's finish, by
    default the one in which nothing is known yet.
    """

    def stream(purpose: str) -> torch.Generator:
        return rng.stream(plan.config.seed, round_, rng.SERVER, purpose)

    if clients is None:
        found = plan.world.participants(round_, plan.clients, stream("participants"))
        clients = sorted(int(c) for c in found)
    if "answer" not in plan.strategy.program:
        return clients, Ask(plan.rows[:0], None, known=True)
    if state is None:
        shape = Shape(plan.clients, len(plan.rows), plan.dataset.classes)
        state = plan.strategy.finish.init(shape)
    ask = plan.strategy.request(state, round_, plan.rows, clients, stream("request"))
    return clients, ask


def _learns_back(plan: Plan, round_: int) -> bool:
    """Whether the clients have a consensus to learn; where that comes first, not in round 1."""
    program = plan.strategy.program
    back = next((w for w in program if w in ("distil_clients", "recall")), None)
    if back is None or plan.strategy.feedback in ("none", "weights"):
        return False
    before = program.index(back) < program.index("combine")
    return round_ > 1 or not before


def _activations(made: Architecture, shape: Sequence[int]) -> int:
    """The numbers that the layers hand on for one sample."""
    counted: list[int] = []

    def count(module: nn.Module, given: object, result: object) -> None:
        if isinstance(result, Tensor):
            counted.append(result.numel() // 2)

    with rng.borrow(torch.Generator()), torch.no_grad():
        module = made.make().eval()
        for layer in module.modules():
            if not list(layer.children()):
                layer.register_forward_hook(count)
        module(torch.zeros(2, *shape))
    return sum(counted)
