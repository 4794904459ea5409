"""Our Grid on Ray: a pool of workers, fed as they become free, replaced when they die.

Why not Flower's own engine: it polls every 0.1 s, sweeps all messages under one lock, serves at
most 32 tasks at once, and a dead worker goes back to its pool and swallows what follows.

A reply stays in Ray's object store until it is pulled, so this process holds only what it works on.
"""

from __future__ import annotations

import collections
import logging
import math
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import RayError

from fedkd import folder
from fedkd.conduct import Watch
from fedkd.config import Config, ConfigError, Execution
from fedkd.runtime import private
from fedkd.runtime.apps import client, server_app
from fedkd.runtime.local import LocalGrid

_LOST = 8  # the error code of a task whose workers died


class _Worker:
    """A process that serves tasks one after the other; what it has assembled lives on in it."""

    def __init__(self) -> None:
        # by import: an argument would lie in the object store, and a worker that is started anew
        # might find it gone
        from fedkd.runtime import apps

        self._app = apps.client

    def serve(self, message: Message) -> tuple[bool, Message]:
        context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), {})
        try:
            return True, self._app(message, context)
        except Exception as error:  # Flower's code 2: the app raised
            return True, Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)


class RayGrid(LocalGrid):
    """The Grid over Ray workers. One thread hands out work and notices the dead."""

    def __init__(
        self, app: ClientApp, execution: Execution, event: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(app)
        self._event, self._retries = event, execution.retries
        gpus = 0.0 if execution.gpus_per_task == "auto" else execution.gpus_per_task
        worker: Any = ray.remote(_Worker).options(num_cpus=execution.cpus_per_task, num_gpus=gpus)
        self._new_worker: Callable[[], Any] = worker.remote  # Any: an actor handle
        self.workers = _seats(execution, gpus)
        self._idle = collections.deque(self._new_worker() for _ in range(self.workers))
        self._todo: collections.deque[tuple[str, Message, int]] = collections.deque()
        self._busy: dict[Any, tuple[str, Message, int, Any, Any]] = {}
        self._done: dict[str, Any] = {}
        self._pending: set[str] = set()
        self._change = threading.Condition()
        self._closed = False
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
                self._todo.append((ticket, message, 0))
                self._pending.add(ticket)
                tickets.append(ticket)
            self._hand_out()
        self._wake.set()
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there; waits up to a second for the first of them."""
        wanted = list(message_ids)
        with self._change:
            self._change.wait_for(
                lambda: (
                    self._closed or any(i in self._done or i not in self._pending for i in wanted)
                ),
                timeout=1.0,
            )
            ready = [self._done.pop(i) for i in wanted if i in self._done]
            self._pending -= set(wanted) & {i for i in wanted if i not in self._done}
        replies = [r if isinstance(r, Message) else ray.get(r) for r in ready]
        for reply in replies:
            private.set_message_id(reply, uuid.uuid4().hex)
        return replies

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=10)
        for worker in self._idle:
            ray.kill(worker)

    def _hand_out(self) -> None:
        """Give waiting tasks to idle workers; the caller holds the lock."""
        while self._todo and self._idle:
            ticket, message, tries = self._todo.popleft()
            worker = self._idle.popleft()
            status, reply = worker.serve.options(num_returns=2).remote(message)
            self._busy[status] = (ticket, message, tries, worker, reply)

    def _dispatch(self) -> None:
        """Wait for the first of the running tasks, free its worker, hand out the next."""
        while not self._closed:
            with self._change:
                running = list(self._busy)
            if not running:
                self._wake.wait(timeout=1.0)
                self._wake.clear()
                continue
            ready, _ = ray.wait(running, num_returns=1, timeout=0.2)
            for status in ready:
                ticket, message, tries, worker, reply = self._busy[status]
                outcome: Any = reply
                try:
                    ray.get(status)
                except RayError as error:
                    # the worker died. Ray could start it anew under the same handle, but would
                    # refuse all tasks until it is back, so each of them would lose a try
                    ray.kill(worker)
                    worker = self._new_worker()
                    cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    if tries < self._retries:
                        self._event({"kind": "retry", "try": tries + 1, "cause": cause})
                        outcome = None
                    else:
                        outcome = Message(
                            Error(
                                _LOST,
                                f"{cause}; {tries + 1} tries; raise execution.retries or give"
                                " workers more memory",
                            ),
                            reply_to=message,
                        )
                with self._change:
                    del self._busy[status]
                    self._idle.append(worker)
                    if outcome is None:
                        self._todo.appendleft((ticket, message, tries + 1))
                    else:
                        self._done[ticket] = outcome
                    self._hand_out()
                    self._change.notify_all()


def _seats(execution: Execution, gpus: float) -> int:
    """How many workers there are to be, as far as the cluster has room for them, node by node.

    Ray would let the others wait for ever. Raises `ConfigError`.
    """
    cpus, seats = execution.cpus_per_task, 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        rooms = [has.get("CPU", 0.0) / cpus] + ([has.get("GPU", 0.0) / gpus] if gpus else [])
        seats += math.floor(min(rooms) + 1e-9)  # three times a third is a whole
    wanted = 1 if execution.workers == "auto" else execution.workers
    if seats < wanted:
        raise ConfigError(
            f"execution.workers: should be at most {seats}, as many as the cluster has room for at"
            f" {cpus:g} CPUs and {gpus:g} GPUs each, found {execution.workers}; lower it, or"
            " execution.cpus_per_task or execution.gpus_per_task"
        )
    return seats if execution.workers == "auto" else execution.workers


@contextmanager
def session(execution: Execution) -> Iterator[None]:
    """A Ray session: one that is open stays open, so many runs may share it; else our own."""
    if ray.is_initialized():
        yield
        return
    workers = execution.workers
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
        grid = RayGrid(client, config.execution, lambda e: folder.append(run / "events.jsonl", e))
        try:
            server_app(config, run, watch)(grid, Context(1, 1, {}, RecordDict(), {}))
        finally:
            grid.close()
