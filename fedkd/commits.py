"""Commits: rounds that are final, whatever happens next, and the way back to the last of them.

A commit is one manifest, `commits/ROUND.json`, that names its parts with their sizes and checksums:
the server's tensors in `commits/ROUND.safetensors`, the shards of the clients, how much of
`records.jsonl` and `timings.jsonl` it stands for. All parts are on the disk before the manifest is
renamed to its place, so a round is committed or it is not. The last few are kept: if one is
damaged, the one before it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedkd import disk
from fedkd.store import SHARD, Folder, Ref, digest, ref, shard_of
from fedkd.types import State

SCHEMA = 2
LOGS = ("records.jsonl", "timings.jsonl")
_MOST_MANIFEST = 1 << 26  # bytes: some hundred thousand shards
_OURS = re.compile(r"[0-9]{6,}\.(json|safetensors)")


@dataclass(frozen=True, slots=True)
class Commit:
    """All that a later round depends on: the server's tensors and where clients' states lie."""

    round: int
    server: State
    refs: Mapping[int, Ref]
    shards: Mapping[str, str]  # SHA-256 of every shard that the refs name
    clock: float = 0.0  # virtual seconds


class Foreign(ValueError):
    """A manifest that is whole and of a schema that is not read here."""


class Commits:
    """The commits of a run folder, and the logs that grow with them. `last` comes first.

    `keep` is how many are kept. `damage` is told what was found broken.
    """

    def __init__(
        self, run: Path, clients: Folder, keep: int, damage: Callable[[str], None]
    ) -> None:
        self._clients, self._keep, self._damage = clients, keep, damage
        self._folder = run / "commits"
        with disk.refusing(self._folder, "made"):
            self._folder.mkdir(exist_ok=True)
        self._logs = {name: _Log(run / name) for name in LOGS}
        self._sizes: dict[str, int] = {}  # of the shards that have been synced
        self._kept: dict[int, frozenset[str]] = {}  # shards by round

    def log(self, name: str, entry: object) -> None:
        """One more line of a log; it counts once a commit is made."""
        self._logs[name].add((json.dumps(entry, sort_keys=True) + "\n").encode())

    def add(self, made: Commit) -> None:
        """Make everything up to this round final."""
        name = f"{made.round:06d}"
        content = save({k: v.detach().cpu().contiguous() for k, v in made.server.items()})
        new = [s for s in made.shards if s not in self._sizes]
        logs = [log.path for log in self._logs.values()]
        disk.sync([*(self._clients.path(s) for s in new), *logs])
        self._sizes = {
            s: self._sizes[s] if s in self._sizes else disk.size(self._clients.path(s))
            for s in made.shards
        }
        disk.write_atomically(self._folder / f"{name}.safetensors", content)
        by_shard: dict[str, list[int]] = {shard: [] for shard in sorted(made.shards)}
        for client, found in sorted(made.refs.items()):
            by_shard[shard_of(found)].append(client)
        body = {
            "schema": SCHEMA,
            "round": made.round,
            "clock": made.clock,
            "server": {"bytes": len(content), "sha256": digest(content)},
            "shards": {
                s: {"bytes": self._sizes[s], "sha256": made.shards[s], "clients": clients}
                for s, clients in by_shard.items()
            },
            "logs": {n: {"bytes": g.size, "sha256": g.digest()} for n, g in self._logs.items()},
        }
        disk.write_atomically(self._folder / f"{name}.json", _sealed(body))
        self._kept[made.round] = frozenset(made.shards)
        self._forget()

    def forget(self, current: Commit) -> None:
        """Let go of what neither a kept commit nor this state, which is none, needs."""
        self._clients.prune({*current.shards, *(s for kept in self._kept.values() for s in kept)})

    def last(self, fits: Callable[[Commit], None] = lambda found: None) -> Commit | None:
        """The last commit that is whole, None where there is none; what came after it is removed.

        Everything that a commit names is compared with its size and checksum. `fits` raises
        `ValueError` for a commit that is none of this experiment. Raises `disk.DiskError` where the
        disk refuses, and where all that is there was made by another version: then nothing is
        removed.
        """
        whole: Commit | None = None
        lengths = dict.fromkeys(LOGS, 0)
        broken: dict[Path, ValueError] = {}
        for path in self._manifests():
            try:
                manifest = _manifest(path)
                if whole is None:
                    found = self._read(path, manifest)
                    fits(found)
                    whole, lengths = found, {n: g.bytes for n, g in manifest.logs.items()}
                    self._sizes = {shard: of.bytes for shard, of in manifest.shards.items()}
                self._kept[manifest.round] = frozenset(manifest.shards)
            except ValueError as error:
                broken[path] = error
        foreign = [f"{p.name}: {e}" for p, e in broken.items() if isinstance(e, Foreign)]
        if whole is None and foreign:
            raise disk.DiskError(
                f"disk: {self._folder} should hold commits that this version reads, found"
                f" {'; '.join(foreign)}; resume with the version that run.json names"
            )
        for path, cause in broken.items():
            self._damage(f"commit {path.stem}: {cause}")
            with disk.refusing(path, "removed"):
                path.unlink()
        for name, log in self._logs.items():
            log.back_to(lengths[name])
        self._forget(drafts=True)
        return whole

    def _manifests(self) -> list[Path]:
        """The newest first."""
        with disk.refusing(self._folder, "read"):
            names = [p for p in self._folder.iterdir() if re.fullmatch("[0-9]+", p.stem)]
        return sorted(
            (p for p in names if p.suffix == ".json"), key=lambda p: int(p.stem), reverse=True
        )

    def _read(self, path: Path, manifest: _Manifest) -> Commit:
        """A commit, all parts of which are what they were. Raises `ValueError` for another one."""
        part, of = path.with_suffix(".safetensors"), manifest.server
        if disk.size(part) != of.bytes or digest(content := disk.read(part, of.bytes)) != of.sha256:
            raise ValueError(f"{part.name} does not have the checksum of its manifest")
        for name in LOGS:
            told = manifest.logs[name]
            if disk.hashed(self._logs[name].path, told.bytes).hexdigest() != told.sha256:
                raise ValueError(f"{name} is not what it was in its first {told.bytes} bytes")
        refs: dict[int, Ref] = {}
        for shard, of in manifest.shards.items():
            file = self._clients.path(shard)
            if disk.size(file) != of.bytes or disk.hashed(file, of.bytes).hexdigest() != of.sha256:
                raise ValueError(f"clients/{shard} does not have the checksum of its manifest")
            refs |= {c: ref(shard, c) for c in of.clients}
        if len(refs) != sum(len(of.clients) for of in manifest.shards.values()):
            raise ValueError("its manifest names two states of one client")
        shards = {shard: of.sha256 for shard, of in manifest.shards.items()}
        return Commit(manifest.round, _tensors(content), refs, shards, manifest.clock)

    def _forget(self, *, drafts: bool = False) -> None:
        """Remove commits but the last few, and the shards and parts that none of them names."""
        self._kept = dict(sorted(self._kept.items())[-self._keep :])
        named = {f"{r:06d}{end}" for r in self._kept for end in (".json", ".safetensors")}
        with disk.refusing(self._folder, "pruned"):
            # manifests first: what a manifest names is there as long as the manifest is
            for path in sorted(self._folder.iterdir(), key=lambda p: p.suffix != ".json"):
                if _OURS.fullmatch(path.name) and path.name not in named:
                    path.unlink(missing_ok=True)
        if drafts:
            disk.sweep(self._folder)
            disk.sweep(self._clients.root)
        self._clients.prune({s for kept in self._kept.values() for s in kept})


class _Log:
    """A file of lines with the SHA-256 of all that is in it, from `back_to` on."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._hash = path, 0, hashlib.sha256()
        disk.append(path, b"")

    def add(self, line: bytes) -> None:
        disk.append(self.path, line)
        self._hash.update(line)
        self.size += len(line)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def back_to(self, size: int) -> None:
        """Cut off what comes after; the file has at least so many bytes."""
        self._hash, self.size = disk.hashed(self.path, size), size
        disk.cut(self.path, size)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, Field(ge=0)]


