"""Predictions to bytes and back: what is counted is the length of what is sent.

A payload is a fixed header and raw little-endian tensors. A mask that is all true and a trust that
is all one are not sent; a row list that both sides know is not sent; scores are sent only where the
mask is True. Nothing is pickled, and decoding checks magic, version and every size against the
payload's length before it allocates.

`pack` and `unpack` put a JSON head and several payloads into one message of the transport.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from fedkd.types import Predictions, Space

MAGIC, BUNDLE, VERSION = b"FKDP", b"FKDB", 1
_HEADER = struct.Struct(
    "<4sBBBBIiIIIB3x"
)  # magic version space dtype flags round party J R S extras
HEADER_BYTES = _HEADER.size
_SPACES: tuple[Space, ...] = get_args(Space)
_DTYPES = (
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
_ROWS, _MASK, _TRUST, _CLASSES, _ASKED = (1 << i for i in range(5))
_MOST_DIMENSIONS = 8


class WireError(ValueError):
    """A payload that is refused; the text says what was wrong with it."""


class Limits(NamedTuple):
    """What a payload may be at most; checked before anything is allocated."""

    payload_bytes: int = 1 << 31
    values: int = 1 << 29  # elements of any one tensor after unpacking


_USUAL = Limits()


def encode(given: Predictions, *, send_rows: bool = False) -> bytes:
    """The payload of `given`; rows are part of it only where the receiver does not know them."""
    j, r, s = given.scores.shape
    asked = int(given.asked[0]) if j else 0
    flags, parts = 0, []
    if j != 1:  # a single party has its place in the header
        parts.append(_raw(given.parties.to(torch.int32)))
    if not bool((given.asked == asked).all()):
        flags |= _ASKED
        parts.append(_raw(given.asked.to(torch.int32)))
    if send_rows:
        flags |= _ROWS
        parts.append(_raw(given.rows.to(torch.int32)))
    everywhere = bool(given.mask.all())
    if not everywhere:
        flags |= _MASK
        parts.append(_bits(given.mask))
    trust = given.trust[given.mask]
    if not bool((trust == 1).all()):
        flags |= _TRUST
        parts.append(_raw(trust.to(torch.float32)))
    if given.classes is not None:
        flags |= _CLASSES
        parts.append(struct.pack("<I", given.classes.shape[1]))
        parts.append(_raw(given.classes.to(torch.int32)))
    parts.append(_raw(given.scores if everywhere else given.scores[given.mask]))
    extras = given.extras or {}
    for name, tensors in sorted(extras.items()):
        parts.append(_named(name, tensors))
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        _SPACES.index(given.space),
        _DTYPES.index(given.scores.dtype),
        flags,
        asked,
        int(given.parties[0]) if j == 1 else 0,
        j,
        r,
        s,
        len(extras),
    )
    return b"".join([head, *parts])


def decode(payload: bytes, rows: Tensor | None = None, limits: Limits = _USUAL) -> Predictions:
    """The Predictions of a payload; `rows` [R, 3] are those that both sides know.

    Where rows were not sent and are not given, they come out as -1. Raises `WireError`.
    """
    if len(payload) > limits.payload_bytes:
        raise WireError(f"payload: at most {limits.payload_bytes} bytes, found {len(payload)}")
    if len(payload) < HEADER_BYTES:
        raise WireError(f"payload: at least {HEADER_BYTES} bytes, found {len(payload)}")
    magic, version, space, dtype, flags, asked_round, one, j, r, s, n_extras = _HEADER.unpack_from(
        payload
    )
    if magic != MAGIC:
        raise WireError(f"payload: should begin with {MAGIC!r}, found {magic!r}")
    if version != VERSION:
        raise WireError(f"payload: version {VERSION} is read here, found {version}")
    if space >= len(_SPACES) or dtype >= 4 or flags >= 1 << 5:
        raise WireError(f"payload: unknown space {space}, dtype {dtype} or flags {flags}")
    if max(j, 1) * max(r, 1) * max(s, 1) > limits.values:
        raise WireError(f"payload: at most {limits.values} values, the header says {j} x {r} x {s}")
    least = -(-j * r // 8) if flags & _MASK else j * r * s * _DTYPES[dtype].itemsize
    if HEADER_BYTES + least > len(payload):
        raise WireError(f"payload: {len(payload)} bytes, at least {HEADER_BYTES + least} expected")
    if s == 0 and j * r > 8 * len(payload):
        raise WireError(f"payload: {j} x {r} answers without a column in {len(payload)} bytes")
    reader = _Reader(payload, HEADER_BYTES, limits)
    parties = torch.tensor([one]) if j == 1 else reader.tensor(torch.int32, (j,)).long()
    asked = (
        reader.tensor(torch.int32, (j,)).long()
        if flags & _ASKED
        else torch.full((j,), asked_round, dtype=torch.int64)
    )
    if flags & _ROWS:
        rows = reader.tensor(torch.int32, (r, 3)).long()
    elif rows is None:
        rows = torch.tensor([-1]).expand(r, 3)  # costs nothing, whatever the header says
    elif len(rows) != r:
        raise WireError(f"payload: {len(rows)} rows were asked, found {r}")
    mask = reader.bits((j, r)) if flags & _MASK else torch.ones(j, r, dtype=torch.bool)
    answered = int(mask.sum())
    trust = torch.zeros(j, r)
    trust[mask] = reader.tensor(torch.float32, (answered,)) if flags & _TRUST else 1.0
    classes = None
    if flags & _CLASSES:
        width = reader.count()
        if width not in (1, r):
            raise WireError(f"payload: class ids for 1 or {r} rows, found {width}")
        classes = reader.tensor(torch.int32, (j, width, s)).long()
    values = reader.tensor(_DTYPES[dtype], (answered, s))
    scores = torch.zeros(j, r, s, dtype=values.dtype)
    scores[mask] = values
    extras = dict(reader.named() for _ in range(n_extras))
    reader.end()
    try:
        return Predictions(
            scores, mask, trust, rows, parties, asked, _SPACES[space], classes, extras or None
        )
    except ValueError as error:
        raise WireError(f"payload: {error}") from None


def pack(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:  # Any: JSON
    """One message: a JSON head and binary parts."""
    text = json.dumps(head, separators=(",", ":")).encode()
    sizes = struct.pack(f"<{len(blobs)}Q", *map(len, blobs))
    return b"".join(
        [BUNDLE, struct.pack("<BII", VERSION, len(text), len(blobs)), text, sizes, *blobs]
    )


def unpack(message: bytes, limits: Limits = _USUAL) -> tuple[dict[str, Any], list[bytes]]:
    """The head and the parts of a message of `pack`. Raises `WireError`."""
    start = 4 + struct.calcsize("<BII")
    if len(message) < start or message[:4] != BUNDLE:
        raise WireError(f"message: should begin with {BUNDLE!r}, found {message[:4]!r}")
    version, text_bytes, count = struct.unpack_from("<BII", message, 4)
    if version != VERSION:
        raise WireError(f"message: version {VERSION} is read here, found {version}")
    at = start + text_bytes + 8 * count
    if at > len(message):
        raise WireError(f"message: {len(message)} bytes are too few for its head and {count} parts")
    sizes = struct.unpack_from(f"<{count}Q", message, start + text_bytes)
    if at + sum(sizes) != len(message):
        raise WireError(f"message: its parts take {at + sum(sizes)} bytes, found {len(message)}")
    try:
        head = json.loads(message[start : start + text_bytes])
    except (ValueError, RecursionError) as error:
        raise WireError(f"message: its head is not JSON: {error}") from None
    if not isinstance(head, dict):
        raise WireError(f"message: its head must be an object, found {type(head).__name__}")
    blobs = []
    for size in sizes:
        blobs.append(message[at : at + size])
        at += size
    return head, blobs


class _Reader:
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

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        count = self._count(shape)
        raw = np.frombuffer(self._take(-(-count // 8)), np.uint8)
        return torch.from_numpy(np.unpackbits(raw, count=count).astype(bool)).view(shape)

    def count(self) -> int:
        return int(struct.unpack("<I", self._take(4))[0])

    def named(self) -> tuple[str, tuple[Tensor, ...]]:
        length, tensors = struct.unpack("<BB", self._take(2))
        try:
            name = self._take(length).decode("ascii")
        except UnicodeDecodeError:
            raise WireError("payload: names are ASCII") from None
        return name, tuple(self._shaped() for _ in range(tensors))

    def _shaped(self) -> Tensor:
        dtype, dimensions = struct.unpack("<BB", self._take(2))
        if dtype >= len(_DTYPES) or dimensions > _MOST_DIMENSIONS:
            raise WireError(f"payload: unknown dtype {dtype} or {dimensions} dimensions")
        return self.tensor(
            _DTYPES[dtype], struct.unpack(f"<{dimensions}I", self._take(4 * dimensions))
        )

    def end(self) -> None:
        if self._at != len(self._payload):
            raise WireError(f"payload: {len(self._payload) - self._at} bytes too many")


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _bits(mask: Tensor) -> bytes:
    return np.packbits(mask.cpu().numpy().reshape(-1)).tobytes()


def _named(name: str, tensors: tuple[Tensor, ...]) -> bytes:
    parts = [struct.pack("<BB", len(name), len(tensors)), name.encode("ascii")]
    for tensor in tensors:
        shape = tuple(tensor.shape)
        parts.append(
            struct.pack(f"<BB{len(shape)}I", _DTYPES.index(tensor.dtype), len(shape), *shape)
        )
        parts.append(_bits(tensor) if tensor.dtype == torch.bool else _raw(tensor))
    return b"".join(parts)
