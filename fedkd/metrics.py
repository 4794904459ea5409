"""What a finished run came to, in full: `python -m fedkd.metrics RUN [--robustness]`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedkd import disk, shell
from fedkd.config import Config, ConfigError
from fedkd.results.finished import METRICS, finished, stored

SCHEMA = 1  # of robustness.json
_FIGURES = ("n", "accuracy", "macro_f1", "balanced_accuracy", "nll", "ece")
_EPS = (0.01, 0.03, 0.1)
# what a page has room for: teachers, and classes of a confusion matrix
_MOST_TEACHERS, _MOST_CLASSES = 64, 20

_EPILOG = """\
examples:
  python -m fedkd.metrics runs/A                        tables of what metrics.json holds
  python -m fedkd.metrics runs/A --format csv > a.csv   one figure a line, for other programs
  python -m fedkd.metrics runs/A --robustness           corrupted and attacked test samples, too
  python -m fedkd.metrics runs/A --robustness --eps 0.02 --eps 0.05

Accuracies are on the global test set. Agreement is the share of samples with the same answer, KL
the student's distance in nats from what it learnt from: KL(teacher || student). Corruptions and
attacks are in units of the range of a value, 0 to 1 (a byte: 255); each model is attacked by its
own gradient (FGSM; PGD in ten steps). --robustness writes RUN/robustness.json.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


class Table(NamedTuple):
    """A title and lines of cells, the first of which is the head."""

    title: str
    lines: Sequence[Sequence[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("metrics"),
        description="Per-class figures, confusion, calibration, fidelity and robustness of a run.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a finished run")
    add("--robustness", action="store_true", help="measure how models bear corrupted samples")
    add("--eps", type=float, action="append", metavar="E",
        help="how far an attack may go, in units of the range"
        f" ({', '.join(map(str, _EPS))})")  # fmt: skip
    add("--format", choices=("md", "csv", "json"), default="md", help="how to print (md)")
    add("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _do(given: argparse.Namespace) -> int:
    run: Path = given.run.absolute()
    config = finished(run)
    eps = given.eps or _EPS
    if not all(0 < e <= 1 for e in eps):
        raise ConfigError(f"eps: should be above 0 and at most 1, found {eps}; correct it")
    if given.eps and not given.robustness:
        raise ConfigError("eps: should come with --robustness, found without; add it")
    content: dict[str, Any] = {  # Any: JSON
        "metrics": stored(
            run / "metrics.json",
            METRICS,
            "run the experiment with evaluation.metrics=true",
        )
    }
    if given.robustness:
        content["robustness"] = _robustness(run, config, eps)
        text = json.dumps(content["robustness"], indent=1, sort_keys=True) + "\n"
        disk.write_atomically(run / "robustness.json", text.encode())
    if given.format == "json":
        print(json.dumps(content, indent=1, sort_keys=True))
    elif given.format == "csv":
        print(_csv(content), end="")
    else:
        classes = _classes(run)
        tables = list(_tables(content["metrics"], classes))
        if given.robustness:
            tables.append(_robustness_table(content["robustness"]))
        print("\n\n".join(_markdown(table) for table in tables))
    return 0


def _robustness(run: Path, config: Config, eps: Sequence[float]) -> dict[str, Any]:  # Any: JSON
    from fedkd import data
    from fedkd.results.modules import load_student, load_teacher
    from fedkd.results.robustness import robustness
    from fedkd.tasks import threads

    student = [load_student(run)] if (run / "student.safetensors").is_file() else []
    there = (run / "teachers").is_dir()
    teachers = [load_teacher(run, k) for k in range(len(config.models))] if there else []
    with threads(config.compute.server_threads):
        rows = robustness([*student, *teachers], data.load(run / "data"), config.seed, eps)
    return {
        "schema": SCHEMA,
        "rows": [
            {
                "name": row["name"],
                "severity": row["severity"],
                "student": row["accuracy"][0] if student else None,
                "teachers": row["accuracy"][len(student) :],
            }
            for row in rows
        ],
    }


def _classes(run: Path) -> list[str]:
    try:
        found = json.loads((run / "partition.json").read_text(encoding="utf-8"))["classes"]
        return [str(name) for name in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"run: {run / 'partition.json'} should name the classes, found"
            f" {type(error).__name__}; bring the file back"
        ) from None


def _tables(found: Mapping[str, Any], classes: Sequence[str]) -> Iterator[Table]:  # Any: JSON
    teachers = [t for t in found["teachers"] if t is not None]
    fidelity = found["fidelity"] or {"ensemble": None, "teachers": [None] * len(found["teachers"])}
    lines: list[tuple[str, ...]]
    lines = [("", "Accuracy", "Macro-F1", "Balanced accuracy", "NLL", "ECE", "Agreement", "KL")]
    if found["student"]:
        lines.append(("Student", *_overall(found["student"]), "", ""))
    if found["ensemble"]:
        lines.append(("Ensemble", *_overall(found["ensemble"]), *_near(fidelity["ensemble"])))
    for client, (own, near) in enumerate(zip(found["teachers"], fidelity["teachers"], strict=True)):
        if own is not None and len(teachers) <= _MOST_TEACHERS:
            lines.append((f"Teacher {client}", *_overall(own), *_near(near)))
    if len(teachers) > 1:
        means = {name: statistics.fmean(t[name] for t in teachers) for name in _FIGURES}
        lines.append(("Teachers, mean", *_overall(means), "", ""))
    if oracle := found["oracle"]:
        for key, name in (("mixture", "Best mixture found*"), ("any", "Any teacher right*")):
            lines.append((name, _share(oracle[key]), *[""] * 6))
    yield Table("Test set", lines)
    for key, name in (("student", "Student"), ("ensemble", "Ensemble")):
        if found[key]:
            yield from _in_full(name, found[key], classes)


def _in_full(name: str, own: Mapping[str, Any], classes: Sequence[str]) -> Iterator[Table]:
    lines: list[tuple[str, ...]] = [("Class", "Precision", "Recall", "F1", "Support")]
    for label, row in zip(classes, own["per_class"], strict=True):
        parts = (_share(row[k]) for k in ("precision", "recall", "f1"))
        lines.append((label, *parts, f"{row['support']:.0f}"))
    yield Table(f"{name} by class", lines)
    if len(classes) <= _MOST_CLASSES:
        head = ("True \\ said", *classes)
        body = [
            (label, *map(str, row)) for label, row in zip(classes, own["confusion"], strict=True)
        ]
        yield Table(f"{name}: confusion", [head, *body])


def _robustness_table(found: Mapping[str, Any]) -> Table:  # Any: JSON
    lines: list[tuple[str, ...]]
    lines = [("Samples", "Severity", "Student", "Teachers, mean", "Worst teacher")]
    for row in found["rows"]:
        own = row["teachers"]
        cells = (_share(statistics.fmean(own)), _share(min(own))) if own else ("", "")
        student = "" if row["student"] is None else _share(row["student"])
        severity = f"{row['severity']:g}" if row["severity"] else ""
        lines.append((row["name"], severity, student, *cells))
    return Table("Robustness: accuracy", lines)


def _overall(own: Mapping[str, Any]) -> tuple[str, ...]:  # Any: JSON
    shares = (_share(own[k]) for k in ("accuracy", "macro_f1", "balanced_accuracy"))
    return (*shares, f"{own['nll']:.3f}", f"{own['ece']:.3f}")


def _near(own: Mapping[str, float] | None) -> tuple[str, str]:
    return ("", "") if own is None else (_share(own["agreement"]), f"{own['kl']:.3f}")


def _share(value: float) -> str:
    return f"{value:.1%}"


def _markdown(table: Table) -> str:
    head, *body = table.lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))
    note = ""
    if any(line[0].endswith("*") for line in body):
        note = (
            "\n\n\\* Upper yardsticks that know the test labels: the best fixed mixture of the"
            " teachers' probabilities that was found, and the samples that any teacher gets right."
        )
    return f"## {table.title}\n\n{text}{note}"