class _File(_Part):
    bytes: Natural
    sha256: Digest


class _Shard(_File):
    clients: list[Natural]


class _Head(BaseModel):
    """What a manifest says in every version."""

    model_config = ConfigDict(frozen=True, strict=True)
    schema_: Annotated[int, Field(alias="schema")]


class _Manifest(_Part):
    schema_: Annotated[int, Field(alias="schema")]
    round: Annotated[int, Field(ge=1)]
    clock: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    server: _File
    shards: dict[Annotated[str, Field(pattern=f"^{SHARD}$")], _Shard]
    logs: dict[str, _File]


def _sealed(body: Mapping[str, Any]) -> bytes:
    """A manifest with its own checksum in front."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    if len(text) > _MOST_MANIFEST:
        raise ValueError(f"commit: a manifest has at most {_MOST_MANIFEST} bytes, not {len(text)}")
    return digest(text).encode() + b"\n" + text + b"\n"


def _manifest(path: Path) -> _Manifest:
    """A manifest that is whole. Raises `ValueError`."""
    seal, _, text = disk.read(path, _MOST_MANIFEST + 100).partition(b"\n")
    if digest(text.removesuffix(b"\n")).encode() != seal:
        raise ValueError("its manifest does not have the checksum that it begins with")
    try:
        if (found := _Head.model_validate_json(text).schema_) != SCHEMA:
            raise Foreign(f"schema {SCHEMA} is read here, found {found}")
        manifest = _Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise ValueError(f"its manifest: {at[:99]}: {first['msg']}") from None
    if f"{manifest.round:06d}" != path.stem or set(manifest.logs) != set(LOGS):
        raise ValueError(f"its manifest is of round {manifest.round}")
    return manifest


def _tensors(content: bytes) -> State:
    """What `save` has written. Raises `ValueError`."""
    try:
        return load(content)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"its tensors: {type(error).__name__}: {error}") from None
