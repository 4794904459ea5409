"""Samples split into test, validation, public set and private partitions, on disk and in hand.

`split` decides who holds what, `write` keeps it as plain .npy files that every worker maps into
memory, `load` opens them. Indices address the pooled samples: the source's training part, its test
part, then what public sets brought from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd import config, publics
from fedkd.faults import did_you_mean, shown
from fedkd.publics import Flags, Indices, Origin, PublicRows
from fedkd.rng import SERVER, SETUP, number
from fedkd.samples import Source, some

Partition = Callable[[Indices, int, int], Sequence[Indices]]

_FORMAT = 3
_ARRAYS = {
    "x": "x",
    "y": "y",
    "truth": "truth",
    "test": "splits/test",
    "validation": "splits/validation",
    "public": "splits/public",
    "sets": "splits/sets",
    "rows": "splits/private",
    "offsets": "splits/offsets",
}


@dataclass(frozen=True, eq=False)
class Splits:
    """Who holds what: index arrays into the source's samples, no sample in two of them."""

    test: Indices
    validation: Indices
    public: tuple[Indices, ...]  # by public set; empty for one that is not held back from here
    private: tuple[Indices, ...]  # by client


def split(
    source: Source, partition: Partition, data: config.Data, clients: int, seed: int
) -> Splits:
    """Cut the training part into test (if the source has none), validation, public and private.

    One permutation is cut in that order, so that a larger public set moves neither test nor
    validation, and no other partition moves any of them. `data.test` takes so many of the source's
    own test set at random, `auto` all; without one it takes them from the training part. A public
    set takes the first samples of no class that it leaves out. `data.private` takes so many of what
    is left, `auto` all, and the partition sees their labels, or the column that it goes by. Raises
    ValueError where the numbers do not fit or the partition does not keep its contract.
    """
    total = len(source.y_train)
    tested = _test_size(source, data.test)
    own = [p for p in data.publics if p.source is None and p.noise is None]
    places = [publics.place(i, len(data.publics)) for i in range(len(data.publics))]
    sizes = {
        "data.test": tested if source.y_test is None else 0,
        "data.validation": data.validation,
        **{
            f"{where}.size": p.size if p in own else 0
            for where, p in zip(places, data.publics, strict=True)
        },
    }
    allowed = {
        f"{where}.size": publics.admitted(p, source, where)
        for where, p in zip(places, data.publics, strict=True)
        if p in own and p.without
    }
    rest = max(clients, total - sum(sizes.values()))  # everybody needs a sample
    sizes["data.private"] = rest if data.private == "auto" else data.private
    order = _generator(seed, "cut").permutation(total)
    test, validation, *public, private = _cut(order, sizes, allowed)
    if source.y_test is not None:
        official = _generator(seed, "test").permutation(len(source.y_test))
        test = total + official[:tested]
    values = _values(source, data.partition.by)[private]
    parts = partition(values, clients, number(seed, SETUP, SERVER, "data/partition"))
    _check_partition(parts, clients, len(private))
    # sorted, because rows are then read from the disk in one direction
    return Splits(
        np.sort(test),
        np.sort(validation),
        tuple(np.sort(rows) for rows in public),
        tuple(np.sort(private[part]) for part in parts),
    )


