"""Who is trained together, which defines the bits, and what travels together, which does not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from fedkd.assemble import Plan

_WINDOW = 4  # stacks' worth of clients that may be sorted by size before they are stacked
_NEAR = 256  # ids within which the heavy go first: bounds what comes before its turn
MOST_CLIENTS = 64  # in a bundle: bounds what one message holds


def stacks_of(plan: Plan, clients: Sequence[int]) -> list[list[int]]:
    """Who is trained together: clients of one architecture and similar size, ids not far apart.

    A pure function of the experiment and the participants, so that bits do not depend on workers.
    Ids stay within a window, so that answers can be folded in ascending order with a small buffer.
    """
    stacks = []
    sizes = plan.samples
    for index, made in enumerate(plan.architectures):
        own = [c for c in clients if plan.teacher[c] == index]
        for start in range(0, len(own), made.stack * _WINDOW):
            window = sorted(own[start : start + made.stack * _WINDOW], key=lambda c: (-sizes[c], c))
            stacks += [
                sorted(window[i : i + made.stack]) for i in range(0, len(window), made.stack)
            ]
    return sorted(stacks, key=lambda s: s[0])


def multiply_adds(plan: Plan, client: int, steps: Sequence[str], round_: int) -> float:
    """About what a client's passes of these steps come to in a round; backward counts as two."""
    learning = plan.config.learning
    private, public = float(plan.samples[client]), float(len(plan.public))
    committee = plan.strategy.committee
    times, teachers = (committee.partitions, committee.teachers) if committee else (1, 0)
    looked = private if plan.strategy.reply is not None else 0.0  # at most: at all of its records
    tested = float(len(plan.dataset.test)) + looked
    samples = {
        "train": 3 * private * learning.private.epochs_in(round_),
        "convene": times * (3 * private * learning.private.epochs_in(round_)
                            + 3 * public * learning.client.epochs_in(round_) + teachers * public),
        "distil": 3 * public * learning.client.epochs_in(round_),
        "pretrain": 3 * public * learning.pretrain.epochs_in(round_),
        "answer": private if plan.strategy.summarise else times * public + looked,
        "teachers": tested,
        "logits": tested,
        "local": 3 * private * learning.private.epochs * plan.config.rounds,
    }  # fmt: skip
    if not plan.world.learns(client, round_):
        samples |= {"train": 0.0, "convene": 0.0, "distil": 0.0}
    model = plan.architectures[plan.teacher[client]].multiply_adds
    return model * sum(samples.get(step, 0.0) for step in steps)


def cost(plan: Plan, stack: Sequence[int], steps: Sequence[str], round_: int) -> float:
    """About how much work a stack is, so that no stack is none."""
    model = plan.architectures[plan.teacher[stack[0]]].multiply_adds
    return model + sum(multiply_adds(plan, client, steps, round_) for client in stack)


def bundles_of(
    plan: Plan, stacks: Sequence[list[int]], steps: Sequence[str], workers: int, round_: int
) -> list[list[list[int]]]:
    """What travels together: heavy bundles first, then lighter ones, so workers end together.

    Among clients of near ids, stacks go by cost down to a factor of two, then by id, so that
    answers arrive nearly in the order in which they are folded. Each bundle takes its share of
    what is left (guided self-scheduling), bounded in clients so that a message stays small.
    """
    costs = {s[0]: cost(plan, s, steps, round_) for s in stacks}
    queue = deque(sorted(stacks, key=lambda s: (s[0] // _NEAR, -int(np.log2(costs[s[0]])), s[0])))
    left = sum(costs.values())
    bundles: list[list[list[int]]] = []
    while queue:
        bundle = [queue.popleft()]
        load, clients, share = costs[bundle[0][0]], len(bundle[0]), left / (2 * workers)
        while (
            queue and load + costs[queue[0][0]] <= share and clients + len(queue[0]) <= MOST_CLIENTS
        ):
            load, clients = load + costs[queue[0][0]], clients + len(queue[0])
            bundle.append(queue.popleft())
        bundles.append(bundle)
        left -= load
    return bundles
