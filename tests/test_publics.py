"""Public sets: what they hold, who knows their labels, and which accuracies are told of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import data, losses, publics
from fedkd.assemble import Plan
from fedkd.config import Data
from fedkd.forms import fitted, noise
from fedkd.samples import Source
from fedkd.types import Target

NAMES = ("cat", "dog", "cow")


def toy(
    shape: tuple[int, ...] = (1, 6, 5), *, train: int = 90, seed: int = 0, **facts: Any
) -> Source:
    """Bytes [train, *shape] in three classes, without a test set."""
    x = np.random.default_rng(seed).integers(0, 256, (train, *shape), dtype=np.uint8)
    y = np.arange(train, dtype=np.int64) % 3
    made = Source(x, y, None, None, 3, NAMES, (0.5,), (0.25,), "made by the tests", "none")
    return replace(made, **facts)


def floats(source: Source) -> Source:
    return replace(source, x_train=(source.x_train / 255).astype(np.float32))


def in_blocks(labels: Any, clients: int, seed: int) -> Any:
    return np.array_split(np.arange(len(labels)), clients)


def drawn(
    source: Source, wanted: list[dict[str, Any]], others: dict[int, Source] | None = None,
    seed: int = 0,
) -> tuple[data.Splits, publics.PublicRows]:  # fmt: skip
    """All public sets of a config, over splits with nothing else held back."""
    chosen = Data.model_validate(
        {"source": "any", "test": 5, "validation": 5, "public": wanted, "partition": "any"}
    )
    splits = data.split(source, in_blocks, chosen, 2, seed)
    given = [(others or {}).get(i) for i in range(len(wanted))]
    return splits, publics.draw(source, given, splits.public, chosen.publics, seed)


OTHER = {"source": "another"}

# what a set holds


def test_a_set_that_is_held_back_hides_its_labels() -> None:
    source = toy()
    splits, public = drawn(source, [{"size": 20}])
    assert np.array_equal(public.index, splits.public[0]) and not public.brought
    assert (public.labels == -1).all() and np.array_equal(
        public.truth, source.y_train[public.index]
    )
    _, told = drawn(source, [{"size": 20, "labelled": True}])
    assert np.array_equal(told.labels, public.truth) and np.array_equal(told.index, public.index)


@settings(deadline=None)
@given(gaps=st.lists(st.sampled_from([0, 1, 2, *NAMES]), max_size=3), size=st.integers(1, 25),
       seed=st.integers(0, 999))  # fmt: skip
def test_classes_left_out_stay_private(gaps: list[Any], size: int, seed: int) -> None:
    source = toy()
    left = {0, 1, 2} - {NAMES.index(g) if isinstance(g, str) else g for g in gaps}
    wanted = [{"size": size, "without": gaps}, {"size": 4}]
    if not left:
        with pytest.raises(
            ValueError, match=r"data.public.0.size: should be at most 0, .*left out"
        ):
            drawn(source, wanted, seed=seed)
        return
    splits, public = drawn(source, wanted, seed=seed)
    assert set(public.truth[:size]) <= left and len(public.truth) == size + 4
    rows = np.concatenate((splits.test, splits.validation, *splits.public, *splits.private))
    assert np.array_equal(np.sort(rows), np.arange(90))
    if not gaps:  # a gap moves nothing before it, and no gap is no change
        whole, _ = drawn(source, [{"size": size}, {"size": 4}], seed=seed)
        assert np.array_equal(whole.public[0], splits.public[0])
    plain, _ = drawn(source, [{"size": 1}], seed=seed)
    assert np.array_equal(plain.test, splits.test)


def test_several_sets_lie_end_to_end() -> None:
    source, other = toy(), toy(seed=1)
    wanted = [{"size": 10}, {**OTHER, "size": 7}, {"noise": "uniform", "size": 4}, {"size": 5}]
    _, public = drawn(source, wanted, {1: other})
    assert public.sets.tolist() == [0] * 10 + [1] * 7 + [2] * 4 + [3] * 5
    assert public.index[10:21].tolist() == list(range(90, 101))
    assert [len(x) for x in public.brought] == [7, 4]
    assert [o.kind for o in public.origins] == [
        "data.source",
        "another",
        "uniform noise",
        "data.source",
    ]
    # every set has a stream of its own: what one is does not move another
    _, again = drawn(source, [{"size": 10}, {**OTHER, "size": 7}], {1: other})
    assert np.array_equal(again.brought[0], public.brought[0])
    _, moved = drawn(source, wanted, {1: other}, seed=1)
    assert not np.array_equal(moved.brought[0], public.brought[0])
    assert not np.array_equal(moved.brought[1], public.brought[1])


def test_wrong_labels_are_wrong_and_no_secret_is_told() -> None:
    source = toy()
    _, public = drawn(source, [{"size": 40, "labelled": True, "label_noise": 0.25}])
    assert (public.labels != public.truth).sum() == 10  # exactly that share
    assert set(public.labels) <= {0, 1, 2} and np.array_equal(
        public.truth, source.y_train[public.index]
    )
    many = replace(toy(train=3000))
    _, public = drawn(many, [{"size": 2000, "labelled": True, "label_noise": 0.9}])
    wrong = public.labels != public.truth
    shift = (public.labels - public.truth)[wrong] % 3
    assert wrong.sum() == 1800 and 700 < (shift == 1).sum() < 1100  # either of the others


# another data set


def test_labels_of_another_domain_mean_nothing() -> None:
    source, other = toy(), toy(seed=1, class_names=("a", "i", "u"))
    _, public = drawn(source, [{**OTHER, "size": 30}], {0: other})
    assert (public.truth == -1).all() and (public.labels == -1).all()
    with pytest.raises(ValueError, match=r"data.public.0?.?labelled: should be false .* a, i, u"):
        drawn(source, [{**OTHER, "size": 30, "labelled": True}], {0: other})
    # numbers are no names: 0 to 2 of the one are not 0 to 2 of the other
    numbered = {"class_names": ("0", "1", "2"), "named": False}
    source, other = toy(**numbered), toy(seed=1, **numbered)
    _, public = drawn(source, [{**OTHER, "size": 30}], {0: other})
    assert (public.truth == -1).all()
    with pytest.raises(ValueError, match="numbers, no names"):
        drawn(source, [{**OTHER, "size": 30, "labelled": True}], {0: other})


def test_the_same_classes_are_matched_by_name() -> None:
    source, other = toy(), toy(seed=1, class_names=("dog", "cow", "cat"))
    _, public = drawn(source, [{**OTHER, "size": 90, "labelled": True}], {0: other})
    expected = [NAMES.index(other.class_names[y]) for y in other.y_train]
    assert public.truth.tolist() == public.labels.tolist() == expected
    wanted = [{"size": 1}, {**OTHER, "size": 60, "without": ["cow"]}]
    _, hidden = drawn(source, wanted, {1: other})
    assert 2 not in hidden.truth[1:] and (hidden.labels == -1).all()  # known to evaluation


def test_what_the_source_has_too_is_not_public() -> None:
    source = toy(train=80)
    x = np.concatenate((source.x_train[:30], toy(train=60, seed=1).x_train))
    other = toy(x_train=x)
    _, public = drawn(source, [{**OTHER, "size": 60}], {0: other})
    assert np.array_equal(public.brought[0], x[30:])
    with pytest.raises(ValueError, match=r"data.public.size: should be at most 60, .*has too"):
        drawn(source, [{**OTHER, "size": 61}], {0: other})
    tested = replace(source, x_test=x[40:50], y_test=np.zeros(10, np.int64))
    with pytest.raises(ValueError, match="should be at most 50"):
        drawn(tested, [{**OTHER, "size": 51}], {0: other})


@pytest.mark.parametrize("private", [toy, lambda shape: floats(toy(shape))])
@pytest.mark.parametrize("public", [toy, lambda shape: floats(toy(shape))])
@pytest.mark.parametrize(
    "shapes",
    [((1, 6, 5), (3, 9, 9)), ((3, 6, 5), (1, 3, 4)), ((3, 4, 4), (3, 8, 8))],
)
def test_pictures_take_the_form_of_the_private_ones(private: Any, public: Any, shapes: Any) -> None:
    source, other = private(shapes[0]), public(shapes[1])
    x = fitted(other, np.arange(40), source, "data.public")
    assert x.shape == (40, *shapes[0]) and x.dtype == source.x_train.dtype

    def unit(values: np.ndarray) -> np.ndarray:
        return values / 255 if values.dtype == np.uint8 else values

    # a picture keeps its brightness, up to rounding and the sampling of few pixels
    before, after = unit(other.x_train[:40]), unit(x)
    if shapes[1][0] == 3 and shapes[0][0] == 1:
        before = (before * np.array([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(
            1, keepdims=True
        )
    assert np.abs(after.mean((1, 2, 3)) - before.mean((1, 2, 3))).max() < 0.06
    flat = replace(other, x_train=np.full_like(other.x_train, other.x_train.max()))
    made = unit(fitted(flat, np.arange(3), source, "data.public"))
    assert np.allclose(made, unit(flat.x_train).max(), atol=1 / 255)


def test_channels_worked_example() -> None:
    # grey = 0.299 R + 0.587 G + 0.114 B: red 255 is 76.2, green 149.7, blue 29.1
    pixels = np.zeros((3, 3, 1, 1), np.uint8)
    pixels[range(3), range(3)] = 255
    other = toy(x_train=np.tile(pixels, (1, 1, 2, 2)), y_train=np.arange(3))
    grey = fitted(other, np.arange(3), toy((1, 1, 1)), "data.public")
    assert grey.flatten().tolist() == [76, 150, 29]
    back = fitted(replace(other, x_train=grey), np.arange(3), toy((3, 1, 1)), "data.public")
    assert (back == grey).all() and back.shape == (3, 3, 1, 1)


def test_what_cannot_take_that_form_is_refused() -> None:
    def said(other: Source, source: Source, part: str) -> None:
        with pytest.raises(ValueError, match=f"data.public.source: .*{part}.*;"):
            fitted(other, np.arange(3), source, "data.public")

    said(toy((2, 6, 5)), toy((3, 6, 5)), "pictures of 2 channels cannot become pictures of 3")
    wide = floats(toy())
    said(replace(wide, x_train=wide.x_train * 9 - 4), toy((1, 3, 3)), "on the scale of data.source")
    said(toy((1, 3, 3)), replace(wide, x_train=wide.x_train * 255), "on the scale of data.source")
    said(toy((30,)), toy(), "the features of data.source")
    said(toy((4,)), toy((3,)), r"found \[4\] beside \[3\]")
    table = toy((2,), features=("age", "pay"))
    said(toy((2,), features=("age", "sex")), table, r"\(pay, sex in one of them\)")
    said(toy((2,), features=("pay", "age")), table, "in their order")
    assert len(fitted(toy((2,), features=("age", "pay")), np.arange(3), table, "data.public")) == 3


# noise


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "pink"])
@pytest.mark.parametrize("source", [toy((3, 16, 16)), floats(toy((3, 16, 16)))])
def test_noise_has_the_declared_mean_and_spread(kind: str, source: Source) -> None:
    source = replace(source, mean=(0.3, 0.5, 0.6), std=(0.1, 0.1, 0.05))
    x = noise(source, kind, 400, np.random.default_rng(0), "data.public")
    assert x.shape == (400, 3, 16, 16) and x.dtype == source.x_train.dtype
    values = x / 255 if x.dtype == np.uint8 else x
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    if kind == "uniform" and x.dtype == np.uint8:  # bytes are drawn over their whole range
        assert np.allclose(mean, 0.5, atol=0.01) and np.allclose(std, 12**-0.5, atol=0.01)
        return
    assert np.allclose(mean, source.mean, atol=0.01) and np.allclose(std, source.std, atol=0.01)


def test_pink_noise_is_smooth_and_white_noise_is_not() -> None:
    def roughness(kind: str) -> float:
        source = replace(floats(toy((1, 32, 32))), mean=(0.0,), std=(1.0,))
        x = noise(source, kind, 200, np.random.default_rng(0), "data.public")
        return float(np.square(np.diff(x, axis=3)).mean())

    assert roughness("gaussian") == pytest.approx(2, rel=0.05)  # of independent neighbours
    assert roughness("pink") < 1
    with pytest.raises(ValueError, match=r"data.public.noise: pink should be for pictures"):
        noise(toy((4,)), "pink", 3, np.random.default_rng(0), "data.public")
    assert noise(toy((4,)), "gaussian", 3, np.random.default_rng(0), "data.public").shape == (3, 4)


def test_noise_has_no_class() -> None:
    _, public = drawn(toy(), [{"noise": "gaussian", "size": 8}])
    assert (public.truth == -1).all() and public.origins[0].kind == "gaussian noise"


# on the way


def test_written_and_loaded(tmp_path: Path) -> None:
    source, other = toy(), toy((3, 7, 7), seed=1, class_names=("a", "b", "c"))
    wanted = [{"size": 10, "labelled": True}, {**OTHER, "size": 7}]
    splits, public = drawn(source, wanted, {1: other})
    data.write(source, splits, public, tmp_path / "data")
    held = data.load(tmp_path / "data")
    assert len(held.x) == 97 and held.told == 10 and len(held.public) == 17
    assert np.array_equal(held.x[held.public[10:]], public.brought[0])
    assert held.labels(held.public).tolist() == [*source.y_train[held.public[:10]], *[-1] * 7]
    assert held.sets.tolist() == [0] * 10 + [1] * 7 and held.origins == public.origins
    assert (held.y[90:] == -1).all() and len(held.y) == 97


def mixed(*overrides: str) -> Any:
    return small.config(
        "entropy", "evaluation.labels=true", *overrides,
        data={**small.EXPERIMENT["data"],
              "public": [{"size": 40}, {"noise": "uniform", "size": 30}]},
    )  # fmt: skip


def test_rows_say_which_set_they_are_of(tmp_path: Path) -> None:
    plan: Plan = small.plan(mixed(), tmp_path)
    assert plan.public[:, 0].tolist() == [0] * 40 + [1] * 30
    assert plan.public[:, 1].tolist() == list(range(70))
    assert plan.public_inputs.shape == (70, 1, 8, 8)


@pytest.mark.parametrize("method", ["entropy", "scarlet", "kt_pfl", "fedmd"])
def test_every_kind_of_method_runs_on_several_sets(method: str, tmp_path: Path) -> None:
    config = small.config(method, data=mixed().data.model_dump())
    records = small.run(config, tmp_path)
    assert all(0 <= record["teachers"]["test"][0] <= 1 for record in records)


def test_accuracy_is_of_the_rows_whose_class_is_known(tmp_path: Path) -> None:
    records = small.run(mixed(), tmp_path / "both")
    known = [record["student"]["public"] * 40 for record in records]
    assert all(abs(k - round(k)) < 1e-9 for k in known)  # of 40 rows and not of 70
    yardstick = (tmp_path / "both" / "yardsticks.json").read_text()
    assert '"labels": 40' in yardstick
    nobody = small.config(
        "entropy", "evaluation.labels=true",
        data={**small.EXPERIMENT["data"], "public": {"noise": "pink", "size": 60}},
    )  # fmt: skip
    for record in small.run(nobody, tmp_path / "noise"):
        assert record["student"]["public"] is None and record["ensemble"]["public"] is None
        assert 0 <= record["student"]["test"] <= 1
    assert not (tmp_path / "noise" / "yardsticks.json").exists()


def test_a_method_that_needs_labels_needs_all(tmp_path: Path) -> None:
    method = {"name": "fedmd", "pretrain": True}
    wanted = {**small.EXPERIMENT["data"], "public": [{"size": 40, "labelled": True}, {"size": 9}]}
    with pytest.raises(
        ValueError, match=r"labels of the public set, which are hidden .* every set"
    ):
        small.plan(small.config(method, data=wanted), tmp_path)


def test_some_labels_help_the_loss_that_can_use_them(tmp_path: Path) -> None:
    wanted = {**small.EXPERIMENT["data"], "public": [{"size": 40, "labelled": True}, {"size": 9}]}
    for loss in ("{name: kl, alpha: 0.5}", "cross_entropy"):
        config = small.config("entropy", f"learning.server.loss={loss}", data=wanted)
        records = small.run(config, tmp_path / loss[1:8])
        assert records[-1]["labels_used"] == 40


def test_cross_entropy_takes_soft_labels_where_there_are_no_hard_ones() -> None:
    # logits 0, 0: log softmax is -ln 2 for both; 2, 0: -0.1269 and -2.1269
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    soft = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    target = Target(soft, "probs", torch.tensor([1, -1, 0]))
    expected = torch.tensor([0.6931, (0.1269 + 2.1269) / 2, 0.1269])
    assert torch.allclose(losses.cross_entropy()(logits, target), expected, atol=1e-4)
    hard = Target(None, "probs", torch.tensor([1, 0, 0]))
    assert losses.cross_entropy()(logits, hard)[0] == pytest.approx(0.6931, abs=1e-4)
