"""How long one waits for help: `python -m benchmarks command_line`.

`fedkd WORD --help` in a fresh process beside the bare interpreter, in turn; medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fedkd.commands import COMMANDS

_ROOT = Path(__file__).resolve().parents[1]
_TIMES = 7


def measure(times: int = _TIMES) -> dict[str, dict[str, float]]:
    """Seconds of the help of each word and of all, and their ratio to the bare interpreter."""
    asked: dict[str, Sequence[str]] = {"the bare interpreter": ["-c", "pass"], "fedkd": ["--help"]}
    asked |= {w: [w, "--help"] for w, c in COMMANDS.items() if find_spec(c.module)}
    took: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(times):
        for name, arguments in asked.items():
            ours = [] if name == "the bare interpreter" else ["-m", "fedkd"]
            took[name].append(_seconds([sys.executable, *ours, *arguments]))
    bare = statistics.median(took["the bare interpreter"])
    found = {}
    print(f"--help of each word, median of {times} fresh processes")
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        found[name] = {"seconds": middle, "most": max(seconds), "ratio": middle / bare}
        print(f"  {name:<22}{middle:6.3f} s, at most {max(seconds):.3f} s,"
              f" {middle / bare:5.1f} times the bare interpreter")  # fmt: skip
    return found


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