def _csv(content: Mapping[str, Any]) -> str:  # Any: JSON
    """One figure a line: who, of what, its name, its value."""
    held = io.StringIO()
    out = csv.writer(held, lineterminator="\n")
    out.writerow(("who", "about", "figure", "value"))
    found = content["metrics"]
    everyone = [("student", found["student"]), ("ensemble", found["ensemble"])]
    everyone += [(f"teacher {k}", own) for k, own in enumerate(found["teachers"])]
    for who, own in everyone:
        for name in _FIGURES if own else ():
            out.writerow((who, "test", name, own[name]))
        for place, row in enumerate(own["per_class"] if own else ()):
            for name, value in row.items():
                out.writerow((who, f"class {place}", name, value))
    if near := found["fidelity"]:
        pairs = [("ensemble", near["ensemble"])]
        pairs += [(f"teacher {k}", own) for k, own in enumerate(near["teachers"])]
        for who, own in pairs:
            for name, value in (own or {}).items():
                out.writerow(("student", who, name, value))
    for name, value in (found["oracle"] or {}).items():
        out.writerow(("oracle", "test", name, value))
    for row in content.get("robustness", {"rows": ()})["rows"]:
        about = f"{row['name']} {row['severity']:g}"
        if row["student"] is not None:
            out.writerow(("student", about, "accuracy", row["student"]))
        for k, value in enumerate(row["teachers"]):
            out.writerow((f"teacher {k}", about, "accuracy", value))
    return held.getvalue()


if __name__ == "__main__":
    sys.exit(main())
