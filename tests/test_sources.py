"""Every reader on tiny files: what was written comes back, and what is wrong is said."""

import contextlib
import gzip
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedkd import sources, unpickling
from fedkd.samples import Source

RNG = np.random.default_rng(0)


def refused(part: str, read: Callable[..., Source], *args: Any, **params: Any) -> str:
    with pytest.raises(ValueError) as error:
        read(*args, **params)
    said = str(error.value)
    assert part in said
    assert all(line.startswith("data.source") and ";" in line for line in said.splitlines())
    return said


# npz


def archive(path: Path, **arrays: Any) -> str:
    np.savez(path / "a.npz", **arrays)
    return str(path / "a.npz")


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((6, 5, 4), "auto", (1, 5, 4)),
        ((6, 5, 4, 3), "auto", (3, 5, 4)),
        ((6, 3, 5, 4), "first", (3, 5, 4)),
        ((6, 5, 7, 2), "last", (2, 5, 7)),
        ((6, 1, 9, 9), "auto", (1, 9, 9)),
        ((6, 7), "auto", (7,)),
    ],
)
def test_npz_knows_where_the_channels_are(
    tmp_path: Path, shape: tuple[int, ...], channels: Any, expected: tuple[int, ...]
) -> None:
    x, y = images(*shape), np.arange(6)[:, None] % 2
    file = archive(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    source = sources.npz(file, channels=channels)
    assert source.x_train.shape == (6, *expected) and source.x_test.shape == (2, *expected)
    assert sorted(source.x_train[0].flatten()) == sorted(x[0].flatten())
    assert source.y_train.tolist() == [0, 1] * 3 and not source.named
    assert (source.mean, source.std) == ((0.5,), (0.5,))


def test_npz_standardises_floats_and_names_classes(tmp_path: Path) -> None:
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    file = archive(tmp_path, images=x, labels=np.array(["dog", "cat"]))
    source = sources.npz(file, x_train="images", y_train="labels", x_test=None, y_test=None)
    assert source.x_train.dtype == np.float32 and source.x_test is None
    assert (source.mean, source.std) == ((2.0, 5.0), (1.0, 1.0))  # a constant stays as wide
    assert (source.class_names, source.y_train.tolist(), source.named) == (
        ("cat", "dog"), [1, 0], True,
    )  # fmt: skip


def test_npz_says_what_is_wrong(tmp_path: Path) -> None:
    x, y = images(4, 5, 5), np.arange(4) % 2
    alone = {"x_test": None, "y_test": None}
    file = archive(tmp_path, x_train=x, y_train=y)
    refused("found no x_test, y_test; it holds x_train, y_train", sources.npz, file)
    refused("should be null where y_test is", sources.npz, file, x_test=None, y_test="y_train")
    refused("should be a file, found none at", sources.npz, str(tmp_path / "none.npz"))
    np.save(tmp_path / "b.npz.npy", x)
    refused("a single array", sources.npz, str(tmp_path / "b.npz.npy"))
    (tmp_path / "c.npz").write_bytes(Path(file).read_bytes()[:-40])
    refused("readable .npz file", sources.npz, str(tmp_path / "c.npz"))
    objects = archive(tmp_path, x_train=np.array([{}, 1], object), y_train=y)
    refused("Object arrays cannot be loaded", sources.npz, objects, **alone)
    file = archive(tmp_path, x_train=images(4, 3, 5, 3), y_train=y)
    refused("data.source.channels: should be first or last", sources.npz, file, **alone)
    file = archive(tmp_path, x_train=x, y_train=np.eye(4))
    refused("argmax of a one-hot table", sources.npz, file, **alone)
    file = archive(tmp_path, x_train=images(4), y_train=y)
    refused("x_train should hold numbers", sources.npz, file, **alone)
    file = archive(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y + 1)
    refused("among those of the training part, 0, 1, found 2", sources.npz, file)


# CIFAR


@pytest.mark.parametrize("binary", [True, False])
def test_cifar10(tmp_path: Path, binary: bool) -> None:
    written = toys.cifar_files(tmp_path, "cifar10", binary)
    source = sources.cifar10(str(tmp_path))
    assert source.x_train.shape == (10, 3, 32, 32) and source.x_test.shape == (2, 3, 32, 32)
    pixels = np.concatenate([written[f"data_batch_{i}"][0] for i in range(1, 6)])
    assert np.array_equal(source.x_train.reshape(10, -1), pixels)
    assert source.y_test.tolist() == written["test_batch"][1][0]
    assert source.class_names[:2] == ("airplane", "automobile") and source.named


@pytest.mark.parametrize("binary", [True, False])
def test_cifar100(tmp_path: Path, binary: bool) -> None:
    written = toys.cifar_files(tmp_path / "cifar-100-any", "cifar100", binary)
    coarse, fine = written["train"][1]
    source = sources.cifar100(str(tmp_path))  # the folder that the archive unpacks to is found
    assert source.y_train.tolist() == fine and source.class_names == tuple(toys.FINE)
    assert source.columns["coarse"].tolist() == coarse
    source = sources.cifar100(str(tmp_path), labels="coarse")
    assert source.y_train.tolist() == coarse and source.class_names == tuple(toys.COARSE)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_all_protocols_are_read(tmp_path: Path, protocol: int) -> None:
    written = toys.cifar_files(tmp_path, "cifar10", False, protocol)
    source = sources.cifar10(str(tmp_path))
    assert np.array_equal(source.x_test.reshape(2, -1), written["test_batch"][0])


def test_cifar_says_what_is_wrong(tmp_path: Path) -> None:
    refused("should hold data_batch_1 and its companions", sources.cifar10, str(tmp_path))
    toys.cifar_files(tmp_path, "cifar10", True)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused("6145 bytes, which are no records of 3073", sources.cifar10, str(tmp_path))
    path.write_bytes(b"\x0a" + whole[1:])
    refused("data_batch_3.bin should hold labels in 0..9, found: ", sources.cifar10, str(tmp_path))
    path.unlink()
    refused("found no data_batch_3.bin", sources.cifar10, str(tmp_path))
    other = tmp_path / "other"
    toys.cifar_files(other, "cifar100", False)
    (other / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a"]}, 2))
    refused("name 100 fine classes, found: 1", sources.cifar100, str(other))
    for held, said in (
        ({"data": [1]}, "no array of bytes under data"),
        ({"data": images(2, 3072), "coarse_labels": [1, True]}, "no list of small whole numbers"),
        ({"data": images(2, 3072), "coarse_labels": [1]}, "1 coarse_labels for images"),
        ([1], "a list where a dictionary should be"),
    ):
        (other / "train").write_bytes(pickle.dumps(held, 2))
        refused(said, sources.cifar100, str(other))


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.made = call, args

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize(
    "held",
    [
        Evil(os.system, "touch evil"),
        Evil(eval, "open('evil', 'w')"),
        Evil(getattr, "x", "y"),
        Evil(np.save, "evil.npy", 1),
        Evil(bytearray, 10),
        np.array([Evil(os.mkdir, "evil")], object),
        np.zeros(2, [("a", "u1")]),
        np.array(["text"]),
        np.float64(1.0),
        Path("evil"),
    ],
    ids=lambda content: type(content).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_runs_nothing(
    held: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps({"data": held}, protocol))
    with pytest.raises(ValueError, match="UnpicklingError: "):
        unpickling.read(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_array_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    raw = pickle.dumps({"data": np.zeros(7, np.uint8)}, 4)
    (tmp_path / "file").write_bytes(raw.replace(b"K\x07\x85", b"K\x08\x85"))
    with pytest.raises(ValueError, match=r"an array \(8,\) of 7 bytes"):
        unpickling.read(tmp_path / "file")


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=60), cut=st.integers(0, 200), at=st.integers(0, 200))
def test_a_damaged_pickle_is_one_kind_of_error(
    junk: bytes, cut: int, at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = pickle.dumps({"data": np.arange(9, dtype=np.uint8), "labels": [1, 2]}, 2)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw[:at] + junk + raw[at + cut :])
    with contextlib.suppress(ValueError):
        assert isinstance(unpickling.read(path), dict)


# tables

TABLE = """\
age, job,  pay,sick
30 ,nurse, 1.5,no
40,,2.5,yes
50,baker,?,no
60,nurse,4.5,yes
"""


def table(folder: Path, text: str = TABLE, name: str = "a.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_csv_worked_example(tmp_path: Path) -> None:
    # age: mean 45, deviation sqrt((225 + 25 + 25 + 225) / 4) = 11.18; pay 1.5 2.5 4.5, of mean
    # 17/6, which fills the gap; nurse is the most frequent job
    source = sources.csv(table(tmp_path), "sick", missing="impute")
    assert source.features == ("age", "job = baker", "job = nurse", "pay")
    expected = [[30, 0, 1, 1.5], [40, 0, 1, 2.5], [50, 1, 0, 17 / 6], [60, 0, 1, 4.5]]
    assert np.allclose(source.x_train, expected)
    assert np.allclose(source.mean, [45, 0, 0, 17 / 6])
    assert np.allclose(source.std, [125**0.5, 1, 1, np.std([1.5, 2.5, 17 / 6, 4.5])])
    assert (source.class_names, source.y_train.tolist()) == (("no", "yes"), [0, 1, 0, 1])
    assert source.named and source.x_test is None
    assert source.columns["age"].tolist() == [30, 40, 50, 60]
    assert source.columns["job"].tolist() == ["nurse", "", "baker", "nurse"]


def test_csv_can_tell_what_was_missing(tmp_path: Path) -> None:
    source = sources.csv(table(tmp_path), "sick", missing="indicate", drop=("age",))
    names = ("job = missing", "job = baker", "job = nurse", "pay", "pay is missing")
    assert source.features == names
    assert source.x_train[:, [0, 1, 2, 4]].tolist() == [
        [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0],
    ]  # fmt: skip
    assert source.mean[-1] == 0 and source.std[-1] == 1  # flags are no quantities
    assert "age" in source.columns


def test_csv_can_leave_rows_out_and_order_words(tmp_path: Path) -> None:
    source = sources.csv(table(tmp_path), "sick", missing="drop", encode="ordinal", drop=("pay",))
    assert source.features == ("age", "job: baker < nurse")
    assert source.x_train.tolist() == [[30, 1], [50, 0], [60, 1]]
    assert source.std[1] == pytest.approx(np.std([1, 0, 1]))


def test_csv_has_a_test_part_of_its_own(tmp_path: Path) -> None:
    unseen = table(tmp_path, "age,job,pay,sick\n7,pilot,1,yes.\n8,baker,,no.\n", "b.csv")
    mapped = {"yes.": "yes", "no.": "no"}
    source = sources.csv(table(tmp_path), "sick", test=unseen, missing="impute", relabel=mapped)
    assert np.allclose(source.x_test, [[7, 0, 0, 1], [8, 1, 0, 17 / 6]])
    assert source.y_test.tolist() == [1, 0]
    refused("found no., yes.", sources.csv, table(tmp_path), "sick", test=unseen, missing="impute")
    short = table(tmp_path, "age,job,sick\n7,baker,yes\n", "c.csv")
    refused("data.source.test: should have the columns", sources.csv, table(tmp_path), "sick",
            test=short, missing="impute")  # fmt: skip
    odd = table(tmp_path, "age,job,pay,sick\nold,baker,1,yes\n", "d.csv")
    refused("age should hold numbers in the test part", sources.csv, table(tmp_path), "sick",
            test=odd, missing="impute")  # fmt: skip


def test_several_files_are_one_table_that_knows_its_files(tmp_path: Path) -> None:
    names = ("x", "y", "z")
    a = table(tmp_path, "1;2;0\n3;4;1\n", "a.data")
    b = table(tmp_path, "% a comment\n5;6;0\n", "b.data")
    params: dict[str, Any] = {"names": names, "delimiter": ";", "comment": "%"}
    source = sources.csv((a, b), "z", drop=("file",), **params)
    assert source.x_train.tolist() == [[1, 2], [3, 4], [5, 6]] and not source.named
    assert source.columns["file"].tolist() == ["a.data", "a.data", "b.data"]
    refused("3 columns where names has 2", sources.csv, a, "x", **{**params, "names": ("x", "y")})


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
def test_tables_may_be_compressed(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4], "b": ["x", "y", "x", "y"]})
    frame.to_csv(tmp_path / f"t.csv.{ending}", index=False)
    source = sources.csv(str(tmp_path / f"t.csv.{ending}"), "b")
    assert source.x_train[:, 0].tolist() == [1, 2, 3, 4]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(-1e6, 1e6, width=32), st.sampled_from(["up", "down", "left"]),
            st.integers(-5, 5), st.booleans(),
        ),
        min_size=4, max_size=30,
    )
)  # fmt: skip
def test_a_table_is_the_same_as_text_and_as_parquet(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    frame = pd.DataFrame(rows, columns=["f", "w", "i", "b"])
    frame["label"] = ["no", "yes"] * (len(rows) // 2) + ["no"] * (len(rows) % 2)
    folder = tmp_path_factory.mktemp("table")
    frame.astype({"b": int}).to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet")
    text = sources.csv(str(folder / "t.csv"), "label")
    typed = sources.parquet(str(folder / "t.parquet"), "label")
    assert text.features == typed.features
    assert np.allclose(text.x_train, typed.x_train, rtol=1e-6)
    assert np.array_equal(text.y_train, typed.y_train)
    assert np.allclose(typed.x_train[:, 0], frame["f"].to_numpy(np.float32))
    words = [name for name in typed.features if name.startswith("w = ")]
    assert typed.x_train[:, 1 : 1 + len(words)].sum() == len(rows)  # one hot


@pytest.mark.parametrize(
    ("text", "params", "part"),
    [
        (TABLE, {}, "data.source.missing: no value should be missing, found gaps in job (1), pay"),
        (TABLE, {"label": "sik"}, "'sik' (did you mean sick?); the columns are age, job, pay"),
        (TABLE, {"drop": ("foo",)}, "data.source.drop: should name a column, found 'foo'"),
        (TABLE, {"drop": ("age", "job", "pay")}, "should leave a column to learn from"),
        (TABLE, {"missing": "impute", "encode": "refuse"}, "found words in job (baker, nurse)"),
        (TABLE, {"missing": "impute", "label": "age"}, "found 4 different values in 4 rows"),
        (TABLE, {"missing": "impute", "label": "pay"}, "found 1 without"),
        ("a,b\n1,x\n2,y\nold,x\n4,y\n", {"label": "b"}, "1 of 4 values that are none (old)"),
        ("a,b\n1,x\ninf,y\n3,y\n", {"label": "b"}, "1 of 3 values that are none (inf)"),
        ("a,b\n,x\n,y\n,y\n", {"label": "b", "missing": "impute"}, "found none in a; put them"),
        ("a,b\n,x\n,y\n", {"label": "b", "missing": "drop"}, "a row without missing values"),
        ("a,b\nu,x\nv,y\nw,x\n", {"label": "b", "most_categories": 2}, "found 3 (u, v, w)"),
        ("a,a\n1,2\n", {"label": "a"}, "columns without a name of their own ('a')"),
        ("a,b\n1,2,3\n", {"label": "a"}, "Expected 2 fields in line 2, saw 3"),
        ("", {"label": "a"}, "No columns to parse"),
        ("a,b\n", {"label": "b"}, "found none"),
        ("a,b\n1,x\n2,x\n", {"label": "b"}, "at least 2 classes"),
        ("a,b\n1,0.5\n2,x\n", {"label": "c"}, "the columns are a, b"),
    ],
)  # fmt: skip
def test_csv_says_what_is_wrong(
    tmp_path: Path, text: str, params: dict[str, Any], part: str
) -> None:
    refused(part, sources.csv, table(tmp_path, text), **{"label": "sick", **params})


def test_unreadable_tables_are_named(tmp_path: Path) -> None:
    refused("should be a file, found none at", sources.csv, str(tmp_path / "a.csv"), "x")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-9])
    refused("b.csv.gz should be a readable table", sources.csv, str(tmp_path / "b.csv.gz"), "x")
    (tmp_path / "c.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    refused("c.csv should be a readable table", sources.csv, str(tmp_path / "c.csv"), "a")
    refused("should be a file, found none at", sources.csv, str(tmp_path), "a")
    os.mkfifo(tmp_path / "pipe")  # which nobody will ever write to
    refused("should be a file, found none at", sources.csv, str(tmp_path / "pipe"), "a")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    refused(
        "d.parquet should be a readable table", sources.parquet, str(tmp_path / "d.parquet"), "a"
    )
    refused("should name a file", sources.csv, (), "a")
    a, b = table(tmp_path, "x,y\n1,2\n"), table(tmp_path, "x,z\n1,2\n", "e.csv")
    refused("e.csv should have the columns of", sources.csv, (a, b), "y")


def test_parquet_says_what_no_feature_can_be_made_of(tmp_path: Path) -> None:
    frame = pd.DataFrame({"l": [[1], [2, 3]], "d": pd.to_datetime(["2020", "2021"]), "y": [0.5, 1]})
    frame.to_parquet(tmp_path / "t.parquet")
    file = str(tmp_path / "t.parquet")
    refused("y should hold classes, found fractions (0.5)", sources.parquet, file, "y")
    frame["y"] = ["a", "b"]
    frame.to_parquet(tmp_path / "t.parquet")
    said = refused("l should hold numbers or words", sources.parquet, file, "y")
    assert "d should hold numbers or words, found Timestamp" in said  # both at once
    frame = pd.DataFrame({"c": [1.0, None, 2.0, 1.0], "y": [10, 9, 10, 9]})
    frame.to_parquet(tmp_path / "t.parquet")
    source = sources.parquet(file, "y", categories=("c",), missing="indicate")
    assert source.features == ("c = missing", "c = 1", "c = 2")
    assert source.class_names == ("9", "10")  # numbers are ordered as numbers


# image folders


def picture(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L", value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour: Any = value if len(mode) == 1 else (value,) * len(mode)
    Image.new(mode, size, colour).save(path)


def test_image_folder_with_and_without_a_test_set(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        picture(tmp_path / "a" / "train" / name / "1.png", value=10 * i)
        picture(tmp_path / "a" / "train" / name / "2.bmp", value=10 * i + 1)
    picture(tmp_path / "a" / "test" / "dog" / "3.PNG", value=99)
    picture(tmp_path / "a" / "test" / "cat" / "4.png", value=98)
    (tmp_path / "a" / "train" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "train" / "dog" / ".hidden.png").write_text("no picture")
    source = sources.image_folder(str(tmp_path / "a"))
    assert source.class_names == ("cat", "dog") and source.named
    assert source.x_train.shape == (4, 1, 3, 4)
    assert source.x_train[:, 0, 0, 0].tolist() == [0, 1, 10, 11]
    assert source.y_train.tolist() == [0, 0, 1, 1]
    assert (source.x_test[:, 0, 0, 0].tolist(), source.y_test.tolist()) == ([98, 99], [0, 1])
    alone = sources.image_folder(str(tmp_path / "a" / "train"))
    assert alone.x_test is None and np.array_equal(alone.x_train, source.x_train)


def test_colour_is_kept_where_any_picture_has_it(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", value=7)
    picture(tmp_path / "b" / "2.png", mode="RGBA", value=8)
    source = sources.image_folder(str(tmp_path))
    assert source.x_train.shape == (2, 3, 3, 4)
    assert source.x_train[:, :, 0, 0].tolist() == [[7] * 3, [8] * 3]
    assert sources.image_folder(str(tmp_path), channels="grey").x_train.shape == (2, 1, 3, 4)


def test_sizes_are_made_equal_on_request_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", (4, 3))
    picture(tmp_path / "b" / "2.png", (8, 6))
    said = refused(
        "data.source.resize: images should have one size", sources.image_folder, str(tmp_path)
    )
    assert "found 3x4 in " in said and "and 6x8 in " in said and "2.png" in said
    assert sources.image_folder(str(tmp_path), resize=5).x_train.shape == (2, 1, 5, 5)
    source = sources.image_folder(str(tmp_path), resize=(2, 6))
    assert source.x_train.shape == (2, 1, 2, 6) and (source.x_train == 9).all()


def test_image_folder_says_what_is_wrong(tmp_path: Path) -> None:
    refused("should be a folder, found none", sources.image_folder, str(tmp_path / "none"))
    refused("each of at least 2 classes, found none", sources.image_folder, str(tmp_path))
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    refused("found no image in b", sources.image_folder, str(tmp_path))
    buffer = io.BytesIO()
    Image.new("L", (4, 3)).save(buffer, "png")
    (tmp_path / "b" / "2.png").write_bytes(buffer.getvalue()[:-30])
    refused("2.png should be a readable image", sources.image_folder, str(tmp_path))
    (tmp_path / "b" / "2.png").write_text("no picture")
    refused("2.png should be a readable image", sources.image_folder, str(tmp_path))
    Image.new("I;16", (4, 3), 70).save(tmp_path / "b" / "2.png")
    refused("more than 8 bits a pixel", sources.image_folder, str(tmp_path))
    for part in ("train", "test"):
        for name in ("a", "b" if part == "train" else "c"):
            picture(tmp_path / "both" / part / name / "1.png")
    refused("found c beside a, b", sources.image_folder, str(tmp_path / "both"))


READERS = {
    "idx": sources.idx, "cifar10": sources.cifar10, "cifar100": sources.cifar100,
    "image_folder": sources.image_folder, "npz": sources.npz, "hugging_face": sources.hugging_face,
    "csv": lambda file: sources.csv(file, "y"), "parquet": lambda file: sources.parquet(file, "y"),
}  # fmt: skip


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "path",
    ["a\0b", "~no-such-user/x", "x" * 5000, "/proc/self/mem", "/etc/passwd", "/", "\ud800", "a\nb"],
)
def test_odd_paths_are_one_readable_line(read: Callable[[str], Source], path: str) -> None:
    said = refused("found", read, path)
    assert said.isprintable() and len(said) < 1200


# Hugging Face


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine without a connection that has fetched lab/toy and lab/flat before."""
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shape = {"label": datasets.ClassLabel(names=["cat", "dog"]), "writer": datasets.Value("string")}
    rows = [{"label": i % 2, "writer": "ab"[i % 2]} for i in range(8)]
    pictures = [{"image": Image.new("L", (4, 3), 10 * i), **row} for i, row in enumerate(rows)]
    numbers = [{"n": float(i), **row} for i, row in enumerate(rows)]
    toys.fetched("lab/toy", pictures, {"image": datasets.Image(), **shape}, cache)
    toys.fetched("lab/flat", numbers, {"n": datasets.Value("float32"), **shape}, cache)
    return datasets


def test_a_copy_from_the_hub_needs_no_connection(hub: Any) -> None:
    source = sources.hugging_face("lab/toy", revision="a" * 40)
    assert source.x_train.shape == (6, 1, 3, 4) and source.x_test.shape == (2, 1, 3, 4)
    assert source.x_train[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert (source.class_names, source.y_train.tolist()) == (("cat", "dog"), [0, 1] * 3)
    assert source.columns["writer"].tolist() == ["a", "b"] * 3
    assert source.provenance.startswith(f"Hugging Face lab/toy@{'a' * 40}, sha256")
    assert hub.config.HF_HUB_OFFLINE is True and not hub.are_progress_bars_disabled()


def test_a_table_from_the_hub(hub: Any) -> None:
    source = sources.hugging_face("lab/flat")
    assert source.features == ("n", "writer = a", "writer = b")
    assert source.x_train[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert source.class_names == ("cat", "dog") and source.y_test.tolist() == [0, 1]


def test_a_local_folder_by_the_same_name(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for part in ("train", "test"):
        frame = pd.DataFrame({"x": [1, 2, 3, 4], "label": list("abab")})
        frame.to_parquet(tmp_path / "mine" / f"{part}.parquet")
    source = sources.hugging_face(str(tmp_path / "mine"))
    assert source.x_train[:, 0].tolist() == [1, 2, 3, 4] and source.class_names == ("a", "b")
    refused("should be left out for a folder", sources.hugging_face, str(tmp_path / "mine"),
            revision="a" * 40)  # fmt: skip


def test_the_hub_says_what_is_wrong(hub: Any) -> None:
    read = sources.hugging_face
    said = refused("lab/none should be kept on this machine or reachable", read, "lab/none")
    assert "fetch it once with a connection, or set HF_HOME" in said
    refused("should be of commit bbbb", read, "lab/toy", revision="b" * 40)
    refused("config 'odd'", read, "lab/toy", subset="odd")
    refused("'labl' (did you mean label?); the columns are image,", read, "lab/toy", label="labl")
    refused("should have a split val, found train, test", read, "lab/toy", test="val")
    refused("should name the column of pictures", read, "lab/toy", image="writer")
    refused("should be a column of classes", read, "lab/toy", label="writer")
    assert read("lab/toy", test=None).x_test is None
