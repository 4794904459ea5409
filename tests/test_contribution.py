"""Contribution scores: the axioms of Shapley, sums by hand, and a run's stored teachers."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from fedkd import ConfigError, contributions, run
from fedkd.contribution import Value, exact_shapley, leave_one_out, shapley, valued
from fedkd.transforms import combine, mean, party, pure, softmax, stack
from fedkd.types import Predictions, Shape, Transform, predictions
from simulations.lying import lying

Method = Callable[[Value, int], Tensor]
METHODS: dict[str, Method] = {
    "exact": exact_shapley,
    "sampled": lambda value, players: shapley(value, players, 20, seed=1)[0],
}


def game(players: int, seed: int, dummy: int | None = None) -> Value:
    """Random values of all coalitions; a dummy adds 0.25 to any."""
    rng = Generator().manual_seed(seed)
    table = torch.randn(2**players, generator=rng, dtype=torch.float64)

    def value(coalitions: Tensor) -> Tensor:
        bits = coalitions.clone()
        extra = torch.zeros(len(bits), dtype=torch.float64)
        if dummy is not None:
            extra = 0.25 * bits[:, dummy].double()
            bits[:, dummy] = False
        return table[(bits.long() * 2 ** torch.arange(players)).sum(-1)] + extra

    return value


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@given(st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_efficiency(method: Method, players: int, seed: int) -> None:
    """What all add sums to what they are worth together."""
    value = game(players, seed)
    ends = value(torch.tensor([[True] * players, [False] * players]))
    assert float(method(value, players).sum()) == pytest.approx(float(ends[0] - ends[1]), abs=1e-9)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@given(st.integers(1, 6), st.integers(0, 2**32), st.data())
@settings(max_examples=25, deadline=None)
def test_who_adds_the_same_to_any_is_worth_that(
    method: Method, players: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, players - 1))
    value = game(players, seed, dummy=k)
    assert float(method(value, players)[k]) == pytest.approx(0.25, abs=1e-9)
    assert float(leave_one_out(value, players)[k]) == pytest.approx(0.25, abs=1e-9)


def test_symmetry() -> None:
    """Who can stand in for one another are worth the same; of samples that holds in the mean."""

    def value(coalitions: Tensor) -> Tensor:
        either = coalitions[:, :2].double().sum(-1)
        return either.sqrt() + 3 * coalitions[:, 2].double() * either

    exact = exact_shapley(value, 3)
    assert float(exact[0]) == pytest.approx(float(exact[1]), abs=1e-12)
    sampled, error = shapley(value, 3, 400, seed=0)
    assert bool(((sampled - exact).abs() < 4 * error + 1e-9).all())
    assert bool((error < 0.2).all()) and bool((error > 0).any())


@given(st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_exact_is_the_mean_over_all_orders(players: int, seed: int) -> None:
    value, found = game(players, seed), torch.zeros(players, dtype=torch.float64)
    for order in itertools.permutations(range(players)):
        there = torch.zeros(1, players, dtype=torch.bool)
        for k in order:
            before = value(there)[0]
            there[0, k] = True
            found[k] += value(there)[0] - before
    expected = found / math.factorial(players)
    torch.testing.assert_close(exact_shapley(value, players), expected)


def test_samples_come_from_the_seed() -> None:
    value = game(6, 0)
    one, two = (shapley(value, 6, 30, seed=4) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], shapley(value, 6, 30, seed=5)[0])
    assert shapley(value, 6, 1, seed=0)[1].isinf().all()
    with pytest.raises(ValueError, match="permutations: should be at least 1, found 0"):
        shapley(value, 6, 0, seed=0)


def test_values_by_hand() -> None:
    """Client 0 is right about row 0, client 1 about row 1 and less sure; nobody is about row 2."""
    scores = torch.tensor(
        [[[0.9, 0.1], [0.8, 0.2], [1.0, 0.0]], [[0.4, 0.6], [0.1, 0.9], [1.0, 0.0]]]
    )
    answers = [party(predictions(scores, "probs"), j) for j in range(2)]
    labels, shape = torch.tensor([0, 1, 1]), Shape(2, 3, 2)
    coalitions = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    accuracy = valued(mean(), answers, labels, shape, "accuracy")
    # together: [.65, .35] right, [.45, .55] right
    torch.testing.assert_close(accuracy(coalitions), torch.tensor([3 / 2, 1, 1, 2]).double() / 3)
    torch.testing.assert_close(exact_shapley(accuracy, 2), torch.tensor([1 / 12, 1 / 12]).double())
    torch.testing.assert_close(leave_one_out(accuracy, 2), torch.tensor([1 / 3, 1 / 3]).double())
    nll = valued(mean(), answers, labels, shape, "nll")(coalitions)
    assert float(nll[0]) == pytest.approx(-math.log(2))
    told = (math.log(0.9) + math.log(0.2) + math.log(1e-12)) / 3  # what is impossible is 1e-12
    assert float(nll[1]) == pytest.approx(told, abs=1e-6)


def test_a_row_without_an_answer_is_a_guess() -> None:
    sure = predictions(torch.tensor([[[1.0, 0, 0, 0], [1.0, 0, 0, 0]]]), "probs",
                       mask=torch.tensor([[True, False]]))  # fmt: skip
    value = valued(mean(), [sure], torch.tensor([0, 0]), Shape(1, 2, 4), "accuracy")
    assert value(torch.tensor([[True]])).item() == pytest.approx((1 + 1 / 4) / 2)


def test_any_rule_gives_what_the_fold_of_the_same_gives() -> None:
    rng = Generator().manual_seed(1)
    everyone = predictions(torch.randn(4, 30, 5, generator=rng), "logits")
    everyone = softmax().apply({}, everyone, rng).result
    answers = [party(everyone, j) for j in range(4)]
    labels, shape = torch.randint(5, (30,), generator=rng), Shape(4, 30, 5)

    def apart(given_: Predictions) -> Predictions:
        return combine(mean(), {}, given_, rng).result

    rule: Transform = pure(apart)
    coalitions = torch.arange(16).unsqueeze(-1) >> torch.arange(4) & 1 == 1
    for of in ("accuracy", "nll"):
        folded = valued(mean(), answers, labels, shape, of)(coalitions)  # type: ignore[arg-type]
        one_by_one = valued(rule, answers, labels, shape, of)(coalitions)  # type: ignore[arg-type]
        torch.testing.assert_close(folded, one_by_one, atol=1e-6, rtol=1e-6)
    assert torch.equal(stack(answers).scores, everyone.scores)


(LIAR,) = lying(0.1).liars(6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which one client of six has learnt nothing but wrong labels."""
    out = tmp_path_factory.mktemp("runs") / "run"
    wrong = {"name": "lying", "how": "labels", "fraction": 0.1}
    sure = {"epochs": 12, "batch": 16, "optimizer": small.OPTIMIZER}
    learning = {**small.EXPERIMENT["learning"], "private": sure}
    chosen = small.config(
        {"name": "dsfl", "aggregation": "sa"}, "rounds=1", f"execution.out={out}",
        world=wrong, learning=learning, data={**small.EXPERIMENT["data"], "partition": "iid"},
    )  # fmt: skip
    return run(chosen).folder


