"""Methods that are compositions of common parts: their invariants by id, and values by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.contract import consensus, stream
from fedkd.transforms import combine, mean, softmax
from fedkd.types import PrivateView, Strategy, predictions
from strategies.fed_et import fed_et
from strategies.fedaux import fedaux
from strategies.feddf import feddf
from strategies.fedema_distill import fedema_distill
from strategies.mhat import mhat
from strategies.one_shot import one_shot
from strategies.selective_fd import selective_fd

SEEDS = st.integers(0, 2**32)


def logits(seed: int, parties: int = 4, rows: int = 5, classes: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(parties, rows, classes, generator=rng)


class Linear:
    """A teacher whose features are its inputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


def annotated(
    strategy: Strategy, own: Tensor, public: Tensor, **more: Any
) -> tuple[Tensor, Tensor]:
    assert strategy.annotate is not None
    labels = more.get("labels", torch.zeros(len(own), dtype=torch.int64))
    view = PrivateView(own, labels, 2, more.get("all", public), torch.Generator().manual_seed(7))
    return strategy.annotate(view, Linear(), public, stream(more.get("seed", 0)))


# FedDF


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_DF3_a_shift_of_one_clients_scores_moves_no_target(seed: int) -> None:
    z = logits(seed)
    moved = z.clone()
    moved[1] += 100 * logits(seed + 1)[1, :, :1]
    one, two = (consensus(feddf(), predictions(s, "logits")).result.scores for s in (z, moved))
    torch.testing.assert_close(one.softmax(-1), two.softmax(-1), atol=1e-4, rtol=0)


def test_DF5_no_weights_are_sent_and_the_student_goes_on_from_itself() -> None:
    assert feddf().shares.extras == frozenset() and "average_weights" not in feddf().program
    assert feddf("none").program == ("train", "answer", "combine", "distil_server")


# one-shot distillation and MHAT: where the mean is taken


def test_one_shot_means_probabilities_or_scores() -> None:
    z = torch.tensor([[[math.log(9), 0.0]], [[0.0, 0.0]]])
    p = consensus(one_shot(), predictions(z, "logits")).result.scores
    torch.testing.assert_close(p, torch.tensor([[[0.7, 0.3]]]))
    s = consensus(one_shot("logits"), predictions(z, "logits")).result.scores
    torch.testing.assert_close(s.softmax(-1), torch.tensor([[[0.75, 0.25]]]))


def test_mhat_has_the_student_teach() -> None:
    assert mhat().feedback == "student"
    assert mhat().program.index("distil_server") < mhat().program.index("distil_clients")


# Fed-ET


