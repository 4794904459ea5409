"""Several runs at once on one warm Ray session: processes that carry out whole runs.

What a process has imported stays, so a run after the first begins at once. A small run is done
within its process; a run that has the machine for itself may have workers of its own.
"""

from __future__ import annotations

import collections
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from fedkd.config import Config, Execution
from fedkd.runtime.ray import session


class Job(NamedTuple):
    """A run that is to be begun, or gone on with where its folder is there already."""

    config: Config
    folder: Path


class _Conductor:
    """A process that carries out runs, one after the other."""

    def __init__(self) -> None:
        importlib.import_module("fedkd.runs")  # torch and Flower are there before the first run

    def carry_out(self, tree: dict[str, Any], folder: str) -> str:  # Any: nested YAML
        """What went wrong, or nothing."""
        from fedkd.config import load_config

        return attempt(Job(load_config(tree), Path(folder)))


def attempt(job: Job) -> str:
    """Carry out one run in this process; what went wrong in words, or nothing."""
    from fedkd import folder, runs

    try:
        if folder.begun(job.folder):
            runs.resume(job.folder, lambda stored: _as_now(stored, job.config))
        else:
            runs.run(job.config)
    except Exception as error:  # one run that fails keeps no other from being done
        text = str(error).partition("\nTraceback (most recent call last)")[0].strip()
        named = (
            text
            if type(error).__module__.startswith("fedkd")
            else f"{type(error).__name__}: {text}"
        )
        return named or type(error).__name__
    return ""


def _as_now(stored: Config, wanted: Config) -> Config:
    """The stored experiment, carried out as is wanted now."""
    kept = wanted.execution.model_copy(update={"out": stored.execution.out})
    return stored.model_copy(update={"execution": kept})


class Pool:
    """So many conductors, each with one run at a time."""

    def __init__(self, count: int, cpus: float) -> None:
        made: Any = ray.remote(_Conductor).options(num_cpus=cpus)  # Any: Ray's own types
        self._new = made.remote
        self._idle = collections.deque(self._new() for _ in range(count))
        self._busy: dict[Any, tuple[Any, Job]] = {}  # Any: object references and actor handles

    def done(self, jobs: Sequence[Job], wait_s: float) -> Iterator[tuple[Job, str] | None]:
        """Every job as it ends, with what went wrong; None now and then, while nothing ends."""
        todo = collections.deque(jobs)
        while todo or self._busy:
            while todo and self._idle:
                job, conductor = todo.popleft(), self._idle.popleft()
                tree = job.config.model_dump(mode="json")
                ticket = conductor.carry_out.remote(tree, str(job.folder))
                self._busy[ticket] = conductor, job
            ready, _ = ray.wait(list(self._busy), timeout=wait_s)
            if not ready:
                yield None
            for ticket in ready:
                conductor, job = self._busy.pop(ticket)
                try:
                    said = ray.get(ticket)
                    self._idle.append(conductor)
                except RayError as error:
                    said = f"its process is gone: {str(error).splitlines()[0]}"
                    self._idle.append(self._new())
                yield job, said

    def close(self) -> None:
        for conductor in (*self._idle, *(c for c, _ in self._busy.values())):
            ray.kill(conductor)


@contextmanager
def opened(execution: Execution, count: int, cpus: float) -> Iterator[Pool]:
    """A Ray session with conductors in it, which are gone afterwards."""
    with session(execution):
        pool = Pool(count, cpus)
        try:
            yield pool
        finally:
            pool.close()
