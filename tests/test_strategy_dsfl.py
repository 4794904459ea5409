"""DS-FL's invariants E1 to E8."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.contract import consensus, stream, uploaded
from fedkd.transforms import shannon
from fedkd.types import CLASSIC, predictions
from fedkd.wire import HEADER_BYTES, encode
from strategies.dsfl import dsfl

PROBS = st.lists(st.integers(1, 50), min_size=2, max_size=6).map(
    lambda parts: torch.tensor(parts, dtype=torch.float64) / sum(parts)
)


def era(probs: Tensor, temperature: float = 0.1) -> Tensor:
    finish = dsfl("era", temperature).finish
    return finish.apply({}, predictions(probs.view(1, 1, -1), "probs"), stream()).result.scores[
        0, 0
    ]


def test_e1_a_cold_consensus_is_its_argmax_and_ties_share() -> None:
    torch.testing.assert_close(era(torch.tensor([0.5, 0.3, 0.2]), 1e-4), torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(
        era(torch.tensor([0.4, 0.4, 0.2]), 1e-4), torch.tensor([0.5, 0.5, 0])
    )


@given(st.integers(2, 10), st.floats(0.01, 10))
@settings(deadline=None)
def test_e2_uniform_stays_uniform(classes: int, temperature: float) -> None:
    uniform = torch.full((classes,), 1 / classes)
    torch.testing.assert_close(era(uniform, temperature), uniform)


@given(PROBS, st.floats(0.02, 10))
@settings(deadline=None)
def test_e3_the_favourite_stays(probs: Tensor, temperature: float) -> None:
    assert float(probs[era(probs, temperature).argmax()]) == float(probs.max())


@given(PROBS)
@settings(deadline=None)
def test_e4_colder_is_surer(probs: Tensor) -> None:
    if float(probs.max() - probs.min()) < 1e-3:
        return  # uniform labels stay uniform
    found = [float(shannon(era(probs, t))) for t in (4.0, 1.0, 0.5, 0.2, 0.1)]
    assert all(colder < warmer for warmer, colder in pairwise(found))


def test_e5_worked_example() -> None:
    probs = torch.tensor([0.7, 0.2, 0.1])
    sharp, flat = era(probs, 0.1), era(probs, 1.0)
    torch.testing.assert_close(sharp, torch.tensor([0.99087, 0.00668, 0.00246]), atol=5e-6, rtol=0)
    torch.testing.assert_close(flat, torch.tensor([0.4640, 0.2814, 0.2546]), atol=5e-5, rtol=0)
    found = [float(shannon(p)) for p in (probs, sharp, flat)]
    assert found == pytest.approx([0.8018, 0.0573, 1.0614], abs=5e-5)


@pytest.mark.parametrize(("classes", "peak"), [(10, 0.99959), (100, 0.99553), (1000, 0.95661)])
def test_e6_sharpness_depends_on_the_number_of_classes(classes: int, peak: float) -> None:
    agreed = predictions(1000 * torch.eye(classes)[:1].expand(3, 1, -1), "logits")
    found = float(consensus(dsfl(), agreed).result.scores.max())
    assert found == pytest.approx(peak, abs=5e-6)
    assert found == pytest.approx(1 / (1 + (classes - 1) * 2.718281828**-10), rel=5e-6)


def test_e7_sa_is_the_mean_of_probabilities() -> None:
    logits = torch.tensor([[[0.8, 0.2]], [[0.6, 0.4]]]).log()
    found = consensus(dsfl("sa"), predictions(logits, "logits")).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.7, 0.3]]]))
    # ERA of the same: (0.7, 0.3) / 0.1 = (7, 3), softmax
    found = consensus(dsfl("era"), predictions(logits, "logits")).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.9820138, 0.0179862]]]))


def test_e8_the_uplink_is_a_thousand_soft_labels() -> None:
    strategy = dsfl()
    public = predictions(torch.zeros(1, 3000, 10), "logits").rows
    ask = strategy.request({}, 1, public, [0], torch.Generator())
    sent = uploaded(strategy, predictions(torch.randn(1, len(ask.rows), 10), "logits"))
    assert len(encode(sent)) == HEADER_BYTES + 1000 * 10 * 32 // 8


def test_private_training_comes_first() -> None:
    assert dsfl().program == CLASSIC and CLASSIC[0] == "train"
