"""What codecs are made of: scores to symbols, symbols that are known left out, symbols to bytes.

A chain has up to three links, in the order of sending: a `Quantiser` turns the scores of a row into
whole numbers, `Delta` leaves out the rows that the receiver has already, a `Coder` writes the
numbers as bytes. Each may be missing: without a quantiser the bits of float32 are the symbols,
without a coder each symbol takes the bits that its alphabet needs. `chained` makes them one
`Codec`.

Around the symbols stands the envelope of `wire` (round, party, mask, trust, classes, extras), so
whatever a method sends beside its scores is sent as ever. Letters: N answered rows, S score
columns, W symbols a row, P public rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from fedkd import wire
from fedkd.cursor import WireError
from fedkd.faults import ConfigError
from fedkd.types import Codec, Predictions, Shape, Space, State

WORD = 1 << 32  # the alphabet of 32 bits as they are
_WHOLE = (8, 16, 32)  # bits that are bytes
_AT_ONCE = 1 << 16  # symbols; a multiple of eight, so that they end with a byte
SPACES: frozenset[Space] = frozenset(get_args(Space))


class Columns(NamedTuple):
    """Some neighbouring symbols of a row, each from 0 to `levels` - 1."""

    width: int
    levels: int


class Quantiser(NamedTuple):
    """Scores [N, S] to `head` symbols a message (32 bits each) and symbols [N, W] of rows.

    `row(S)` says what stands in a row. `encode(scores, rng)` takes finite float32 scores and gives
    the head [H] and the symbols, int64; `decode(head, symbols, S)` gives scores again and raises
    `WireError` for symbols that `encode` never gives. Probabilities are brought to a sum of one
    afterwards, unless the quantiser is `exact`: then nothing at all was lost.
    """

    spaces: frozenset[Space]
    row: Callable[[int], tuple[Columns, ...]]
    encode: Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, Tensor, int], Tensor]
    head: int = 0
    exact: bool = False


class Delta(NamedTuple):
    """A row whose symbols are those that the receiver has already is one bit."""


class Block(NamedTuple):
    """Neighbouring symbols of one alphabet: int64 [n], each from 0 to `levels` - 1."""

    values: Tensor
    levels: int


Take = Callable[[int, int], Tensor]  # (n, levels) -> the next n symbols, int64


class Coder(NamedTuple):
    """Symbols to bytes. `read(coded)` gives a function that takes block after block.

    It raises `WireError` where the bytes do not hold them; that they hold nothing else is seen to
    by writing them again. `most` maps the bytes of plain packing to those of this coder, exactly
    where it is `fixed` and at most otherwise.
    """

    write: Callable[[Sequence[Block]], bytes]
    read: Callable[[bytes], Take]
    most: Callable[[int], int]
    fixed: bool = False


class Chain(NamedTuple):
    """A codec and its formula: `length(rows, columns)` bytes of scores, at most if not `fixed`.

    `spaces` are those that it takes; `remembers` says whether it keeps what was last told.
    """

    codec: Codec
    length: Callable[[int, int], int]
    fixed: bool
    spaces: frozenset[Space]
    remembers: bool


Link = Quantiser | Delta | Coder


def bits_of(levels: int) -> int:
    """ceil(log2 levels)."""
    return (levels - 1).bit_length()


def pack(blocks: Sequence[Block]) -> bytes:
    """ceil(log2 levels) bits a symbol, lowest bit first; each block begins with a new byte."""
    return b"".join(
        _bytes(values[start : start + _AT_ONCE].numpy(), bits_of(levels))
        for values, levels in blocks
        for start in range(0, len(values), _AT_ONCE)
    )


def unpack(coded: bytes) -> Take:
    """The inverse of `pack`."""
    at = 0

    def take(count: int, levels: int) -> Tensor:
        nonlocal at
        width = bits_of(levels)
        end = at + -(-count * width // 8)
        if end > len(coded):
            raise WireError(f"payload: {end} bytes of symbols expected, found {len(coded)}")
        raw = np.frombuffer(coded, np.uint8, end - at, at)
        values, step = np.empty(count, np.int64), _AT_ONCE * width // 8
        for i, start in enumerate(range(0, count, _AT_ONCE)):
            part = values[start : start + _AT_ONCE]
            part[:] = _symbols(raw[i * step : (i + 1) * step], width, len(part))
        at = end
        return torch.from_numpy(values)

    return take


def _bytes(values: np.ndarray, width: int) -> bytes:
    if width in _WHOLE:
        return values.astype(f"<u{width // 8}").tobytes()
    bits = (values[:, None] >> np.arange(width) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _symbols(raw: np.ndarray, width: int, count: int) -> np.ndarray:
    if width in _WHOLE:
        return raw.view(f"<u{width // 8}")
    bits = np.unpackbits(raw, count=count * width, bitorder="little").reshape(count, width)
    return bits.astype(np.int64) @ (1 << np.arange(width))


packed = Coder(pack, unpack, lambda size: size, fixed=True)


def _as_words(scores: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, dtype=torch.int64), words_of(scores)


def words_of(floats: Tensor) -> Tensor:
    """The bits of float32 numbers as whole numbers, int64."""
    return floats.float().contiguous().view(torch.int32).long() & (WORD - 1)


def floats_of(words: Tensor) -> Tensor:
    """The inverse of `words_of`. Raises `WireError` for what is no finite number."""
    floats = words.to(torch.int32).view(torch.float32)
    if not bool(torch.isfinite(floats).all()):
        raise WireError("payload: its numbers should be finite")
    return floats


float32 = Quantiser(
    SPACES,
    lambda columns: (Columns(columns, WORD),),
    _as_words,
    lambda head, symbols, columns: floats_of(symbols),
    exact=True,
)


def chained(links: Sequence[Link], classes: int, where: str) -> Chain:
    """One codec of several links, for scores of at most `classes` columns.

    Raises `ConfigError`, which begins with `where`, for links that do not follow each other.
    """
    order = {Quantiser: 0, Delta: 1, Coder: 2}
    names = ("a quantiser", "delta", "a coder")
    kinds = [order[type(link)] for link in links]
    if sorted(set(kinds)) != kinds:
        raise ConfigError(
            f"{where}: should be a quantiser, then delta, then a coder, each at most once, found"
            f" {', then '.join(names[k] for k in kinds)}; leave out or reorder them"
        )
    quantiser = next((link for link in links if isinstance(link, Quantiser)), float32)
    coder = next((link for link in links if isinstance(link, Coder)), packed)
    delta = any(isinstance(link, Delta) for link in links)
    if delta and quantiser.head:
        raise ConfigError(
            f"{where}: delta should follow a quantiser whose rows mean the same in every round,"
            " found one with a range for the whole message; give it `scale: row`, or leave delta"
            " out"
        )

    def length(rows: int, columns: int) -> int:
        size = 4 * quantiser.head * bool(rows) + -(-rows // 8) * delta
        for width, levels in quantiser.row(columns):
            size += -(-rows * width * bits_of(levels) // 8)
        return coder.most(size) if size else 0

    ends = _Ends(quantiser, delta, coder, classes, where)
    codec = Codec(ends.init, ends.encode, ends.decode)
    return Chain(codec, length, coder.fixed and not delta, quantiser.spaces, delta)


class _Ends(NamedTuple):
    """The two ends of a chain. With delta the state is what was last told of each public row:

    `symbols` [P, W], 32 bits each, and `known` [P]. Both ends change it alike.
    """

    quantiser: Quantiser
    delta: bool
    coder: Coder
    classes: int
    where: str

    def init(self, shape: Shape) -> State:
        if not self.delta:
            return {}
        width = sum(c.width for c in self.quantiser.row(shape.classes))
        return {
            "symbols": torch.zeros(shape.rows, width, dtype=torch.int32),
            "known": torch.zeros(shape.rows, dtype=torch.bool),
        }

    def encode(self, state: State, given: Predictions, rng: Generator) -> tuple[State, bytes]:
        if given.space not in self.quantiser.spaces:
            raise ConfigError(
                f"{self.where}: its quantiser is for {' and '.join(sorted(self.quantiser.spaces))},"
                f" found {given.space}; choose another one, such as fp16"
            )
        if len(given.parties) != 1:
            raise ValueError(f"{self.where}: one party a message, found {len(given.parties)}")
        scores = given.scores[given.mask].detach().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(f"{self.where}: scores should be finite where the mask is true")
        if scores.dtype != torch.float32:
            raise ValueError(f"{self.where}: float32 scores expected, found {scores.dtype}")
        self._told(given)
        columns = scores.shape[1]
        head, symbols = self.quantiser.encode(scores, rng)
        blocks = [Block(head, WORD)] if len(scores) and self.quantiser.head else []
        if self.delta:
            at = given.rows[given.mask[0], 1]
            changed = ~self._held(state, at, symbols)
            state = self._moved(state, at, symbols)
            symbols = symbols[changed]
            blocks.append(Block(changed.long(), 2))
        start = 0
        for width, levels in self.quantiser.row(columns):
            blocks.append(Block(symbols[:, start : start + width].reshape(-1), levels))
            start += width
        return state, wire.encode(given, coded=self.coder.write(blocks))

    def decode(
        self, state: State, payload: bytes, rows: Tensor, rng: Generator
    ) -> tuple[State, Predictions]:
        given, coded = wire.opened(payload, rows, self.classes)
        if given.space not in self.quantiser.spaces:
            raise WireError(f"payload: {given.space} are not what {self.where} writes")
        self._told(given)
        take, taken = self.coder.read(coded), list[Block]()

        def following(count: int, levels: int) -> Tensor:
            values = take(count, levels)
            if bool(((values < 0) | (values >= levels)).any()):
                raise WireError(f"payload: symbols are from 0 to {levels - 1}, found others")
            taken.append(Block(values, levels))
            return values

        count, columns = int(given.mask.count_nonzero()), given.scores.shape[2]
        nothing = torch.zeros(0, dtype=torch.int64)
        head = following(self.quantiser.head, WORD) if count and self.quantiser.head else nothing
        changed = torch.ones(count, dtype=torch.bool)
        if self.delta:
            changed = following(count, 2).bool()
        sent = int(changed.count_nonzero())
        symbols = torch.cat(
            [
                following(sent * width, levels).view(sent, width)
                for width, levels in self.quantiser.row(columns)
            ],
            1,
        )
        if self.coder.write(taken) != coded:
            raise WireError("payload: its symbols have one spelling, found another")
        if self.delta:
            state, symbols = self._kept(state, given.rows[given.mask[0], 1], changed, symbols)
        values = self.quantiser.decode(head, symbols, columns)
        if not self.quantiser.exact:
            values = _on_the_simplex(values.double(), given.space)
        scores = torch.zeros(given.scores.shape)
        scores[given.mask] = values.float()
        return state, replace(given, scores=scores)

    def _told(self, given: Predictions) -> None:
        """Hold the columns to the classes; what is remembered of a row is about all of them."""
        columns = given.scores.shape[2]
        if given.classes is None and columns != self.classes:
            raise WireError(f"payload: {self.classes} columns expected, found {columns}")
        if self.delta and given.classes is not None:
            raise WireError(f"{self.where}: delta is for answers about all classes in order")

    def _held(self, state: State, at: Tensor, symbols: Tensor) -> Tensor:
        same = (state["symbols"][at] == symbols.to(torch.int32)).all(1)
        return state["known"][at] & same

    def _moved(self, state: State, at: Tensor, symbols: Tensor) -> State:
        known, last = state["known"].clone(), state["symbols"].clone()
        known[at], last[at] = True, symbols.to(torch.int32)
        return {"symbols": last, "known": known}

    def _kept(
        self, state: State, at: Tensor, changed: Tensor, sent: Tensor
    ) -> tuple[State, Tensor]:
        """The symbols of all answered rows, those that were not sent from the state."""
        if not bool(state["known"][at[~changed]].all()):
            raise WireError("payload: a row is said to be as before and was never told")
        if bool(self._held(state, at[changed], sent).any()):
            raise WireError("payload: a row is said to have changed and is as before")
        symbols = state["symbols"][at].long() & (WORD - 1)
        symbols[changed] = sent
        return self._moved(state, at, symbols), symbols


def _on_the_simplex(values: Tensor, space: Space) -> Tensor:
    """Probabilities with a sum of one again; a row of which nothing is left is uniform."""
    if space == "log_probs":
        return values.log_softmax(-1)
    if space != "probs":
        return values
    values = values.clamp_min(0)
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values / total, 1 / values.shape[1])
