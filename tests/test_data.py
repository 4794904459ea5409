import gzip
import os
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, ValidationError, validate_call

from fedkd import data, dealing, partitions, publics, sources
from fedkd.config import Data, Public
from fedkd.partitions import by_label

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def toy(train=200, test=0, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (train + test, 1, 3, 2), dtype=np.uint8)
    y = np.arange(train + test, dtype=np.int64) % classes
    official = (x[train:], y[train:]) if test else (None, None)
    return sources.Source(
        x[:train], y[:train], *official, classes, tuple("abcdefgh"[:classes]),
        (0.5,), (0.25,), "made by the tests", "none",
    )  # fmt: skip


def in_blocks(labels, clients, seed):
    return np.array_split(np.arange(len(labels)), clients)


def parts_of(splits):
    return (splits.test, splits.validation, *splits.public, *splits.private)


def keep(source, splits, folder, labelled=False):
    """Write splits whose public sets are all held back from the source."""
    wanted = [Public(size=max(1, len(rows)), labelled=labelled) for rows in splits.public]
    drawn = publics.draw(source, [None] * len(wanted), splits.public, wanted, 0)
    data.write(source, splits, drawn, folder)


def same(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


# sources


def write_idx(path, values, magic=None):
    head = magic or bytes((0, 0, 8, values.ndim))
    content = head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(params=["", ".gz"])
def mnist_like(tmp_path, request):
    rng = np.random.default_rng(0)
    for part, size in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (size, 4, 3), dtype=np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{request.param}", images)
        labels = np.arange(size, dtype=np.uint8) % 3
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{request.param}", labels)
    return tmp_path, request.param


def test_idx_reads_what_was_written(mnist_like):
    folder, _ = mnist_like
    source = sources.idx(str(folder), class_names=("x", "y", "z"), mean=(0.1,), std=(0.2,))
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 3), dtype=np.uint8)
    assert np.array_equal(source.x_train, images[:, None])
    assert source.x_test.shape == (5, 1, 4, 3)
    assert source.y_train.tolist() == [0, 1, 2] * 4
    assert source.y_test.tolist() == [0, 1, 2, 0, 1]
    assert (source.class_names, source.mean, source.std) == (("x", "y", "z"), (0.1,), (0.2,))
    assert sources.idx(str(folder)).class_names == ("0", "1", "2")


def test_idx_names_pixels_and_not_places(tmp_path_factory, mnist_like):
    folder, ending = mnist_like
    other = tmp_path_factory.mktemp("other")
    for path in folder.iterdir():
        content = gzip.decompress(path.read_bytes()) if ending else path.read_bytes()
        (other / path.name.removesuffix(".gz")).write_bytes(content)
    assert sources.idx(str(folder)).provenance == sources.idx(str(other)).provenance


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), f"should hold {IMAGES} or {IMAGES}.gz, found neither in"),
        (lambda p: p.write_bytes(b""), f"{IMAGES}.*(an empty file|readable)"),
        (lambda p: write_idx(p, np.zeros((12, 2), np.uint8)), "3 dimensions .*found 00 00 08 02"),
        (
            lambda p: write_idx(p, np.zeros((0, 4, 3), np.uint8)),
            r"sizes above 0, found \(0, 4, 3\)",
        ),
        (lambda p: write_idx(p, np.zeros((11, 4, 3), np.uint8)), "as labels, found 11 and 12"),
        (lambda p: write_idx(p, np.zeros((12, 5, 3), np.uint8)), r"one size, found \(5, 3\) and"),
        (
            lambda p: write_idx(p, np.zeros((12, 4, 3), np.uint8), b"\0\0\x0d\3"),
            "found 00 00 0d 03",
        ),
    ],
)
def test_idx_says_what_is_wrong(mnist_like, damage, message):
    folder, ending = mnist_like
    damage(folder / f"{IMAGES}{ending}")
    with pytest.raises(ValueError, match=f"data.source.folder: .*{message}.*;"):
        sources.idx(str(folder))


