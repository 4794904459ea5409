"""A run in figures: last round, best on validation, yardsticks, gradient steps and labels used."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedkd.course import Arrival, Missing, Moment, arrivals, missing, moments, timed
from fedkd.incidents import Incident, happenings, incidents
from fedkd.recorded import About, Accuracy, Bytes, Origin, Run, Sizes, Steps, Teachers
from fedkd.runfolder import read

Key = Literal[
    "pooled", "labels", "ensemble", "student", "best", "gap",
    "teachers", "worst_teacher", "local", "worst_local",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: accuracies in 0..1 (the gap: a difference), None for not measured.

    `error` is the binomial standard error of `test`. `steps` are of the model itself, for the
    ensemble and the teachers summed over clients; with `labels`, those up to `round`. `clients`
    says of how many, where some could not be evaluated.
    """

    key: Key
    round: int | None = None
    test: float | None = None
    error: float | None = None
    public: float | None = None
    own: float | None = None
    steps: int | None = None
    labels: int | None = None
    clients: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures; as JSON it is `report.json`. Bytes and participants are by round.

    `arrivals` are there only in a world whose clock moves; `resume` is the command that goes on
    with a run which did not come to its end.
    """

    about: About
    strategy: str
    experiment: Mapping[str, str]  # dotted key -> JSON; without name and seeds
    planned: int
    rounds: int
    complete: bool
    rows: tuple[Row, ...]
    sizes: Sizes | None
    origin: str
    classes: tuple[str, ...]
    models: Mapping[str, int]  # clients by model
    bytes: tuple[Bytes, ...]
    participants: tuple[int, ...]
    moments: tuple[Moment, ...]
    arrivals: tuple[Arrival, ...]
    missing: tuple[Missing, ...]
    incidents: tuple[Incident, ...]
    happenings: tuple[str, ...]
    branched: Origin | None
    resume: str | None
    notes: tuple[str, ...]


def summarise(run: Path) -> Summary:
    """The figures of a run folder. Raises `ReportError` for a folder that is no run."""
    return summary_of(read(run))


def summary_of(run: Run) -> Summary:
    """The figures of a run that was read."""
    part, records, strategy = run.partition, run.records, run.config.strategy
    passed = moments(records)
    given = [f"{name}={value}" for name, value in strategy.params.items()]
    return Summary(
        about=run.about,
        strategy=strategy.name + (f"({', '.join(given)})" if given else ""),
        experiment=_experiment(run),
        planned=run.config.rounds,
        rounds=len(records),
        complete=run.complete,
        rows=tuple(_rows(run)),
        sizes=part.sizes if part else None,
        origin="; ".join(filter(None, (part.provenance, part.licence))) if part else "",
        classes=part.classes if part else (),
        models=dict(Counter(part.models if part else ())),
        bytes=tuple(record.bytes for record in records),
        participants=tuple(len(record.participants) for record in records),
        moments=passed,
        arrivals=arrivals(passed) if timed(passed) else (),
        missing=missing(records),
        incidents=incidents(run.events),
        happenings=happenings(run.events, run.about.sessions),
        branched=run.origin,
        resume=run.resume,
        notes=run.notes,
    )


def _experiment(run: Run) -> dict[str, str]:
    """What two runs must share to be repetitions of each other: all but the name and the seeds.

    A branch began as another experiment, so it repeats only what was branched at the same round.
    """

    def flat(at: str, value: object) -> Iterator[tuple[str, str]]:
        if isinstance(value, (dict, list)) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                yield from flat(f"{at}.{key}" if at else str(key), inner)
        else:
            yield at, json.dumps(value)

    pairs = sorted(flat("", run.config.experiment()))
    branched = {"branched after round": str(run.origin.round)} if run.origin else {}
    same = {key: text for key, text in pairs if key not in ("name", "seed", "data.seed")}
    return branched | same


def _rows(run: Run) -> Iterator[Row]:
    """The rows of the table in its order; what was not measured has none."""
    yield from _trained_otherwise(run)
    yield from _server_side(run)
    yield from _teachers(run)


def _error(run: Run, accuracy: float) -> float | None:
    tested = run.partition.sizes.test if run.partition else 0
    return math.sqrt(accuracy * (1 - accuracy) / tested) if tested else None


def _trained_otherwise(run: Run) -> Iterator[Row]:
    pooled, labels = run.yardsticks.pooled, run.yardsticks.labels
    private = run.partition.sizes.private if run.partition else None
    if pooled:
        error = _error(run, pooled.test)
        yield Row("pooled", None, pooled.test, error, steps=pooled.steps, labels=private)
    if labels:
        error = _error(run, labels.test)
        yield Row("labels", None, labels.test, error, steps=labels.steps, labels=labels.labels)


def _server_side(run: Run) -> Iterator[Row]:
    students = [(i, r.student) for i, r in enumerate(run.records) if r.student]
    ensembles = [(i, r.ensemble) for i, r in enumerate(run.records) if r.ensemble]
    both = [
        (i, r.student, r.ensemble) for i, r in enumerate(run.records) if r.student and r.ensemble
    ]
    judged = [(s.validation, -i, s) for i, s in students if s.validation is not None]
    if ensembles:
        yield _model(run, "ensemble", *ensembles[-1])
    if students:
        yield _model(run, "student", *students[-1])
    if judged:  # of equals the earliest
        _, place, best = max(judged, key=lambda entry: entry[:2])
        yield _model(run, "best", -place, best)
    if both:
        place, student, ensemble = both[-1]
        known = student.public is not None and ensemble.public is not None
        public = (student.public or 0.0) - (ensemble.public or 0.0) if known else None
        yield Row("gap", run.records[place].round, student.test - ensemble.test, public=public)


def _model(run: Run, key: Key, place: int, measured: Accuracy) -> Row:
    steps, labels = _effort(run, place)
    done = steps.clients if key == "ensemble" else steps.server
    error, record = _error(run, measured.test), run.records[place]
    of = _known(record.teachers.test)[1] if key == "ensemble" and record.teachers else None
    return Row(
        key, record.round, measured.test, error, measured.public, None, done, labels, clients=of
    )


def _effort(run: Run, place: int) -> tuple[Steps, int]:
    """Gradient steps summed, and labels used at most, up to a place among the records.

    The labels of one round are counted, not summed: a server reads the same ones again.
    """
    so_far = run.records[: place + 1]
    clients = sum(record.steps.clients for record in so_far)
    server = sum(record.steps.server for record in so_far)
    return Steps(clients, server), max(r.labels_used for r in so_far)


def _teachers(run: Run) -> Iterator[Row]:
    """Federated teachers, and those that learnt alone for as many rounds."""
    evaluated = [
        (i, r.teachers)
        for i, r in enumerate(run.records)
        if r.teachers and _known(r.teachers.test)[0]
    ]
    local, at = run.yardsticks.local, None
    if evaluated:
        place, last = evaluated[-1]
        at = run.records[place].round
        steps, labels = _effort(run, place)
        yield from _spread(run, "teachers", "worst_teacher", at, last, steps.clients, labels)
    if local:
        count = min(len(local.test), len(local.own))
        at = min(at or count, count)
        alone = Teachers(local.test[at - 1], local.own[at - 1])
        effort = local.steps if at == count else None
        if _known(alone.test)[0]:
            yield from _spread(run, "local", "worst_local", at, alone, effort, 0)


def _spread(
    run: Run, mean: Key, worst: Key, at: int, those: Teachers, steps: int | None, labels: int
) -> Iterator[Row]:
    """Mean and worst over clients, each column by itself: the worst need not be one client.

    The mean over models that share a test set has at most the error of one model of that accuracy.
    """
    (test, of), (own, _) = _known(those.test), _known(those.own)
    middle, about = statistics.fmean(test), _error(run, statistics.fmean(test))
    own_middle, own_worst = (statistics.fmean(own), min(own)) if own else (None, None)
    yield Row(mean, at, middle, about, None, own_middle, steps, labels, clients=of)
    yield Row(worst, at, min(test), None, None, own_worst, steps, labels, clients=of)


def _known(accuracies: Sequence[float | None]) -> tuple[list[float], int | None]:
    """Those of the clients that were evaluated, and how many, None where these are all."""
    known = [x for x in accuracies if x is not None]
    return known, len(known) if len(known) < len(accuracies) else None
