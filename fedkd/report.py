"""A run folder to its report: `python -m fedkd.report RUN [RUN ...]`, or of a whole sweep.

A report is a pure function of the files of the run: it holds no time, path or host that the run did
not write down (but the command that resumes an unfinished run), and needs neither torch nor a
runtime to be made. One run is told in full; several are grouped by their experiment without its
seeds and laid side by side, as mean and standard deviation over seeds.

The student is shown after the last round and at its best round on the validation split, never at
its best on the test set. Accuracies on the global test set, on the public set and on the clients'
own distributions stand in tables of their own, since they are figures about different data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedkd import disk, shell
from fedkd.config import ConfigError
from fedkd.faults import did_you_mean
from fedkd.phrases import inert, plain
from fedkd.reporting import document, several, single, tabular
from fedkd.reporting.document import Document
from fedkd.reporting.settings import Trial
from fedkd.runfolder import ReportError, read
from fedkd.summary import Row as Row
from fedkd.summary import Summary as Summary
from fedkd.summary import summarise as summarise
from fedkd.summary import summary_of
from fedkd.tables import table_of

FORMATS = ("md", "tex", "csv", "html")
USUAL = ("md", "html")


def final_table(run: Path) -> list[tuple[str, ...]]:
    """The table of a run, its first entry the head. Raises `ReportError`."""
    return table_of(summarise(run))


def guaranteed(run: Path) -> str:
    """What a run guarantees, in a line. Raises `ReportError`."""
    return single.guaranteed(read(run))


def markdown(runs: Sequence[Path], baseline: str | None = None) -> str:
    """The text of a report, nothing written. Raises `ReportError`."""
    return document.markdown(_told(_given(runs), baseline))


def write(run: Path, out: Path | None = None, formats: Sequence[str] = USUAL) -> Path:
    """Report on one run, into its own folder or into `out`.

    Writes `report.json`, and by format: `md` report.md with pictures/, `tex` report.tex with
    pictures/, `csv` a file a table in tables/, `html` report.html. Returns the path of the first
    format's file. What is there of an earlier report is replaced, nothing else. Raises
    `ReportError` for what is no run, `DiskError` where nothing can be written.
    """
    return across([run], out or run, formats)


def across(
    runs: Sequence[Path],
    out: Path,
    formats: Sequence[str] = USUAL,
    baseline: str | None = None,
) -> Path:
    """Report on several runs, or on sweep folders, side by side; as `write` does.

    `baseline` names the setting that all others are compared with. Raises `ReportError` also where
    the runs are not of one data set.
    """
    chosen, given = checked(formats), _given(runs)
    return _written(Path(out), _told(given, baseline), given.content, chosen)


def _trial(folder: Path) -> Trial:
    run = read(folder)
    return Trial(run, summary_of(run))


@dataclass(frozen=True, slots=True)
class _Given:
    """Every run that was given, sweeps by the runs in them, and what was left out of these."""

    trials: tuple[Trial, ...]
    notes: tuple[str, ...]

    @property
    def content(self) -> object:
        """`report.json`: the figures of one run, or a list of those of several."""
        summaries = [asdict(trial.summary) for trial in self.trials]
        return summaries[0] if len(summaries) == 1 else summaries


def _given(places: Sequence[Path]) -> _Given:
    """Raises `ReportError` where there is nothing to report on."""
    if not places:
        raise ReportError("runs: at least one should be given, found none; name a run folder")
    trials, notes = list[Trial](), list[str]()
    for place in map(Path, places):
        if is_sweep(place):
            _sweep(place, trials, notes)
        else:
            trials.append(_trial(place))
    return _Given(tuple(trials), tuple(notes))


def _sweep(place: Path, trials: list[Trial], notes: list[str]) -> None:
    """The runs of a sweep that have begun; of one that cannot be read, and of others, a note."""
    folders = sorted(path for path in place.glob("runs/[!.]*") if path.is_dir())
    begun = [path for path in folders if (path / "run.json").is_file()]
    if not begun:
        raise ReportError(
            f"{place}: should be a sweep of which runs have begun, found {len(folders)} run folders"
            f" and none that has; carry it out first: {shell.typed('sweep')} --resume {place}"
        )
    if waiting := len(folders) - len(begun):
        notes.append(f"{waiting} of {len(folders)} runs of the sweep have not begun.")
    for folder in begun:
        try:
            trials.append(_trial(folder))
        except ReportError as error:
            notes.append(f"Left out, since it cannot be read: {inert(plain(str(error)))}")
    if not trials:
        raise ReportError(f"{place}: none of its {len(begun)} runs can be read: {notes[-1]}")


def is_sweep(place: Path) -> bool:
    """Whether a folder holds a sweep and not a run."""
    return not (place / "run.json").is_file() and any(
        (place / name).is_file() for name in ("sweep.yaml", "sweep.json")
    )


def _told(given: _Given, baseline: str | None = None) -> Document:
    if len(given.trials) > 1:
        return several.document(given.trials, baseline, given.notes)
    if baseline is not None:
        raise ReportError(
            "--baseline: should come with several runs, found one; leave it out or add runs"
        )
    (trial,) = given.trials
    return single.document(trial.run, trial.summary, given.notes)


def _written(out: Path, told: Document, content: object, formats: Sequence[str]) -> Path:
    """The files of a report, each as a whole; the first format's own is returned."""
    made: dict[str, Path] = {}
    if {"md", "tex"} & set(formats):
        from fedkd import pictures

        for chart in told.charts:
            _replace(out, f"pictures/{chart.key}.png", pictures.png(chart))
    for form in formats:
        if form == "csv":
            for table in told.tables:
                made.setdefault(
                    form, _replace(out, f"tables/{table.key}.csv", tabular.as_csv(table))
                )
            continue
        if form == "html":
            from fedkd.reporting import page

            text = page.html(told)
        else:
            text = document.latex(told) if form == "tex" else document.markdown(told, True)
        made[form] = _replace(out, f"report.{form}", text)
    stored = _replace(out, "report.json", _json(content))
    return made.get(formats[0], stored)


