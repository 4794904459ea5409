"""Stored answers aggregated again: `python -m fedkd.replay RUN [strategy=NAME [key=value ...]]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import folder, reading, shell
from fedkd.config import ConfigError, Named
from fedkd.results.finished import finished

if TYPE_CHECKING:
    from fedkd.results.replaying import Replay

_EPILOG = """\
examples:
  python -m fedkd.simulate execution.store_answers=true --out runs/A    keep what clients say
  python -m fedkd.replay runs/A                                the same again: are the bytes equal?
  python -m fedkd.replay runs/A strategy=NAME temperature=0.5  another rule on the same answers
  python -m fedkd.replay runs/A strategy=NAME,OTHER            several, side by side
  python -m fedkd.replay runs/A strategy=NAME rows=50 strategy=NAME rows=100

A key=value is a parameter of the strategy named before it. Student, seeds, public rows and data are
those of the run, so that differences come from the rule alone. What a replay cannot give: clients
are not trained again, so what they would have learnt from the other rule is missing from their
later answers. Each rule gets a result folder of its own, which fedkd.report reads.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("replay"),
        description="Aggregate the stored answers of a run by other rules, and distil its student\n"
        "from each, in seconds.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with stored answers")
    parser.add_argument("words", nargs="*", metavar="strategy=NAME[,NAME] | key=value",
        help="rules and their parameters; without any, the run's own rule")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER",
        help="a new folder for the result (beside the run); of several rules, each in one of"
        " its own in it")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_intermixed_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _do(given: argparse.Namespace) -> int:
    run: Path = given.run.absolute()
    config = finished(run)
    wanted = _strategies(given.words)
    places = _places(run, wanted, given.out)
    from fedkd import progress
    from fedkd.results.replaying import LIMITS, replay

    before = _last(run)
    done = [replay(run, rule, place) for rule, place in zip(wanted, places, strict=True)]
    rows = [
        ("", "Student, test", "Test NLL", "Entropy of targets", "Disagreement", "As in the run"),
        (f"{label(config.strategy)}, the run", *_figures(before), ""),
    ]
    rows += [(label(d.strategy), *_figures(d.records[-1]), _sameness(d)) for d in done]
    progress.show(rows)
    print("\nWhat a replay cannot give:")
    for text in LIMITS:
        print(f"- {text}")
    for d in done:
        print(f"All of it {shell.near(d.folder)}")
    return 0


def _strategies(words: Sequence[str]) -> list[Named | None]:
    """The rules that the words ask for; None alone for the run's own."""
    found: list[list[dict[str, Any]]] = []  # Any: YAML
    for word in words:
        key, _, value = word.partition("=")
        if key == "strategy" and not value.lstrip().startswith("{"):
            names = [name.strip() for name in value.split(",")]
            if not all(names):
                raise ConfigError(
                    f"strategy: should name a rule, found {word!r}; name one of --list"
                )
            found.append([{"name": name} for name in names])
        elif key == "strategy":
            read: Any = reading.override({}, word, lambda steps: None)["strategy"]
            if not isinstance(read, dict) or not isinstance(read.get("name"), str):
                raise ConfigError(
                    f"strategy: should be a name, or have one, found {word!r}; add it"
                )
            found.append([read])
        elif "=" not in word or not found:
            raise ConfigError(
                f"replay: should read strategy=NAME and, behind it, its parameters as key=value,"
                f" found {word!r}; put strategy=NAME before it"
            )
        else:
            item = word.removeprefix("strategy.")
            found[-1] = [
                dict(reading.override(tree, item, lambda steps: None)) for tree in found[-1]
            ]
    return [Named(**tree) for trees in found for tree in trees] or [None]


def _places(run: Path, wanted: Sequence[Named | None], out: Path | None) -> list[Path]:
    """A new folder for each. Raises `ConfigError` where something is already."""
    names = [rule.name if rule else "own" for rule in wanted]
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[i] = name if seen[name] == 1 else f"{name}~{seen[name]}"
    if out is not None and len(names) == 1:
        return [folder.vacant(out.absolute())]
    if out is not None:
        return [folder.vacant(out.absolute()) / name for name in names]
    return [folder.vacant(run.with_name(f"{run.name}-replay-{name}")) for name in names]


def _last(run: Path) -> dict[str, Any]:  # Any: JSON
    try:
        found = json.loads((run / "records.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        return dict(found)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"run: {run / 'records.jsonl'} should hold a record a line, found"
            f" {type(error).__name__}; bring the file back"
        ) from None


def label(rule: Named) -> str:
    """A rule with its parameters, in a few words."""
    return " ".join([rule.name, *(f"{name}={value}" for name, value in rule.params.items())])


def _figures(record: Mapping[str, Any]) -> tuple[str, ...]:  # Any: JSON
    student = record.get("student") or {}
    figures = [student.get("test"), student.get("test_nll")]
    figures += [record.get("entropy"), record.get("disagreement")]
    accuracy, *rest = figures
    return (
        "–" if accuracy is None else f"{accuracy:.1%}",
        *("–" if value is None else f"{value:.3f}" for value in rest),
    )


def _sameness(done: Replay) -> str:
    """Where the bytes are those of the run."""
    equal = sum(done.same_consensus)
    student = "student and " if done.same_student else ""
    return f"{student}{equal} of {len(done.same_consensus)} consensuses"


if __name__ == "__main__":
    sys.exit(main())
