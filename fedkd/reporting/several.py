"""Settings side by side: means over seeds, comparisons in pairs, costs, charts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from fedkd.chronicle import WHOSE
from fedkd.course import LEVELS, Who, aim, race, timed
from fedkd.phrases import NOTHING, inert, size_text, time_text
from fedkd.recorded import Record
from fedkd.reporting import statistics as stats
from fedkd.reporting.charts import MUTED, Bars, Chart, Group, Lines, Series
from fedkd.reporting.document import Block, Document
from fedkd.reporting.settings import Setting, Trial, chosen, settings
from fedkd.reporting.single import ALONE, TEACHERS, bytes_to, pareto, shipping
from fedkd.reporting.tabular import Cell, Column, Table, number, text
from fedkd.summary import Key
from fedkd.tables import ACCURACIES, LABELS
from fedkd.tables import Column as Kind

_MOST_PAIRED = 5  # settings that are all compared with each other; beyond, with the first only
_COMPARED: tuple[tuple[Key, Kind, str], ...] = (
    ("student", "test", "Student, last round, global test set"),
    ("teachers", "test", "Federated teachers' mean, global test set"),
    ("teachers", "own", "Federated teachers' mean, own distributions"),
)


def document(
    trials: Sequence[Trial], baseline: str | None = None, notes: Sequence[str] = ()
) -> Document:
    """All runs in one report. Raises `ReportError` where they cannot be compared."""
    made, further = settings(trials)
    notes, title = (*notes, *further), f"{len(trials)} runs"
    if not made:
        return Document(title, notes, ("There is no complete run to compare.\n",))
    blocks: list[Block] = []
    for labelled, head in ((False, ""), (True, ", methods that are told public labels")):
        group = [setting for setting in made if setting.labelled is labelled]
        mark = "-labelled" if labelled else ""
        blocks += [t for kind in ACCURACIES for t in _accuracies(group, kind, head, mark)]
    blocks.append(
        "SD: standard deviation over seeds; SE: binomial standard error of the test set of one "
        "run; CI: confidence interval of the mean over seeds, by Student's t, cut to 0–100 %. "
        "Worst: the lowest client of a run. Best on validation never looks at the test set.\n"
    )
    if any(trial.run.privacy and trial.run.privacy.guarantees for trial in trials):
        blocks.append(
            "Each run's guarantee (privacy.json) is of that run alone. To choose among runs on the "
            "same private data, or to publish several of them, spends more than any of them says; "
            "runs of one seed share their noise, too.\n"
        )
    against = chosen(made, baseline) if baseline is not None else None
    blocks += _pairs(made, against)
    blocks += [table for who in WHOSE for table in _arrivals(made, who)]
    blocks += [
        *_privacy(made),
        _costs(made),
        *_communication(made),
        *_metrics(made),
        _members(made),
    ]
    blocks += _charts(made)
    return Document(title, notes, tuple(blocks))


def _setting_cell(setting: Setting) -> Cell:
    return text(setting.title)


def _accuracies(made: Sequence[Setting], kind: Kind, head: str, mark: str) -> Iterator[Table]:
    rows = []
    for key in LABELS:
        for setting in made:
            if values := setting.figures(key, kind):
                rows.append(_mean_row(setting, key, kind, stats.spread(values)))
    if rows:
        columns = (
            Column("Quantity", ("quantity",), True),
            Column("Setting", ("setting",), True),
            Column("Mean ± SD, %", ("mean", "sd")),
            Column("Seeds", ("seeds",)),
            Column("SE", ("test_se",)),
            Column("95 % CI", ("ci_low", "ci_high")),
        )
        yield Table(f"accuracy-{kind}{mark}", f"{ACCURACIES[kind]}{head}", columns, tuple(rows))


def _mean_row(setting: Setting, key: Key, kind: Kind, spread: stats.Spread) -> tuple[Cell, ...]:
    sizes = {s.sizes.test for s in setting.summaries if s.sizes}
    worst = key in ("worst_teacher", "worst_local")
    error = None
    if kind == "test" and key != "gap" and not worst and len(sizes) == 1 and max(sizes):
        error = stats.sampling_error(spread.mean, max(sizes))
    return (
        text(LABELS[key]),
        _setting_cell(setting),
        _mean_cell(spread, signed=key == "gap"),
        number(spread.count, f"{spread.count:,}"),
        number(error, f"{100 * (error or 0):.1f}"),
        _interval(spread, share=key != "gap"),
    )


def _mean_cell(spread: stats.Spread, signed: bool = False) -> Cell:
    shown = f"{100 * spread.mean:{'+' * signed}.1f}"
    if spread.deviation is not None:
        shown += f" ± {100 * spread.deviation:.1f}"
    return Cell(shown, (spread.mean, spread.deviation))


def _interval(spread: stats.Spread, share: bool = False) -> Cell:
    """The interval; of a share no more than what a share can be."""
    if spread.low is None or spread.high is None:
        return Cell(NOTHING, (None, None))
    low, high = (
        (max(0.0, spread.low), min(1.0, spread.high)) if share else (spread.low, spread.high)
    )
    return Cell(f"{100 * low:.1f} to {100 * high:.1f}", (low, high))


def _pairs(made: Sequence[Setting], against: Setting | None) -> Iterator[Block]:
    """Differences over what two settings both ran on; a family of tests for every quantity."""
    if len(made) < 2:
        return
    if against is None and len(made) > _MOST_PAIRED:
        against = made[0]
        yield (
            f"Compared in pairs with {inert(against.title)} only, since there are"
            f" {len(made)} settings; --baseline chooses another.\n"
        )
    two = [(s, against) for s in made if s is not against] if against else combinations(made, 2)
    couples = list(two)
    few, tables = False, list[Table]()
    for key, kind, title in _COMPARED:
        sides = [(a.by_ground(key, kind), b.by_ground(key, kind)) for a, b in couples]
        rows = []
        for (a, b), found in zip(couples, stats.paired(sides), strict=True):
            if found is not None:
                few = few or found.p is None
                rows.append((_setting_cell(a), _setting_cell(b), *_verdict(found)))
        if rows:
            columns = (
                Column("Claimed to be higher", ("first",), True),
                Column("than", ("second",), True),
                Column("Pairs", ("pairs",)),
                Column("Mean difference ± SD, points", ("difference", "sd")),
                Column("95 % CI", ("ci_low", "ci_high")),
                Column("Wilcoxon p", ("p",)),
                Column("p after Holm", ("p_holm",)),
                Column("Verdict", ("verdict",), True),
            )
            tables.append(Table(f"pairs-{key}-{kind}", f"In pairs: {title}", columns, tuple(rows)))
    yield from tables
    if tables:
        yield (
            "Pairs: runs with the same training seed on the same data and splits. Holm: over the"
            f" tests of one table; significant below {stats.LEVEL}."
            + few
            * (
                f" Below {stats.LEAST_PAIRS} pairs no test can be significant, so none is made"
                " and the verdict stays undecided."
            )
            + "\n"
        )
    else:
        yield "No settings share training seed, data and splits: none are compared in pairs.\n"


def _verdict(found: stats.Paired) -> tuple[Cell, ...]:
    count = found.differences.count
    return (
        number(count, f"{count:,}"),
        _mean_cell(found.differences, signed=True),
        _interval(found.differences),
        number(found.p, f"{found.p or 0:.3f}"),
        number(found.corrected, f"{found.corrected or 0:.3f}"),
        text(found.verdict),
    )


def _costs(made: Sequence[Setting]) -> Table:
    whole: Callable[[float], str] = lambda count: f"{count:,.0f}"  # noqa: E731
    mean: Callable[[float], str] = lambda count: f"{count:,.1f}"  # noqa: E731
    kinds: list[tuple[str, str, Callable[[float], str], Callable[[Setting], list[float]]]] = [
        ("Gradient steps, server", "server_steps", whole, lambda s: s.figures("student", "steps")),
        ("Gradient steps, clients", "client_steps", whole,
         lambda s: s.figures("ensemble", "steps")),
        ("Labels used by the server", "labels", whole, lambda s: s.figures("student", "labels")),
        ("Bytes up", "bytes_up", size_text,
         lambda s: [sum(b.up for b in run.bytes) for run in s.summaries]),
        ("Bytes down", "bytes_down", size_text,
         lambda s: [sum(b.down for b in run.bytes) for run in s.summaries]),
        ("Virtual seconds", "virtual_seconds", time_text,
         lambda s: [m.seconds for r in s.summaries for m in r.moments[-1:] if m.seconds]),
        ("Clients missing, all rounds", "missing", mean,
         lambda s: [sum(m.absent + m.late + m.dropped for m in r.missing) for r in s.summaries]),
        ("Failures", "failures", mean,
         lambda s: [sum(i.times for i in r.incidents) for r in s.summaries]),
    ]  # fmt: skip
    columns, cells = [Column("Cost", ("setting",), True)], [[_setting_cell(s)] for s in made]
    for title, name, show, figures in kinds:
        found = [figures(setting) for setting in made]
        if name in ("missing", "failures") and not any(map(any, found)):
            continue
        if not any(found):
            continue
        columns.append(Column(title, (name, f"{name}_sd")))
        for row, values in zip(cells, found, strict=True):
            row.append(_plain_mean(values, show))
    return Table("cost", "Cost of a run, mean ± SD over seeds", tuple(columns),
                 tuple(map(tuple, cells)))  # fmt: skip


def _privacy(made: Sequence[Setting]) -> Iterator[Table]:
    """What each setting guarantees, a row a unit; what has no bound says so."""
    rows: list[tuple[Cell, ...]] = []
    for setting in made:
        told = [t.run.privacy for t in setting.trials if t.run.privacy]
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for private in told:
            for g in private.guarantees:
                alike = found.setdefault((g.unit, ", ".join(g.mechanisms)), [])
                alike.append((g.least, private.delta))
        for (unit, mechanisms), values in found.items():
            epsilon, delta = max(e for e, _ in values), max(d for _, d in values)
            rows.append((
                _setting_cell(setting), text(unit), text(mechanisms),
                number(epsilon, f"{epsilon:.3g}"), number(delta, f"{delta:.2g}"),
                number(len(values), f"{len(values):,}"),
            ))  # fmt: skip
        if told and not found:
            weak = any(private.weak for private in told)
            blank = Cell("none", (None,))
            rows.append((
                _setting_cell(setting), text("nothing"), text("weak claim" if weak else "none"),
                blank, blank, number(len(told), f"{len(told):,}"),
            ))  # fmt: skip
    columns = (
        Column("Guarantee of a run", ("setting",), True), Column("Protected", ("unit",), True),
        Column("Mechanisms", ("mechanisms",), True), Column("ε, worst run", ("epsilon",)),
        Column("δ", ("delta",)), Column("Seeds", ("seeds",)),
    )  # fmt: skip
    if any(t.run.privacy and t.run.privacy.guarantees for s in made for t in s.trials):
        note = (
            "Figures of different units are not comparable. What a run leaves unprotected beside"
            " them stands in its privacy.json."
        )
        yield Table("privacy", "Privacy", columns, tuple(rows), note)


def _plain_mean(values: Sequence[float], show: Callable[[float], str]) -> Cell:
    if not values:
        return Cell(NOTHING, (None, None))
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    spread = f" ± {show(deviation)}" if deviation else ""
    return Cell(f"{show(mean)}{spread}", (mean, deviation))


def _arrivals(made: Sequence[Setting], who: Who) -> Iterator[Table]:
    """Virtual seconds to each accuracy, over those runs of a setting that get there."""
    found: list[tuple[Cell, ...]] = []
    for place, level in enumerate(LEVELS):
        row = []
        for setting in made:
            runs = [r for r in setting.summaries if r.arrivals and aim(r.moments) == who]
            times = [run.arrivals[place].seconds for run in runs]
            known = [seconds for seconds in times if seconds is not None]
            cell = _plain_mean(known, time_text)
            some = f" ({len(known)} of {len(runs)} runs)" if 0 < len(known) < len(runs) else ""
            row.append(Cell(cell.text + some, cell.values))
        if any(cell.text != NOTHING for cell in row):
            found.append((text(f"{100 * level:.0f} % of {WHOSE[who]}"), *row))
    if found:
        columns = [Column("Virtual seconds to", ("level",), True)]
        columns += [Column(s.title, (s.title, f"{s.title} sd")) for s in made]
        note = (
            "To the end of the first evaluated round with at least this accuracy on the global"
            " test set, over the runs that get there."
        )
        yield Table(f"arrivals-{who}", "Virtual seconds to an accuracy on the global test set",
                    tuple(columns), tuple(found), note)  # fmt: skip


def _communication(made: Sequence[Setting]) -> Iterator[Table]:
    """Bytes to an accuracy that all runs reach; the public set in a column of its own."""
    groups = [[s for s in made if aim(s.summaries[0].moments) == who] for who in WHOSE]
    for who, those in zip(WHOSE, groups, strict=True):
        tops = [
            [max(y for m in run.moments if (y := getattr(m, who)) is not None)]
            for s in those
            for run in s.summaries
            if any(getattr(m, who) is not None for m in run.moments)
        ]
        if not tops:
            continue
        level = min(top for (top,) in tops)
        rows = []
        for setting in those:
            sent = [b for s in setting.summaries if (b := bytes_to(s, level)) is not None]
            shipped = [b for t in setting.trials if (b := shipping(t.run)) is not None]
            sizes = [s for s in setting.summaries if s.sizes and s.classes]
            answers = [4.0 * s.sizes.public * len(s.classes) for s in sizes if s.sizes]
            weights = [
                4 * statistics.fmean(s.about.parameters.teachers)
                for s in setting.summaries
                if s.about.parameters.teachers
            ]
            cells = (_plain_mean(values, size_text) for values in (sent, answers, weights, shipped))
            rows.append((_setting_cell(setting), *cells))
        columns = (
            Column("Communication", ("setting",), True),
            Column(f"Bytes until {WHOSE[who]} has {100 * level:.1f} %", ("bytes", "bytes_sd")),
            Column("All answers of a client", ("answers", "answers_sd")),
            Column("Its weights instead", ("weights", "weights_sd")),
            Column("Public set, once to every client", ("public_set", "public_set_sd")),
        )
        note = (
            "The accuracy is the highest that every run reaches on the global test set; bytes up"
            " and down over all clients. Float32 scores and weights, without headers. Shipping"
            " the public set is not counted in the bytes."
        )
        yield Table(f"communication-{who}", "Communication at equal accuracy", columns,
                    tuple(rows), note)  # fmt: skip


def _metrics(made: Sequence[Setting]) -> Iterator[Table]:
    kinds = (("Balanced accuracy, %", "balanced_accuracy", 100), ("Macro F1, %", "macro_f1", 100),
             ("NLL, nats", "nll", 1), ("ECE, %", "ece", 100))  # fmt: skip
    rows = []
    for model in ("student", "ensemble"):
        for setting in made:
            found = [getattr(t.run.metrics, model) for t in setting.trials if t.run.metrics]
            measured = [m for m in found if m is not None]
            if measured:
                cells = []
                for _, name, by in kinds:
                    form = f".{1 if by == 100 else 3}f"
                    values = [getattr(m, name) for m in measured]
                    cells.append(_plain_mean(values, _as(by, form)))
                rows.append((text(model.capitalize()), _setting_cell(setting), *cells))
    if rows:
        columns = [
            Column("Global test set", ("model",), True),
            Column("Setting", ("setting",), True),
        ]
        columns += [Column(title, (name, f"{name}_sd")) for title, name, _ in kinds]
        yield Table("metrics", "Beyond accuracy, mean ± SD over seeds", tuple(columns), tuple(rows))


def _as(by: float, form: str) -> Callable[[float], str]:
    return lambda value: f"{by * value:{form}}"


def _members(made: Sequence[Setting]) -> str:
    lines = []
    for setting in made:
        lines.append(f"- {inert(setting.title)}: seeds (training/data) {', '.join(setting.seeds)}")
        lines += [f"  - {inert(difference)}" for difference in setting.unlike]
    return "\n".join(lines) + "\n"


def _charts(made: Sequence[Setting]) -> Iterator[Chart]:
    heads = (("student", "Student"), ("ensemble", "Ensemble"), ("teachers", "Teachers' mean"))
    for key, name in heads:
        curves = tuple(_curve(s, place, _accuracy(key)) for place, s in enumerate(made))
        if any(series.points for series in curves):
            yield Lines(f"accuracy-{key}", f"{name} on the global test set, mean over seeds",
                        "Round", "", (*(c for c in curves if c.points), *_levels(made)),
                        note="Bands: lowest and highest seed.")  # fmt: skip
    yield from _links(made)
    yield from _by_bytes(made)
    yield from _race(made)
    yield from _alone_and_together(made)
    for key, title in (("entropy", "Entropy of the consensus, nats"),
                       ("disagreement", "Disagreement of the teachers")):  # fmt: skip
        curves = tuple(_curve(s, place, _fact(key)) for place, s in enumerate(made))
        if shown := tuple(series for series in curves if series.points):
            yield Lines(key, f"{title}, mean over seeds", "Round", "", shown, y_unit="nats")
    yield from _times(made)


def _accuracy(key: str) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        if key != "teachers":
            measured = record.student if key == "student" else record.ensemble
            return measured.test if measured else None
        known = [x for x in record.teachers.test if x is not None] if record.teachers else []
        return statistics.fmean(known) if known else None

    return of


def _fact(key: str) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        own: float | None = getattr(record, key)
        return own if own is not None else record.facts.get(key)

    return of


def _curve(setting: Setting, place: int, of: Callable[[Record], float | None]) -> Series:
    """The mean over the seeds of every round, between the lowest and the highest."""
    by_round: dict[int, list[float]] = {}
    for trial in setting.trials:
        for record in trial.run.records:
            if (value := of(record)) is not None:
                by_round.setdefault(record.round, []).append(value)
    rounds = sorted(by_round)
    points = tuple((float(r), statistics.fmean(by_round[r])) for r in rounds)
    band = tuple((float(r), min(by_round[r]), max(by_round[r])) for r in rounds)
    return Series(setting.title, points, place, band=band if len(setting.trials) > 1 else ())


def _levels(made: Sequence[Setting]) -> Iterator[Series]:
    """Yardsticks over all runs; they belong to the data and the models, not to a method."""
    told: Mapping[Key, str] = {"pooled": "Pooled", "labels": "True labels", "local": "Local-only"}
    for key, name in told.items():
        values = [value for setting in made for value in setting.figures(key, "test")]
        if values:
            yield Series(name, ((0.0, statistics.fmean(values)),), MUTED, "level")


def _links(made: Sequence[Setting]) -> Iterator[Bars]:
    """Pooled, oracle, ensemble, student: which link loses, setting by setting."""
    names = ("Pooled", "Oracle", "Ensemble", "Student")
    keys: tuple[Key | None, ...] = ("pooled", None, "ensemble", "student")
    groups = []
    for place, setting in enumerate(made):
        oracles = [t.run.metrics.oracle for t in setting.trials if t.run.metrics]
        values = [
            setting.figures(key, "test") if key else [o.mixture for o in oracles if o]
            for key in keys
        ]
        means = tuple(statistics.fmean(those) if those else None for those in values)
        groups.append(Group(setting.title, means, place))
    shown = [i for i in range(len(names)) if any(group.values[i] is not None for group in groups)]
    if len(shown) > 1:
        kept = tuple(Group(g.name, tuple(g.values[i] for i in shown), g.colour) for g in groups)
        note = "" if 1 in shown else "The oracle was not measured in these runs."
        yield Bars("waterfall", "Where accuracy is lost, mean over seeds", "", "",
                   tuple(names[i] for i in shown), kept, note=note)  # fmt: skip


def _by_bytes(made: Sequence[Setting]) -> Iterator[Lines]:
    """Every setting's end as a point, and the front of those that no other beats."""
    for who, whose in WHOSE.items():
        found = []
        for place, setting in enumerate(made):
            ends = [
                (float(m.bytes), y)
                for s in setting.summaries
                if aim(s.moments) == who
                for m in s.moments[-1:]
                if (y := getattr(m, who)) is not None
            ]
            if ends:
                mean = statistics.fmean(x for x, _ in ends), statistics.fmean(y for _, y in ends)
                found.append(
                    Series(setting.title, (mean,), place, "points", labels=(setting.title,))
                )
        if found:
            front = pareto([series.points[0] for series in found])
            if len(front) > 1:
                found.append(Series("Pareto front", front, MUTED, "step"))
            title = (
                f"{whose[0].upper()}{whose[1:]} after the last round against bytes, mean over seeds"
            )
            yield Lines(f"bytes-{who}", title, "Bytes up and down", "", tuple(found), "bytes")


