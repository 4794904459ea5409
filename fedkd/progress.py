"""What a person sees of a run: progress on stderr while it goes on, tables on stdout."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from fedkd.phrases import A_SENTENCE, plain, ranges, time_text

if TYPE_CHECKING:  # the bar is there before torch is
    from fedkd.conduct import Watch


_MOST_LINES = 10  # that a notebook shows of rounds, and of events
_WIDTH = 40  # characters of a bar


class Quiet:
    """Shows nothing but what makes the result another one, or keeps it from where it should go."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def stage(self, text: str) -> None: ...
    def event(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        if event["kind"] in ("damage", "surroundings", "tracker"):
            print(note_of(event), file=self._stream, flush=True)

    def round(
        self, record: Mapping[str, Any], seconds: Mapping[str, float]
    ) -> None: ...  # Any: JSON


class _Lines:
    """A line a stage and a round, for files and pipes."""

    def __init__(self, rounds: int, stream: IO[str]) -> None:
        self._rounds, self._stream = rounds, stream

    def stage(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def event(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        self.stage(note_of(event))

    def round(self, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:  # Any: JSON
        print(line_of(record, seconds, self._rounds), file=self._stream, flush=True)


class _Bar:
    """The same lines above a bar that tells what is being done."""

    def __init__(self, rounds: int, bar: Progress) -> None:
        self._rounds, self._bar = rounds, bar
        self._task = bar.add_task("start", total=rounds)

    def stage(self, text: str) -> None:
        self._bar.update(self._task, description=text, refresh=True)

    def event(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        self._bar.console.print(note_of(event), highlight=False, markup=False)

    def round(self, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:  # Any: JSON
        line = line_of(record, seconds, self._rounds)
        self._bar.console.print(line, highlight=False, markup=False)
        last = record["round"] == self._rounds
        self._bar.update(
            self._task,
            completed=record["round"],
            description="finish" if last else f"round {record['round'] + 1}",
        )


class _Page:
    """One text in the output of a notebook's cell, replaced in place.

    Events stay, since a run may tell of few and they may matter; rounds are in the records anyway.
    """

    def __init__(self, rounds: int, show: Callable[[str], None]) -> None:
        self._rounds, self._show = rounds, show
        self._events: list[str] = []
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._begun = time.monotonic()
        self.stage("start")

    def stage(self, text: str) -> None:
        self._show("\n".join([*self._events, *self._lines, text]))

    def event(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        self._events = [*self._events, note_of(event)][-_MOST_LINES:]
        self.stage("")

    def round(self, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:  # Any: JSON
        self._lines.append(line_of(record, seconds, self._rounds))
        done = round(_WIDTH * record["round"] / self._rounds)
        self.stage(f"{'█' * done}{'░' * (_WIDTH - done)} {record['round']}/{self._rounds}")

    def end(self) -> None:
        self.stage(f"{time_text(time.monotonic() - self._begun)} s in all")


@contextmanager
def watching(rounds: int, quiet: bool = False, stream: IO[str] | None = None) -> Iterator[Watch]:
    """A `Watch` for a run of so many rounds.

    A bar on a terminal, one text in a notebook, lines elsewhere; where `quiet`, almost nothing.
    """
    console = Console(file=stream or sys.stderr, force_jupyter=False)
    show = None if stream else _cell()
    if quiet:
        yield Quiet(console.file)
    elif show is not None:
        page = _Page(rounds, show)
        try:
            yield page
        finally:
            page.end()
    elif not console.is_terminal:
        yield _Lines(rounds, console.file)
    else:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(40))
        with Progress(
            *columns, MofNCompleteColumn(), Elapsed(), console=console, transient=True
        ) as bar:
            yield _Bar(rounds, bar)


def _cell() -> Callable[[str], None] | None:
    """What replaces the text of a notebook's cell; None where no notebook runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # IPython on a terminal is a terminal
        return None
    from IPython.display import display

    def page(text: str) -> dict[str, str]:
        return {"text/plain": text}

    handle = display(page(""), raw=True, display_id=True)
    return lambda text: handle.update(page(text), raw=True)


def line_of(record: Mapping[str, Any], seconds: Mapping[str, float], rounds: int) -> str:
    """A round in a line: accuracies on the global test set, and the time it took."""
    teachers = record["teachers"] or {"test": []}
    known = [accuracy for accuracy in teachers["test"] if accuracy is not None]
    mean = sum(known) / len(known) if known else None
    shown = {
        "student": record["student"] and record["student"]["test"],
        "ensemble": record["ensemble"] and record["ensemble"]["test"],
        "mean teacher": mean,
    }
    width = len(str(rounds))
    parts = [f"round {record['round']:{width}}/{rounds}"]
    parts += [f"{n} {'   —' if a is None else f'{100 * a:5.1f}%'}" for n, a in shown.items()]
    parts.append(f"{sum(seconds.values()):6.1f} s")
    if record.get("virtual_s"):
        parts.append(f"{time_text(record['virtual_s'])} virtual s")
    out = [f"{len(record[why])} {why}" for why in ("absent", "late", "dropped") if record.get(why)]
    return "   ".join([*parts, *out])


_OUTCOMES = {
    "retried": "it is tried again",
    "dropped": "it is left out of the rest of the round",
    "stopped": "the run stops",
    "ignored": "this is passed over",
}


def note_of(event: Mapping[str, Any]) -> str:  # Any: JSON
    """An event in a line: where, who, what, and what comes of it."""
    cause = plain(str(event.get("cause", "")))
    if event["kind"] == "resume":
        return f"resumed after round {event['round']}"
    if event["kind"] == "damage":
        return f"damaged: {cause}"
    if event["kind"] == "surroundings":
        return f"not as when the run began, so bits may differ: {cause}"
    if event["kind"] == "round":
        return f"{cause}; the round is begun again"
    if event["kind"] == "caution":
        return f"caution: {plain(str(event.get('cause', '')), A_SENTENCE)}"
    if event["kind"] == "tracker":
        return f"a tracker failed and is told nothing more: {cause}"
    clients, round_ = event.get("clients", []), event.get("round")
    where = ["" if round_ is None else f"round {round_}", plain(str(event.get("phase") or ""))]
    if clients:
        where.append(f"{'client' if len(clients) == 1 else 'clients'} {ranges(clients)}")
    outcome = _OUTCOMES.get(event.get("outcome", ""), "")
    place = ", ".join(filter(None, where))
    return "; ".join(filter(None, (": ".join(filter(None, (place, cause))), outcome)))


def show(lines: Sequence[Sequence[str]], head: bool = True) -> None:
    """A table on stdout; see `text_of`. A file or a pipe is as wide as the table."""
    print(text_of(lines, head, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


def text_of(lines: Sequence[Sequence[str]], head: bool = True, width: int | None = None) -> str:
    """A table as text, its first line the head if there is one; figures stand to the right.

    Where `width` is too small, the heads of figures and the text columns are folded at words.
    """
    columns = [*zip(*lines, strict=True)]
    bodies = [cells[head:] for cells in columns]
    figures = [all(_FIGURE.fullmatch(cell) for cell in cells) for cells in bodies]
    widths = [max(map(len, cells)) for cells in columns]
    if width is not None and sum(widths) + _GAP * (len(widths) - 1) > width:
        words = [max(len(w) for cell in cells for w in (*cell.split(), "")) for cells in columns]
        widths = [words[i] if figure else widths[i] for i, figure in enumerate(figures)]
        texts = [i for i, figure in enumerate(figures) if not figure]
        room = width - sum(widths) - _GAP * (len(widths) - 1) + sum(widths[i] for i in texts)
        for n, i in enumerate(
            sorted(texts, key=widths.__getitem__)
        ):  # the widest take what is left
            widths[i] = min(widths[i], max(words[i], room // (len(texts) - n)))
            room -= widths[i]
    folded: list[str] = []
    for line in lines:
        cells = [textwrap.wrap(c, max(w, 1)) or [""] for c, w in zip(line, widths, strict=True)]
        for depth in range(max(map(len, cells))):
            parts = [c[depth] if depth < len(c) else "" for c in cells]
            shown = (
                p.rjust(w) if figure else p.ljust(w)
                for p, w, figure in zip(parts, widths, figures, strict=True)
            )
            folded.append((" " * _GAP).join(shown).rstrip())
    return "\n".join(folded)


_FIGURE = re.compile(r"[-+]?[\d,.]*|—")
_GAP = 2  # columns between two columns
