"""What happened in a run, as text: failures, absences, virtual time, resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedkd.course import Who, aim, timed
from fedkd.incidents import Incident
from fedkd.phrases import NOTHING, grid, inert, ranges, size_text, time_text
from fedkd.summary import Summary

WHOSE: Mapping[Who, str] = {"student": "the student", "teachers": "the teachers' mean"}
_MOST_SHOWN = 50  # kinds of failures, sentences
_KINDS = {
    "failure": "failed",
    "refused": "answer refused",
    "lost": "lost",
    "unasked": "spoke unasked",
}
_OUTCOMES = {
    "retried": "tried again",
    "dropped": "left out of the round",
    "stopped": "the run stopped",
    "ignored": "passed over",
}


def beginnings(summary: Summary) -> Iterator[str]:
    """Facts for a list: where a run comes from, and its virtual time."""
    if branch := summary.branched:
        yield (
            f"Branched from {inert(branch.run)} after round {branch.round}; what came before is of"
            f" another experiment, fingerprint `{inert(branch.fingerprint)}`"
        )
    if timed(summary.moments):
        (*_, total) = (m.seconds for m in summary.moments if m.seconds is not None)
        yield f"Virtual time: {time_text(total)} s in total"


def delays(summary: Summary) -> Iterator[str]:
    """When the accuracies were reached, and who was missing; nothing where there is none of it."""
    if summary.arrivals:
        whose = WHOSE[aim(summary.moments)]
        lines = [(f"Accuracy of {whose}", "Virtual seconds", "Round", "Bytes up and down")]
        for arrival in summary.arrivals:
            cells = (NOTHING, NOTHING, NOTHING)
            if arrival.round is not None:
                seconds = NOTHING if arrival.seconds is None else time_text(arrival.seconds)
                cells = (seconds, f"{arrival.round:,}", size_text(arrival.bytes or 0))
            lines.append((f"{100 * arrival.level:.0f} %", *cells))
        yield grid(lines)
        yield (
            "Time to accuracy: at the end of the first evaluated round with at least this accuracy"
            f" on the global test set, {NOTHING} where there is none. It may have been lost again"
            " later. Virtual seconds are those of the simulated world.\n"
        )
    if summary.missing:
        heads = ("Rounds", "Clients asked", "Vanished", "Too late", "Left out after a failure")
        table: list[tuple[str, ...]] = [heads]
        for span in summary.missing:
            when = f"{span.first}" if span.first == span.last else f"{span.first}–{span.last}"
            counts = (span.asked, span.absent, span.late, span.dropped)
            table.append((when, *(f"{count:,}" for count in counts)))
        yield grid(table)
        yield (
            "Vanished: took its question and was not heard of again in the round. Too late: worked,"
            " but its answer was not waited for. Both belong to the simulated world; a failure is"
            " real.\n"
        )


def troubles(summary: Summary) -> Iterator[str]:
    """Every failure, and what else there was to tell; says so where there was none."""
    if not summary.incidents and not summary.happenings:
        yield "No failures, retries or resumes.\n"
    if summary.incidents:
        total = sum(incident.times for incident in summary.incidents)
        yield f"## Failures: {total:,}\n"
        heads = ("Rounds", "Phase", "Clients", "What happened", "Times", "What became of it")
        lines = [_line(incident) for incident in summary.incidents[:_MOST_SHOWN]]
        yield grid([heads, *lines], texts=(0, 1, 2, 3, 5))
        rest = summary.incidents[_MOST_SHOWN:]
        told = ""
        if rest:
            times = sum(incident.times for incident in rest)
            told = f"{times:,} more of {len(rest):,} other kinds are in events.jsonl. "
        if any(incident.traceback for incident in summary.incidents):
            told += "Tracebacks are in events.jsonl."
        if told:
            yield f"{told.strip()}\n"
    if summary.happenings:
        shown = [f"- {inert(text)}\n" for text in summary.happenings[:_MOST_SHOWN]]
        more = len(summary.happenings) - len(shown)
        shown += [f"- and {more:,} more in events.jsonl\n"] if more else []
        yield "What else happened:\n\n" + "".join(shown)


def _line(incident: Incident) -> tuple[str, ...]:
    cause = inert(incident.cause) + " (others with other numbers)" * incident.varied
    outcomes = [
        _OUTCOMES.get(name, inert(name)) + (f" {count:,}×" if incident.times > 1 else "")
        for name, count in incident.outcomes.items()
    ]
    what = _KINDS.get(incident.kind, inert(incident.kind))
    return (
        ranges(incident.rounds) or NOTHING,
        inert(incident.phase) or NOTHING,
        ranges(incident.clients) or NOTHING,
        f"{what}: {cause}" if cause else what,
        f"{incident.times:,}",
        ", ".join(outcomes) or NOTHING,
    )