def test_idx_counts_the_values(mnist_like):
    folder, ending = mnist_like
    path = folder / f"{IMAGES}{ending}"
    pack = gzip.compress if ending else bytes
    for sizes, found in (((12, 4, 3), 100), ((2**32 - 1,) * 3, 144), ((12, 4, 3), 145)):
        path.write_bytes(pack(bytes((0, 0, 8, 3)) + struct.pack(">3I", *sizes) + bytes(found)))
        seen = "more" if found == 145 else found
        with pytest.raises(ValueError, match=f"{path.name} should hold .*found {seen}; fetch"):
            sources.idx(str(folder))


def test_idx_notices_a_truncated_archive(mnist_like):
    folder, ending = mnist_like
    path = folder / f"{IMAGES}{ending}"
    whole = path.read_bytes()
    for length in (7, 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"data.source.folder: .*{path.name}.*fetch"):
            sources.idx(str(folder))


def test_digits():
    source = sources.digits()
    assert (source.x_train.shape, source.x_train.dtype) == ((1797, 1, 8, 8), np.float32)
    assert (source.x_train.min(), source.x_train.max(), source.x_test) == (0, 1, None)
    assert np.bincount(source.y_train).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


def test_fashion_mnist_as_distributed():
    place = os.environ.get("FEDKD_DATA", Path(__file__).parents[2] / "shared" / "data")
    folder = Path(place) / "fashion_mnist"
    if not folder.is_dir():
        pytest.skip("no Fashion-MNIST: set FEDKD_DATA to a folder that holds fashion_mnist/")
    source = sources.idx(str(folder))
    assert np.bincount(source.y_train).tolist() == [6000] * 10
    assert np.bincount(source.y_test).tolist() == [1000] * 10
    assert round(float(source.x_train.mean() / 255), 4) == 0.2860


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((8, 2, 2), np.uint8)}, r"x_train should be .*uint8 \[8, 2, 2\]"),
        ({"x_train": np.zeros((8, 2))}, r"x_train should be .*float64 \[8, 2\]"),
        ({"x_train": np.zeros((0, 2), np.uint8)}, r"not empty, found uint8 \[0, 2\]"),
        ({"x_train": np.full((8, 2), np.nan, np.float32)}, "x_train should be finite, found 16"),
        ({"y_train": np.zeros(7, np.int64)}, r"y_train should be int64 \[8\].*found int64 \[7\]"),
        ({"y_train": np.zeros(8)}, r"y_train should be int64 .*found float64"),
        ({"y_train": np.full(8, 4)}, r"labels of y_train should be in 0..3, found 4..4"),
        ({"y_train": np.full(8, -1)}, r"found -1..-1"),
        ({"x_test": None}, "x_test and y_test should come together"),
        ({"x_test": np.zeros((4, 1, 3, 3), np.uint8)}, "x_test should be of the type and sample"),
        ({"x_test": np.zeros((4, 1, 3, 2), np.float32)}, "x_test should be of the type and sample"),
        ({"y_test": np.full(4, 9)}, "labels of y_test"),
        ({"class_names": ("a",)}, "class_names should name each .*found 1 names for 4 classes"),
        ({"mean": (0.0, 0.0)}, r"mean: should hold 1 finite value or 1"),
        ({"mean": (float("inf"),)}, r"mean: should hold 1 finite value"),
        ({"std": (0.0,)}, r"std: should be > 0, found \(0.0,\); raise it"),
    ],
)
def test_source_checks_itself(change, message):
    with pytest.raises(ValueError, match=f"data.source.*{message}"):
        replace(toy(8, 4), **change)


# partitions

NAMES = [("iid", {}), ("dirichlet", {"alpha": 0.3}), ("inner_dirichlet", {"alpha": 0.3}),
         ("pathological", {"classes_per_client": 2}), ("linear", {}),
         ("continuous", {"strictness": 0.7})]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), NAMES)
