"""Many runs over methods, parameters and seeds: `python -m fedkd.sweep CONFIG key=a,b key=0..4`.

The module can be called as well: `fedkd.sweep("digits", {"seed": range(3)})`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from fedkd import axes, points, shell
from fedkd.config import ConfigError

if TYPE_CHECKING:
    from fedkd.points import Grid
    from fedkd.sweeps import Sweep

_EPILOG = """\
examples:
  python -m fedkd.sweep seed=0..4                          the default experiment, five seeds
  python -m fedkd.sweep strategy.name=A,B seed=0..4        a grid: two methods, five seeds each
  python -m fedkd.sweep strategy.name=A,B strategy.temperature=0.1,0.5 seed=0..4
  python -m fedkd.sweep my.yaml rounds=3,9 --explain       what would be run, and nothing more
  python -m fedkd.sweep digits seed=0..2 --list sets.yaml  a list of settings, each with 3 seeds
  python -m fedkd.sweep --resume runs/A                    do what is left of a sweep
  python -m fedkd.report runs/A                            tables and pictures over seeds

key=a,b parts values at commas outside of brackets and quotes; key=0..4 is 0, 1, 2, 3, 4; key=value
is the same for all runs. A temperature goes to the methods that have one.
--list is a YAML list of mappings: - {strategy: A, rounds: 20}
exit codes: 0 done, 1 a run has failed (the others are done), 2 a fault in what was asked for,
130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _parser().parse_intermixed_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=shell.typed("sweep"),
        description="Run an experiment over every combination of values, several at once on one\n"
        "warm session, into one folder. What is finished is never done again.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="CONFIG | key=values",
        help="a YAML file or a built-in config (digits if none is given),"
        " overrides and axes")  # fmt: skip
    add("--out", metavar="FOLDER",
        help="the folder of the sweep (runs/NAME-sweep-DATE-TIME); one with a sweep over the same"
        " config is gone on with")  # fmt: skip
    add("--resume", metavar="SWEEP", help="do what is left of the sweep in this folder")
    add("--list", metavar="FILE", help="a YAML list of settings, each run with the whole grid")
    add("--at-once", metavar="N", type=int,
        help="how many runs at a time (as many as the cores allow)")  # fmt: skip
    add("--runtime", metavar="ray|local",
        help="ray: processes; local: here, one run after the other, for breakpoints")  # fmt: skip
    add("--fail-fast", action="store_true", help="stop at the first run that fails")
    add("--explain", action="store_true", help="list the runs and train nothing")
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="a traceback for every failure")
    return parser


def _do(given: argparse.Namespace) -> int:
    if given.at_once is not None and given.at_once < 1:
        raise ConfigError(f"--at-once: should be at least 1, found {given.at_once}; leave it out")
    place = None if given.out is None else Path(given.out)
    if given.resume is not None:
        grid, asked, place = _stored(given)
    else:
        grid, asked = _asked(given)
    for key, names in grid.left_out.items():
        have = "has" if len(names) == 1 else "have"
        told = f"{key} is left out for {', '.join(names)}, which {have} none"
        print(f"fedkd: {told}", file=sys.stderr)
    if given.explain:
        for point in grid.points:
            print(point.text or "the config as it is")
        print(
            f"\n{len(grid.points)} runs of up to {max(p.config.rounds for p in grid.points)} rounds"
        )
        return 0
    from fedkd import board

    with board.watching(given.quiet) as looking:
        looking.stage("load PyTorch")
        from fedkd import sweeps

        done = sweeps.carry_out(grid, asked, place, given.at_once, given.fail_fast, looking)
    return _shown(done)


def _asked(given: argparse.Namespace) -> tuple[Grid, dict[str, Any]]:
    """What the words ask for, and the same as it is kept in the folder."""
    names = [w for w in given.words if "=" not in w]
    if len(names) > 1:
        raise ConfigError(
            f"command line: there should be one CONFIG, found {' and '.join(names)};"
            " an axis reads key=a,b, without spaces"
        )
    overrides, varied = axes.read([w for w in given.words if "=" in w])
    overrides = [o for o in overrides if not o.startswith("execution.out=")]
    if given.runtime is not None:
        overrides.append(f"execution.runtime={json.dumps(given.runtime)}")
    sets = [{}] if given.list is None else _listed(Path(given.list))
    config = names[0] if names else "digits"
    grid = points.grid(config, overrides, varied, sets)
    vary = {axis.key: [yaml.safe_load(v) for v in axis.values] for axis in varied}
    return grid, {"config": points.base_of(config, overrides), "vary": vary, "sets": sets}


def _listed(path: Path) -> list[dict[str, Any]]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"--list: {path} should be a readable YAML file, found: {said}; correct the path or it"
        ) from None
    if not isinstance(found, list) or not found or not all(isinstance(f, dict) for f in found):
        raise ConfigError(
            f"--list: {path} should hold a list of mappings, as in - {{strategy: A}}, found"
            f" {type(found).__name__}; correct it"
        )
    return [{str(k): v for k, v in one.items()} for one in found]


def _stored(given: argparse.Namespace) -> tuple[Grid, dict[str, Any], Path]:
    refused = [n for n in ("out", "list", "runtime") if getattr(given, n) is not None]
    if refused or given.words:
        what = f"--{refused[0]}" if refused else given.words[0]
        raise ConfigError(
            f"--resume: should come alone, for it does what is left of a sweep as it is, found"
            f" {what}; to add values give the whole command again with --out {given.resume}"
        )
    from fedkd import sweeps

    place = Path(given.resume)
    return sweeps.stored_grid(place), sweeps.asked_of(place), place


def _shown(done: Sweep) -> int:
    from fedkd import sweeps

    for run in done.failed:
        text = " ".join(f"{k}={v}" for k, v in run.values.items())
        print(f"fedkd: failed: {text}: {run.error}", file=sys.stderr)
    _reported(done)
    print(f"All of it {shell.near(done.folder)}")
    if done.failed:
        print(f"fedkd: go on with: {sweeps.resume_command(done.folder)}", file=sys.stderr)
    return 1 if done.failed else 0


def _reported(done: Sweep) -> None:
    """Tables and pictures over all that is finished, in the folder of the sweep."""
    from fedkd import report
    from fedkd.runfolder import ReportError

    if len(done.failed) == len(done.runs):
        return
    try:
        written = report.across([done.folder], done.folder)
    except ReportError as error:  # they are of several data sets, which no table may mix
        print(f"fedkd: no report: {error}", file=sys.stderr)
        return
    print(report.markdown([done.folder]))
    print(f"Report    {shell.near(written)}")
    print(f"Page      {shell.near(written.with_name('report.html'))}")


class _Callable(ModuleType):
    """`from fedkd import sweep` is the function, whether this module was imported before or not."""

    def __call__(self, *args: Any, **named: Any) -> Sweep:  # Any: as `sweeps.sweep` has it
        from fedkd import sweeps

        return sweeps.sweep(*args, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
