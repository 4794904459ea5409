"""What a data set is once it has been read: samples, labels, and what is needed to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.faults import shown

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Column = npt.NDArray[Any]  # Any: [N] numbers or text
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

_MOST_TOLD = 400  # characters of one list or message in an error


def digest(x: Samples) -> str:
    """The sha256 of the values, by which anybody can tell whether they have the same samples."""
    return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()


def provenance(kind: str, x_train: Samples, x_test: Samples | None) -> str:
    """What was read, told by its content and not by its place."""
    test = "" if x_test is None else f", test {digest(x_test)}"
    return f"{kind}, sha256 of values: train {digest(x_train)}{test}"


def scale(x: Samples, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> MeanStd:
    """Mean and standard deviation as given, else the usual ones.

    Bytes are mapped to [-1, 1], which depends on nobody's data. Floats are standardised by the
    statistics of all training samples, one value a channel (feature); a constant feature is left
    as wide as it is.
    """
    if x.dtype == np.uint8:
        return mean or (0.5,), std or (0.5,)
    axes = (0, *range(2, x.ndim))
    found = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    usual = np.where(found[1] > 0, found[1], 1.0)
    return mean or tuple(found[0].tolist()), std or tuple(usual.tolist())


def classed(
    train: Column, test: Column | None, where: str
) -> tuple[Labels, Labels | None, tuple[str, ...], bool]:
    """Any labels [N] as 0, 1, … by their ascending values, the classes, and if these are names.

    Whole numbers are no names: the 3 of one data set need not be the 3 of another. Raises
    ValueError, beginning with `where`, for a label of the test part that is not in training.
    """
    values, y = np.unique(train, return_inverse=True)
    named = values.dtype.kind not in "iu"
    y_test = None
    if test is not None:
        strange = np.setdiff1d(test, values)
        if len(strange):
            raise ValueError(
                f"{where}: labels of the test part should be among those of the training part, "
                f"{some(values)}, found {some(strange)}; correct the labels or the choice of files"
            )
        y_test = np.searchsorted(values, test).astype(np.int64)
    return y.reshape(-1).astype(np.int64), y_test, tuple(map(str, values.tolist())), named


def some(words: Any, most: int = 12) -> str:  # Any: a sequence or an array
    """The first of many words, and how many more there are."""
    listed, room = list[str](), _MOST_TOLD
    for word in words[:most]:
        listed.append(told(word, 40))
        room -= len(listed[-1]) + 2
        if room < 0:
            break
    rest = len(words) - len(listed)
    return ", ".join(listed) + (f" and {rest} more" if rest else "")


def told(value: object, most: int = 200) -> str:
    """A name or a path as it is written, the end of a long one, on one line that can be read."""
    text = str(value)
    text = text if len(text) <= most else f"…{text[-most:]}"
    return text if text.isprintable() else shown(text, most)


def said(error: Exception) -> str:
    """What somebody else's code says, on one line that can be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    readable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return readable if len(readable) <= _MOST_TOLD else f"{readable[:_MOST_TOLD]}…"


def path_at(text: str, where: str) -> Path:
    """A path as written. Raises ValueError, beginning with `where`, for what can be none."""
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:  # a null byte, an unknown user, no right
        raise ValueError(
            f"{where}: should be a path that can be read, found {shown(text)} ({said(error)}); "
            "correct it"
        ) from None
    return path


def file_at(text: str, where: str) -> Path:
    """The file at a path. Raises ValueError for anything else, for a pipe would be waited for."""
    path = path_at(text, where)
    if not path.is_file():
        raise ValueError(f"{where}: should be a file, found none at {told(path)}; correct the path")
    return path


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """All samples of a data set with what is needed to read them.

    `x_*` is uint8 or float32, [N, C, H, W] images or [N, F] features; `y_*` is [N], int64, in
    [0, classes). A model sees (x - mean) / std, after uint8 has been scaled to [0, 1]; `mean` and
    `std` hold one value, or one a channel (feature). `named` says whether `class_names` are names
    in the world's sense and no mere numbers, so that another data set's classes can be compared
    with them. `features` names the F features, where they have names. `columns` are further values
    of the training samples, [N_train] each, which a partition may go by. Raises ValueError where
    that does not hold.
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
    named: bool = True
    features: tuple[str, ...] = ()
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        names = len(set(self.class_names))
        if self.classes < 2 or not names == len(self.class_names) == self.classes:
            raise ValueError(
                f"data.source: class_names should name each of at least 2 classes, found "
                f"{names} names for {self.classes} classes; name every class once"
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
        self._check_columns()

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

    def _check_columns(self) -> None:
        if self.features and self.x_train.shape[1:] != (len(self.features),):
            raise ValueError(
                f"data.source: features should name each of the {self.x_train.shape[1:]} features "
                f"of x, found {len(self.features)} names; name all or none"
            )
        for name, values in self.columns.items():
            if values.shape != self.y_train.shape or values.dtype.kind not in "iufbU":
                raise ValueError(
                    f"data.source: the column {told(name)} should hold a number or text for each "
                    f"of {len(self.y_train)} training samples, found {values.dtype} "
                    f"{list(values.shape)}; convert it or leave it out"
                )


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