@settings(max_examples=15, deadline=None)
@given(clients=st.integers(2, 9), seed=st.integers(0, 2**63 - 1), ordered=st.booleans())
def test_partitions_give_every_sample_once(name, params, clients, seed, ordered):
    labels = np.sort(np.random.default_rng(7).choice([0, 3, 4], 150))
    if not ordered:
        labels = np.random.default_rng(8).permutation(labels)
    draw = partial(getattr(partitions, name), **params)
    parts = draw(labels, clients, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(150))
    assert len(parts) == clients and min(map(len, parts)) > 0
    assert same(parts, draw(labels, clients, seed))
    assert not same(parts, draw(labels, clients, seed ^ 1))


def test_iid_shuffles_sorted_labels():
    # 100 of 1000 drawn without replacement: standard deviation 2.8 a class
    parts = partitions.iid(np.repeat(np.arange(10), 100), 10, 3)
    counts = np.array([np.bincount(part // 100, minlength=10) for part in parts])
    assert (counts.sum(1) == 100).all()
    assert 0 < np.abs(counts - 10).max() < 15


@pytest.mark.parametrize("seed", range(8))
def test_dirichlet_keeps_the_least_size_of_the_default(seed):
    labels = np.random.default_rng(seed).integers(0, 10, 850)
    parts = partitions.dirichlet(labels, 10, seed, alpha=0.1, min_size=10)
    assert min(map(len, parts)) >= 10


def test_dirichlet_retries_more_often_than_the_library(monkeypatch):
    # 1 draw in 11 leaves everybody 30 samples: the library's 11 draws fail one time in three
    labels = np.random.default_rng(0).integers(0, 10, 850)
    draw = partial(partitions.dirichlet, labels, 10, alpha=0.1, min_size=30)
    assert min(len(part) for seed in range(8) for part in draw(seed)) >= 30
    monkeypatch.setattr(dealing, "ATTEMPTS", 1)
    monkeypatch.setattr(by_label, "ATTEMPTS", 1)
    with pytest.raises(ValueError, match="every one of 11 draws"):
        [draw(seed) for seed in range(8)]


def test_alpha_sets_the_skew():
    labels = np.random.default_rng(0).integers(0, 10, 5_000)

    def top_share(name, alpha):
        parts = getattr(partitions, name)(labels, 10, 1, alpha=alpha)
        return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])

    for name in ("dirichlet", "inner_dirichlet"):
        assert top_share(name, 100.0) < 0.2 < 0.4 < top_share(name, 0.1)


@pytest.mark.parametrize(
    ("clients", "each"), [(10, 1), (10, 2), (23, 3), (5, 2), (4, 3), (3, 7), (1, 10), (6, 10)]
)
def test_pathological_uses_every_class(clients, each):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 60))
    parts = partitions.pathological(labels, clients, 4, classes_per_client=each)
    assert [len(np.unique(labels[part])) for part in parts] == [each] * clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))


@pytest.mark.parametrize(("name", "params"), [NAMES[0], NAMES[3]])
def test_two_thousand_clients(name, params):
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    parts = getattr(partitions, name)(labels, 2_000, 0, **params)
    assert len(np.unique(np.concatenate(parts))) == 60_000
    assert 25 <= min(map(len, parts)) <= max(map(len, parts)) <= 35


