"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedkd.columns import tabular
from fedkd.config import Count, Positive
from fedkd.encoding import Columns, Encode, Missing, by_value
from fedkd.faults import did_you_mean, shown
from fedkd.images import Channels, Size, decoded
from fedkd.samples import Labels, Source, path_at, provenance, said, scale, some, told

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_DATA = (".parquet", ".arrow", ".csv", ".json", ".jsonl")

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


def hugging_face(
    dataset: Annotated[str, Field(min_length=1)],
    label: str = "label",
    *,
    subset: str | None = None,
    revision: Commit | None = None,
    train: str = "train",
    test: str | None = "test",
    image: str | None = None,
    resize: Size | None = None,
    channels: Channels = "auto",
    mean: tuple[float, ...] | None = None,
    std: tuple[Positive, ...] | None = None,
    drop: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    encode: Encode = "one_hot",
    most_categories: Count = 100,
    missing: Missing = "refuse",
    licence: str = "not stated",
) -> Source:
    """A data set of the Hugging Face Hub by name, as in ylecun/mnist, or of a local folder.

    What has been fetched once is kept where `datasets` keeps it (HF_HOME) and is read from there,
    without a connection. `revision` is a commit of the data set's repository: with it everybody
    gets the same samples, or an error. `train` and `test` name its splits
    (`test: null` for none), `subset` its configuration, `label` the column of the class.

    The samples are the pictures of the column `image`, or of the only such column; the other
    columns are there for a partition to go by. Without pictures the other columns are a table,
    read as `csv` reads one. Raises ValueError for a data set that is neither kept nor reachable,
    and for splits and columns that are not there.
    """
    held = _loaded(dataset, subset, revision)
    parts = [_split(held, name) for name in (train, test) if name is not None]
    _label_is_there(parts[0], label)
    commit = _commit(held)
    kind = f"Hugging Face {dataset}" + (f"@{commit}" if commit else "")
    pictures = _picture_column(parts[0], image)
    if pictures is None:
        tables = [_table(part, label) for part in parts]
        how = Columns(label, drop, categories, encode, most_categories, missing, {}, licence)
        return tabular(kind, tables[0], tables[1] if len(tables) > 1 else None, how)
    y, names = _labels(parts, label)
    x = decoded(_opened(parts, pictures), resize, channels)
    cut = len(y[0])
    x_test, y_test = (x[cut:], y[1]) if len(y) > 1 else (None, None)
    return Source(
        x[:cut], y[0], x_test, y_test, len(names), names, *scale(x, mean, std),
        provenance=provenance(kind, x[:cut], x_test),
        licence=licence,
        columns=_columns(parts[0], pictures, label),
    )  # fmt: skip


def _loaded(name: str, subset: str | None, revision: str | None) -> DatasetDict:
    local = path_at(name, "data.source.dataset")
    if local.is_dir() and not _holds_data(local):
        raise ValueError(
            f"data.source.dataset: {told(local)} should hold a README.md or files of data, "
            "found a folder without; correct the path, or use image_folder, csv or parquet"
        )
    if local.is_dir() and revision is not None:
        raise ValueError(
            f"data.source.revision: should be left out for a folder, found {revision}; a folder "
            "has no commits"
        )
    kept = None if local.is_dir() else _kept(name, subset)
    if kept is not None and revision in (None, _commit(kept)):
        return kept
    import datasets

    try:
        with _quietly(offline=False):
            place = str(local) if local.is_dir() else name
            held = datasets.load_dataset(place, subset, revision=revision)
    except Exception as error:  # the library lets through whatever its network layer raises
        raise ValueError(
            f"data.source.dataset: {told(name)} should be kept on this machine or reachable, "
            f"found: {type(error).__name__}: {said(error)}; check the name and data.source.subset, "
            "fetch it once with a connection, or set HF_HOME to the folder where it is kept"
        ) from None
    if revision not in (None, _commit(held)):  # out of reach, the library falls back on any copy
        raise ValueError(
            f"data.source.revision: {told(name)} should be of commit {revision}, found "
            f"{_commit(held) or 'none'} on this machine and the Hub out of reach; fetch that one "
            "with a connection, or leave revision out"
        )
    return held


