"""What a person sees of a sweep: a live table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedkd.phrases import time_text

if TYPE_CHECKING:  # the board is there before torch is
    from fedkd.sweeps import Board, Task

_SHOWN = 20  # runs in the live table; of more, those that are under way and the last to end


class _Lines:
    """A line a run, for files and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._began, self._all, self._ended = stream, time.monotonic(), 0, 0

    def stage(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, tasks: Sequence[Task], at_once: int) -> None:
        done = sum(task.finished for task in tasks)
        self._all, self._ended = len(tasks), done
        before = f", {done} of them finished before" if done else ""
        self.stage(f"{len(tasks)} runs{before}; {at_once} at a time")

    def look(self) -> None: ...

    def ended(self, task: Task, error: str) -> None:
        self._ended += 1
        said = f"failed: {error.splitlines()[0]}" if error else f"student {accuracy(task.folder)}"
        spent = time_text(time.monotonic() - self._began)
        self.stage(f"[{self._ended}/{self._all}] {task.point.text}: {said}   {spent}")


class _Table:
    """Every run with how far it is, redrawn as they go on."""

    def __init__(self, live: Live) -> None:
        self._live, self._began, self._stage = live, time.monotonic(), ""
        self._tasks: list[Task] = []
        self._errors: dict[Path, str] = {}

    def stage(self, text: str) -> None:
        self._stage = text
        self.look()

    def begin(self, tasks: Sequence[Task], at_once: int) -> None:
        self._tasks = list(tasks)
        self._stage = f"{at_once} at a time"
        self.look()

    def ended(self, task: Task, error: str) -> None:
        self._errors[task.folder] = error
        self.look()

    def look(self) -> None:
        rows = [(task, *self._state(task)) for task in self._tasks]
        ended = sum(state in ("finished", "failed") for _, state, _, _ in rows)
        table = Table(box=None, pad_edge=False)
        for head in ("run", "state", "round", "student"):
            table.add_column(head, justify="right" if head in ("round", "student") else "left")
        order = {"running": 0, "failed": 1, "finished": 2, "waiting": 3}
        shown = rows if len(rows) <= _SHOWN else sorted(rows, key=lambda r: order[r[1]])[:_SHOWN]
        for task, state, rounds, student in shown:
            style = {"failed": "red", "running": "bold", "waiting": "dim"}.get(state, "")
            table.add_row(Text(task.point.text), state, rounds, student, style=style)
        spent = time_text(time.monotonic() - self._began)
        foot = Text(f"{ended} of {len(rows)} runs   {spent}   {self._stage}", style="dim")
        self._live.update(Group(table, foot), refresh=True)

    def _state(self, task: Task) -> tuple[str, str, str]:
        done, all_ = rounds(task.folder), task.config.rounds
        state = "waiting"
        if self._errors.get(task.folder):
            state = "failed"
        elif task.finished:
            state = "finished"
        elif (task.folder / "config.yaml").exists():
            state = "running"
        return state, f"{done}/{all_}", accuracy(task.folder)


class _Quiet:
    """Shows nothing."""

    def stage(self, text: str) -> None: ...
    def begin(self, tasks: Sequence[Task], at_once: int) -> None: ...
    def look(self) -> None: ...
    def ended(self, task: Task, error: str) -> None: ...


@contextmanager
def watching(quiet: bool = False, stream: IO[str] | None = None) -> Iterator[Board]:
    """A board on stderr: a table on a terminal, lines elsewhere, or nothing."""
    console = Console(file=stream, stderr=stream is None)
    if quiet:
        yield _Quiet()
    elif not console.is_terminal:
        yield _Lines(console.file)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield _Table(live)


def rounds(folder: Path) -> int:
    """How many rounds a run has recorded so far."""
    try:
        with (folder / "records.jsonl").open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def accuracy(folder: Path) -> str:
    """The student's accuracy on the global test set in the last round that measured it, in %."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for line in reversed((folder / "records.jsonl").read_text().splitlines()):
            student = json.loads(line)["student"]
            if student is not None:
                return f"{100 * student['test']:.1f}%"
    return "—"
