"""The smooth sensitivity of what votes cost, against all histograms of small elections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import integrate, special, stats

from fedkd.privacy import smooth, votes
from fedkd.privacy.smooth import Cost

Counts = tuple[int, ...]


def elections(teachers: int, classes: int) -> list[Counts]:
    every = itertools.product(range(teachers + 1), repeat=classes)
    return [counts for counts in every if sum(counts) == teachers]


def neighbours(counts: Counts) -> set[Counts]:
    found = set()
    for a, b in itertools.permutations(range(len(counts)), 2):
        if counts[a]:
            moved = list(counts)
            moved[a], moved[b] = moved[a] - 1, moved[b] + 1
            found.add(tuple(moved))
    return found


def row(counts: Counts) -> smooth.Array:
    return np.array([counts], dtype=float)


@pytest.mark.parametrize(
    ("teachers", "classes", "sigma", "order"),
    [(9, 3, 1.5, 3.0), (9, 3, 1.0, 2.0), (14, 2, 2.5, 8.0), (6, 4, 1.0, 2.0)],
)
def test_no_election_changes_more_than_the_bound_says(
    teachers: int, classes: int, sigma: float, order: float
) -> None:
    (cost,) = Cost.at(np.array([order]), sigma, classes)
    every = elections(teachers, classes)
    of = {counts: cost.of(row(counts)) for counts in every}
    assert max(of.values()) <= votes.gnmax(sigma, np.array([order]))
    assert len({round(value, 6) for value in of.values()}) > 2, "it does depend on the votes"
    near = {counts: neighbours(counts) for counts in every}
    local = {c: max(abs(of[c] - of[other]) for other in near[c]) for c in every}
    tight, beta = 0.0, 0.1
    for counts in every:
        reached, smoothed = {counts}, cost.sensitivity(row(counts), beta)
        for distance in range(teachers):
            true, bound = max(local[c] for c in reached), cost.change(row(counts), distance)
            assert true <= bound + 1e-12
            assert math.exp(-beta * distance) * true <= smoothed + 1e-12
            tight = max(tight, true / bound) if bound else tight
            reached |= set().union(*(near[c] for c in reached))
        for other in near[counts]:
            assert smoothed <= math.exp(beta) * cost.sensitivity(row(other), beta) * (1 + 1e-9)
    assert tight > 0.5, "a bound that says something"


def odds(counts: Counts, sigma: float) -> smooth.Array:
    """The probability of each class under a noisy argmax, by integration."""
    found = []
    for c in range(len(counts)):
        others = [n for i, n in enumerate(counts) if i != c]

        def here(x: float, own: int = counts[c], others: Sequence[int] = others) -> float:
            below = math.prod(float(special.ndtr((x - n) / sigma)) for n in others)
            return float(stats.norm.pdf(x, own, sigma)) * below

        ends = counts[c] - 10 * sigma, counts[c] + 10 * sigma
        found.append(integrate.quad(here, *ends, limit=200)[0])
    return np.array(found)


def test_the_cost_is_no_less_than_what_a_vote_lets_out() -> None:
    """The divergence of a noisy argmax from that of every neighbour, against the bound."""
    sigma, order = 1.2, 2.5
    (cost,) = Cost.at(np.array([order]), sigma, 3)
    nearest = 0.0
    for counts in ((8, 0, 0), (7, 1, 0), (6, 1, 1), (5, 2, 1), (4, 4, 0), (3, 3, 2)):
        mine, bound = odds(counts, sigma), cost.of(row(counts))
        assert mine.sum() == pytest.approx(1, abs=1e-6)
        for other in neighbours(counts):
            ratio = (mine**order * odds(other, sigma) ** (1 - order)).sum()
            true = math.log(ratio) / (order - 1)
            assert true <= bound
            nearest = max(nearest, true / bound)
    assert nearest > 0.05


def test_several_rows_change_together() -> None:
    """A teacher votes on every row, so that changes and costs add up."""
    (cost,) = Cost.at(np.array([4.0]), 1.5, 3)
    rows = [(8, 1, 0), (5, 2, 2), (3, 3, 3)]
    whole = np.array(rows, dtype=float)
    assert cost.of(whole) == pytest.approx(sum(cost.of(row(r)) for r in rows))
    for distance in range(4):
        apart = sum(cost.change(row(r), distance) for r in rows)
        assert cost.change(whole, distance) == pytest.approx(apart)


@pytest.mark.parametrize(("order", "beta", "noise"), [(6.0, 0.05, 3.0), (10.0, 0.03, 7.0)])
def test_telling_costs_no_less_than_the_divergence(order: float, beta: float, noise: float) -> None:
    """By integration, for sensitivities exp(beta) apart and figures by the lesser of them."""
    bound = smooth.telling(order, beta, noise, math.inf)
    worst = 0.0
    for apart in np.linspace(-beta, beta, 7):
        mine, other = noise * math.exp(apart), noise
        for shift in (0.0, min(math.exp(apart), 1.0)):
            p, q = stats.norm(0, mine), stats.norm(shift, other)

            def ratio(x: float, p: stats.rv_continuous = p, q: stats.rv_continuous = q) -> float:
                return math.exp(order * p.logpdf(x) + (1 - order) * q.logpdf(x))

            found, _ = integrate.quad(ratio, -40 * noise, 40 * noise, limit=400)
            worst = max(worst, math.log(found) / (order - 1))
    assert 0.9 * bound < worst <= bound + 1e-9
    again = smooth.telling(order, beta, noise, 5.0)
    assert again == pytest.approx(bound + order / 50)
    assert smooth.telling(order, 0.5, noise, 5.0) == math.inf


def test_what_is_told_is_too_low_as_seldom_as_promised() -> None:
    stream = np.random.default_rng(3)
    drawn = stream.standard_normal((20_000, 2)).tolist()
    low = sum(smooth.told(0.2, 0.04, 0.1, 3.0, 4.0, 0.1, (a, b)) < 0.2 for a, b in drawn)
    assert 0 < low <= 0.1 * len(drawn)
    # both draws 0: the figure and a margin of so many sensitivities
    sure = stats.norm.isf(0.05)
    assert smooth.told(0.2, 0.04, 0.1, 3.0, 4.0, 0.1, (0.0, 0.0)) == pytest.approx(
        0.2 + 3 * sure * 0.04 * math.exp(0.4 * sure)
    )
