"""Samples that are arrays already."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedkd.config import Positive
from fedkd.samples import Samples, Source, classed, file_at, provenance, said, scale, some, told


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


def npz(
    file: str,
    *,
    x_train: str = "x_train",
    y_train: str = "y_train",
    x_test: str | None = "x_test",
    y_test: str | None = "y_test",
    channels: Literal["auto", "first", "last"] = "auto",
    class_names: tuple[str, ...] = (),
    mean: tuple[float, ...] | None = None,
    std: tuple[Positive, ...] | None = None,
    licence: str = "not stated",
) -> Source:
    """Arrays in one NumPy archive: images [N, H, W], with channels first or last, or [N, F].

    The four parameters name the arrays in the file; `x_test: null` and `y_test: null` for a file
    without a test part. Labels are whole numbers or text, [N] or [N, 1]. Bytes stay bytes, all
    other numbers become float32, standardised by the training samples unless `mean` and `std` are
    given. `channels: auto` takes an axis of 1, 3 or 4 for the channels. Nothing is unpickled.
    Raises ValueError for an array that is not there or cannot be used.
    """
    path = file_at(file, "data.source.file")
    wanted = [name for name in (x_train, y_train, x_test, y_test) if name is not None]
    held = _arrays(path, wanted)
    if (x_test is None) != (y_test is None):
        raise ValueError(
            f"data.source.x_test: should be null where y_test is, found {told(x_test)} beside "
            f"{told(y_test)}; give both or neither"
        )
    test = None if x_test is None or y_test is None else (held[x_test], _labels(held, y_test))
    x = _samples(held[x_train], x_train, channels)
    y, y_of_test, names, named = classed(
        _labels(held, y_train), None if test is None else test[1], "data.source.y_test"
    )
    if class_names:
        names, named = class_names, True
    x_of_test = None if test is None else _samples(test[0], str(x_test), channels)
    means, stds = scale(x, mean, std)
    return Source(
        x, y, x_of_test, y_of_test, len(names), names, means, stds,
        provenance=provenance("NumPy archive", x, x_of_test),
        licence=licence,
        named=named,
    )  # fmt: skip


def _arrays(path: Path, wanted: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Any: what somebody's file holds is not yet known."""
    try:
        with path.open("rb") as opened:
            archive = np.load(opened, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            there = list(archive.files)
            held = {name: archive[name] for name in wanted if name in there}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data.source.file: {told(path)} should be a readable .npz file of plain arrays, "
            f"found: {said(error)}; correct the path or save it again with numpy.savez"
        ) from None
    if lacking := [name for name in wanted if name not in there]:
        raise ValueError(
            f"data.source.file: {told(path)} should hold {some(wanted)}, found no "
            f"{some(lacking)}; it holds {some(there)}: name its arrays by x_train, y_train, "
            "x_test and y_test (null for none)"
        )
    return held


def _labels(held: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    y = held[name]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iuUb":
        raise ValueError(
            f"data.source: {told(name)} should hold whole numbers or text [N], found {y.dtype} "
            f"{list(y.shape)}; save one label a sample (argmax of a one-hot table)"
        )
    return y.astype(np.int64) if y.dtype.kind in "iub" else y


def _samples(x: npt.NDArray[Any], name: str, channels: str) -> Samples:
    if x.dtype.kind not in "iufb" or x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise ValueError(
            f"data.source: {told(name)} should hold numbers, [N, F], [N, H, W] or images with "
            f"channels, not empty, found {x.dtype} {list(x.shape)}; save it in one of these forms"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        few = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
        if channels == "auto" and few[0] == few[1]:
            raise ValueError(
                f"data.source.channels: should be first or last for {told(name)} {list(x.shape)}, "
                "where auto cannot tell, found auto; set it"
            )
        if channels == "last" or (channels == "auto" and few[1]):
            x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32))
