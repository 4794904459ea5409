"""The report of one run: its figures, what happened, and its charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fedkd.chronicle import delays, troubles
from fedkd.course import LEVELS, aim, timed
from fedkd.phrases import inert, size_text
from fedkd.recorded import Faithful, Measured, Private, Record, Run, weakest
from fedkd.reporting.charts import MUTED, Bars, Chart, Group, Heat, Lines, Series
from fedkd.reporting.document import Block, Document
from fedkd.reporting.tabular import Cell, Column, Table, number, text
from fedkd.summary import Summary
from fedkd.tables import facts, legend, table_of

FLOAT = 4  # bytes of a score or of a weight, as they travel
_MOST_TEACHERS = 20  # that have a line each
_Figures = TypeVar("_Figures", Measured, Faithful)
STUDENT, ENSEMBLE, TEACHERS, ALONE = 0, 1, 2, 3  # colours


def document(run: Run, summary: Summary, notes: Sequence[str] = ()) -> Document:
    """All that is to be told of a run; what was not recorded is named and left out."""
    blocks: list[Block] = []
    if summary.rows:
        blocks += [_accuracies(summary), legend(summary.sizes)]
    blocks += [facts(summary), *delays(summary), *troubles(summary)]
    blocks += [*_privacy(run), *_communication(run, summary), *_metrics(run)]
    charts = list(_charts(run, summary))
    if absent := _absent(run, summary, {chart.key for chart in charts}):
        blocks.append(f"Left out, since this run has no figures for it: {'; '.join(absent)}.\n")
    title = f"{inert(summary.about.name)}: {inert(summary.strategy)}"
    return Document(title, (*notes, *summary.notes), (*blocks, *charts))


def _accuracies(summary: Summary) -> Table:
    head, *lines = table_of(summary)
    names = ("quantity", "test", "test_se", "public", "own", "steps", "labels")
    columns = [Column(h, (n,), n == "quantity") for h, n in zip(head, names, strict=True)]
    rows = []
    for row, line in zip(summary.rows, lines, strict=True):
        bare = (row.test, row.error, row.public, row.own, row.steps, row.labels)
        cells = [number(value, shown) for value, shown in zip(bare, line[1:], strict=True)]
        rows.append((text(line[0]), *cells))
    return Table("accuracy", "Accuracy", tuple(columns), tuple(rows))


def guaranteed(run: Run) -> str:
    """In a line what a run guarantees: `ε 2.1 by client, δ 1e-05 (gnmax)`, else `nothing`."""
    told = run.privacy
    if told is None:
        return "not recorded"
    found = [
        f"ε {g.least:.3g} by {g.unit}, δ {told.delta:.2g} ({', '.join(g.mechanisms)})"
        for g in told.guarantees
    ]
    found += [
        f"weak: ε {w.epsilon:.3g}, δ {w.delta:.2g} at worst ({w.mechanism})"
        for w in weakest(told.weak)
    ]
    bare = [what.partition(": none")[0] for what in told.none]
    if found and bare:  # a figure alone would pass for one of the whole run
        found.append(f"not protected: {', '.join(bare)}")
    return "; ".join(found) or "nothing"


def _privacy(run: Run) -> Iterator[Block]:
    """Every guarantee, what is only called one, and what has none; and what each assumes."""
    told = run.privacy
    if told is None:
        return
    rows: list[tuple[Cell, ...]] = []
    notes: dict[str, None] = {}
    for g in told.guarantees:
        rows.append((
            text(f"{g.unit}: {g.relation}"), text(", ".join(g.mechanisms)),
            number(g.least, f"{g.least:.3g}"), number(told.delta, f"{told.delta:.2g}"),
            number(g.releases, f"{g.releases:,}"), number(g.one, f"{g.one:.3g}"),
        ))  # fmt: skip
        notes |= dict.fromkeys(g.assumes)
    weak: dict[str, None] = {}
    for w in weakest(told.weak):
        rows.append((
            text(f"weak, {w.unit}: {w.relation}"), text(w.mechanism),
            number(w.epsilon, f"{w.epsilon:.3g}"), number(w.delta, f"{w.delta:.2g}"),
            number(1, "1"), number(w.epsilon, f"{w.epsilon:.3g}"),
        ))  # fmt: skip
        weak |= dict.fromkeys(a.removeprefix("weak: ") for a in w.assumes)
    blank = Cell("none", (None,))
    for what in told.none:
        rows.append((text(what.partition(": none")[0]), text("none"), *[blank] * 4))
    columns = (
        Column("Protected", ("what",), True), Column("Mechanisms", ("mechanisms",), True),
        Column("ε, all releases", ("epsilon",)), Column("δ", ("delta",)),
        Column("Releases", ("releases",)), Column("ε of one", ("one",)),
    )  # fmt: skip
    assumed = f" It holds if {'; '.join(notes)}." if notes else ""
    leave = " Undeclared looks at private data were allowed." * (told.undeclared == "allow")
    hollow = f" Weak is what promises less than it seems: {'; '.join(weak)}." if weak else ""
    note = f"Of the client that has let out most.{assumed}{hollow}{_two_figures(told)}{leave}"
    note += " See privacy.json."
    if rows:
        yield Table("privacy", "Privacy", columns, tuple(rows), note)


def _two_figures(told: Private) -> str:
    """Which figure is in the table, where the ledger's is another."""
    pairs = [
        f"{g.epsilon:.3g} by {g.unit}"
        for g in told.guarantees
        if f"{g.least:.3g}" != f"{g.epsilon:.3g}"
    ]
    if not pairs:
        return ""
    return (
        " The figure for all releases is by distributions of privacy losses. The ledger, to which a"
        f" budget is held, bounds less tightly: {', '.join(pairs)}."
    )