@pytest.mark.parametrize(
    ("name", "clients", "params", "message"),
    [
        ("iid", 101, {}, "101 clients with at least 1 .* need 101, found 100"),
        ("dirichlet", 10, {"min_size": 11}, "at least 11 .* need 110, found 100"),
        ("dirichlet", 10, {"min_size": 10, "alpha": 0.1}, "min_size: .* every one of 110 draws"),
        ("inner_dirichlet", 3, {"alpha": 1e-6}, "alpha: .*every one of 10 draws; raise alpha"),
        ("pathological", 3, {"classes_per_client": 5}, "classes_per_client: .*most 4.*found 5"),
        ("pathological", 3, {"classes_per_client": 1}, "found 1 each; raise it to 2"),
        ("pathological", 90, {"classes_per_client": 4}, "class of 25 samples with more holders"),
    ],
)
def test_partitions_say_what_cannot_be_had(name, clients, params, message):
    with pytest.raises(ValueError, match=f"data.partition.*{message}"):
        getattr(partitions, name)(np.arange(100) % 4, clients, 0, **params)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("dirichlet", {"alpha": 0}), ("dirichlet", {"alpha": float("nan")}),
     ("dirichlet", {"min_size": 0}), ("inner_dirichlet", {"alpha": -1.0}),
     ("pathological", {"classes_per_client": 0})],
)  # fmt: skip
def test_annotations_refuse_impossible_values(name, wrong):
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(
        getattr(partitions, name)
    )
    with pytest.raises(ValidationError):
        checked(np.arange(100) % 4, 5, 0, **wrong)


# splits


@settings(deadline=None)
@given(
    own=st.sampled_from([0, 30]), test=st.integers(1, 30), validation=st.integers(0, 40),
    public=st.integers(1, 60), private=st.none() | st.integers(5, 70), clients=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_splits_are_disjoint_and_cover(own, test, validation, public, private, clients, seed):
    wanted = Data(test=test, validation=validation, public=public, private=private or "auto")
    splits = data.split(toy(200, own), in_blocks, wanted, clients, seed)
    rows = np.concatenate(parts_of(splits))
    assert len(np.unique(rows)) == len(rows)
    assert [len(part) for part in parts_of(splits)[:3]] == [test, validation, public]
    left = 200 - (0 if own else test) - validation - public
    assert sum(map(len, splits.private)) == (private or left)
    assert (splits.test >= 200).all() if own else (rows < 200).all()
    if private is None:
        assert len(rows) == 200 + (test if own else 0)


def test_the_official_test_set_is_taken_whole():
    splits = data.split(toy(100, 20), in_blocks, Data(validation=5, public=5), 2, 0)
    assert splits.test.tolist() == list(range(100, 120))


@pytest.mark.parametrize("own", [0, 50])
def test_splits_follow_the_seed(own):
    draw = partial(data.split, toy(200, own), in_blocks, Data(test=20, validation=20, public=20), 4)
    first, again, other = draw(1), draw(1), draw(2)
    assert same(parts_of(first), parts_of(again))
    pairs = zip(parts_of(first), parts_of(other), strict=True)
    assert not any(np.array_equal(a, b) for a, b in pairs)


def test_one_choice_does_not_move_the_others():
    wanted = Data(test=20, validation=20, public=20)
    first = data.split(toy(), in_blocks, wanted, 4, 1)
    other = data.split(toy(), partitions.iid, wanted, 7, 1)
    assert same(parts_of(first)[:3], parts_of(other)[:3])
    larger = data.split(toy(), in_blocks, Data(test=20, validation=20, public=50), 4, 1)
    assert same(parts_of(first)[:2], parts_of(larger)[:2])
    assert set(first.public[0]) < set(larger.public[0])


@pytest.mark.parametrize(
    ("source", "wanted", "message"),
    [
        (toy(), Data(), "data.test: should be a number .*found auto; set it, as in data.test=40"),
        (toy(), Data(test=201), "data.test: .*at most 200, .*after nothing, found 201"),
        (toy(), Data(test=150), "data.validation: .*at most 50, .*data.test.*found 97"),
        (toy(), Data(test=100, validation=20, public=90), "data.public.size: .*80.*found 90"),
        (toy(), Data(test=100, validation=20, public=70, private=11), "data.private: .*10.*11"),
        (toy(), Data(test=100, validation=20, public=79), "data.private: .*most 1, .*found 4"),
        (toy(200, 9), Data(test=10), "data.test: .*at most 9, .*own test set, found 10; lower"),
        (toy(), Data(test=9, validation=1, public=1, private=3), "data.partition: .*client 3"),
    ],
)
def test_split_says_what_does_not_fit(source, wanted, message):
    with pytest.raises(ValueError, match=message):
        data.split(source, in_blocks, wanted, 4, 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0], [1], [2]], "found 3 arrays"),
        ([[0.5], [1], [2], [3]], "not a list of integers"),
        ([[0], [1], [], [2]], r"no sample for client 2 \(1 empty clients\)"),
        ([[0], [1], [2], [999]], r"found indices 0..999"),
        ([[0], [1], [-1], [2]], r"found indices -1..2"),
        ([[0], [1, 0], [2], [3]], "found 1 samples given out twice"),
    ],
)
def test_a_partition_is_held_to_its_contract(parts, message):
    def broken(labels, clients, seed):
        return [np.array(part, dtype=float if part == [0.5] else np.int64) for part in parts]

    with pytest.raises(ValueError, match=f"data.partition: should give 4 disjoint.*{message}"):
        data.split(toy(), broken, Data(test=20, validation=20, public=20), 4, 0)


