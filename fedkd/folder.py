"""The run folder: all that a run leaves behind, and all that it needs to go on.

`config.yaml` resolved config · `run.json` versions, hardware, status · `partition.json` who holds
what · `records.jsonl` one line a round, without time or place · `timings.jsonl`, `events.jsonl` ·
`yardsticks.json` · `student.safetensors`, `teachers/` · `data/` splits and arrays · `clients/`,
`commits/` state.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from fedkd import disk, reading, shell
from fedkd.config import Config, ConfigError
from fedkd.recorded import SCHEMA

_MOST_ABOUT = 1 << 26  # bytes that are read of run.json: it names the size of every teacher


@contextmanager
def draft(config: Config) -> Iterator[Path]:
    """A new run folder; if the run fails before it has begun (`begin`), all of it goes again."""
    path = _place(config)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        create(config, path)
        with resumable(path):
            yield path
    except BaseException:
        if not begun(path):
            with suppress(OSError):  # what somebody else has used meanwhile stays
                for inside in path.iterdir():
                    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
                for made in missing:
                    made.rmdir()
        raise


def begun(path: Path) -> bool:
    """Whether there is something to go on with, so that nothing of it may be removed."""
    return (path / "run.json").exists() or (path / "commits").exists()


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Whatever ends a run that has begun tells how to go on with it."""
    try:
        yield
    except BaseException as error:
        if begun(path):
            command = f"{shell.typed('simulate')} --resume {shlex.quote(shell.near(path))}"
            # what a run that would be refused again as it is has to change
            changed = getattr(error, "changed", "")
            error.add_note(f"go on with: {command}{changed and ' '}{changed}")
        raise


def create(config: Config, path: Path | None = None) -> Path:
    """Make a new run folder; nothing existing is ever written into."""
    path = path or _place(config)
    try:
        path.mkdir(parents=True, exist_ok=path.is_dir())
        text = reading.yaml_of(config.model_dump(mode="json"))
        disk.write_atomically(path / "config.yaml", text.encode())
        disk.sync([path])  # and the folder that it lies in
    except (OSError, disk.DiskError) as error:
        raise ConfigError(
            f"execution.out: {path} should be a folder that can be written, found:"
            f" {getattr(error, 'strerror', None) or error}; name another folder with --out"
        ) from None
    return path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder to fill beside a new place, to which it goes only if all went well."""
    draft = vacant(path).with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk.refusing(draft, "made"):
            draft.mkdir(parents=True)
        yield draft
        with disk.refusing(path, "made"):
            draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(config: Config) -> Path:
    """Where the run is to be kept. Raises `ConfigError` where something is already."""
    asked = config.execution.out
    stamp = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, tries = (Path(asked) if asked else Path("runs") / stamp).absolute(), 1
    while asked is None and path.exists():  # two runs in one second
        tries += 1
        path = path.with_name(f"{stamp}~{tries}")
    return vacant(path)


def vacant(path: Path) -> Path:
    """The same path, where a run can be put. Raises `ConfigError` where something is already."""
    try:
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


def begin(
    path: Path,
    config: Config,
    parameters: dict[str, Any],
    data: str,
    cautions: Sequence[str] = (),
) -> int:
    """Write `run.json`: what the bits depend on beside the config, and that the run is under way.

    `data` is the checksum of the data set, `cautions` what the user was warned of. Gives the number
    of the session: 0 at first, one more each time that the run is resumed.
    """
    before = about(path)
    facts = {
        "schema": SCHEMA,
        "fingerprint": config.fingerprint(),
        "name": config.name,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "data": data,
        "device": config.compute.device,
        "threads": {"task": config.compute.task_threads, "server": config.compute.server_threads},
        "parameters": parameters,
        "cautions": list(cautions),
        **surroundings(),
        "sessions": [],
        **before,
        "status": "running",
    }
    facts["sessions"] = [*facts["sessions"], surroundings()]
    write_json(path / "run.json", facts)
    return len(facts["sessions"]) - 1


def describe(path: Path, status: str) -> None:
    """Note in `run.json` how far the run got."""
    write_json(path / "run.json", {**about(path), "status": status})


def about(path: Path) -> dict[str, Any]:  # Any: JSON
    """What `run.json` says; nothing where the run has not begun or where it is damaged."""
    try:
        found = json.loads(disk.read(path / "run.json", _MOST_ABOUT))
        kinds = {"fingerprint": str, "versions": dict, "machine": str, "data": str}
        sound = all(isinstance(found[name], kind) for name, kind in kinds.items())
        return found if sound and isinstance(found["sessions"], list) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def surroundings() -> dict[str, Any]:  # Any: JSON
    """What the bits depend on beside the config: versions, and the kind of machine."""
    versions = {"fedkd": _version("fedkd"), "python": platform.python_version()}
    versions |= {n: _version(n) for n in ("torch", "flwr", "ray", "numpy", "safetensors")}
    machine = f"{_processors()}, {platform.machine()}, {os.cpu_count()} cores, {sys.platform}"
    return {"versions": versions, "machine": machine}


def _processors() -> str:
    """The models of the processor and of the GPUs, which choose among kernels of other bits."""
    told = [Path("/proc/cpuinfo"), *sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    models: dict[str, None] = {}
    for file in told:
        with suppress(OSError):
            named = re.findall(r"(?m)^(?:model name|Model)\s*:\s*(.+)$", file.read_text())
            models |= dict.fromkeys(named)
    return ", ".join(models) or platform.processor() or "unknown processor"


def differences(path: Path) -> list[str]:
    """What is otherwise here and now than where the run began, so that bits may differ."""
    then, now = about(path), surroundings()
    if not then:
        return []
    found = [
        f"{name} {then['versions'].get(name)} then, {version} now"
        for name, version in now["versions"].items()
        if then["versions"].get(name) != version
    ]
    if then["machine"] != now["machine"]:
        found.append(f"{then['machine']} then, {now['machine']} now")
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the run folder against other processes. Raises `ConfigError` where one has it."""
    with disk.refusing(path):
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 20).decode(errors="replace") or "another process"
            raise ConfigError(
                f"resume: {path} should be a run that nobody carries out, found it under way in"
                f" process {holder}; wait for it or end it"
            ) from None
        with suppress(OSError):  # it tells others who we are; a full disk need not know
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "not installed"


def write_json(path: Path, value: object) -> None:
    """A JSON file, replaced as a whole."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    disk.write_atomically(path, text.encode())


def append(path: Path, value: object) -> None:
    """One more line of a `.jsonl` file; it takes the place of a last one that was cut off."""
    with disk.refusing(path), suppress(FileNotFoundError):
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            disk.cut(path, content.rfind(b"\n") + 1)
    disk.append(path, (json.dumps(value, sort_keys=True) + "\n").encode())
