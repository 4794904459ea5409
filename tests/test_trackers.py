"""Trackers: what was written is read back with each tool's own reader."""

import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import small
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_readme import CODE

from fedkd import progress, report, runs
from fedkd.config import Config, ConfigError
from fedkd.figures import figures

Told = list[tuple[str, Any]]


class Keeps:
    """A tracker of one's own, which remembers what all of its kind were told."""

    told: ClassVar[Told] = []

    def __init__(self, mark: str = "") -> None:
        self._mark = mark

    def begin(self, folder: Path, config: dict[str, Any]) -> None:
        self.told.append(("begin", (folder, config["rounds"], self._mark)))

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        self.told.append(("round", (record["round"], sorted(seconds))))

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.told.append(("finish", (status, dict(summary))))

    @classmethod
    def rounds(cls) -> list[int]:
        return [what[0] for kind, what in cls.told if kind == "round"]


class Troubles(Keeps):
    """Spoils all that it can reach, and then fails."""

    def begin(self, folder: Path, config: dict[str, Any]) -> None:
        config.clear()
        torch.manual_seed(0)

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        record["student"]["test"] = 2.0
        torch.manual_seed(record["round"])
        if record["round"] == 2:
            raise OSError("no way\n to the server")
        assert record["round"] == 1, "it is told nothing more"

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        raise AssertionError("it is told nothing more")


class Odd:
    """No tracker: it cannot finish."""

    def begin(self, folder: Path, config: dict[str, Any]) -> None: ...
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None: ...


class Stops(small.Silent):
    """Interrupts the run after so many rounds."""

    def __init__(self, after: int) -> None:
        self._after = after

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        if record["round"] == self._after:
            raise KeyboardInterrupt


class Hears(small.Silent):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Keeps, "told", [])


def experiment(out: Path, *trackers: object, rounds: int = 4, commits: int = 1) -> Config:
    execution = {
        "runtime": "local",
        "out": str(out),
        "trackers": list(trackers),
        "commit_every": commits,
    }
    clients = [{"count": 2, "model": small.MLP}]
    return small.config(rounds=rounds, clients=clients, execution=execution)


