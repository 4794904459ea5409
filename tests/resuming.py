"""Runs that are killed and gone on with: real processes, real signals, and what the disk is left
with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import small

from fedkd import folder, runs, simulate
from fedkd.conduct import conduct
from fedkd.config import Config, load_config
from fedkd.runtime import local as local  # once here instead of in every child

METHODS = ("scarlet", "fedmd")
_OF_METHOD: dict[str, dict[str, Any]] = {
    "scarlet": {},
    "fedmd": {
        "data": {**small.EXPERIMENT["data"], "public": {"size": 80, "labelled": True}},
        "rounds": 3,
    },
}


def experiment(method: str, *overrides: str, **changes: object) -> Config:
    """Four rounds of a method; some clients miss some rounds, so old shards live on."""
    usual: dict[str, Any] = {
        "rounds": 4,
        "clients": [{"count": 4, "model": [small.MLP, small.OTHER]}],
        "world": {"name": "partial", "fraction": 0.75},
        "evaluation": {"pooled": False, "local": True, "labels": False},
    }
    return small.config(method, *overrides, **usual | _OF_METHOD[method] | changes)


def prepared(chosen: Config, path: Path, like: Path | None = None) -> Path:
    """A run folder as it is before the first round, its data copied from another run's."""
    folder.create(chosen, path)
    if like is None:
        small.plan(chosen, path)
    else:
        shutil.copytree(like / "data", path / "data")
    return path


def carried_out(path: Path) -> None:
    """Conduct the run in this folder from where it is, without Flower."""
    chosen = load_config(str(path / "config.yaml"))
    conduct(chosen, path, small.InProcess(), small.Silent())


class Heard:
    """A `Watch` that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.rounds: list[int] = []

    def stage(self, text: str) -> None: ...

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        self.rounds.append(record["round"])

    def told(self, kind: str) -> list[str]:
        return [str(e.get("cause")) for e in self.events if e["kind"] == kind]


def resumed(path: Path, *overrides: str, branch: Path | None = None) -> Heard:
    """Go on with a run as the command line does, in a process of its own that ends well."""
    told = path.with_name(f"{path.name}.heard")

    def go_on() -> None:
        heard = Heard()
        runs.resume(
            path,
            lambda stored: load_config(stored.model_dump(mode="json"), overrides),
            heard,
            branch,
        )
        told.write_text(json.dumps([heard.events, heard.rounds]))

    assert forked(go_on) == 0
    heard = Heard()
    heard.events, heard.rounds = json.loads(told.read_text())
    told.unlink()
    return heard


def forked(do: Callable[[], object]) -> int:
    """Do something in a child process, which has everything loaded; how it ended, -9 if killed."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(do), 0)[1])


def each(jobs: Mapping[str, Callable[[], object]], at_once: int = 2) -> None:
    """Do jobs in child processes, some at once; fails with the names of those that fail."""
    waiting, running, failed = dict(jobs), dict[int, str](), list[str]()
    while waiting or running:
        while waiting and len(running) < at_once:
            name = next(iter(waiting))
            running[_fork(waiting.pop(name))] = name
        child = next(iter(running))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            failed.append(running[child])
        del running[child]
    assert not failed, f"{len(failed)} of {len(jobs)} failed: {failed[:20]}"


def _fork(do: Callable[[], object]) -> int:
    with warnings.catch_warnings():  # Python 3.12 warns of threads, which stay behind here
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        try:
            do()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def command(
    place: Path,
    *arguments: str,
    meanwhile: Callable[[int, Path], object] = lambda child, err: None,
) -> Said:
    """Do what the command line does, in a child process of its own group with its own streams.

    `meanwhile` gets its process id and the file that its stderr goes to.
    """
    streams = Path(tempfile.mkdtemp())
    out, err = streams / "out", streams / "err"
    err.touch()

    def do() -> None:
        os.setsid()
        os.chdir(place)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with out.open("w") as sys.stdout, err.open("w") as sys.stderr:
            code = simulate.main(arguments)
        os._exit(code)

    child = _fork(do)
    meanwhile(child, err)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = Said(code, out.read_text(), err.read_text())
    shutil.rmtree(streams)
    return said


def wait_for(err: Path, text: str, patience_s: float = 120.0) -> None:
    """Wait until a command has said something."""
    until = time.monotonic() + patience_s
    while text not in err.read_text():
        assert time.monotonic() < until, f"it never said {text!r}: {err.read_text()}"
        time.sleep(0.005)


How = Literal["before", "torn", "after", "loss"]


class Call(NamedTuple):
    """Something that a process does to a file: `replace commits/000001.json`."""

    name: str
    file: str

    def __str__(self) -> str:
        return f"{self.name} {self.file}"


class Failpoint(NamedTuple):
    """Be killed at the so-manieth call: before or after it, in the midst of a write (`torn`), or
    before it with the power gone (`loss`), so that all is lost that was not synced."""

    at: int
    how: How


def calls_of(path: Path, do: Callable[[], object]) -> list[Call]:
    """What a process does to the files in a folder, in order."""
    told = path.with_name(f"{path.name}.calls")

    def tell() -> None:
        disk = _Disk(path, None)
        do()
        told.write_text(json.dumps(disk.calls))

    assert forked(tell) == 0
    found = [Call(*call) for call in json.loads(told.read_text())]
    told.unlink()
    return found


def killed(path: Path, at: Failpoint, do: Callable[[], object]) -> bool:
    """Do it in a process that is killed at a failpoint; False if it came to its end before."""

    def strike() -> None:
        _Disk(path, at)
        do()

    ended = forked(strike)
    assert ended in (-signal.SIGKILL, 0)
    return ended != 0


