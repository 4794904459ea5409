"""`answers/ROUND.answers`: what a round aggregated, kept so that another rule can be tried on it.

A file is `FKDA`, a version byte, and parts: a letter, a length (uint64, little-endian), so many
bytes. First `R`, the question's rows (int32 [R, 3]); then `A` for each answer by ascending client,
as on the wire, laid out on these rows; `C`, the consensus with its rows, where there is one; at the
end `E`, the SHA-256 of all before it. Answers are written as they come, so that a fold stays a
fold; the file takes its name when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from fedkd import disk, wire
from fedkd.cursor import USUAL
from fedkd.tasks import rows_from, rows_to
from fedkd.types import Predictions

_MAGIC = b"FKDA\x01"
_PART = struct.Struct("<cQ")


def path_of(folder: Path, round_: int) -> Path:
    """Where the answers of a round lie."""
    return folder / f"{round_:06d}.answers"


class Kept:
    """Writes the answers of a run, a file a round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk.refusing(folder, "made"):
            folder.mkdir(exist_ok=True)
        disk.sweep(folder)
        self._file: BinaryIO | None = None
        self._place = self._draft = folder
        self._sum = hashlib.sha256()

    def begin(self, round_: int, rows: Tensor) -> None:
        """A round; what was written of one that was not ended is left behind."""
        self._close()
        self._place = path_of(self._folder, round_)
        self._draft = self._folder / f".{self._place.name}.draft"
        self._sum = hashlib.sha256()
        with disk.refusing(self._draft):
            self._draft.unlink(missing_ok=True)
            self._file = self._draft.open("xb")
            self._write(_MAGIC)
        self._part(b"R", rows_to(rows))

    def add(self, given: Predictions) -> None:
        """One client's answer on these rows."""
        self._part(b"A", wire.encode(given))

    def end(self, consensus: Predictions | None) -> None:
        """The round is aggregated: the file is made durable and takes its name."""
        if consensus is not None:
            self._part(b"C", wire.encode(consensus, send_rows=True))
        self._part(b"E", self._sum.digest())
        assert self._file is not None, "begin comes first"
        with disk.refusing(self._place):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._close()
            os.replace(self._draft, self._place)
            disk.sync([self._place])

    def _part(self, kind: bytes, content: bytes) -> None:
        with disk.refusing(self._draft):
            self._write(_PART.pack(kind, len(content)))
            self._write(content)

    def _write(self, content: bytes) -> None:
        assert self._file is not None, "begin comes first"
        self._file.write(content)
        self._sum.update(content)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Stored:
    """The answers of one round as kept: read once for its checksum, then answer by answer.

    Raises `ValueError` for what is not such a file or is not what was written; `most` bounds the
    bytes of one answer.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._limits = path, USUAL._replace(payload_bytes=most)
        self.consensus: bytes | None = None
        self._answers: list[tuple[int, int]] = []  # where each begins, and its length
        self.rows = rows_from(self._indexed())

    def __len__(self) -> int:
        return len(self._answers)

    def answers(self) -> Iterator[Predictions]:
        """By ascending client."""
        with self._path.open("rb") as file:
            for at, length in self._answers:
                file.seek(at)
                yield wire.decode(file.read(length), self.rows, self._limits)

    def _indexed(self) -> bytes:
        size, found = disk.size(self._path), hashlib.sha256()
        rows: bytes | None = None
        with self._path.open("rb") as file:
            found.update(start := file.read(len(_MAGIC)))
            if start != _MAGIC:
                raise ValueError(
                    f"{self._path.name}: should begin with {_MAGIC!r}, found {start!r}"
                )
            while True:
                head = file.read(_PART.size)
                if len(head) < _PART.size:
                    raise ValueError(f"{self._path.name}: it is cut off")
                kind, length = _PART.unpack(head)
                at = file.tell()
                if length > size - at:
                    raise ValueError(f"{self._path.name}: it is cut off")
                if length > self._limits.payload_bytes:
                    raise ValueError(f"{self._path.name}: a part of {length} bytes is too long")
                content = file.read(length)
                if kind == b"E":
                    break
                found.update(head + content)
                if kind == b"R" and rows is None and length % 12 == 0:
                    rows = content
                elif kind == b"A" and rows is not None and self.consensus is None:
                    self._answers.append((at, length))
                elif kind == b"C" and rows is not None and self.consensus is None:
                    self.consensus = content
                else:
                    raise ValueError(f"{self._path.name}: {kind!r} is out of place")
        if rows is None or content != found.digest() or at + length != size:
            raise ValueError(f"{self._path.name}: it does not have the checksum that it ends with")
        return rows
