"""The pictures of a report: drawn for any size of run, names apart, the same bytes again."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import drawing, holdings, pictures
from fedkd.reporting.charts import MUTED, Bars, Group, Lines, Series, Unit

MODELS = ("mlp-64", "cnn-8")


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("rounds", [1, 2, 40])
@pytest.mark.parametrize("unit", ["round", "seconds", "bytes"])
def test_curves_are_drawn_for_any_number_of_rounds(rounds: int, unit: Unit) -> None:
    points = tuple((float(r), 0.9 - 0.5 / r) for r in range(1, rounds + 1))
    band = tuple((x, y - 0.2, min(y + 0.1, 1.0)) for x, y in points)
    series = (
        Series("Student", points, 0, band=band),
        Series("Ensemble", points[:1], 1),
        Series("Pareto front", points, MUTED, "step"),
        Series("Pooled", ((0.0, 1.0),), MUTED, "level"),
    )
    chart = Lines("a", "Accuracy", "Round", "", series, unit)
    png = pictures.png(chart)
    assert png == pictures.png(chart)
    assert size_of(png)[1] == 740


@pytest.mark.parametrize("chart", [
    Lines("none", "", "Round", "", (Series("Pooled", ((0.0, 0.9),), MUTED, "level"),)),
    Bars("none", "", "", "", ("a",), (Group("g", (None,), 0),)),
])  # fmt: skip
def test_nothing_to_draw_is_refused(chart: Lines | Bars) -> None:
    with pytest.raises(ValueError, match="none has no"):
        pictures.png(chart)


def test_many_settings_are_drawn_as_points() -> None:
    series = tuple(
        Series(f"[{n}] a_rather_long_name={n}", ((1e6 * n, 1 - 1 / (n + 1)),), n, "points",
               labels=(f"[{n}] a_rather_long_name={n}",))
        for n in range(1, 10)
    )  # fmt: skip
    chart = Lines("bytes", "The student against bytes", "Bytes", "", series, "bytes")
    assert size_of(pictures.png(chart)) == (1280, 740)


@pytest.mark.parametrize("count", [1, 8, 200])
@pytest.mark.parametrize("stacked", [False, True])
def test_bars_are_drawn_for_few_and_many(count: int, stacked: bool) -> None:
    names = tuple(f"a category with a long name {n}" for n in range(count))
    groups = tuple(Group(f"g{g}", tuple(0.1 * (n % 5) for n in range(count)), g) for g in range(3))
    width, height = size_of(
        pictures.png(Bars("b", "Bars", "", "", names, groups, "share", stacked))
    )
    assert 1280 <= width <= 1800 and height == 740


def test_the_axis_of_bars_may_begin_above_zero() -> None:
    groups = (Group("Reached", (0.97, 0.95), 0), Group("Lost", (0.0, 0.02), 1))
    charts = [Bars("b", "", "", "", ("a", "b"), groups, stacked=True, low=low) for low in (0, 0.9)]
    assert pictures.png(charts[0]) != pictures.png(charts[1])


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (30, 100), (300, 10)])
def test_partition_is_drawn_for_few_and_many(clients: int, classes: int) -> None:
    histogram = [[(k * c) % 7 for c in range(classes)] for k in range(clients)]
    names = [f"class {c}" for c in range(classes)]
    held = holdings.Holdings(histogram, names, [MODELS[k % 2] for k in range(clients)])
    width, height = size_of(holdings.partition_png(held))
    assert width <= 2000 and height <= 2200


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted), st.floats(0.1, 20))
def test_names_at_the_ends_keep_apart_in_order_and_inside(levels: list[float], gap: float) -> None:
    placed = drawing.spread(levels, gap, 0.0, 100.0)
    possible = min(gap, 100 / max(len(levels) - 1, 1))
    assert all(b - a >= possible - 1e-6 for a, b in pairwise(placed))
    assert placed[0] >= -1e-6 and placed[-1] <= 100 + 1e-6


def test_names_that_are_apart_stay_where_they_are() -> None:
    assert drawing.spread([10.0, 30.0, 90.0], 5.0, 0.0, 100.0) == [10.0, 30.0, 90.0]
    # 50 and 51 part around their middle
    assert drawing.spread([50.0, 51.0], 5.0, 0.0, 100.0) == [48.0, 53.0]
    assert math.isclose(drawing.spread([99.0, 100.0], 5.0, 0.0, 100.0)[0], 95.0)
