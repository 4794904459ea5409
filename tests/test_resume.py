"""A run that was cut off goes on to the very bytes that it would have come to, or says why not."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import resuming
import small
import yaml
from resuming import command, resumed
from test_commits import mutated, sealed

from fedkd import disk, folder, runs, simulate
from fedkd.config import Config, ConfigError, load_config

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="which file is written is looked up in /proc"
)


class Stopped(NamedTuple):
    """A run that was killed in its fourth round, and what it would have come to."""

    path: Path
    bits: dict[str, bytes]
    config: Config


@pytest.fixture(scope="module", params=resuming.METHODS)
def each_stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    return stop(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return stop("scarlet", tmp_path_factory.mktemp("stopped"))


def stop(method: str, place: Path, *overrides: str) -> Stopped:
    """Four rounds; commits 2 and 3 are kept, and a record of round 4 is written and not final."""
    chosen = resuming.experiment(method, "rounds=4", *overrides)
    whole = resuming.prepared(chosen, place / "whole")
    path = resuming.prepared(chosen, place / "run", whole)
    calls = resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    written = [i for i, call in enumerate(calls) if str(call) == "write timings.jsonl"]
    end = resuming.Failpoint(written[3], "torn")
    assert resuming.killed(path, end, lambda: resuming.carried_out(path))
    assert len(small.records(path)) == 4
    return Stopped(path, small.bits(whole), chosen)


def copied(stopped: Stopped, place: Path) -> Path:
    return Path(shutil.copytree(stopped.path, place / "run"))


def tree(path: Path) -> dict[str, bytes | None]:
    """All that is in a folder, but for the mark of who carries it out."""
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else None
        for p in sorted(path.rglob("*"))
        if p.name != ".lock"
    }


def test_a_killed_run_comes_to_the_same_bytes(each_stopped: Stopped, tmp_path: Path) -> None:
    run = copied(each_stopped, tmp_path)
    heard = resumed(run)
    assert heard.rounds == [4]
    assert not heard.told("damage") and not heard.told("surroundings")
    assert small.bits(run) == each_stopped.bits
    about = json.loads((run / "run.json").read_bytes())
    assert about["status"] == "finished" and len(about["sessions"]) == 2
    (event,) = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert event == {"kind": "resume", "round": 3, "session": 1}


OTHERWISE = {
    "workers": ["execution.workers=3"],
    "carried": ["execution.store=carried"],
    "rarely": ["execution.commit_every=3", "execution.keep_commits=1"],
    "patient": ["execution.on_failure=retry", "execution.retries=7", "execution.deadline_s=600"],
}


@pytest.mark.parametrize("way", OTHERWISE)
def test_it_may_be_carried_out_otherwise(stopped: Stopped, tmp_path: Path, way: str) -> None:
    run = copied(stopped, tmp_path)
    before = (run / "config.yaml").read_bytes()
    resumed(run, *OTHERWISE[way])
    assert small.bits(run) == stopped.bits
    assert (run / "config.yaml").read_bytes() == before
    if way == "rarely":
        kept = [p.name for p in sorted((run / "commits").iterdir())]
        assert kept == ["000004.json", "000004.safetensors"]


@needs_proc
def test_committed_now_and_then(stopped: Stopped, tmp_path: Path) -> None:
    """Every third round: after being killed in round 5, it goes on after round 3."""
    chosen = resuming.experiment("scarlet", "rounds=7", "execution.commit_every=3")
    whole = resuming.prepared(chosen, tmp_path / "whole", stopped.path)
    calls = resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    made = [str(c) for c in calls if c.name == "replace" and c.file.startswith("commits")]
    assert [m for m in made if m.endswith("json")] == [
        f"replace commits/{number:06d}.json" for number in (3, 6, 7)
    ]
    run = resuming.prepared(chosen, tmp_path / "run", stopped.path)
    written = [i for i, call in enumerate(calls) if str(call) == "write records.jsonl"]
    end = resuming.Failpoint(written[4], "after")
    assert resuming.killed(run, end, lambda: resuming.carried_out(run))
    assert len(small.records(run)) == 5
    assert resumed(run).rounds == [4, 5, 6, 7]
    assert small.bits(run) == small.bits(whole)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def alter(path: Path) -> None:
    """Another sample, in a file of the same size."""
    array = np.load(path)
    array[3] = array[4]
    np.save(path, array)


def in_all(pattern: str, damage: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        found = sorted(run.glob(pattern))
        assert found
        for path in found:
            damage(path)

    return do


def shorten(run: Path) -> None:
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:2]))


def falsify(run: Path) -> None:
    text = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(text.replace('"round": 3', '"round": 8'))


def other_mean(run: Path) -> None:
    facts = json.loads((run / "data/data.json").read_text())
    facts["mean"] = [facts["mean"][0] + 1e-3]
    (run / "data/data.json").write_text(json.dumps(facts))


# what is done to the run, which rounds are then done (again), and what is said of it
DAMAGE: dict[str, tuple[Callable[[Path], object], list[int], str]] = {
    "manifest cut": (
        in_all("commits/000003.json", truncate),
        [3, 4],
        "commit 000003: its manifest",
    ),
    "manifest flipped": (in_all("commits/000003.json", flip), [3, 4], "commit 000003: its manif"),
    "manifest empty": (
        in_all("commits/000003.json", lambda path: os.truncate(path, 0)),
        [3, 4],
        "commit 000003",
    ),
    "another schema": (
        in_all("commits/000003.json", sealed(lambda m: m.update(schema=9))),
        [3, 4],
        "commit 000003: schema 2 is read here, found 9",
    ),
    "manifest gone": (in_all("commits/000003.json", Path.unlink), [3, 4], ""),
    "server flipped": (in_all("commits/000003.safetensors", flip), [3, 4], "000003.safetensors do"),
    "server gone": (in_all("commits/000003.safetensors", Path.unlink), [3, 4], "No such file"),
    "clients flipped": (in_all("clients/000003-*", flip), [3, 4], "commit 000003: clients/000003"),
    "clients gone": (in_all("clients/000003-*", Path.unlink), [3, 4], "000003: 000003"),
    "clients cut": (in_all("clients/000003-*", truncate), [3, 4], "commit 000003: clients/000003"),
    "all clients": (in_all("clients/*", flip), [1, 2, 3, 4], "commit 000002: clients/00000"),
    "all manifests": (in_all("commits/*.json", flip), [1, 2, 3, 4], "commit 000002: its manifest"),
    "no commits": (lambda run: shutil.rmtree(run / "commits"), [1, 2, 3, 4], ""),
    "records cut": (shorten, [3, 4], "commit 000003: records.jsonl: "),
    "records false": (falsify, [3, 4], "commit 000003: records.jsonl is not what it was"),
    "records gone": (in_all("records.jsonl", Path.unlink), [1, 2, 3, 4], "commit 000002: records"),
    "timings gone": (in_all("timings.jsonl", Path.unlink), [1, 2, 3, 4], "commit 000002: timings"),
    "samples": (in_all("data/x.npy", alter), [4], "data: x changed since it was written"),
    "labels": (in_all("data/y.npy", alter), [4], "data: y changed since it was written: it is"),
    "split cut": (in_all("data/splits/private.npy", truncate), [4], "splits/private changed"),
    "split gone": (in_all("data/splits/public.npy", Path.unlink), [4], "data: [Errno 2] No such"),
    "mean": (other_mean, [4], "data: data.json changed since it was written: it is made anew"),
    "data.json": (in_all("data/data.json", truncate), [4], "data: data.json changed since"),
    "no data": (lambda run: shutil.rmtree(run / "data"), [4], ""),
    "half a data set": (lambda run: (run / "data").rename(run / ".data.a1"), [4], ""),
    "run.json cut": (in_all("run.json", truncate), [4], "run.json cannot be read: it is made anew"),
    "run.json deep": (
        in_all("run.json", lambda p: p.write_text("[" * 200_000)),
        [4],
        "run.json cannot be read",
    ),
    "run.json odd": (
        in_all("run.json", lambda p: p.write_text('{"sessions": [], "versions": 3}')),
        [4],
        "run.json cannot be read",
    ),
    "run.json gone": (in_all("run.json", Path.unlink), [4], ""),
    "events torn": (lambda run: disk.append(run / "events.jsonl", b'{"ki'), [4], ""),
}


# much like others here, or seen to in test_commits.py
_ALIKE = (
    "manifest cut", "manifest empty", "clients cut", "server gone", "records cut", "labels",
    "split gone", "data.json", "run.json odd", "timings gone", "all clients",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in _ALIKE else ()) for n in DAMAGE]
)
def test_damage_is_told_and_made_good(stopped: Stopped, tmp_path: Path, name: str) -> None:
    damage, rounds, said = DAMAGE[name]
    run = copied(stopped, tmp_path)
    damage(run)
    heard = resumed(run)
    assert heard.rounds == rounds
    assert small.bits(run) == stopped.bits
    told = heard.told("damage")
    assert any(said in text for text in told) if said else not told, told
    noted = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["cause"] for e in noted if e["kind"] == "damage"] == told
    assert not list(run.glob(".data.*"))


def test_damage_is_made_good_within_one_process(stopped: Stopped, tmp_path: Path) -> None:
    """As in a notebook, which still has the altered samples in its memory."""
    run = copied(stopped, tmp_path)

    def twice() -> None:
        runs.resume(run)
        in_all("data/x.npy", alter_in_place)(run)
        for part in ("commits", "clients"):
            shutil.rmtree(run / part)
        folder.describe(run, "failed")
        runs.resume(run)

    assert resuming.forked(twice) == 0
    assert small.bits(run) == stopped.bits


def alter_in_place(path: Path) -> None:
    np.load(path, mmap_mode="r+")[:] = 0


def test_what_the_command_line_says_of_damage(stopped: Stopped, tmp_path: Path) -> None:
    """On stderr, whether it is to be quiet or not."""
    for quiet in (["--quiet"], []):
        run = copied(stopped, tmp_path / str(len(quiet)))
        flip(run / "commits/000003.json")
        said = command(run.parent, "--resume", "run", *quiet)
        assert said.code == 0, said.err
        told = [line for line in said.err.splitlines() if line.startswith("damaged: ")]
        assert told == [
            "damaged: commit 000003: its manifest does not have the checksum that it begins with"
        ]
        assert ("resumed after round 2" in said.err) == (not quiet)
        assert small.bits(run) == stopped.bits


def test_a_source_that_changed_is_no_way_back(stopped: Stopped, tmp_path: Path) -> None:
    """The data are damaged, and what they were made from is not what it was."""
    run = copied(stopped, tmp_path)
    about = json.loads((run / "run.json").read_bytes()) | {"data": "0" * 64}
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="on the data that it began with, found that its source"):
        runs.resume(run)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe\x00", "should be a readable text file"),
        (b"", "should hold a mapping"),
        (b"rounds: [1", "should be valid YAML"),
        (b"- 1\n", "should hold a mapping of sections"),
        (b"rounds: 3\n", "is required and was not given"),
        (b"a: &a [1]\nb: " + b"[" * 100_000, "should be valid YAML"),
    ],
)
def test_a_config_that_is_garbage_is_refused(
    stopped: Stopped, tmp_path: Path, text: bytes, said: str
) -> None:
    run = copied(stopped, tmp_path)
    (run / "config.yaml").write_bytes(text)
    before = tree(run)
    with pytest.raises(ConfigError, match=said):
        runs.resume(run)
    assert tree(run) == before


def test_an_edited_config_is_refused(stopped: Stopped, tmp_path: Path) -> None:
    """A bit that changes a learning rate would change all that follows, and nobody would know."""
    run = copied(stopped, tmp_path)
    text = (run / "config.yaml").read_text()
    assert "lr: 0.005" in text
    (run / "config.yaml").write_text(text.replace("lr: 0.005", "lr: 0.004"))
    before = tree(run)
    with pytest.raises(ConfigError, match="should be the experiment that run"):
        runs.resume(run)
    assert tree(run) == before
    (run / "config.yaml").write_text(text.replace("workers: 1", "workers: 2"))
    runs.resume(run)
    assert small.bits(run) == stopped.bits


LINKS = {
    "commits": "outside",
    "clients": "outside",
    "teachers": "outside",
    "records.jsonl": "outside/file",
    "events.jsonl": "outside/nothing",
    "run.json": "outside/file",
    ".lock": "outside/file",
    "student.safetensors": "outside/nothing",
    "commits/000009.json": "outside/file",
    "data/splits/more": "outside",
}


@pytest.mark.parametrize("name", LINKS)
def test_links_in_a_run_folder_are_refused(stopped: Stopped, tmp_path: Path, name: str) -> None:
    """Whoever hands a prepared folder on must not have us write where they cannot."""
    run, outside = copied(stopped, tmp_path), tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("the only copy")
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / LINKS[name])
    before = tree(run)
    said = command(tmp_path, "--resume", "run", "--quiet")
    assert said.code == 1 and not said.out
    assert said.err.startswith(
        f"fedkd: disk: {place} should be a file or folder of its own, found a symbolic link;"
    )
    assert tree(run) == before and tree(outside) == {"file": b"the only copy"}


def test_two_processes_cannot_carry_out_one_run(stopped: Stopped, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    before = tree(run)
    with folder.alone(run):
        said = command(tmp_path, "--resume", "run")
        assert (said.code, said.out) == (2, "")
        assert (
            f"fedkd: resume: {run} should be a run that nobody carries out, found it under way in"
            f" process {os.getpid()}; wait for it or end it\n"
        ) in said.err
        assert tree(run) == before
    resumed(run)
    assert small.bits(run) == stopped.bits


def test_a_changed_experiment_is_refused_with_what_differs(
    stopped: Stopped, tmp_path: Path
) -> None:
    run = copied(stopped, tmp_path)
    before = tree(run)
    changes = ["rounds=6", "learning.server.optimizer.lr=0.1", "strategy.duration=7", "seed=4"]
    said = command(tmp_path, "--resume", "run", *changes, "execution.workers=2")
    assert said.code == 2 and not said.out
    lines = [line for line in said.err.splitlines() if line.startswith("fedkd: ")]
    assert lines == [
        f"fedkd: resume: {run} should be gone on with as the experiment that it is, found:",
        "fedkd:   seed: 3 in the run, 4 now",
        "fedkd:   rounds: 4 in the run, 6 now",
        "fedkd:   strategy.duration: nothing in the run, 7 now",
        "fedkd:   learning.server.optimizer.lr: 0.005 in the run, 0.1 now",
        "fedkd: leave these as they were, or go on with the changed experiment in a new folder:"
        " --branch FOLDER",
    ]
    assert tree(run) == before


def test_what_was_auto_stays_what_it_became(stopped: Stopped, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    resumed(run, "compute.device=auto", "compute.server_threads=auto", "data.seed=auto")
    assert small.bits(run) == stopped.bits


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "nowhere"], "nowhere should be a run folder, found no config.yaml in it"),
        (["--resume", "."], "found no config.yaml in it; name the folder that a run has made"),
        (["--resume", "mine/run", "--out", "b"], "--out: should not come with --resume"),
        (["--resume", "mine/run", "execution.out=b"], "--out: should not come with --resume"),
        (["--resume", "mine/run", "--quick"], "--quick: should not come with --resume"),
        (["--resume", "mine/run", "--explain"], "--explain: should not come with --resume"),
        (["--branch", "b"], "--branch: should come with --resume RUN"),
        (["--resume", "mine/run", "rounds=0"], "rounds: should be at least 1, found 0"),
        (["--resume", "mine/run", "--branch", "mine/run", "rounds=9"], "a new or empty folder"),
    ],
)
def test_what_is_no_way_to_resume(
    stopped: Stopped, tmp_path: Path, arguments: list[str], said: str
) -> None:
    copied(stopped, tmp_path / "mine")
    before = tree(tmp_path)
    found = command(tmp_path, *arguments, "--quiet")
    assert found.code == 2 and said in found.err and "Traceback" not in found.err
    assert tree(tmp_path) == before


def test_a_folder_near_by_is_named(stopped: Stopped, tmp_path: Path) -> None:
    copied(stopped, tmp_path / "runs")
    said = command(tmp_path, "--resume", "runs/rum", "--quiet")
    assert said.code == 2 and "near it lie run" in said.err


def test_a_finished_run_is_as_it_is(stopped: Stopped, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    resumed(run)
    before = tree(run)
    assert resumed(run).rounds == []
    assert tree(run) == before
    # whoever has no more need of the commits may remove them, and loses nothing
    shutil.rmtree(run / "commits")
    said = command(tmp_path, "--resume", "run", "--quiet")
    assert said.code == 0 and "Student, last round" in said.out
    assert small.bits(run) == stopped.bits
    truncate(run / "records.jsonl")
    with pytest.raises(disk.DiskError, match="the run is finished, so it is not gone on with"):
        runs.resume(run)


def test_more_rounds_in_a_branch(stopped: Stopped, tmp_path: Path) -> None:
    """The same bytes as if there had been so many from the beginning; the run is left alone."""
    run = copied(stopped, tmp_path)
    before = tree(run)
    longer = resuming.experiment("scarlet", "rounds=6")
    whole = resuming.prepared(longer, tmp_path / "whole", run)
    resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    said = command(tmp_path, "--resume", "run", "--branch", "new/longer", "rounds=6")
    assert said.code == 0, said.err
    made = tmp_path / "new" / "longer"
    assert small.bits(made) == small.bits(whole)
    assert tree(run) == before
    origin = json.loads((made / "branched_from.json").read_bytes())
    assert origin == {"run": "run", "round": 3, "fingerprint": stopped.config.fingerprint()}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["longer"]
    # it is a run like any other
    about = json.loads((made / "run.json").read_bytes())
    assert about["status"] == "finished" and about["fingerprint"] == longer.fingerprint()
    assert resumed(made).rounds == []


def test_another_learning_rate_in_a_branch(each_stopped: Stopped, tmp_path: Path) -> None:
    run, made = copied(each_stopped, tmp_path), tmp_path / "made"
    before = tree(run)
    heard = resumed(run, "learning.server.optimizer.lr=0.05", branch=made)
    assert heard.rounds == [4] and tree(run) == before
    found = small.bits(made)
    assert found["student.safetensors"] != each_stopped.bits["student.safetensors"]
    old, new = (b["records.jsonl"].splitlines() for b in (each_stopped.bits, found))
    assert old[:3] == new[:3] and old[3] != new[3]


ROOTED = {
    "seed=4": "seed: 3 in the run, 4 now",
    "data.public=70": "data.public.size: 80 in the run, 70 now",
    "clients.0.count=5": "clients.0.count: 4 in the run, 5 now",
    "student={name: mlp, hidden: [9]}": "student.hidden.0: 16 in the run, 9 now",
    "strategy=entropy": 'strategy.name: "scarlet" in the run, "entropy" now',
    "compute.precision=bf16": 'compute.precision: "fp32" in the run, "bf16" now',
    "learning.keep_optimizer=false": "learning.keep_optimizer: true in the run, false now",
    "learning.private.optimizer=sgd": 'learning.private.optimizer.name: "adam" in the run, "sgd"',
}


@pytest.mark.parametrize("change", ROOTED)
def test_a_branch_keeps_what_its_commit_is_made_of(
    stopped: Stopped, tmp_path: Path, change: str
) -> None:
    copied(stopped, tmp_path)
    before = tree(tmp_path)
    said = command(tmp_path, "--resume", "run", "--branch", "new", change, "rounds=9", "--quiet")
    assert said.code == 2 and ROOTED[change] in said.err
    assert "rounds" not in said.err
    assert tree(tmp_path) == before


def test_a_branch_that_cannot_begin(stopped: Stopped, tmp_path: Path) -> None:
    """There are three rounds already, or none; nothing is left of it."""
    run = copied(stopped, tmp_path)
    before = tree(tmp_path)
    said = command(tmp_path, "--resume", "run", "--branch", "new", "rounds=2", "--quiet")
    assert said.code == 2
    assert "a committed round of at most 2, found 3 in" in said.err
    assert tree(tmp_path) == before
    shutil.rmtree(run / "commits")
    said = command(tmp_path, "--resume", "run", "--branch", "new", "rounds=9", "--quiet")
    assert said.code == 2 and "of at most 9, found none in" in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_branch_of_a_damaged_run(stopped: Stopped, tmp_path: Path) -> None:
    """It begins at the commit before, and what is damaged stays for whoever wants to look."""
    run, made = copied(stopped, tmp_path), tmp_path / "made"
    flip(run / "commits/000003.json")
    before = tree(run)
    heard = resumed(run, "rounds=5", branch=made)
    assert heard.rounds == [3, 4, 5]
    assert heard.told("damage")[0].startswith("commit 000003: ")
    assert tree(run) == before


@needs_proc
@pytest.mark.parametrize(
    "share", [0.6, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.2, 0.95))]
)
def test_half_a_branch_is_none(stopped: Stopped, tmp_path: Path, share: float) -> None:
    """Killed while it is made: a folder in its place would begin at round 1."""
    run, made = copied(stopped, tmp_path), tmp_path / "made"

    def branch() -> None:
        runs.resume(run, lambda c: load_config(c.model_dump(mode="json"), ["rounds=5"]), None, made)

    first = resuming.calls_of(tmp_path, branch)
    shutil.rmtree(made)
    place = next(i for i, c in enumerate(first) if str(c) == "replace made")
    resuming.killed(tmp_path, resuming.Failpoint(int(share * place), "before"), branch)
    assert not made.exists()
    resumed(run, "rounds=5", branch=made)
    assert len(small.records(made)) == 5


def test_what_is_otherwise_here_is_told(stopped: Stopped, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    about = json.loads((run / "run.json").read_bytes())
    about["versions"] |= {"torch": "1.13.0", "fedkd": "0.0.9"}
    about["machine"] = "another processor"
    (run / "run.json").write_text(json.dumps(about))
    said = command(tmp_path, "--resume", "run", "--quiet")
    assert said.code == 0
    told = said.err.splitlines()
    assert len(told) == 3
    assert all(line.startswith("not as when the run began, so bits may differ: ") for line in told)
    assert "fedkd 0.0.9 then, " in told[0] and "torch 1.13.0 then, " in told[1]
    assert "another processor then, " in told[2]
    # and what is here now is noted beside what was there then
    after = json.loads((run / "run.json").read_bytes())
    assert after["versions"]["torch"] == "1.13.0"
    assert after["sessions"][-1]["versions"]["torch"] != "1.13.0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 130, the way to go on, and that way is the way."""
    chosen = resuming.experiment("scarlet", "rounds=12")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))

    def tell(child: int, err: Path) -> None:
        resuming.wait_for(err, "round  2/12")
        os.kill(child, number)

    said = command(tmp_path, "my.yaml", "--out", "a run", meanwhile=tell)
    assert (said.code, said.out) == (130, "")
    assert said.err.splitlines()[-2:] == [
        "fedkd: interrupted",
        "fedkd: go on with: python -m fedkd.simulate --resume 'a run'",
    ]
    run = tmp_path / "a run"
    assert json.loads((run / "run.json").read_bytes())["status"] == "interrupted"
    done = len(small.records(run))
    assert 2 <= done < 12
    _, _, _, *arguments = shlex.split(said.err.splitlines()[-1].partition("go on with: ")[2])
    said = command(tmp_path, *arguments)
    assert said.code == 0, said.err
    assert f"resumed after round {done}" in said.err
    whole = resuming.prepared(chosen, tmp_path / "whole", run)
    resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    assert small.bits(run) == small.bits(whole)


