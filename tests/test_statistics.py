"""Means, intervals and comparisons in pairs, against values worked by hand or by scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedkd.reporting.statistics import holm, paired, sampling_error, signed_rank, spread


def test_a_mean_with_its_deviation_and_interval() -> None:
    found = spread([0.88, 0.90, 0.92])
    # deviation sqrt((0.0004 + 0 + 0.0004) / 2); t(0.975, 2) = 4.302653
    assert (found.count, found.mean) == (3, pytest.approx(0.90))
    assert found.deviation == pytest.approx(0.02)
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.9 - half), pytest.approx(0.9 + half))


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True))
def test_the_interval_is_scipys(thousandths: list[int]) -> None:
    values = [number / 1000 for number in thousandths]
    found = spread(values)
    low, high = stats.t.interval(0.95, len(values) - 1, found.mean, stats.sem(values))
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    alone = spread([0.5])
    assert (alone.deviation, alone.low, alone.high) == (None, None, None)
    with pytest.raises(ValueError, match="at least one value"):
        spread([])


def test_the_error_of_a_test_set_is_binomial() -> None:
    assert sampling_error(0.9, 400) == pytest.approx(0.015)
    assert sampling_error(1.0, 400) == 0


def test_signed_ranks_by_hand() -> None:
    # all 6 differences of one sign: 2 of the 2⁶ = 64 assignments are as extreme
    assert signed_rank([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    # W⁻ = 1: the empty set and {1}, on both sides
    assert signed_rank([-1, 2, 3, 4, 5, 6]) == pytest.approx(4 / 64)
    assert signed_rank([0.0, 0.0]) == 1


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1: 0.03, 0.04, 0.04; given in another order
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    # a later test is never below an earlier one
    assert holm([0.01, 0.011]) == pytest.approx([0.02, 0.02])
    assert holm([]) == []


def values(shift: float, count: int) -> dict[object, float]:
    return {seed: 0.5 + 0.01 * seed + shift * (1 + 0.1 * seed) for seed in range(count)}


def test_six_pairs_decide_and_five_do_not() -> None:
    better, base = values(0.05, 6), values(0.0, 6)
    (holds,) = paired([(better, base)])
    (turned,) = paired([(base, better)])
    assert holds and turned and (holds.verdict, turned.verdict) == ("holds", "reversed")
    assert holds.p == holds.corrected == pytest.approx(2 / 64)
    # differences 0.05, 0.055 … 0.075
    assert holds.differences.mean == pytest.approx(0.0625)
    (few,) = paired([(values(0.05, 5), base)])
    assert few and (few.p, few.corrected, few.verdict) == (None, None, "undecided")
    assert few.differences.count == 5 and few.differences.low is not None


def test_a_family_of_tests_is_corrected_together() -> None:
    better, base = values(0.05, 6), values(0.0, 6)
    found = paired([(better, base), (base, base), (values(0.05, 3), base)])
    first, second, third = found
    assert first and second and third
    assert first.corrected == pytest.approx(4 / 64) and first.verdict == "undecided"
    assert (second.p, second.corrected) == (1.0, 1.0)
    assert third.p is None  # no test, so it costs the others nothing


def test_only_what_both_ran_on_is_compared() -> None:
    assert paired([({1: 0.5}, {2: 0.5})]) == [None]
    (found,) = paired([({1: 0.5, 2: 0.75}, {2: 0.5, 3: 0.1})])
    assert found and found.differences.count == 1 and found.differences.mean == 0.25
