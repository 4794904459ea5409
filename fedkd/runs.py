"""An experiment as a function call: `run(load_config("digits"))`, and `resume(folder)`."""

from __future__ import annotations

import html
import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import data, disk, folder, guarantees, sessions, tracking
from fedkd.assemble import Plan, assemble, cautions, prepare, resolve
from fedkd.commits import Commit, Commits
from fedkd.conduct import Watch
from fedkd.config import Config, ConfigError
from fedkd.engine import ledger_of
from fedkd.figures import figures
from fedkd.forecast import afford
from fedkd.progress import watching
from fedkd.rehearsal import rehearse
from fedkd.store import Folder, under

if TYPE_CHECKING:
    from pandas import DataFrame

# settings that decide what a method lets out once a run
_ONCE = ("strategy.", "annotate")
# what a notebook shows of a run: accuracies, and of so many rounds
_SHOWN = ("student/test", "ensemble/test", "teachers/test/mean", "teachers/test/min")
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A finished run: its folder and, round by round, its records. In a notebook it shows both."""

    folder: Path
    records: Sequence[dict[str, Any]]  # Any: JSON

    def table(self) -> DataFrame:
        """A row a round and a column a figure: `run.table()["student/test"]`."""
        from pandas import DataFrame, Index

        rounds = Index([record["round"] for record in self.records], name="round")
        return DataFrame([figures(record) for record in self.records], index=rounds)

    def _repr_html_(self) -> str:
        table = self.table()
        shown = table[[c for c in _SHOWN if c in table]].tail(_MOST_SHOWN)
        shown = shown.rename_axis(columns="round").rename_axis(index=None)  # one line of heads
        form = dict.fromkeys(shown, "{:.1%}".format)
        text: str = shown.to_html(formatters=form, na_rep="—", border=0)
        return f"{text}<p>{html.escape(repr(self))}</p>"

    def __repr__(self) -> str:
        here = Path.cwd()
        near = self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder
        return f"Run of {len(self.records):,} rounds in {near}"


def run(config: Config, watch: Watch | None = None, *, progress: bool = False) -> Run:
    """Carry an experiment out on the runtime that it names; all that comes of it is in its folder.

    With `progress` it tells how far it is, as suits a terminal, a notebook or a file; a `watch` is
    told instead. Raises `fedkd.ConfigError` before anything is trained, for whatever cannot work,
    and leaves no folder then. What fails later leaves a folder that `resume` goes on from.
    """
    chosen = resolve(config)
    with (
        _looking(watch, progress, chosen.rounds) as looking,
        folder.draft(chosen) as path,
        folder.alone(path),
    ):
        _carry_out(chosen, path, looking)
    return Run(path, records(path))


def resume(
    path: Path | str,
    changed: Callable[[Config], Config] | None = None,
    watch: Watch | None = None,
    branch: Path | str | None = None,
    *,
    progress: bool = False,
) -> Run:
    """Go on with a run where its last commit is; the bytes are those of a run without a break.

    `changed` may alter how the work is done (`execution`). Raises `fedkd.ConfigError` where it
    alters the experiment itself, with what differs; given a folder to `branch` into, the altered
    experiment goes on there from the same commit, as far as it can. `watch` and `progress` are as
    for `run`.
    """
    path = Path(path).absolute()
    disk.refuse_strangers(path)
    stored = sessions.config_of(path)
    chosen = sessions.settled(changed(stored) if changed else stored, stored)
    differences = sessions.differences(stored, chosen)
    if differences and branch is None:
        raise sessions.refusal(path, differences)
    with _looking(watch, progress, chosen.rounds) as looking:
        if branch is not None:
            out = Path(branch).absolute()
            path = sessions.branch(
                path, stored, chosen, out, looking.event,
                lambda p, done: _accept(stored, chosen, p, done),
            )  # fmt: skip
        chosen = resolve(chosen)
        with folder.resumable(path), folder.alone(path):
            disk.sweep(path)
            for text in folder.differences(path):
                looking.event({"kind": "surroundings", "cause": text})
            if folder.about(path).get("status") != "finished":
                _carry_out(chosen, path, looking)
    return Run(path, records(path))


def _carry_out(config: Config, path: Path, watch: Watch) -> None:
    trackers = tracking.trackers(config)
    told = folder.about(path)
    if (path / "run.json").exists() and not told:
        _damaged(watch, path, "run.json cannot be read: it is made anew")
    place = path / "data"
    if place.exists() and (text := data.damage(place, told.get("data"))):
        _damaged(watch, path, f"{text}: it is made anew")
        with disk.refusing(place, "removed"):
            shutil.rmtree(place)
    if not place.exists():
        for half in path.glob(".data.*"):  # `data.write` was killed over it
            shutil.rmtree(half)
        watch.stage("data: load, split, partition")
        prepare(config, place)
        if told and data.digest(place) != told["data"]:
            raise ConfigError(
                f"resume: {path} should be gone on with on the data that it began with, found that"
                " its source gives others now; bring the source back to what it was"
            )
    plan = assemble(config, place)
    rehearse(plan)  # refuse before workers are started
    if config.privacy.budget is not None and (path / "commits").exists():
        clients, keep = Folder(path / "clients"), config.execution.keep_commits
        done = Commits(path, clients, keep, lambda text: _damaged(watch, path, text)).last()
        if done is not None:
            _go_on(plan, done)
    for text in cautions(plan):
        watch.event({"kind": "caution", "cause": text})
    watch.stage(f"start the {config.execution.runtime} runtime")
    runtime = importlib.import_module(f"fedkd.runtime.{config.execution.runtime}")
    with tracking.following(trackers, config, path, watch) as following:
        runtime.start(config, path, following)


def _accept(stored: Config, chosen: Config, path: Path, done: Commit) -> None:
    """Refuse a branch that could not keep what it promises.

    One whose budget is spent, whose models have learnt without noise, or which would draw noise of
    once a run twice. Data that are damaged are made anew before that is looked into.
    """
    before, now = (_noise(config) for config in (stored, chosen))
    if now and not before:
        raise ConfigError(
            "privacy.training: should be set from the first round on, for models do not forget what"
            f" they have learnt without noise, found {'nothing' if before is None else 'noise 0'}"
            f" in the run before round {done.round + 1}; leave it out or start a new run"
        )
    changed = [t for t in sessions.differences(stored, chosen) if t.startswith(_ONCE)]
    if chosen.privacy.budget is None and not changed:
        return
    if data.damage(path / "data", folder.about(path).get("data")):
        return
    once = guarantees.once(assemble(stored, path / "data").strategy) if changed else ()
    if once:
        raise ConfigError(
            f"resume: a branch should leave what is let out once a run ({', '.join(once)}) as it"
            f" was, for its noise would be drawn once more and be the same, found"
            f" {'; '.join(changed)}; start a new run"
        )
    if chosen.privacy.budget is not None:
        _go_on(assemble(resolve(chosen), path / "data"), done)


def _noise(config: Config) -> float | None:
    """Of private training: its noise multiplier or what it is searched for; None without it."""
    training = config.privacy.training
    if training is None:
        return None
    return training.epsilon if training.noise_multiplier is None else training.noise_multiplier


def _go_on(plan: Plan, done: Commit) -> None:
    """Refuse a budget that is spent, or that the round after a commit would exceed."""
    afford(plan, ledger_of(done), done.round + 1, under("finish/", done.server))


def _damaged(watch: Watch, path: Path, text: str) -> None:
    event = {"kind": "damage", "cause": text}
    folder.append(path / "events.jsonl", event)
    watch.event(event)


def records(path: Path) -> list[dict[str, Any]]:  # Any: JSON
    """The records of a finished run, round by round. Raises `DiskError` where they are gone."""
    stored = path / "records.jsonl"
    try:
        lines = stored.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise disk.DiskError(
            f"disk: {stored} should hold a record a line, found {type(error).__name__}: {error};"
            " the run is finished, so it is not gone on with: bring the file back"
        ) from None


def _looking(watch: Watch | None, shown: bool, rounds: int) -> AbstractContextManager[Watch]:
    from fedkd.runtime.apps import Silent

    if watch is None and shown:
        return watching(rounds)
    return nullcontext(watch or Silent())
