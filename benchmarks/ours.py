"""Our side: `python -m benchmarks.ours CONFIG DATA OUT` carries the config out as it stands.

DATA is what the other side reads; ours prepares its own, as every run of ours does. The run folder
is OUT without its suffix.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from fedkd import load_config, run


class Ends:
    """Notes when each round was over and committed."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stage(self, text: str) -> None: ...

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:  # Any: JSON
        self.ends.append(time.monotonic())


def main(config: str, data: str, out: str) -> None:
    watch = Ends()
    folder = Path(out).with_suffix("")
    done = run(load_config(config, [f"execution.out={folder}"]), watch)
    steps = {side: sum(r["steps"][side] for r in done.records) for side in ("clients", "server")}
    found = {"ends": watch.ends, "steps": steps, "student": done.records[-1]["student"]["test"]}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
