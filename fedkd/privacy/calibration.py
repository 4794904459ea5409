"""How much noise a guarantee takes, and what guarantee a noise gives: one release at a time."""

from __future__ import annotations

import math
from collections.abc import Callable


def gaussian_delta(epsilon: float, sigma: float, sensitivity: float) -> float:
    """The least delta of Gaussian noise `sigma` on a value of this L2 sensitivity; exact.

    delta = Phi(D / 2s - e s / D) - exp(e) Phi(-D / 2s - e s / D): B. Balle, Y.-X. Wang, "Improving
    the Gaussian mechanism for differential privacy", ICML 2018, theorem 8.
    """
    from scipy.special import log_ndtr

    half, rest = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    upper, lower = float(log_ndtr(half - rest)), epsilon + float(log_ndtr(-half - rest))
    if lower >= upper:  # both are 0 but for rounding
        return 0.0
    return -math.exp(upper) * math.expm1(lower - upper)


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least noise that gives (epsilon, delta), for any epsilon > 0 and 0 < delta < 1."""

    def excess(log_sigma: float) -> float:
        return gaussian_delta(epsilon, math.exp(log_sigma), sensitivity) - delta

    return math.exp(_root(excess, math.log(sensitivity)))


def gaussian_epsilon(delta: float, sigma: float, sensitivity: float) -> float:
    """The least epsilon that Gaussian noise `sigma` gives at this delta; 0 where none is spent."""
    if gaussian_delta(0.0, sigma, sensitivity) <= delta:
        return 0.0

    def excess(log_epsilon: float) -> float:
        return gaussian_delta(math.exp(log_epsilon), sigma, sensitivity) - delta

    return math.exp(_root(excess, 0.0))


def _root(falling: Callable[[float], float], near: float) -> float:
    """Where a function that falls from above 0 to below crosses it."""
    from scipy.optimize import brentq

    low, high = near - 1, near + 1
    while falling(low) <= 0:
        low -= high - low
    while falling(high) > 0:
        high += high - low
    return float(brentq(falling, low, high, xtol=1e-13, rtol=1e-13))


def laplace_scale(epsilon: float, sensitivity: float) -> float:
    """b = D1 / epsilon for a value of L1 sensitivity D1 (C. Dwork et al., TCC 2006)."""
    return sensitivity / epsilon


def response_odds(epsilon: float, classes: int) -> tuple[float, float]:
    """Of k-ary randomised response: with which probability a label is kept, and turned into each
    of the others (P. Kairouz, S. Oh, P. Viswanath, NeurIPS 2014)."""
    other = 1 / (math.exp(min(epsilon, 700.0)) + classes - 1)
    return 1 - (classes - 1) * other, other


def unbiased_counts(counts: float, total: float, epsilon: float, classes: int) -> float:
    """How many truly have a label, of `counts` that say so among `total`: (n - N q) / (p - q)."""
    kept, other = response_odds(epsilon, classes)
    return (counts - total * other) / (kept - other)


def nfdp(records: int, drawn: int, replacement: bool = False) -> tuple[float, float]:
    """The (epsilon, delta) that is claimed for training on `drawn` of n records and no noise.

    L. Sun, L. Lyu, "Federated model distillation with noise-free differential privacy", IJCAI 2021.
    A record is looked at whole with probability `drawn` / n, which is what delta comes to: far
    above 1 / n, so that a record that was drawn has no protection at all.
    """
    n, k = records, drawn
    if replacement:
        return k * math.log((n + 1) / n), 1 - ((n - 1) / n) ** k
    return math.log((n + 1) / (n + 1 - k)), k / n
