"""The measuring stick measures equal work; how long it takes is nobody's business here."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import problems
from benchmarks.__main__ import main
from fedkd import Config, load_config, run
from fedkd.assemble import prepare, resolve

ROOT = Path(problems.__file__).resolve().parents[1]
SMALL = [
    "data.test=20",
    "data.validation=10",
    "data.public=30",
    "data.private=60",
    "data.partition={name: iid}",
    "execution.runtime=local",
    "execution.workers=2",
]


def idx_file(path: Path, array: np.ndarray) -> None:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 120), ("t10k", 40)):
        pixels = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        idx_file(folder / f"{part}-images-idx3-ubyte", pixels)
        idx_file(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return folder


def measured(side: str, config: Config, folder: Path) -> dict[str, object]:
    """What the other side says of its run of a resolved config."""
    prepare(config, folder / "data")
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    names = [str(folder / name) for name in ("config.json", "data", "out.json")]
    subprocess.run([sys.executable, "-m", f"benchmarks.{side}", *names], cwd=ROOT, check=True)
    found: dict[str, object] = json.loads((folder / "out.json").read_text())
    return found


def test_the_bare_loop_takes_the_steps_of_ours(images: Path, tmp_path: Path) -> None:
    problem = problems.twenty_teachers(images, clients=4, rounds=2)
    config = resolve(load_config(problem, [*SMALL, f"execution.out={tmp_path / 'ours'}"]))
    records = run(config).records
    found = measured("bare_loop", config, tmp_path)
    ours = {side: sum(r["steps"][side] for r in records) for side in ("clients", "server")}
    # 15 samples a client are one batch of 32: 4 epochs and one of 30 public rows, a round
    assert ours == {"clients": 2 * 4 * (4 + 1), "server": 2 * 4}
    assert found["steps"] == ours
    assert len(found["ends"]) == 2  # type: ignore[arg-type]  # JSON


def test_without_data_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    assert main(["bare_loop"]) == 2
    assert "FEDKD_DATA" in (said := capsys.readouterr().err) and "found nothing" in said
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    assert main(["bare_loop"]) == 2
    assert f"found {str(tmp_path)!r} without it" in capsys.readouterr().err
