"""MNIST and its relatives, in the format of their distributors."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedkd.config import Positive
from fedkd.samples import Labels, Source, path_at, provenance, said, told


def idx(
    folder: str,
    *,
    train: str = "train",
    test: str | None = "t10k",
    class_names: tuple[str, ...] = (),
    mean: tuple[float, ...] = (0.5,),
    std: tuple[Positive, ...] = (0.5,),
    licence: str = "not stated",
) -> Source:
    """MNIST, Fashion-MNIST and their relatives: four IDX files as distributed, plain or .gz.

    The folder holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte (the plain file is taken where both forms exist). `train` and `test` are
    how the names begin; `test: null` for a set without a test part. The default mean and std map
    pixels to [-1, 1] and so depend on nobody's data; the pooled statistics are 0.1307 and 0.3081
    for MNIST, 0.2860 and 0.3530 for Fashion-MNIST. Without `class_names` the classes are 0 to the
    greatest training label. The provenance names the sha256 of the unpacked pixels.
    Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database". Raises ValueError naming a file
    that is missing, truncated, too long, of another kind, or that does not match its partner.
    """
    place = path_at(folder, "data.source.folder")
    x_train, y_train = _pair(place, train)
    x_test, y_test = (None, None) if test is None else _pair(place, test)
    if x_test is not None and x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"data.source.folder: training and test images should have one size, found "
            f"{x_train.shape[2:]} and {x_test.shape[2:]} in {told(place)}; they belong to "
            "different sets"
        )
    names = class_names or tuple(str(label) for label in range(int(y_train.max()) + 1))
    return Source(
        x_train, y_train, x_test, y_test, len(names), names, mean, std,
        provenance=provenance("IDX files", x_train, x_test),
        licence=licence,
        named=bool(class_names),
    )  # fmt: skip


def _pair(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], Labels]:
    images_at, labels_at = (
        _find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = _read(images_at, 3), _read(labels_at, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data.source.folder: {images_at.name} and {labels_at.name} in {told(folder)} should "
            f"hold as many images as labels, found {len(images)} and {len(labels)}; they belong to "
            "different sets"
        )
    return images[:, None], labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(
        f"data.source.folder: should hold {name} or {name}.gz, found neither in "
        f"{told(folder)}; put the file there or correct the path"
    )


def _read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of bytes: 0, 0, 8 (unsigned byte), rank, sizes as big-endian uint32, values."""

    def wrong(rule: str, found: str) -> ValueError:
        return ValueError(
            f"data.source.folder: {told(path)} {rule}, found {found}; fetch the file again"
        )

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if head[:4] != bytes((0, 0, 8, dimensions)):
                raise wrong(
                    f"should start as an IDX file of unsigned bytes in {dimensions} dimensions "
                    f"(00 00 08 0{dimensions})",
                    head[:4].hex(" ") or "an empty file",
                )
            shape = struct.unpack(f">{(len(head) - 4) // 4}I", head[4 : len(head) // 4 * 4])
            if len(shape) < dimensions or 0 in shape:
                raise wrong(f"should state {dimensions} sizes above 0", str(shape))
            size = math.prod(shape)
            # read in pieces: the memory taken follows what is there, never what a header claims
            values = bytearray()
            while piece := file.read(min(1 << 20, size + 1 - len(values))):
                values += piece
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise wrong("should be readable", said(error)) from None
    if len(values) != size:
        found = f"{len(values)}" if len(values) < size else "more"
        raise wrong(f"should hold the {size} values its header states", found)
    return np.frombuffer(values, np.uint8).reshape(shape)
