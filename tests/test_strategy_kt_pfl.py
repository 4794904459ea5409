"""KT-pFL's invariants K1 to K6, one step worked by hand, and clients that are away."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.contract import consensus, stream
from fedkd.transforms import combine
from fedkd.types import Predictions, Shape, State, Step, Target, predictions
from fedkd.wire import decode, encode
from strategies.kt_pfl import _simplex, kt_pfl


def mixed(probs: Predictions, coefficients: Tensor | None = None, **params: float) -> Step:
    rule = kt_pfl(**params).combine  # type: ignore[arg-type]
    shape = Shape(int(probs.parties.max()) + 1, *probs.scores.shape[1:])
    state: State = rule.init(shape)  # type: ignore[union-attr]
    if coefficients is not None:
        state = {"coefficients": coefficients.double()}
    return combine(rule, state, probs, stream())


def random_probs(seed: int, parties: int = 4, rows: int = 6, classes: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(parties, rows, classes, generator=rng)).softmax(-1)


OPPOSED = predictions(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), "probs")


def test_one_step_worked_by_hand() -> None:
    # c = 1/2: p*_0 - p_0 = (-1/2, 1/2), so the gradient of row 0 is 2 (-1/2, 1/2) on the simplex,
    # that is (-1, 1) up to a constant, less its mean; 0.1 of it gives c_0 = (0.6, 0.4)
    after, result, *_ = mixed(OPPOSED, step=0.1, rho=0.0)
    expected = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    torch.testing.assert_close(after["coefficients"], expected.double())
    torch.testing.assert_close(result.scores[:, 0], expected)
    # rho 0.5: the penalty exactly, (0.6 + 0.1 * 0.5) / (1 + 0.1)
    after, _, facts, _ = mixed(OPPOSED, step=0.1, rho=0.5)
    assert float(after["coefficients"][0, 0]) == pytest.approx(0.65 / 1.1)
    assert facts == {"own_coefficient": pytest.approx(0.65 / 1.1)}


@given(st.integers(0, 2**32), st.floats(0, 5), st.floats(0.01, 50), st.data())
@settings(max_examples=30, deadline=None)
def test_k1_rows_stay_on_the_simplex(
    seed: int, rho: float, step: float, data: st.DataObject
) -> None:
    c = None
    for t in range(4):
        here = torch.tensor(sorted(data.draw(st.sets(st.integers(0, 4), min_size=1)) | {4}))
        probs = predictions(random_probs(seed + t, len(here)), "probs", parties=here)
        c = mixed(probs, c, rho=rho, step=step).state["coefficients"]
        assert c.shape == (5, 5) and bool((c >= 0).all())
        torch.testing.assert_close(c.sum(-1), torch.ones(5).double())


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_k2_identical_clients_stay_uniform(rho: float) -> None:
    c = None
    for t in range(20):
        probs = predictions(random_probs(t, 1).expand(4, -1, -1), "probs")
        c = mixed(probs, c, rho=rho, step=5.0).state["coefficients"]
    assert c is not None
    torch.testing.assert_close(c, torch.full((4, 4), 0.25).double())


@pytest.mark.parametrize("step", [0.01, 100.0])
def test_k3_a_large_rho_is_the_mean_of_probabilities(step: float) -> None:
    probs = random_probs(3)
    after, result, *_ = mixed(predictions(probs, "probs"), torch.eye(4), rho=1e9, step=step)
    torch.testing.assert_close(after["coefficients"], torch.full((4, 4), 0.25).double())
    torch.testing.assert_close(result.scores, probs.mean(0).expand(4, -1, -1))


def test_k4_who_trusts_itself_alone_has_nothing_to_learn() -> None:
    rng = torch.Generator().manual_seed(4)
    logits = 5 * torch.randn(3, 6, 4, generator=rng)
    probs = predictions((logits / 10).softmax(-1), "probs")
    after, result, *_ = mixed(probs, torch.eye(3), rho=0.0)
    assert torch.equal(after["coefficients"], torch.eye(3).double())
    learn = kt_pfl().losses.client
    assert learn is not None
    loss = learn(logits, Target(result.scores, "probs", None))
    assert float(loss.abs().max()) < 1e-4  # T^2 = 100 times the rounding of float32


def test_k5_targets_are_detached() -> None:
    probs = random_probs(5).requires_grad_()
    assert not mixed(predictions(probs, "probs")).result.scores.requires_grad


def test_k6_clients_of_a_kind_find_each_other() -> None:
    rng = torch.Generator().manual_seed(6)
    kind = torch.tensor([0, 1, 0, 1, 0, 1])
    c = None
    for _ in range(5):
        centre = 3 * torch.randn(2, 30, 5, generator=rng)
        own = 0.5 * torch.randn(6, 30, 5, generator=rng)
        c = mixed(predictions((centre[kind] + own).softmax(-1), "probs"), c).state["coefficients"]
    assert c is not None
    alike = (kind.unsqueeze(0) == kind.unsqueeze(1)) & ~torch.eye(6, dtype=torch.bool)
    assert float(c[alike].min()) > 1 / 6 > float(c[kind.unsqueeze(0) != kind.unsqueeze(1)].max())


def test_who_is_away_keeps_its_row_and_the_rest_share_its_weight() -> None:
    c = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    probs = random_probs(7, 2)
    given_probs = predictions(probs, "probs", parties=torch.tensor([0, 2]))
    after, result, *_ = mixed(given_probs, c, rho=0.0, step=1e-9)
    assert torch.equal(after["coefficients"][1], c[1].double())
    assert result.parties.tolist() == [0, 2]
    torch.testing.assert_close(result.scores[0], (0.5 * probs[0] + 0.25 * probs[1]) / 0.75)
    torch.testing.assert_close(result.scores[1], (0.1 * probs[0] + 0.8 * probs[1]) / 0.9)


def test_a_row_is_mixed_of_those_who_answered_it() -> None:
    probs = random_probs(8, 3)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 0], mask[:, 1] = False, False
    doubted = torch.ones(3, 6)
    doubted[0, 2] = 2.0
    result = mixed(predictions(probs, "probs", mask=mask, trust=doubted), rho=1e9).result
    torch.testing.assert_close(result.scores[1, 0], (probs[0, 0] + probs[2, 0]) / 2)
    torch.testing.assert_close(
        result.scores[1, 2], (2 * probs[0, 2] + probs[1, 2] + probs[2, 2]) / 4
    )
    assert result.mask.tolist() == [[True, False, True, True, True, True]] * 3


def test_an_unanswered_row_makes_nobody_different() -> None:
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, :4], mask[2, 1:] = False, False
    alike = predictions(random_probs(9, 1).expand(4, -1, -1), "probs", mask=mask)
    c = mixed(alike, rho=0.0, step=50.0).state["coefficients"]
    torch.testing.assert_close(c, torch.full((4, 4), 0.25).double())


def test_answers_are_made_at_the_temperature() -> None:
    logits = predictions(torch.tensor([[[20.0, 0.0]]]), "logits")
    found = consensus(kt_pfl(temperature=10.0), logits).result
    torch.testing.assert_close(found.scores, torch.tensor([[[2.0, 0.0]]]).softmax(-1))


def test_each_client_gets_its_own_message() -> None:
    result = mixed(OPPOSED).result
    assert decode(encode(result)).parties.tolist() == [0, 1]
    assert "distil_server" not in kt_pfl().program


@pytest.mark.parametrize(
    ("row", "nearest"),
    [
        ([0.5, 0.5], [0.5, 0.5]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([-1.0, -1.0], [0.5, 0.5]),
        ([0.8, 0.6], [0.6, 0.4]),
    ],
)
def test_the_simplex_worked_by_hand(row: list[float], nearest: list[float]) -> None:
    torch.testing.assert_close(_simplex(torch.tensor([row])), torch.tensor([nearest]))


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_no_point_of_the_simplex_is_nearer(seed: int, size: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(8, size, generator=rng).double()
    found = _simplex(rows)
    corners = torch.eye(size).double()
    # the angle at a nearest point of a convex set to any other is not acute
    towards = (rows - found).unsqueeze(1) * (corners - found.unsqueeze(1))
    assert float(towards.sum(-1).max()) < 1e-12
    torch.testing.assert_close(found.sum(-1), torch.ones(8).double())
