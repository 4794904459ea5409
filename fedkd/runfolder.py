"""A run folder as read: what the engine wrote, checked, in frozen values.

Only what a report needs is read; keys that are not known here are passed over. Neither torch nor a
runtime is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from fedkd.config import Config, ConfigError, load_config

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
Fractions = Annotated[tuple[Fraction, ...], Field(min_length=1)]


class ReportError(ValueError):
    """A folder that cannot be reported on; the text says which, why and the way out."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Sizes of the models; of the teachers by client."""

    student: int | None = None
    teachers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class About:
    """`run.json`."""

    fingerprint: str
    name: str
    seed: int
    data_seed: int
    versions: Mapping[str, str | None]
    device: str
    threads: Mapping[str, int]
    machine: str
    status: Literal["running", "finished", "failed"]
    parameters: Parameters = Parameters()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Samples of the disjoint parts of the data."""

    test: int
    validation: int
    public: int
    private: int


@dataclass(frozen=True, slots=True)
class Partition:
    """`partition.json`; `histogram` [K][C] counts private labels by client and class."""

    classes: tuple[str, ...]
    histogram: tuple[tuple[int, ...], ...]
    sizes: Sizes
    models: tuple[str, ...]
    provenance: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        widths = {len(counts) for counts in self.histogram}
        if len(self.models) != len(self.histogram) or widths != {len(self.classes)}:
            raise ValueError("histogram should be clients by classes, with one model per client")


@dataclass(frozen=True, slots=True)
class Bytes:
    """Communication of a round, over all clients."""

    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Steps:
    """Gradient steps of a round; those of the clients summed."""

    clients: int
    server: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the student or of the ensemble."""

    test: Fraction
    validation: Fraction | None = None
    public: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Teachers:
    """By client [K]: on the global test set, and on the client's own label distribution."""

    test: Fractions
    own: Fractions


@dataclass(frozen=True, slots=True)
class Record:
    """One round, a line of `records.jsonl`; None stands for not evaluated in this round."""

    round: int
    participants: tuple[int, ...]
    bytes: Bytes
    steps: Steps
    labels_used: int
    student: Accuracy | None = None
    ensemble: Accuracy | None = None
    teachers: Teachers | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """The student's architecture trained in another way."""

    test: Fraction
    steps: int | None = None
    labels: int | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """Every teacher alone with the same private epochs, by round and client [rounds][K]."""

    test: Annotated[tuple[Fractions, ...], Field(min_length=1)]
    own: Annotated[tuple[Fractions, ...], Field(min_length=1)]
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """`yardsticks.json`; None stands for not measured."""

    pooled: Level | None = None
    labels: Level | None = None
    local: Local | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of `events.jsonl`."""

    kind: str
    round: int | None = None
    client: int | None = None
    clients: tuple[int, ...] = ()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder as read; `notes` say what is missing or odd about it."""

    about: About
    config: Config
    partition: Partition | None
    records: tuple[Record, ...]
    yardsticks: Yardsticks
    events: tuple[Event, ...]
    complete: bool
    notes: tuple[str, ...]


def read(folder: Path) -> Run:
    """The files of a run. Raises `ReportError` for a folder that is no run, or a damaged file.

    A last line that is cut off, as an interrupted run leaves it, is passed over with a note.
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
    about = _parse(About, (folder / "run.json").read_bytes(), folder / "run.json")
    records = _lines(Record, folder / "records.jsonl", notes)
    rounds = [record.round for record in records]
    if any(later <= earlier for earlier, later in pairwise(rounds)):
        raise ReportError(
            f"{folder / 'records.jsonl'}: rounds should ascend, found {rounds}; "
            "two runs wrote to it or it was edited, report on an untouched run"
        )
    complete = about.status == "finished" and len(rounds) == config.rounds
    if not complete:
        done = f"{len(rounds)} of {config.rounds} rounds are recorded"
        notes.insert(0, f"This run is not complete: its status is {about.status}, {done}.")
    if config.fingerprint() != about.fingerprint:
        notes.append("config.yaml is not the experiment of run.json: their fingerprints differ.")
    partition = _optional(Partition, folder / "partition.json")
    yardsticks = _optional(Yardsticks, folder / "yardsticks.json") or Yardsticks()
    events = _lines(Event, folder / "events.jsonl", notes)
    return Run(about, config, partition, records, yardsticks, events, complete, tuple(notes))


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


def _lines(kind: type[T], path: Path, notes: list[str]) -> tuple[T, ...]:
    """The objects of a file with one JSON object a line."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    try:
        json.loads(lines[-1] or b"{}")
    except ValueError:  # no line feed behind it and no JSON: interrupted while it was written
        notes.append(f"The last line of {path.name} is cut off and was left out.")
        lines = lines[:-1]
    return tuple(_parse(kind, text, f"{path}, line {n}") for n, text in enumerate(lines, 1) if text)
