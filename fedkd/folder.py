"""The run folder: all that a run leaves behind, and all that it needs to go on.

`config.yaml` resolved config · `run.json` versions, hardware, status · `partition.json` who holds
what · `records.jsonl` one line a round, without time or place · `timings.jsonl`, `events.jsonl` ·
`yardsticks.json` · `student.safetensors`, `teachers/` · `data/` splits and arrays · `clients/`,
`commits/` state.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fedkd.config import Config, ConfigError


@contextmanager
def draft(config: Config) -> Iterator[Path]:
    """A new run folder; if the run fails before it has begun (`describe`), all of it goes again."""
    path = _place(config)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    create(config, path)
    try:
        yield path
    except BaseException as error:
        if (path / "run.json").exists():
            error.add_note(f"what was done until then is in {path}")
            raise
        for inside in path.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        with suppress(OSError):  # what somebody else has used meanwhile stays
            for made in missing:
                made.rmdir()
        raise


def create(config: Config, path: Path | None = None) -> Path:
    """Make a new run folder; nothing existing is ever written into."""
    path = path or _place(config)
    try:
        path.mkdir(parents=True, exist_ok=path.is_dir())
        (path / "config.yaml").write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"execution.out: {path} should be a folder that can be written, found:"
            f" {error.strerror or error}; name another folder with --out"
        ) from None
    return path


def _place(config: Config) -> Path:
    """Where the run is to be kept. Raises `ConfigError` where something is already."""
    asked = config.execution.out
    stamp = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, tries = (Path(asked) if asked else Path("runs") / stamp).absolute(), 1
    try:
        while asked is None and path.exists():  # two runs in one second
            tries += 1
            path = path.with_name(f"{stamp}~{tries}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"execution.out: should be a new or empty folder, found {path}, which exists;"
                " nothing is overwritten: name another folder with --out or remove it"
            )
    except OSError as error:
        raise ConfigError(
            f"execution.out: {path} should be a folder that can be read, found:"
            f" {error.strerror or error}; name another folder with --out"
        ) from None
    return path


def describe(path: Path, config: Config, parameters: dict[str, Any], status: str) -> None:
    """Write `run.json`: what the bits depend on beside the config, and how far the run got."""
    versions = {"fedkd": _version("fedkd"), "python": platform.python_version()}
    versions |= {n: _version(n) for n in ("torch", "flwr", "ray", "numpy", "safetensors")}
    threads = {"task": config.compute.task_threads, "server": config.compute.server_threads}
    facts = {
        "fingerprint": config.fingerprint(),
        "name": config.name,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "versions": versions,
        "device": config.compute.device,
        "threads": threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "status": status,
        "parameters": parameters,
    }
    write_json(path / "run.json", facts)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "not installed"


def write_json(path: Path, value: object) -> None:
    """A JSON file, replaced as a whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def append(path: Path, value: object) -> None:
    """One more line of a `.jsonl` file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, sort_keys=True) + "\n")
