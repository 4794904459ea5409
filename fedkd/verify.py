"""A run carried out again and compared, byte for byte: `python -m fedkd.verify RUN`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedkd import folder, shell
from fedkd.config import Config, ConfigError, load_config
from fedkd.results import hashes
from fedkd.results.finished import finished, stored

_EPILOG = """\
examples:
  python -m fedkd.verify runs/A                    the same again: are the bytes equal?
  python -m fedkd.verify runs/A --files            only: is the folder as the run left it?
  python -m fedkd.verify runs/A --runtime local    carried out otherwise, which must change nothing
  python -m fedkd.verify runs/A --workers 8

The files of the run are compared with the checksums that it noted at its end (hashes.json); then
its resolved config is run again in a temporary folder, which takes as long as the run took, and the
results are compared: records round by round, student, teachers, yardsticks, data.
exit codes: 0 the same, 1 different, 2 it cannot be told, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("verify"),
        description="Tell whether a run can be had again, and whether its folder is untouched.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--runtime", metavar="ray|local|flower", help="where the clients run")
    parser.add_argument("--workers", metavar="N", help="how many tasks at once")
    parser.add_argument("--files", action="store_true", help="check the files and run nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_args(arguments)
    return _cannot(shell.answered(lambda: _do(given), given.debug))


_DIFFERENT = -1  # told apart from a failure until the end


def _cannot(code: int) -> int:
    """A run that fails on the way tells nothing of the one that is stored."""
    return {1: 2, _DIFFERENT: 1}.get(code, code)


def _do(given: argparse.Namespace) -> int:
    run: Path = given.run.absolute()
    config = finished(run)
    if (run / "replay.json").exists():
        raise ConfigError(
            f"verify: {run} should be a run, found a replay of one; verify the run, and replay it"
        )
    told = stored(
        run / "hashes.json",
        hashes.SCHEMA,
        "the run is of an earlier version, which noted no checksums: run the experiment again",
    )
    if not isinstance(told.get("sha256"), dict):
        raise ConfigError(
            f"run: {run / 'hashes.json'} should hold sha256, found none; bring the file back"
        )
    if found := hashes.changed(run, told["sha256"]):
        return _say(["The folder is not as the run left it:", *found])
    if given.files:
        print(f"The same: {len(told['sha256'])} files are as the run left them.")
        return 0
    if (run / "branched_from.json").exists():
        raise ConfigError(
            f"verify: {run} should have begun at round 1, found that it branched from another run;"
            " verify that one, and the files of this one with --files"
        )
    return _again(run, config, given)


def _again(run: Path, config: Config, given: argparse.Namespace) -> int:
    from fedkd import progress

    with tempfile.TemporaryDirectory(prefix="fedkd-verify-") as place:
        again = Path(place) / "run"
        chosen = _otherwise(config, again, given.runtime, given.workers)
        with progress.watching(config.rounds, given.quiet) as watch:
            watch.stage("load PyTorch")
            from fedkd.runs import run as carry_out

            try:
                carry_out(chosen, watch)
            except BaseException as error:
                error.__notes__ = []  # how to go on with a folder that is about to be removed
                raise
        found = list(differences(run, again))
    around = folder.differences(run)
    if not found:
        print(f"The same: {config.rounds} rounds and all results, byte for byte.")
        for text in around:
            print(f"Although: {text}")
        return 0
    where = [f"Otherwise here and now: {text}" for text in around]
    if not where:
        where = ["Versions and machine are those of the run."]
    return _say(["Different:", *found, *where])


def _otherwise(config: Config, out: Path, runtime: str | None, workers: str | None) -> Config:
    """The same experiment in another place, carried out as asked for."""
    changes = [f"execution.out={json.dumps(str(out))}", "execution.store_answers=false"]
    changes += [f"execution.runtime={runtime}"] if runtime is not None else []
    changes += [f"execution.workers={workers}"] if workers is not None else []
    return load_config(config.model_dump(mode="json"), changes)


def differences(run: Path, again: Path) -> Iterator[str]:
    """Where the results of two runs of one experiment differ, the first thing first."""
    if data := _differing_data(run, again):
        yield data
    old, new = (_lines(p / "records.jsonl") for p in (run, again))
    for place in range(max(len(old), len(new))):
        if place >= min(len(old), len(new)):
            yield f"records.jsonl: {len(old)} rounds in the run, {len(new)} now"
            break
        if old[place] != new[place]:
            yield f"records.jsonl: first in round {place + 1}: {_keys(old[place], new[place])}"
            break
    names = [set(hashes.files(p, shared=True)) for p in (run, again)]
    for name in sorted(names[0] | names[1]):
        if name in ("records.jsonl", "data/data.json"):
            continue
        if name not in names[0] or name not in names[1]:
            yield f"{name}: only {'in the run' if name in names[0] else 'now'}"
        elif (run / name).read_bytes() != (again / name).read_bytes():
            yield f"{name}: other bytes"


def _differing_data(run: Path, again: Path) -> str | None:
    if hashes.sha256(run / "data" / "data.json") == hashes.sha256(again / "data" / "data.json"):
        return None
    return "data: the source gives others now, or splits them otherwise"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _keys(old: str, new: str) -> str:
    """The entries in which two records differ, and the values of the first that is short."""
    a, b = (_flat(json.loads(text), "") for text in (old, new))
    names = [n for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)]
    first = names[0]
    values = f" ({a.get(first)} in the run, {b.get(first)} now)"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") + values[:200]


def _flat(tree: Any, at: str) -> dict[str, Any]:  # Any: JSON
    if not isinstance(tree, dict):
        return {at: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{at}.{key}" if at else str(key))
    return found


def _say(lines: Sequence[str]) -> int:
    print("\n  ".join(lines))
    return _DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
