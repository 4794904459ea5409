"""Tables to samples: which column is the label, which are features.

Raw numbers go into the samples; they are standardised when a model sees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fedkd.encoding import Columns, Feature, by_value, feature, finite
from fedkd.faults import did_you_mean, shown
from fedkd.samples import Column, Source, classed, provenance, some, told

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_MOST_CLASSES = 1000
_MOST_FAULTS = 10


def tabular(kind: str, train: DataFrame, test: DataFrame | None, how: Columns) -> Source:
    """A table of training samples, and perhaps one of test samples, as a `Source`.

    Raises ValueError for a column that is not there (naming those that are), for missing values
    and words where they are not admitted (naming the columns), and for labels that are no classes.
    """
    _check_names(train, test, how)
    features = [c for c in train.columns if c != how.label and c not in how.drop]
    parts = [_complete(part, features, how) for part in (train, test) if part is not None]
    _check_missing(parts, features, how)
    train, test = parts[0], parts[1] if len(parts) > 1 else None
    y, y_test, names, named = classed(*_labels(train, test, how), "data.source.relabel")
    if len(names) > min(_MOST_CLASSES, max(2, len(y) // 2)):
        raise ValueError(
            f"data.source.label: {told(how.label)} should hold classes, found {len(names):,} "
            f"different values in {len(y):,} rows ({some(names, 5)}); name the column that holds "
            "the class"
        )
    made = _features(train, test, features, how)
    x = np.concatenate([f.train for f in made], axis=1)
    tests = [f.test for f in made if f.test is not None]
    x_test = np.concatenate(tests, axis=1) if tests else None
    measured = np.array([m for f in made for m in f.measured])
    spread = x.std(0, dtype=np.float64)
    return Source(
        x, y, x_test, y_test, len(names), names,
        mean=tuple(np.where(measured, x.mean(0, dtype=np.float64), 0.0).tolist()),
        std=tuple(np.where(measured & (spread > 0), spread, 1.0).tolist()),
        provenance=provenance(kind, x, x_test),
        licence=how.licence,
        named=named,
        features=tuple(name for f in made for name in f.names),
        columns={c: by_value(train[c]) for c in train.columns if c != how.label},
    )  # fmt: skip


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of columns as they are. Raises ValueError where one is empty or given twice."""
    listed = tuple(names)
    if twice := sorted({name for name in listed if listed.count(name) > 1 or not name}):
        raise ValueError(f"columns without a name of their own ({some(twice)!r})")
    return listed


def _check_names(train: DataFrame, test: DataFrame | None, how: Columns) -> None:
    columns = list(train.columns)
    for parameter, wanted in (
        ("label", (how.label,)),
        ("drop", how.drop),
        ("categories", how.categories),
    ):
        for name in wanted:
            if name not in columns:
                raise ValueError(
                    f"data.source.{parameter}: should name a column, found {shown(name)}"
                    f"{did_you_mean(name, columns)}; the columns are {some(columns, 100)}"
                )
    if set(columns) <= {how.label, *how.drop}:
        raise ValueError(
            f"data.source.drop: should leave a column to learn from, found none beside "
            f"{told(how.label)}; drop fewer"
        )
    there = columns if test is None else list(test.columns)
    if lacking := [name for name in columns if name not in there]:
        raise ValueError(
            f"data.source.test: should have the columns of the training part, found no "
            f"{some(lacking)}; the columns there are {some(there, 100)}"
        )


def _complete(part: DataFrame, features: list[str], how: Columns) -> DataFrame:
    """The rows that are used."""
    if how.missing == "drop":
        part = part[part[[*features, how.label]].notna().all(axis=1)]
    if not len(part):
        raise ValueError(
            "data.source: should hold a row without missing values, found none; drop the columns "
            "that are rarely filled, or set data.source.missing to impute"
        )
    return part


def _check_missing(parts: list[DataFrame], features: list[str], how: Columns) -> None:
    empty = [c for c in features if not parts[0][c].notna().any()]
    if empty:
        raise ValueError(
            f"data.source: every column should hold values, found none in {some(empty)}; put "
            "them into data.source.drop"
        )
    if unlabelled := sum(int(part[how.label].isna().sum()) for part in parts):
        raise ValueError(
            f"data.source.label: every row should have a label, found {unlabelled:,} without; "
            "remove these rows, or set data.source.missing to drop"
        )
    counts = {c: sum(int(part[c].isna().sum()) for part in parts) for c in features}
    lacking = [f"{c} ({n:,})" for c, n in counts.items() if n]
    if how.missing == "refuse" and lacking:
        raise ValueError(
            f"data.source.missing: no value should be missing, found gaps in {some(lacking, 40)}; "
            "set it to impute (mean, or most frequent word), indicate (the same, and a feature "
            "that says so), drop (leave such rows out), or put columns into data.source.drop"
        )


def _labels(train: DataFrame, test: DataFrame | None, how: Columns) -> tuple[Column, Column | None]:
    """The labels of both parts as whole numbers where all of them are, else as words."""
    parts = [_named(part[how.label], how) for part in (train, test) if part is not None]
    numbers = [finite(words) for words in parts]
    if all(found.notna().all() and not (found % 1).any() for found in numbers):
        found = [np.asarray(part, dtype=np.int64) for part in numbers]  # 10 comes after 9
    else:
        found = [np.asarray(part, dtype=str) for part in parts]
    return found[0], found[1] if len(found) > 1 else None


def _named(labels: Series, how: Columns) -> Series:
    if labels.dtype.kind == "f":
        if (labels % 1).any():
            raise ValueError(
                f"data.source.label: {told(how.label)} should hold classes, found fractions "
                f"({some(labels[labels % 1 != 0].tolist(), 3)}); name the column of the class"
            )
        labels = labels.astype(np.int64)
    return labels.astype(str).map(lambda word: how.relabel.get(word, word))


def _features(
    train: DataFrame, test: DataFrame | None, columns: list[str], how: Columns
) -> list[Feature]:
    """All features; what is wrong with several columns is said at once."""
    made: list[Feature] = []
    faults: list[str] = []
    for column in columns:
        try:
            made.append(feature(train, test, column, how))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults[:_MOST_FAULTS]))
    return made
