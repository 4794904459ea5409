"""The two pictures of a run, as the bytes of PNG files.

matplotlib is imported when a picture is drawn, without pyplot: nothing opens a window and no global
figure is left behind. Equal data and an equal matplotlib give equal bytes. Colours are Okabe and
Ito's, which people with the common colour-vision deficiencies can tell apart.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, INK, MUTED, FAINT = (
    "#0072B2", "#D55E00", "#009E73", "#222222", "#6B6B6B", "#E4E4E4",
)  # fmt: skip
_STYLE = {"font.size": 9, "axes.linewidth": 0.6, "text.color": INK, "axes.labelcolor": INK,
          "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED}  # fmt: skip
_DOTS_PER_INCH = 200
_NAMED_CLIENTS = 40  # beyond, a label per client would be too small to read
_NUMBERED_CELLS = 15  # classes; beyond, the counts would not fit into their cells

Points = Sequence[tuple[int, float]]  # (round, accuracy in 0..1), ascending rounds


@dataclass(frozen=True, slots=True)
class Curves:
    """Accuracies in 0..1 on the global test set by round, and the yardsticks as levels.

    `teachers` holds (round, mean, lowest, highest) over the clients; `yardsticks` (name, accuracy).
    Rounds that were not evaluated are left out of a curve.
    """

    student: Points
    ensemble: Points
    teachers: Sequence[tuple[int, float, float, float]]
    yardsticks: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Holdings:
    """Private labels by client and class [K][C], with the model of every client [K]."""

    histogram: Sequence[Sequence[int]]
    classes: Sequence[str]
    models: Sequence[str]


def accuracy_png(data: Curves) -> bytes:
    """Student, ensemble and teachers on the global test set by round, each named at its end."""
    rounds = {point[0] for curve in (data.student, data.ensemble, data.teachers) for point in curve}
    if not rounds:
        raise ValueError("pictures: no round was evaluated, there is no accuracy to draw")
    return _render(lambda figure: _accuracy(figure, data), (6.4 if len(rounds) > 1 else 3.8, 3.7))


def partition_png(data: Holdings) -> bytes:
    """Who holds which labels: clients by classes, with the size and the model of every client."""
    clients, classes = len(data.histogram), len(data.classes)
    height = 1.0 + 0.24 * clients if clients <= _NAMED_CLIENTS else 6.0
    size = (3.0 + _heat_width(classes), max(height, 1.8))
    return _render(lambda figure: _partition(figure, data), size)


def _render(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # from the defaults, so that a user's matplotlibrc does not change a stored picture
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


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
    floor = 10 * int((min(everything) - 2) // 10)
    axes.set_ylim(0 if floor <= 20 else floor, min(100, 10 * int((max(everything) + 12) // 10)))
    axes.set_xlim(rounds[0] - 0.03 * max(rounds[-1] - rounds[0], 10), rounds[-1])
    _name_ends(axes, ends)
    _integers(axes, rounds[0], rounds[-1])
    axes.set_xlabel("Round")
    _describe(axes, bool(data.teachers), narrow=len(rounds) == 1)


def _band(axes: Axes, teachers: Sequence[tuple[int, float, float, float]]) -> None:
    at = [r for r, _, _, _ in teachers]
    low, high = [100 * y for _, _, y, _ in teachers], [100 * y for _, _, _, y in teachers]
    if len(at) == 1:  # a band needs two rounds to be seen
        axes.vlines(at, low, high, color=GREEN, alpha=0.25, linewidth=7, clip_on=False)
    else:
        axes.fill_between(at, low, high, color=GREEN, alpha=0.14, linewidth=0)


def _describe(axes: Axes, teachers: bool, narrow: bool) -> None:
    title = "Accuracy on the global test set"
    if teachers:
        title += f";{chr(10) if narrow else ' '}band: worst to best teacher"
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


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write every curve's name at its end; names that would overlap are moved apart.

    A hair line leads from a moved name back to the height it belongs to.
    """
    low, high = axes.get_ylim()
    placed = sorted(ends)
    heights = spread([level for level, _, _ in placed], 0.066 * (high - low), low, high)
    right = axes.get_yaxis_transform()  # x in parts of the axes, y in percent
    for (level, text, colour), height in zip(placed, heights, strict=True):
        axes.plot([1.01, 1.03, 1.05], [level, height, height], transform=right, color=colour,
                  linewidth=0.6, clip_on=False)  # fmt: skip
        axes.text(1.06, height, text, transform=right, color=colour, va="center",
                  fontweight="bold" if text.startswith("Student ") else "normal")  # fmt: skip


