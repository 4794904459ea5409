"""How a run went: accuracy against virtual time and bytes, and who was missing on the way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedkd.recorded import Record

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Who = Literal["student", "teachers"]


@dataclass(frozen=True, slots=True)
class Moment:
    """The end of a round. Virtual seconds and bytes, up and down, count from the beginning.

    Accuracies in 0..1 on the global test set, None where not evaluated; that of the teachers is the
    mean over those that were.
    """

    round: int
    seconds: float | None
    bytes: int
    student: float | None
    ensemble: float | None
    teachers: float | None


@dataclass(frozen=True, slots=True)
class Missing:
    """Clients of some rounds: how often one was asked, and how often one was not heard of."""

    first: int
    last: int
    asked: int
    absent: int
    late: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """The end of the first evaluated round that has an accuracy; all None where none has."""

    level: float
    round: int | None = None
    seconds: float | None = None
    bytes: int | None = None


def moments(records: Sequence[Record]) -> tuple[Moment, ...]:
    """The ends of all rounds."""
    found, sent = [], 0
    for record in records:
        sent += record.bytes.up + record.bytes.down
        known = [x for x in record.teachers.test if x is not None] if record.teachers else []
        found.append(
            Moment(
                record.round,
                record.virtual_s,
                sent,
                record.student.test if record.student else None,
                record.ensemble.test if record.ensemble else None,
                statistics.fmean(known) if known else None,
            )
        )
    return tuple(found)


def timed(passed: Sequence[Moment]) -> bool:
    """Whether there is a clock, and it does not stand still."""
    return any(moment.seconds for moment in passed)


def aim(passed: Sequence[Moment]) -> Who:
    """Whose accuracy a run is about: the student's, or the teachers' where there is no student."""
    return "student" if any(moment.student is not None for moment in passed) else "teachers"


def race(passed: Sequence[Moment]) -> list[tuple[float, float]]:
    """The accuracy that a run is about, by virtual seconds."""
    who = aim(passed)
    both = [(m.seconds, m.student if who == "student" else m.teachers) for m in passed]
    return [(seconds, y) for seconds, y in both if seconds is not None and y is not None]


def arrivals(passed: Sequence[Moment]) -> tuple[Arrival, ...]:
    """When each of `LEVELS` was first reached; it may have been lost again later."""
    who = aim(passed)
    found = []
    for level in LEVELS:
        reached = (m for m in passed if (getattr(m, who) or 0.0) >= level)
        first = next(reached, None)
        at = (first.round, first.seconds, first.bytes) if first else ()
        found.append(Arrival(level, *at))
    return tuple(found)


def missing(records: Sequence[Record], most: int = 20) -> tuple[Missing, ...]:
    """By round, or by spans of equally many rounds where there are more than `most`.

    Empty where nobody was ever missing.
    """
    if not any(r.absent or r.late or r.dropped for r in records):
        return ()
    width = -(-len(records) // most)
    spans = [records[i : i + width] for i in range(0, len(records), width)]
    return tuple(
        Missing(
            span[0].round,
            span[-1].round,
            sum(len(r.participants) for r in span),
            sum(len(r.absent) for r in span),
            sum(len(r.late) for r in span),
            sum(len(r.dropped) for r in span),
        )
        for span in spans
    )
