"""What a round of a plan costs: gradient steps, bytes, memory, without training.

Steps and bytes are those that the engine counts. Where a method decides only as it goes what it
asks for (a cache), they are what it comes to at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkd import rng
from fedkd.assemble import Architecture, Plan
from fedkd.bundles import stacks_of
from fedkd.config import Learning
from fedkd.types import Ask, Linear, Shape, Traffic
from fedkd.wire import HEADER_BYTES

_LEARNT = {"pretrain": "pretrain", "train": "private", "distil_clients": "client",
           "distil_server": "server"}  # fmt: skip


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


def steps(plan: Plan, round_: int) -> Mapping[str, int]:
    """Gradient steps of a round by kind of learning; those of the clients summed."""
    clients, ask = asked(plan, round_)
    learning, program = plan.config.learning, plan.strategy.program
    sizes = plan.dataset.histogram.sum(1)
    counted: dict[str, int] = {}
    for phase in program:
        kind = _LEARNT.get(phase)
        if kind is None or (kind == "pretrain" and round_ > 1):
            continue
        those: Learning = getattr(learning, kind)
        if kind == "server":
            counted[kind] = _passes(len(ask.rows), those, plan.student, round_)
            continue
        counted[kind] = 0
        for client in range(plan.clients) if kind == "pretrain" else clients:
            rows = {"private": int(sizes[client]), "pretrain": len(plan.public)}
            learns = plan.world.learns(client, round_) or kind == "pretrain"
            if learns and (kind != "client" or _learns_back(plan, round_)):
                made = plan.architectures[plan.teacher[client]]
                counted[kind] += _passes(rows.get(kind, len(ask.rows)), those, made, round_)
    return counted


def memory(plan: Plan) -> Mapping[str, int]:
    """Estimated bytes beside what the libraries take, by place."""
    data, config = plan.dataset, plan.config
    sample, floats = math.prod(data.shape), 4
    shown = floats * sample * (len(data.public) + len(data.test))
    answers = floats * len(data.public) * data.classes
    sizes = data.histogram.sum(1)
    busiest = 0
    for stack in stacks_of(plan, range(plan.clients)):
        made = plan.architectures[plan.teacher[stack[0]]]
        batch = max(config.learning.private.batch, config.learning.client.batch)
        weights = 4 * floats * made.network.parameters  # values, gradient and two moments
        passed = 2 * floats * batch * _activations(made, data.shape)
        own = floats * sample * int(sum(sizes[c] for c in stack))
        busiest = max(busiest, own + len(stack) * (weights + passed + answers))
    gathered = plan.clients * answers
    if isinstance(plan.strategy.combine, Linear):
        gathered = 2 * 8 * len(data.public) * (data.classes + 1)  # folded in float64
    moments = 3 if config.learning.keep_optimizer else 1
    state = moments * floats * sum(plan.architectures[t].network.parameters for t in plan.teacher)
    return {"worker": shown + busiest, "server": shown + gathered, "state": state}


def asked(plan: Plan, round_: int) -> tuple[Sequence[int], Ask]:
    """Who takes part, and what they are asked while nothing is known yet."""

    def stream(purpose: str) -> torch.Generator:
        return rng.stream(plan.config.seed, round_, rng.SERVER, purpose)

    clients = sorted(
        int(c) for c in plan.world.participants(round_, plan.clients, stream("participants"))
    )
    if "answer" not in plan.strategy.program:
        return clients, Ask(plan.public[:0], None, known=True)
    state = plan.strategy.finish.init(Shape(plan.clients, len(plan.public), plan.dataset.classes))
    ask = plan.strategy.request(state, round_, plan.public, clients, stream("request"))
    return clients, ask


def _learns_back(plan: Plan, round_: int) -> bool:
    """Whether the clients have a consensus to learn; where that comes first, not in round 1."""
    program = plan.strategy.program
    if "distil_clients" not in program or plan.strategy.feedback in ("none", "weights"):
        return False
    before = program.index("distil_clients") < program.index("combine")
    return round_ > 1 or not before


def _passes(samples: int, learning: Learning, made: Architecture, round_: int) -> int:
    """The batches of a round; batch statistics leave a last batch of one sample out."""
    whole = -(-samples // learning.batch)
    alone = made.network.batch_statistics and samples % learning.batch == 1
    return learning.epochs_in(round_) * (whole - alone)


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
