"""Public sets: held back from the private data, taken from another data set, or noise.

Whatever it comes from, a public sample has the form of a private one, and its label stands in two
places: the truth, for evaluation only, and what the experiment lets the parties know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedkd import config
from fedkd.faults import did_you_mean, shown
from fedkd.forms import fitted, noise, shared
from fedkd.rng import SERVER, SETUP, number
from fedkd.samples import Labels, Samples, Source, some

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNKNOWN = -1


class Origin(NamedTuple):
    """Where a public set is from, for the record."""

    kind: str
    size: int
    labelled: bool
    provenance: str
    licence: str


@dataclass(frozen=True, eq=False)
class PublicRows:
    """All public sets, one after the other: the order of the row ids.

    `index` [P] points into the pooled samples: the source's training part, its test part, then
    `brought`, in this order. `sets` [P] is the number of the set, `truth` [P] the class and
    `labels` [P] what may be known of it; both are -1 where there is nothing to tell.
    """

    index: Indices
    sets: Indices
    truth: Labels
    labels: Labels
    brought: tuple[Samples, ...]
    origins: tuple[Origin, ...]


class _Drawn(NamedTuple):
    truth: Labels
    brought: Samples | None  # None where the samples are the source's own
    kind: str
    provenance: str = ""
    licence: str = ""


def draw(
    source: Source,
    others: Sequence[Source | None],
    held: Sequence[Indices],
    wanted: Sequence[config.Public],
    seed: int,
) -> PublicRows:
    """The public sets that are wanted, each from its own stream of the data seed.

    `others` are the data sets that they name (None where they name none), `held` the indices that
    were held back from the source's training part. Raises ValueError for what cannot be had.
    """
    pooled = np.concatenate((source.y_train, *(() if source.y_test is None else (source.y_test,))))
    start, brought = len(pooled), list[Samples]()
    indices, labels, truths = list[Indices](), list[Labels](), list[Labels]()
    origins = list[Origin]()
    for i, (spec, other, own) in enumerate(zip(wanted, others, held, strict=True)):
        where = place(i, len(wanted))
        rng = np.random.default_rng(number(seed, SETUP, SERVER, f"data/public/{i}"))
        if spec.noise is not None:
            x = noise(source, spec.noise, spec.size, rng, where)
            made = _Drawn(np.full(spec.size, UNKNOWN), x, f"{spec.noise} noise")
        elif other is not None:
            made = _elsewhere(source, other, spec, rng, where)
        else:
            made = _Drawn(pooled[own], None, "data.source")
        if made.brought is None:
            indices.append(own)
        else:
            indices.append(start + np.arange(spec.size))
            brought.append(made.brought)
            start += spec.size
        truths.append(made.truth)
        labels.append(_told(made.truth, spec, source.classes, rng))
        origins.append(Origin(made.kind, spec.size, spec.labelled, made.provenance, made.licence))
    sets = np.repeat(np.arange(len(wanted)), [len(rows) for rows in indices])
    return PublicRows(
        np.concatenate(indices), sets, np.concatenate(truths), np.concatenate(labels),
        tuple(brought), tuple(origins),
    )  # fmt: skip


def place(i: int, sets: int) -> str:
    """Where in the config a public set stands."""
    return "data.public" if sets == 1 else f"data.public.{i}"


def admitted(spec: config.Public, source: Source, where: str) -> Flags:
    """Which training samples of a data set may be public, [N]: those of no class left out."""
    gaps = list[int]()
    for given in spec.without:
        if isinstance(given, str) and given in source.class_names:
            gaps.append(source.class_names.index(given))
        elif isinstance(given, int) and given < source.classes:
            gaps.append(given)
        else:
            near = did_you_mean(str(given), source.class_names)
            raise ValueError(
                f"{where}.without: should name classes of the data set, or number them from 0, "
                f"found {shown(given)}{near}; the classes are {some(source.class_names, 100)}"
            )
    return ~np.isin(source.y_train, gaps)


def _elsewhere(
    source: Source, other: Source, spec: config.Public, rng: np.random.Generator, where: str
) -> _Drawn:
    """Some training samples of another data set, none that the source has too."""
    alike = _same_classes(source, other)
    if spec.labelled and not alike:
        raise ValueError(
            f"{where}.labelled: should be false for another data set unless it has the classes of "
            f"data.source by the same names, found {_classes(other)} beside {_classes(source)}; "
            "leave it false, or name the classes of both where they are the same"
        )
    may = admitted(spec, other, where) & ~shared(source, other)
    rows = np.flatnonzero(may)
    if spec.size > len(rows):
        raise ValueError(
            f"{where}.size: should be at most {len(rows)}, the samples of the other data set "
            f"without those that data.source has too and without the classes left out, found "
            f"{spec.size}; lower it, or name another data set"
        )
    chosen = np.sort(rng.permutation(rows)[: spec.size])
    truth = np.full(spec.size, UNKNOWN)
    if alike:
        order = np.array([source.class_names.index(name) for name in other.class_names])
        truth = order[other.y_train[chosen]]
    assert spec.source is not None
    name = "" if spec.source is None else spec.source.name
    x = fitted(other, chosen, source, where)
    return _Drawn(truth, x, name, other.provenance, other.licence)


def _same_classes(source: Source, other: Source) -> bool:
    """Whether a class of the one means a class of the other. Numbers do not tell."""
    named = source.named and other.named
    return named and sorted(source.class_names) == sorted(other.class_names)


def _classes(source: Source) -> str:
    kind = "" if source.named else " (numbers, no names)"
    return f"{source.classes} classes {some(source.class_names, 5)}{kind}"


def _told(truth: Labels, spec: config.Public, classes: int, rng: np.random.Generator) -> Labels:
    """What may be known of the labels: nothing, or all with a share of them wrong at random."""
    if not spec.labelled:
        return np.full(len(truth), UNKNOWN)
    wrong = rng.permutation(len(truth))[: round(spec.label_noise * len(truth))]
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels
