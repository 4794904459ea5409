"""A run folder to its report: `python -m fedkd.report RUN [RUN ...]`.

A report is a pure function of the files of the run: it holds no time, path or host that the run did
not write down (but the command that resumes an unfinished run), and needs neither torch nor a
runtime to be made. One run gives `report.json`, `report.md` and `pictures/`; several are grouped by
their experiment without its seeds and laid side by side, as mean and standard deviation over seeds.

The student is shown after the last round and at its best round on the validation split, never at
its best on the test set. Accuracies on the global test set, on the public set and on the clients'
own distributions stand in columns of their own, since they are figures about different data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd import disk, shell
from fedkd.chronicle import WHOSE
from fedkd.comparison import grouped, several_runs
from fedkd.course import aim, race, timed
from fedkd.recorded import Record, Run
from fedkd.runfolder import ReportError, read
from fedkd.summary import Summary, summarise, summary_of
from fedkd.tables import one_run, table_of

if TYPE_CHECKING:
    from fedkd.pictures import Axis, Curves


def final_table(run: Path) -> list[tuple[str, ...]]:
    """The table of a run, its first entry the head. Raises `ReportError`."""
    return table_of(summarise(run))


def markdown(summaries: Sequence[Summary]) -> str:
    """One run in full, or several side by side, grouped by experiment."""
    if not summaries:
        raise ReportError("markdown: at least one run should be given, found none")
    return one_run(summaries[0]) if len(summaries) == 1 else several_runs(summaries)


def write(run: Path, out: Path | None = None) -> Path:
    """Write `report.json`, `report.md` and `pictures/` into the run folder, or into `out`.

    Returns the path of `report.md`. What is there of an earlier report is replaced, nothing else.
    Raises `ReportError` for what is no run, `DiskError` where nothing can be written.
    """
    from fedkd import holdings, pictures

    it, out = read(run), out or run
    summary = summary_of(it)
    drawn: dict[str, tuple[str, bytes]] = {}
    curves = _curves(it, summary, "Round")
    if curves.student or curves.ensemble or curves.teachers:
        drawn["accuracy"] = "Accuracy", pictures.accuracy_png(curves)
    if timed(summary.moments):
        curves = _curves(it, summary, "Virtual seconds")
        if curves.student or curves.ensemble or curves.teachers:
            drawn["time"] = "Accuracy over virtual time", pictures.accuracy_png(curves)
    if it.partition:
        part = it.partition
        held = holdings.Holdings(part.histogram, part.classes, part.models)
        drawn["partition"] = "Partition", holdings.partition_png(held)
    return _written(out, asdict(summary), markdown([summary]), drawn)


def _curves(run: Run, summary: Summary, axis: Axis) -> Curves:
    from fedkd.pictures import Curves

    def place(record: Record) -> float:
        return record.round if axis == "Round" else record.virtual_s or 0.0

    shown = [r for r in run.records if axis == "Round" or r.virtual_s is not None]
    teachers = [(r, [x for x in r.teachers.test if x is not None]) for r in shown if r.teachers]
    yard = run.yardsticks
    levels = [("Pooled", yard.pooled.test)] if yard.pooled else []
    levels += [("True labels", yard.labels.test)] if yard.labels else []
    levels += [("Local-only, mean", row.test or 0.0) for row in summary.rows if row.key == "local"]
    return Curves(
        student=[(place(r), r.student.test) for r in shown if r.student],
        ensemble=[(place(r), r.ensemble.test) for r in shown if r.ensemble],
        teachers=[
            (place(r), statistics.fmean(known), min(known), max(known))
            for r, known in teachers
            if known
        ],
        yardsticks=levels if axis == "Round" else [],  # they have no time
        axis=axis,
    )


def _race(summaries: Sequence[Summary]) -> dict[str, tuple[str, bytes]]:
    """The picture of several runs over virtual time, where there are any with a clock."""
    from fedkd.pictures import Trial, trials_png

    groups, _ = grouped(summaries)
    drawn = {}
    for who, whose in WHOSE.items():
        trials = []
        for group in groups:
            runs = [r.moments for r in group.runs if timed(r.moments) and aim(r.moments) == who]
            lines = [race(passed) for passed in runs]
            if any(lines):
                trials.append(Trial(group.title, lines))
        if trials:
            title = whose[0].upper() + whose[1:]
            drawn[f"time-{who}"] = f"{title} over virtual time", trials_png(trials, title)
    return drawn


def _written(out: Path, content: object, text: str, drawn: Mapping[str, tuple[str, bytes]]) -> Path:
    for name, (title, png) in drawn.items():
        _replace(out, f"pictures/{name}.png", png)
        text += f"\n![{title}](pictures/{name}.png)\n"
    _replace(out, "report.json", _json(content))
    _replace(out, "report.md", text.encode())
    return out / "report.md"


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _replace(out: Path, name: str, content: bytes) -> None:
    """A file of the report as a whole, so that no reader meets half of one."""
    path = out / name
    with disk.refusing(path.parent, "made"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent != out and path.parent.is_symlink():
        raise disk.DiskError(
            f"disk: {path.parent} should be a folder, found a symbolic link; nothing is written"
            " through links: remove it"
        )
    disk.write_atomically(path, content, durable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for what cannot be reported on."""
    parser = argparse.ArgumentParser(prog=shell.typed("report"), description=_PURPOSE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write here, not into the run")
    given = parser.parse_args(arguments)
    try:
        print(_report(given.runs, given.out), end="")
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except disk.DiskError as error:
        print(f"report: {error}; --out DIR writes elsewhere", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or given.runs[0]
        print(f"report: {where}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def side_by_side(runs: Sequence[Path]) -> str:
    """Several runs as tables in Markdown, grouped by their experiment."""
    return markdown([summarise(run) for run in runs])


_PURPOSE = "Report on a run; several runs are laid side by side, grouped by their experiment."


def _report(runs: Sequence[Path], out: Path | None) -> str:
    if len(runs) == 1:
        return write(runs[0], out).read_text(encoding="utf-8")
    summaries = [summarise(run) for run in runs]
    text = markdown(summaries)
    if not out:
        return text
    content = [asdict(summary) for summary in summaries]
    return _written(out, content, text, _race(summaries)).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
