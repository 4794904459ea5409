"""The only optimiser loop, and the only place where models answer.

`fit` trains a stack of models, each on its own samples, with its own stream and moments; a server's
student is a stack of one. Where a feed is private its gradients are, and the rest of the loop is
the same. `answer` predicts in eval mode, for answers and evaluation alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from fedkd import optimisers
from fedkd.config import Learning, TorchOptimizer
from fedkd.privacy import sgd
from fedkd.rng import borrow
from fedkd.stacks import Network, Weights
from fedkd.types import Loss, Space, State, Target

Precision = Literal["fp32", "bf16"]
_ANSWER_BATCH = 256  # samples of one model in a pass without gradients: what the caches hold


class Pool(NamedTuple):
    """The samples that a stack learns from, on the device: inputs [N, …] and their targets [M, …].

    A client's feed points into both, so clients may share inputs and have targets of their own.
    """

    inputs: Tensor
    scores: Tensor | None
    space: Space
    labels: Tensor | None
    weight: Tensor | None = None  # [M] how much a sample counts


class Feed(NamedTuple):
    """One client's samples: for each, its row among the inputs and its row among the targets.

    With `private` they are learnt from by DP-SGD.
    """

    inputs: Tensor
    targets: Tensor
    rng: Generator
    private: sgd.Private | None = None


class Fit(NamedTuple):
    """What training came to, for the K clients of a stack."""

    weights: Weights
    moments: State  # the optimiser's state, [K, …] each
    steps: list[int]  # gradient steps of every client


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """The context in which forward passes run."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def fit(
    net: Network,
    weights: Weights,
    pool: Pool,
    feeds: Sequence[Feed],
    learning: Learning,
    loss: Loss,
    *,
    epochs: int,
    factors: Sequence[float],
    precision: Precision = "fp32",
    moments: State | None = None,
) -> Fit:
    """Train K models for `epochs` epochs; `factors` scale the learning rate epoch by epoch.

    The loss of a batch is the mean over its samples (weighted by `pool.weight`). Every client
    shuffles its own samples by its own stream; the last batch of an epoch may be smaller. Clients
    with fewer batches leave the stack when they are done. Private feeds, all of a stack or none,
    are sampled, clipped and noised as `privacy.sgd` has it, in as many batches.
    """
    if isinstance(learning.optimizer, TorchOptimizer):
        return _fit_alone(
            net, weights, pool, feeds, learning, loss, epochs, factors, precision, moments
        )
    device = pool.inputs.device
    batch = _batch(learning, feeds)
    drawn = [_drawn(f, batch, epochs, net.batch_statistics) for f in feeds]
    batches = [len(p.sizes) for p in drawn]
    order = sorted(range(len(feeds)), key=lambda k: (-batches[k], k))
    back = torch.tensor([order.index(k) for k in range(len(feeds))])
    picked = torch.tensor(order)
    weights = weights.to(device).take(picked.to(device)).clone()
    kept = {n: t[picked.to(t.device)] for n, t in moments.items()} if moments else None
    state, update = optimisers.start(learning.optimizer, weights.flat, kept)
    plans, sorted_feeds = [drawn[k] for k in order], [feeds[k] for k in order]
    runs = _runs([p.sizes for p in plans], exact=net.batch_statistics)
    table = _table(plans, device)
    rate = _rates(learning.optimizer.lr, factors, [len(p.sizes) for p in plans], device)
    sources: dict[tuple[int, int], _Gradient] = {}
    with borrow(feeds[0].rng) if net.may_draw else nullcontext():
        for step, groups in enumerate(runs):
            for first, last, size in groups:
                if (first, last) not in sources:
                    sources[first, last] = _gradient(
                        net, weights, first, last, pool, sorted_feeds, batch, loss, precision
                    )
                rows = slice(first, last)
                update(
                    rows,
                    sources[first, last](
                        table.inputs[rows, step, :size],
                        table.targets[rows, step, :size],
                        table.share[rows, step, :size],
                    ),
                    rate if isinstance(rate, float) else rate[rows, step : step + 1],
                )
    back_d = back.to(device)
    after = {n: t[back.to(t.device)] for n, t in state.items()}
    return Fit(weights.take(back_d), after, batches)


# of rows among the inputs, rows among the targets and shares [n, B]: the gradient [n, P]
_Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]


