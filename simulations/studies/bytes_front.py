"""Accuracy against bytes: codecs on both ways of two methods, and which of them nobody beats."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedkd import drawing
from fedkd.reporting.statistics import Spread, spread
from simulations.studies import harness
from simulations.studies.harness import Findings, Given, Runs, Settings, Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS: dict[str, dict[str, Any]] = {
    "mean": {"name": "dsfl", "aggregation": "sa", "rows": None},
    "entropy": {"name": "entropy", "temperature": 0.2},
}
CODECS: dict[str, list[Any]] = {
    "none": [],
    "fp16": ["fp16"],
    "simplex 8": [{"name": "simplex", "bits": 8}],
    "simplex 4": [{"name": "simplex", "bits": 4}],
    "simplex 2": [{"name": "simplex", "bits": 2}],
    "simplex 1": ["simplex"],
    "top 3": [{"name": "topk", "k": 3}],
    "simplex 4 + delta + coder": [{"name": "simplex", "bits": 4}, "delta", "range_coder"],
    "simplex 1 + delta + coder": ["simplex", "delta", "range_coder"],
}
_QUICK = ("none", "simplex 1 + delta + coder")


@dataclass(frozen=True, slots=True)
class Cell:
    """A codec with a method: bytes of a whole run, both ways and all clients, and accuracy."""

    sent: float
    accuracy: Spread
    behind: Spread  # accuracy less that without a codec, seed by seed


def front(cells: Mapping[str, Cell]) -> list[str]:
    """The codecs for which no other has as few bytes and is as accurate, by ascending bytes."""

    def beaten(name: str) -> bool:
        mine = (-cells[name].sent, cells[name].accuracy.mean)
        others = [(-c.sent, c.accuracy.mean) for n, c in cells.items() if n != name]
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)

    return sorted((n for n in cells if not beaten(n)), key=lambda n: cells[n].sent)


def _do(given: Given) -> tuple[Tree, Settings, Runs, Findings]:
    codecs = _QUICK if given.quick else tuple(CODECS)
    settings = {
        f"{method} / {codec}": {
            "strategy": METHODS[method],
            "codecs": {"up": CODECS[codec], "down": CODECS[codec]},
        }
        for method, codec in itertools.product(METHODS, codecs)
    }
    base = harness.small(given, 10, rounds=8)
    base["data"]["partition"] = harness.dirichlet()
    runs = harness.carried_out(given, base, settings)
    cells = {m: {c: _cell(runs, m, c) for c in codecs} for m in METHODS}
    rows: list[dict[str, object]] = [
        {"method": m, "codec": c, "bytes": _bytes(runs, m, c), "student": _accuracies(runs, m, c)}
        for m, c in itertools.product(METHODS, codecs)
    ]
    return base, settings, runs, Findings(rows, _text(cells), _picture(cells))


def _accuracies(runs: Runs, method: str, codec: str) -> list[float]:
    return [harness.final(run) for run in runs[f"{method} / {codec}"]]


def _bytes(runs: Runs, method: str, codec: str) -> list[int]:
    return [
        sum(record["bytes"]["up"] + record["bytes"]["down"] for record in run.records)
        for run in runs[f"{method} / {codec}"]
    ]


def _cell(runs: Runs, method: str, codec: str) -> Cell:
    accuracies = _accuracies(runs, method, codec)
    plain = _accuracies(runs, method, "none")
    return Cell(
        spread([float(b) for b in _bytes(runs, method, codec)]).mean,
        spread(accuracies),
        spread([a - b for a, b in zip(accuracies, plain, strict=True)]),
    )


def _text(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    text = ""
    for method, those in cells.items():
        best, plain = front(those), those["none"].sent
        rows = [
            [
                f"**{name}**" if name in best else name,
                f"{cell.sent / 1e3:,.0f}",
                f"{plain / cell.sent:.1f}",
                harness.percent(cell.accuracy),
                f"{100 * cell.behind.mean:+.1f} ± {100 * (cell.behind.deviation or 0):.1f}",
            ]
            for name, cell in those.items()
        ]
        head = [f"{method}: codec", "kB", "times fewer", "student %", "to none, points"]
        text += "\n" + harness.table(head, rows)
    return text


def _picture(cells: Mapping[str, Mapping[str, Cell]]) -> bytes:
    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
        for axes, (method, those) in zip(grid, cells.items(), strict=True):
            best = front(those)
            axes.plot([those[n].sent for n in best], [100 * those[n].accuracy.mean for n in best],
                      color=drawing.BLUE, linewidth=1, drawstyle="steps-post")  # fmt: skip
            for name, cell in those.items():
                colour = drawing.BLUE if name in best else drawing.MUTED
                height = 100 * cell.accuracy.mean
                axes.errorbar(cell.sent, height, 100 * (cell.accuracy.deviation or 0), fmt="o",
                              markersize=4, color=colour, elinewidth=0.5)  # fmt: skip
                axes.annotate(name, (cell.sent, height), (2, 4), textcoords="offset points",
                              fontsize=6.5, color=colour, rotation=55 if "+" in name else 30,
                              rotation_mode="anchor")  # fmt: skip
            axes.set_xscale("log")
            axes.margins(x=0.15)
            axes.set_ylim(0, 100)
            axes.set_xlabel("bytes of a run, both ways")
            axes.set_title(method, fontsize=9, loc="left")
        grid[0].set_ylabel("student on test samples, %")

    return drawing.render(draw, (8.4, 3.6))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return harness.main("bytes_front", __doc__ or "", 3, _do, arguments)


if __name__ == "__main__":
    sys.exit(main())
