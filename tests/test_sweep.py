"""Sweeps from the command line and from Python: what is run, what is kept, what is done again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small
import yaml

from fedkd import load_config, run, sweep
from fedkd.config import ConfigError
from fedkd.sweep import main
from fedkd.sweeps import Task

ROOT = Path(__file__).parents[1]
TINY = [
    *("rounds=2", "clients.0.count=3", "clients.0.model={name: mlp, hidden: [4]}"),
    *("student={name: mlp, hidden: [4]}", "data.private=200", "data.test=100"),
    *(f"learning.{who}.epochs=1" for who in ("private", "client", "server")),
    *(f"learning.{who}.first_epochs=1" for who in ("private", "server")),
    *(f"evaluation.{what}=false" for what in ("pooled", "local", "labels")),
]
LOCAL = ["--runtime", "local", "--quiet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(folder: str = "s") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(folder, "sweep.json").read_text())["runs"]
    return found


def written(folder: str = "s") -> dict[str, int]:
    """When the student of each run was written."""
    files = Path(folder).glob("runs/*/student.safetensors")
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_a_grid_is_run_and_what_is_finished_is_not_done_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*LOCAL, *TINY, "strategy.name=entropy,dsfl", "strategy.temperature=0.2", "--out", "s"]
    assert main([*asked, "seed=0..1"]) == 0
    out, err = capsys.readouterr()
    assert "entropy" in out and "dsfl" in out and "Mean ± SD" in out and not err
    assert Path("s/report.html").is_file()
    assert [r["status"] for r in told()] == ["finished"] * 4
    assert [r["values"] for r in told()][:2] == [
        {"strategy.name": "entropy", "seed": 0},
        {"strategy.name": "entropy", "seed": 1},
    ]
    before = written()
    assert len(before) == 4
    # one more seed: two runs are added, and the four are as they were
    assert main([*asked, "seed=0..2"]) == 0
    after = written()
    assert len(after) == 6 and before.items() <= after.items()
    # a run is the run that the command line makes
    folder = Path("s") / told()[0]["folder"]
    alone = run(load_config(str(folder / "config.yaml"), ["execution.out=alone"])).folder
    assert small.bits(alone) == small.bits(folder)
    # nothing is left to do
    assert main(["--resume", "s", "--quiet"]) == 0
    assert written() == after


def test_a_run_that_fails_stops_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("strategies").mkdir()
    Path("strategies/shaky.py").write_text(
        "from fedkd.transforms import mean, pure, softmax, chain\n"
        "from fedkd.types import Shares, Strategy\n"
        "def shaky(fails: bool = False) -> Strategy:\n"
        "    calls = []\n"
        "    def step(p):\n"
        "        calls.append(1)\n"
        "        if fails and p.scores.shape[1] > 4: raise RuntimeError('it broke')\n"
        "        return p\n"
        "    return Strategy(combine=mean(), upload=softmax(), finish=pure(step),\n"
        "                    shares=Shares(answers='probs'))\n"
    )
    asked = [*LOCAL, *TINY, "strategy.name=shaky", "strategy.fails=true,false", "--out", "s"]
    assert main(asked) == 1
    err = capsys.readouterr().err
    assert "fedkd: failed: strategy.fails=True: RuntimeError: it broke" in err
    assert "go on with: python -m fedkd.sweep --resume s" in err
    assert [r["status"] for r in told()] == ["failed", "finished"]
    assert "it broke" in told()[0]["error"]
    # the cause is mended, and the rest is done
    source = Path("strategies/shaky.py").read_text()
    Path("strategies/shaky.py").write_text(source.replace("if fails and", "if False and"))
    for name in [n for n in sys.modules if n.startswith("strategies")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["--resume", "s", "--quiet"]) == 0
    assert [r["status"] for r in told()] == ["finished", "finished"]


def test_with_fail_fast_the_first_failure_is_the_last_run() -> None:
    Path("strategies").mkdir()
    Path("strategies/broken.py").write_text(
        "from fedkd.transforms import mean, pure\n"
        "from fedkd.types import Strategy\n"
        "def broken(n: int = 0) -> Strategy:\n"
        "    def step(p):\n"
        "        assert p.scores.shape[1] <= 4\n"
        "        return p\n"
        "    return Strategy(combine=mean(), finish=pure(step))\n"
    )
    asked = [*LOCAL, *TINY, "strategy.name=broken", "strategy.n=1,2", "--out", "s", "--fail-fast"]
    assert main(asked) == 1
    assert [r["status"] for r in told()] == ["failed", "unfinished"]


def test_from_python() -> None:
    config = load_config("digits", [*TINY, "execution.runtime=local"])
    done = sweep(config, {"seed": range(2)}, out="s")
    assert [r.values for r in done.runs] == [{"seed": 0}, {"seed": 1}] and not done.failed
    assert done.runs[1].run.records[-1]["round"] == 2
    with pytest.raises(ConfigError, match="should hold a sweep over the same config"):
        sweep(config, {"seed": range(2)}, out="s", overrides=["rounds=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sed=0..1"], "sed: there is no such key (did you mean seed?)"),
        (["strategy.warmth=1,2"], "strategy.warmth: entropy has no such parameter"),
        (["strategy.name=fedmd,dsfl", "strategy.warmth=1,2"], "none of dsfl, fedmd has such a"),
        (["seed=4..0"], "seed should be a range with something in it, found 4..0"),
        (["seed=1,,2"], "seed should have a value between any two commas"),
        (["seed=0..1", "seed=3"], "seed should be said once"),
        (["strategy=fedmd,dsfl", "strategy.name=a,b"], "strategy.name should be said once"),
        (["rounds=1,many"], "rounds: should be a whole number, found 'many'"),
        (["strategy.name=fedmd,nope"], "there is no strategy called 'nope'"),
        (["world.fraction=0.5,7", "world.name=partial"], "world.fraction: should be"),
        (["execution.workers=1,2"], "execution.workers should not be varied"),
        (["execution.runtime=flower", "seed=0..1"], "should be ray or local in a sweep"),
        (["digits", "fashion_mnist", "seed=0..1"], "there should be one CONFIG"),
        (["nowhere.yaml", "seed=0..1"], "config: 'nowhere.yaml' is neither a file nor"),
        (["--resume", "nowhere"], "should be the folder of a sweep, found no sweep.yaml"),
        (["--resume", "nowhere", "seed=0..1"], "--resume: should come alone"),
        (["--at-once", "0", "seed=0..1"], "--at-once: should be at least 1, found 0"),
        (["--list", "no.yaml"], "--list: no.yaml should be a readable YAML file"),
    ],
)  # fmt: skip
def test_bad_input_is_told_and_leaves_nothing(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quiet", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out and "Traceback" not in err
    assert all(line.startswith("fedkd: ") for line in err.splitlines())
    assert not list(here.iterdir())


def test_no_folder_is_written_into_that_is_not_the_sweeps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    assert main([*LOCAL, *TINY, "seed=0..1", "--out", "full"]) == 2
    assert "should be a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in Path("full").iterdir()] == ["mine.txt"]


def test_a_list_of_settings_comes_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sets.yaml").write_text(yaml.safe_dump([{"strategy": "dsfl"}, {"rounds": 1}]))
    assert main(["--list", "sets.yaml", "seed=0..1", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "strategy=dsfl seed=1\nrounds=1 seed=0\n" in out and "4 runs of up to 10 rounds" in out
    Path("sets.yaml").write_text("strategy: dsfl")
    assert main(["--list", "sets.yaml"]) == 2
    assert "--list: sets.yaml should hold a list of mappings" in capsys.readouterr().err


def test_progress_is_a_line_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runtime", "local", *TINY, "seed=0..1", "--out", "s"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "2 runs; 1 at a time" in lines
    assert any(line.startswith("[2/2] seed=1: student ") for line in lines)


def test_the_module_is_the_function_too() -> None:
    """Whichever of the two was imported first, `from fedkd import sweep` can be called."""
    import fedkd.sweep as module
    from fedkd import sweep as function

    config = load_config("digits", [*TINY, "rounds=1", "execution.runtime=local"])
    for number, call in enumerate((module, function)):
        assert not call(config, {"seed": [1]}, out=f"s{number}").failed  # type: ignore[operator]


def test_told_to_end_it_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("strategies").mkdir()
    Path("strategies/slow.py").write_text(
        "import os, signal\n"
        "from fedkd.transforms import mean, pure\n"
        "from fedkd.types import Strategy\n"
        "def slow() -> Strategy:\n"
        "    def step(p):\n"
        "        if p.scores.shape[1] > 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return p\n"
        "    return Strategy(combine=mean(), finish=pure(step))\n"
    )
    assert main([*LOCAL, *TINY, "strategy=slow", "seed=0..1", "--out", "s"]) == 130
    err = capsys.readouterr().err.splitlines()
    assert err == ["fedkd: interrupted", "fedkd: go on with: python -m fedkd.sweep --resume s"]


def killed_in_the_middle(words: list[str], runs: int) -> None:
    """Start a sweep in a process of its own, and end it for good after its first run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkd.sweep", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    limit = time.monotonic() + 240
    try:
        while not any(_finished(Path(p).parent) for p in written()):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < sum(r["status"] == "finished" for r in _read()) < runs


