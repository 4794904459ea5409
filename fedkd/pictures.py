"""The pictures of accuracies, by round and over virtual time, as the bytes of PNG files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedkd.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    name_ends,
    render,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]  # (round or virtual seconds, accuracy in 0..1), ascending
Axis = Literal["Round", "Virtual seconds"]
_OF_TRIALS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_LONG = 28  # characters of a name; a longer one would take the room of the curves


@dataclass(frozen=True, slots=True)
class Curves:
    """Accuracies in 0..1 on the global test set along an axis, and the yardsticks as levels.

    `teachers` holds (place on the axis, mean, lowest, highest) over the clients; `yardsticks`
    (name, accuracy). Rounds that were not evaluated are left out of a curve.
    """

    student: Points
    ensemble: Points
    teachers: Sequence[tuple[float, float, float, float]]
    yardsticks: Sequence[tuple[str, float]]
    axis: Axis = "Round"


@dataclass(frozen=True, slots=True)
class Trial:
    """Repetitions of one experiment: for each the accuracy in 0..1 by virtual seconds."""

    name: str
    runs: Sequence[Points]


def accuracy_png(data: Curves) -> bytes:
    """Student, ensemble and teachers on the global test set, each named at its end."""
    rounds = {point[0] for curve in (data.student, data.ensemble, data.teachers) for point in curve}
    if not rounds:
        raise ValueError("pictures: no round was evaluated, there is no accuracy to draw")
    return render(lambda figure: _accuracy(figure, data), (6.4 if len(rounds) > 1 else 3.8, 3.7))


def trials_png(trials: Sequence[Trial], whose: str) -> bytes:
    """Experiments over virtual time: a colour for each, a line for each of its runs."""
    if not any(points for trial in trials for points in trial.runs):
        raise ValueError("pictures: no run was evaluated on a clock, there is nothing to draw")
    return render(lambda figure: _trials(figure, trials, whose), (6.4, 3.7))


def _trials(figure: Figure, trials: Sequence[Trial], whose: str) -> None:
    axes = figure.add_subplot()
    ends, latest, levels = [], 0.0, []
    for place, trial in enumerate(trials):
        # more experiments than colours: the others stay in the background
        colour = _OF_TRIALS[place] if place < len(_OF_TRIALS) else MUTED
        runs = [points for points in trial.runs if points]
        for points in runs:
            line = axes.plot([x for x, _ in points], [100 * y for _, y in points], color=colour)[0]
            line.set(linewidth=1.4, alpha=0.8, clip_on=False, zorder=4)
            line.set(marker="o" if len(points) <= 20 else "", markersize=3)
            latest = max(latest, points[-1][0])
            levels += [100 * y for _, y in points]
        if runs:
            last = 100 * statistics.fmean(points[-1][1] for points in runs)
            name = trial.name if len(trial.name) <= _LONG else f"{trial.name[: _LONG - 1]}…"
            ends.append((last, f"{name} {last:.1f}", colour))
    _heights(axes, levels)
    axes.set_xlim(0, latest)
    name_ends(axes, ends)
    axes.set_xlabel("Virtual seconds")
    several = any(len(trial.runs) > 1 for trial in trials)
    told = "; a line a seed, to the right the mean of their ends" * several
    _describe(axes, f"{whose} on the global test set{told}")


def _accuracy(figure: Figure, data: Curves) -> None:
    axes = figure.add_subplot()
    curves = [
        ("Student", data.student, BLUE, 2.2),
        ("Ensemble", data.ensemble, VERMILION, 1.6),
        ("Teachers, mean", [(r, mean) for r, mean, _, _ in data.teachers], GREEN, 1.6),
    ]
    rounds = sorted({r for _, points, _, _ in curves for r, _ in points})
    ends = [(100 * y, f"{name} {100 * y:.1f}", MUTED) for name, y in data.yardsticks]
    for level, _, _ in ends:
        axes.axhline(level, color=MUTED, linewidth=1, dashes=(4, 3), zorder=1.5)
    for order, (name, points, colour, width) in enumerate(curves):
        if points:
            levels = [100 * y for _, y in points]
            line = axes.plot([r for r, _ in points], levels, color=colour, linewidth=width)[0]
            line.set(marker="o" if len(rounds) <= 20 else "", markersize=3.6)
            line.set(zorder=5 - order, clip_on=False)  # whole markers at the edge
            ends.append((levels[-1], f"{name} {levels[-1]:.1f}", colour))
    _band(axes, data.teachers)
    everything = [100 * y for _, points, _, _ in curves for _, y in points]
    everything += [100 * y for _, _, *edges in data.teachers for y in edges]
    everything += [level for level, _, _ in ends]
    _heights(axes, everything)
    if data.axis == "Round":
        axes.set_xlim(rounds[0] - 0.03 * max(rounds[-1] - rounds[0], 10), rounds[-1])
    else:  # the time before the first answer belongs to it
        axes.set_xlim(0, rounds[-1])
    name_ends(axes, ends)
    if data.axis == "Round":
        _integers(axes, int(rounds[0]), int(rounds[-1]))
    axes.set_xlabel(data.axis)
    title = "Accuracy on the global test set"
    if data.teachers:
        title += f";{chr(10) if len(rounds) == 1 else ' '}band: worst to best teacher"
    _describe(axes, title)


def _heights(axes: Axes, levels: Sequence[float]) -> None:
    """Whole tens of percent around all levels; from 0 where that is not far."""
    floor = 10 * int((min(levels) - 2) // 10)
    axes.set_ylim(0 if floor <= 20 else floor, min(100, 10 * int((max(levels) + 12) // 10)))


def _band(axes: Axes, teachers: Sequence[tuple[float, float, float, float]]) -> None:
    at = [r for r, _, _, _ in teachers]
    low, high = [100 * y for _, _, y, _ in teachers], [100 * y for _, _, _, y in teachers]
    if len(at) == 1:  # a band needs two rounds to be seen
        axes.vlines(at, low, high, color=GREEN, alpha=0.25, linewidth=7, clip_on=False)
    else:
        axes.fill_between(at, low, high, color=GREEN, alpha=0.14, linewidth=0)


def _describe(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _integers(axes: Axes, first: int, last: int) -> None:
    steps = (s * 10**e for e in range(9) for s in (1, 2, 5))
    step = next(step for step in steps if last - first <= 12 * step)
    axes.set_xticks(sorted({first, *range(step * (first // step + 1), last + 1, step)}))
