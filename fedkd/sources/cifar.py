"""CIFAR-10 and CIFAR-100, in the two formats of their distributors.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedkd import unpickling
from fedkd.config import Positive
from fedkd.samples import Labels, Source, path_at, provenance, said, told

_PIXELS = 3 * 32 * 32
_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(
    folder: str,
    *,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[Positive, ...] = (0.5,),
    licence: str = "none stated",
) -> Source:
    """CIFAR-10: 60,000 colour images of 32x32, 10 classes; unpacked, Python or binary version.

    The folder holds data_batch_1 to data_batch_5 and test_batch, as pickles or with the ending
    .bin (the binary files are taken where both exist). Pickles are read by a reader that admits
    numpy arrays and plain containers alone. The default mean and std map pixels to [-1, 1]; the
    pooled statistics are 0.491 0.482 0.447 and 0.247 0.243 0.262. Raises ValueError naming a file
    that is missing or is not what it should be.
    """
    train = [f"data_batch_{i}" for i in range(1, 6)]
    parts = _parts(path_at(folder, "data.source.folder"), train, "test_batch", ("labels",), (10,))
    (x_train, y_train), (x_test, y_test) = parts.train, parts.test
    return Source(
        x_train, y_train[:, 0], x_test, y_test[:, 0], 10, _TEN, mean, std,
        provenance=provenance("CIFAR-10", x_train, x_test),
        licence=licence,
    )  # fmt: skip


def cifar100(
    folder: str,
    *,
    labels: Literal["fine", "coarse"] = "fine",
    mean: tuple[float, ...] = (0.5,),
    std: tuple[Positive, ...] = (0.5,),
    licence: str = "none stated",
) -> Source:
    """CIFAR-100: 60,000 colour images of 32x32, 100 classes in 20 superclasses.

    Unpacked, in the Python version (train, test, meta) or the binary one (train.bin, test.bin,
    fine_label_names.txt, coarse_label_names.txt). `labels: coarse` has the superclasses as classes;
    a partition may go by the columns `fine` and `coarse` either way. Otherwise as `cifar10`.
    """
    place = path_at(folder, "data.source.folder")
    parts = _parts(place, ["train"], "test", ("coarse_labels", "fine_labels"), (20, 100))
    (x_train, y_train), (x_test, y_test) = parts.train, parts.test
    kind = ("coarse", "fine").index(labels)
    names = _names(parts.folder, labels, (20, 100)[kind], parts.binary)
    return Source(
        x_train, y_train[:, kind], x_test, y_test[:, kind], len(names), names, mean, std,
        provenance=provenance("CIFAR-100", x_train, x_test),
        licence=licence,
        columns={"coarse": y_train[:, 0], "fine": y_train[:, 1]},
    )  # fmt: skip


class _Batch(NamedTuple):
    images: npt.NDArray[np.uint8]  # [N, 3, 32, 32]
    labels: Labels  # [N, kinds of labels]


class _Parts(NamedTuple):
    train: _Batch
    test: _Batch
    folder: Path
    binary: bool


def _parts(
    folder: Path, train: Sequence[str], test: str, keys: Sequence[str], classes: Sequence[int]
) -> _Parts:
    """All batches, from the folder or from the only subfolder that the archive unpacks to."""
    for place in (folder, *sorted(folder.glob("cifar-*") if folder.is_dir() else ())):
        for binary in (True, False):
            names = [f"{name}.bin" if binary else name for name in (*train, test)]
            there = [name for name in names if (place / name).is_file()]
            if not there:
                continue
            if lacking := sorted(set(names) - set(there)):
                raise ValueError(
                    f"data.source.folder: should hold {', '.join(names)}, found no "
                    f"{', '.join(lacking)} in {told(place)}; unpack the whole archive there"
                )
            read = [_read(place / name, binary, keys, classes) for name in names]
            joined = _Batch(*(np.concatenate(a) for a in zip(*read[:-1], strict=True)))
            return _Parts(joined, read[-1], place, binary)
    raise ValueError(
        f"data.source.folder: should hold {train[0]} and its companions, or {train[0]}.bin and "
        f"its, found neither in {told(folder)}; unpack the distributor's archive there"
    )


def _read(path: Path, binary: bool, keys: Sequence[str], classes: Sequence[int]) -> _Batch:
    try:
        images, labels = (_from_binary if binary else _from_pickle)(path, keys)
    except (OSError, ValueError) as error:
        raise _wrong(path, "be a readable batch of CIFAR images", said(error)) from None
    for kind, count in enumerate(classes):
        low, high = int(labels[:, kind].min()), int(labels[:, kind].max())
        if low < 0 or high >= count:
            raise _wrong(path, f"hold labels in 0..{count - 1}", f"{low}..{high}")
    return _Batch(images.reshape(-1, 3, 32, 32), labels)


def _from_binary(path: Path, keys: Sequence[str]) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Records of one byte a label and 3,072 of pixels: red, green and blue planes, by rows."""
    record = len(keys) + _PIXELS
    raw = np.fromfile(path, np.uint8)
    if not len(raw) or len(raw) % record:
        raise ValueError(f"{len(raw)} bytes, which are no records of {record}")
    rows = raw.reshape(-1, record)
    return rows[:, len(keys) :], rows[:, : len(keys)].astype(np.int64)


def _from_pickle(path: Path, keys: Sequence[str]) -> tuple[npt.NDArray[np.uint8], Labels]:
    held = unpickling.read(path)
    images = held.get("data")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise ValueError("no array of bytes under data")
    for key in keys:
        given = held.get(key)
        if not isinstance(given, list) or not all(type(v) is int and 0 <= v < 256 for v in given):
            raise ValueError(f"no list of small whole numbers under {key}")
        if images.shape != (len(given), _PIXELS) or not given:
            raise ValueError(f"{len(given)} {key} for images {list(images.shape)}")
    return images, np.stack([np.array(held[key], np.int64) for key in keys], axis=1)


def _names(folder: Path, kind: str, count: int, binary: bool) -> tuple[str, ...]:
    path = folder / (f"{kind}_label_names.txt" if binary else "meta")
    try:
        if binary:
            names = path.read_text(encoding="ascii").split()
        else:
            given = unpickling.read(path).get(f"{kind}_label_names", [])
            names = [n.decode("ascii") if isinstance(n, bytes) else str(n) for n in given]
    except (OSError, ValueError, TypeError) as error:
        raise _wrong(path, "name the classes", said(error)) from None
    if len(set(names)) != count:
        raise _wrong(path, f"name {count} {kind} classes", f"{len(set(names))}")
    return tuple(names)


def _wrong(path: Path, rule: str, found: str) -> ValueError:
    return ValueError(
        f"data.source.folder: {told(path)} should {rule}, found: {found}; fetch the file again"
    )
