"""A run folder as read: what the engine wrote, checked, in the frozen values of `recorded`."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from fedkd import shell
from fedkd.config import Config, ConfigError, load_config
from fedkd.phrases import A_SENTENCE, inert, plain
from fedkd.recorded import (
    SCHEMA,
    About,
    Event,
    Metrics,
    Origin,
    Partition,
    Private,
    Record,
    Run,
    Status,
    Timing,
    Yardsticks,
)

T = TypeVar("T")
_WAYS_TO_END: dict[Status, str] = {
    "running": "It is under way, or it was killed.",
    "interrupted": "It was interrupted.",
    "failed": "It failed.",
    "finished": "Records are missing from it.",
}


class ReportError(ValueError):
    """A folder that cannot be reported on; the text says which, why and the way out."""


def read(folder: Path) -> Run:
    """The files of a run. Raises `ReportError` for a folder that is no run, or a damaged file.

    A last line that is cut off, as an interrupted run leaves it, is passed over with a note; so is
    a damaged event, since the figures do not depend on it.
    """
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file():
            found = f"there is no {name} in it" if folder.is_dir() else "there is no such folder"
            raise ReportError(
                f"{folder}: should be a run folder, with config.yaml and run.json, but {found}; "
                "give the folder that a simulation wrote"
            )
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise ReportError(f"{folder / 'config.yaml'}: {error}") from None
    notes: list[str] = []
    about = _parse(About, _current(folder / "run.json"), folder / "run.json")
    records = _records(folder / "records.jsonl", notes)
    complete = about.status == "finished" and len(records) == config.rounds
    resume = _resume(folder) if about.status != "finished" and about.sessions else None
    if not complete:
        notes.insert(0, _unfinished(about, config, len(records), resume))
    if about.schema < SCHEMA:
        notes.append(
            "This run was written before run folders had a schema number (now"
            f" {SCHEMA}): figures that were not kept then are left out."
        )
    notes += [f"Caution: {inert(plain(text, A_SENTENCE))}." for text in about.cautions]
    if config.fingerprint() != about.fingerprint:
        notes.append("config.yaml is not the experiment of run.json: their fingerprints differ.")
    return Run(
        about=about,
        config=config,
        origin=_optional(Origin, folder / "branched_from.json"),
        partition=_optional(Partition, folder / "partition.json"),
        records=records,
        yardsticks=_optional(Yardsticks, folder / "yardsticks.json") or Yardsticks(),
        events=_events(folder / "events.jsonl", notes),
        complete=complete,
        resume=resume,
        notes=tuple(notes),
        timings=_timings(folder / "timings.jsonl"),
        metrics=_optional(Metrics, folder / "metrics.json"),
        privacy=_optional(Private, folder / "privacy.json"),
        sample_bytes=_sample_bytes(folder / "data" / "x.npy"),
    )


def _current(path: Path) -> bytes:
    """What `run.json` says. Raises `ReportError` where it is of a later schema than this one.

    Earlier ones lack keys, all of which may be absent, so that nothing has to be rewritten.
    """
    content = path.read_bytes()
    try:
        told = json.loads(content)
    except ValueError:
        return content  # what is wrong with it is said where it is parsed
    schema = told.get("schema", 0) if isinstance(told, dict) else 0
    if isinstance(schema, int) and schema > SCHEMA:
        raise ReportError(
            f"{path}: schema should be at most {SCHEMA}, found {schema}; a later fedkd wrote this"
            " run: report on it with that version"
        )
    return content


def _timings(path: Path) -> tuple[Timing, ...]:
    """Where the time went; a line that an interruption has cut off is passed over."""
    found = {}
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        with suppress(ValidationError):
            timing = TypeAdapter(Timing).validate_json(text)
            found[timing.round] = timing  # a round that was begun again counts once
    return tuple(found[number] for number in sorted(found))


def _sample_bytes(path: Path) -> int | None:
    """By the head of the stored array; None where the run keeps no samples (any more)."""
    import numpy as np

    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return int(np.prod(stored.shape[1:], dtype=np.int64)) * int(stored.dtype.itemsize)


def _resume(folder: Path) -> str:
    """The command that goes on with a run, as seen from here."""
    near = shell.near(folder.absolute())
    return f"python -m fedkd.simulate --resume {shlex.quote(near)}"


def _unfinished(about: About, config: Config, done: int, resume: str | None) -> str:
    further = f" Go on with it: `{resume}`" if resume else ""
    return (
        f"This run is not complete: its status is {about.status}, {done} of {config.rounds} rounds"
        f" are recorded. {_WAYS_TO_END[about.status]}{further}"
    )


def _parse(kind: type[T], text: bytes, where: object) -> T:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        at = ".".join(map(str, fault["loc"]))
        found = "" if fault["type"] == "missing" else f", found {str(fault['input'])[:60]!r}"
        raise ReportError(
            f"{where}: {at + ': ' if at else ''}{fault['msg']}{found}; "
            "the file is damaged or of another version of fedkd"
        ) from None


def _optional(kind: type[T], path: Path) -> T | None:
    return _parse(kind, path.read_bytes(), path) if path.is_file() else None


def _records(path: Path, notes: list[str]) -> tuple[Record, ...]:
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    try:
        json.loads(lines[-1] or b"{}")
    except ValueError:  # no line feed behind it and no JSON: interrupted while it was written
        notes.append(f"The last line of {path.name} is cut off and was left out.")
        lines = lines[:-1]
    found = [_parse(Record, text, f"{path}, line {n}") for n, text in enumerate(lines, 1) if text]
    rounds = [record.round for record in found]
    if any(later <= earlier for earlier, later in pairwise(rounds)):
        raise ReportError(
            f"{path}: rounds should ascend, found {rounds}; "
            "two runs wrote to it or it was edited, report on an untouched run"
        )
    return tuple(found)


def _events(path: Path, notes: list[str]) -> tuple[Event, ...]:
    """A run that was killed while it noted an event has half a line in the midst of others."""
    found, damaged = [], 0
    for n, text in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
        if not text:
            continue
        try:
            found.append(_parse(Event, text, f"{path}, line {n}"))
        except ReportError:
            damaged += 1
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        notes.append(f"{lines} of {path.name} cannot be read and were left out.")
    return tuple(found)