def _communication(run: Run, summary: Summary) -> Iterator[Table]:
    """Bytes to an accuracy, answers against weights, and the public set by itself."""
    if not run.records:
        return
    rows: list[tuple[Cell, ...]] = []

    def line(what: str, value: float | None, shown: str) -> None:
        rows.append((text(what), number(value, shown)))

    who = aim(summary.moments)
    for level in LEVELS:
        sent = bytes_to(summary, level)
        if sent is not None:
            whose = "student" if who == "student" else "teachers' mean"
            line(f"Bytes until the {whose} has {100 * level:.0f} %", sent, size_text(sent))
    if summary.sizes and run.partition:
        classes = len(run.partition.classes)
        answers = summary.sizes.public * classes * FLOAT
        line(f"All answers of one client: {summary.sizes.public:,} rows × {classes:,} classes",
             answers, size_text(answers))  # fmt: skip
        if sizes := run.about.parameters.teachers:
            weights = statistics.fmean(sizes) * FLOAT
            line(f"Its weights instead: {statistics.fmean(sizes):,.0f} parameters on average",
                 weights, size_text(weights))  # fmt: skip
            rows_ = math.floor(weights / (classes * FLOAT))
            line("Break-even: answers are smaller up to so many rows", rows_, f"{rows_:,}")
        shipped = shipping(run)
        if shipped is not None:
            line("Shipping the public set once to every client (not counted above)", shipped,
                 size_text(shipped))  # fmt: skip
    columns = (Column("Quantity", ("what",), True), Column("Value", ("value",)))
    if rows:
        note = "Up and down over all clients; float32 scores and weights, without headers."
        yield Table("communication", "Communication", columns, tuple(rows), note)


def bytes_to(summary: Summary, level: float) -> int | None:
    """Bytes up and down until the accuracy that the run is about first has this level."""
    who = aim(summary.moments)
    reached = (m for m in summary.moments if (getattr(m, who) or 0.0) >= level)
    return next((moment.bytes for moment in reached), None)


def shipping(run: Run) -> int | None:
    """Bytes to bring the public set to every client, as its samples are stored; None: not known."""
    if run.sample_bytes is None or run.partition is None:
        return None
    return run.sample_bytes * run.partition.sizes.public * len(run.partition.models)


def _metrics(run: Run) -> Iterator[Table]:
    if run.metrics is None:
        return
    models = [("Student", run.metrics.student), ("Ensemble", run.metrics.ensemble)]
    teachers, note = _some(run.metrics.teachers, lambda m: m.accuracy)
    models += teachers
    rows = [(text(name), *_measures(measured)) for name, measured in models if measured]
    columns = (
        Column("Global test set", ("model",), True),
        Column("Accuracy, %", ("accuracy",)),
        Column("Balanced accuracy, %", ("balanced_accuracy",)),
        Column("Macro F1, %", ("macro_f1",)),
        Column("NLL, nats", ("nll",)),
        Column("ECE, %", ("ece",)),
    )
    if rows:
        yield Table("metrics", "Beyond accuracy", columns, tuple(rows), note)
    if fidelity := run.metrics.fidelity:
        near = [("Ensemble", fidelity.ensemble)]
        those, note = _some(fidelity.teachers, lambda f: f.agreement)
        near += those
        lines = [
            (text(n), number(f.agreement, f"{100 * f.agreement:.1f}"), number(f.kl, f"{f.kl:.3g}"))
            for n, f in near
            if f
        ]
        heads = (
            Column("The student and", ("model",), True),
            Column("Agreement, %", ("agreement",)),
            Column("KL, nats", ("kl",)),
        )
        if lines:
            yield Table("fidelity", "Fidelity of the student", heads, tuple(lines), note)