def failpoints(calls: Sequence[Call]) -> Iterator[Failpoint]:
    """All of them. After a call is before the next one, except after the last."""
    for at, call in enumerate(calls):
        yield Failpoint(at, "before")
        if call.name == "write":
            yield Failpoint(at, "torn")
        yield Failpoint(at, "loss")
    yield Failpoint(len(calls) - 1, "after")


class _Disk:
    """This process's calls to the system, counted, and the end of it at one of them.

    What is not synced yet is known: files by their inode, with the size up to which they are, and
    what was made, renamed or removed in a folder by how to undo it.
    """

    def __init__(self, root: Path, end: Failpoint | None) -> None:
        self.calls: list[Call] = []
        self._root, self._end = root, end
        self._lock = threading.RLock()
        self._dirty: dict[int, Path] = {}
        self._synced: dict[int, int] = {}
        self._undo: list[tuple[Path, Callable[[], object]]] = []
        self._real = {n: getattr(os, n) for n in ("write", "fsync", "ftruncate", "replace")}
        self._real |= {n: getattr(os, n) for n in ("unlink", "mkdir", "open", "rename")}
        for name in self._real:
            setattr(os, name, getattr(self, f"_{name}"))

    def _write(self, handle: int, content: Any) -> int:
        path = self._path(handle)
        if path is None:
            return int(self._real["write"](handle, content))
        with self._call("write", path) as torn:
            self._touched(handle, path)
            if torn:
                self._real["write"](handle, bytes(content)[: len(content) // 2])
                self._die()
            return int(self._real["write"](handle, content))

    def _fsync(self, handle: int) -> None:
        path = self._path(handle)
        if path is None:
            return self._real["fsync"](handle)
        with self._call("fsync", path):
            self._real["fsync"](handle)
            about = os.fstat(handle)
            self._dirty.pop(about.st_ino, None)
            self._synced[about.st_ino] = about.st_size
            if stat.S_ISDIR(about.st_mode):
                self._undo = [(place, undo) for place, undo in self._undo if place != path]

    def _ftruncate(self, handle: int, size: int) -> None:
        path = self._path(handle)
        if path is None:
            return self._real["ftruncate"](handle, size)
        with self._call("ftruncate", path):
            self._touched(handle, path)
            self._real["ftruncate"](handle, size)
            inode = os.fstat(handle).st_ino
            self._synced[inode] = min(self._synced[inode], size)

    def _replace(self, source: Any, target: Any) -> None:
        path = Path(target)
        if not path.is_relative_to(self._root):
            return self._real["replace"](source, target)
        with self._call("replace", path):
            self._later(path, _restoring(path))
            made = os.stat(source).st_ino
            if made in self._dirty:
                self._dirty[made] = path
            self._real["replace"](source, target)

    _rename = _replace

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        there = Path(path)
        if dir_fd is not None or not there.is_relative_to(self._root) or not there.exists():
            return self._real["unlink"](path, dir_fd=dir_fd)
        with self._call("unlink", there):
            self._later(there, _restoring(there))
            self._real["unlink"](path)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        made = Path(path)
        if not made.is_relative_to(self._root) or made.exists():
            return self._real["mkdir"](path, mode, dir_fd=dir_fd)
        with self._call("mkdir", made):
            self._later(made, lambda: shutil.rmtree(made))
            self._real["mkdir"](path, mode)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        made = Path(path) if isinstance(path, str | Path) else Path("/")
        if not flags & os.O_CREAT or not made.is_relative_to(self._root) or made.exists():
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        with self._call("open", made):
            self._later(made, lambda: made.unlink(missing_ok=True))
            return int(self._real["open"](path, flags, mode))

    def _touched(self, handle: int, path: Path) -> None:
        about = os.fstat(handle)
        self._synced.setdefault(about.st_ino, about.st_size)  # written before we looked
        self._dirty[about.st_ino] = path

    def _path(self, handle: int) -> Path | None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        return path if path.is_relative_to(self._root) else None

    def _later(self, path: Path, undo: Callable[[], object]) -> None:
        """How to undo what happens in a folder, until that folder is synced."""
        self._undo.append((path.parent, undo))

    def _call(self, name: str, path: Path) -> _Call:
        return _Call(
            self, Call(name, re.sub(r"\.\d+\.draft$", "", str(path.relative_to(self._root))))
        )

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        """The power goes: half of what was written since the last sync is there, and no name."""
        for name, real in self._real.items():
            setattr(os, name, real)
        for inode, path in self._dirty.items():
            if path.exists():
                os.truncate(path, (self._synced[inode] + path.stat().st_size) // 2)
        for _, undo in reversed(self._undo):
            undo()


class _Call:
    """One call under the lock, with death before or after it; gives whether it is to be torn."""

    def __init__(self, disk: _Disk, call: Call) -> None:
        self._disk, self._call = disk, call

    def __enter__(self) -> bool:
        self._disk._lock.acquire()
        end, at = self._disk._end, len(self._disk.calls)
        self._disk.calls.append(self._call)
        self._here = end is not None and end.at == at
        self._how = end.how if end is not None and self._here else None
        if self._how == "loss":
            self._disk._lose()
        if self._how in ("before", "loss"):
            self._disk._die()
        return self._how == "torn"

    def __exit__(self, *_: object) -> None:
        if self._how == "after":
            self._disk._die()
        self._disk._lock.release()


def _restoring(path: Path) -> Callable[[], object]:
    """Bring a file back as it is now, or have it not exist."""
    if not path.exists():
        return lambda: path.unlink(missing_ok=True)
    before = path.read_bytes()
    return lambda: path.parent.exists() and path.write_bytes(before)
