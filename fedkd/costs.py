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
from fedkd.types import Ask, Linear, Shape, Traffic
from fedkd.wire import HEADER_BYTES

_LEARNT = {"pretrain": "pretrain", "train": "private", "distil_clients": "client",
           "distil_server": "server"}  # fmt: skip
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
    counted: dict[str, Passes] = {}
    for phase in plan.strategy.program:
        if phase == "answer":
            own = int(plan.dataset.histogram[list(clients)].sum())
            public = len(clients) * len(ask.rows)
            if plan.strategy.summarise:
                public = 0
            elif plan.strategy.reply is None:
                own = 0
            counted[phase] = Passes(own + public, 0, 0)
        elif phase in _LEARNT and (phase != "pretrain" or round_ == 1):
            learning: Learning = getattr(plan.config.learning, _LEARNT[phase])
            samples = steps = 0
            for made, size in _learners(plan, phase, round_, clients, len(ask.rows)):
                alone = made.network.batch_statistics and size % learning.batch == 1
                samples += learning.epochs_in(round_) * (size - alone)
                steps += learning.epochs_in(round_) * (-(-size // learning.batch) - alone)
            counted[phase] = Passes(samples, samples, steps)
    return counted


def steps(plan: Plan, round_: int) -> Mapping[str, int]:
    """Gradient steps of a round by kind of learning; those of the clients summed."""
    counted = passes(plan, round_).items()
    return {_LEARNT[phase]: those.steps for phase, those in counted if phase in _LEARNT}


def _learners(
    plan: Plan, phase: str, round_: int, clients: Sequence[int], asked_rows: int
) -> Iterator[tuple[Architecture, int]]:
    """Who learns in a phase, and on how many samples an epoch."""
    if phase == "distil_server":
        yield plan.student, asked_rows
        return
    sizes = plan.dataset.histogram.sum(1)
    for client in range(plan.clients) if phase == "pretrain" else clients:
        size = {"train": int(sizes[client]), "pretrain": len(plan.public)}.get(phase, asked_rows)
        learns = phase == "pretrain" or plan.world.learns(client, round_)
        if learns and (phase != "distil_clients" or _learns_back(plan, round_)):
            yield plan.architectures[plan.teacher[client]], size


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
    sizes = data.histogram.sum(1)
    moments = 3 if learning.keep_optimizer else 1
    together = min(plan.clients, MOST_CLIENTS)
    carried = 2 * together if plan.config.execution.store == "carried" else 0  # there and back
    worker: Mapping[str, int] = {}
    for stack in stacks_of(plan, range(plan.clients)):
        made, own = plan.architectures[plan.teacher[stack[0]]], [int(sizes[c]) for c in stack]
        shuffled = max(
            max(own) * learning.private.epochs_in(1),
            len(data.public) * max(learning.client.epochs_in(r) for r in (1, 2)),
        )
        parts = {
            "private samples": sample * sum(own),
            **_model(made, data.shape, max(learning.private.batch, learning.client.batch), stack),
            # as logits, as payloads of all that travels together, what comes back; the test answers
            "answers": len(stack) * (2 * answers + tested) + together * answers,
            # as read, in one piece, and as the bytes of a shard
            "states": _FLOAT * made.network.parameters * moments * (3 * len(stack) + carried),
            "order of samples": len(stack) * _ORDER * shuffled,
        }
        worker = max(worker, parts, key=lambda p: sum(p.values()))
    gathered = 2 * plan.clients * answers  # one by one and stacked
    if isinstance(plan.strategy.combine, Linear):
        gathered = 2 * 8 * len(data.public) * (data.classes + 1)  # folded in float64
    server = {
        **_model(plan.student, data.shape, learning.server.batch, [0]),
        "answers": gathered + 3 * answers + tested,
        "order of samples": _ORDER * len(data.public) * learning.server.epochs_in(1),
    }
    held = moments * floats * sum(plan.architectures[t].network.parameters for t in plan.teacher)
    return {"worker": {**seen, **worker}, "server": {**seen, **server}, "state": {"models": held}}


def _model(
    made: Architecture, shape: Sequence[int], batch: int, stack: Sequence[int]
) -> Mapping[str, int]:
    passed = max(2 * batch, _ANSWERED)  # with gradients, or in a pass without
    return {
        # weights before, during and after; gradients in parts and flat; two moments as often; and
        # the weights and moments of the stack before
        "models, gradients and moments": len(stack) * 14 * _FLOAT * made.network.parameters,
        "activations": len(stack) * _FLOAT * passed * _activations(made, shape),
    }


def asked(plan: Plan, round_: int) -> tuple[Sequence[int], Ask]:
    """Who takes part, and what they are asked while nothing is known yet."""

    def stream(purpose: str) -> torch.Generator:
        return rng.stream(plan.config.seed, round_, rng.SERVER, purpose)

    clients = sorted(
        int(c) for c in plan.world.participants(round_, plan.clients, stream("participants"))
    )
    if "answer" not in plan.strategy.program:
        return clients, Ask(plan.rows[:0], None, known=True)
    state = plan.strategy.finish.init(Shape(plan.clients, len(plan.rows), plan.dataset.classes))
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
