"""Links that lose nothing: what is known left out, what is frequent made short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from constriction import stream
from torch import Tensor

from fedkd.coding import Block, Coder, Delta, Take, pack, unpack
from fedkd.cursor import WireError

_PLANE = 256  # symbols of larger alphabets are coded byte by byte, the lowest first
_PLAIN, _CODED = b"\0", b"\1"


def delta() -> Delta:
    """One bit for a row that is as it was last told, after quantisation; all others in full.

    Both ends keep what was last told, for each client, so it costs memory: 4 bytes a symbol, of
    all public rows. Who misses rounds misses nothing: the state moves with what is delivered.
    """
    return Delta()


def range_coder() -> Coder:
    """Frequent symbols take few bits, by range coding; at most one byte more than without.

    The frequencies of a block are sent ahead, a byte a symbol of its alphabet. What would become
    longer stays as it is. The coder is that of the library constriction (R. Bamler, 2022,
    https://arxiv.org/abs/2201.01741).
    """
    return Coder(_write, _read, lambda size: size + 1)


def _write(blocks: Sequence[Block]) -> bytes:
    plain = pack(blocks)
    if not plain:
        return b""
    encoder = stream.queue.RangeEncoder()
    for values, levels in blocks:
        for place, size in _planes(levels):
            _encode(encoder, (values.numpy() >> place & 255).astype(np.int32), size)
    coded = encoder.get_compressed().astype("<u4").tobytes()
    return _CODED + coded if len(coded) < len(plain) else _PLAIN + plain


def _read(coded: bytes) -> Take:
    kind, rest = coded[:1], coded[1:]
    if kind != _CODED:
        if kind not in (b"", _PLAIN):
            raise WireError(f"payload: symbols are packed or range coded, found {kind!r}")
        return unpack(rest)
    if len(rest) % 4:
        raise WireError(f"payload: range coded symbols are whole words, found {len(rest)} bytes")
    decoder = stream.queue.RangeDecoder(np.frombuffer(rest, "<u4").astype(np.uint32))

    def take(count: int, levels: int) -> Tensor:
        values = np.zeros(count, np.int64)
        for place, size in _planes(levels):
            try:
                values |= _decode(decoder, count, size).astype(np.int64) << place
            except AssertionError:  # what the library calls bytes that nobody wrote
                raise WireError("payload: no range coder has written this") from None
        return torch.from_numpy(values)

    return take


def _planes(levels: int) -> Iterator[tuple[int, int]]:
    """The place of each byte of a symbol and the size of its alphabet."""
    for place in range(0, (levels - 1).bit_length(), 8):
        yield place, min(_PLANE, (levels - 1 >> place) + 1)


def _encode(encoder: Any, plane: np.ndarray, size: int) -> None:  # Any: comes without types
    if len(plane) <= size:  # frequencies would take more than they save
        encoder.encode(plane, stream.model.Uniform(size))
        return
    counts = np.bincount(plane, minlength=size)
    # to a byte each, so that the largest is 255 and what occurs at all is not 0
    weights = -(-255 * counts // counts.max())
    encoder.encode(weights.astype(np.int32), stream.model.Uniform(256))
    there = np.flatnonzero(weights)
    if len(there) > 1:
        encoder.encode(np.searchsorted(there, plane).astype(np.int32), _model(weights[there]))


def _decode(decoder: Any, count: int, size: int) -> np.ndarray:  # Any: the same
    if count <= size:
        found: np.ndarray = decoder.decode(stream.model.Uniform(size), count)
        return found
    weights = decoder.decode(stream.model.Uniform(256), size)
    there: np.ndarray = np.flatnonzero(weights)
    if not len(there):
        raise WireError("payload: something is frequent, found nothing")
    if len(there) == 1:
        return np.full(count, there[0])
    places: np.ndarray = there[decoder.decode(_model(weights[there]), count)]
    return places


def _model(weights: np.ndarray) -> Any:
    return stream.model.Categorical(weights / weights.sum(), perfect=False)
