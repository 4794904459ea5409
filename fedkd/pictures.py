"""Charts on paper: the bytes of a PNG file, every curve named at its end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedkd import drawing, holdings
from fedkd.drawing import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION
from fedkd.phrases import size_text, time_text
from fedkd.reporting.charts import Bars, Chart, Heat, Lines, Series, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_LONG = 28  # characters of a name; a longer one would take the room of the curves
_WRITTEN: dict[Unit, Callable[[float], str]] = {
    "share": lambda value: f"{value:g} %",
    "points": lambda value: f"{value:+g}",
    "bytes": size_text,
    "seconds": time_text,
    "count": lambda value: f"{value:,g}",
    "nats": lambda value: f"{value:.3g}",
    "round": lambda value: f"{value:g}",
}
_PRECISE: dict[Unit, Callable[[float], str]] = {
    **_WRITTEN,
    "share": lambda value: f"{value:.1f}",
    "points": lambda value: f"{value:+.1f}",
}


def png(chart: Chart) -> bytes:
    """The chart as a picture. Raises `ValueError` where it has nothing to show."""
    if isinstance(chart, Heat):
        return holdings.partition_png(holdings.Holdings(chart.values, chart.columns, chart.rows))
    if isinstance(chart, Bars):
        if not any(value is not None for group in chart.groups for value in group.values):
            raise ValueError(f"pictures: {chart.key} has no bar to draw")
        shown = len(chart.categories) * (1 if chart.stacked else len(chart.groups))
        width = min(max(6.4, 2.4 + 0.3 * shown), 9.0)
        return drawing.render(lambda figure: _bars(figure, chart), (width, 3.7))
    places = {x for series in chart.series if series.style != "level" for x, _ in series.points}
    if not places:
        raise ValueError(f"pictures: {chart.key} has no point to draw")
    return drawing.render(
        lambda figure: _lines(figure, chart), (6.4 if len(places) > 1 else 3.8, 3.7)
    )


def _colour(place: int) -> str:
    """More curves than colours: the others stay in the background."""
    return COLOURS[place] if 0 <= place < len(COLOURS) else MUTED


def _scale(unit: Unit) -> float:
    return 100 if unit in ("share", "points") else 1


def _lines(figure: Figure, chart: Lines) -> None:
    axes, by = figure.add_subplot(), _scale(chart.y_unit)
    ends: list[tuple[float, str, str]] = []
    places, levels = list[float](), list[float]()
    for order, series in enumerate(chart.series):
        colour = _colour(series.colour)
        levels += [by * y for _, y in series.points]
        if series.style == "level":
            axes.axhline(by * series.points[0][1], color=colour, linewidth=1, dashes=(4, 3),
                         zorder=1.5)  # fmt: skip
        else:
            places += [x for x, _ in series.points]
            _curve(axes, series, colour, by, 5 - 0.1 * order)
        if series.points and series.style not in ("points", "step", "guide"):
            end = by * series.points[-1][1]
            name = f"{_short(series.name)} " if len(chart.series) > 1 else ""
            ends.append((end, name + _PRECISE[chart.y_unit](end), colour))
    _limits(axes, chart, places, levels)
    drawing.name_ends(axes, ends)
    axes.set_xlabel(chart.x)
    _describe(axes, chart.title, chart.y_unit)


def _curve(axes: Axes, series: Series, colour: str, by: float, order: float) -> None:
    at, heights = [x for x, _ in series.points], [by * y for _, y in series.points]
    if series.band:
        _band(axes, [(x, by * low, by * high) for x, low, high in series.band], colour)
    few = len(at) <= 20
    line = axes.plot(at, heights, color=colour, drawstyle=_step(series.style))[0]
    line.set(linewidth=1.6, clip_on=False, zorder=order, markersize=3.5)
    if series.style == "points":
        line.set(linestyle="none", marker="o", markersize=5)
        for (x, _), y, label in zip(series.points, heights, series.labels, strict=False):
            axes.annotate(_short(label), (x, y), (5, 4), textcoords="offset points", fontsize=7.5)
    elif series.style in ("step", "guide"):
        line.set(linewidth=1, linestyle=(0, (4, 3)))
    else:
        line.set(marker="o" if few else "")


def _step(style: str) -> str:
    return "steps-post" if style == "step" else "default"


def _band(axes: Axes, band: Sequence[tuple[float, float, float]], colour: str) -> None:
    at, low, high = zip(*band, strict=True)
    if len(at) == 1:  # a band needs two places to be seen
        axes.vlines(at, low, high, color=colour, alpha=0.25, linewidth=7, clip_on=False)
    else:
        axes.fill_between(at, low, high, color=colour, alpha=0.14, linewidth=0)


def _short(name: str) -> str:
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}…"


def _limits(axes: Axes, chart: Lines, places: Sequence[float], levels: Sequence[float]) -> None:
    first, last = min(places), max(places)
    if chart.x_unit == "round":
        axes.set_xlim((first, last) if first < last else (first - 0.5, first + 0.5))
        _integers(axes, int(first), int(last))
    elif chart.x_unit == "share":
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    else:
        scattered = all(s.style != "line" for s in chart.series)
        axes.set_xlim(0, (1.25 if scattered else 1.04) * last or 1)
        axes.xaxis.set_major_locator(_few())
        axes.xaxis.set_major_formatter(lambda value, _: _WRITTEN[chart.x_unit](value))
    if chart.y_unit == "share":
        _heights(axes, levels)
    else:
        axes.set_ylim(0, 1.1 * max(levels) or 1)


def _few() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def _heights(axes: Axes, levels: Sequence[float]) -> None:
    """Whole tens of percent around all levels; from 0 where that is not far."""
    floor = 10 * int((min(levels) - 2) // 10)
    axes.set_ylim(0 if floor <= 20 else floor, min(100, 10 * int((max(levels) + 12) // 10)))


def _bars(figure: Figure, chart: Bars) -> None:
    axes, by = figure.add_subplot(), _scale(chart.unit)
    share = 0.8 / (1 if chart.stacked else len(chart.groups))
    stacked, tops = [0.0] * len(chart.categories), list[float]()
    few = len(chart.categories) <= 8 and not chart.stacked
    for order, group in enumerate(chart.groups):
        at = [place for place, value in enumerate(group.values) if value is not None]
        heights = [by * value for value in group.values if value is not None]
        floors = [0.0] * len(at)
        if chart.stacked:
            floors = [stacked[place] for place in at]
            for place, height in zip(at, heights, strict=True):
                stacked[place] += height
        shift = 0.0 if chart.stacked else (order - (len(chart.groups) - 1) / 2) * share
        drawn = axes.bar([place + shift for place in at], heights, 0.94 * share, bottom=floors,
                         color=_colour(group.colour), label=group.name, linewidth=0)  # fmt: skip
        tops += [max(low, low + high) for low, high in zip(floors, heights, strict=True)]
        if few:
            axes.bar_label(drawn, [_PRECISE[chart.unit](height) for height in heights],
                           fontsize=7.5, padding=2)  # fmt: skip
    long = max(map(len, chart.categories)) > 6 and len(chart.categories) > 5
    every = max(1, -(-len(chart.categories) // 40))
    room = max(8, 64 // len(chart.categories))
    names = [_folded(name, room if not long else _LONG) for name in chart.categories[::every]]
    axes.set_xticks(range(0, len(chart.categories), every), names,
                    rotation=30 if long else 0, ha="right" if long else "center")  # fmt: skip
    axes.set_ylim(by * chart.low, by * chart.low + 1.12 * (max(tops) - by * chart.low) or 1)
    axes.set_xlabel(chart.x)
    if len(chart.groups) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    _describe(axes, chart.title, chart.unit)


def _folded(name: str, room: int) -> str:
    """A name of two lines at most."""
    lines = textwrap.wrap(name, room)
    return "\n".join(lines if len(lines) < 3 else [lines[0], _short(" ".join(lines[1:]))])


def _describe(axes: Axes, title: str, unit: Unit) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=8)
    axes.yaxis.set_major_formatter(lambda value, _: _WRITTEN[unit](value))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _integers(axes: Axes, first: int, last: int) -> None:
    steps = (s * 10**e for e in range(9) for s in (1, 2, 5))
    step = next(step for step in steps if last - first <= 12 * step)
    axes.set_xticks(sorted({first, *range(step * (first // step + 1), last + 1, step)}))
