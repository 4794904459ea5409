"""How models bear corrupted and attacked test samples.

Samples are corrupted in units of their range, 0 to 1: bytes have 0 to 255 for it, a feature the
least to the largest value that it has among the test samples. All draws come from the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fedkd import rng
from fedkd.data import DataSet

_BATCH = 256
_STEPS = 10  # of projected gradient descent

Corruption = Callable[[Tensor, float, Generator], Tensor]  # samples [N, …] in 0..1, severity


class Range(NamedTuple):
    """What 0 and 1 are of normalised samples, for each value of a sample."""

    low: Tensor
    width: Tensor

    def unit(self, x: Tensor) -> Tensor:
        """Normalised samples in units of the range."""
        return (x - self.low) / self.width

    def normal(self, u: Tensor) -> Tensor:
        """The inverse."""
        return self.low + u * self.width


def range_of(dataset: DataSet, inputs: Tensor) -> Range:
    """The range of the normalised test samples [N, …]."""
    if dataset.x.dtype == np.uint8:
        per_channel = (-1, *(1,) * (len(dataset.shape) - 1))
        mean, std = (torch.tensor(v).view(per_channel) for v in (dataset.mean, dataset.std))
        return Range(-mean / std, 1 / std)
    low, high = inputs.amin(0), inputs.amax(0)
    if len(dataset.shape) > 1:  # of images a channel has one
        places = tuple(range(1, len(dataset.shape)))
        low, high = low.amin(places, keepdim=True), high.amax(places, keepdim=True)
    return Range(low, torch.where(high > low, high - low, 1.0))


def noise(u: Tensor, severity: float, rng: Generator) -> Tensor:
    """Gaussian noise of this standard deviation."""
    return u + severity * torch.randn(u.shape, generator=rng)


def blur(u: Tensor, severity: float, rng: Generator) -> Tensor:
    """A Gaussian blur of this standard deviation in pixels, the edges repeated."""
    reach = max(1, math.ceil(3 * severity))
    places = torch.arange(-reach, reach + 1, dtype=u.dtype)
    kernel = torch.exp(-0.5 * (places / severity) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    n, c, h, w = u.shape
    across = F.pad(u.reshape(n * c * h, 1, w), (reach, reach), "replicate")
    u = F.conv1d(across, kernel).view(n, c, h, w).transpose(2, 3)
    down = F.pad(u.reshape(n * c * w, 1, h), (reach, reach), "replicate")
    return F.conv1d(down, kernel).view(n, c, w, h).transpose(2, 3)


def contrast(u: Tensor, severity: float, rng: Generator) -> Tensor:
    """This share of the contrast is lost: values move towards the mean of their sample."""
    mean = u.flatten(1).mean(1).view(-1, *(1,) * (u.dim() - 1))
    return mean + (1 - severity) * (u - mean)


def occlusion(u: Tensor, severity: float, rng: Generator) -> Tensor:
    """A square of this share of the height and of the width is 0, somewhere else in each sample."""
    n, _, h, w = u.shape
    tall, wide = max(1, round(severity * h)), max(1, round(severity * w))
    top = torch.randint(h - tall + 1, (n, 1), generator=rng)
    left = torch.randint(w - wide + 1, (n, 1), generator=rng)
    rows, columns = torch.arange(h), torch.arange(w)
    inside_rows = (rows >= top) & (rows < top + tall)
    inside_columns = (columns >= left) & (columns < left + wide)
    hidden = inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)
    return torch.where(hidden.unsqueeze(1), 0.0, u)


def dropped(u: Tensor, severity: float, rng: Generator) -> Tensor:
    """This share of the columns, others in each sample, are the column's mean over the samples."""
    gone = torch.rand(u.shape, generator=rng) < severity
    return torch.where(gone, u.mean(0), u)


IMAGES: Sequence[tuple[str, Corruption, Sequence[float]]] = (
    ("gaussian noise", noise, (0.05, 0.1, 0.2)),
    ("blur", blur, (0.5, 1.0, 2.0)),
    ("contrast", contrast, (0.3, 0.6, 0.9)),
    ("occlusion", occlusion, (0.25, 0.5)),
)
FEATURES: Sequence[tuple[str, Corruption, Sequence[float]]] = (
    ("gaussian noise", noise, (0.05, 0.1, 0.2)),
    ("dropped columns", dropped, (0.1, 0.3, 0.5)),
)


def corrupted(inputs: Tensor, span: Range, seed: int) -> Iterator[tuple[str, float, Tensor]]:
    """Name, severity and the normalised samples so corrupted, kept within the range."""
    unit = span.unit(inputs)
    for name, do, severities in IMAGES if inputs.dim() == 4 else FEATURES:
        for severity in severities:
            stream = rng.stream(seed, rng.SETUP, rng.SERVER, f"robustness/{name}/{severity}")
            yield name, severity, span.normal(do(unit, severity, stream).clamp(0, 1))


def attacked(
    module: nn.Module, inputs: Tensor, labels: Tensor, span: Range, eps: float, steps: int
) -> Tensor:
    """Samples within `eps` of the range, in every value, that raise the model's own loss.

    One step is FGSM (I. Goodfellow et al., ICLR 2015); more are projected gradient descent from
    the sample itself (A. Madry et al., ICLR 2018), each of 2.5 eps / steps.
    """
    unit = span.unit(inputs)
    stride = eps if steps == 1 else 2.5 * eps / steps
    moved = unit.clone()
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        loss = F.cross_entropy(module(span.normal(leaf)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = moved + stride * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, unit - eps), unit + eps).clamp(0, 1)
    return span.normal(moved)


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """The share of samples whose largest logit is at the true class."""
    with torch.no_grad():
        right = sum(
            int((module(x).argmax(-1) == y).sum())
            for x, y in zip(inputs.split(_BATCH), labels.split(_BATCH), strict=True)
        )
    return right / max(1, len(labels))


def robustness(
    modules: Sequence[nn.Module], dataset: DataSet, seed: int, eps: Sequence[float]
) -> list[dict[str, Any]]:  # Any: JSON
    """The accuracy of every model on the clean, corrupted and attacked test set, a row each."""
    inputs, labels = dataset.batch(dataset.test), dataset.labels(dataset.test)
    span = range_of(dataset, inputs)
    rows: list[dict[str, Any]] = [_row("clean", 0.0, modules, inputs, labels)]
    for name, severity, changed in corrupted(inputs, span, seed):
        rows.append(_row(name, severity, modules, changed, labels))
    for name, steps in (("FGSM", 1), (f"PGD-{_STEPS}", _STEPS)):
        for size in eps:
            found = []
            for module in modules:
                right = 0.0
                for x, y in zip(inputs.split(_BATCH), labels.split(_BATCH), strict=True):
                    right += len(y) * accuracy(module, attacked(module, x, y, span, size, steps), y)
                found.append(right / max(1, len(labels)))
            rows.append({"name": name, "severity": size, "accuracy": found})
    return rows


def _row(
    name: str, severity: float, modules: Sequence[nn.Module], inputs: Tensor, labels: Tensor
) -> dict[str, Any]:  # Any: JSON
    return {
        "name": name,
        "severity": severity,
        "accuracy": [accuracy(m, inputs, labels) for m in modules],
    }
