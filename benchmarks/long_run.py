"""Whether rounds stay what they are: `python -m benchmarks long_run` plays 500 rounds on digits.

The last hundred rounds beside the first hundred: their time, and the memory of the main process.
The very first round is left out, for it loads and compiles.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fedkd import load_config, run

_EDGE = 100  # rounds at either end


class _Watch:
    """Takes the time and the memory at the end of each round."""

    def __init__(self) -> None:
        self.at = [time.perf_counter()]
        self.memory: list[int] = []

    def stage(self, text: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...  # Any: JSON
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:  # Any: JSON
        self.at.append(time.perf_counter())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * 4096)


def measure(rounds: int = 500, strategy: str = "scarlet") -> dict[str, float]:
    """Medians of time and memory at both ends, and their ratios."""
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "digits",
            [
                f"rounds={rounds}",
                f"strategy={strategy}",
                "clients=[{count: 10, model: [{name: mlp, hidden: [32]}]}]",
                "student={name: mlp, hidden: [32]}",
                "evaluation={pooled: false, local: false, labels: false}",
                "execution.runtime=local",
                f"execution.out={folder}/run",
            ],
        )
        run(config, watch)
    took = [b - a for a, b in zip(watch.at, watch.at[1:], strict=False)][1:]
    first, last = statistics.median(took[:_EDGE]), statistics.median(took[-_EDGE:])
    before, after = (
        statistics.median(m) for m in (watch.memory[1 : _EDGE + 1], watch.memory[-_EDGE:])
    )
    spread = statistics.stdev(took[:_EDGE]) / first
    print(f"{rounds} rounds of {strategy} on digits, ten clients, local runtime")
    print(f"a round: {1e3 * first:.1f} ms of the first {_EDGE} (spread {spread:.0%}),"
          f" {1e3 * last:.1f} ms of the last {_EDGE}: ratio {last / first:.2f}")  # fmt: skip
    print(f"memory: {before / 2**20:.1f} MiB, then {after / 2**20:.1f} MiB:"
          f" ratio {after / before:.3f}")  # fmt: skip
    return {"first_s": first, "last_s": last, "first_bytes": before, "last_bytes": after}
