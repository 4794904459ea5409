"""A sweep as a function call: many runs over one base, in one folder, on one warm session.

The folder: `sweep.yaml` what was asked for · `sweep.json` the runs and what became of them ·
`runs/` an ordinary run folder for each. A run is found again by the fingerprint of its resolved
config, so what is finished is not done again, and what was cut off is gone on with.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedkd import axes, disk, folder, plugins, points, reading, shell
from fedkd.assemble import resolve, search
from fedkd.config import Config, ConfigError, Named
from fedkd.points import Grid, Point
from fedkd.runs import Run, records
from fedkd.types import Strategy, World

_LOOK_S = 1.0  # between two looks at how far the runs are


@dataclass(frozen=True, slots=True)
class Swept:
    """One run of a sweep: its values by key, its folder, and what went wrong, if anything did."""

    values: Mapping[str, Any]  # Any: YAML
    folder: Path
    error: str = ""

    @property
    def run(self) -> Run:
        """The finished run. Raises `ValueError` where it has failed."""
        if self.error:
            raise ValueError(f"sweep: {self.folder} should be a finished run, found: {self.error}")
        return Run(self.folder, records(self.folder))


@dataclass(frozen=True, slots=True)
class Sweep:
    """All runs of a sweep, in the order of the grid."""

    folder: Path
    runs: tuple[Swept, ...]

    @property
    def failed(self) -> tuple[Swept, ...]:
        return tuple(run for run in self.runs if run.error)


@dataclass(frozen=True, slots=True)
class Task:
    """A point with the place where it is carried out."""

    point: Point
    config: Config  # resolved, execution as the sweep has it
    folder: Path

    @property
    def finished(self) -> bool:
        return folder.about(self.folder).get("status") == "finished"


class Board(Protocol):
    """Whoever looks on at a sweep."""

    def stage(self, text: str) -> None: ...
    def begin(self, tasks: Sequence[Task], at_once: int) -> None: ...
    def look(self) -> None: ...
    def ended(self, task: Task, error: str) -> None: ...


class Silent:
    """Nobody looks on."""

    def stage(self, text: str) -> None: ...
    def begin(self, tasks: Sequence[Task], at_once: int) -> None: ...
    def look(self) -> None: ...
    def ended(self, task: Task, error: str) -> None: ...


def sweep(
    config: str | Path | Mapping[str, object] | Config,
    vary: Mapping[str, Sequence[Any]],
    *,
    overrides: Sequence[str] = (),
    sets: Sequence[Mapping[str, Any]] = ({},),
    out: Path | str | None = None,
    at_once: int | None = None,
    fail_fast: bool = False,
    board: Board | None = None,
) -> Sweep:
    """Run every combination of values, as in `sweep("digits", {"seed": range(3)})`.

    `sets` are further overrides, each with the whole grid; `at_once` how many runs are done at a
    time, as many as there are cores for if None. An `out` that holds a sweep over the same base is
    gone on with. Raises `fedkd.ConfigError` before anything is trained for a point that cannot
    work; a run that fails later keeps no other from being done, unless `fail_fast`.
    """
    tree = config.model_dump(mode="json") if isinstance(config, Config) else config
    grid = points.grid(tree, overrides, axes.given(vary), sets)
    asked: dict[str, Any] = {
        "config": points.base_of(tree, overrides),
        "vary": {k: list(v) for k, v in vary.items()},
    }
    asked["sets"] = [dict(s) for s in sets]
    return carry_out(grid, asked, out, at_once, fail_fast, board or Silent())


def carry_out(
    grid: Grid,
    asked: Mapping[str, Any],  # Any: YAML
    out: Path | str | None,
    at_once: int | None,
    fail_fast: bool,
    board: Board,
) -> Sweep:
    """Do what is not done yet of a grid, in its folder."""
    board.stage(f"check {len(grid.points)} runs")
    resolved = [(point, resolve(point.config)) for point in grid.points]
    _check(resolved)
    first = resolved[0][1]
    place = _place(first.name, out)
    here = first.execution.runtime == "local"
    count = 1 if here else _at_once(first, len(resolved), at_once)
    within = first.execution.runtime if count == 1 else "local"
    tasks = []
    for point, config in resolved:
        path = place / "runs" / points.folder_name(point, config)
        execution = config.execution.model_copy(
            update={"out": str(path), "progress": False, "runtime": within}
        )
        tasks.append(Task(point, config.model_copy(update={"execution": execution}), path))
    _begin(place, asked)
    with folder.alone(place), _resumable(place):
        errors = dict.fromkeys((task.folder for task in tasks), "")
        _status(place, tasks, errors)
        board.begin(tasks, count)
        left = [task for task in tasks if not task.finished]
        for task in left:
            if task.folder.exists() and not folder.begun(task.folder):
                shutil.rmtree(task.folder)  # it was cut off before there was anything to keep
        for task, error in _done(left, first, count, here, board):
            errors[task.folder] = error
            board.ended(task, error)
            _status(place, tasks, errors)
            if error and fail_fast:
                break
        _status(place, tasks, errors)
    missing = "it was not begun, for another had failed"
    return Sweep(
        place,
        tuple(
            Swept(t.point.values, t.folder, errors[t.folder] or ("" if t.finished else missing))
            for t in tasks
        ),
    )


def _done(
    tasks: Sequence[Task], first: Config, count: int, here: bool, board: Board
) -> Iterator[tuple[Task, str]]:
    """Every task as it ends, and what went wrong with it."""
    if not tasks:
        return
    from fedkd.runtime import pool

    jobs = {task.folder: task for task in tasks}
    todo = [pool.Job(task.config, task.folder) for task in tasks]
    if here:
        for job in todo:
            yield jobs[job.folder], pool.attempt(job)
            board.look()
        return
    board.stage("start the ray session")
    # a run that is alone takes its cores for its own workers
    cpus = _cores_of(first) if count > 1 else 0.0
    with pool.opened(first.execution, count, cpus) as opened:
        board.stage(f"{count} at a time")
        for ended in opened.done(todo, _LOOK_S):
            board.look()
            if ended is not None:
                yield jobs[ended[0].folder], ended[1]


def _cores_of(config: Config) -> float:
    threads = config.compute.task_threads
    assert not isinstance(threads, str), "it is resolved"
    return max(config.execution.cpus_per_task, float(threads))


def _at_once(config: Config, runs: int, wanted: int | None) -> int:
    """How many runs are done at a time: as there are cores for, one where they need GPUs."""
    if wanted is not None:
        return min(wanted, runs)
    if config.execution.address is not None or config.compute.device == "cuda":
        return 1
    workers = config.execution.workers
    assert not isinstance(workers, str), "it is resolved"
    cores = workers * config.execution.cpus_per_task
    return max(1, min(runs, math.floor(cores / _cores_of(config))))


def _check(resolved: Sequence[tuple[Point, Config]]) -> None:
    """Bind every part that is named, so that all faults are told before anything is trained."""
    known: set[str] = set()
    for point, config in resolved:
        parts: list[tuple[plugins.Kind, Named, int, type, str]] = [
            ("strategy", config.strategy, 0, Strategy, "strategy"),
            ("world", config.world, 0, World, "world"),
            ("source", config.data.source, 0, object, "data.source"),
            ("partition", config.data.partition, 3, object, "data.partition"),
            ("model", config.student, 2, object, "student"),
            *(
                ("model", spec, 2, object, f"clients.{g}.model.{i}")
                for g, group in enumerate(config.clients)
                for i, spec in enumerate(group.model)
            ),
        ]
        where = search(config)
        if config.execution.runtime == "flower":
            raise ConfigError(
                "execution.runtime: should be ray or local in a sweep, found 'flower', whose"
                " engine has no session that several runs could share; leave it out"
            )
        for kind, spec, taken, expect, at in parts:
            key = json.dumps([kind, spec.model_dump(mode="json"), at])
            if key in known:
                continue
            known.add(key)
            try:
                made = plugins.bind(kind, spec, taken=taken, search=where, expect=expect, where=at)
                if not taken and kind in ("strategy", "world"):
                    made()
            except ConfigError as error:
                raise points.at(point.text, error) from None


def _place(name: str, out: Path | str | None) -> Path:
    if out is not None:
        return Path(out).absolute()
    stamp = f"{name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    path, tries = (Path("runs") / stamp).absolute(), 1
    while path.exists():
        tries += 1
        path = path.with_name(f"{stamp}~{tries}")
    return path


def _begin(place: Path, asked: Mapping[str, Any]) -> None:
    """Make the folder, or see that the sweep in it has the same base."""
    stored = place / "sweep.yaml"
    if not stored.exists():
        folder.vacant(place)
        with disk.refusing(place, "made"):
            (place / "runs").mkdir(parents=True, exist_ok=True)
    elif (before := asked_of(place))["config"] != asked["config"]:
        raise ConfigError(
            f"sweep: {place} should hold a sweep over the same config and overrides, found one over"
            f" {_told(before)}, not {_told(asked)}; name another folder with --out"
        )
    disk.write_atomically(stored, reading.yaml_of(dict(asked)).encode())


def _told(asked: Mapping[str, Any]) -> str:
    base = asked["config"]
    return " ".join([str(base["of"].get("name", "a config")), *base["overrides"]])


def asked_of(place: Path) -> dict[str, Any]:  # Any: YAML
    """What the sweep in a folder was asked for. Raises `ConfigError` where there is none."""
    stored = place / "sweep.yaml"
    if not stored.is_file():
        raise ConfigError(
            f"sweep: {place} should be the folder of a sweep, found no sweep.yaml in it; name the"
            " folder that a sweep has made"
        )
    found = reading.read(stored)
    if (
        not isinstance(found.get("config"), dict)
        or not {"of", "overrides"} <= found["config"].keys()
    ):
        raise ConfigError(
            f"sweep: {stored} should say which config was swept, found it changed; bring it back"
        )
    return found


def _status(place: Path, tasks: Sequence[Task], errors: Mapping[Path, str]) -> None:
    runs = [
        {
            "folder": str(task.folder.relative_to(place)),
            "values": dict(task.point.values),
            "fingerprint": task.config.fingerprint(),
            "status": "finished"
            if task.finished
            else "failed"
            if errors[task.folder]
            else "unfinished",
            "error": errors[task.folder],
        }
        for task in tasks
    ]
    folder.write_json(place / "sweep.json", {"schema": 1, "runs": runs})


@contextmanager
def _resumable(place: Path) -> Iterator[None]:
    """Whatever ends a sweep tells how to go on with it."""
    try:
        yield
    except BaseException as error:
        error.__notes__ = []  # what single runs say of themselves would mislead
        error.add_note(f"go on with: {resume_command(place)}")
        raise


def resume_command(place: Path) -> str:
    """What to type to do what is left."""
    return f"{shell.typed('sweep')} --resume {shlex.quote(shell.near(place))}"


def stored_grid(place: Path) -> Grid:
    """The grid of a sweep as its folder tells it."""
    asked = asked_of(place)
    base = asked["config"]
    vary = axes.given(asked.get("vary", {}))
    return points.grid(base["of"], base["overrides"], vary, asked.get("sets", [{}]))
