"""Which runs repeat each other, what sets the others apart, and which may be compared at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedkd import shell
from fedkd.faults import did_you_mean
from fedkd.phrases import A_SENTENCE, inert, plain, ranges
from fedkd.recorded import Run
from fedkd.runfolder import ReportError
from fedkd.summary import Key, Summary
from fedkd.tables import Column

_MOST_NAMED = 3  # of the keys that differ, in a title


@dataclass(frozen=True, slots=True)
class Trial:
    """A run as read, and its figures."""

    run: Run
    summary: Summary

    @property
    def ground(self) -> tuple[int, str]:
        """What two runs of a pair share: the training seed, and data with their splits."""
        about, experiment = self.summary.about, self.summary.experiment
        if about.data:
            return about.seed, about.data
        own = {k: v for k, v in experiment.items() if k.split(".")[0] in ("data", "clients")}
        return about.seed, json.dumps([about.data_seed, own], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """Complete runs whose experiments are equal but for the seeds, no seeds twice."""

    title: str
    trials: tuple[Trial, ...]
    unlike: tuple[str, ...] = ()  # the lines of its experiment that not all settings share

    @property
    def summaries(self) -> tuple[Summary, ...]:
        return tuple(trial.summary for trial in self.trials)

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(f"{s.about.seed}/{s.about.data_seed}" for s in self.summaries)

    @property
    def labelled(self) -> bool:
        """Whether true labels of the public set are told to the method."""
        first = self.summaries[0]
        told = any(
            value == "true" and key.startswith("data.public") and key.endswith("labelled")
            for key, value in first.experiment.items()
        )
        return told or any(r.labels for r in first.rows if r.key in ("student", "ensemble"))

    def figures(self, key: Key, column: Column) -> list[float]:
        """What the runs have in one cell of the table."""
        return list(self.by_ground(key, column).values())

    def by_ground(self, key: Key, column: Column) -> dict[object, float]:
        """The same by what each run stood on."""
        return {
            trial.ground: float(cell)
            for trial in self.trials
            for row in trial.summary.rows
            if row.key == key and (cell := getattr(row, column)) is not None
        }


def settings(trials: Sequence[Trial]) -> tuple[list[Setting], list[str]]:
    """Settings as they appear, runs by seeds; notes on what was left out or is unequal.

    Raises `ReportError` where nothing makes the runs comparable.
    """
    _refuse_strangers(trials)
    notes: list[str] = []
    found: dict[tuple[tuple[str, str], ...], dict[tuple[int, int], Trial]] = {}
    for trial in trials:
        summary = trial.summary
        about = summary.about
        who = f"{inert(about.name)} with seeds {about.seed}/{about.data_seed}"
        if not summary.complete:
            further = f" Go on with it: `{summary.resume}`" if summary.resume else ""
            done = f"{summary.rounds} of {summary.planned} rounds are recorded"
            notes.append(f"{who} is not complete and is left out of the means ({done}).{further}")
            continue
        if any(row.clients is not None for row in summary.rows):
            notes.append(f"{who}: teachers of some clients could not be evaluated.")
        runs = found.setdefault(tuple(summary.experiment.items()), {})
        earlier = runs.setdefault((about.seed, about.data_seed), trial)
        if earlier is not trial:
            equal = "" if earlier.summary.rows == summary.rows else ", with other figures"
            notes.append(f"{who} was given twice{equal}; the first is counted.")
    experiments = [dict(key) for key in found]
    unlike = _unlike(experiments)
    made, warned = [], dict[str, list[int]]()
    for number, (own, by_seeds) in enumerate(zip(experiments, found.values(), strict=True), 1):
        those = tuple(trial for _, trial in sorted(by_seeds.items(), key=lambda pair: pair[0]))
        title = _title(those[0].summary, own, unlike)
        title = f"[{number}] {title}" if len(found) > 1 else title
        made.append(
            Setting(title, those, tuple(f"{key}: {own[key]}" for key in unlike if key in own))
        )
        for text in dict.fromkeys(text for t in those for text in t.run.about.cautions):
            warned.setdefault(text, []).append(number)
        kinds = {json.dumps([dict(t.run.about.versions), t.run.about.device]) for t in those}
        if len(kinds) > 1:
            notes.append(f"{inert(title)}: its runs were made with different versions or devices.")
    for text, numbers in warned.items():
        whose = f" of [{ranges(numbers)}]" if len(found) > 1 else ""
        notes.append(f"Caution{whose}: {inert(plain(text, A_SENTENCE))}.")
    if len({setting.seeds for setting in made}) > 1:
        notes.append("The settings ran on different seeds, which is part of their difference.")
    if len({frozenset(t.ground[1] for t in setting.trials) for setting in made}) > 1:
        notes.append(
            "The settings do not all stand on the same data and splits: only runs that share"
            " both are compared in pairs."
        )
    return made, notes


def chosen(made: Sequence[Setting], baseline: str) -> Setting:
    """The setting meant: by number, title or an unmistakable part of it. Raises `ReportError`."""
    for number, setting in enumerate(made, 1):
        if baseline in (str(number), f"[{number}]", setting.title):
            return setting
    near = [setting for setting in made if baseline.lower() in setting.title.lower()]
    if len(near) == 1:
        return near[0]
    titles = [setting.title for setting in made]
    raise ReportError(
        f"--baseline: should name one setting, found {baseline!r}, which"
        f" {'none' if not near else str(len(near))} of them has in its name"
        f"{did_you_mean(baseline, titles)}; give one of {', '.join(titles)}, or its number"
    )


def _refuse_strangers(trials: Sequence[Trial]) -> None:
    first = trials[0].summary
    for trial in trials[1:]:
        other = trial.summary
        unlike = [
            f"{what} {mine} in {first.about.name} and {its} in {other.about.name}"
            for what, mine, its in (
                ("data.source", _source(first), _source(other)),
                ("classes", _classes(first), _classes(other)),
            )
            if mine != its
        ]
        if unlike and (_source(first) != _source(other) or (first.classes and other.classes)):
            raise ReportError(
                "runs: should be of one data set with the same classes to stand in one table,"
                f" found {'; '.join(unlike)}; give runs of one data set, or report on each alone:"
                f" {shell.typed('report')} RUN"
            )


def _source(summary: Summary) -> str:
    return summary.experiment.get("data.source.name", "none")


def _classes(summary: Summary) -> str:
    names = ", ".join(summary.classes[:5]) + ", …" * (len(summary.classes) > 5)
    return f"{len(summary.classes)} ({names})"


def _unlike(experiments: Sequence[Mapping[str, str]]) -> list[str]:
    keys = sorted({key for experiment in experiments for key in experiment})
    return [key for key in keys if len({experiment.get(key) for experiment in experiments}) > 1]


def _title(summary: Summary, own: Mapping[str, str], unlike: Sequence[str]) -> str:
    """The method where methods differ, then the other keys that do, by their last parts."""
    parts = [summary.strategy] if any(k.split(".")[0] == "strategy" for k in unlike) else []
    for key in unlike:
        steps = [step for step in key.split(".") if not step.isdigit()]
        if steps[0] != "strategy" and key in own:
            if steps[-1] == "name":
                steps.pop()
            parts.append(f"{'.'.join(steps[-2:])}={own[key].strip(chr(34))}")
    if not parts:
        return summary.strategy
    return ", ".join(parts[:_MOST_NAMED]) + ", …" * (len(parts) > _MOST_NAMED)
