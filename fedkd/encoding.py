"""Columns of a table to features: numbers stay, words become numbers.

Everything is learnt from the training part and applied to the test part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedkd.faults import shown
from fedkd.samples import Column, some, told

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Encode = Literal["one_hot", "ordinal", "refuse"]
Missing = Literal["refuse", "impute", "indicate", "drop"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Columns:
    """How a table is to be read; the docstring of `fedkd.sources.csv` says what each means."""

    label: str
    drop: tuple[str, ...]
    categories: tuple[str, ...]
    encode: Encode
    most_categories: int
    missing: Missing
    relabel: Mapping[str, str]
    licence: str


class Feature(NamedTuple):
    """One or several features made of a column: training part, test part, and their names."""

    train: Floats  # [N, f]
    test: Floats | None
    names: tuple[str, ...]
    measured: tuple[bool, ...]  # [f] whether a quantity, to be standardised


def feature(train: DataFrame, test: DataFrame | None, name: str, how: Columns) -> Feature:
    """What a model is shown of a column.

    Raises ValueError where its values are neither numbers nor words, or words are not admitted.
    """
    if _is_measured(train[name], name, how):
        return _measured(train[name], None if test is None else test[name], name, how)
    return _worded(train[name], None if test is None else test[name], name, how)


def _is_measured(values: Series, name: str, how: Columns) -> bool:
    """Whether a column holds quantities. Numbers with a few words among them are refused."""
    present = values.dropna()
    if name in how.categories:
        return False
    if len(odd := [v for v in present.iloc[:1] if not isinstance(v, str | bool | Number)]):
        raise ValueError(
            f"data.source: {told(name)} should hold numbers or words, found "
            f"{type(odd[0]).__name__} ({shown(odd[0], 40)}); put it into data.source.drop"
        )
    strange = present[finite(present).isna()]
    if not len(strange):
        return True
    if 2 * len(strange) < len(present):
        words = some(sorted(set(strange)), 5)
        raise ValueError(
            f"data.source: {told(name)} should hold numbers, found {len(strange):,} of "
            f"{len(present):,} values that are none ({words}); put these words into data.source.na "
            f"if they stand for a missing value, or {told(name)} into data.source.categories or "
            "data.source.drop"
        )
    if how.encode == "refuse":
        raise ValueError(
            f"data.source.encode: every column should hold numbers, found words in {told(name)} "
            f"({some(sorted(set(strange)), 5)}); set encode to one_hot or ordinal, or put "
            f"{told(name)} into data.source.drop"
        )
    return False


def _measured(train: Series, test: Series | None, name: str, how: Columns) -> Feature:
    numbers = finite(train)
    middle = float(numbers.mean())
    flagged = how.missing == "indicate" and bool(numbers.isna().any())

    def filled(values: Series, part: str) -> Floats:
        found = finite(values)
        if strange := sorted({str(v) for v in values[found.isna() & values.notna()]}):
            raise ValueError(
                f"data.source: {told(name)} should hold numbers in the {part} part as in the "
                f"training part, found {some(strange, 5)}; correct the file or put them into "
                "data.source.na"
            )
        made = [found.fillna(middle), *([found.isna()] if flagged else [])]
        return np.stack([column.to_numpy(np.float32) for column in made], axis=1)

    names = (name, f"{name} is missing") if flagged else (name,)
    of_test = None if test is None else filled(test, "test")
    return Feature(filled(train, "training"), of_test, names, (True, False)[: len(names)])


def _worded(train: Series, test: Series | None, name: str, how: Columns) -> Feature:
    words = _words(train)
    values, counts = np.unique(words[words != ""], return_counts=True)
    usual = values[counts.argmax()]
    if how.missing == "indicate" and (words == "").any():
        usual = ""  # a word of its own
        values = np.concatenate([[""], values])
    if how.encode == "one_hot" and len(values) > how.most_categories:
        raise ValueError(
            f"data.source.most_categories: {told(name)} should hold at most {how.most_categories} "
            f"different words, found {len(values):,} ({some(values, 3)}); put it into "
            "data.source.drop, raise most_categories, or set data.source.encode to ordinal"
        )
    ordinal = how.encode == "ordinal"

    def made(part: Series) -> Floats:
        found = _words(part)
        found = np.where(found == "", usual, found)
        place = np.searchsorted(values, found).clip(max=len(values) - 1)
        known = values[place] == found
        if ordinal:
            return np.where(known, place, -1).astype(np.float32)[:, None]
        hot = np.zeros((len(found), len(values)), np.float32)
        hot[np.arange(len(found)), place] = known
        return hot

    said = [str(value) or "missing" for value in values]
    names = (f"{name}: {' < '.join(said)}",) if ordinal else tuple(f"{name} = {w}" for w in said)
    of_test = None if test is None else made(test)
    return Feature(made(train), of_test, names, (ordinal,) * len(names))


def by_value(values: Series) -> Column:
    """What a partition may go by: numbers where all are, else words."""
    numbers = finite(values)
    if numbers.notna().all():
        whole = not (numbers % 1).any()
        return np.asarray(numbers, dtype=np.int64 if whole else np.float64)
    return _words(values)


def finite(values: Series) -> Any:  # Any: a Series of floats
    """The values as floats; NaN where there is none or it is no finite number."""
    import pandas as pd

    found = pd.to_numeric(values, errors="coerce").astype(float)
    return found.where(np.isfinite(found))


def _words(values: Series) -> npt.NDArray[np.str_]:
    """The values as text, whole numbers without a fraction; empty where there is none."""
    present = values.notna().to_numpy(bool)
    words = np.full(len(values), "", object)
    numbers = finite(values[present])
    if numbers.notna().all() and not (numbers % 1).any():
        words[present] = numbers.astype(np.int64).astype(str)  # 1 and 1.0 are one word
    else:
        words[present] = values[present].astype(str)
    return words.astype(str)
