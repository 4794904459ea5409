"""Samples from elsewhere in the form of the private ones: resized, recoloured, or made up."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedkd.samples import Samples, Source, some

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it
_MOST_NOISE = 1 << 28  # values in memory at once
_AT_ONCE = 1024  # samples that are resized in one pass


def fitted(other: Source, rows: Indices, source: Source, where: str) -> Samples:
    """Training samples of another data set in the form of this one's.

    Pictures are resized bilinearly (their proportions go), and become grey by their luminance or
    coloured by three equal channels; bytes and floats in [0, 1] are one scale. Features must be the
    same. Raises ValueError for what cannot be brought into that form.
    """
    x, like = other.x_train[rows], source.x_train
    if (
        x.shape[1:] == like.shape[1:]
        and x.dtype == like.dtype
        and other.features == source.features
    ):
        return x
    if x.ndim == 2 or like.ndim == 2:
        _same_features(other, source, where)
    if _unit(other.x_train) != _unit(like):
        raise ValueError(
            f"{where}.source: values should be on the scale of data.source (bytes, or floats in "
            f"[0, 1]), found {other.x_train.dtype} up to {other.x_train.max():g} beside "
            f"{like.dtype} up to {like.max():g}; bring both to one scale"
        )
    made = np.empty((len(x), *like.shape[1:]), like.dtype)
    for start in range(0, len(x), _AT_ONCE):
        made[start : start + _AT_ONCE] = _resized(x[start : start + _AT_ONCE], like, where)
    return made


def noise(source: Source, kind: str, size: int, rng: np.random.Generator, where: str) -> Samples:
    """Samples without content, with the mean and the spread that the source declares.

    `uniform` and `gaussian` draw every value by itself; `pink` has the spectrum 1/f of natural
    pictures and random phases (after M. Baradad et al., NeurIPS 2021,
    https://arxiv.org/abs/2106.05963).
    """
    like = source.x_train
    shape = (size, *like.shape[1:])
    if math.prod(shape) > _MOST_NOISE:
        raise ValueError(
            f"{where}.size: noise should hold at most {_MOST_NOISE:,} values, found {size:,} "
            f"samples of {list(like.shape[1:])}; lower it"
        )
    if kind == "uniform":
        if like.dtype == np.uint8:
            return rng.integers(256, size=shape, dtype=np.uint8)
        z = rng.uniform(-(3**0.5), 3**0.5, shape)
    elif kind == "gaussian":
        z = rng.standard_normal(shape)
    elif like.ndim == 4:
        z = _pink(rng.standard_normal(shape))
    else:
        raise ValueError(
            f"{where}.noise: pink should be for pictures, found features {list(like.shape[1:])}; "
            "use gaussian or uniform"
        )
    per_channel = (-1, *(1,) * (like.ndim - 2))
    mean, std = (np.array(v).reshape(per_channel) for v in (source.mean, source.std))
    x: npt.NDArray[np.float64] = z * std + mean
    if like.dtype == np.uint8:
        return (x * 255).round().clip(0, 255).astype(np.uint8)
    return x.astype(np.float32)


def shared(source: Source, other: Source) -> Flags:
    """Which training samples of the other data set are, bit for bit, in the source too, [N]."""
    x = other.x_train
    if x.dtype != source.x_train.dtype or x.shape[1:] != source.x_train.shape[1:]:
        return np.zeros(len(x), np.bool_)
    width = x[0].nbytes
    # a random linear form over 64-bit integers: two different samples agree once in 2^56
    weights = np.random.default_rng(0).integers(2**63, size=width, dtype=np.uint64) * 2 + 1
    tests = () if source.x_test is None else (source.x_test,)
    seen = np.concatenate([_prints(part, weights) for part in (source.x_train, *tests)])
    return np.isin(_prints(x, weights), seen)


def _same_features(other: Source, source: Source, where: str) -> None:
    shapes = other.x_train.shape[1:], source.x_train.shape[1:]
    strange = sorted(set(other.features) ^ set(source.features))
    if shapes[0] != shapes[1] or other.features != source.features:
        found = f" ({some(strange, 6)} in one of them)" if strange else ""
        raise ValueError(
            f"{where}.source: samples should have the features of data.source in their order, "
            f"found {list(shapes[0])} beside {list(shapes[1])}{found}; choose columns and encoding "
            "of both alike"
        )


def _unit(x: Samples) -> bool:
    return x.dtype == np.uint8 or bool(x.min() >= 0 and x.max() <= 1)


def _resized(x: Samples, like: Samples, where: str) -> Samples:
    values = torch.from_numpy(np.array(x)).to(torch.float32)
    if x.ndim == 4:
        values = _channels(values, like.shape[1], where)
        if values.shape[2:] != like.shape[2:]:
            values = F.interpolate(values, like.shape[2:], mode="bilinear", antialias=True)
    values = values / 255 if x.dtype == np.uint8 else values
    if like.dtype == np.uint8:
        return np.asarray(values.mul(255).round_().clamp_(0, 255), dtype=np.uint8)
    return np.asarray(values, dtype=np.float32)


def _channels(x: torch.Tensor, wanted: int, where: str) -> torch.Tensor:
    if x.shape[1] == wanted:
        return x
    if x.shape[1] == 3 and wanted == 1:
        return (x * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if x.shape[1] == 1:
        return x.expand(-1, wanted, -1, -1)
    raise ValueError(
        f"{where}.source: pictures of {x.shape[1]} channels cannot become pictures of {wanted}; "
        "convert them in a factory of your own"
    )


def _pink(white: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """White noise [N, C, H, W] with amplitudes divided by the frequency; mean 0, deviation 1."""
    height, width = white.shape[2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    x = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(height, width))
    spread = x.std((2, 3), keepdims=True)
    return np.asarray(x / np.where(spread > 0, spread, 1.0))


def _prints(x: Samples, weights: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    found = []
    for start in range(0, len(x), _AT_ONCE):
        raw = np.ascontiguousarray(x[start : start + _AT_ONCE]).view(np.uint8)
        found.append(raw.reshape(-1, len(weights)).astype(np.uint64) @ weights)
    return np.concatenate(found)
