"""Figures of a classifier on labelled rows: pure functions of log-probabilities, in float64.

N rows, C classes. Everything here is summed in the order of the rows, so the same answers give the
same figures wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fedkd.transforms import probabilities, shannon
from fedkd.types import Predictions

BINS = 15
_LEAST = torch.finfo(torch.float32).tiny  # what float32 rounds to zero still has a logarithm
_FITTING = 200  # steps of expectation-maximisation: far beyond what moves an accuracy


def log_probabilities(scores: Tensor, space: str) -> Tensor:
    """Scores [.., C] of any space as log-probabilities, float64."""
    if space in ("logits", "log_probs"):
        return torch.log_softmax(scores.double(), -1)
    positive = probabilities(scores.double(), space, 1.0).clamp_min(_LEAST)
    return torch.log_softmax(positive.log(), -1)  # rows without any answer come out even


def measured(said: Tensor, truth: Tensor, *, summary: bool = False) -> dict[str, Any]:  # Any: JSON
    """All figures of log-probabilities [N, C] about rows of true classes [N].

    Precision, recall and F1 are 0 where nothing was predicted or nothing is there; their means
    (`macro_f1`, `balanced_accuracy`) go over the classes that occur among the rows. `confusion`
    counts rows by true and then by predicted class. `ece` is the expected calibration error over
    15 bins of equal width (C. Guo et al., ICML 2017); empty bins are left out of `calibration`.
    With `summary` the lists stay empty.
    """
    classes, rows = said.shape[1], len(truth)
    predicted = said.argmax(-1)
    confusion = torch.bincount(truth * classes + predicted, minlength=classes * classes)
    confusion = confusion.view(classes, classes)
    hits, support = confusion.diagonal().double(), confusion.sum(1)
    precision = hits / confusion.sum(0).clamp_min(1)
    recall = hits / support.clamp_min(1)
    both = precision + recall
    f1 = 2 * precision * recall / torch.where(both > 0, both, 1.0)
    occurs = support > 0
    curve = _calibration(said.exp().amax(-1), (predicted == truth).double())
    figures = {
        "n": rows,
        "accuracy": float(hits.sum() / max(rows, 1)),
        "macro_f1": _mean(f1[occurs]),
        "balanced_accuracy": _mean(recall[occurs]),
        "nll": -_mean(said.gather(1, truth.unsqueeze(1))[:, 0]),
        "ece": sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / max(rows, 1),
    }
    if summary:
        return figures | {"per_class": [], "confusion": [], "calibration": []}
    columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    per_class = [
        dict(zip(("precision", "recall", "f1", "support"), c, strict=True)) for c in columns
    ]
    return figures | {
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "calibration": curve,
    }


def _calibration(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:  # Any: JSON
    """Bins (lower, upper] of the probability of the predicted class."""
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    found = []
    for i in range(BINS):
        inside = place == i
        if count := int(inside.sum()):
            found.append(
                {
                    "lower": i / BINS,
                    "upper": (i + 1) / BINS,
                    "count": count,
                    "confidence": min(1.0, _mean(confidence[inside])),
                    "accuracy": _mean(right[inside]),
                }
            )
    return found


def faithful(student: Tensor, other: Tensor) -> dict[str, float]:
    """How near a student [N, C] is to what it learnt from [N, C], both log-probabilities.

    `agreement` is the share of rows with the same most likely class, `kl` the mean of
    KL(other || student) in nats.
    """
    apart = (other.exp() * (other - student)).sum(-1)
    same = (student.argmax(-1) == other.argmax(-1)).double()
    return {"agreement": _mean(same), "kl": max(0.0, _mean(apart))}


def mixture_weights(likelihood: Tensor) -> Tensor:
    """The convex weights [K] under which a mixture of K parties gives the truth most probability.

    `likelihood` [K, N] is what each gives to the true class. The likelihood is concave in the
    weights; expectation-maximisation from equal ones climbs it without a step size to choose.
    """
    weights = torch.full((len(likelihood),), 1 / len(likelihood), dtype=torch.float64)
    for _ in range(_FITTING):
        joint = weights.unsqueeze(1) * likelihood
        weights = (joint / joint.sum(0).clamp_min(_LEAST)).mean(1)
        weights = weights / weights.sum()
    return weights


class Spread:
    """How far parties disagree about rows, one party at a time: memory of one answer.

    H(mean) − mean H is the generalised Jensen–Shannon divergence with equal weights, in nats
    (J. Lin, IEEE Transactions on Information Theory 37(1), 1991).
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._sum: Tensor | None = None  # [R, C]
        self._entropy: Tensor | None = None  # [R]
        self._count: Tensor | None = None  # [R]

    def add(self, given: Predictions) -> None:
        """One more party, in ascending id; rows that it leaves out or distrusts are skipped."""
        for said, counts in _soft(given, self._classes):
            share = torch.where(counts.unsqueeze(-1), said, 0)
            entropy = torch.where(counts, shannon(said), 0)
            number = counts.long()
            if self._sum is None or self._entropy is None or self._count is None:
                self._sum, self._entropy, self._count = share, entropy, number
            else:
                self._sum, self._entropy = self._sum + share, self._entropy + entropy
                self._count = self._count + number

    def mean(self) -> float | None:
        """The mean over the rows that anybody answered; None where there is none."""
        if self._sum is None or self._entropy is None or self._count is None:
            return None
        heard = self._count > 0
        number = self._count[heard].double()
        apart = shannon(self._sum[heard] / number.unsqueeze(-1)) - self._entropy[heard] / number
        return max(0.0, _mean(apart)) if bool(heard.any()) else None


def mean_entropy(given: Predictions, classes: int) -> float | None:
    """The mean entropy of the targets that count, in nats; None where there is none."""
    found = [shannon(said[counts]) for said, counts in _soft(given, classes)]
    values = torch.cat(found) if found else torch.zeros(0)
    return _mean(values) if len(values) else None


def _soft(given: Predictions, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """By party: probabilities [R, C] in float64, and which rows count [R]."""
    for j in range(given.scores.shape[0]):
        counts = given.mask[j] & (given.trust[j] > 0)
        scores = torch.where(given.mask[j].unsqueeze(-1), given.scores[j], 0).double()
        said = probabilities(scores, given.space, 1.0)
        if given.classes is not None:  # the other classes were given nothing
            where = given.classes[j].expand(len(said), -1)
            said = torch.zeros(len(said), classes, dtype=said.dtype).scatter(1, where, said)
        yield said, counts


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
