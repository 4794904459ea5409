"""Run a command and note what CPU time it and all its descendants had used, and when.

Elapsed time on a machine that others use says little; CPU time says more, as it leaves out waiting
for a core.
"""

from __future__ import annotations

import bisect
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Course:
    """A finished command: elapsed seconds, and CPU seconds of its process tree at some times."""

    elapsed: float
    times: Sequence[float]  # of time.monotonic(), ascending
    cpu: Sequence[float]

    def cpu_between(self, begin: float, end: float) -> float:
        """CPU seconds used between two times of `time.monotonic()`."""
        return self._at(end) - self._at(begin)

    def _at(self, moment: float) -> float:
        later = bisect.bisect_left(self.times, moment)
        if later in (0, len(self.times)):
            return self.cpu[min(later, len(self.cpu) - 1)]
        t0, t1 = self.times[later - 1 : later + 1]
        c0, c1 = self.cpu[later - 1 : later + 1]
        return c0 + (c1 - c0) * (moment - t0) / (t1 - t0)


def run(command: Sequence[str], folder: Path) -> Course:
    """Run in `folder` to the end. Raises `RuntimeError` with what was printed if it fails."""
    began, stop = time.monotonic(), threading.Event()
    times, cpu = [began], [0.0]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, stop, times, cpu))
        watcher.start()
        said, _ = process.communicate()
    elapsed = time.monotonic() - began
    stop.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}\n{said}")
    return Course(elapsed, times, cpu)


def _watch(pid: int, stop: threading.Event, times: list[float], cpu: list[float]) -> None:
    used: dict[tuple[int, float], float] = {}  # by process; what has ended keeps its last figure
    while not stop.wait(_INTERVAL_S):
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                spent = process.cpu_times()
                used[process.pid, process.create_time()] = spent.user + spent.system
            except psutil.NoSuchProcess:
                continue
        times.append(time.monotonic())
        cpu.append(sum(used.values()))