def test_a_run_that_is_ended_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    def tell(child: int, err: Path) -> None:
        resuming.wait_for(err, "load PyTorch")
        os.kill(child, signal.SIGTERM)

    said = command(tmp_path, "digits", "--runtime", "local", "--out", "new", meanwhile=tell)
    assert (said.code, said.out) == (130, ""), said.err
    assert said.err.splitlines()[-1] == "fedkd: interrupted"
    assert not list(tmp_path.iterdir())


SWALLOWING = """
import os, signal, sys, time
from fedkd import simulate

class Swallowing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def does(given):
    Swallowing()
    time.sleep(60)

def imports(given):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException as error:
        error.add_note("and so on")
        raise ImportError("initialization failed") from error

def exits(given):
    sys.exit(1)

simulate._do = globals()[sys.argv[1]]
sys.exit(simulate.main([]))
"""


@pytest.mark.parametrize("what", ["does", "imports", "exits"])
def test_foreign_code_does_not_get_in_the_way_of_a_signal(what: str) -> None:
    """A destructor in which an interruption is lost, an import that makes another error of it, an
    exit of Ray's own."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWING, what],
        env=os.environ | {"PYTHONPATH": str(Path(simulate.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (130, "fedkd: interrupted\n")


class Full:
    """A disk that takes so many bytes more, as this process sees it."""

    def __init__(self, room: int, error: int) -> None:
        self._room, self._error, self._write = room, error, os.write

    def write(self, handle: int, content: Any) -> int:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).suffix == ".lock":
            return self._write(handle, content)
        if self._room <= 0:
            raise OSError(self._error, os.strerror(self._error))
        taken = self._write(handle, bytes(content)[: self._room])
        self._room -= taken
        return taken


@needs_proc
@pytest.mark.parametrize(
    ("error", "rooms"), [(28, (0, 3_000, 30_000)), (122, (9_000,)), (30, (0,)), (5, (20_000,))]
)
def test_a_disk_that_takes_no_more(
    tmp_path: Path, stopped: Stopped, error: int, rooms: tuple[int, ...]
) -> None:
    """Full, over quota, read-only, failing: told, and as soon as it takes more, gone on with."""
    for room in rooms:
        run = copied(stopped, tmp_path / str(room))

        def end(room: int = room, run: Path = run) -> None:
            os.write = Full(room, error).write
            with pytest.raises(disk.DiskError, match=os.strerror(error)) as failure:
                runs.resume(run)
            (note,) = failure.value.__notes__
            assert note.startswith("go on with: python -m fedkd.simulate --resume ")

        assert resuming.forked(end) == 0
        resumed(run)
        assert small.bits(run) == stopped.bits


def mounted(place: Path, size: str) -> bool:
    """Put a small disk of our own here, which goes with this process; whether we may."""
    import ctypes

    new_namespace = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(new_namespace):
        return False
    place.mkdir()
    alone = ["mount", "--make-rprivate", "/"]
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return all(not subprocess.run(c, capture_output=True).returncode for c in (alone, tmpfs))


def may_mount(place: Path) -> bool:
    found = place / "may"
    resuming.forked(lambda: mounted(place / "trial", "64k") and found.touch())
    return found.exists()


def test_a_real_disk_that_is_full(tmp_path: Path, stopped: Stopped) -> None:
    if not may_mount(tmp_path):
        pytest.skip("no small disk can be mounted here; run as root")
    resuming.each(
        {"full": lambda: filled(tmp_path, stopped), "ro": lambda: froze(tmp_path, stopped)}
    )


def filled(tmp_path: Path, stopped: Stopped) -> None:
    """Other people's files leave ever less room, down to none."""
    place = tmp_path / "disk"
    assert mounted(place, "2m")
    base = copied(stopped, tmp_path / "base")
    for left in (0, 3, 8):  # pages
        run, ballast = place / "run", place / "ballast"
        shutil.copytree(base, run)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize - left * 4096
        ballast.write_bytes(bytes(free))
        said = command(place, "--resume", "run", "--quiet")
        assert said.code == 1 and not said.out, (left, said)
        first, *rest = said.err.splitlines()
        assert first.startswith(f"fedkd: disk: {run}") and "No space left on device" in first
        if json.loads((run / "run.json").read_bytes())["status"] != "finished":
            assert rest[0] == "fedkd: go on with: python -m fedkd.simulate --resume run"
        assert "Traceback" not in said.err
        ballast.unlink()
        assert command(place, "--resume", "run", "--quiet").code == 0
        assert small.bits(run) == stopped.bits
        shutil.rmtree(run)


