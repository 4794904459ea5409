"""Charts as plain values: what is drawn, told apart from how; one for paper, one for a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "points", "bytes", "seconds", "count", "nats", "round"]
Style = Literal["line", "level", "points", "step", "guide"]
MUTED = -1  # the colour of what is a mark to compare with, and no curve of its own


@dataclass(frozen=True, slots=True)
class Series:
    """A curve through (x, y), ascending in x; of a level the y alone counts, a guide is straight.

    `band` holds (x, low, high) around it, `labels` a name for each point.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    style: Style = "line"
    band: tuple[tuple[float, float, float], ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves, levels and points over one axis."""

    key: str
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    x_unit: Unit = "round"
    y_unit: Unit = "share"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Bars of one colour, by category; None where nothing was measured."""

    name: str
    values: tuple[float | None, ...]
    colour: int


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars by category, beside each other or stacked; an axis from above 0 is told in the note."""

    key: str
    title: str
    x: str
    y: str
    categories: tuple[str, ...]
    groups: tuple[Group, ...]
    unit: Unit = "share"
    stacked: bool = False
    note: str = ""
    low: float = 0.0  # where the axis begins


@dataclass(frozen=True, slots=True)
class Heat:
    """Counts by row and column, `values` [rows][columns]."""

    key: str
    title: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    note: str = ""
    every: int = 1  # one row in so many is there


Chart = Lines | Bars | Heat
