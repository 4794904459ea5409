"""What a stacked pass buys: `python -m benchmarks.stacks` trains K models together and one by one.

The evidence for `fedkd.assemble._stack`: where the ratio falls below 1, a model should not be
stacked there. Seconds are CPU time of one thread (or elapsed time on a GPU), the best of several.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd import load_config, losses, models, rng
from fedkd.assemble import _stack
from fedkd.config import Config, Learning
from fedkd.learning import Feed, Pool, fit
from fedkd.stacks import Network, Weights, gather
from fedkd.tasks import threads

_SIZES = (2, 4, 8, 16, 32)
_BATCHES = (16, 64)
_SHAPES = ((1, 8, 8), (1, 28, 28))
_STEPS = 4
_REPEATS = 3
_MOST = 2e9  # multiply-adds, forward, of one timed piece of work; larger ones are left out
_MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "logistic regression": lambda shape, classes: models.mlp(shape, classes, hidden=()),
    "mlp 64": models.mlp,
    "mlp 64 64": lambda shape, classes: models.mlp(shape, classes, hidden=(64, 64)),
    "mlp 200": lambda shape, classes: models.mlp(shape, classes, hidden=(200,)),
    "mlp 512": lambda shape, classes: models.mlp(shape, classes, hidden=(512,)),
    "cnn 4 8": lambda shape, classes: models.cnn(shape, classes, channels=(4, 8), hidden=32),
    "cnn 8 16": lambda shape, classes: models.cnn(shape, classes, channels=(8, 16), hidden=32),
    "cnn 16 32": models.cnn,
    "lenet5": models.lenet5,
    "shao_cnn": models.shao_cnn,
    "itahara_mnist_cnn": models.itahara_mnist_cnn,
    "resnet_gn": models.resnet_gn,
}
Row = dict[str, Any]  # Any: JSON


def measure(device: str = "cpu") -> list[Row]:
    """Print a line a model, sample shape and batch; `rule` is the stack that a run would take."""
    print(f"stacks on {device}: seconds one by one / seconds in stacks of K; [the rule's choice]")
    heads = "".join(f"{f'K={k}':>8}" for k in _SIZES)
    print(f"  {'model':<20}{'sample':<9}{'batch':>5}{'weights':>10}{'madds':>9}{'alone':>9}{heads}")
    rows = []
    with threads(1):
        for row in _rows(torch.device(device)):
            rows.append(row)
            print("  " + _line(row), flush=True)
    return rows


def _line(row: Row) -> str:
    # where the rule's choice is not among the measured sizes, the nearest below is marked
    marked = max((k for k in _SIZES if k <= row["rule"]), default=1)
    ratios = ""
    for k, ratio in zip(_SIZES, row["ratios"], strict=True):
        shown = "-" if ratio is None else f"{ratio:.2f}"
        ratios += f"{f'[{shown}]' if k == marked else shown:>8}"
    sample = "x".join(map(str, row["shape"]))
    return (
        f"{row['model']:<20}{sample:<9}{row['batch']:>5}{row['weights']:>10,}"
        f"{row['madds'] / 1e6:>8.1f}M{row['alone_ms']:>7.2f}ms{ratios}  rule {row['rule']}"
    )


def _rows(device: torch.device) -> Iterator[Row]:
    for (name, make), shape in itertools.product(_MODELS.items(), _SHAPES):
        with rng.borrow(rng.stream(0, 0, 0, "init")):
            try:
                module = make(shape, 10)
            except ValueError:  # too small a sample for this model
                continue
        network = Network(module)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
        madds = counter.get_total_flops() // 2
        for batch in _BATCHES:
            most = _MOST / (madds * batch * _STEPS)
            if most < _SIZES[0]:
                continue
            work, one = _trained(network, device, shape, batch), network.weights(module)
            found = [_ratio(work, one, k, device) if k <= most else None for k in _SIZES]
            yield {
                "model": name,
                "shape": shape,
                "batch": batch,
                "weights": network.parameters,
                "madds": madds * batch,
                "alone_ms": min(f[1] for f in found if f) / _STEPS * 1e3,
                "ratios": [f and f[0] for f in found],
                "rule": _stack(_config(batch), network, madds, device),
            }


def _config(batch: int) -> Config:
    learning = {"private": {"batch": batch}}
    parts = {"clients": [{"model": "mlp"}], "student": "mlp", "strategy": "entropy"}
    return load_config({**parts, "learning": learning})


Work = Callable[[Weights], object]


def _trained(network: Network, device: torch.device, shape: tuple[int, ...], batch: int) -> Work:
    """A few steps of Adam on each model's own samples."""
    held = batch * _STEPS
    stream = rng.stream(0, 0, 0, "samples")
    x = torch.randn(held, *shape, generator=stream).to(device)
    y = torch.randint(10, (held,), generator=stream).to(device)
    rows, loss, learning = torch.arange(held), losses.cross_entropy(), Learning(batch=batch)

    def work(weights: Weights) -> object:
        feeds = [Feed(rows, rows, rng.stream(0, 1, k, "train")) for k in range(len(weights))]
        pool = Pool(x, None, "logits", y)
        return fit(network, weights, pool, feeds, learning, loss, epochs=1, factors=[1.0])

    return work


def _ratio(work: Work, one: Weights, k: int, device: torch.device) -> tuple[float, float]:
    """How many times longer k models take one by one, and the seconds of one alone."""
    together = gather([one.row(0)] * k).to(device)
    single = one.to(device)
    times: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(_REPEATS + 1):
        for stacked in (True, False):
            began = _now(device)
            if stacked:
                work(together)
            else:
                for _ in range(k):
                    work(single)
            if repeat:  # the first is for warming up
                times[stacked].append(_now(device) - began)
    return min(times[False]) / min(times[True]), min(times[False]) / k


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    measure("cuda" if torch.cuda.is_available() else "cpu")
