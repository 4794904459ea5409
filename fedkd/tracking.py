"""Trackers beside a run: told of every round once, and never in its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import disk, folder, plugins
from fedkd.conduct import Watch
from fedkd.config import Config, ConfigError
from fedkd.figures import figures
from fedkd.trackers import Tracker

Round = tuple[dict[str, Any], dict[str, float]]  # Any: JSON; a record, and its seconds
_TOLD = "trackers.json"  # how far each of them was told, so that no round is told twice


@dataclass(frozen=True, slots=True)
class Named:
    """A tracker as the config names it; `key` tells it from others over all sessions."""

    name: str
    key: str
    tracker: Tracker


def trackers(config: Config) -> list[Named]:
    """All trackers of a config, ready to begin. Raises `ConfigError` for one that cannot be."""
    found: list[Named] = []
    for number, spec in enumerate(config.execution.trackers):
        where = f"execution.trackers.{number}"
        key = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
        if key in (other.key for other in found):
            raise ConfigError(f"{where}: should differ from the others, found {key} twice; drop it")
        search = config.execution.search
        made = plugins.build("tracker", spec, search=search, expect=Tracker, where=where)
        assert isinstance(made, Tracker)
        found.append(Named(spec.name, key, made))
    return found


@contextmanager
def following(chosen: Sequence[Named], config: Config, path: Path, watch: Watch) -> Iterator[Watch]:
    """A `Watch` that tells the trackers what it is told; they end when the block does.

    What a tracker raises goes to `events.jsonl` and to `watch`, once, and it is told nothing more.
    """
    if not chosen:
        yield watch
        return
    told = _Told(path, watch)
    followers = [_Follower(named, told) for named in chosen]
    tree = config.model_dump(mode="json")
    for follower in followers:
        follower.begin(path, tree)
    status = "failed"
    try:
        yield _Following(watch, followers)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        for follower in followers:
            follower.finish(status)


class _Following:
    """A `Watch` in front of another one and of the trackers."""

    def __init__(self, watch: Watch, followers: Sequence[_Follower]) -> None:
        self._watch, self._followers = watch, followers
        self.stage, self.event = watch.stage, watch.event

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:  # Any: JSON
        self._watch.round(record, seconds)
        for follower in self._followers:
            follower.round(record, seconds)


class _Told:
    """What of a run folder the trackers have been told, and what there is to tell."""

    def __init__(self, path: Path, watch: Watch) -> None:
        self._path, self._watch = path, watch
        self._rounds = _counts(_read(path / _TOLD, json.loads))

    def missed(self, key: str, before: int | None) -> Iterator[Round]:
        """Rounds of the folder that a tracker has not been told of, in ascending order."""
        done = self._rounds.get(key, 0)
        if before is not None and done >= before - 1:
            return  # the ordinary case: nothing is read
        seconds = {line["round"]: line["seconds"] for line in self._lines("timings.jsonl")}
        for record in self._lines("records.jsonl"):
            if record["round"] > done and (before is None or record["round"] < before):
                yield record, seconds.get(record["round"], {})

    def tell(self, named: Named, record: dict[str, Any], seconds: dict[str, float]) -> None:
        """Tell a tracker of a round, unless it was told of it in an earlier session."""
        if record["round"] > self._rounds.get(named.key, 0):
            named.tracker.round(_copy(record), _copy(seconds))
            self._rounds[named.key] = record["round"]
            folder.write_json(self._path / _TOLD, self._rounds)

    def summary(self) -> dict[str, float]:
        """The figures of the last round, and those of the yardsticks where there are any."""
        yardsticks = _read(self._path / "yardsticks.json", json.loads) or {}
        (last,) = self._lines("records.jsonl")[-1:] or ({},)
        return figures({**last, "yardsticks": yardsticks})

    def failed(self, name: str, error: BaseException) -> None:
        """Note that a tracker failed; no more than that becomes of it."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        event = {"kind": "tracker", "cause": f"{name}: {text}"}
        with suppress(disk.DiskError):
            folder.append(self._path / "events.jsonl", event)
        self._watch.event(event)

    def _lines(self, name: str) -> list[dict[str, Any]]:  # Any: JSON
        return _read(self._path / name, _lines_of) or []


class _Follower:
    """One tracker: whatever it raises ends it, and nothing else."""

    def __init__(self, named: Named, told: _Told) -> None:
        self._named, self._told, self._well = named, told, True

    def begin(self, path: Path, config: dict[str, Any]) -> None:  # Any: JSON
        self._safely(lambda: self._named.tracker.begin(path, _copy(config)))

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:  # Any: JSON
        def tell() -> None:
            self._catch_up(record["round"])
            self._told.tell(self._named, record, seconds)

        self._safely(tell)

    def finish(self, status: str) -> None:
        def tell() -> None:
            self._catch_up(None)
            self._named.tracker.finish(status, self._told.summary())

        self._safely(tell)

    def _catch_up(self, before: int | None) -> None:
        for record, seconds in self._told.missed(self._named.key, before):
            self._told.tell(self._named, record, seconds)

    def _safely(self, do: Callable[[], None]) -> None:
        try:
            if self._well:
                do()
        except (Exception, SystemExit) as error:
            if _interrupted(error):  # foreign code made an error of its own of it
                raise KeyboardInterrupt from error
            self._well = False
            self._told.failed(self._named.name, error)


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _copy(value: Any) -> Any:  # Any: JSON
    """What a tracker changes of what it is told is its own."""
    return json.loads(json.dumps(value))


def _read(path: Path, parse: Callable[[str], Any]) -> Any:  # Any: JSON
    """What a file holds; nothing where it is not there or was cut off."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _counts(found: object) -> dict[str, int]:
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: count for key, count in pairs if isinstance(count, int)}


def _lines_of(text: str) -> list[Any]:  # Any: JSON
    return [json.loads(line) for line in text.splitlines()]