def _read() -> list[dict[str, Any]]:
    """What is finished by now, as the run folders themselves tell it."""
    found = told()
    for entry in found:
        path = Path("s", entry["folder"], "run.json")
        status = json.loads(path.read_text())["status"] if path.exists() else "unfinished"
        entry["status"] = status
    return found


def test_a_killed_sweep_does_only_what_is_missing() -> None:
    words = [*LOCAL, *TINY, "rounds=6", "seed=0..3", "--out", "s"]
    words.remove("rounds=2")
    killed_in_the_middle(words, 4)
    before = {k: v for k, v in written().items() if _finished(Path(k).parent)}
    assert main(["--resume", "s", "--quiet"]) == 0
    after = written()
    assert len(after) == 4 and before.items() <= after.items()
    assert [r["status"] for r in told()] == ["finished"] * 4


def _finished(folder: Path) -> bool:
    status: str = json.loads((folder / "run.json").read_text())["status"]
    return status == "finished"


@pytest.mark.slow
def test_twelve_runs_at_once_under_ray_killed_and_gone_on_with() -> None:
    """And each has the bytes of the same run done alone."""
    words = [*TINY, "strategy.name=entropy,dsfl", "strategy.temperature=0.1,0.5", "seed=0..2"]
    words = ["--quiet", *words, "--out", "s", "--at-once", "2"]
    killed_in_the_middle(words, 12)
    before = {k: v for k, v in written().items() if _finished(Path(k).parent)}
    assert main(["--resume", "s", "--quiet"]) == 0
    after = written()
    assert len(after) == 12 and before.items() <= after.items()
    assert [r["status"] for r in told()] == ["finished"] * 12
    for number in (0, 7):
        folder = Path("s") / told()[number]["folder"]
        mine = ["execution.runtime=local", f"execution.out=alone{number}"]
        alone = run(load_config(str(folder / "config.yaml"), mine)).folder
        assert small.bits(alone) == small.bits(folder)


def test_a_run_whose_folder_was_cut_off_before_it_began_is_done_anew() -> None:
    seen: list[Task] = []

    class Looking:
        def stage(self, text: str) -> None: ...
        def look(self) -> None: ...
        def ended(self, task: Task, error: str) -> None: ...
        def begin(self, tasks: Any, at_once: int) -> None:
            seen.extend(tasks)

    config = load_config("digits", [*TINY, "execution.runtime=local"])
    sweep(config, {"seed": [0]}, out="s", board=Looking())
    half = seen[0].folder
    for name in ("run.json", "student.safetensors"):
        (half / name).unlink()
    for inside in (half / "commits").iterdir():
        inside.unlink()
    (half / "commits").rmdir()
    done = sweep(config, {"seed": [0]}, out="s")
    assert not done.failed and (half / "student.safetensors").exists()