def checked(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats asked for, each once. Raises `ConfigError` for one that there is not."""
    for form in formats:
        if form not in FORMATS:
            raise ConfigError(
                f"--format: should be one or more of {', '.join(FORMATS)}, found {form!r}"
                f"{did_you_mean(form, FORMATS)}; several are written as --format md,html"
            )
    if not formats:
        raise ConfigError(f"--format: should name one or more of {', '.join(FORMATS)}, found none")
    return tuple(dict.fromkeys(formats))


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _replace(out: Path, name: str, content: str | bytes) -> Path:
    """A file of the report as a whole, so that no reader meets half of one."""
    path = out / name
    with disk.refusing(path.parent, "made"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent != out and path.parent.is_symlink():
        raise disk.DiskError(
            f"disk: {path.parent} should be a folder, found a symbolic link; nothing is written"
            " through links: remove it"
        )
    raw = content.encode() if isinstance(content, str) else content
    disk.write_atomically(path, raw, durable=False)
    return path


_EPILOG = """\
examples:
  python -m fedkd.report runs/A                     the report of a run, into its folder
  python -m fedkd.report runs/A --format html --out here   only the page, elsewhere
  python -m fedkd.report runs/A runs/B runs/C       side by side, on the terminal
  python -m fedkd.report runs/A runs/B --out both   the same with pictures and a page
  python -m fedkd.report sweeps/S                   all runs of a sweep, into its folder
  python -m fedkd.report sweeps/S --baseline 1 --format md,tex,csv,html

formats: md (report.md, pictures/), tex (report.tex to be \\input, pictures/), csv (tables/),
html (report.html, one page that needs nothing else). report.json is always written.
SETTING is a setting's number, its name or a part of it that only one has.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for what cannot be reported on."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("report"),
        description="Report on a run, on several side by side, or on a sweep. Settings are the\n"
        "runs that are equal but for their seeds; each gets a mean over its seeds.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN | SWEEP", help="a run folder or a sweep folder")
    add("--out", type=Path, metavar="DIR", help="write here, not into the run or the sweep")
    add("--format", metavar="md,tex,csv,html", help=f"what to write ({','.join(USUAL)})")
    add("--baseline", metavar="SETTING", help="compare every other setting with this one")
    add("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _do(given: argparse.Namespace) -> int:
    try:
        asked = given.format
        formats = checked(USUAL if asked is None else [f.strip() for f in asked.split(",")])
        print(_report(given.runs, given.out, formats, given.baseline, asked is not None), end="")
    except ReportError as error:
        raise ConfigError(str(error)) from error
    except disk.DiskError as error:
        raise ConfigError(f"{error}; --out DIR writes elsewhere") from error
    except OSError as error:
        where = error.filename or given.runs[0]
        raise ConfigError(f"{where}: {error.strerror}; it cannot be read") from error
    return 0


def _report(
    places: Sequence[Path],
    out: Path | None,
    formats: Sequence[str],
    baseline: str | None,
    files_wanted: bool,
) -> str:
    """What the command prints: the text, then where files were written."""
    if len(places) == 1:
        out = out or places[0]
    if out is None and files_wanted:
        raise ConfigError(
            "--format: should come with --out DIR where several runs are given, found no place to"
            " write to; add --out DIR"
        )
    given = _given(places)
    told = _told(given, baseline)
    text = document.markdown(told)
    if out is not None:
        first = _written(out, told, given.content, formats)
        text += f"\nReport: {shell.near(first.absolute())}\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