# on disk


@pytest.fixture
def written(tmp_path):
    source = toy(200, 40)
    splits = data.split(source, in_blocks, Data(validation=10, public=30), 3, 5)
    keep(source, splits, tmp_path / "data")
    return source, splits, data.load(tmp_path / "data"), tmp_path


def test_what_is_written_comes_back(written):
    source, splits, dataset, _ = written
    pooled, labels = (
        np.concatenate(pair)
        for pair in ((source.x_train, source.x_test), (source.y_train, source.y_test))
    )
    assert np.array_equal(dataset.x, pooled) and not dataset.x.flags.writeable
    read = (dataset.test, dataset.validation, dataset.public, *map(dataset.private, range(3)))
    assert same(read, parts_of(splits))
    assert (dataset.clients, dataset.classes, dataset.shape) == (3, 4, (1, 3, 2))
    facts = ("class_names", "mean", "std", "provenance", "licence")
    assert all(getattr(dataset, name) == getattr(source, name) for name in facts)
    for client in range(3):
        expected = np.bincount(labels[splits.private[client]], minlength=4)
        assert np.array_equal(dataset.histogram[client], expected)
    with pytest.raises(ValueError, match=r"client should be in 0\.\.2, found 3"):
        dataset.private(3)


def test_public_labels_are_stripped(written):
    source, splits, dataset, folder = written
    (public,) = splits.public
    assert (dataset.y[public] == -1).all() and (dataset.labels(public) == -1).all()
    others = np.setdiff1d(np.arange(240), public)
    truth = np.concatenate((source.y_train, source.y_test))
    assert np.array_equal(dataset.y[others], truth[others])
    assert np.array_equal(dataset.truth, truth[public])
    keep(source, splits, folder / "labelled", labelled=True)
    labelled = data.load(folder / "labelled")
    assert np.array_equal(labelled.y, truth) and (labelled.told, dataset.told) == (30, 0)


def test_batches_are_normalised_copies(written):
    source, splits, dataset, _ = written
    (public,) = splits.public
    batch = dataset.batch(public)
    expected = (source.x_train[public].astype(np.float32) / 255 - 0.5) / 0.25
    assert batch.dtype == torch.float32 and np.array_equal(batch.numpy(), expected)
    assert dataset.labels(splits.test).dtype == torch.int64
    batch.zero_()  # a copy: the file below cannot be written through
    assert np.array_equal(dataset.batch(public).numpy(), expected)
    assert dataset.batch(public[:0]).shape == (0, 1, 3, 2)


