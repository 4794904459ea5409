"""What telling the cost of noisy votes would cost: smooth sensitivity, and a noisy bound.

`votes.gnmax_dependent` depends on the votes, so it is private. K. Nissim, S. Raskhodnikova and
A. Smith, STOC 2007: noise in proportion to a bound on the local sensitivity at every distance d,
discounted by exp(-beta d), may be added and the sum told. N. Papernot et al., ICLR 2018, do so at
one Renyi order. The bounds are ours, so that each step can be proved:

- Any q above the probability of another class gives a valid bound. The smallest of those on a grid
  above q is valid, and it grows with q.
- Counts are taken by their gaps to the largest count. Changing one teacher changes each gap by at
  most 2, also where the largest count changes place. So d teachers move q to at most
  Q(gaps - 2d) and to no less than Q(gaps + 2d), with Q(g) = sum Phi(-g / (sqrt(2) sigma)).
- Phi(Phi^-1(p) + a) is concave in p for a > 0, so by Jensen one teacher more makes of q at most
  (C - 1) Phi(Phi^-1(q / (C - 1)) + sqrt(2) / sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, logsumexp, ndtri

from fedkd.privacy import votes

Array = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]

_STEP, _TOP = 0.002, 12.0  # of the grid, in standard deviations


@dataclass(frozen=True, eq=False)
class Cost:
    """RDP at one order of noisy argmaxes, as a function of q that only grows.

    `log_q` [G] ascends; `values` [G] hold for all q up to their own and above the one before;
    `most` [L, G] is the greatest change that one teacher makes there, over 1, 2, 4, … cells.
    """

    sigma: float
    order: float
    log_q: Array
    values: Array
    most: tuple[Array, ...]

    @classmethod
    def at(cls, orders: Array, sigma: float, classes: int) -> tuple[Self, ...]:
        """One for each order [A]; noise `sigma` on the counts of so many classes."""
        cap = math.log1p(-1 / classes)  # as in `votes.log_q`
        grid = math.log(classes - 1) + log_ndtr(-np.arange(_TOP, -_TOP, -_STEP))
        log_q = np.append(grid[grid < cap], cap)
        bounds = np.array([votes.gnmax_dependent(q, sigma, orders) for q in log_q])
        values = np.minimum.accumulate(bounds[::-1])[::-1]
        further = math.ceil(math.sqrt(2) / sigma / _STEP)
        after = np.minimum(np.arange(len(log_q)) + further, len(log_q) - 1)
        return tuple(
            cls(sigma, float(order), log_q, own, _tables(own[after] - own))
            for order, own in zip(orders, values.T, strict=True)
        )

    def of(self, counts: Array) -> float:
        """A bound on what answers to these counts [R, C] cost; private itself."""
        return float(self.values[self._cells(_gaps(counts))].sum())

    def change(self, counts: Array, distance: int) -> float:
        """The most that a teacher changes the cost by, where so many others were changed before."""
        gaps = _gaps(counts)
        least = self._cells(gaps + 2 * (distance + 1))
        return self._change(least, self._cells(gaps - 2 * distance))

    def sensitivity(self, counts: Array, beta: float) -> float:
        """The greatest exp(-beta d) change(d); among neighbours it differs by exp(beta) at most."""
        found, distance, limit = 0.0, 0, len(counts) * float(self.most[0].max())
        while math.exp(-beta * distance) * limit > found:
            found = max(found, math.exp(-beta * distance) * self.change(counts, distance))
            distance += 1
        return found

    def _cells(self, gaps: Array) -> Cells:
        log_q = logsumexp(log_ndtr(-gaps / (math.sqrt(2) * self.sigma)), axis=-1)
        found: Cells = np.minimum(np.searchsorted(self.log_q, log_q), len(self.log_q) - 1)
        return found

    def _change(self, first: Cells, last: Cells) -> float:
        """The sum over rows of the greatest change between two cells."""
        level = np.log2(last - first + 1).astype(int)
        total = 0.0
        for at in np.unique(level):
            here = level == at
            left, right = first[here], last[here] - (1 << int(at)) + 1
            total += float(np.maximum(self.most[at][left], self.most[at][right]).sum())
        return total


def _gaps(counts: Array) -> Array:
    """By how much each other class is behind the first, [R, C - 1]."""
    falling = -np.sort(-counts, axis=-1)
    gaps: Array = falling[:, :1] - falling[:, 1:]
    return gaps


def _tables(values: Array) -> tuple[Array, ...]:
    """The greatest of 1, 2, 4, … values from each place on."""
    found, width = [values], 1
    while 2 * width <= len(values):
        last = found[-1]
        found.append(np.maximum(last[:-width], last[width:]))
        width *= 2
    return tuple(found)


def telling(order: float, beta: float, noise: float, noise_of_scale: float) -> float:
    """RDP at this order of telling a figure with noise of `noise` times its smooth sensitivity.

    And of telling the logarithm of that sensitivity, which changes by `beta` at most, with noise
    of `noise_of_scale` times beta. Neighbours' noises differ by a factor in exp(±beta) and their
    figures by the smaller sensitivity at most: the two extremes of the divergence of such normal
    distributions. Infinite where exp(2 beta) reaches order / (order - 1).
    """
    wide, narrow = (order - (order - 1) * math.exp(x) for x in (2 * beta, -2 * beta))
    if wide <= 0:
        return math.inf
    apart = order / (2 * noise**2)
    first = -beta - math.log(wide) / (2 * (order - 1)) + apart / wide
    second = beta - math.log(narrow) / (2 * (order - 1)) + apart
    return max(first, second) + order / (2 * noise_of_scale**2)


def told(
    cost: float,
    sensitivity: float,
    beta: float,
    noise: float,
    noise_of_scale: float,
    failure: float,
    drawn: tuple[float, float],
) -> float:
    """A bound on the cost that may be told, below it with probability `failure` at most.

    `drawn` are two standard normal numbers. It uses nothing but the two noisy figures.
    """
    figure = cost + noise * sensitivity * drawn[0]
    scale = math.log(sensitivity) + beta * noise_of_scale * drawn[1]
    sure = -float(ndtri(failure / 2))
    return figure + noise * sure * math.exp(scale + beta * noise_of_scale * sure)
