"""A run folder made by hand, as the engine writes it: 4 clients and 4 rounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fedkd.config import load_config
from fedkd.recorded import SCHEMA

MODELS = ("mlp-64", "cnn-8", "mlp-64", "cnn-8")
STUDENT = (0.70, 0.85, 0.93, 0.90)
VALIDATION = (0.70, 0.91, 0.91, 0.88)  # best in rounds 2 and 3, the earlier counts
ENSEMBLE = (0.72, 0.88, 0.92, 0.94)
TEACHERS = ((0.3, 0.4, 0.2, 0.5), (0.6, 0.6, 0.5, 0.7), (0.7, 0.8, 0.6, 0.9), (0.8, 0.9, 0.7, 1.0))
OWN = (0.9, 0.95, 1.0, 0.95)
SESSION = {
    "versions": {"fedkd": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "ray": None},
    "machine": "x86_64, 2 cores",
}


def record(place: int, shift: float = 0.0, **changes: object) -> dict[str, Any]:
    return {
        "round": place + 1,
        "participants": [0, 1, 2, 3],
        "bytes": {"up": 72_000, "down": 18_000 * (place + 1)},
        "steps": {"clients": 100, "server": 15},
        "labels_used": 0,
        "rows": {"asked": 450, "dropped": 0},
        "student": {
            "test": STUDENT[place] + shift,
            "test_nll": 0.4,
            "validation": VALIDATION[place],
            "public": STUDENT[place],
        },
        "ensemble": {"test": ENSEMBLE[place], "public": ENSEMBLE[place] + 0.01},
        "teachers": {"test": list(TEACHERS[place]), "own": list(OWN)},
        "facts": {"entropy": 0.3},
        "absent": [],
        "late": [],
        "dropped": [],
        "virtual_s": None,
        **changes,
    }


def make_run(
    folder: Path,
    *,
    seed: int = 5,
    strategy: object = "entropy",
    shift: float = 0.0,
    status: str = "finished",
    name: str = "trial",
    seconds: float | None = None,
) -> Path:
    """A run; `seconds` is how many virtual ones a round takes."""
    config = load_config(
        {
            "name": name,
            "seed": seed,
            "rounds": 4,
            "data": {"seed": 7, "test": 400},
            "clients": [{"count": 4, "model": list(MODELS[:2])}],
            "student": "cnn-16",
            "strategy": strategy,
        }
    )
    folder.mkdir(parents=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    about = {
        "schema": SCHEMA,
        "fingerprint": config.fingerprint(),
        "name": name,
        "seed": seed,
        "data_seed": 7,
        "device": "cpu",
        "threads": {"task": 1, "server": 2},
        "status": status,
        "parameters": {"student": 14_000, "teachers": [4_810, 2_000, 4_810, 2_000]},
        **SESSION,
        "sessions": [SESSION],
    }
    put(folder, "run.json", about)
    partition = {
        "classes": [str(c) for c in range(3)],
        "histogram": [[50, 0, 1], [0, 40, 0], [2, 3, 60], [10, 0, 0]],
        "sizes": {"test": 400, "validation": 97, "public": 450, "private": 166},
        "provenance": "handwritten digits",
        "licence": "CC BY 4.0",
        "models": list(MODELS),
    }
    put(folder, "partition.json", partition)
    clock = [None if seconds is None else seconds * (place + 1) for place in range(4)]
    lines(folder, "records.jsonl", [record(p, shift, virtual_s=clock[p]) for p in range(4)])
    local = {"test": [[0.2 + 0.01 * r] * 3 + [0.41] for r in range(4)], "own": [list(OWN)] * 4}
    yardsticks = {
        "pooled": {"test": 0.975, "steps": 800},
        "labels": {"test": 0.95, "steps": 60, "labels": 450},
        "local": {**local, "steps": 380},
    }
    put(folder, "yardsticks.json", yardsticks)
    lines(folder, "timings.jsonl", [{"round": 1, "seconds": {"clients": 1.5, "server": 0.5}}])
    return folder


def measured(accuracy: float) -> dict[str, Any]:
    """A model as `metrics.json` has it."""
    bins = [
        {"lower": 0.0, "upper": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"lower": 0.5, "upper": 0.75, "count": 100, "confidence": 0.7, "accuracy": 0.65},
        {"lower": 0.75, "upper": 1.0, "count": 300, "confidence": 0.95, "accuracy": 0.9},
    ]
    each = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 133}
    return {"n": 400, "accuracy": accuracy, "macro_f1": 0.895, "balanced_accuracy": 0.885,
            "nll": 0.4, "ece": 0.05, "per_class": [each] * 3, "confusion": [[133, 0, 0]] * 3,
            "calibration": bins}  # fmt: skip


def metrics() -> dict[str, Any]:
    """A whole `metrics.json`: the best mixture of the teachers would have 96 %."""
    near = {"agreement": 0.9, "kl": 0.2}
    return {
        "schema": 1,
        "student": measured(0.90),
        "ensemble": measured(0.94),
        "teachers": [measured(x) for x in TEACHERS[-1]],
        "oracle": {"any": 1.0, "mixture": 0.96},
        "fidelity": {"ensemble": near, "teachers": [near] * 4},
    }


def put(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def change(folder: Path, name: str, **changes: object) -> None:
    """Other values in a JSON file."""
    put(folder, name, json.loads((folder / name).read_text(encoding="utf-8")) | changes)


def lines(folder: Path, name: str, content: Sequence[object]) -> None:
    (folder / name).write_text("".join(json.dumps(c) + "\n" for c in content), encoding="utf-8")