def froze(tmp_path: Path, stopped: Stopped) -> None:
    """A part of the run folder, then all of it, can only be read."""
    place = tmp_path / "frozen"
    assert mounted(place, "4m")
    run = copied(stopped, place)
    for part in (run / "clients", run / "commits", run):
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(part), str(part)], check=True)
        said = command(place, "--resume", "run", "--quiet")
        assert said.code == 1 and not said.out
        first = said.err.splitlines()[0]
        assert first.startswith(f"fedkd: disk: {run}") and "Read-only file system" in first
        assert "Traceback" not in said.err
        subprocess.run(["umount", str(part)], check=True)
    assert command(place, "--resume", "run", "--quiet").code == 0
    assert small.bits(run) == stopped.bits


def test_a_folder_that_is_removed_under_way(tmp_path: Path) -> None:
    chosen = resuming.experiment("scarlet", "rounds=12")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))

    def remove(child: int, err: Path) -> None:
        resuming.wait_for(err, "round  2/12")
        (tmp_path / "run").rename(tmp_path / "elsewhere")

    said = command(tmp_path, "my.yaml", "--out", "run", meanwhile=remove)
    assert said.code == 1 and not said.out
    told = [line for line in said.err.splitlines() if line.startswith("fedkd: ")]
    assert told[0].startswith(f"fedkd: disk: {tmp_path / 'run'}") and "No such file" in told[0]
    assert told[1:] == ["fedkd: --debug shows where"]
    assert not (tmp_path / "run").exists()
    # it was only put elsewhere
    assert command(tmp_path, "--resume", "elsewhere", "--quiet").code == 0
    whole = resuming.prepared(chosen, tmp_path / "whole", tmp_path / "elsewhere")
    resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    assert small.bits(tmp_path / "elsewhere") == small.bits(whole)


