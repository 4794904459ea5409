"""Data sets of a few samples, in the files of their distributors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

FINE = [f"f{i}" for i in range(100)]
COARSE = [f"c{i}" for i in range(20)]
RNG = np.random.default_rng(0)


def cifar_files(
    folder: Path, kind: str, binary: bool, protocol: int = 2, size: int = 2
) -> dict[str, Any]:
    """Random batches as distributed; gives pixels and labels by the name of the batch."""
    ten = kind == "cifar10"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    keys = ("labels",) if ten else ("coarse_labels", "fine_labels")
    written = {}
    folder.mkdir(exist_ok=True)
    for name in names:
        pixels = RNG.integers(0, 256, (size, 3072), np.uint8)
        labels = [[int(v) for v in RNG.integers(0, 10 if ten else 20, size)] for _ in keys]
        written[name] = pixels, labels
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8).T, pixels], 1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
            continue
        held = {
            b"data": pixels,
            b"batch_label": b"x",
            **{k.encode(): v for k, v in zip(keys, labels, strict=True)},
        }
        (folder / name).write_bytes(pickle.dumps(held, protocol))
    if not ten and binary:
        (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
        (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    elif not ten:
        meta = {"fine_label_names": FINE, "coarse_label_names": [n.encode() for n in COARSE]}
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol))
    return written


def fetched(name: str, rows: list[Any], features: Any, cache: Path, commit: str = "a" * 40) -> None:
    """What `datasets` leaves behind when it has fetched a data set: three quarters for training."""
    import datasets

    class Builder(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> Any:
            return datasets.DatasetInfo(features=datasets.Features(features))

        def _split_generators(self, manager: Any) -> Any:
            cut = 3 * len(rows) // 4
            parts = {"train": rows[:cut], "test": rows[cut:]}
            return [datasets.SplitGenerator(n, {"part": part}) for n, part in parts.items()]

        def _generate_examples(self, part: Any) -> Any:
            yield from enumerate(part)

    builder = Builder(
        cache_dir=str(cache), dataset_name=name.partition("/")[2], repo_id=name, hash=commit
    )
    builder.download_and_prepare()
