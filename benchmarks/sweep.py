"""Two seeds of one config in one sweep, beside the same two as processes of their own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SETTINGS = ("digits", "rounds=3", "student={name: mlp, hidden: [64]}")
_MODEL = "clients.0.model={name: mlp, hidden: [64]}"
_PAIRS = 3


def measure() -> dict[str, Any]:  # Any: JSON
    """Elapsed seconds of both, in turn, and their ratio."""
    found: dict[str, list[float]] = {"sweep": [], "processes": []}
    for _ in range(_PAIRS):
        with tempfile.TemporaryDirectory() as folder:
            found["sweep"].append(
                _timed(["fedkd.sweep", *_SETTINGS, _MODEL, "seed=0..1", "--out", f"{folder}/s"])
            )
            alone = [
                ["fedkd.simulate", *_SETTINGS, _MODEL, f"seed={n}", "--out", f"{folder}/{n}"]
                for n in range(2)
            ]
            found["processes"].append(sum(map(_timed, alone)))
            assert len([*Path(folder, "s", "runs").iterdir()]) == 2
    pairs = zip(found["processes"], found["sweep"], strict=True)
    ratio = statistics.median(processes / together for processes, together in pairs)
    print("two seeds of one config, elapsed s (each run as often as listed)")
    for name, seconds in found.items():
        print(f"  {name:10} {', '.join(f'{s:.1f}' for s in seconds)}")
    print(f"  two processes take {ratio:.2f} times as long as one sweep of both (median of pairs)")
    return {"seconds": found, "ratio": ratio}


def _timed(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words, "--quiet"], check=True, capture_output=True)
    return time.perf_counter() - began
