"""What a stacked pass buys: `python -m benchmarks.stacks` trains K models together and one by one.

The evidence for the rule by which a run chooses its stacks (`compute.stack: auto`): where a ratio
is below 1, that model should not be stacked so high. Seconds are CPU time of one thread (elapsed
time on a GPU), the best of several.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd import load_config, losses, rng
from fedkd.assemble import Plan, assemble, prepare, resolve
from fedkd.config import Learning
from fedkd.learning import Feed, Pool, fit
from fedkd.sources import Source
from fedkd.stacks import Network, Weights, gather
from fedkd.tasks import threads

_SIZES = (2, 4, 8, 16, 32)
_BATCHES = (16, 64)
_STEPS = 4
_REPEATS = 3
_MOST = 2e9  # multiply-adds, forward, of one timed piece of work; larger ones are left out
_ANY_SIDE = (
    {"name": "mlp", "hidden": []},
    {"name": "mlp", "hidden": [64]},
    {"name": "mlp", "hidden": [64, 64]},
    {"name": "mlp", "hidden": [200]},
    {"name": "mlp", "hidden": [512]},
    {"name": "cnn", "channels": [4, 8], "hidden": 32},
    {"name": "cnn", "channels": [8, 16], "hidden": 32},
    {"name": "cnn", "channels": [16, 32], "hidden": 64},
    {"name": "resnet_gn"},
)
_LARGE = ({"name": "lenet5"}, {"name": "shao_cnn"}, {"name": "itahara_mnist_cnn"})
_MODELS: dict[int, tuple[dict[str, Any], ...]] = {8: _ANY_SIDE, 28: (*_ANY_SIDE, *_LARGE)}
Row = dict[str, Any]  # Any: JSON
Work = Callable[[Weights], object]


def noise(side: int) -> Source:
    """Grey images of noise: a source as small as can be, for models of that size."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 1, side, side), dtype=np.uint8)
    labels = np.arange(100, dtype=np.int64) % 10
    names = tuple("0123456789")
    return Source(
        pixels, labels, pixels[:10], labels[:10], 10, names, (0.5,), (0.5,), "noise", "none"
    )


def measure(device: str = "cpu") -> list[Row]:
    """Print a line a model, sample shape and batch; `rule` is the stack that a run would take."""
    print(f"stacks on {device}: seconds one by one / seconds in stacks of K; [the rule's choice]")
    heads = "".join(f"{f'K={k}':>8}" for k in _SIZES)
    print(f"  {'model':<36}{'sample':<9}{'batch':>5}{'weights':>10}{'madds':>9}{'alone':>9}{heads}")
    rows = []
    with threads(1):
        for row in _rows(device):
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
        f"{row['model']:<36}{sample:<9}{row['batch']:>5}{row['weights']:>10,}"
        f"{row['madds'] / 1e6:>8.1f}M{row['alone_ms']:>7.2f}ms{ratios}  rule {row['rule']}"
    )


def _rows(device: str) -> Iterator[Row]:
    for side in _MODELS:
        with tempfile.TemporaryDirectory(prefix="fedkd-benchmark-") as folder:
            for batch in _BATCHES:
                yield from _measured(_plan(side, batch, device, Path(folder) / "data"), batch)


def _plan(side: int, batch: int, device: str, folder: Path) -> Plan:
    """A client for each model, so that assembling decides on each one's stack."""
    models = _MODELS[side]
    experiment = {
        "data": {
            "source": {"name": "benchmarks.stacks:noise", "side": side},
            "validation": 10,
            "public": 10,
            "partition": "iid",
        },
        "clients": [{"count": len(models), "model": list(models)}],
        "student": "mlp",
        "strategy": "entropy",
        "learning": {"private": {"batch": batch}},
        "compute": {"device": device},
        "execution": {"runtime": "local"},
    }
    config = resolve(load_config(experiment))
    if not folder.exists():
        prepare(config, folder)
    return assemble(config, folder)


def _measured(plan: Plan, batch: int) -> Iterator[Row]:
    for client, made in enumerate(plan.architectures):  # no two clients have one
        network, madds = made.network, made.multiply_adds * batch
        most = _MOST / (madds * _STEPS)
        if most < _SIZES[0]:
            continue
        work, one = _trained(network, plan.device, plan.dataset.shape, batch), plan.fresh(client)
        found = [_ratio(work, one, k, plan.device) if k <= most else None for k in _SIZES]
        yield {
            "model": made.name,
            "shape": plan.dataset.shape,
            "batch": batch,
            "weights": network.parameters,
            "madds": madds,
            "alone_ms": min(f[1] for f in found if f) / _STEPS * 1e3,
            "ratios": [f and f[0] for f in found],
            "rule": made.stack,
        }


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
