"""Quantisers: scores to whole numbers of few bits."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedkd.coding import SPACES, WORD, Columns, Quantiser, floats_of, words_of
from fedkd.cursor import WireError
from fedkd.types import Count

Bits = Annotated[int, Field(ge=1, le=16)]
ManyBits = Annotated[int, Field(ge=1, le=32)]
Rounding = Literal["nearest", "stochastic"]

_NOTHING = torch.zeros(0, dtype=torch.int64)
_OFF = 1e-4  # how far from one a sum of probabilities may be, as everywhere


def fp16() -> Quantiser:
    """Half precision: 16 bits a score, 11 of them significant; beyond ±65504 it saturates."""
    return _narrow(torch.float16)


def bf16() -> Quantiser:
    """The upper half of float32: 16 bits a score, 8 of them significant, in the same range."""
    return _narrow(torch.bfloat16)


def _narrow(dtype: torch.dtype) -> Quantiser:
    most = torch.finfo(dtype).max

    def encode(scores: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        narrow = scores.clamp(-most, most).to(dtype).contiguous()
        return _NOTHING, narrow.view(torch.int16).long() & 0xFFFF

    def decode(head: Tensor, symbols: Tensor, columns: int) -> Tensor:
        scores = symbols.to(torch.int16).view(dtype).float()
        if not bool(torch.isfinite(scores).all()):
            raise WireError("payload: scores are finite, found others")
        return scores

    return Quantiser(SPACES, lambda columns: (Columns(columns, 1 << 16),), encode, decode)


def uniform(
    bits: Bits = 8,
    rounding: Rounding = "nearest",
    scale: Literal["message", "row"] = "message",
) -> Quantiser:
    """Equal steps between the least and the largest score, 2^bits levels.

    Both ends of the range are sent, 8 bytes a message or a row. The error is half a step at most;
    with stochastic rounding a step, and none on average.
    """
    levels, whole = 1 << bits, scale == "message"

    def encode(scores: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        ends = torch.zeros(0, 2) if whole else torch.zeros(len(scores), 2)
        if scores.numel():
            flat = scores.reshape(1, -1) if whole else scores
            ends = torch.stack([flat.amin(1), flat.amax(1)], 1)
        low, step = _steps(ends, levels)
        place = torch.where(step > 0, (scores.double() - low) / step, 0)
        shift = 0.5 if rounding == "nearest" else torch.rand(place.shape, generator=rng).double()
        symbols = (place + shift).floor().long().clamp(0, levels - 1)
        words = words_of(ends)
        return (words.reshape(-1), symbols) if whole else (_NOTHING, torch.cat([words, symbols], 1))

    def decode(head: Tensor, symbols: Tensor, columns: int) -> Tensor:
        words, symbols = (head.view(-1, 2), symbols) if whole else symbols.split([2, columns], 1)
        ends = floats_of(words)
        low, step = _steps(ends, levels)
        if bool((step < 0).any()) or bool(((step == 0) & (symbols > 0)).any()):
            raise WireError("payload: a range goes upwards, and one of no width has one level")
        return low + symbols * step

    def row(columns: int) -> tuple[Columns, ...]:
        ends = () if whole else (Columns(2, WORD),)
        return (*ends, Columns(columns, levels))

    return Quantiser(SPACES, row, encode, decode, head=2 if whole else 0)


def _steps(ends: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The lowest level and the width of a step, [rows or 1, 1] in float64; of no rows, zeros."""
    low, high = (ends if len(ends) else torch.zeros(1, 2)).double().split(1, 1)
    return low, (high - low) / (levels - 1)