def spread(levels: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending `levels` moved as little as needed to lie `gap` apart, inside low..high.

    Where they do not fit, the gap shrinks to what there is.
    """
    if len(levels) < 2:
        return list(levels)
    gap = min(gap, (high - low) / (len(levels) - 1))
    # y_i - i * gap must not descend: pooling neighbours that do is the least-squares answer
    pools: list[list[float]] = []
    for i, level in enumerate(levels):
        pools.append([level - i * gap])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = [sum(pool) / len(pool) for pool in pools for _ in pool]
    room = high - (len(levels) - 1) * gap
    return [min(max(base, low), room) + i * gap for i, base in enumerate(flat)]


def _partition(figure: Figure, data: Holdings) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    counts = np.asarray(data.histogram, dtype=np.int64).reshape(len(data.models), len(data.classes))
    clients, classes = counts.shape
    named = clients <= _NAMED_CLIENTS
    if not named:  # in the order of ids so many rows would look like noise
        counts = counts[np.lexsort((-counts.sum(axis=1), counts.argmax(axis=1)))]
    grid = figure.add_gridspec(1, 2, width_ratios=(_heat_width(classes), 1.1), wspace=0.02)
    heat, bars = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    shades = LinearSegmentedColormap.from_list("blues", ("#FFFFFF", "#9CC7E3", BLUE, "#00304D"))
    # square root: with skewed labels a linear scale would show the largest holding only
    shown = heat.imshow(counts, aspect="auto", cmap=shades, interpolation="nearest",
                        norm=PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1)))  # fmt: skip
    if named and classes <= _NUMBERED_CELLS:
        for (k, c), count in np.ndenumerate(counts):
            if count:
                heat.text(c, k, str(count), ha="center", va="center", fontsize=6.5,
                          color="white" if count > 0.27 * counts.max() else INK)  # fmt: skip
    else:
        figure.colorbar(shown, ax=bars, label="Private samples of a class", fraction=0.12, pad=0.12)
    _name_classes(heat, data.classes)
    _name_clients(heat, data.models, named)
    _sizes(bars, counts.sum(axis=1).tolist(), named)
    bars.set_ylim(heat.get_ylim())
    for axes in (heat, bars):
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)


def _heat_width(classes: int) -> float:
    return min(max(0.38 * classes, 1.6), 7.0)


def _name_classes(heat: Axes, classes: Sequence[str]) -> None:
    count = len(classes)
    every = 1 if count <= 30 else -(-count // 20)
    long = count > 1 and max(map(len, classes)) > 3
    heat.set_xticks(range(0, count, every), classes[::every], rotation=40 if long else 0,
                    ha="right" if long else "center", rotation_mode="anchor")  # fmt: skip
    heat.set_xlabel("Class")
    if count <= 30:
        heat.set_xticks([c + 0.5 for c in range(count - 1)], minor=True)
        heat.grid(which="minor", axis="x", color=FAINT, linewidth=0.6)


def _name_clients(heat: Axes, models: Sequence[str], named: bool) -> None:
    """Ids, each with its model where models differ; of many clients only how many have which."""
    kinds = Counter(models)
    if not named:
        parts = [f"{count:,} {model}" for model, count in kinds.most_common(6)]
        parts += [f"{len(kinds) - 6} more models"] if len(kinds) > 6 else []
        heat.set_title("Models: " + ", ".join(parts), loc="left", fontsize=8, color=INK)
        heat.set_ylabel(f"{len(models):,} clients, sorted by their most frequent class")
        heat.set_yticks([])
        return
    if len(kinds) == 1:
        heat.set_yticks(range(len(models)))
        heat.set_ylabel(f"Client (all {models[0]})")
    else:
        heat.set_yticks(range(len(models)), [f"{model}   {k}" for k, model in enumerate(models)])
        heat.set_ylabel("Model and client")
    heat.set_yticks([k + 0.5 for k in range(len(models) - 1)], minor=True)
    heat.grid(which="minor", axis="y", color=FAINT, linewidth=0.6)


def _sizes(axes: Axes, sizes: Sequence[int], named: bool) -> None:
    places = range(len(sizes))
    axes.set_xlim(0, 1.45 * max(1, *sizes) if named else 1.05 * max(1, *sizes))
    axes.set_yticks([])
    axes.barh(places, sizes, height=0.62 if named else 1.0, color="#BDBDBD", linewidth=0)
    if named:
        axes.set_xticks([])
        for place, size in zip(places, sizes, strict=True):
            axes.text(size + 0.04 * max(1, *sizes), place, f"{size:,}", va="center", fontsize=7.5)
    axes.set_xlabel("Samples", loc="left" if named else "center")
