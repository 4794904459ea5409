"""The same bytes from every runtime, and from workers that die."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import small

from fedkd import load_config, run
from fedkd.asking import ClientFailure
from fedkd.config import Config
from fedkd.runtime.ray import session

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CNN = {"name": "cnn", "channels": [4, 8], "hidden": 16}
# two clients of each model: the MLPs share a pass, and so may the CNNs
EXPERIMENT = {
    "clients": [{"count": 6, "model": [small.MLP, small.OTHER, CNN]}],
    "student": CNN,
    "evaluation": {"pooled": True, "local": True, "labels": True},
}


def digits(runtime: str, workers: int, folder: Path, strategy: object = "entropy") -> Config:
    return small.config(
        strategy,
        f"execution.runtime={runtime}",
        f"execution.workers={workers}",
        f"execution.out={folder}",
        f"execution.search=[{TESTS}]",
        **EXPERIMENT,
    )


def lethal(marker: Path, *, client: int = 3, at: int = 2) -> dict[str, object]:
    return {"name": "odd_methods:lethal", "marker": str(marker), "client": client, "at": at}


def bits_of(config: Config) -> dict[str, bytes]:
    """Run and give all bytes that must be equal; the return value is what the file says."""
    done = run(config)
    assert list(done.records) == small.records(done.folder)
    return small.bits(done.folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `local` gives."""
    found = bits_of(digits("local", 1, tmp_path_factory.mktemp("local") / "run"))
    assert len(found) == 10  # records, student, yardsticks, partition and six teachers
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray session for all runs here."""
    with session(load_config("digits", ["execution.workers=2"]).execution):
        yield
    assert not ray.is_initialized()


def test_flowers_own_engine_gives_the_bytes_of_local(
    reference: dict[str, bytes], tmp_path: Path
) -> None:
    assert not ray.is_initialized()  # it brings a session of its own
    assert bits_of(digits("flower", 2, tmp_path / "run")) == reference


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_gives_the_bytes_of_local(
    reference: dict[str, bytes], cluster: None, tmp_path: Path, workers: int
) -> None:
    assert bits_of(digits("ray", workers, tmp_path / "run")) == reference
    assert not small.events(tmp_path / "run")
    assert ray.is_initialized()  # a session that was open stays open


def test_a_worker_that_is_killed_changes_no_bit(
    reference: dict[str, bytes], cluster: None, tmp_path: Path
) -> None:
    """SIGKILL in the midst of a task of round 2: one retry is noted, all bytes are the same."""
    marker = tmp_path / "struck"
    found = bits_of(digits("ray", 2, tmp_path / "run", lethal(marker)))
    assert marker.exists()
    (event,) = small.events(tmp_path / "run")
    assert (event["kind"], event["outcome"], event["round"]) == ("lost", "retried", 2)
    assert 3 in event["clients"] and "Actor" in event["cause"]
    assert found == reference


def test_who_may_not_try_again_is_told_what_was_lost(cluster: None, tmp_path: Path) -> None:
    """The rounds before are kept, and the session serves the next run."""
    config = digits("ray", 1, tmp_path / "run", lethal(tmp_path / "struck"))
    config = config.model_copy(
        update={"execution": config.execution.model_copy(update={"retries": 0})}
    )
    with pytest.raises(ClientFailure, match=r"round 2: client \d was lost: Actor"):
        run(config)
    assert [r["round"] for r in small.records(tmp_path / "run")] == [1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert ray.is_initialized()


def test_a_fault_of_a_method_is_told_as_it_was(cluster: None, tmp_path: Path) -> None:
    """Client, kind and text of the exception, and the traceback in the worker."""
    method = {"name": "odd_methods:failing", "client": 4}
    with pytest.raises(ClientFailure, match="round 1: client 4 failed with ZeroDivisionError") as e:
        run(digits("ray", 1, tmp_path / "run", method))
    assert "odd_methods.py" in str(e.value) and "nobody checked this" in str(e.value)
    (event,) = small.events(tmp_path / "run")
    assert (event["kind"], event["clients"], event["round"]) == ("failure", [4], 1)


FIVE_LINES = '''"""The mean of soft labels, as short as a method can be."""
from fedkd.transforms import mean, softmax
from fedkd.types import Shares, Strategy
def plain() -> Strategy:
    return Strategy(combine=mean(), upload=softmax(), shares=Shares(answers="probs"))
'''


def test_a_method_in_a_folder_of_ones_own_runs_by_name(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five lines outside of the repository, found from the working directory by all workers."""
    assert len(FIVE_LINES.splitlines()) == 5
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "plain.py").write_text(FIVE_LINES)
    monkeypatch.chdir(tmp_path)
    found = [
        bits_of(small.config("plain", f"execution.runtime={name}", f"execution.out={name}"))
        for name in ("ray", "local")
    ]
    assert found[0] == found[1]