def _holds_data(folder: Path) -> bool:
    """Whether a folder looks like a data set of the Hub; the library would search all below it."""
    there = [
        *folder.iterdir(),
        *((folder / "data").iterdir() if (folder / "data").is_dir() else ()),
    ]
    return any(path.name == "README.md" or path.suffix in _DATA for path in there)


def _kept(name: str, subset: str | None) -> DatasetDict | None:
    """The copy on this machine, without a word to the Hub; None where there is none."""
    import datasets

    try:
        with _quietly(offline=True):
            return datasets.load_dataset(name, subset)
    except Exception:  # as above; whoever asks goes on to the Hub, which says what is wrong
        return None


def _commit(held: DatasetDict) -> str | None:
    """The commit of the repository, after which the library names the folder of its copy."""
    for part in held.values():
        for file in part.cache_files:
            folder = Path(file["filename"]).parent.name
            if len(folder) == 40 and all(letter in "0123456789abcdef" for letter in folder):
                return folder
    return None


@contextmanager
def _quietly(offline: bool) -> Iterator[None]:
    """No progress bars and no word of what was found in the cache; how it was comes back."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    shown, loud = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(loud)
        if shown:
            datasets.enable_progress_bars()


def _split(held: DatasetDict, name: str) -> Dataset:
    if name not in held:
        raise ValueError(
            f"data.source: the data set should have a split {told(name)}, found "
            f"{some(list(held))}; set data.source.train and data.source.test (null for none)"
        )
    return held[name]


def _label_is_there(part: Dataset, label: str) -> None:
    columns = part.column_names
    if label not in columns:
        raise ValueError(
            f"data.source.label: should name a column, found {shown(label)}"
            f"{did_you_mean(label, columns)}; the columns are {some(columns, 100)}"
        )


def _picture_column(part: Dataset, wanted: str | None) -> str | None:
    import datasets

    held = [name for name, kind in part.features.items() if isinstance(kind, datasets.Image)]
    if wanted is None and len(held) < 2:
        return held[0] if held else None
    if wanted not in held:
        raise ValueError(
            f"data.source.image: should name the column of pictures, found {told(wanted)}; there "
            f"are {some(held) or 'none'} among the columns {some(part.column_names, 100)}"
        )
    return wanted


def _table(part: Dataset, label: str) -> Any:  # Any: a pandas DataFrame
    """The columns as a table, the label by the names of its classes where it has some."""
    import datasets

    table = part.to_pandas()
    if isinstance(kind := part.features[label], datasets.ClassLabel):
        hidden = table[label].isna() | (table[label] < 0)
        table[label] = [
            None if h else kind.names[int(v)] for h, v in zip(hidden, table[label], strict=True)
        ]
    return table


def _labels(parts: list[Dataset], label: str) -> tuple[list[Labels], tuple[str, ...]]:
    import datasets

    kind = parts[0].features[label]
    if not isinstance(kind, datasets.ClassLabel):
        raise ValueError(
            f"data.source.label: {told(label)} should be a column of classes (ClassLabel), found "
            f"{told(kind)}; name another column, or load the data set in a factory of your own"
        )
    y = [np.asarray(part.with_format("numpy")[label][:], np.int64) for part in parts]
    if any(values.min() < 0 for values in y):
        raise ValueError(
            f"data.source.label: every sample should have a class in {told(label)}, found some "
            "without (-1); choose other splits by data.source.train and data.source.test"
        )
    return y, tuple(kind.names)


def _opened(parts: list[Dataset], column: str) -> Iterator[tuple[str, Any]]:  # Any: opens a picture
    for part in parts:
        for row, picture in enumerate(part.select_columns(column)):
            yield f"row {row} of {part.split}", functools.partial(_same, picture[column])


def _same(picture: Any) -> Any:  # Any: an open picture of Pillow
    return picture


def _columns(part: Dataset, pictures: str, label: str) -> dict[str, Any]:  # Any: [N] numbers, text
    """The plain columns beside pictures and label."""
    import datasets

    plain = [
        name
        for name, kind in part.features.items()
        if name not in (pictures, label) and isinstance(kind, datasets.Value | datasets.ClassLabel)
    ]
    table = part.select_columns(plain).to_pandas() if plain else {}
    return {name: by_value(table[name]) for name in plain}
