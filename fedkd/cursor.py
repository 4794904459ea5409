"""A cursor over bytes from outside: nothing is read past their end or allocated beyond the limits.

Whatever breaks a rule is a `WireError`; its text never grows with the bytes.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
MOST_DIMENSIONS = 8


class WireError(ValueError):
    """A payload that is refused; the text says what was wrong with it."""


class Limits(NamedTuple):
    """What a payload may be at most; checked before anything is allocated."""

    payload_bytes: int = 1 << 31
    values: int = 1 << 29  # elements of any one tensor after unpacking
    blanks: int = 1 << 26  # scores that the mask leaves out: they cost memory, but no bytes


USUAL = Limits()


def only(holds: bool, rule: str) -> None:
    """Hold a payload to the one spelling that `encode` gives it."""
    if not holds:
        raise WireError(f"payload: {rule}")


def is_name(text: str) -> bool:
    """Whether a name is 1 to 255 printable ASCII letters, fit for a header and a terminal."""
    return 0 < len(text) < 256 and text.isascii() and text.isprintable()


class Reader:
    """A cursor over a payload that never reads past its end nor allocates beyond the limits."""

    def __init__(self, payload: bytes, at: int, limits: Limits) -> None:
        self._payload, self._at, self._limits = payload, at, limits

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._payload):
            raise WireError(
                f"payload: {len(self._payload)} bytes, at least {self._at + size} expected"
            )
        self._at += size
        return self._payload[self._at - size : self._at]

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if dtype == torch.bool:
            return self.bits(shape)
        count = self._count(shape)
        raw = bytearray(self._take(count * dtype.itemsize))  # writable, so that torch may own it
        return (torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)).view(
            shape
        )

    def _count(self, shape: tuple[int, ...]) -> int:
        # a dimension of zero must not hide others that torch cannot hold
        if math.prod(max(n, 1) for n in shape) > self._limits.values:
            raise WireError(f"payload: at most {self._limits.values} values, found {shape}")
        return math.prod(shape)

    def ids(self, shape: tuple[int, ...], name: str, least: int = 0) -> Tensor:
        found = self.tensor(torch.int32, shape).long()
        only(not bool((found < least).any()), f"{name} are {least} or more")
        return found

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        count = self._count(shape)
        raw = np.frombuffer(self._take(-(-count // 8)), np.uint8)
        only(not (count % 8 and raw[-1] & (255 >> count % 8)), "bits beyond the last are zero")
        return torch.from_numpy(np.unpackbits(raw, count=count).view(bool)).view(shape)

    def count(self) -> int:
        return int(struct.unpack("<I", self._take(4))[0])

    def named(self) -> tuple[str, tuple[Tensor, ...]]:
        length, tensors = struct.unpack("<BB", self._take(2))
        name = self._take(length).decode("ascii", "replace")
        only(is_name(name), f"names are printable ASCII, found {name!a}")
        return name, tuple(self._shaped() for _ in range(tensors))

    def _shaped(self) -> Tensor:
        dtype, dimensions = struct.unpack("<BB", self._take(2))
        if dtype >= len(DTYPES) or dimensions > MOST_DIMENSIONS:
            raise WireError(f"payload: unknown dtype {dtype} or {dimensions} dimensions")
        return self.tensor(
            DTYPES[dtype], struct.unpack(f"<{dimensions}I", self._take(4 * dimensions))
        )

    def rest(self) -> bytes:
        """All that is left."""
        return self._take(len(self._payload) - self._at)

    def end(self) -> None:
        if self._at != len(self._payload):
            raise WireError(f"payload: {len(self._payload) - self._at} bytes too many")
