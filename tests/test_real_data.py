"""Data sets as distributed, each by config alone, where FEDKD_DATA or ../shared/data has them."""

import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from PIL import Image

import fedkd
from fedkd import sources
from fedkd.config import load_config

ADULT = [
    "age", "workclass", "weight", "education", "years", "marital", "occupation", "relationship",
    "race", "sex", "gain", "loss", "hours", "country", "income",
]  # fmt: skip
HEART = [
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak",
    "slope", "ca", "thal", "num",
]  # fmt: skip


def real(name: str) -> Path:
    """A folder of data as distributed; skips the test where it is not there."""
    usual = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDKD_DATA", usual)) / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set FEDKD_DATA to a folder that holds {name}")
    return folder


def adult() -> dict[str, Any]:
    folder = real("adult")
    return {
        "name": "csv", "file": str(folder / "adult.data.gz"), "test": str(folder / "adult.test.gz"),
        "names": ADULT, "label": "income", "comment": "|", "missing": "indicate",
        "relabel": {"<=50K.": "<=50K", ">50K.": ">50K"},
    }  # fmt: skip


def run(tmp_path: Path, data: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Two rounds of two small clients; the record of the last."""
    tree = {
        **small.EXPERIMENT, "data": data, "clients": [{"count": 2, "model": small.MLP}],
        "execution": {"runtime": "local", "out": str(tmp_path / "run")},
    }  # fmt: skip
    return fedkd.run(load_config(tree, overrides)).records[-1]


def test_adult_as_distributed() -> None:
    spec = adult()
    source = sources.csv(
        spec["file"], "income", test=spec["test"], names=tuple(ADULT), comment="|",
        missing="indicate", relabel=spec["relabel"],
    )  # fmt: skip
    assert source.class_names == ("<=50K", ">50K")
    assert np.bincount(source.y_train).tolist() == [24720, 7841]
    assert np.bincount(source.y_test).tolist() == [12435, 3846]
    gaps = [i for i, name in enumerate(source.features) if name.endswith("= missing")]
    assert source.x_train[:, gaps].any(1).sum() == 2399
    assert source.x_test[:, gaps].any(1).sum() == 1221


def test_adult_by_config_alone(tmp_path: Path) -> None:
    record = run(tmp_path, {"source": adult(), "test": "auto", "validation": 500, "public": 1000,
                            "private": 4000, "partition": "iid"})  # fmt: skip
    assert record["student"]["test"] > 0.77  # the share of the larger class is 0.764


def test_four_hospitals_are_four_clients(tmp_path: Path) -> None:
    folder = real("heart_disease")
    towns = ("cleveland", "hungarian", "switzerland", "va")
    source = {
        "name": "csv", "file": [str(folder / f"processed.{town}.data") for town in towns],
        "names": HEART, "label": "num", "relabel": {"2": "1", "3": "1", "4": "1"},
        "categories": ["cp", "thal"], "missing": "indicate", "drop": ["file"],
    }  # fmt: skip
    data = {"source": source, "test": 150, "validation": 50, "public": 100,
            "partition": {"name": "natural_id", "by": "file"}}  # fmt: skip
    record = run(tmp_path, data, "clients.0.count=4")
    assert len(record["teachers"]["own"]) == 4


def test_characters_are_the_public_set_of_clothes(tmp_path: Path) -> None:
    folder = real("kmnist_t10k")
    public = {
        "source": {"name": "idx", "folder": str(folder), "train": "t10k", "test": None},
        "size": 500,
    }
    source = {"name": "idx", "folder": str(real("fashion_mnist"))}
    data = {"source": source, "test": 1000, "validation": 200, "public": public, "private": 1000,
            "partition": "iid"}  # fmt: skip
    record = run(tmp_path, data, "evaluation.labels=true")
    assert record["student"]["public"] is None and record["ensemble"]["public"] is None
    assert record["student"]["test"] > 0.15


@pytest.mark.slow
def test_cifar10_in_the_binary_version(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    folder.mkdir()
    for path in sorted(real("cifar10").glob("*.xz")):  # undone as that folder's own script does
        raw = np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8)
        planes = raw[10000:].reshape(3, 10000, 32, 32)
        planes = planes.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
        planes[0] += planes[1]
        planes[2] += planes[1]
        images = planes.transpose(1, 0, 2, 3).reshape(10000, -1)
        np.concatenate([raw[:10000, None], images], 1).tofile(folder / f"{path.stem}.bin")
    source = sources.cifar10(str(folder))
    assert np.bincount(source.y_train).tolist() == [5000] * 10
    found = [source.x_train[:, c].mean() / 255 for c in range(3)]
    assert np.allclose(found, [0.49140, 0.48216, 0.44653], atol=1e-5)
    data = {"source": {"name": "cifar10", "folder": str(folder)}, "test": 500, "validation": 100,
            "public": 300, "private": 600, "partition": "shard"}  # fmt: skip
    assert 0 <= run(tmp_path, data)["student"]["test"] <= 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    source = sources.idx(str(real("mnist")))
    for part, x, y in (
        ("train", source.x_train[:400], source.y_train),
        ("test", source.x_test[:100], source.y_test),
    ):
        for i, pixels in enumerate(x):
            place = tmp_path / "png" / part / f"digit {y[i]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0]).save(place / f"{i}.png")
    data = {"source": {"name": "image_folder", "folder": str(tmp_path / "png")}, "test": "auto",
            "validation": 40, "public": 100, "partition": "iid"}  # fmt: skip
    record = run(tmp_path, data, "learning.private.epochs=5", "learning.server.epochs=5")
    assert record["student"]["test"] > 0.3
