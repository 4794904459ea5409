"""Sources of samples: every public function here is a built-in source by its name.

A source gives the samples as they are, before anything is split. One's own is
`package.module:factory`, any function that returns a `Source`.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.config import Positive
from fedkd.faults import shown

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def digits() -> Source:
    """Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8, 10 classes.

    The values 0..16 are scaled to [0, 1]. There is no test set of its own.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Source(
        x_train=(images.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32),
        y_train=labels.astype(np.int64),
        x_test=None,
        y_test=None,
        classes=10,
        class_names=tuple("0123456789"),
        mean=(0.305,),
        std=(0.376,),
        provenance="scikit-learn load_digits: the test part of UCI's Optical Recognition of "
        "Handwritten Digits (E. Alpaydin and C. Kaynak, 1998), doi:10.24432/C50P49",
        licence="CC BY 4.0",
    )


def idx(
    folder: str,
    *,
    class_names: tuple[str, ...] = (),
    mean: tuple[float, ...] = (0.5,),
    std: tuple[Positive, ...] = (0.5,),
    licence: str = "not stated; see the distributor of the files",
) -> Source:
    """MNIST, Fashion-MNIST and their relatives: four IDX files as distributed, plain or .gz.

    The folder holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte (the plain file is taken where both forms exist). The default mean and
    std map pixels to [-1, 1] and so depend on nobody's data; the pooled statistics are 0.1307 and
    0.3081 for MNIST, 0.2860 and 0.3530 for Fashion-MNIST. Without `class_names` the classes are
    0 to the greatest training label. The provenance names the sha256 of the unpacked pixels.
    Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database". Raises ValueError naming a file
    that is missing, truncated, too long, of another kind, or that does not match its partner.
    """
    place = Path(folder).expanduser()
    x_train, y_train = _pair(place, "train")
    x_test, y_test = _pair(place, "t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"data.source.folder: training and test images should have one size, found "
            f"{x_train.shape[2:]} and {x_test.shape[2:]} in {place}; they belong to different sets"
        )
    names = class_names or tuple(str(label) for label in range(int(y_train.max()) + 1))
    return Source(
        x_train, y_train, x_test, y_test, len(names), names, mean, std,
        provenance=f"IDX files, sha256 of pixels: train {_digest(x_train)}, test {_digest(x_test)}",
        licence=licence,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """All samples of a data set with what is needed to read them.

    `x_*` is uint8 or float32, [N, C, H, W] images or [N, F] features; `y_*` is [N], int64, in
    [0, classes). A model sees (x - mean) / std, after uint8 has been scaled to [0, 1]; `mean` and
    `std` hold one value, or one a channel (feature). Raises ValueError where that does not hold.
    """

    x_train: Samples
    y_train: Labels
    x_test: Samples | None
    y_test: Labels | None
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: str
    licence: str

    def __post_init__(self) -> None:
        if self.classes < 2 or len(self.class_names) != self.classes:
            raise ValueError(
                f"data.source: class_names should name each of at least 2 classes, found "
                f"{len(self.class_names)} names for {self.classes} classes; name every class once"
            )
        if (self.x_test is None) != (self.y_test is None):
            raise ValueError(
                "data.source: x_test and y_test should come together, found one of them; "
                "give both, or None for both"
            )
        _check(self.x_train, self.y_train, self.classes, "train")
        if self.x_test is not None and self.y_test is not None:
            _check(self.x_test, self.y_test, self.classes, "test")
            kinds = [(x.dtype.name, x.shape[1:]) for x in (self.x_train, self.x_test)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"data.source: x_test should be of the type and sample shape of x_train, "
                    f"found {kinds[1]} beside {kinds[0]}; convert one of them"
                )
        self._check_scale()

    def _check_scale(self) -> None:
        channels = self.x_train.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"data.source.{name}: should hold 1 finite value or {channels}, one a channel, "
                    f"found {values}; give as many as x has channels"
                )
        if min(self.std) <= 0:
            raise ValueError(f"data.source.std: should be > 0, found {self.std}; raise it")


def _check(x: npt.NDArray[Any], y: npt.NDArray[Any], classes: int, part: str) -> None:
    """Any: what a user's factory returned is not yet known to be right."""
    if x.dtype not in (np.uint8, np.float32) or x.ndim not in (2, 4) or 0 in x.shape:
        raise ValueError(
            f"data.source: x_{part} should be uint8 or float32, [N, C, H, W] or [N, F], not empty, "
            f"found {x.dtype} {list(x.shape)}; convert or reshape it in the factory"
        )
    if y.dtype != np.int64 or y.shape != x.shape[:1]:
        raise ValueError(
            f"data.source: y_{part} should be int64 [{len(x)}], one label a sample, "
            f"found {y.dtype} {list(y.shape)}; convert it or drop the unlabelled samples"
        )
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"data.source: labels of y_{part} should be in 0..{classes - 1}, found "
            f"{y.min()}..{y.max()}; correct the labels or the number of classes"
        )
    if x.dtype == np.float32 and not np.isfinite(x).all():
        raise ValueError(
            f"data.source: x_{part} should be finite, found "
            f"{int((~np.isfinite(x)).sum())} values that are not; drop or fill them"
        )


def _pair(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], Labels]:
    images_at, labels_at = (
        _find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = _read(images_at, 3), _read(labels_at, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data.source.folder: {images_at} and {labels_at} should hold as many images as "
            f"labels, found {len(images)} and {len(labels)}; they belong to different sets"
        )
    return images[:, None], labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(
        f"data.source.folder: should hold {name} or {name}.gz, found neither in "
        f"{shown(str(folder))}; put the file there or correct the path"
    )


def _read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of bytes: 0, 0, 8 (unsigned byte), rank, sizes as big-endian uint32, values."""

    def wrong(rule: str, found: str) -> ValueError:
        return ValueError(f"data.source.folder: {path} {rule}, found {found}; fetch the file again")

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
        raise wrong("should be readable", str(error)) from None
    if len(values) != size:
        found = f"{len(values)}" if len(values) < size else "more"
        raise wrong(f"should hold the {size} values its header states", found)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _digest(x: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(x.tobytes()).hexdigest()
