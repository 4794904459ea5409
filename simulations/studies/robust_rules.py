"""Attacks × robust rules: what the student and the consensus are worth when some clients lie."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from fedkd import data, drawing, wire
from fedkd.client import learnable
from fedkd.reporting.statistics import spread
from fedkd.runs import Run
from simulations.studies import harness
from simulations.studies.harness import Findings, Given, Runs, Settings, Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Krum's condition K > 2f + 2 holds for 6 liars of 15, and for no 40 % of fewer clients
CLIENTS, LIARS = 15, 6
ATTACKS = ("none", "labels", "lma", "cpa", "hips_lma")
RULES: dict[str, dict[str, Any]] = {
    "mean": {"name": "mean"},
    "median": {"name": "median"},
    "trimmed mean": {"name": "trimmed_mean", "share": 0.4},
    "geometric median": {"name": "geometric_median"},
    "multi-Krum": {"name": "multi_krum", "f": LIARS},
    "Cronus' filter": {"name": "spectral_filter"},
    "ExpGuard(median)": {"name": "expguard", "rule": "median"},
}
PARTITIONS = {"IID": {"name": "iid"}, "Dirichlet 0.1": harness.dirichlet()}


def consensus(run: Run) -> float:
    """The last consensus on the true labels of the public rows it has a target for.

    From what the run keeps: the record has it only where all teachers are measured as well, which
    would double the time of a run.
    """
    last = max((run.folder / "commits").glob("*.safetensors"))
    found = wire.decode(load_file(last)["consensus"].numpy().tobytes())
    kept = learnable(found)
    truth = torch.from_numpy(data.load(run.folder / "data").truth.copy())[found.rows[kept, 1]]
    return float((found.scores[0, kept].argmax(-1) == truth).double().mean())


MEASURES: dict[str, Callable[[Run], float]] = {"student": harness.final, "consensus": consensus}


def _key(partition: str, attack: str, rule: str) -> str:
    return f"{partition} / {attack} / {rule}"


def _do(given: Given) -> tuple[Tree, Settings, Runs, Findings]:
    attacks = ("none", "lma") if given.quick else ATTACKS
    rules = ["mean", "median"] if given.quick else list(RULES)
    liars = LIARS / CLIENTS
    settings: dict[str, dict[str, Any]] = {
        _key(partition, attack, rule): {
            "data.partition": PARTITIONS[partition],
            "world": "everyone"
            if attack == "none"
            else {"name": "lying", "how": attack, "fraction": liars},
            "combine": RULES[rule],
        }
        for partition, attack, rule in itertools.product(PARTITIONS, attacks, rules)
    }
    base = harness.small(given, CLIENTS, rounds=5)
    runs = harness.carried_out(given, base, settings)
    return base, settings, runs, _found(runs, attacks, rules)


def _found(runs: Runs, attacks: Sequence[str], rules: Sequence[str]) -> Findings:
    cells = list(itertools.product(PARTITIONS, attacks, rules))
    values = {
        (measure, *cell): [read(run) for run in runs[_key(*cell)]]
        for measure, read in MEASURES.items()
        for cell in cells
    }
    spreads = {key: spread(those) for key, those in values.items()}
    rows: list[dict[str, object]] = [
        {"partition": p, "attack": a, "rule": r} | {m: values[m, p, a, r] for m in MEASURES}
        for p, a, r in cells
    ]
    text = "".join(
        f"\n{measure.capitalize()}, {partition}:\n\n"
        + harness.table(
            ["", *attacks],
            [
                [rule, *(harness.percent(spreads[measure, partition, a, rule]) for a in attacks)]
                for rule in rules
            ],
        )
        for measure, partition in itertools.product(MEASURES, PARTITIONS)
    )

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(PARTITIONS), len(MEASURES), squeeze=False)
        for (i, partition), (j, measure) in itertools.product(
            enumerate(PARTITIONS), enumerate(MEASURES)
        ):
            means = [[spreads[measure, partition, a, r].mean for a in attacks] for r in rules]
            harness.heat(grid[i][j], means, attacks, rules, f"{measure}, {partition}", j == 0)

    return Findings(rows, text, drawing.render(draw, (7.6, 5.6)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return harness.main("robust_rules", __doc__ or "", 3, _do, arguments)


if __name__ == "__main__":
    sys.exit(main())