def test_the_teachers_of_a_run(finished: Path) -> None:
    found = contributions(finished)
    record = small.records(finished)[-1]
    assert found.ensemble == pytest.approx(record["ensemble"]["test"]) == found.together
    assert found.nobody == pytest.approx(0.1) and not found.error.any()
    assert float(found.shapley.sum()) == pytest.approx(found.together - found.nobody)
    assert found.ensemble <= found.oracle <= 1
    assert found.oracle_gap == found.oracle - found.ensemble
    assert max(record["teachers"]["test"]) <= found.oracle
    # whose labels were turned round is told from all others
    assert int(found.shapley.argmin()) == LIAR and float(found.shapley[LIAR]) < 0


def test_of_public_rows_and_by_nll_and_by_samples(finished: Path) -> None:
    exact = contributions(finished, of="nll", on="public")
    assert exact.nobody == pytest.approx(-math.log(10))
    assert int(exact.shapley.argmin()) == LIAR
    sampled = contributions(str(finished), of="nll", on="public", permutations=60, seed=3)
    assert bool(((sampled.shapley - exact.shapley).abs() <= 5 * sampled.error + 1e-9).all())
    assert torch.equal(sampled.leave_one_out, exact.leave_one_out)


def test_a_folder_without_teachers_is_told(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="should be a run folder"):
        contributions(tmp_path)
    stored = finished / "teachers" / "00003.safetensors"
    moved = stored.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"contributions: .* found no file .*00003"):
        contributions(finished)
    moved.rename(stored)
