"""`hashes.json`: the SHA-256 of all that a run is held to, so that any change shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedkd import disk

SCHEMA = 1
# what two runs of one experiment have in common, byte for byte; the config says where, too
SAME = (
    "records.jsonl",
    "student.safetensors",
    "metrics.json",
    "yardsticks.json",
    "partition.json",
    "privacy.json",
    "data/data.json",
)
_OWN = ("config.yaml", "provenance.json", "citations.bib", "checklist.md")


def files(run: Path, *, shared: bool = False) -> Iterator[str]:
    """The files that are there, by their place in the run; `shared`: those that runs share."""
    for name in (*SAME, *(() if shared else _OWN)):
        if (run / name).is_file():
            yield name
    for place in ("teachers", "answers"):
        if (run / place).is_dir() and not (shared and place == "answers"):
            yield from sorted(
                f"{place}/{p.name}" for p in (run / place).iterdir() if not p.name.startswith(".")
            )


def of(run: Path) -> dict[str, Any]:  # Any: JSON
    """The content of `hashes.json` of a run that has just ended."""
    return {"schema": SCHEMA, "sha256": {name: sha256(run / name) for name in files(run)}}


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    found: Any = hashlib.sha256()  # Any: hashlib names no type
    with disk.refusing(path, "read"), path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return str(found.hexdigest())


def changed(run: Path, told: Mapping[str, str]) -> list[str]:
    """Which files are no longer what `hashes.json` says, in words, a line each."""
    there = set(files(run))
    found = []
    for name in sorted(there | told.keys()):
        if name not in there:
            found.append(f"{name} is missing")
        elif name not in told:
            found.append(f"{name} was added")
        elif sha256(run / name) != told[name]:
            found.append(f"{name} was changed")
    return found + ([] if found else _changed_data(run / "data"))


def _changed_data(place: Path) -> list[str]:
    """Which arrays are not those that data.json, which is whole, names."""
    if not (place / "data.json").is_file():
        return []
    sums = json.loads((place / "data.json").read_text(encoding="utf-8"))["sha256"]
    files = {f"{name}.npy": told for name, told in sums.items()}
    missing = [f"data/{name} is missing" for name in files if not (place / name).is_file()]
    return missing or [
        f"data/{name} was changed" for name, told in files.items() if sha256(place / name) != told
    ]
