"""What travels between server and workers: a task is bytes in, a reply is bytes out.

A task's head names the resolved config, the round, what to do and the stacks; its blobs are row
lists, downloads and, where no disk is shared, shards. Rows and the config are the envelope of the
simulation; what counts as communication is counted by the exchange.
"""

from __future__ import annotations

import functools
import json
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkd import wire
from fedkd.assemble import Plan, assemble, prepare
from fedkd.config import load_config
from fedkd.disk import DiskError
from fedkd.store import Carried, Folder, Store


class Task(NamedTuple):
    """A task message, unpacked; the head refers to blobs by their index."""

    head: Mapping[str, Any]  # Any: JSON
    blobs: Sequence[bytes]

    def rows(self) -> Tensor:
        """The rows [R, 3] that this task is about."""
        return rows_from(self.blobs[self.head["rows"]])


class TooSlow(BaseException):
    """A step took longer than a client may (`execution.deadline_s`).

    No `Exception`, so that a client's own `except Exception` does not keep it going.
    """


# what user code may raise without an end to the process that runs it
FAULTS = (Exception, SystemExit, TooSlow)


def serve(message: bytes, do: Callable[[Plan, Task, Store], bytes]) -> bytes:
    """Do one task on this process's Plan. What is no client's own fault becomes an error reply."""
    try:
        task = Task(*wire.unpack(message))
        plan = plan_of(task)
        with threads(plan.config.compute.task_threads):
            return do(plan, task, store_of(task))
    except DiskError as error:
        return wire.pack({"error": {**fault(error), "message": str(error), "disk": True}}, [])
    except FAULTS as error:  # must reach the server as a reply
        return wire.pack({"error": fault(error)}, [])


def fault(error: BaseException) -> dict[str, Any]:
    """An exception as it stands in a reply."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Whatever runs inside is interrupted with `TooSlow` after so many seconds.

    This stops a step that sleeps, waits or loops in Python. One that is stuck in foreign code is
    given up by the runtime, with its worker. Only the main thread of a process can be interrupted.
    Inside of another `within` the outer one stands still.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TooSlow(f"longer than {seconds:g} s (execution.deadline_s)")

    before = signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also where it rang at the very end
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, outer)


def plan_of(task: Task) -> Plan:
    """This process's Plan for the task's experiment: assembled once, kept by the config's text.

    Data that were made anew, as a resumed run does where they were damaged, are other data.
    """
    facts = Path(task.head["data"]) / "data.json"
    if not facts.exists():
        if task.head["store"] is not None:  # whoever shares the server's disk finds them there
            raise DiskError(f"disk: {facts} could not be read: No such file or directory")
        prepare(load_config(task.head["config"]), facts.parent)
    about = facts.stat()
    text = json.dumps(task.head["config"], sort_keys=True)
    return _plan(text, str(facts.parent), about.st_ino, about.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _plan(config: str, data: str, inode: int, made: int) -> Plan:
    return assemble(load_config(json.loads(config)), Path(data))


def store_of(task: Task) -> Store:
    """The back end that this task was sent with."""
    if task.head["store"] is not None:
        return Folder(Path(task.head["store"]))
    return Carried({name: task.blobs[i] for name, i in task.head["shards"].items()})


@contextmanager
def threads(count: int | str) -> Iterator[None]:
    """The number of threads is part of what defines the bits, so whoever computes sets it."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_to(rows: Tensor) -> bytes:
    """Row ids [R, 3] as they travel: int32."""
    return rows.to(torch.int32).contiguous().numpy().tobytes()


def rows_from(raw: bytes) -> Tensor:
    """The inverse of `rows_to`."""
    if not raw:
        return torch.zeros(0, 3, dtype=torch.int64)
    return torch.frombuffer(bytearray(raw), dtype=torch.int32).view(-1, 3).long()
