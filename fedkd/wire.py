"""Predictions to bytes and back: what is counted is the length of what is sent.

A payload is a fixed header and raw little-endian tensors. A mask that is all true and a trust that
is all one are not sent; a row list that both sides know is not sent; scores are sent only where the
mask is True. Nothing is pickled, and decoding checks magic, version and every size against the
payload's length before it allocates. What is read has one spelling: a payload that `encode` would
have written otherwise is refused.

A codec sends its own bytes in the place of the scores: `encode(…, coded=…)` puts them at the end,
and `opened` gives them back beside all the rest.

`pack` and `unpack` put a JSON head and several payloads into one message of the transport.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from fedkd.cursor import DTYPES, MOST_DIMENSIONS, USUAL, Limits, Reader, WireError, is_name, only
from fedkd.types import CONSENSUS, Predictions, Space

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "Limits",
    "WireError",
    "decode",
    "encode",
    "opened",
    "pack",
    "unpack",
]

MAGIC, BUNDLE, VERSION = b"FKDP", b"FKDB", 1
# magic version space dtype flags round party J R S extras, three zeros
_HEADER = struct.Struct("<4sBBBBiiIIIB3s")
HEADER_BYTES = _HEADER.size
_SPACES: tuple[Space, ...] = get_args(Space)
_ROWS, _MASK, _TRUST, _CLASSES, _ASKED, _CODED = (1 << i for i in range(6))


def encode(given: Predictions, *, send_rows: bool = False, coded: bytes | None = None) -> bytes:
    """The payload of `given`; rows are part of it only where the receiver does not know them.

    With `coded` the scores are not: these bytes, whatever they mean, stand for them at the end.
    """
    j, r, s = given.scores.shape
    asked = int(given.asked[0]) if j else 0
    parties, rounds = _ids(given.parties, "parties", CONSENSUS), _ids(given.asked, "asked")
    flags, parts = 0, []
    if j != 1:  # a single party has its place in the header
        parts.append(parties)
    if not bool((given.asked == asked).all()):
        flags |= _ASKED
        parts.append(rounds)
    if send_rows:
        flags |= _ROWS
        parts.append(_ids(given.rows, "rows"))
    everywhere = bool(given.mask.all())
    if not everywhere:
        flags |= _MASK
        parts.append(_bits(given.mask))
    trust = given.trust[given.mask].to(torch.float32)
    if not bool((trust == 1).all()):
        flags |= _TRUST
        parts.append(_raw(trust))
    if given.classes is not None:
        flags |= _CLASSES
        parts.append(struct.pack("<I", given.classes.shape[1]))
        parts.append(_ids(given.classes, "classes"))
    if coded is None:
        parts.append(_raw(given.scores if everywhere else given.scores[given.mask]))
    extras = given.extras or {}
    for name, tensors in sorted(extras.items()):
        parts.append(_named(name, tensors))
    if coded is not None:
        flags |= _CODED
        parts.append(coded)
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        _SPACES.index(given.space),
        DTYPES.index(given.scores.dtype),
        flags,
        asked,
        int(given.parties[0]) if j == 1 else 0,
        j,
        r,
        s,
        len(extras),
        bytes(3),
    )
    return b"".join([head, *parts])


def decode(payload: bytes, rows: Tensor | None = None, limits: Limits = USUAL) -> Predictions:
    """The Predictions of a payload; `rows` [R, 3] are those that both sides know.

    Where rows were not sent and are not given, they come out as -1. Raises `WireError`. Takes at
    most 64 bytes a byte of the payload, 8 a score that its mask leaves out, which `limits.blanks`
    bounds, and 64 MiB for the up to 255 x 255 tensors of extras.
    """
    given, coded = _read(payload, rows, limits)
    if coded is not None:
        raise WireError("payload: its scores are coded; only the codec that wrote them reads them")
    return given


def opened(
    payload: bytes, rows: Tensor, columns: int, limits: Limits = USUAL
) -> tuple[Predictions, bytes]:
    """One party's payload with coded scores, of at most so many columns: all else, and the code.

    The scores are zeros that take no memory. Raises `WireError`.
    """
    given, coded = _read(payload, rows, limits)
    j, r, s = given.scores.shape
    if coded is None:
        raise WireError("payload: its scores are not coded; the codecs of both ends are not one")
    if j != 1 or not 0 < s <= columns or given.scores.dtype != torch.float32:
        raise WireError(
            f"payload: one party's float32 scores of up to {columns} columns, found {j} x {r} x {s}"
            f" of {given.scores.dtype}"
        )
    return given, coded


def _read(payload: bytes, rows: Tensor | None, limits: Limits) -> tuple[Predictions, bytes | None]:
    if len(payload) > limits.payload_bytes:
        raise WireError(f"payload: at most {limits.payload_bytes} bytes, found {len(payload)}")
    if len(payload) < HEADER_BYTES:
        raise WireError(f"payload: at least {HEADER_BYTES} bytes, found {len(payload)}")
    magic, version, space, dtype, flags, round_, one, j, r, s, n_extras, rest = _HEADER.unpack_from(
        payload
    )
    if magic != MAGIC:
        raise WireError(f"payload: should begin with {MAGIC!r}, found {magic!r}")
    if version != VERSION:
        raise WireError(f"payload: version {VERSION} is read here, found {version}")
    if space >= len(_SPACES) or dtype >= 4 or flags >= 1 << 6:
        raise WireError(f"payload: unknown space {space}, dtype {dtype} or flags {flags}")
    only(not any(rest), "the header ends with three zeros")
    if max(j, 1) * max(r, 1) * max(s, 1) > limits.values:
        raise WireError(f"payload: at most {limits.values} values, the header says {j} x {r} x {s}")
    dense = 0 if flags & _CODED else j * r * s * DTYPES[dtype].itemsize
    least = -(-j * r // 8) if flags & _MASK else dense
    if HEADER_BYTES + least > len(payload):
        raise WireError(f"payload: {len(payload)} bytes, at least {HEADER_BYTES + least} expected")
    if flags & _CODED and (j != 1 or rows is None or len(rows) != r):
        raise WireError(f"payload: coded scores of one party on the rows asked, found {j} x {r}")
    if s == 0 and j * r > 8 * len(payload):
        raise WireError(f"payload: {j} x {r} answers without a column in {len(payload)} bytes")
    reader = Reader(payload, HEADER_BYTES, limits)
    only(one >= CONSENSUS if j == 1 else one == 0, f"no party is called {one}")
    parties = torch.tensor([one]) if j == 1 else reader.ids((j,), "parties", CONSENSUS)
    only(bool((parties[1:] > parties[:-1]).all()), "parties must ascend")
    asked = torch.full((j,), round_, dtype=torch.int64)
    if flags & _ASKED:
        asked = reader.ids((j,), "asked")
        only(bool((asked != round_).any()), "rounds that are all one are not sent")
    only(
        round_ >= 0 and round_ == (int(asked[0]) if j else 0),
        f"the header's round is the first and 0 or more, found {round_}",
    )
    if flags & _ROWS:
        rows = reader.ids((r, 3), "rows")
    elif rows is None:
        rows = torch.tensor([-1]).expand(r, 3)  # costs nothing, whatever the header says
    elif len(rows) != r:
        raise WireError(f"payload: {len(rows)} rows were asked, found {r}")
    mask = reader.bits((j, r)) if flags & _MASK else torch.ones(j, r, dtype=torch.bool)
    answered = int(mask.count_nonzero())  # a sum would hold eight bytes an entry
    only(not flags & _MASK or answered < j * r, "a mask that is all true is not sent")
    if (j * r - answered) * s > limits.blanks:
        raise WireError(f"payload: at most {limits.blanks} scores are left out, of {j} x {r} x {s}")
    trust = mask.float()
    if flags & _TRUST:
        sent = reader.tensor(torch.float32, (answered,))
        only(not bool((sent == 1).all()), "a trust that is all one is not sent")
        trust.masked_scatter_(mask, sent)
    classes = None
    if flags & _CLASSES:
        width = reader.count()
        if width not in (1, r):
            raise WireError(f"payload: class ids for 1 or {r} rows, found {width}")
        classes = reader.ids((j, width, s), "classes")
    if flags & _CODED:
        scores = torch.zeros((), dtype=DTYPES[dtype]).expand(j, r, s)
    else:
        scores = reader.tensor(DTYPES[dtype], (answered, s))
    if answered < j * r and not flags & _CODED:
        values, scores = scores, torch.zeros(j, r, s, dtype=scores.dtype)
        if s:  # to look for the places costs sixteen bytes an answer
            scores[mask] = values
    named = [reader.named() for _ in range(n_extras)]
    coded = reader.rest() if flags & _CODED else None
    reader.end()
    names = [name for name, _ in named]
    only(names == sorted(set(names)), "names of extras ascend, and none comes twice")
    try:
        given = Predictions(
            scores.view(j, r, s), mask, trust, rows, parties, asked, _SPACES[space], classes,
            dict(named) or None,
        )  # fmt: skip
        return given, coded
    except ValueError as error:
        raise WireError(f"payload: {error}") from None


def pack(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:  # Any: JSON
    """One message: a JSON head and binary parts."""
    text = json.dumps(head, separators=(",", ":")).encode()
    sizes = struct.pack(f"<{len(blobs)}Q", *map(len, blobs))
    return b"".join(
        [BUNDLE, struct.pack("<BII", VERSION, len(text), len(blobs)), text, sizes, *blobs]
    )


def unpack(message: bytes) -> tuple[dict[str, Any], list[bytes]]:  # Any: JSON
    """The head and the parts of a message of `pack`. Raises `WireError`.

    Takes at most 64 bytes a byte of the message.
    """
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
        text = message[start : start + text_bytes].decode("ascii")
        head = json.loads(text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise WireError(f"message: its head is not JSON: {error}") from None
    if not isinstance(head, dict):
        raise WireError(f"message: its head must be an object, found {type(head).__name__}")
    blobs = []
    for size in sizes:
        blobs.append(message[at : at + size])
        at += size
    return head, blobs


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """A JSON object; of a key that comes twice the last would count, unnoticed."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _ids(tensor: Tensor, name: str, least: int = 0) -> bytes:
    if tensor.numel() and not least <= int(tensor.min()) <= int(tensor.max()) < 1 << 31:
        raise ValueError(
            f"payload.{name}: should lie between {least} and 2 ** 31 - 1, found"
            f" {int(tensor.min())} to {int(tensor.max())}; number them anew"
        )
    return _raw(tensor.to(torch.int32))


def _bits(mask: Tensor) -> bytes:
    return np.packbits(mask.cpu().numpy().reshape(-1)).tobytes()


def _named(name: str, tensors: tuple[Tensor, ...]) -> bytes:
    if not is_name(name) or len(tensors) > 255 or any(t.dim() > MOST_DIMENSIONS for t in tensors):
        raise ValueError(
            "payload.extras: a name is 1 to 255 printable ASCII letters and stands for at most 255"
            f" tensors of at most {MOST_DIMENSIONS} dimensions, found {name!r} for {len(tensors)};"
            " rename it or reshape its tensors"
        )
    parts = [struct.pack("<BB", len(name), len(tensors)), name.encode("ascii")]
    for tensor in tensors:
        shape = tuple(tensor.shape)
        parts.append(
            struct.pack(f"<BB{len(shape)}I", DTYPES.index(tensor.dtype), len(shape), *shape)
        )
        parts.append(_bits(tensor) if tensor.dtype == torch.bool else _raw(tensor))
    return b"".join(parts)