def disturbed(stopped: Stopped, place: Path, seed: int) -> None:
    """Change something anywhere in a run folder: it is gone on with to the same bytes, or not at
    all and told in a line or two."""
    run, rng = copied(stopped, place), random.Random(f"folder {seed}")
    files = [p for p in sorted(run.rglob("*")) if p.is_file()]
    for path in rng.sample(files, rng.choice((1, 1, 2))):
        match rng.randrange(8):
            case 0:
                path.unlink()
            case 1:
                os.truncate(path, rng.choice((0, path.stat().st_size // 2)))
            case _:
                path.write_bytes(mutated(rng, path.read_bytes()))
    said = command(place, "--resume", "run", "--quiet")
    assert "Traceback" not in said.err
    if said.code:
        assert said.code in (1, 2) and not said.out
        assert all(line.startswith(("fedkd: ", "damaged: ", "not as")) for line in
                   said.err.splitlines()), said.err  # fmt: skip
        assert "Error:" not in said.err, said.err
    else:
        assert small.bits(run) == stopped.bits
    shutil.rmtree(place)


def test_a_run_folder_that_was_tampered_with(stopped: Stopped, tmp_path: Path) -> None:
    resuming.each(
        {str(n): lambda n=n: disturbed(stopped, tmp_path / str(n), n) for n in range(5)}  # type: ignore[misc]
    )


@pytest.mark.slow
def test_many_run_folders_that_were_tampered_with(stopped: Stopped, tmp_path: Path) -> None:
    resuming.each(
        {str(n): lambda n=n: disturbed(stopped, tmp_path / str(n), n) for n in range(5, 300)}  # type: ignore[misc]
    )
