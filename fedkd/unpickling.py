"""Pickles of plain containers and numpy arrays, read without running anything that they name.

A pickle may name any function and have it called. This reader admits the few names by which numpy
writes arrays of numbers, and answers them with stand-ins of its own, so that not even numpy's own
reconstruction runs on unchecked values.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read(path: Path) -> dict[str, Any]:  # Any: numbers, text, bytes, lists of them, arrays
    """The dictionary that a pickle file holds; Python 2's byte strings stay bytes, keys are text.

    Raises ValueError for a file that is damaged, holds anything else, or names what is not
    admitted, and OSError where it cannot be read.
    """
    raw = io.BytesIO(path.read_bytes())  # in which no announced length reads beyond the end
    try:
        found = _Reader(raw, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where a dictionary should be")
    values = {_text(key): value for key, value in found.items()}
    return {k: v.values if isinstance(v, _Array) else v for k, v in values.items()}


class _Numbers:
    """Stands for a numpy type of plain numbers."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not re.fullmatch(r"[biuf][1248]", _text(code)):
            raise pickle.UnpicklingError(f"an array of {code!r}, which are no plain numbers")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # Any: unchecked
        if tuple(state[2:5]) != (None, None, None):
            raise pickle.UnpicklingError("an array of records, which are no plain numbers")
        if (order := _text(state[1])) in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class _Array:
    """Stands for a numpy array; `values` once its content has been read and checked."""

    values: npt.NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # Any: unchecked
        _, shape, kind, by_columns, raw = state
        if not isinstance(kind, _Numbers) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that does not hold plain numbers")
        if math.prod(shape) * kind.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array {shape} of {len(raw)} bytes")
        order = "F" if by_columns else "C"
        self.values = np.frombuffer(raw, kind.dtype).reshape(shape, order=order)  # type: ignore[call-overload]  # order is one of its literals


def _empty(kind: object, shape: object, code: object) -> _Array:
    """What numpy pickles as a call of its `_reconstruct`; the content comes afterwards."""
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError("an array in a form that numpy does not write")
    return _Array()


def _whole(raw: bytes, kind: object, shape: tuple[int, ...], order: str) -> _Array:
    """How numpy pickles a contiguous array from protocol 5 on."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", bytes(raw)))
    return array


def _encoded(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes so, for the older protocols."""
    return text.encode({"latin1": "latin1"}[encoding])


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Numbers,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _whole,
    ("numpy._core.numeric", "_frombuffer"): _whole,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle._Unpickler):
    """In Python, because the one in C takes as much memory as a damaged file asks for."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and only plain containers and numpy arrays are read"
            )
        return _ADMITTED[module, name]


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
