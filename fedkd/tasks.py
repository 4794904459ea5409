"""What travels between server and workers: a task is bytes in, a reply is bytes out.

A task's head names the resolved config, the round, what to do and the stacks; its blobs are row
lists, downloads and, where no disk is shared, shards. Rows and the config are the envelope of the
simulation; what counts as communication is counted by the exchange.
"""

from __future__ import annotations

import functools
import json
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
from fedkd.store import Carried, Folder, Store


class Task(NamedTuple):
    """A task message, unpacked; the head refers to blobs by their index."""

    head: Mapping[str, Any]  # Any: JSON
    blobs: Sequence[bytes]

    def rows(self) -> Tensor:
        """The rows [R, 3] that this task is about."""
        return rows_from(self.blobs[self.head["rows"]])


class ClientError(RuntimeError):
    """A fault while a client was served, with its id."""

    def __init__(self, client: int, cause: Exception) -> None:
        super().__init__(f"client {client}: {type(cause).__name__}: {cause}")
        self.client = client
        self.cause = cause


@contextmanager
def blaming(client: int) -> Iterator[None]:
    """Whatever fails inside is a fault of this client."""
    try:
        yield
    except Exception as error:  # whatever user code raises
        raise ClientError(client, error) from error


def serve(message: bytes, do: Callable[[Plan, Task, Store], bytes]) -> bytes:
    """Do one task on this process's Plan. A fault becomes a reply that says whose it was."""
    task = Task(*wire.unpack(message))
    try:
        plan = plan_of(task)
        with threads(plan.config.compute.task_threads):
            return do(plan, task, store_of(task))
    except Exception as error:  # whatever user code raises must reach the server as a reply
        return _failure(task, error)


def _failure(task: Task, error: Exception) -> bytes:
    cause = error.cause if isinstance(error, ClientError) else error
    everyone = [c for s in task.head["stacks"] for c in s["clients"]]
    said = {
        "clients": [error.client] if isinstance(error, ClientError) else everyone,
        "type": type(cause).__name__,
        "message": str(cause),
        "traceback": "".join(traceback.format_exception(cause)),
    }
    return wire.pack({"error": said}, [])


def plan_of(task: Task) -> Plan:
    """This process's Plan for the task's experiment: assembled once, kept by the config's text."""
    return _plan(json.dumps(task.head["config"], sort_keys=True), task.head["data"])


@functools.lru_cache(maxsize=2)
def _plan(config: str, data: str) -> Plan:
    resolved = load_config(json.loads(config))
    folder = Path(data)
    if not (folder / "data.json").exists():  # a worker that does not see the server's disk
        prepare(resolved, folder)
    return assemble(resolved, folder)


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
