"""A run folder to its report: `python -m fedkd.report RUN [RUN ...]`.

A report is a pure function of the files of the run: it holds no time, path or host that the run did
not write down, and needs neither torch nor a runtime to be made. One run gives `report.json`,
`report.md` and `pictures/`; several are grouped by their experiment without its seeds and laid side
by side, as mean and standard deviation over seeds.

The student is shown after the last round and at its best round on the validation split, never at
its best on the test set. Accuracies on the global test set, on the public set and on the clients'
own distributions stand in columns of their own, since they are figures about different data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.comparison import several_runs
from fedkd.runfolder import ReportError, Run, read
from fedkd.summary import Summary, summarise, summary_of
from fedkd.tables import one_run, table_of

if TYPE_CHECKING:
    from fedkd.pictures import Curves


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
    """
    from fedkd import pictures

    it, out = read(run), out or run
    summary = summary_of(it)
    drawn: dict[str, bytes] = {}
    curves = _curves(it, summary)
    if curves.student or curves.ensemble or curves.teachers:
        drawn["accuracy"] = pictures.accuracy_png(curves)
    if it.partition:
        part = it.partition
        holdings = pictures.Holdings(part.histogram, part.classes, part.models)
        drawn["partition"] = pictures.partition_png(holdings)
    text = markdown([summary])
    for name, png in drawn.items():
        _replace(out / "pictures" / f"{name}.png", png)
        text += f"\n![{name.capitalize()}](pictures/{name}.png)\n"
    _replace(out / "report.json", _json(asdict(summary)))
    _replace(out / "report.md", text.encode())
    return out / "report.md"


def _curves(run: Run, summary: Summary) -> Curves:
    from fedkd.pictures import Curves

    yard = run.yardsticks
    levels = [("Pooled", yard.pooled.test)] if yard.pooled else []
    levels += [("True labels", yard.labels.test)] if yard.labels else []
    levels += [("Local-only, mean", row.test or 0.0) for row in summary.rows if row.key == "local"]
    return Curves(
        student=[(r.round, r.student.test) for r in run.records if r.student],
        ensemble=[(r.round, r.ensemble.test) for r in run.records if r.ensemble],
        teachers=[
            (r.round, statistics.fmean(r.teachers.test), min(r.teachers.test), max(r.teachers.test))
            for r in run.records
            if r.teachers
        ],
        yardsticks=levels,
    )


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for what cannot be reported on."""
    parser = argparse.ArgumentParser(prog="python -m fedkd.report", description=_PURPOSE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write here, not into the run")
    given = parser.parse_args(arguments)
    try:
        print(_report(given.runs, given.out), end="")
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or given.out or given.runs[0]
        print(f"report: {where}: {error.strerror}; --out DIR writes elsewhere", file=sys.stderr)
        return 2
    return 0


_PURPOSE = "Report on a run; several runs are laid side by side, grouped by their experiment."


def _report(runs: Sequence[Path], out: Path | None) -> str:
    if len(runs) == 1:
        return write(runs[0], out).read_text(encoding="utf-8")
    summaries = [summarise(run) for run in runs]
    text = markdown(summaries)
    if out:
        _replace(out / "report.json", _json([asdict(summary) for summary in summaries]))
        _replace(out / "report.md", text.encode())
    return text


if __name__ == "__main__":
    sys.exit(main())
