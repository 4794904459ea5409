"""The picture of who holds which labels, as the bytes of a PNG file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedkd.drawing import BLUE, FAINT, INK, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED_CLIENTS = 40  # beyond, a label per client would be too small to read
_NUMBERED_CELLS = 15  # classes; beyond, the counts would not fit into their cells


@dataclass(frozen=True, slots=True)
class Holdings:
    """Private labels by client and class [K][C], with the model of every client [K]."""

    histogram: Sequence[Sequence[int]]
    classes: Sequence[str]
    models: Sequence[str]


def partition_png(data: Holdings) -> bytes:
    """Who holds which labels: clients by classes, with the size and the model of every client."""
    clients, classes = len(data.histogram), len(data.classes)
    height = 1.0 + 0.24 * clients if clients <= _NAMED_CLIENTS else 6.0
    size = (3.0 + _heat_width(classes), max(height, 1.8))
    return render(lambda figure: _partition(figure, data), size)


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
