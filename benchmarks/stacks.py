"""What a stacked pass buys: `python -m benchmarks.stacks` trains and asks K models together, and
one by one, for every built-in model.

The evidence for `fedkd.assemble._stack`: where the ratio falls below 1, a model should not be
stacked there. Seconds are CPU time of one thread (or elapsed time on a GPU), the best of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd import load_config, losses, models, rng
from fedkd.assemble import _stack
from fedkd.config import Config, Learning
from fedkd.learning import Feed, Pool, answer, fit
from fedkd.stacks import Network, Weights, gather
from fedkd.tasks import threads

_SIZES = (2, 4, 8, 16, 32)
_BATCHES = (16, 32, 64)
_ROWS = 1000  # asked of every model
_STEPS = 6
_REPEATS = 3
_MOST = 4e9  # multiply-adds in one timed piece of work; beyond it the answer is plain anyway
_MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "logistic regression": lambda shape, classes: models.mlp(shape, classes, hidden=()),
    "mlp 64": models.mlp,
    "mlp 200": lambda shape, classes: models.mlp(shape, classes, hidden=(200,)),
    "mlp 512 512": lambda shape, classes: models.mlp(shape, classes, hidden=(512, 512)),
    "cnn 4 8": lambda shape, classes: models.cnn(shape, classes, channels=(4, 8), hidden=32),
    "cnn 8 16": lambda shape, classes: models.cnn(shape, classes, channels=(8, 16), hidden=32),
    "cnn 16 32": models.cnn,
    "lenet5": models.lenet5,
    "selective_cnn": models.selective_cnn,
    "dsfl_mnist_cnn": models.dsfl_mnist_cnn,
    "dsfl_fashion_cnn": models.dsfl_fashion_cnn,
    "resnet_gn": models.resnet_gn,
}
_SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
Row = dict[str, Any]  # Any: JSON


def measure(device: str = "cpu") -> list[Row]:
    """Print a line a model, sample shape and batch; `rule` is the stack that a run would take."""
    print(f"stacks on {device}: seconds one by one / seconds stacked; [K] is what the rule takes")
    heads = "".join(f"{f'K={k}':>8}" for k in _SIZES)
    print(f"  {'model':<20}{'sample':<10}{'pass':<11}{'weights':>9}{'madds':>9}{heads}")
    rows = []
    with threads(1):
        for row in _rows(torch.device(device)):
            rows.append(row)
            picked = row["rule"]
            shown = (
                f"[{r:.2f}]" if k == picked else f"{r:.2f}" if r else "-"
                for k, r in zip(_SIZES, row["ratios"], strict=True)
            )
            text = "".join(f"{s:>8}" for s in shown)
            sample = "x".join(map(str, row["shape"]))
            print(
                f"  {row['model']:<20}{sample:<10}{row['pass']:<11}{row['weights']:>9,}"
                f"{row['madds'] / 1e6:>8.1f}M{text}  rule {picked}",
                flush=True,
            )
    return rows


def _rows(device: torch.device) -> Iterator[Row]:
    for name, make in _MODELS.items():
        for shape in _SHAPES:
            try:
                with rng.borrow(rng.stream(0, 0, 0, "init")):
                    module = make(shape, 10)
            except ValueError:  # too small a sample for this model
                continue
            network = Network(module)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                module.eval()(torch.zeros(1, *shape))
            madds = counter.get_total_flops() // 2
            about = {"model": name, "shape": shape, "weights": network.parameters}
            for batch in (*_BATCHES, None):
                config = _config(batch or _BATCHES[0])
                work = (
                    _asked(network, device, shape)
                    if batch is None
                    else _trained(network, device, shape, batch)
                )
                rows = _ROWS if batch is None else 3 * batch * _STEPS
                ratios = [
                    _ratio(work, network.weights(module), k, device)
                    if madds * rows * k <= _MOST
                    else None
                    for k in _SIZES
                ]
                yield {
                    **about,
                    "pass": "answer" if batch is None else f"train {batch}",
                    "madds": madds * (batch or 1),
                    "ratios": ratios,
                    "rule": _stack(config, network, madds, device),
                }


def _config(batch: int) -> Config:
    learning = {"private": {"batch": batch}}
    return load_config({"clients": [{"model": "mlp"}], "student": "mlp", "learning": learning})


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


def _asked(network: Network, device: torch.device, shape: tuple[int, ...]) -> Work:
    x = torch.randn(_ROWS, *shape, generator=rng.stream(0, 0, 0, "samples")).to(device)
    return lambda weights: answer(network, weights, x)


def _ratio(work: Work, one: Weights, k: int, device: torch.device) -> float:
    """How many times longer k models take one by one; the two take turns."""
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
    return min(times[False]) / min(times[True])


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    measure("cuda" if torch.cuda.is_available() else "cpu")