# Slow


def fashion(data: Path, runtime: str, workers: int, out: Path, marker: Path) -> Config:
    """20 clients of three architectures, some stacked and some not, Dirichlet 0.1, 5 rounds."""
    phase = {"epochs": 1, "batch": 32}
    return load_config(
        {
            "name": "fashion",
            "seed": 1,
            "rounds": 5,
            "data": {
                "source": {"name": "idx", "folder": str(data)},
                "validation": 1000,
                "public": 1000,
                "private": 6000,
                "partition": {"name": "dirichlet", "alpha": 0.1, "min_size": 10},
            },
            "clients": [{"count": 20, "model": [{"name": "mlp", "hidden": [32]}, "lenet5", CNN]}],
            "student": "lenet5",
            "strategy": lethal(marker, client=8, at=3),
            "learning": {"private": phase, "client": phase, "server": phase},
            "evaluation": {"pooled": False, "local": False, "labels": False},
            "execution": {
                "runtime": runtime,
                "workers": workers,
                "out": str(out),
                "search": [str(TESTS)],
            },
        }
    )


@pytest.mark.slow
def test_fashion_mnist_gives_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """`local`, `flower`, `ray` with one and two workers and with one of two killed in round 3."""
    data, marker = small.fashion_mnist(), tmp_path / "struck"
    marker.touch()
    variants = {
        "local": ("local", 1),
        "flower": ("flower", 2),
        "one": ("ray", 1),
        "two": ("ray", 2),
    }
    found = {
        name: bits_of(fashion(data, runtime, workers, tmp_path / name, marker))
        for name, (runtime, workers) in variants.items()
    }
    marker.unlink()
    found["killed"] = bits_of(fashion(data, "ray", 2, tmp_path / "killed", marker))
    (event,) = small.events(tmp_path / "killed")
    assert (event["kind"], event["outcome"]) == ("lost", "retried")
    # some are stacked, some not, or this would show less than it says
    sizes = {len(shard) for shard in stacks_in(tmp_path / "local")}
    assert min(sizes) == 1 < max(sizes)
    for name, bits in found.items():
        assert bits.keys() == found["local"].keys(), name
        assert [n for n in bits if bits[n] != found["local"][n]] == [], name


def stacks_in(folder: Path) -> list[set[str]]:
    """The clients of every shard of the last round."""
    from safetensors import safe_open

    shards = []
    for path in (folder / "clients").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shards.append({name.partition("/")[0] for name in file.keys()})  # noqa: SIM118
    return shards


@pytest.mark.slow
def test_an_installed_copy_runs_a_method_of_ones_own(tmp_path: Path) -> None:
    """`pip install .` into a fresh environment, five lines in a new folder, by name under Ray.

    What the project depends on is taken from the environment of the tests, not installed again.
    """
    home, work = tmp_path / "environment", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    inside = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(inside, "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "tests", "build", "dist")
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    install = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", source]
    subprocess.run(install, check=True, env=clean, capture_output=True)

    (work / "strategies").mkdir(parents=True)
    (work / "strategies" / "plain.py").write_text(FIVE_LINES)
    words = ["strategy=plain", "rounds=2", "--quick", "--quiet", "--out", "run"]
    commands = (
        ["-c", "import fedkd; print(fedkd.__file__)"],
        ["-m", "fedkd.simulate", *words, "--runtime", "ray"],
    )
    said = []
    for command in commands:
        done = subprocess.run(
            [python, *command], cwd=work, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0].startswith(inside)
    assert len(small.records(work / "run")) == 2
    written = load_config(work / "run" / "config.yaml")
    assert (written.strategy.name, written.execution.runtime) == ("plain", "ray")
