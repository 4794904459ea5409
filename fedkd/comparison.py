"""Several runs side by side: grouped by experiment, mean and standard deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedkd.chronicle import WHOSE
from fedkd.course import LEVELS, Who, aim
from fedkd.phrases import NOTHING, grid, size_text, time_text
from fedkd.summary import Key, Summary
from fedkd.tables import ACCURACIES, LABELS, Column


@dataclass(frozen=True, slots=True)
class Group:
    """Complete runs whose experiments are equal but for the seeds, no seeds twice."""

    title: str
    runs: tuple[Summary, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(f"{run.about.seed}/{run.about.data_seed}" for run in self.runs)

    def figures(self, key: Key, column: Column) -> list[float]:
        """What the runs have in one cell of the table."""
        cells = [getattr(row, column) for run in self.runs for row in run.rows if row.key == key]
        return [float(cell) for cell in cells if cell is not None]


def grouped(summaries: Sequence[Summary]) -> tuple[list[Group], list[str]]:
    """Groups as they appear, runs by seeds; notes on what was left out or is unequal."""
    notes: list[str] = []
    found: dict[tuple[tuple[str, str], ...], dict[tuple[int, int], Summary]] = {}
    for summary in summaries:
        about = summary.about
        who = f"{about.name} with seeds {about.seed}/{about.data_seed}"
        if not summary.complete:
            further = f" Go on with it: `{summary.resume}`" if summary.resume else ""
            notes.append(f"{who} is not complete and is left out of the means.{further}")
            continue
        if any(row.clients is not None for row in summary.rows):
            notes.append(f"{who}: teachers of some clients could not be evaluated.")
        runs = found.setdefault(tuple(summary.experiment.items()), {})
        earlier = runs.setdefault((about.seed, about.data_seed), summary)
        if earlier is not summary:
            equal = "" if earlier.rows == summary.rows else ", with other figures"
            notes.append(f"{who} was given twice{equal}; the first is counted.")
    many = len(found) > 1
    groups = []
    for number, by_seeds in enumerate(found.values(), 1):
        runs_ = tuple(run for _, run in sorted(by_seeds.items()))
        title = f"[{number}] {runs_[0].strategy}" if many else runs_[0].strategy
        groups.append(Group(title, runs_))
        if len({json.dumps([dict(r.about.versions), r.about.device]) for r in runs_}) > 1:
            notes.append(f"{title}: its runs were made with different versions or devices.")
    if len({group.seeds for group in groups}) > 1:
        notes.append("The groups ran on different seeds, which is part of their difference.")
    return groups, notes


def several_runs(summaries: Sequence[Summary]) -> str:
    """Markdown with one column for every group of repetitions."""
    groups, notes = grouped(summaries)
    parts = [f"# {len(summaries)} runs\n", *(f"> **{note}**\n" for note in notes)]
    if not groups:
        return "\n".join([*parts, "There is no complete run to compare.\n"])
    for column, title in ACCURACIES.items():
        lines = [(LABELS[key], *_accuracies(groups, key, column)) for key in LABELS]
        parts += _compared(f"{title}, %", groups, lines)
    arrived = [line for who in WHOSE for line in _arrivals(groups, who)]
    parts += _compared("Virtual seconds to an accuracy on the global test set", groups, arrived)
    parts += _compared("Cost", groups, _costs(groups))
    parts.append(
        "Mean ± standard deviation over seeds, n: number of seeds. Worst: the lowest client of a "
        "run. Best on validation never looks at the test set."
        + " Virtual seconds: to the end of the first evaluated round with at least this accuracy,"
        " over the runs that get there; n=1 of 2 where one does not." * bool(arrived) + "\n"
    )
    for group in groups:
        parts.append(f"- {group.title}: seeds (training/data) {', '.join(group.seeds)}")
        parts += [f"  - {difference}" for difference in _peculiar(group, groups)]
    return "\n".join(parts) + "\n"


def _compared(
    title: str, groups: Sequence[Group], lines: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
    measured = [line for line in lines if set(line[1:]) != {NOTHING}]
    head = (title, *(group.title for group in groups))
    return (grid([head, *measured]),) if measured else ()


def _accuracies(groups: Sequence[Group], key: Key, column: Column) -> list[str]:
    sign = "+" if key == "gap" else ""
    show = (lambda x: f"{100 * x:{sign}.1f}"), (lambda x: f"{100 * x:.1f}")
    return [_cell(group.figures(key, column), *show) for group in groups]


def _costs(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    kinds: tuple[tuple[str, Key, Column], ...] = (
        ("Gradient steps, server", "student", "steps"),
        ("Gradient steps, clients", "ensemble", "steps"),
        ("Labels used by the server", "student", "labels"),
    )
    lines = []
    for label, key, column in kinds:
        cells = (_cell(group.figures(key, column), _whole, _whole) for group in groups)
        lines.append((label, *cells))
    for label, direction in (("Bytes up", "up"), ("Bytes down", "down")):
        totals = [[sum(getattr(b, direction) for b in r.bytes) for r in g.runs] for g in groups]
        lines.append((label, *(_cell(total, size_text, size_text) for total in totals)))
    ends = [[m for run in g.runs for m in run.moments[-1:]] for g in groups]
    spent = [[m.seconds for m in last if m.seconds] for last in ends]
    lines.append(("Virtual seconds", *(_cell(times, time_text, time_text) for times in spent)))
    lost = [[sum(s.absent + s.late + s.dropped for s in r.missing) for r in g.runs] for g in groups]
    failed = [[sum(i.times for i in r.incidents) for r in g.runs] for g in groups]
    for label, counts in (("Clients missing, all rounds", lost), ("Failures", failed)):
        if any(map(any, counts)):
            lines.append((label, *(_cell(count, _mean, _mean) for count in counts)))
    return lines


def _arrivals(groups: Sequence[Group], who: Who) -> list[tuple[str, ...]]:
    """Virtual seconds to each accuracy, over those runs of a group that get there."""
    lines = []
    for place, level in enumerate(LEVELS):
        cells = []
        for group in groups:
            runs = [run for run in group.runs if run.arrivals and aim(run.moments) == who]
            times = [run.arrivals[place].seconds for run in runs]
            known = [seconds for seconds in times if seconds is not None]
            cell = _cell(known, time_text, time_text)
            few = known and len(known) < len(runs)
            cells.append(cell.replace(")", f" of {len(runs)})") if few else cell)
        if set(cells) != {NOTHING}:
            lines.append((f"{100 * level:.0f} % of {WHOSE[who]}", *cells))
    return lines


def _mean(count: float) -> str:
    return f"{count:,.1f}"


def _whole(count: float) -> str:
    return f"{count:,.0f}"


def _cell(
    values: Sequence[float], mean: Callable[[float], str], deviation: Callable[[float], str]
) -> str:
    if not values:
        return NOTHING
    spread = f" ± {deviation(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{mean(statistics.fmean(values))}{spread} (n={len(values)})"


def _peculiar(group: Group, groups: Sequence[Group]) -> list[str]:
    """The lines of a group's experiment that are not the same in all groups."""
    own, all_ = group.runs[0].experiment, [other.runs[0].experiment for other in groups]
    keys = sorted({key for experiment in all_ for key in experiment})
    unlike = [key for key in keys if len({experiment.get(key) for experiment in all_}) > 1]
    return [f"{key}: {own[key]}" for key in unlike if key in own]
