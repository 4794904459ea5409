"""Our Grid on Ray: a pool of workers, fed as they become free, replaced when they die.

Why not Flower's own engine: it polls every 0.1 s, sweeps all messages under one lock, serves at
most 32 tasks at once, and a dead worker goes back to its pool and swallows what follows.

A reply stays in Ray's object store until it is pulled, so this process holds only what it works on.
"""

from __future__ import annotations

import collections
import logging
import math
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import GetTimeoutError, RayError

from fedkd.conduct import Watch
from fedkd.config import Config, ConfigError, Execution
from fedkd.runtime import private
from fedkd.runtime.apps import client, server_app
from fedkd.runtime.local import LocalGrid

_LOST = 8  # the error code of a task whose worker is gone
_LOOK_S = 2.0  # between two looks at what nodes there are
_ANSWER_S = 5.0  # an idle worker that has not answered by then is gone
_STILLBORN = 8  # as many workers in succession may fail to come up before a task is lost over it


class _Worker:
    """A process that serves tasks one after the other; what it has assembled lives on in it."""

    def __init__(self) -> None:
        # by import: an argument would lie in the object store, and a worker that is started anew
        # might find it gone
        from fedkd.runtime import apps

        self._app = apps.client

    def up(self) -> None:
        """Answers once the worker is there."""

    def serve(self, message: Message) -> tuple[bool, Message]:
        context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), {})
        try:
            return True, self._app(message, context)
        except Exception as error:  # Flower's code 2: the app raised
            return True, Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)


class _Seat:
    """A worker, the task that it has, and since when."""

    def __init__(self, worker: Any) -> None:  # Any: an actor handle
        self.worker = worker
        self.up: Any = worker.up.remote()  # Any: an object reference; ready once the worker is
        self.ticket = ""
        self.message: Message | None = None
        self.status: Any = None
        self.reply: Any = None
        self.since = 0.0

    def give(self, ticket: str, message: Message) -> None:
        self.ticket, self.message, self.since = ticket, message, time.monotonic()
        self.status, self.reply = self.worker.serve.options(num_returns=2).remote(message)

    @property
    def born(self) -> bool:
        """Whether the worker has come up, or failed to; it may have gone since."""
        return bool(ray.wait([self.up], timeout=0)[0])

    @property
    def stillborn(self) -> bool:
        """Whether the worker has never come up, as on a node that is going, and never will."""
        try:
            ray.get(self.up, timeout=0)
        except GetTimeoutError:
            return False
        except RayError:
            return True
        return False

    @property
    def overdue(self) -> bool:
        return self.message is not None and (
            time.monotonic() - self.since > self.message.metadata.ttl
        )


