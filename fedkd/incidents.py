"""What went wrong in a run and what became of it: its events, those of one cause together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedkd.phrases import plain
from fedkd.recorded import Event, Session

# the others are failures of clients or tasks
_OF_THE_RUN = ("resume", "damage", "round", "tracker")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d.,]*(e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Incident:
    """Failures of one kind, phase and cause. Causes that differ in numbers alone are one cause.

    `cause` is the first line of the first of them, and `varied` says that others have other
    numbers. `outcomes` counts what became of them.
    """

    kind: str
    phase: str
    cause: str
    varied: bool
    rounds: tuple[int, ...]
    clients: tuple[int, ...]
    times: int
    outcomes: Mapping[str, int]
    traceback: bool


def incidents(events: Sequence[Event]) -> tuple[Incident, ...]:
    """All failures, in the order of their first."""
    found: dict[tuple[str, str, str], list[Event]] = {}
    for event in events:
        if event.kind not in _OF_THE_RUN:
            phase = plain(event.phase or "")
            cause = _NUMBER.sub("#", plain(event.cause))
            found.setdefault((event.kind, phase, cause), []).append(event)
    return tuple(_incident(alike) for alike in found.values())


def _incident(alike: Sequence[Event]) -> Incident:
    causes = [plain(event.cause) for event in alike]
    who = (e.clients or (() if e.client is None else (e.client,)) for e in alike)
    return Incident(
        kind=plain(alike[0].kind),
        phase=plain(alike[0].phase or ""),
        cause=causes[0],
        varied=len(set(causes)) > 1,
        rounds=tuple(sorted({e.round for e in alike if e.round is not None})),
        clients=tuple(sorted({client for clients in who for client in clients})),
        times=len(alike),
        outcomes=dict(Counter(plain(e.outcome) for e in alike if e.outcome)),
        traceback=any(e.traceback for e in alike),
    )


def happenings(events: Sequence[Event], sessions: Sequence[Session]) -> tuple[str, ...]:
    """Resumes, damage and rounds that were begun again, in their order, a sentence each."""
    return tuple(_happenings(events, sessions))


def _happenings(events: Sequence[Event], sessions: Sequence[Session]) -> Iterator[str]:
    for event in events:
        cause = plain(event.cause)
        if event.kind == "resume":
            at = event.session
            known = at is not None and 0 < at < len(sessions)
            changes = _changes(sessions[0], sessions[at]) if known and at is not None else []
            when = f"after round {event.round}" if event.round else "from the beginning"
            yield f"Resumed {when}" + (f", on {'; '.join(changes)}" if changes else "")
        elif event.kind == "damage":
            yield f"Damage was found: {cause}"
        elif event.kind == "round":
            yield f"Round {event.round} was begun again: {cause}"
        elif event.kind == "tracker":
            yield f"A tracker failed and was told nothing more: {cause}"


def _changes(then: Session, now: Session) -> list[str]:
    """What was otherwise than when the run began, so that bits may differ."""
    names = [n for n in now.versions if now.versions[n] != then.versions.get(n)]
    changes = [f"{n} {now.versions[n]} instead of {then.versions.get(n)}" for n in names]
    if now.machine != then.machine:
        changes.append(f"{now.machine} instead of {then.machine}")
    return [plain(change) for change in changes]
