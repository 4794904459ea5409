"""Every section of docs/data.md runs on small files of the kind that it names."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import toys
import yaml
from PIL import Image
from test_readme import CODE, Block, blocks, named, whole

import fedkd
from fedkd.config import Config, load_config
from fedkd.offers import offers

SECTIONS = [b for b in blocks("yaml") if b.place.startswith("data.md")]
RNG = np.random.default_rng(0)
TINY = {"name": "mlp", "hidden": [4]}


def idx_folder(folder: Path, parts: dict[str, int]) -> None:
    folder.mkdir()
    for part, count in parts.items():
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 9, 9) + RNG.bytes(count * 81)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def table(spec: dict[str, Any], labels: tuple[str, ...], rows: int = 60) -> pd.DataFrame:
    """A table with the columns that a section names: some words, some numbers, some gaps."""
    made = {}
    for number, name in enumerate(spec["names"]):
        numbers = RNG.integers(0, 50, rows).astype(str)
        words = np.array(["?", *(f"{name} {letter}" for letter in "abcdefghijkl")])
        values = RNG.choice(words, rows) if number % 2 else np.where(numbers == "7", "?", numbers)
        made[name] = RNG.choice(labels, rows) if name == spec["label"] else values
    return pd.DataFrame(made)


def adult(spec: dict[str, Any], here: Path) -> None:
    for name, labels in (("file", ("<=50K", ">50K")), ("test", ("<=50K.", ">50K."))):
        text = table(spec, labels, 90).to_csv(header=False, index=False)
        (here / spec[name]).write_bytes(gzip.compress(f"|a comment\n{text}\n".encode()))


def hospitals(spec: dict[str, Any], here: Path) -> None:
    for name in spec["file"]:
        frame = table(spec, ("0", "1", "2", "3", "4"))
        frame.to_csv(here / name, header=False, index=False)


def patients(spec: dict[str, Any], here: Path) -> None:
    frame = pd.DataFrame({"age": RNG.integers(0, 90, 80), "ward": ["a", "b"] * 40})
    frame.assign(outcome=["ill", "well"] * 40).to_parquet(here / spec["file"])


def blood(spec: dict[str, Any], here: Path) -> None:
    arrays = {}
    for part in ("train", "test"):
        arrays[spec[f"x_{part}"]] = RNG.integers(0, 256, (60, 8, 8, 3), np.uint8)
        arrays[spec[f"y_{part}"]] = np.arange(60)[:, None] % 4
    np.savez(here / spec["file"], **arrays)


def cifar(spec: dict[str, Any], here: Path) -> None:
    toys.cifar_files(here / spec["folder"], "cifar10", True, size=20)


def photos(spec: dict[str, Any], here: Path) -> None:
    for i in range(120):
        place = here / spec["folder"] / ("train", "test")[i % 3 == 0] / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + i % 3, 12), (i, 2 * i, 99)).save(place / f"{i}.png")


def fashion(spec: dict[str, Any], here: Path) -> None:
    idx_folder(here / spec["folder"], {"train": 90, "t10k": 30})


MAKE: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "adult.data.gz": adult,
    "processed.cleveland.data": hospitals,
    "patients.parquet": patients,
    "bloodmnist.npz": blood,
    "photos": photos,
    "cifar-10-batches-bin": cifar,
    "fashion_mnist": fashion,
}


def small_files(spec: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a section's source needs, in the working directory."""
    place = spec.get("file", spec.get("folder"))
    if spec["name"] == "hugging_face":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
        rows = [{"image": Image.new("L", (6, 6), i), "label": i % 2} for i in range(80)]
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1"])}
        toys.fetched(spec["dataset"], rows, features, here / "cache", "a" * 40)
    elif spec["name"].startswith("my_data"):
        (code,) = (b for b in CODE if '"""my_data.py' in b.text)
        (here / "my_data.py").write_text(code.text)
    elif place is not None:
        MAKE[place[0] if isinstance(place, list) else place](spec, here)


def shrunk(block: Block, here: Path) -> Config:
    """The section on a federation of two, with as few samples as its files have."""
    tree = whole(block.text)
    wanted = tree["data"]
    sets = wanted["public"] if isinstance(wanted["public"], list) else [wanted["public"]]
    sets = [s if isinstance(s, dict) else {"size": s} for s in sets]
    counted = [{**s, "size": min(s.get("size", 9), 9)} for s in sets]
    tested = wanted["test"] if wanted["test"] == "auto" else min(wanted["test"], 12)
    wanted |= {"public": counted, "validation": 4, "private": "auto", "test": tested}
    partition = wanted.setdefault("partition", "iid")
    if "min_size" in partition:
        partition["min_size"] = 1
    count = tree["clients"][0]["count"] if "natural_id" in str(partition) else 2
    count = 2 if "grouped" in str(partition) else count
    tree |= {"clients": [{"count": count, "model": TINY}], "student": TINY, "rounds": 1}
    tree["learning"] = {who: {"epochs": 1} for who in ("private", "client", "server")}
    tree["execution"] = {"runtime": "local", "out": str(here / "run")}
    return load_config(tree)


@pytest.mark.parametrize("block", SECTIONS, ids=named)
def test_a_section_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = whole(block.text)
    spec = tree["data"]["source"]
    if isinstance(spec, dict):
        small_files(spec, tmp_path, monkeypatch)
    if "kmnist" in block.text:
        idx_folder(tmp_path / "kmnist", {"t10k": 40})
    (record,) = fedkd.run(shrunk(block, tmp_path)).records
    assert 0 <= record["student"]["test"] <= 1


def test_the_page_names_every_source_and_partition() -> None:
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in ("source", "partition"):
        for offer in offers(kind):
            assert f"`{offer.name}`" in text, f"docs/data.md lacks {offer.name}"
    assert len(SECTIONS) >= 12 and all(yaml.safe_load(b.text)["data"] for b in SECTIONS)
