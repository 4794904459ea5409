"""Tables and folders of pictures."""

from __future__ import annotations

import functools
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedkd.columns import tabular, unique_names
from fedkd.config import Count, Positive
from fedkd.encoding import Columns, Encode, Missing
from fedkd.images import Channels, Size, decoded
from fedkd.samples import Source, file_at, path_at, provenance, said, scale, some, told

if TYPE_CHECKING:
    from pandas import DataFrame

Paths = str | tuple[str, ...]
Letter = Annotated[str, Field(min_length=1, max_length=1)]

_UNREADABLE = (
    OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile, lzma.LZMAError, zlib.error,
    zipfile.BadZipFile, ValueError,
)  # fmt: skip


def csv(
    file: Paths,
    label: str,
    *,
    test: Paths | None = None,
    names: tuple[str, ...] = (),
    delimiter: Letter = ",",
    comment: Letter | None = None,
    na: tuple[str, ...] = ("", "?", "NA", "NaN", "nan", "null"),
    drop: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    encode: Encode = "one_hot",
    most_categories: Count = 100,
    missing: Missing = "refuse",
    relabel: dict[str, str] | None = None,
    licence: str = "not stated",
) -> Source:
    """A table as text, plain or compressed (.gz, .bz2, .xz, .zip); one row a sample.

    `file` may list several files, which then have a column `file` more, so that a partition can go
    by it. `names` are the columns where the file's first line does not name them; what follows
    `comment` in a line is skipped, blanks around values go, and the words of `na` stand for a
    missing value. `label` names the column of the class; `relabel` maps labels to the class that
    they mean. The columns of `drop` are no features, but a partition may still go by them.

    A column of numbers is one feature, standardised by the training samples. A column of words, and
    every column of `categories`, is encoded: `one_hot`, a feature of 0 or 1 for each of at most
    `most_categories` words (none of them 1 for a word that training lacks), or `ordinal`, the
    place in alphabetical order (-1). `missing` values are refused, replaced by the mean or the most
    frequent word (`impute`), the same with a feature or a word that says so (`indicate`), or left
    out with their rows (`drop`). Raises ValueError naming the file or the columns at fault.
    """
    how = Columns(label, drop, categories, encode, most_categories, missing, relabel or {}, licence)
    read = functools.partial(_text, names=names, delimiter=delimiter, comment=comment, na=na)
    return tabular("CSV", *_parts(file, test, read), how)


def parquet(
    file: Paths,
    label: str,
    *,
    test: Paths | None = None,
    drop: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    encode: Encode = "one_hot",
    most_categories: Count = 100,
    missing: Missing = "refuse",
    relabel: dict[str, str] | None = None,
    licence: str = "not stated",
) -> Source:
    """A table as a Parquet file; one row a sample. The parameters are those of `csv`."""
    how = Columns(label, drop, categories, encode, most_categories, missing, relabel or {}, licence)
    return tabular("Parquet", *_parts(file, test, _parquet), how)


def image_folder(
    folder: str,
    *,
    train: str = "train",
    test: str = "test",
    resize: Size | None = None,
    channels: Channels = "auto",
    mean: tuple[float, ...] = (0.5,),
    std: tuple[Positive, ...] = (0.5,),
    licence: str = "not stated",
) -> Source:
    """Pictures in subfolders, one subfolder a class, named after it; any format of Pillow.

    Where the folder has a subfolder `train`, the classes are in there, and in `test` those of the
    test set, if it exists; other subfolders beside them are not read. Otherwise the classes are in
    the folder itself. Files with another ending and hidden ones are passed over. All must have one
    size unless `resize` gives it, as 32 or [height, width]. Raises ValueError naming the folder or
    the picture at fault.
    """
    place = path_at(folder, "data.source.folder")
    parts = [place / train, place / test] if (place / train).is_dir() else [place]
    found = [_pictures(part) for part in parts if part.is_dir()]
    if not found:
        raise ValueError(
            f"data.source.folder: should be a folder, found none at {told(place)}; correct the path"
        )
    names = tuple(found[0])
    if strange := sorted(set(found[-1]) - set(names)):
        raise ValueError(
            f"data.source.folder: {told(parts[-1])} should have classes of {parts[0].name!r}, "
            f"found {some(strange)} beside {some(names)}; rename or remove them"
        )
    paths = [path for part in found for paths in part.values() for path in paths]
    from PIL import Image

    x = decoded(((str(p), functools.partial(Image.open, p)) for p in paths), resize, channels)
    y = [np.repeat([names.index(n) for n in part], [*map(len, part.values())]) for part in found]
    cut = len(y[0])
    x_test, y_test = (x[cut:], y[1]) if len(found) > 1 else (None, None)
    return Source(
        x[:cut], y[0], x_test, y_test, len(names), names, *scale(x, mean, std),
        provenance=provenance("Images", x[:cut], x_test),
        licence=licence,
    )  # fmt: skip