def _race(made: Sequence[Setting]) -> Iterator[Lines]:
    """Runs over virtual time, where there are any with a clock: a line a seed."""
    for who, whose in WHOSE.items():
        found = []
        for place, setting in enumerate(made):
            for run in setting.summaries:
                points = race(run.moments) if timed(run.moments) and aim(run.moments) == who else []
                if points:
                    name = f"{setting.title}, seed {run.about.seed}"
                    found.append(Series(name, tuple(points), place))
        if found:
            title = f"{whose[0].upper()}{whose[1:]} over virtual time, a line a seed"
            yield Lines(f"time-{who}", title, "Virtual seconds", "", tuple(found), "seconds")


def _alone_and_together(made: Sequence[Setting]) -> Iterator[Bars]:
    """Local-only and federated teachers, means; the two kinds of test data apart."""
    kinds: tuple[tuple[Kind, str], ...] = (("test", "global test set"),
                                           ("own", "clients' own distributions"))  # fmt: skip
    for kind, where in kinds:
        groups = []
        keys: tuple[tuple[Key, str, int], ...] = (
            ("local", "Local-only", ALONE),
            ("teachers", "Federated", TEACHERS),
        )
        for key, name, colour in keys:
            values = [setting.figures(key, kind) for setting in made]
            means = tuple(statistics.fmean(those) if those else None for those in values)
            groups.append(Group(name, means, colour))
        if any(value is not None for group in groups for value in group.values):
            yield Bars(f"clients-{kind}", f"Teachers on the {where}, mean over clients and seeds",
                       "", "", tuple(s.title for s in made), tuple(groups))  # fmt: skip


def _times(made: Sequence[Setting]) -> Iterator[Bars]:
    spent = [[t.run.timings for t in setting.trials if t.run.timings] for setting in made]
    kinds = list(dict.fromkeys(k for runs in spent for run in runs for t in run for k in t.seconds))
    groups = [
        Group(
            kind,
            tuple(
                statistics.fmean(sum(t.seconds.get(kind, 0.0) for t in run) for run in runs)
                if runs
                else None
                for runs in spent
            ),
            place,
        )
        for place, kind in enumerate(kinds)
    ]
    if groups:
        yield Bars("times", "Where the time went, seconds a run, mean over seeds", "", "",
                   tuple(s.title for s in made), tuple(groups), "seconds", True)  # fmt: skip