def write(source: Source, splits: Splits, public: PublicRows, folder: Path) -> None:
    """Keep the pooled samples, their labels and the splits under `folder`, which must not exist.

    The labels of public rows are -1 in y.npy unless the experiment tells them; the true ones stand
    in truth.npy, for evaluation only. Everything is written beside `folder` and renamed at the end.
    Raises ValueError where the folder exists or cannot be written.
    """
    if folder.exists():
        raise ValueError(f"data: {folder} should not exist yet; choose another folder or remove it")
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        (draft / "splits").mkdir(parents=True)
        _write_arrays(source, splits, public, draft)
        draft.rename(folder)
    except OSError as error:
        raise ValueError(
            f"data: {folder} should be writable, found: {error}; choose another folder or make room"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(folder: Path) -> DataSet:
    """Map what `write` has written: samples are read when they are used, nothing is unpickled.

    Raises ValueError where the folder is incomplete, damaged or of another format.
    """
    try:
        facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        if facts.pop("format") != _FORMAT:
            raise ValueError(f"a format other than {_FORMAT}")
        arrays: dict[str, Any] = {  # Any: x is uint8 or float32
            name: np.load(folder / f"{path}.npy", mmap_mode="r", allow_pickle=False)
            for name, path in _ARRAYS.items()
        }
        facts.pop("sha256")
        if facts.pop("shape") != list(arrays["x"].shape):
            raise ValueError(f"x.npy of shape {arrays['x'].shape}")
        facts |= {key: tuple(facts[key]) for key in ("class_names", "mean", "std")}
        facts["origins"] = tuple(Origin(**origin) for origin in facts["origins"])
        return DataSet(**arrays, **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"data: {folder} should hold a complete data set as written by this version, found: "
            f"{type(error).__name__}: {error}; remove the folder and run again"
        ) from None


def damage(folder: Path, told: str | None = None) -> str | None:
    """What of a data set is not as `write` left it; None where all is.

    `told` is what `digest` gave once, if that is known.
    """
    try:
        if told not in (None, digest(folder)):
            return f"{folder.name}: data.json changed since it was written"
        sums = json.loads((folder / "data.json").read_text(encoding="utf-8"))["sha256"]
        changed = [p for p in _ARRAYS.values() if _sha256(folder / f"{p}.npy") != sums[p]]
        if not changed:
            load(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{folder.name}: {error}"
    return f"{folder.name}: {', '.join(changed)} changed since it was written" if changed else None


def digest(folder: Path) -> str:
    """A checksum of all of a data set, by those of its arrays in data.json."""
    return _sha256(folder / "data.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, eq=False)
class DataSet:
    """The pooled samples and who holds what; read-only, mapped from the disk.

    `x` [N, ...] uint8 or float32 as in the source, then what public sets brought; `y` [N], -1 at
    public rows whose label is hidden or unknown; `truth` [public] their true labels, for evaluation
    only, -1 where unknown; `sets` [public] the number of the public set; `test`, `validation`,
    `public` index arrays; `rows` and `offsets` [K + 1] the private partitions, end to end (see
    `private`). A source's labels are its own: those of another data set count as unknown unless it
    has the same classes.
    """

    x: npt.NDArray[Any]  # Any: uint8 or float32
    y: Indices
    truth: Indices
    test: Indices
    validation: Indices
    public: Indices
    sets: Indices
    rows: Indices
    offsets: Indices
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: str
    licence: str
    origins: tuple[Origin, ...]

    def __post_init__(self) -> None:
        parts = (self.test, self.validation, self.public, self.rows)
        if (
            len(self.x) != len(self.y)
            or not len(self.truth) == len(self.sets) == len(self.public)
            or [o.size for o in self.origins] != np.bincount(self.sets).tolist()
        ):
            raise ValueError(
                f"{len(self.x)} samples with {len(self.y)} labels, {len(self.public)} public rows "
                f"with {len(self.truth)} true labels in sets of {[o.size for o in self.origins]}"
            )
        if any(len(part) and not 0 <= part.min() <= part.max() < len(self.x) for part in parts):
            raise ValueError(f"a split that points outside of the {len(self.x)} samples")
        if (
            self.offsets[-1] != len(self.rows)
            or self.offsets[0]
            or (np.diff(self.offsets) < 1).any()
        ):
            raise ValueError("offsets that do not cut the private rows into clients")

    @property
    def clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    @cached_property
    def told(self) -> int:
        """How many public rows have a label that the parties may know."""
        return int((self.y[self.public] >= 0).sum())

    @cached_property
    def histogram(self) -> Indices:
        """How many samples of each class every client holds, [K, classes]."""
        client = np.repeat(np.arange(self.clients), np.diff(self.offsets))
        cell = client * self.classes + self.y[self.rows]
        counts = np.bincount(cell, minlength=self.clients * self.classes)
        return counts.reshape(self.clients, self.classes)

    def private(self, client: int) -> Indices:
        """The rows of one client, ascending."""
        if not 0 <= client < self.clients:
            raise ValueError(f"data: client should be in 0..{self.clients - 1}, found {client}")
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def batch(self, indices: Indices) -> Tensor:
        """A normalised copy of these samples, float32 [B, ...]."""
        x = torch.from_numpy(np.asarray(self.x).take(indices, axis=0)).to(torch.float32)
        if self.x.dtype == np.uint8:
            x.div_(255)
        per_channel = (-1, *(1,) * (len(self.shape) - 1))
        mean, std = (torch.tensor(v).view(per_channel) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    def labels(self, indices: Indices) -> Tensor:
        """Their labels, int64 [B]; -1 where nobody may know them."""
        return torch.from_numpy(np.asarray(self.y).take(indices))


def own_weights(dataset: DataSet, client: int) -> Tensor:
    """Weights of the global test rows under the client's own label distribution, float64 [test].

    w_r = p(y_r) / n(y_r), with p the client's private label shares and n the test rows of a class.
    The weighted accuracy is what a test split drawn from the client's label distribution tends to
    as it grows: the expectation over such draws, without their noise and without taking samples
    away from the client. Classes without test rows are left out and the rest is scaled to sum 1;
    where no class of the client is left, ValueError.
    """
    y = dataset.y[dataset.test]
    present = np.bincount(y, minlength=dataset.classes)
    share = dataset.histogram[client] * (present > 0)
    if not share.sum():
        raise ValueError(
            f"data.test: should hold a sample of some class of client {client}, found none of "
            f"{np.flatnonzero(dataset.histogram[client]).tolist()}; raise data.test"
        )
    return torch.from_numpy((share / share.sum() / np.maximum(present, 1))[y])


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(number(seed, SETUP, SERVER, f"data/{purpose}"))


def _test_size(source: Source, wanted: int | config.Auto) -> int:
    if source.y_test is None:
        if wanted == "auto":
            raise ValueError(
                "data.test: should be a number where the source has no test set of its own, found "
                f"auto; set it, as in data.test={max(1, len(source.y_train) // 5)}"
            )
        return wanted
    available = len(source.y_test)
    if wanted == "auto":
        return available
    if wanted > available:
        raise ValueError(
            f"data.test: should be at most {available}, the size of the source's own test set, "
            f"found {wanted}; lower it"
        )
    return wanted


def _values(source: Source, by: str | None) -> npt.NDArray[Any]:  # Any: whole numbers or floats
    """What a partition goes by, for every training sample; words as numbers, in their order."""
    if by is None:
        return source.y_train
    if by not in source.columns:
        near = did_you_mean(by, source.columns)
        raise ValueError(
            f"data.partition.by: should name a column of the source, found {shown(by)}{near}; "
            f"there are {some(list(source.columns), 100) or 'none'}"
        )
    values = source.columns[by]
    if values.dtype.kind == "U":
        return np.unique(values, return_inverse=True)[1].reshape(-1)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _cut(order: Indices, sizes: dict[str, int], allowed: dict[str, Flags]) -> list[Indices]:
    """Consecutive slices of `order`; `sizes` is keyed by the parameters that ask for them.

    `allowed` says by sample what a parameter may take; what it may not stays for the next.
    """
    pieces: list[Indices] = []
    left = order
    for name, size in sizes.items():
        may = allowed[name][left] if name in allowed else np.ones(len(left), np.bool_)
        if size > may.sum():
            taken = ", ".join(
                f"{n} {k}" for n, k in zip(sizes, map(len, pieces), strict=False) if k
            )
            classes = " of the classes not left out" if name in allowed else ""
            raise ValueError(
                f"{name}: should be at most {may.sum()}, the rest of {len(order)} training samples"
                f"{classes} after {taken or 'nothing'}, found {size}; lower it or one of the others"
            )
        chosen = np.flatnonzero(may)[:size]
        pieces.append(left[chosen])
        left = np.delete(left, chosen)
    return pieces


def _check_partition(parts: Sequence[Indices], clients: int, samples: int) -> None:
    """Hold a partition, which may be the user's own, to its contract."""
    found = None
    if len(parts) != clients:
        found = f"{len(parts)} arrays"
    elif any(part.ndim != 1 or part.dtype.kind not in "iu" for part in parts):
        found = "an array that is not a list of integers"
    elif empty := [client for client, part in enumerate(parts) if not len(part)]:
        found = f"no sample for client {empty[0]} ({len(empty)} empty clients)"
    else:
        rows = np.concatenate(parts)
        if rows.min() < 0 or rows.max() >= samples:
            found = f"indices {rows.min()}..{rows.max()}"
        elif len(np.unique(rows)) < len(rows):
            found = f"{len(rows) - len(np.unique(rows))} samples given out twice"
    if found:
        raise ValueError(
            f"data.partition: should give {clients} disjoint, non-empty arrays of indices in "
            f"0..{samples - 1}, found {found}; lower the number of clients or correct the partition"
        )


def _write_arrays(source: Source, splits: Splits, public: PublicRows, folder: Path) -> None:
    tests = () if source.x_test is None else (source.x_test,)
    samples = (source.x_train, *tests, *public.brought)
    shape = (sum(map(len, samples)), *source.x_train.shape[1:])
    descr = np.lib.format.dtype_to_descr(source.x_train.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    with (folder / "x.npy").open("wb") as file:  # by parts: no pooled copy in memory
        np.lib.format.write_array_header_1_0(file, header)
        for part in samples:
            file.write(np.ascontiguousarray(part).data)
    own = (source.y_train, *(() if source.y_test is None else (source.y_test,)))
    y = np.full(shape[0], publics.UNKNOWN)
    y[: sum(map(len, own))] = np.concatenate(own)
    y[public.index] = public.labels
    arrays = {
        "y": y,
        "truth": public.truth,
        "test": splits.test,
        "validation": splits.validation,
        "public": public.index,
        "sets": public.sets,
        "rows": np.concatenate(splits.private),
        "offsets": np.cumsum([0, *map(len, splits.private)]),
    }
    for name, array in arrays.items():
        np.save(folder / f"{_ARRAYS[name]}.npy", array.astype(np.int64), allow_pickle=False)
    facts = {
        "format": _FORMAT,
        "sha256": {path: _sha256(folder / f"{path}.npy") for path in _ARRAYS.values()},
        "shape": shape,
        "origins": [origin._asdict() for origin in public.origins],
        "classes": int(source.classes),
        "class_names": source.class_names,
        "mean": [float(value) for value in source.mean],
        "std": [float(value) for value in source.std],
        "provenance": source.provenance,
        "licence": source.licence,
    }
    text = json.dumps(facts, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (folder / "data.json").write_text(text + "\n", encoding="utf-8")