def _some(
    teachers: Sequence[_Figures | None], figure: Callable[[_Figures], float]
) -> tuple[list[tuple[str, _Figures | None]], str]:
    """Every teacher by name; of very many the lowest, the median and the highest, and a note."""
    known = [(k, one) for k, one in enumerate(teachers) if one is not None]
    if len(known) <= _MOST_TEACHERS:
        return [(f"Teacher {k}", one) for k, one in known], ""
    known.sort(key=lambda pair: figure(pair[1]))
    places = {"lowest": 0, "median": (len(known) - 1) // 2, "highest": -1}
    note = f"Of {len(known):,} teachers three, by the first column; metrics.json has all."
    return [(f"Teacher {known[i][0]}, {how}", known[i][1]) for how, i in places.items()], note


def _measures(m: Measured) -> list[Cell]:
    shares = [number(x, f"{100 * x:.1f}") for x in (m.accuracy, m.balanced_accuracy, m.macro_f1)]
    return [*shares, number(m.nll, f"{m.nll:.3g}"), number(m.ece, f"{100 * m.ece:.1f}")]


def _charts(run: Run, summary: Summary) -> Iterator[Chart]:
    rounds = [(float(record.round), record) for record in run.records]
    if curves := _curves(rounds):
        title = "Accuracy on the global test set"
        yield Lines("accuracy", title, "Round", "", (*curves, *_levels(run, summary)))
    if bars := waterfall(run, summary):
        yield bars
    if curves:
        yield _by_bytes(summary)
    if timed(summary.moments):
        clock = [(r.virtual_s, r) for r in run.records if r.virtual_s is not None]
        if passed := _curves(clock):
            yield Lines("time", "Accuracy over virtual time", "Virtual seconds", "", passed,
                        "seconds")  # fmt: skip
    yield from _by_client(run, summary)
    yield from _consensus(run)
    yield from _calibration(run)
    if part := run.partition:
        yield Heat("partition", "Partition", "Class", "Client", part.classes, part.models,
                   part.histogram, "Private samples by client and class.")  # fmt: skip
    if run.timings:
        yield _times(run)


def _curves(records: Sequence[tuple[float, Record]]) -> tuple[Series, ...]:
    """Student, ensemble and teachers at the places where they were evaluated."""
    student = [(x, r.student.test) for x, r in records if r.student]
    ensemble = [(x, r.ensemble.test) for x, r in records if r.ensemble]
    those = [(x, _known(r.teachers.test)) for x, r in records if r.teachers]
    heard = [(x, known) for x, known in those if known]
    means = [(x, statistics.fmean(known)) for x, known in heard]
    band = tuple((x, min(known), max(known)) for x, known in heard)
    found = (
        Series("Student", tuple(student), STUDENT),
        Series("Ensemble", tuple(ensemble), ENSEMBLE),
        Series("Teachers, mean", tuple(means), TEACHERS, band=band),
    )
    return tuple(series for series in found if series.points)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _levels(run: Run, summary: Summary) -> Iterator[Series]:
    """Every yardstick, and what the teachers would allow at best."""
    oracle = run.metrics.oracle if run.metrics else None
    known = {row.key: row.test for row in summary.rows}
    told = (
        ("Pooled", known.get("pooled")),
        ("True labels", known.get("labels")),
        ("Oracle mixture", oracle.mixture if oracle else None),
        ("Local-only, mean", known.get("local")),
    )
    for name, value in told:
        if value is not None:
            yield Series(name, ((0.0, value),), MUTED, "level")


def waterfall(run: Run, summary: Summary) -> Bars | None:
    """From what pooling would reach to what the student has, and what each link loses."""
    oracle = run.metrics.oracle if run.metrics else None
    known = {row.key: row.test for row in summary.rows}
    chain = [
        ("Pooled", known.get("pooled")),
        ("Oracle", oracle.mixture if oracle else None),
        ("Ensemble", known.get("ensemble")),
        ("Student", known.get("student")),
    ]
    links = [(name, value) for name, value in chain if value is not None]
    if len(links) < 2:
        return None
    names, reached, lost, gained = list[str](), list[float](), list[float](), list[float]()
    before = links[0][1]
    for name, value in links:
        change = value - before
        told = "" if name == links[0][0] else f" ({100 * change:+.1f})".replace("-", "−")
        names.append(f"{name} {100 * value:.1f} %{told}")
        reached.append(min(value, before))
        lost.append(max(-change, 0.0))
        gained.append(max(change, 0.0))
        before = value
    groups = (
        Group("Reached", tuple(reached), STUDENT),
        Group("Lost on this link", tuple(lost), ENSEMBLE),
        Group("Gained on this link", tuple(gained), TEACHERS),
    )
    note = "In brackets: points against the link before."
    if oracle is None:
        note += " The oracle, the best mixture of these teachers, was not measured in this run."
    else:
        note += " Oracle: the best mixture of these teachers, chosen on the test set."
    low = max(0.0, math.floor(10 * min(reached) - 1) / 10)
    note += f" The axis begins at {100 * low:.0f} %." if low else ""
    return Bars("waterfall", "Where accuracy is lost", "", "", tuple(names), groups, stacked=True,
                note=note, low=low)  # fmt: skip


def _by_bytes(summary: Summary) -> Lines:
    who = aim(summary.moments)
    kinds = (("student", "Student", STUDENT), ("teachers", "Teachers, mean", TEACHERS))
    found = []
    for key, name, colour in kinds:
        points = [(float(m.bytes), getattr(m, key)) for m in summary.moments]
        points = [(sent, y) for sent, y in points if y is not None]
        if points:
            labels = tuple(
                f"round {m.round}" for m in summary.moments if getattr(m, key) is not None
            )
            found.append(Series(name, tuple(points), colour, labels=labels))
        if key == who and points:
            found.append(Series("Pareto front", pareto(points), MUTED, "step"))
    return Lines("bytes", "Accuracy on the global test set against bytes", "Bytes up and down", "",
                 tuple(found), "bytes")  # fmt: skip


def pareto(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Of (cost, gain) those that no other beats in both, by ascending cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return tuple(front)


def _by_client(run: Run, summary: Summary) -> Iterator[Bars]:
    """Every client alone and federated; the two kinds of test data in charts of their own."""
    evaluated = [r for r in run.records if r.teachers]
    local = run.yardsticks.local
    if not evaluated or local is None:
        return
    last = evaluated[-1]
    at = min(last.round, len(local.test), len(local.own)) - 1
    together = last.teachers
    assert together is not None
    for key, where, alone, after in (
        ("clients-test", "global test set", local.test[at], together.test),
        ("clients-own", "clients' own distributions", local.own[at], together.own),
    ):
        names = tuple(str(k) for k in range(len(after)))
        groups = Group("Local-only", alone, ALONE), Group("Federated", after, TEACHERS)
        yield Bars(key, f"Each teacher on the {where}", "Client", "", names, groups)


def _consensus(run: Run) -> Iterator[Lines]:
    told = (
        ("entropy", "Entropy of the consensus", ENSEMBLE),
        ("disagreement", "Disagreement of the teachers", ALONE),
    )
    for key, title, colour in told:
        both = [(float(r.round), _fact(r, key)) for r in run.records]
        points = tuple((x, y) for x, y in both if y is not None)
        if points:
            unit = "nats" if key == "entropy" else "count"
            yield Lines(key, f"{title}{', nats' * (unit == 'nats')}", "Round", "",
                        (Series(title, points, colour),), y_unit="nats")  # fmt: skip


def _fact(record: Record, key: str) -> float | None:
    own: float | None = getattr(record, key)
    return own if own is not None else record.facts.get(key)


def _calibration(run: Run) -> Iterator[Lines]:
    if run.metrics is None:
        return
    found = []
    models = ("Student", run.metrics.student, STUDENT), ("Ensemble", run.metrics.ensemble, ENSEMBLE)
    for name, measured, colour in models:
        bins = measured.calibration if measured else ()
        filled = [b for b in bins if b.count and b.confidence is not None]
        points = tuple((b.confidence or 0.0, b.accuracy or 0.0) for b in filled)
        if points:
            labels = tuple(f"{b.count:,} samples" for b in filled)
            found.append(Series(name, points, colour, labels=labels))
    if found:
        perfect = Series("Perfect", ((0.0, 0.0), (1.0, 1.0)), MUTED, "guide")
        yield Lines("calibration", "Calibration: accuracy by confidence", "Confidence", "",
                    (*found, perfect), "share")  # fmt: skip


def _times(run: Run) -> Bars:
    kinds = list(dict.fromkeys(kind for timing in run.timings for kind in timing.seconds))
    groups = [
        Group(kind, tuple(timing.seconds.get(kind, 0.0) for timing in run.timings), place)
        for place, kind in enumerate(kinds)
    ]
    names = tuple(str(timing.round) for timing in run.timings)
    return Bars("times", "Where the time went, seconds a round", "Round", "", names, tuple(groups),
                "seconds", stacked=True)  # fmt: skip


def _absent(run: Run, summary: Summary, drawn: set[str]) -> list[str]:
    wanted = {
        "accuracy": "accuracy by round",
        "waterfall": "where accuracy is lost",
        "clients-test": "each teacher alone and federated",
        "entropy": "entropy of the consensus",
        "disagreement": "disagreement of the teachers",
        "calibration": "calibration",
        "partition": "partition",
        "times": "where the time went",
    }
    return [told for key, told in wanted.items() if key not in drawn]
