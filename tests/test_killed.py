"""`python -m fedkd.simulate`, killed at random moments: resumed to the same bytes, nothing left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import resuming
import small
import yaml

ROOT = Path(__file__).parents[1]
PATIENCE_S = 300.0


class Course(NamedTuple):
    """How long a run takes from the first to the last, and when its work begins, in seconds."""

    start: float
    end: float


def spawn(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, in a session of its own, so that all of it can be found again."""
    with (place / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "fedkd.simulate", *arguments],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def finish(place: Path, *arguments: str) -> None:
    process = spawn(place, *arguments)
    assert process.wait(PATIENCE_S) == 0, (place / "said").read_text()[-3000:]


def kill_at(moment: float, process: subprocess.Popen[bytes], whole_group: bool) -> list[int]:
    """Kill it after so many seconds; the processes that it had begun, to be looked after."""
    time.sleep(moment)
    try:
        begun = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        begun = []
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return [p.pid for p in begun]


def nothing_left(begun: Sequence[int]) -> None:
    """What a killed run had begun ends by itself."""
    until = time.monotonic() + 60
    while left := [pid for pid in begun if psutil.pid_exists(pid) and not _zombie(pid)]:
        assert time.monotonic() < until, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.1)


def _zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Case(NamedTuple):
    """An experiment, on the disk and carried out once, and how long that took by runtime."""

    name: str
    config: Path
    bits: dict[str, bytes]


def case(method: str, place: Path) -> Case:
    chosen = resuming.experiment(method, "rounds=12", "learning.private.epochs=2")
    (place / "my.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    whole = resuming.prepared(chosen, place / "whole")
    resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    return Case(method, place / "my.yaml", small.bits(whole))


@pytest.fixture(scope="module", params=resuming.METHODS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(request.param, tmp_path_factory.mktemp(request.param))


def course(given: Case, place: Path, *arguments: str) -> Course:
    """Time a run that nobody kills, which comes to the same bytes as without Flower."""
    began = time.monotonic()
    process, start = spawn(place, str(given.config), "--out", "timed", *arguments), 0.0
    while process.poll() is None:
        if not start and (place / "timed" / "config.yaml").exists():
            start = time.monotonic() - began
        time.sleep(0.01)
    assert process.returncode == 0, (place / "said").read_text()[-3000:]
    assert small.bits(place / "timed") == given.bits
    return Course(start, time.monotonic() - began)


def killed_and_resumed(
    given: Case, place: Path, course: Course, seed: str, runtime: str = "local"
) -> int:
    """One run, killed up to three times at moments drawn from `seed`; how often it was."""
    place.mkdir()
    rng, kills, begun, run = random.Random(seed), 0, list[int](), place / "run"
    wanted = rng.choice((1, 1, 2, 3))
    while kills < wanted:
        # once in a while before there is anything
        first = 0.0 if rng.random() < 0.1 else course.start
        moment = rng.uniform(first, course.end)
        process = spawn(place, *beginning(given, run, runtime, rng.choice((1, 2))))
        begun += kill_at(moment, process, rng.random() < 0.3)
        kills += process.returncode == -signal.SIGKILL
        if not process.returncode or not (run / "config.yaml").exists():
            # it was quicker than that, or had not begun: once more, elsewhere
            run = run.with_name(f"{run.name}-again")
    finish(place, *beginning(given, run, runtime, rng.choice((1, 2))))
    assert small.bits(run) == given.bits, seed
    assert json.loads((run / "run.json").read_bytes())["status"] == "finished"
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]
    nothing_left(begun)
    return kills


def beginning(given: Case, run: Path, runtime: str, workers: int) -> list[str]:
    """What one types at first, and what from the second time on."""
    how = [f"--runtime={runtime}", f"execution.workers={workers}"]
    if (run / "config.yaml").exists():
        return ["--resume", run.name, *how]
    return [str(given.config), "--out", run.name, *how]


def test_killed_in_the_midst_of_a_round(tmp_path: Path) -> None:
    given, rng = case("scarlet", tmp_path), random.Random("the midst")
    process = spawn(tmp_path, str(given.config), "--out", "run")
    resuming.wait_for(tmp_path / "said", f"round {rng.randint(2, 10):2}/12")
    kill_at(rng.uniform(0, 0.1), process, whole_group=False)
    assert process.returncode == -signal.SIGKILL
    finish(tmp_path, "--resume", "run")
    assert small.bits(tmp_path / "run") == given.bits
    assert "resumed after round" in (tmp_path / "said").read_text()


@pytest.mark.slow
def test_killed_at_random_moments(given: Case, tmp_path: Path) -> None:
    """In this process; two runs at a time."""
    found = course(given, tmp_path)
    kills = tmp_path / "kills"
    kills.mkdir()

    def job(number: int) -> None:
        seed = f"{given.name} {number}"
        count = killed_and_resumed(given, tmp_path / str(number), found, seed)
        (kills / str(number)).write_text(str(count))

    resuming.each({str(n): lambda n=n: job(n) for n in range(6)})  # type: ignore[misc]
    assert sum(int(p.read_text()) for p in kills.iterdir()) >= 12


@pytest.mark.slow
def test_killed_at_random_moments_under_ray(given: Case, tmp_path: Path) -> None:
    """With one or two workers as it comes; whoever is not killed goes with who is."""
    found = course(given, tmp_path, "--runtime=ray")
    kills = sum(
        killed_and_resumed(given, tmp_path / str(n), found, f"ray {given.name} {n}", "ray")
        for n in range(3)
    )
    assert kills >= 5