def _gradient(
    net: Network,
    weights: Weights,
    first: int,
    last: int,
    pool: Pool,
    feeds: Sequence[Feed],
    batch: int,
    loss: Loss,
    precision: Precision,
) -> _Gradient:
    """What the models in rows first..last of `weights` step by; the feeds are in that order."""
    private = [f.private for f in feeds if f.private]
    if not private:
        return _mean(net, weights, first, last, pool, loss, precision)
    if len(private) < len(feeds) or pool.scores is not None or pool.weight is not None:
        raise ValueError("fit: private feeds should all be private, with labels and no weights")
    labels, expected = pool.labels, [sgd.expected(batch, len(f.inputs)) for f in feeds]
    assert labels is not None  # where there are no scores
    noised = sgd.bind(net, weights, first, last, loss, private, expected)

    def gradient(inputs: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        with autocast(pool.inputs.device, precision):
            return noised(_rows(pool.inputs, inputs), labels[targets], share > 0)

    return gradient


def _mean(
    net: Network,
    weights: Weights,
    first: int,
    last: int,
    pool: Pool,
    loss: Loss,
    precision: Precision,
) -> _Gradient:
    """The gradient of the mean loss of a batch."""
    leaves, forward = net.bind(weights, first, last)

    def gradient(inputs: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        with autocast(pool.inputs.device, precision):
            logits = forward(_rows(pool.inputs, inputs), True)
        each = loss(logits.float(), _target(pool, targets))
        if pool.weight is not None:
            share = share * pool.weight[targets]
        # a parameter that the model does not use has a gradient of zero
        gradients = torch.autograd.grad((each * share).sum(), leaves, materialize_grads=True)
        if last - first == 1:  # the leaves of a single model have no leading dimension
            gradients = tuple(g.unsqueeze(0) for g in gradients)
        return net.flattened(gradients)

    return gradient


def _batch(learning: Learning, feeds: Sequence[Feed]) -> int:
    """The batch as far as there are samples for it: what lies beyond is nothing but padding."""
    return min(learning.batch, max([2, *(len(f.inputs) for f in feeds)]))


def _rates(
    lr: float, factors: Sequence[float], batches: Sequence[int], device: torch.device
) -> float | Tensor:
    """The learning rate: a number while it stays the same, else [K, T], by client and epoch."""
    if len(set(factors)) <= 1:
        return lr * (factors[0] if factors else 1.0)
    rates = torch.zeros(len(batches), max(batches, default=0))
    for k, count in enumerate(batches):
        rates[k, :count] = torch.tensor(factors).repeat_interleave(count // len(factors)) * lr
    return rates.to(device)


class _Plan(NamedTuple):
    inputs: Tensor  # [T, B] rows among the inputs, padded with the first
    targets: Tensor  # [T, B]
    share: Tensor  # [T, B] 1 / samples of the batch; 0 where padded
    sizes: list[int]  # samples of each batch


def _drawn(feed: Feed, batch: int, epochs: int, exact: bool) -> _Plan:
    return _sampled(feed, batch, epochs) if feed.private else _plan(feed, batch, epochs, exact)


def _sampled(feed: Feed, batch: int, epochs: int) -> _Plan:
    """The same by Poisson sampling: batches of unequal size, some of them perhaps empty."""
    n = len(feed.inputs)
    picked = sgd.poisson(n, batch, epochs * sgd.steps_an_epoch(batch, n), feed.rng)
    sizes = [len(rows) for rows in picked]
    position = torch.zeros(len(sizes), max(sizes, default=0), dtype=torch.int64)
    share = torch.zeros(position.shape)
    for step, rows in enumerate(picked):
        position[step, : len(rows)] = rows
        share[step, : len(rows)] = 1 / sgd.expected(batch, n)
    return _Plan(feed.inputs[position], feed.targets[position], share, sizes)


def _plan(feed: Feed, batch: int, epochs: int, exact: bool) -> _Plan:
    """All batches of one client, drawn from its stream.

    One sample alone has no variance: where the model looks at the batch as a whole (`exact`) a last
    batch of one is left out.
    """
    n = len(feed.inputs)
    per_epoch = -(-n // batch) - (exact and n % batch == 1)
    if n and not per_epoch:
        raise ValueError(
            "fit: batch normalisation needs batches of at least two samples, found one; raise the"
            " partition's min_size or the batch, or take a model without batch normalisation"
        )
    position = torch.zeros(epochs, per_epoch * batch, dtype=torch.int64)
    for e in range(epochs):
        shuffled = torch.randperm(n, generator=feed.rng)[: per_epoch * batch]
        position[e, : len(shuffled)] = shuffled
    sizes = [min(batch, n - b * batch) for b in range(per_epoch)]
    share = torch.zeros(per_epoch, batch)
    for b, size in enumerate(sizes):
        share[b, :size] = 1 / size
    position = position.view(epochs * per_epoch, batch)
    return _Plan(
        feed.inputs[position], feed.targets[position], share.repeat(epochs, 1), sizes * epochs
    )


def _table(plans: Sequence[_Plan], device: torch.device) -> _Plan:
    """The plans of a stack as [K, T, B]; steps that a client does not take are never read."""

    def joined(parts: Sequence[Tensor]) -> Tensor:
        longest, widest = (max(p.shape[i] for p in parts) for i in (0, 1))
        out = torch.zeros(len(parts), longest, widest, dtype=parts[0].dtype)
        for k, part in enumerate(parts):
            out[k, : part.shape[0], : part.shape[1]] = part
        return out.to(device)

    return _Plan(
        joined([p.inputs for p in plans]),
        joined([p.targets for p in plans]),
        joined([p.share for p in plans]),
        [],
    )


def _runs(sizes: Sequence[Sequence[int]], exact: bool) -> list[list[tuple[int, int, int]]]:
    """For every step the rows first..last that go in one pass, and their batch size.

    Rows are sorted by their number of steps, so those still active are a prefix. Padding does no
    harm unless the model looks at the batch as a whole (`exact`: batch statistics): then only rows
    with equal batches go together.
    """
    runs: list[list[tuple[int, int, int]]] = []
    for step in range(len(sizes[0]) if sizes else 0):
        active = [s[step] for s in sizes if len(s) > step]
        if not exact:
            runs.append([(0, len(active), max(active))])
            continue
        groups, first = [], 0
        for k in range(1, len(active) + 1):
            if k == len(active) or active[k] != active[first]:
                groups.append((first, k, active[first]))
                first = k
        runs.append(groups)
    return runs


def _rows(samples: Tensor, rows: Tensor) -> Tensor:
    """samples[rows], by the kernel that copies whole rows: several times faster."""
    picked = samples.flatten(1).index_select(0, rows.reshape(-1))
    return picked.view(*rows.shape, *samples.shape[1:])


def _target(pool: Pool, rows: Tensor) -> Target:
    return Target(
        None if pool.scores is None else _rows(pool.scores, rows),
        pool.space,
        None if pool.labels is None else pool.labels[rows],
    )


def _fit_alone(
    net: Network,
    weights: Weights,
    pool: Pool,
    feeds: Sequence[Feed],
    learning: Learning,
    loss: Loss,
    epochs: int,
    factors: Sequence[float],
    precision: Precision,
    moments: State | None,
) -> Fit:
    """The same with any optimiser of torch, for one model: it sees parameters in their shapes."""
    if len(feeds) != 1 or not isinstance(learning.optimizer, TorchOptimizer):
        raise ValueError(
            f"fit: {learning.optimizer.name} takes one model at a time, found {len(feeds)}"
        )
    device, spec = pool.inputs.device, learning.optimizer
    weights = weights.to(device).clone()
    leaves, _ = net.bind(weights, 0, 1)
    optimizer = optimisers.torch_optimizer(spec, "optimizer")(leaves)
    for name, tensor in (moments or {}).items():
        index, _, key = name.partition("/")
        optimizer.state[leaves[int(index)]][key] = tensor[0].to(
            device if tensor.dim() > 1 else "cpu"
        )
    batch = _batch(learning, feeds)
    plan = _drawn(feeds[0], batch, epochs, net.batch_statistics)
    gradient = _gradient(net, weights, 0, 1, pool, feeds, batch, loss, precision)
    per_epoch = len(plan.sizes) // max(epochs, 1)
    with borrow(feeds[0].rng) if net.may_draw else nullcontext():
        for step, size in enumerate(plan.sizes):
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * factors[step // per_epoch]
            rows = slice(step, step + 1)
            found = gradient(
                plan.inputs[rows, :size].to(device),
                plan.targets[rows, :size].to(device),
                plan.share[rows, :size].to(device),
            )
            for leaf, part in zip(leaves, net.views(found[0]), strict=True):
                leaf.grad = part
            if spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(leaves, spec.clip_norm)
            optimizer.step()
    after = {
        f"{i}/{key}": value.unsqueeze(0)
        for i, leaf in enumerate(leaves)
        for key, value in optimizer.state[leaf].items()
        if isinstance(value, Tensor)
    }
    return Fit(weights, after, [len(plan.sizes)])


@torch.no_grad()
def answer(net: Network, weights: Weights, inputs: Tensor, precision: Precision = "fp32") -> Tensor:
    """Logits [K, R, C] of every model on the same inputs [R, …], in eval mode, float32.

    On the CPU convolutions go one model at a time: a full batch keeps a core busy by itself, and
    grouped kernels are about half as fast there.
    """
    weights = weights.to(inputs.device)
    alone = net.convolutional and inputs.device.type == "cpu"
    alone = alone or (len(weights) > 1 and not net.stackable(inputs[:2]))
    models = []
    for first in range(0, len(weights), 1 if alone else max(1, len(weights))):
        last = first + 1 if alone else len(weights)
        _, forward = net.bind(weights, first, last)
        parts = []
        for batch in inputs.split(_ANSWER_BATCH):
            with autocast(inputs.device, precision):
                logits = forward(batch.unsqueeze(0).expand(last - first, *batch.shape), False)
            parts.append(logits.float())
        models.append(torch.cat(parts, 1))
    return torch.cat(models)


class Teacher:
    """One model of a stack in eval mode, as `annotate` gets to see it."""

    def __init__(self, net: Network, weights: Weights, precision: Precision) -> None:
        self._net, self._weights, self._precision = net, weights, precision

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [B, C]."""
        return answer(self._net, self._weights, inputs, self._precision)[0]

    @torch.no_grad()
    def features(self, inputs: Tensor) -> Tensor:
        """What the last linear layer is given, [B, d], float32.

        Raises `ValueError` for a model without a linear layer.
        """
        module = self._net.module(self._weights).to(inputs.device).eval()
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ValueError("features: the model should end in a linear layer, it has none")
        seen: list[Tensor] = []
        linear[-1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        for batch in inputs.split(_ANSWER_BATCH):
            with autocast(inputs.device, self._precision):
                module(batch)
        return torch.cat(seen).float().flatten(1)