def simplex(
    bits: ManyBits = 1,
    rounding: Rounding = "nearest",
    ties: Literal["lowest", "random"] = "lowest",
) -> Quantiser:
    """argmin ||q - p||_1 over q in {0, 1/M, ..., 1}^C with sum 1, M = 2^bits - 1 (Sattler 2022).

    F. Sattler, A. Marban, R. Rischke, W. Samek, "Communication-efficient federated distillation via
    soft-label quantization and delta coding", IEEE TNSE 9(4), 2022, equations 10 and 11,
    https://arxiv.org/abs/2012.00632. The minimum is the rule of the largest remainder, in whole
    numbers throughout: p M is rounded down, and what is missing to M goes one each to the largest
    remainders. Of equal ones the lowest class is first or, with `ties: random`, any, as in the
    paper.

    With one bit q is the argmax as a one-hot vector, and its class alone is sent, ceil(log2 C)
    bits; otherwise (C - 1) x bits, for the last entry follows from the sum. Stochastic rounding
    gives a class its missing one with a probability that is its remainder (systematic sampling), so
    that q is p on average and sums to one nevertheless.
    """
    most = (1 << bits) - 1

    def encode(scores: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        grid = _grid(scores.double(), bits, rounding, ties, rng)
        return _NOTHING, grid.argmax(1, keepdim=True) if bits == 1 else grid[:, :-1]

    def decode(head: Tensor, symbols: Tensor, columns: int) -> Tensor:
        if bits == 1:
            return torch.nn.functional.one_hot(symbols[:, 0], columns)
        return _whole(symbols, most).double() / most

    def row(columns: int) -> tuple[Columns, ...]:
        return (Columns(1, columns) if bits == 1 else Columns(columns - 1, most + 1),)

    return Quantiser(frozenset({"probs"}), row, encode, decode)


def topk(
    k: Count, bits: ManyBits = 16, completion: Literal["renormalise", "uniform"] = "renormalise"
) -> Quantiser:
    """The k largest probabilities: k ceil(log2 C) bits of classes, ascending, and their values.

    The values are quantised as by `simplex`. `renormalise` takes them for all there is, and sends
    k - 1 of them. `uniform` sends k; the rest of the mass is spread evenly over the other classes,
    and the loss `kl_top` of the same k learns that rest as one outcome, whatever stands in it. Of
    equal probabilities the lower class is kept.
    """

    def entries(columns: int) -> tuple[int, bool]:
        """How many classes are kept, and whether the rest counts as one more entry."""
        return min(k, columns), completion == "uniform" and k < columns

    def encode(scores: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        kept, rest = entries(scores.shape[1])
        order = scores.sort(dim=1, descending=True, stable=True).indices
        ids = order[:, :kept].sort(1).values
        values = scores.double().gather(1, ids)
        if rest:
            others = scores.double().gather(1, order[:, kept:]).sum(1, keepdim=True)
            values = torch.cat([values, others], 1)
        else:
            _sound(scores.double())
            values = values / values.sum(1, keepdim=True)
        grid = _grid(values, bits, "nearest", "lowest", rng)
        return _NOTHING, torch.cat([ids, grid[:, :-1]], 1)

    def decode(head: Tensor, symbols: Tensor, columns: int) -> Tensor:
        kept, rest = entries(columns)
        ids, values = symbols.split([kept, kept - 1 + rest], 1)
        if bool((ids[:, 1:] <= ids[:, :-1]).any()):
            raise WireError("payload: the classes of a row ascend, found others")
        shares = _whole(values, (1 << bits) - 1).double() / ((1 << bits) - 1)
        others = shares[:, kept:] / (columns - kept) if rest else torch.zeros(len(ids), 1).double()
        return others.repeat(1, columns).scatter(1, ids, shares[:, :kept])

    def row(columns: int) -> tuple[Columns, ...]:
        kept, rest = entries(columns)
        return (Columns(kept, columns), Columns(kept - 1 + rest, 1 << bits))

    return Quantiser(frozenset({"probs"}), row, encode, decode)


def _sound(values: Tensor) -> None:
    off = float((values.sum(1) - 1).abs().max()) if len(values) else 0.0
    if off > _OFF or bool((values < 0).any()):
        raise ValueError(
            f"scores: probabilities should be >= 0 and sum to 1 within {_OFF}, off by {off:.2g}"
        )


def _grid(values: Tensor, bits: int, rounding: str, ties: str, rng: Generator) -> Tensor:
    """Probabilities [N, S] in float64 to whole numbers with sum 2^bits - 1, int64."""
    _sound(values)
    most = (1 << bits) - 1
    # as whole numbers; times `most` they must stay below 2^63
    scaled = (values * 2.0 ** min(40, 62 - bits)).round().long()
    total = scaled.sum(1, keepdim=True)
    grid, remainder = scaled * most // total, scaled * most % total
    if rounding == "stochastic":
        start = (torch.rand(total.shape, generator=rng, dtype=torch.float64) * total).long()
        reached = (remainder.cumsum(1) + start) // total
        return grid + reached.diff(dim=1, prepend=torch.zeros_like(start))
    shuffled = torch.arange(values.shape[1]).expand_as(grid)
    if ties == "random":
        shuffled = torch.rand(values.shape, generator=rng).argsort(1)
    descending = remainder.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    missing = most - grid.sum(1, keepdim=True)
    first = (torch.arange(values.shape[1]) < missing).long()
    return grid.scatter_add(1, shuffled.gather(1, descending), first)


def _whole(symbols: Tensor, most: int) -> Tensor:
    """The entries of a row with the last one, which was not sent."""
    last = most - symbols.sum(1, keepdim=True)
    if bool((last < 0).any()):
        raise WireError(f"payload: the entries of a row sum to {most} at most, found more")
    return torch.cat([symbols, last], 1)
