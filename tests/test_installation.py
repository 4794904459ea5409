"""Wheel and sdist hold all that a user needs, and nothing that only the repository has."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PARTS = ("fedkd", "strategies", "simulations")
# what a run needs beside the package: the smallest that has a client of each kind of message
_SMALL = ("--quick", "--runtime", "local", "rounds=1", "clients.0.count=2",
          "learning.private.first_epochs=1", "learning.server.first_epochs=1",
          "evaluation={pooled: false, local: false, labels: false}")  # fmt: skip


def told(command: Sequence[object], cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a command says on standard output; fails with all that it says if it ends badly."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from the sdist as `pip install` would."""
    out = tmp_path_factory.mktemp("dist")
    told([sys.executable, "-m", "build", "--no-isolation", "--outdir", out], ROOT)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def files(*places: str) -> set[str]:
    """All files in these folders, from the repository's root, without what Python left there."""
    found = (p for place in places for p in (ROOT / place).rglob("*") if p.is_file())
    return {str(p.relative_to(ROOT)) for p in found if "__pycache__" not in p.parts}


def test_the_wheel_holds_the_packages_with_all_their_files_and_the_configs(wheel: Path) -> None:
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert len(files("configs")) > 2 and len(files(*_PARTS)) > 80
    assert held == files(*_PARTS) | {f"fedkd/{name}" for name in files("configs")}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    text = archive.read(name).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Version: {project['version']}" in text and "License-File: LICENSE" in text
    assert set(re.findall(r"(?m)^Provides-Extra: (\S+)$", text)) == {
        *project["optional-dependencies"]
    }


def test_the_sdist_holds_what_tests_and_pages_need_and_nothing_that_was_made(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    wanted = files(*_PARTS, "configs", "docs", "tests", "benchmarks")
    wanted |= {"pyproject.toml", "constraints.txt", "Makefile", "mkdocs.yml", ".ci/run", "LICENSE"}
    wanted |= {"README.md", "CHANGELOG.md", "CITATION.cff"}
    assert wanted <= names
    made = {"runs", "site", ".venv", ".git", "dist", "build", ".mypy_cache", ".hypothesis"}
    assert not made & {name.partition("/")[0] for name in names}
    assert not {name for name in names if name.endswith(".pyc")}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that has the wheel and, from this one, all that it needs."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    (packages,) = place.glob("lib/python*/site-packages")
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    told([*pip, "--quiet", wheel], place)
    others = [p for p in sys.path if p and Path(p).name == "site-packages"]
    others += [sysconfig.get_paths()["purelib"]]
    lines = (p for p in dict.fromkeys(others))
    (packages / "others.pth").write_text("".join(f"{p}\n" for p in lines), encoding="utf-8")
    return place / "bin"


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Surroundings that know nothing of the repository."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {**kept, "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_what_is_installed_is_what_runs(
    installed: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    where = "import fedkd, fedkd.reading as r; print(fedkd.__file__); print(r.folder())"
    places = told([installed / "python", "-c", where], tmp_path, outside).splitlines()
    for place in map(Path, places):
        assert place.is_relative_to(installed.parent) and not place.is_relative_to(ROOT)


def test_the_default_runs_from_an_empty_folder(
    installed: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    here = tmp_path / "empty"
    here.mkdir()
    said = told([installed / "python", "-m", "fedkd.simulate", *_SMALL], here, outside)
    assert "Student" in said
    (run,) = (here / "runs").iterdir()
    assert {"report.md", "student.safetensors", "records.jsonl"} <= {p.name for p in run.iterdir()}
    assert (run / "pictures" / "accuracy.png").is_file()


def test_everything_built_in_is_listed_from_an_empty_folder(
    installed: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    said = told([installed / "python", "-m", "fedkd.simulate", "--list"], tmp_path, outside)
    named = {p.stem for d in _PARTS[1:] for p in (ROOT / d).glob("[a-z]*.py")}
    named |= {p.stem for p in (ROOT / "configs").glob("*.yaml")}
    assert named <= set(re.findall(r"(?m)^  (\w+) ", said))


def test_every_console_script_starts(
    installed: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in project.get("scripts", {}):
        assert "usage" in told([installed / name, "--help"], tmp_path, outside).lower()


@pytest.mark.slow
def test_pip_installs_all_of_it_from_the_registry(
    wheel: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    """In an environment of its own, with the constraints as they are."""
    place, here = tmp_path / "environment", tmp_path / "empty"
    venv.create(place, with_pip=True)
    here.mkdir()
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    told(pip, here, {**outside, "HOME": os.environ.get("HOME", "/")})  # pip's own settings
    assert "Student" in told([python, "-m", "fedkd.simulate", *_SMALL], here, outside)
    told([python, "-m", "pip", "check"], here, outside)
