"""Partitions by size, by shard and by a column, and what stands in the place of the labels."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import data, partitions
from fedkd.config import Data
from fedkd.samples import Source

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))


def sizes(parts: Any) -> list[int]:
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows) and rows.min() >= 0 and rows.max() < 1000
    return [len(part) for part in parts]


def classes(parts: Any) -> list[list[int]]:
    return [np.unique(LABELS[part]).tolist() for part in parts]


def test_sizes_follow_the_client() -> None:
    # of 1000: k / 10, k^2 / 30 and e^k / (e + e^2 + e^3 + e^4); the rest is the last one's
    assert sizes(partitions.linear(LABELS, 4, 0)) == [100, 200, 300, 400]
    assert sizes(partitions.square(LABELS, 4, 0)) == [33, 133, 300, 534]
    assert sizes(partitions.exponential(LABELS, 4, 0)) == [32, 87, 236, 645]
    assert sizes(partitions.size(LABELS, 3, 0, sizes=(1, 500, 7))) == [1, 500, 7]


@pytest.mark.parametrize("name", ["linear", "square", "exponential", "size", "iid"])
def test_sorted_labels_are_shuffled_first(name: str) -> None:
    params = {"sizes": (300, 700)} if name == "size" else {}
    for seed in (0, 1):
        parts = getattr(partitions, name)(np.sort(LABELS), 2, seed, **params)
        assert all(len(np.unique(part // 100)) == 10 for part in parts)
        assert all(np.bincount(part // 100).max() < 0.2 * len(part) for part in parts)
    again = getattr(partitions, name)(np.sort(LABELS), 2, 1, **params)
    other = getattr(partitions, name)(np.sort(LABELS), 2, 2, **params)
    assert np.array_equal(parts[0], again[0]) and not np.array_equal(parts[0], other[0])


@settings(max_examples=20, deadline=None)
@given(clients=st.integers(1, 20), each=st.integers(1, 5), seed=st.integers(0, 999))
def test_shards_are_equal_and_nearly_pure(clients: int, each: int, seed: int) -> None:
    parts = partitions.shard(LABELS, clients, seed, shards_per_client=each)
    shard = 1000 // (clients * each)
    assert sizes(parts) == [each * shard] * clients
    most = each * (1 + -(-shard // 100))  # a shard of s samples touches so many classes at most
    assert max(map(len, classes(parts))) <= most


def test_the_classes_of_a_power_law_are_uneven() -> None:
    parts = partitions.power_law(LABELS, 20, 0, classes_per_client=2, min_per_class=5)
    assert sum(sizes(parts)) == 1000 and [len(c) for c in classes(parts)] == [2] * 20
    assert min(np.bincount(LABELS[part])[np.unique(LABELS[part])].min() for part in parts) >= 5
    assert max(sizes(parts)) > 4 * min(sizes(parts))
    flat = partitions.power_law(LABELS, 20, 0, sigma=0.01)
    assert max(sizes(flat)) < 1.5 * min(sizes(flat))


def test_natural_ids_are_clients_in_their_order() -> None:
    parts = partitions.natural_id(LABELS, 10, 0)
    assert classes(parts) == [[i] for i in range(10)] and sizes(parts) == [100] * 10


@settings(max_examples=20, deadline=None)
@given(clients=st.integers(1, 10), seed=st.integers(0, 999))
def test_grouped_ids_stay_together(clients: int, seed: int) -> None:
    parts = partitions.grouped_natural_id(LABELS, clients, seed)
    held = classes(parts)
    assert sorted(c for ids in held for c in ids) == list(range(10))
    assert sum(sizes(parts)) == 1000
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_strictness_goes_from_everything_to_intervals() -> None:
    values = np.random.default_rng(1).normal(5, 3, 1000)

    def spread(strictness: float) -> float:
        parts = partitions.continuous(values, 5, 0, strictness=strictness)
        assert sizes(parts) == [200] * 5
        return float(np.mean([values[part].std() for part in parts]) / values.std())

    assert spread(0) > 0.9 > spread(0.5) > spread(1)
    parts = partitions.continuous(values, 5, 0, strictness=1)
    ends = [(values[part].min(), values[part].max()) for part in parts]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("name", "clients", "params", "message"),
    [
        ("size", 3, {"sizes": (1, 2)}, "sizes: should be 3 numbers, .*found 2 of 3; correct"),
        ("size", 1, {"sizes": (1001,)}, "at most 1000 samples, found 1 of 1001"),
        ("linear", 50, {}, "takes 1,275 private samples .*found 1,000; lower"),
        ("exponential", 8, {}, "the smallest of 8 clients"),
        ("shard", 600, {}, "at least 2 private samples each need 1200"),
        ("power_law", 15, {}, "a multiple of 10 clients, .*found 15 clients with 2"),
        ("power_law", 20, {"min_per_class": 25}, "min_per_class: 4 clients .*a class of 100"),
        ("natural_id", 9, {}, "each of 10 ids .*found 9 clients; set their number to 10"),
        ("grouped_natural_id", 11, {}, "at most 10 clients, .*found 11; lower"),
        ("continuous", 1001, {}, "need 1001, found 1000"),
    ],
)
def test_what_cannot_be_had_is_said(
    name: str, clients: int, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"data.partition.*{message}"):
        getattr(partitions, name)(LABELS, clients, 0, **params)
    with pytest.raises(ValueError, match=r"data.partition.by: should name a column whose values"):
        partitions.continuous(np.ones(10), 2, 0)


# by a column


def patients() -> Source:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    columns = {
        "hospital": np.array(["Basel", "Bern", "Chur"])[np.arange(200) % 3],
        "age": rng.uniform(20, 90, 200),
    }
    y = np.arange(200, dtype=np.int64) % 2
    return Source(x, y, None, None, 2, ("no", "yes"), (0.0,), (1.0,), "made", "none",
                  columns=columns)  # fmt: skip


def held(by: str | None, partition: Any, clients: int) -> list[Any]:
    chosen = Data.model_validate(
        {"source": "any", "test": 20, "validation": 10, "public": 20,
         "partition": {"name": "any", "by": by}}
    )  # fmt: skip
    return list(data.split(patients(), partition, chosen, clients, 0).private)


def test_a_partition_may_go_by_a_column() -> None:
    source = patients()
    parts = held("hospital", partitions.natural_id, 3)
    found = [np.unique(source.columns["hospital"][part]).tolist() for part in parts]
    assert found == [["Basel"], ["Bern"], ["Chur"]]  # words in their order
    old = held("age", lambda *given: partitions.continuous(*given, strictness=1), 2)
    assert source.columns["age"][old[0]].max() < source.columns["age"][old[1]].min()
    mixed = held("hospital", partitions.dirichlet, 4)
    shares = [np.unique(source.columns["hospital"][p], return_counts=True)[1] for p in mixed]
    assert len({tuple(s) for s in shares}) == 4
    assert len(held(None, partitions.iid, 4)) == 4


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"'hospitl' \(did you mean hospital\?\); there are hosp"):
        held("hospitl", partitions.natural_id, 3)
    chosen = Data.model_validate(
        {"source": "any", "test": 2, "public": 9, "partition": {"name": "x", "by": "a"}}
    )
    with pytest.raises(ValueError, match=r"data.partition.by: .*there are none"):
        data.split(replace(patients(), columns={}), partitions.iid, chosen, 2, 0)


@pytest.mark.parametrize(
    "name", ["shard", "linear", "power_law", "natural_id", "grouped_natural_id", "continuous"]
)
def test_every_partition_runs_by_name(name: str, tmp_path: Path) -> None:
    clients = {"power_law": 10, "natural_id": 10}.get(name, 6)
    plan = small.plan(
        small.config(
            "entropy", f"data.partition={{name: {name}}}",
            clients=[{"count": clients, "model": small.MLP}],
        ),
        tmp_path,
    )  # fmt: skip
    assert plan.dataset.histogram.sum(1).min() > 0