def interrupted(config: Config, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.run(config, Stops(after))


def student(path: Path) -> list[float]:
    return [record["student"]["test"] for record in small.records(path)]


OWN = "test_trackers:Keeps"
_BLOCK = 1 << 15  # bytes of a block of a .wandb file


def test_figures_of_a_record_by_hand() -> None:
    record = {
        "round": 3,
        "participants": [0, 4],
        "student": {"test": 0.5, "validation": None},
        "ensemble": None,
        "teachers": {"test": [0.25, None, 0.75], "own": [None, None]},
        "confusion": {"matrix": [[1, 2], [3, 4]]},
    }
    assert figures(record) == {
        "participants": 2,
        "student/test": 0.5,
        "teachers/test/mean": 0.5,
        "teachers/test/min": 0.25,
        "teachers/test/max": 0.75,
    }


def test_a_tracker_of_ones_own_hears_all_of_it(tmp_path: Path) -> None:
    done = runs.run(experiment(tmp_path / "run", {"name": OWN, "mark": "x"}, rounds=2))
    (begin, first, second, end) = Keeps.told
    assert begin == ("begin", (done.folder, 2, "x"))
    assert [first[1][0], second[1][0]] == [1, 2] and "clients" in first[1][1]
    status, summary = end[1]
    assert status == "finished" and summary["student/test"] == student(done.folder)[-1]


@pytest.mark.parametrize("commits", [1, 3])
def test_a_resumed_run_tells_each_round_once(tmp_path: Path, commits: int) -> None:
    """Also where the rounds since the last commit are done again."""
    path = tmp_path / "run"
    interrupted(experiment(path, OWN, commits=commits), after=2)
    assert Keeps.told[-1][1][0] == "interrupted"
    runs.resume(path)
    assert Keeps.rounds() == [1, 2, 3, 4]
    assert [what[0] for kind, what in Keeps.told if kind == "finish"] == ["interrupted", "finished"]


def test_a_tracker_that_comes_later_is_told_what_was_before(tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupted(experiment(path), after=3)
    assert not Keeps.told
    named = experiment(path, OWN).execution
    runs.resume(path, lambda stored: stored.model_copy(update={"execution": named}))
    assert Keeps.rounds() == [1, 2, 3, 4]


def test_a_tracker_that_fails_neither_ends_nor_changes_the_run(tmp_path: Path) -> None:
    trouble = "test_trackers:Troubles"
    plain, heard = runs.run(experiment(tmp_path / "plain", rounds=3)), Hears()
    done = runs.run(experiment(tmp_path / "run", trouble, OWN, rounds=3), heard)
    assert small.bits(done.folder) == small.bits(plain.folder)
    assert done.records == plain.records and Keeps.rounds() == [1, 2, 3]
    event = {"kind": "tracker", "cause": f"{trouble}: OSError: no way to the server"}
    assert small.events(done.folder) == [event]
    assert [e for e in heard.events if e["kind"] != "caution"] == [event]
    assert progress.note_of(event).startswith("a tracker failed and is told nothing more: ")
    text = report.write(done.folder).read_text(encoding="utf-8")
    assert "A tracker failed and was told nothing more" in text and "no way to the server" in text


def test_an_interruption_is_not_taken_for_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(self: object, record: object, seconds: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("something went wrong") from None

    monkeypatch.setattr(Keeps, "round", turned)
    with pytest.raises(KeyboardInterrupt):
        runs.run(experiment(tmp_path / "run", OWN))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


def test_what_cannot_track_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    faults = {
        "test_trackers:Odd": r"trackers\.0: .*should return Tracker, found Odd",
        "tensorbord": r"trackers\.0: there is no tracker called 'tensorbord' .*tensorboard\?",
    }
    for name, text in faults.items():
        with pytest.raises(ConfigError, match=text):
            runs.run(experiment(tmp_path / "run", name))
    with pytest.raises(ConfigError, match=r"trackers\.0\.mark: should be a valid string, found 3"):
        runs.run(experiment(tmp_path / "run", {"name": OWN, "mark": 3}))
    with pytest.raises(ConfigError, match=r"trackers\.1: should differ from the others"):
        runs.run(experiment(tmp_path / "run", OWN, OWN))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    text = rf"trackers\.0: {name} should be installed, .*pip install 'fedkd\[{name}\]'"
    with pytest.raises(ConfigError, match=text):
        runs.run(experiment(tmp_path / "run", name))
    assert not (tmp_path / "run").exists()


def test_tensorboard(tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupted(experiment(path, "tensorboard"), after=2)
    runs.resume(path)
    read = EventAccumulator(str(path / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in read.Scalars("student/test")]
    assert curve == [(n, pytest.approx(v)) for n, v in enumerate(student(path), 1)]
    tags = set(read.Tags()["scalars"])
    assert {"teachers/test/mean", "bytes/up", "seconds/clients", "summary/student/test"} <= tags
    assert len(read.Tensors("config/text_summary")) == 1


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a head of 7 bytes, then a log of blocks as LevelDB has it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:  # too little room for a head: the rest of the block is empty
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def ended(file: Path) -> list[Any]:
    """All records of a session, whose last ones another process may still be writing."""
    for _ in range(100):
        found = list(wandb_records(file))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file}: a record of the session's end expected, found none in 10 s")


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline; a session is a file there, and what unites them is their run id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = tmp_path / "run"
    interrupted(experiment(path, {"name": "wandb", "project": "mine"}), after=2)
    time.sleep(1.1)  # its folders are called by the second
    runs.resume(path)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    found = [record for file in files for record in ended(file)]
    lines = [{i.nested_key[0]: json.loads(i.value_json) for i in r.history.item} for r in found]
    curve = [(line["round"], line["student/test"]) for line in lines if line]
    assert curve == [*enumerate(student(path), 1)]
    told = [r.run for r in found if r.run.run_id]
    kept = (path / "wandb.id").read_text()
    assert {(run.run_id, run.project, run.display_name) for run in told} == {(kept, "mine", "run")}
    config = {item.key: item.value_json for run in told for item in run.config.update}
    assert json.loads(config["rounds"]) == 4


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    path = tmp_path / "run"
    interrupted(experiment(path, {"name": "mlflow", "uri": uri}), after=2)
    client = tracking.MlflowClient(tracking_uri=uri)
    (home,) = client.search_experiments(filter_string="name = 'fedkd'")
    assert [r.info.status for r in client.search_runs([home.experiment_id])] == ["KILLED"]
    runs.resume(path)
    (found,) = client.search_runs([home.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    history = client.get_metric_history(found.info.run_id, "student/test")
    assert [(m.step, m.value) for m in history] == [*enumerate(student(path), 1)]
    assert found.data.params["data.partition.alpha"] == "0.5"
    assert found.data.metrics["summary/student/test"] == student(path)[-1]


def test_the_tracker_of_the_page(tmp_path: Path) -> None:
    (block,) = (b for b in CODE if b.place.startswith("tracking.md"))
    (tmp_path / "page_tracker.py").write_text(block.text, encoding="utf-8")
    execution = {"runtime": "local", "out": "run", "trackers": ["page_tracker:Lines"]}
    chosen = small.config(rounds=2, execution={**execution, "search": [str(tmp_path)]})
    done = runs.run(chosen)
    lines = (done.folder / "lines.txt").read_text().splitlines()
    assert lines == [f"{n} {v}" for n, v in enumerate(student(done.folder), 1)]
