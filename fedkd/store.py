"""The state of clients between messages: immutable shards, named by references.

A shard is a safetensors file with the states of one stack after one task; it is written beside
its place and renamed, so it is never half there, and it is never changed. A `Ref` names a client's
state in a shard: whoever holds the refs of a round holds that round, and a late writer of an
abandoned one harms nobody.

Two back ends: `Folder`, which all workers see, and `Carried`, in which the shards travel in the
messages and only the server's folder keeps them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedkd import disk
from fedkd.types import State

Ref = str  # SHARD#CLIENT
SHARD = "[A-Za-z0-9-]{1,99}"  # what the name of one is made of
_SHARD, _FILE = re.compile(SHARD), re.compile(rf"{SHARD}\.safetensors")


class Store(Protocol):
    """Immutable states by reference; `put` gives the SHA-256 of the shard that it made."""

    def get(self, ref: Ref) -> State: ...
    def put(self, shard: str, states: Mapping[int, State]) -> str: ...


def ref(shard: str, client: int) -> Ref:
    """The name of a client's state in a shard."""
    return f"{shard}#{client}"


def shard_of(ref: Ref) -> str:
    """The shard that holds it."""
    return ref.rpartition("#")[0]


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


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


class Folder:
    """Shards as files in a folder that every worker can read and write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with disk.refusing(root, "made"):
            root.mkdir(exist_ok=True)  # in a run folder that is there, or was removed meanwhile

    def path(self, shard: str) -> Path:
        """Where a shard lies. Raises `ValueError` for a name that is none of ours."""
        if not _SHARD.fullmatch(shard):
            raise ValueError(f"shard: letters, digits and '-' expected, found {shard[:99]!r}")
        return self.root / f"{shard}.safetensors"

    def get(self, ref: Ref) -> State:
        shard, _, client = ref.rpartition("#")
        path = self.path(shard)
        with disk.refusing(path, "read"), safe_open(path, framework="pt") as file:
            return {
                k.partition("/")[2]: file.get_tensor(k)
                for k in file.keys()  # noqa: SIM118 (safe_open is no mapping)
                if k.startswith(f"{client}/")
            }

    def put(self, shard: str, states: Mapping[int, State]) -> str:
        return self.put_bytes(shard, to_bytes(states))

    def put_bytes(self, shard: str, content: bytes) -> str:
        # not durable yet: a shard counts only once a manifest names it, and the commit syncs
        disk.write_atomically(self.path(shard), content, durable=False)
        return digest(content)

    def bytes_of(self, shard: str) -> bytes:
        path = self.path(shard)
        with disk.refusing(path, "read"):
            return path.read_bytes()

    def prune(self, live: Iterable[str]) -> None:
        """Delete the shards that are not `live`, and nothing that is no shard."""
        kept = {self.path(shard).name for shard in live}
        with disk.refusing(self.root, "pruned"):
            for path in self.root.iterdir():
                if _FILE.fullmatch(path.name) and path.name not in kept:
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

    def put(self, shard: str, states: Mapping[int, State]) -> str:
        self.written[shard] = to_bytes(states)
        return digest(self.written[shard])