class RayGrid(LocalGrid):
    """The Grid over Ray workers. One thread hands out work and notices the dead and the stuck."""

    def __init__(self, app: ClientApp, execution: Execution) -> None:
        super().__init__(app)
        gpus = 0.0 if execution.gpus_per_task == "auto" else execution.gpus_per_task
        worker: Any = ray.remote(_Worker).options(num_cpus=execution.cpus_per_task, num_gpus=gpus)
        self._new_seat: Callable[[], _Seat] = lambda: _Seat(worker.remote())
        self._room: Callable[[], int] = lambda: room(execution.cpus_per_task, gpus)
        self.workers = _seats(execution, self._room())
        self._idle = collections.deque(self._new_seat() for _ in range(self.workers))
        self._busy: list[_Seat] = []
        self._todo: collections.deque[tuple[str, Message]] = collections.deque()
        self._done: dict[str, tuple[Any, Message]] = {}
        self._pending: set[str] = set()
        self._change = threading.Condition()
        self._closed = False
        self._broken: Exception | None = None
        self._stillborn = 0  # in succession
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._dispatch, name="fedkd-ray", daemon=True)
        self._thread.start()

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self.workers + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        tickets = []
        with self._change:
            for message in messages:
                ticket = uuid.uuid4().hex
                private.set_message_id(message, ticket)
                self._todo.append((ticket, message))
                self._pending.add(ticket)
                tickets.append(ticket)
            self._hand_out()
        self._wake.set()
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there; waits up to a second for the first of them.

        Raises `RuntimeError` where nothing will come any more, for Ray itself has failed.
        """
        wanted = list(message_ids)
        with self._change:
            self._change.wait_for(
                lambda: (
                    self._closed
                    or self._broken is not None
                    or any(i in self._done or i not in self._pending for i in wanted)
                ),
                timeout=1.0,
            )
            if self._broken is not None:
                raise RuntimeError(f"ray: its session has failed: {self._broken}") from self._broken
            found = [i for i in wanted if i in self._done]
            ready = [self._done.pop(i) for i in found]
            self._pending.difference_update(found)
        replies = [_collected(reply, message) for reply, message in ready]
        for reply in replies:
            private.set_message_id(reply, uuid.uuid4().hex)
        return replies

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=10)
        for seat in (*self._idle, *self._busy):
            _kill(seat.worker)

    def _hand_out(self) -> None:
        """Give waiting tasks to idle workers; the caller holds the lock."""
        while self._todo and self._idle:
            seat = self._idle.popleft()
            seat.give(*self._todo.popleft())
            self._busy.append(seat)

    def _dispatch(self) -> None:
        """Tend the workers until all is over, or Ray fails."""
        try:
            looked = time.monotonic()
            while not self._closed:
                if self._tend() or time.monotonic() - looked > _LOOK_S:
                    self._fit()
                    looked = time.monotonic()
        except Exception as error:  # whoever waits for replies is told
            with self._change:
                self._broken = error
                self._change.notify_all()

    def _tend(self) -> bool:
        """Wait for the first of the running tasks, free its worker, hand out the next.

        Says whether a worker was lost or given up.
        """
        with self._change:
            running = {seat.status: seat for seat in self._busy}
        if not running:
            self._wake.wait(timeout=1.0)
            self._wake.clear()
            return False
        ready, _ = ray.wait(list(running), num_returns=1, timeout=0.2)
        causes = {status: self._ended(running[status]) for status in ready}
        for status, seat in running.items():
            if status not in causes and seat.overdue:
                assert seat.message is not None
                limit = seat.message.metadata.ttl
                causes[status] = f"it took longer than {limit:g} s and was ended"
        lost = {running[status]: cause for status, cause in causes.items() if cause is not None}
        for seat, cause in lost.items():
            self._dismiss(seat, cause)
        if lost:
            self._sift()
        return bool(lost)

    def _ended(self, seat: _Seat) -> str | None:
        """A task came to its end, or its worker did: then the cause is given."""
        try:
            ray.get(seat.status)
        except RayError as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        assert seat.message is not None
        self._stillborn = 0
        with self._change:
            self._busy.remove(seat)
            self._done[seat.ticket] = seat.reply, seat.message
            seat.message = None
            self._idle.append(seat)
            self._hand_out()
            self._change.notify_all()
        return None

    def _dismiss(self, seat: _Seat, cause: str) -> None:
        """The worker is gone or given up, and its task with it, unless it has never been at work.

        Ray could start it anew under the same handle, but would refuse all tasks until it is back.
        """
        _kill(seat.worker)
        assert seat.message is not None
        stillborn = seat.stillborn
        self._stillborn += stillborn
        with self._change:
            self._busy.remove(seat)
            if stillborn and self._stillborn % _STILLBORN:
                self._todo.appendleft((seat.ticket, seat.message))
                return
            lost = Message(Error(_LOST, cause), reply_to=seat.message)
            self._done[seat.ticket] = lost, seat.message
            self._change.notify_all()

    def _sift(self) -> None:
        """What took one worker may have taken others that were idle; a task would be lost there."""
        with self._change:
            doubted = [seat for seat in self._idle if seat.born]
            for seat in doubted:
                self._idle.remove(seat)
        calls = [seat.worker.up.remote() for seat in doubted]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_ANSWER_S)
        for seat, call in zip(doubted, calls, strict=True):
            try:
                ray.get(call, timeout=0)
            except RayError:
                _kill(seat.worker)
            else:
                with self._change:
                    self._idle.append(seat)

    def _fit(self) -> None:
        """As many workers as there is room for, and no more than wanted.

        Where nodes are gone, workers that wait for room in vain are let go, and others get their
        tasks; where no room is left at all, what waits is lost.
        """
        room = self._room()
        with self._change:
            seats = [*self._idle, *self._busy]
            over = max(0, len(seats) - room)
            for seat in [s for s in seats if not s.born][:over] if over else []:
                _kill(seat.worker)
                if seat.message is None:
                    self._idle.remove(seat)
                else:
                    self._busy.remove(seat)
                    self._todo.appendleft((seat.ticket, seat.message))
            missing = min(self.workers, room) - len(self._busy) - len(self._idle)
            self._idle.extend(self._new_seat() for _ in range(missing))
            self._hand_out()
            if not room:
                for ticket, message in self._todo:
                    gone = Error(_LOST, "no node is left that has room for a worker")
                    self._done[ticket] = Message(gone, reply_to=message), message
                self._todo.clear()
            self._change.notify_all()


def _kill(worker: Any) -> None:  # Any: an actor handle
    ray.kill(worker)


def _collected(reply: Any, message: Message) -> Message:  # Any: a Message or its reference
    """A reply from where it lies; if that node is gone, so is the reply."""
    if isinstance(reply, Message):
        return reply
    try:
        found = ray.get(reply)
    except RayError as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Message(Error(_LOST, cause), reply_to=message)
    assert isinstance(found, Message)
    return found


def room(cpus: float, gpus: float) -> int:
    """How many workers the cluster has room for, node by node."""
    seats = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        rooms = [has.get("CPU", 0.0) / cpus] + ([has.get("GPU", 0.0) / gpus] if gpus else [])
        seats += math.floor(min(rooms) + 1e-9)  # three times a third is a whole
    return seats


def _seats(execution: Execution, room: int) -> int:
    """How many workers there are to be. Ray would let those wait for ever that find no room.

    Raises `ConfigError`.
    """
    wanted = 1 if execution.workers == "auto" else execution.workers
    if room < wanted:
        raise ConfigError(
            f"execution.workers: should be at most {room}, as many as the cluster has room for at"
            f" {execution.cpus_per_task:g} CPUs and {execution.gpus_per_task} GPUs each, found"
            f" {execution.workers}; lower it, or execution.cpus_per_task or"
            " execution.gpus_per_task"
        )
    return room if execution.workers == "auto" else execution.workers


@contextmanager
def session(execution: Execution) -> Iterator[None]:
    """A Ray session: one that is open stays open, so many runs may share it; else our own."""
    if ray.is_initialized():
        yield
        return
    workers, ended = execution.workers, signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if execution.address is not None:
            _join(execution.address)
        else:
            ray.init(
                address="local",  # not the cluster that somebody has started on this machine
                num_cpus=None
                if workers == "auto"
                else math.ceil(workers * execution.cpus_per_task),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ended)  # Ray has put one of its own there
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Connect to a running cluster. Ray itself knocks for minutes where nobody is at home."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except OSError as error:  # Ray's ConnectionError is one
        raise ConfigError(
            f"execution.address: a Ray cluster should answer at {address}, found:"
            f" {str(error).splitlines()[0]}; start one with `ray start --head`, correct the"
            " address, or leave it out for a session of our own"
        ) from None


def start(config: Config, run: Path, watch: Watch) -> None:
    """Conduct a run over Ray workers."""
    with session(config.execution):
        grid = RayGrid(client, config.execution)
        try:
            server_app(config, run, watch)(grid, Context(1, 1, {}, RecordDict(), {}))
        finally:
            grid.close()