@given(SEEDS, st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_ET1_the_scale_of_all_clients_together_is_irrelevant_to_label_and_weights(
    seed: int, scale: float
) -> None:
    z = predictions(logits(seed), "logits")
    scaled = predictions(scale * z.scores, "logits")
    one, two = (consensus(fed_et(lam=0.0), given).result.scores for given in (z, scaled))
    torch.testing.assert_close(one, two)


def test_ET2_who_knows_nothing_has_no_weight() -> None:
    sure = torch.tensor([[[4.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]])
    result = consensus(fed_et(lam=1.0), predictions(sure, "logits")).result
    torch.testing.assert_close(result.scores, torch.tensor([[[1.0, 0.0, 0.0]]]))


def test_ET3_where_all_agree_there_is_no_second_term() -> None:
    z = torch.tensor([[[2.0, 0.0]], [[5.0, 1.0]]])
    result = consensus(fed_et(lam=0.5), predictions(z, "logits")).result
    assert result.scores.tolist() == [[[1.0, 0.0]]] and result.trust.tolist() == [[1.0]]


def test_ET4_worked_by_hand() -> None:
    # variances 4 and 1: weights 0.8 and 0.2; mean (2 * 0.8 - 1 * 0.2, ...) = (1.4, -1.4), label 0;
    # the second differs: softmax(-1, 1) = (0.119203, 0.880797); lam 1: half of it and half one-hot
    z = torch.tensor([[[2.0, -2.0]], [[-1.0, 1.0]]])
    result = consensus(fed_et(lam=1.0), predictions(z, "logits")).result
    torch.testing.assert_close(result.scores, torch.tensor([[[0.5596015, 0.4403985]]]))
    assert result.trust.tolist() == [[2.0]]


def test_ET5_without_lam_it_is_the_hard_label() -> None:
    result = consensus(fed_et(lam=0.0), predictions(logits(3), "logits")).result
    assert set(result.scores.flatten().tolist()) == {0.0, 1.0}
    assert bool((result.trust == 1).all())


def test_ET6_one_client_of_large_scores_decides_unless_they_are_normalised() -> None:
    z = torch.tensor([[[0.0, 1000.0]], [[3.0, 0.0]], [[3.0, 0.0]]])
    label = consensus(fed_et(lam=0.0), predictions(z, "logits")).result.scores
    assert label.tolist() == [[[0.0, 1.0]]]
    fair = consensus(fed_et(lam=0.0, normalise=True), predictions(z, "logits")).result.scores
    assert fair.tolist() == [[[1.0, 0.0]]]


# FedAUX


def test_A1_A2_A3_scores_weigh_the_logits() -> None:
    z = logits(0)
    plain = combine(mean(), {}, predictions(z, "logits"), stream()).result.scores
    equal = predictions(z, "logits", trust=torch.full(z.shape[:2], 0.3))
    torch.testing.assert_close(combine(mean(), {}, equal, stream()).result.scores, plain)
    alone = torch.full(z.shape[:2], 1e-8)
    alone[2] = 1.0
    found = combine(mean(), {}, predictions(z, "logits", trust=alone), stream()).result.scores
    torch.testing.assert_close(found[0], z[2], atol=1e-5, rtol=1e-5)


def test_A4_A6_scores_are_positive_need_no_label_and_stay_from_round_to_round() -> None:
    public, own = logits(1, 1, 20, 4)[0], logits(2, 1, 15, 4)[0] + 2
    labels = torch.arange(15) % 2
    mask, trust = annotated(fedaux(), own, public, labels=labels)
    assert bool(mask.all()) and bool(((trust > 0) & (trust <= 1 + 1e-8)).all())
    _, others = annotated(fedaux(), own, public, labels=1 - labels, seed=9)
    assert torch.equal(trust, others)


def test_the_negatives_are_not_asked_about() -> None:
    rows = predictions(logits(0, 1, 10), "logits").rows
    ask = fedaux(negatives=0.2).request({}, 1, rows, [0, 1], stream())
    assert ask.rows[:, 1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8] and ask.known
    for public in range(2, 30):
        rows = predictions(logits(0, 1, public), "logits").rows
        for share in (0.001, 0.5, 0.999):
            asked = len(fedaux(negatives=share).request({}, 1, rows, [0], stream()).rows)
            assert 0 < asked < public


# Selective-FD


def test_SF1_with_nothing_selected_it_is_the_plain_mean() -> None:
    z = predictions(logits(4), "logits")
    plain = combine(mean(), {}, softmax().apply({}, z, stream()).result, stream()).result
    assert torch.equal(consensus(selective_fd(ambiguity=3.0), z).result.scores, plain.scores)


def test_SF2_the_mean_is_over_who_accepted_and_nobody_is_no_target() -> None:
    z = logits(5, 3, 2)
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    result = consensus(selective_fd(), predictions(z, "logits", mask=mask)).result
    torch.testing.assert_close(result.scores[0, 0], z[:2, 0].softmax(-1).mean(0))
    assert result.mask.tolist() == [[True, False]]


def test_SF3_ambiguity_is_between_0_and_that_of_a_uniform_answer() -> None:
    uniform = torch.zeros(2, 1, 4)  # 2 (1 - 1/4) = 1.5
    sure = torch.tensor([[[100.0, 0, 0, 0]], [[100.0, 0, 0, 0]]])
    for most, z, kept in ((1.5, uniform, False), (1.51, uniform, True), (0.01, sure, True)):
        result = consensus(selective_fd(ambiguity=most), predictions(z, "logits")).result
        assert bool(result.mask.all()) is kept


def test_SF4_one_class_experts_with_a_perfect_selector_are_right() -> None:
    experts = torch.eye(3).unsqueeze(1).expand(3, 3, 3) * 50  # each says its own class, always
    mask = torch.eye(3, dtype=torch.bool)
    result = consensus(selective_fd(), predictions(experts, "logits", mask=mask)).result
    torch.testing.assert_close(result.scores[0], torch.eye(3))


def test_SF6_a_rejected_answer_counts_for_nothing_even_as_NaN() -> None:
    z, mask = logits(6, 2, 1), torch.tensor([[True], [False]])
    z[1] = torch.nan
    result = consensus(selective_fd(), predictions(z, "logits", mask=mask)).result
    torch.testing.assert_close(result.scores[0], z[0].softmax(-1))


@pytest.mark.parametrize("on", ["inputs", "features"])
def test_clients_accept_what_looks_like_their_own(on: Any) -> None:
    own = logits(7, 1, 60, 2)[0] / 3
    public = torch.cat([logits(8, 1, 30, 2)[0] / 3, logits(9, 1, 30, 2)[0] / 3 + 8])
    mask, trust = annotated(selective_fd(likeness=on, width=1.0), own, public)
    assert float(mask[:30].float().mean()) > 0.5 and not bool(mask[30:].any())
    assert torch.equal(trust, mask.float())
    again, _ = annotated(selective_fd(likeness=on, width=1.0), own, public, seed=5)
    assert torch.equal(mask, again), "the selection is made once"


def test_a_client_of_one_sample_can_select() -> None:
    mask, _ = annotated(selective_fd(), torch.zeros(1, 2), logits(1, 1, 6, 2)[0])
    assert mask.shape == (6,)


# FedEMA-Distill


def test_fedema_asks_for_a_running_mean() -> None:
    assert fedema_distill(0.9).momentum == 0.9 and feddf().momentum == 0


@pytest.mark.parametrize("strategy", [one_shot(), feddf(), mhat(), fed_et(), fedema_distill()])
def test_one_row_two_classes_and_large_scores_have_a_result(strategy: Strategy) -> None:
    given_ = predictions(torch.tensor([[[1e6, -1e6]], [[-1e6, 1e6]]]), "logits")
    result = consensus(strategy, given_).result
    assert bool(torch.isfinite(result.scores).all()) and bool(result.mask.all())