def test_each_channel_has_its_own_scale(tmp_path):
    x = np.ones((8, 3, 2, 2), np.float32)
    three = replace(toy(8), x_train=x, mean=(1.0, 0.0, -1.0), std=(1.0, 2.0, 4.0))
    flat = replace(three, x_train=x[:, :, 0, 0])
    for name, source in (("images", three), ("flat", flat)):
        splits = data.split(source, in_blocks, Data(test=2, validation=0, public=2), 2, 0)
        keep(source, splits, tmp_path / name)
        dataset = data.load(tmp_path / name)
        assert len(dataset.validation) == 0
        batch = dataset.batch(dataset.public).reshape(2, 3, -1)
        assert batch.mean((0, 2)).tolist() == [0.0, 0.5, 0.5]


def test_same_seed_same_bytes(written, tmp_path):
    source, splits, _, _ = written
    keep(source, splits, tmp_path / "again")
    files = sorted(p.relative_to(tmp_path / "data") for p in (tmp_path / "data").rglob("*.*"))
    assert len(files) == 10
    for name in files:
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_nothing_is_overwritten_or_left_half_written(written, monkeypatch):
    source, splits, _, folder = written
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="should not exist yet; choose another folder"):
        keep(source, splits, folder / "data")
    with pytest.raises(ValueError, match=r"should be writable, found: .*; choose another"):
        keep(source, splits, folder / "data" / "x.npy" / "below")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ValueError, match="No space left"):
        keep(source, splits, folder / "more")
    assert sorted(folder.rglob("*")) == before


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data.json", lambda p: p.unlink()),
        ("data.json", lambda p: p.write_text("[]")),
        ("data.json", lambda p: p.write_text(p.read_text().replace('"format": 3', '"format": 0'))),
        ("data.json", lambda p: p.write_text(p.read_text().replace("240", "241"))),
        ("x.npy", shorten),
        ("y.npy", lambda p: np.save(p, np.zeros(7, np.int64))),
        ("y.npy", lambda p: np.save(p, np.array([{}] * 240), allow_pickle=True)),
        ("splits/public.npy", lambda p: np.save(p, np.arange(211, 241))),
        ("splits/offsets.npy", lambda p: np.save(p, np.array([0, 5, 5, 160]))),
    ],
)
def test_a_damaged_folder_is_refused(written, name, damage):
    folder = written[3] / "data"
    damage(folder / name)
    with pytest.raises(ValueError, match=f"data: {folder} should hold a complete data set.*remove"):
        data.load(folder)


# a client's own distribution


def test_own_weights_worked_example(tmp_path):
    # test labels 0 0 1 2; client 0 holds labels 0 0 0 1, client 1 only 3, which the test lacks:
    # p = (3/4, 1/4), n = (2, 1, 1), so that w = (3/8, 3/8, 1/4, 0)
    y = np.array([0, 0, 0, 1, 3, 3, 2, 2, 0, 0, 1, 2])
    source = replace(toy(12), y_train=y)
    rows = [np.arange(4), np.arange(4, 6)]
    splits = data.Splits(np.arange(8, 12), np.arange(6, 7), (np.arange(7, 8),), tuple(rows))
    keep(source, splits, tmp_path / "data")
    dataset = data.load(tmp_path / "data")
    assert data.own_weights(dataset, 0).tolist() == [0.375, 0.375, 0.25, 0.0]
    with pytest.raises(
        ValueError, match=r"class of client 1, found none of \[3\]; raise data.test"
    ):
        data.own_weights(dataset, 1)
    mixed = replace(dataset, rows=np.arange(2, 5), offsets=np.array([0, 3]))
    # labels 0 1 3: without 3, a half each
    assert data.own_weights(mixed, 0).tolist() == [0.25, 0.25, 0.5, 0.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_own_weights_are_a_distribution(seed, tmp_path_factory):
    splits = data.split(toy(), partitions.iid, Data(test=50, validation=1, public=1), 3, seed)
    folder = tmp_path_factory.mktemp("own") / "data"
    keep(toy(), splits, folder)
    weights = data.own_weights(data.load(folder), seed % 3)
    assert weights.min() >= 0 and abs(float(weights.sum()) - 1) < 1e-12
