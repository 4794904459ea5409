"""Means with what is known of them, and paired comparisons; scipy is loaded where it is needed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.05  # of significance; intervals are of 1 − LEVEL
LEAST_PAIRS = 6  # with fewer no two-sided signed-rank test can come below LEVEL: 2 / 2⁵ = 0.0625
Verdict = Literal["holds", "reversed", "undecided"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of independent repetitions; standard deviation and interval need two of them.

    `low` and `high` bound the mean with 95 % confidence by Student's t distribution.
    """

    count: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences first − second over what both ran on, and what they say about "first > second".

    `p` is that of the two-sided Wilcoxon signed-rank test, `corrected` the same after Holm; both
    None below `LEAST_PAIRS` pairs, where the verdict is always undecided.
    """

    differences: Spread
    p: float | None = None
    corrected: float | None = None
    verdict: Verdict = "undecided"


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and t interval. Raises `ValueError` without any value."""
    if not values:
        raise ValueError("spread: at least one value should be given, found none")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Spread(1, mean)
    from scipy.special import stdtrit

    deviation = statistics.stdev(values)
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * deviation / math.sqrt(count)
    return Spread(count, mean, deviation, mean - half, mean + half)


def sampling_error(accuracy: float, tested: int) -> float:
    """Binomial standard error of an accuracy that was measured on so many test samples."""
    return math.sqrt(accuracy * (1 - accuracy) / tested)


def signed_rank(differences: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs."""
    if not any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p values of a family of tests, in the order given.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979).
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected


def paired(
    pairs: Sequence[tuple[Mapping[object, float], Mapping[object, float]]],
) -> list[Paired | None]:
    """Comparisons of one family, each of two settings' values by what they ran on.

    Only what both ran on counts; None where that is nothing.
    """
    differences = [
        [first[key] - second[key] for key in first if key in second] for first, second in pairs
    ]
    tested = [i for i, those in enumerate(differences) if len(those) >= LEAST_PAIRS]
    ps = [signed_rank(differences[i]) for i in tested]
    by_place = dict(zip(tested, zip(ps, holm(ps), strict=True), strict=True))
    found: list[Paired | None] = []
    for place, those in enumerate(differences):
        if not those:
            found.append(None)
            continue
        around = spread(those)
        p, corrected = by_place.get(place, (None, None))
        verdict: Verdict = "undecided"
        if corrected is not None and corrected < LEVEL:
            verdict = "holds" if around.mean > 0 else "reversed"
        found.append(Paired(around, p, corrected, verdict))
    return found
