"""What noisy votes of teachers let out, as Renyi differential privacy.

N. Papernot et al., ICLR 2018, https://arxiv.org/abs/1802.08908. Changing one teacher
changes at most two counts by one each, so the L2 sensitivity of the counts is sqrt(2). `orders` [A]
are all above 1; curves are [A].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# those on which the published accounts are evaluated
ORDERS: Array = np.concatenate([np.arange(11, 110) / 10, np.arange(11.0, 64), [128.0, 256, 512]])


def gnmax(sigma: float, orders: Array = ORDERS) -> Array:
    """a / sigma^2 for one noisy argmax, whatever the votes are."""
    return orders / sigma**2


def threshold(sigma: float, orders: Array = ORDERS) -> Array:
    """a / (2 sigma^2) for one noisy test whether the largest count is large, answered or not."""
    return orders / (2 * sigma**2)


def lnmax(scale: float, orders: Array = ORDERS) -> Array:
    """One argmax under Laplace noise is (2 / scale)-DP, by a epsilon^2 / 2 alone."""
    return orders * (2 / scale) ** 2 / 2


def log_q(counts: Array, sigma: float) -> float:
    """ln of a bound on the probability that a noisy argmax is not the plurality, of counts [C]."""
    from scipy.special import log_ndtr, logsumexp

    top = int(np.argmax(counts))
    behind = (counts[top] - np.delete(counts, top)) / (np.sqrt(2) * sigma)
    return min(float(logsumexp(log_ndtr(-behind))), float(np.log1p(-1 / len(counts))))


def gnmax_dependent(log_q: float, sigma: float, orders: Array = ORDERS) -> Array:
    """The bound for these very votes (theorem 6), never above the one for any.

    With m2 = sigma sqrt(-ln q), m1 = m2 + 1 and e_i = m_i / sigma^2, where m1 > a and m2 > 1,

        A = (1 - q) / (1 - (q exp(e2))^(1 - 1 / m2)),   B = exp(e1) / q^(1 / (m1 - 1)),
        RDP(a) = ln((1 - q) A^(a - 1) + q B^(a - 1)) / (a - 1),

    as long as q <= exp((m2 - 1) e2) (m1 / (m1 - 1) m2 / (m2 - 1))^-m2 and q exp(e2) < 1. It depends
    on the votes, so the figure is private itself and must not be published as it is.
    """
    always = gnmax(sigma, orders)
    if log_q == -np.inf:
        return np.zeros_like(always)
    two = sigma * np.sqrt(-log_q)
    one = two + 1
    if two <= 1:
        return always
    first, second = one / sigma**2, two / sigma**2
    growing = (two - 1) * second - two * (np.log(one / (one - 1)) + np.log(two / (two - 1)))
    if log_q > growing or log_q + second >= 0:
        return always
    log_right = np.log1p(-np.exp(log_q))
    a = log_right - np.log1p(-np.exp((log_q + second) * (1 - 1 / two)))
    b = first - log_q / (one - 1)
    bound = np.logaddexp(log_right + (orders - 1) * a, log_q + (orders - 1) * b) / (orders - 1)
    return np.where(orders < one, np.minimum(bound, always), always)


def epsilon(rdp: Array, delta: float, orders: Array = ORDERS) -> float:
    """min over orders of RDP(a) + ln(1 / delta) / (a - 1), as the paper converts (Mironov, 2017).

    Later conversions, which the ledger uses, are tighter.
    """
    return float(np.min(rdp + np.log(1 / delta) / (orders - 1)))
