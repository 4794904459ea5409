"""A summary as text: the table of accuracies and what stands below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fedkd.chronicle import beginnings
from fedkd.phrases import NOTHING, extent, inert, size_text
from fedkd.recorded import Parameters, Sizes
from fedkd.summary import Key, Summary

LABELS: Mapping[Key, str] = {
    "pooled": "Pooled: student's architecture on all private data",
    "labels": "Student's architecture on the true public labels",
    "ensemble": "Ensemble",
    "student": "Student, last round",
    "best": "Student, best on validation",
    "gap": "Gap, student − ensemble (points)",
    "teachers": "Federated teachers, mean",
    "worst_teacher": "Federated teachers, worst",
    "local": "Local-only teachers, mean",
    "worst_local": "Local-only teachers, worst",
}
Column = Literal["test", "public", "own", "steps", "labels"]
ACCURACIES: Mapping[Column, str] = {
    "test": "Accuracy on the global test set",
    "public": "Accuracy on the public set",
    "own": "Accuracy on the clients' own distributions",
}


def table_of(summary: Summary) -> list[tuple[str, ...]]:
    """The table in text, its first entry the head; accuracies in percent, the gap in points."""
    head = ("", "Global test, %", "± SE", "Public, %", "Own distribution, %", "Gradient steps",
            "Server labels")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in summary.rows:
        asides = []
        if row.round is not None and (row.key == "best" or row.round != summary.rounds):
            asides.append(f"round {row.round}")
        if row.clients is not None:
            asides.append(f"of {row.clients} {'client' if row.clients == 1 else 'clients'}")
        label = LABELS[row.key] + (f" ({', '.join(asides)})" if asides else "")
        sign = "+" if row.key == "gap" else ""
        shares = (row.test, row.public, row.own)
        test, public, own = (NOTHING if x is None else f"{100 * x:{sign}.1f}" for x in shares)
        error = NOTHING if row.error is None else f"{100 * row.error:.1f}"
        steps, labels = (NOTHING if n is None else f"{n:,}" for n in (row.steps, row.labels))
        lines.append((label, test, error, public, own, steps, labels))
    return lines


def _per_round(counts: Sequence[int]) -> str:
    low, high, total = min(counts), max(counts), sum(counts)
    each = size_text(low) if low == high else f"{size_text(low)} to {size_text(high)}"
    return f"{each} a round, {size_text(total)} in total"


def facts(summary: Summary) -> str:
    """What else a figure needs, as a list in Markdown."""
    about, sizes = summary.about, summary.sizes
    said = [f"Method: {inert(summary.strategy)}, {summary.rounds} of {summary.planned} rounds"]
    if sizes:
        said.append(
            f"Data: {sizes.private:,} private, {sizes.public:,} public, {sizes.validation:,} "
            f"validation, {sizes.test:,} test samples"
            + (f"; {inert(summary.origin)}" * bool(summary.origin))
        )
    if summary.models:
        models = ", ".join(f"{n:,} × {inert(model)}" for model, n in summary.models.items())
        said.append(f"Teachers: {models}" + _parameters(about.parameters))
    if summary.bytes:
        said += [
            f"Bytes up: {_per_round([b.up for b in summary.bytes])}",
            f"Bytes down: {_per_round([b.down for b in summary.bytes])}",
            f"Clients taking part in a round: {extent(summary.participants)}",
        ]
    said += beginnings(summary)
    versions = ", ".join(f"{name} {v}" for name, v in about.versions.items() if v)
    threads = ", ".join(f"{name} {n}" for name, n in about.threads.items())
    said += [
        f"Seeds: training {about.seed}, data {about.data_seed}",
        f"Versions: {inert(versions)}",
        f"Device: {inert(about.device)}; threads: {inert(threads)}; {inert(about.machine)}",
        f"Fingerprint of the experiment: `{inert(about.fingerprint)}`",
    ]
    return "".join(f"- {fact}\n" for fact in said)


def _parameters(parameters: Parameters) -> str:
    teachers = f" of {extent(parameters.teachers)} parameters" if parameters.teachers else ""
    student = f"; student of {parameters.student:,} parameters" if parameters.student else ""
    return teachers + student


def legend(sizes: Sizes | None) -> str:
    """What the head of the table means."""
    tested = f" with {sizes.test:,} test samples" if sizes else ""
    return (
        f"± SE: binomial standard error of the global test accuracy{tested}, in points; for a "
        "mean over teachers its upper bound. Own distribution: each teacher on the label "
        "distribution of its own client. Worst: the lowest client of that column. Gradient steps: "
        "of the model itself; of ensemble and teachers, summed over clients. Server labels: "
        "labelled samples that the server learnt from. Best on validation never looks at the "
        "test set.\n"
    )
