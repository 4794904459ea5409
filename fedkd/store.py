"""The state of clients between messages, and the commit that makes a round final.

A shard is a safetensors file with the states of one stack after one task; it is written beside
its place and renamed, so it is never half there, and it is never changed. A `Ref` names a client's
state in a shard: whoever holds the refs of a round holds that round, and a late writer of an
abandoned one harms nobody.

Two back ends: `Folder`, which all workers see, and `Carried`, in which the shards travel in the
messages and only the server's folder keeps them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedkd.types import State

Ref = str  # SHARD#CLIENT


class Store(Protocol):
    """Immutable states by reference."""

    def get(self, ref: Ref) -> State: ...
    def put(self, shard: str, states: Mapping[int, State]) -> None: ...


def ref(shard: str, client: int) -> Ref:
    """The name of a client's state in a shard."""
    return f"{shard}#{client}"


def shard_of(ref: Ref) -> str:
    """The shard that holds it."""
    return ref.rpartition("#")[0]


def to_bytes(states: Mapping[int, State]) -> bytes:
    """The content of a shard: the tensors of several clients by `CLIENT/NAME`."""
    return save(
        {f"{c}/{k}": t.detach().cpu().contiguous() for c, s in states.items() for k, t in s.items()}
    )


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same entries below a prefix."""
    return {f"{prefix}{k}": v for k, v in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the place and rename: readers see the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Folder:
    """Shards as files in a folder that every worker can read and write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, shard: str) -> Path:
        return self.root / f"{shard}.safetensors"

    def get(self, ref: Ref) -> State:
        shard, _, client = ref.rpartition("#")
        with safe_open(self.path(shard), framework="pt") as file:
            return {
                k.partition("/")[2]: file.get_tensor(k)
                for k in file.keys()  # noqa: SIM118 (safe_open is no mapping)
                if k.startswith(f"{client}/")
            }

    def put(self, shard: str, states: Mapping[int, State]) -> None:
        self.put_bytes(shard, to_bytes(states))

    def put_bytes(self, shard: str, content: bytes) -> None:
        # no fsync here: a shard counts only once a manifest names it, and the commit syncs
        path = self.path(shard)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)

    def bytes_of(self, shard: str) -> bytes:
        return self.path(shard).read_bytes()

    def prune(self, live: Iterable[Ref]) -> None:
        """Delete the shards that no live ref names."""
        kept = {self.path(shard_of(r)) for r in live}
        for path in self.root.glob("*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)


class Carried:
    """Shards that came in a message; what is put is handed back in the reply."""

    def __init__(self, shards: Mapping[str, bytes]) -> None:
        self._shards = dict(shards)
        self.written: dict[str, bytes] = {}
        self._read: dict[str, dict[str, Tensor]] = {}

    def get(self, ref: Ref) -> State:
        shard, _, client = ref.rpartition("#")
        if shard not in self._read:
            self._read[shard] = load(self._shards[shard])
        return under(f"{client}/", self._read[shard])

    def put(self, shard: str, states: Mapping[int, State]) -> None:
        self.written[shard] = to_bytes(states)


@dataclass(frozen=True, slots=True)
class Commit:
    """All that a later round depends on: the server's tensors and where clients' states lie."""

    round: int
    server: State
    refs: Mapping[int, Ref]
    counters: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON


def commit(folder: Path, made: Commit, clients: Folder) -> None:
    """Write the server's shard, sync what is new, then rename one manifest: the round is final."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"server-{made.round:06d}.safetensors"
    content = save({k: v.detach().cpu().contiguous() for k, v in made.server.items()})
    write_atomically(folder / name, content)
    manifest = {
        "schema": 1,
        "round": made.round,
        "server": {"file": name, "sha256": hashlib.sha256(content).hexdigest()},
        "refs": {str(c): r for c, r in sorted(made.refs.items())},
        "counters": dict(made.counters),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, sort_keys=True).encode())
    for old in folder.glob("server-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    clients.prune(made.refs.values())


def last_commit(folder: Path) -> Commit | None:
    """The last final round, None before the first. Raises `ValueError` on a damaged shard."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    manifest = json.loads(path.read_text())
    content = (folder / manifest["server"]["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["server"]["sha256"]:
        raise ValueError(
            f"commit: {folder / manifest['server']['file']} does not match its manifest"
        )
    return Commit(
        manifest["round"],
        load(content),
        {int(c): r for c, r in manifest["refs"].items()},
        manifest["counters"],
    )