def _parts(
    file: Paths, test: Paths | None, read: Callable[[Path], DataFrame]
) -> tuple[DataFrame, DataFrame | None]:
    of_test = None if test is None else _joined(test, read, "data.source.test")
    return _joined(file, read, "data.source.file"), of_test


def _joined(paths: Paths, read: Callable[[Path], DataFrame], where: str) -> DataFrame:
    """One file, or several below each other with a column that says which."""
    listed = [file_at(p, where) for p in ([paths] if isinstance(paths, str) else paths)]
    if not listed:
        raise ValueError(f"{where}: should name a file, found none; give its path")
    tables = []
    for path in listed:
        try:
            tables.append(read(path))
        except _UNREADABLE as error:
            raise ValueError(
                f"{where}: {told(path)} should be a readable table, found: {said(error)}; correct "
                "the path, the file, or how it is to be read"
            ) from None
    if len(tables) == 1:
        return tables[0]
    import pandas as pd

    first = tables[0]
    for path, table in zip(listed, tables, strict=True):
        if list(table.columns) != list(first.columns) or "file" in table:
            raise ValueError(
                f"{where}: {told(path)} should have the columns of {listed[0].name!r} "
                f"({some(first.columns)}) "
                f"and none called file, found {some(table.columns)}; correct the files"
            )
    named = [table.assign(file=path.name) for path, table in zip(listed, tables, strict=True)]
    return pd.concat(named, ignore_index=True)


def _text(
    path: Path, names: tuple[str, ...], delimiter: str, comment: str | None, na: tuple[str, ...]
) -> DataFrame:
    """All values as text without blanks around them, NaN where `na` says so."""
    import pandas as pd

    table = pd.read_csv(
        path, header=None, dtype=str, na_filter=False, sep=delimiter, skipinitialspace=True,
        comment=comment, encoding="utf-8-sig",
    )  # fmt: skip
    table = table.apply(lambda column: column.fillna("").str.strip())
    if names and len(names) != table.shape[1]:
        raise ValueError(f"{table.shape[1]} columns where names has {len(names)}")
    if not names:
        names = tuple(table.iloc[0])
        table = table.iloc[1:].reset_index(drop=True)
    table.columns = pd.Index(unique_names(names))
    return table.where(~table.isin(na))


def _parquet(path: Path) -> DataFrame:
    import pandas as pd

    table = pd.read_parquet(path)
    table.columns = pd.Index(unique_names(map(str, table.columns)))
    return table


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures of every class, in the order of their names."""
    from PIL import Image

    Image.init()
    found = {
        place.name: sorted(
            path
            for path in place.iterdir()
            if path.suffix.lower() in Image.EXTENSION
            and path.is_file()
            and not path.name.startswith(".")
        )
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    }
    empty = [name for name, paths in found.items() if not paths]
    if len(found) < 2 or empty:
        lacking = f"no image in {some(empty)}" if empty else some(list(found)) or "none"
        raise ValueError(
            f"data.source.folder: {told(folder)} should hold a subfolder of images for each of at "
            f"least 2 classes, found {lacking}; correct the path or fill them"
        )
    return found
