"""Writing so that a crash at any instant leaves the old content or the new, and never a mixture.

All that a run must not lose goes through here. Symbolic links are never followed for writing, so a
run folder that somebody has prepared cannot send what we write to another place. What is read back
is held to what was told of it before memory is taken.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# no link, and no waiting for whoever is to read a pipe
_OWN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SYNCS = 8  # files whose content is on its way to the disk at once
# what the system says of a file that is missing, no file, or on a bad sector
_BROKEN = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EIO,
    errno.ENAMETOOLONG,
)


class DiskError(RuntimeError):
    """The disk refused; the text says what was to be done, where and why it failed."""


@contextmanager
def refusing(path: Path, what: str = "written") -> Iterator[None]:
    """What the system says becomes a `DiskError` about this path."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise DiskError(f"disk: {path} could not be {what}: {said}") from error


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write beside the place and rename: readers see the old file or the whole new one.

    With `durable` it also survives a loss of power once this returns.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with refusing(path):
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OWN, 0o666)
            try:
                _write(handle, content)
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(draft, path)
            if durable:
                _sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


def sweep(folder: Path) -> None:
    """Remove what `write_atomically` was killed over."""
    with refusing(folder, "swept"):
        for draft in folder.glob(".*.draft"):
            draft.unlink(missing_ok=True)


def append(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Add to the end of a file, which is made where it is missing."""
    with refusing(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OWN, 0o666)
        try:
            _write(handle, content)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)


def cut(path: Path, size: int) -> None:
    """Shorten a file to its first `size` bytes."""
    with refusing(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | _OWN, 0o666)
        try:
            os.ftruncate(handle, size)
            os.fsync(handle)
        finally:
            os.close(handle)


def sync(paths: Iterable[Path]) -> None:
    """Have these files, and the folders that they lie in, survive a loss of power."""
    wanted = list(paths)
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_synced, wanted))
    for folder in sorted({path.parent for path in wanted}):
        _synced(folder)


def read(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes.

    Raises `ValueError` where there is no such file, and `DiskError` where the disk refuses.
    """
    with _opened(path) as (file, there):
        if there > most:
            raise ValueError(f"{path.name}: at most {most:,} bytes, found {there:,}")
        return file.read(there)


def hashed(path: Path, size: int) -> Any:  # Any: hashlib names no type
    """The SHA-256 of the first `size` bytes of a file, open for more; raises as `read` does."""
    found = hashlib.sha256()
    with _opened(path) as (file, there):
        if there < size:
            raise ValueError(f"{path.name}: {size:,} bytes expected, found {there:,}")
        while size > 0 and (part := file.read(min(size, 1 << 20))):
            found.update(part)
            size -= len(part)
    return found


def size(path: Path) -> int:
    """How many bytes a file has; raises as `read` does."""
    with _opened(path) as (_, there):
        return there


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder in which something is neither a folder nor a file of its own.

    That is a symbolic link, a pipe, a device, or, beside the folders, where files are written in
    place, a file that has a second name elsewhere. Raises `DiskError`.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            about = path.lstat()
        except FileNotFoundError:  # a draft of whoever carries the run out just now
            continue
        found = ""
        if stat.S_ISLNK(about.st_mode):
            found = "a symbolic link; nothing is written through links: put what it points to"
        elif not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            found = "a pipe, a socket or a device; remove it, or put a file"
        elif about.st_nlink > 1 and stat.S_ISREG(about.st_mode) and path.parent == folder:
            found = "a file with a second name, which would change with it; put a copy of it"
        if found:
            raise DiskError(
                f"disk: {path} should be a file or folder of its own, found {found} in its place"
            )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file, but no folder, pipe or device, for reading, and its size."""
    try:
        # a pipe would keep who opens it waiting
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise ValueError(f"{path.name}: it is no file")
            yield file, about.st_size
    except OSError as error:
        if error.errno in _BROKEN:
            raise ValueError(f"{path.name}: {error.strerror}") from error
        raise DiskError(f"disk: {path} could not be read: {error.strerror}") from error


def _synced(path: Path) -> None:
    with refusing(path, "synced"):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
