"""The pictures of a report: drawn for any size of run, names apart, the same bytes again."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import drawing, holdings, pictures

MODELS = ("mlp-64", "cnn-8")


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("rounds", [1, 2, 40])
def test_accuracy_is_drawn_for_any_number_of_rounds(rounds: int) -> None:
    points = [(r, 0.9 - 0.5 / r) for r in range(1, rounds + 1)]
    band = [(r, y, y - 0.2, min(y + 0.1, 1.0)) for r, y in points]
    curves = pictures.Curves(points, points[:1], band, [("Pooled", 1.0), ("True labels", 0.995)])
    png = pictures.accuracy_png(curves)
    assert png == pictures.accuracy_png(curves)
    assert size_of(png)[1] == 740


def test_no_accuracy_is_refused() -> None:
    with pytest.raises(ValueError, match="no round was evaluated"):
        pictures.accuracy_png(pictures.Curves([], [], [], [("Pooled", 0.9)]))


@pytest.mark.parametrize("rounds", [1, 2, 40])
def test_accuracy_is_drawn_over_virtual_time(rounds: int) -> None:
    points = [(1.7 * r, 0.9 - 0.5 / r) for r in range(1, rounds + 1)]
    curves = pictures.Curves(points, points, [], [], "Virtual seconds")
    assert size_of(pictures.accuracy_png(curves))[1] == 740


def test_many_experiments_are_drawn_over_virtual_time() -> None:
    trials = [
        pictures.Trial(
            f"[{n}] method(a_rather_long_parameter={n})",
            [[(s * r * n, 1 - 1 / (n + r)) for r in range(1, 30)] for s in (3.0, 3.5)],
        )
        for n in range(1, 10)
    ]
    png = pictures.trials_png(trials, "The student")
    assert png == pictures.trials_png(trials, "The student") and size_of(png) == (1280, 740)
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.trials_png([pictures.Trial("never evaluated", [[]])], "The student")


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
