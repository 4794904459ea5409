"""Our side: `python -m benchmarks.ours CONFIG DATA OUT` carries the config out as it stands.

DATA is what the other side reads; ours prepares its own, as every run of ours does. The run folder
is OUT without its suffix.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedkd import load_config, run
from fedkd.commits import Commit, Commits


class Ends:
    """Notes when each round was over and committed."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stage(self, text: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...  # Any: JSON
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:  # Any: JSON
        self.ends.append(time.monotonic())


def main(config: str, data: str, out: str, overrides: Sequence[str] = ()) -> None:
    watch, committing = Ends(), time_commits()
    folder = Path(out).with_suffix("")
    done = run(load_config(config, [*overrides, f"execution.out={folder}"]), watch)
    steps = {side: sum(r["steps"][side] for r in done.records) for side in ("clients", "server")}
    found = {
        "ends": watch.ends,
        "steps": steps,
        "student": done.records[-1]["student"]["test"],
        "committing": sum(committing),
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def time_commits() -> list[float]:
    """Seconds of each commit that this process makes from now on."""
    seconds: list[float] = []
    add = Commits.add

    def timed(commits: Commits, made: Commit) -> None:
        began = time.perf_counter()
        add(commits, made)
        seconds.append(time.perf_counter() - began)

    Commits.add = timed  # type: ignore[method-assign]  # this process does nothing else
    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
