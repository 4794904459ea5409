"""Figures of classifiers and of disagreement, against definitions and another implementation."""

import math

import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from torch import Tensor

from fedkd.results.measures import (
    BINS,
    Spread,
    faithful,
    log_probabilities,
    mean_entropy,
    measured,
    mixture_weights,
)
from fedkd.transforms import shannon
from fedkd.types import predictions

CLASSES = 5


def drawn(rows: int, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    said = log_probabilities(2 * torch.randn(rows, classes, generator=rng), "logits")
    return said, torch.randint(classes, (rows,), generator=rng)


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_scikit_learn(seed: int) -> None:
    said, truth = drawn(80, seed)
    truth[truth == 3] = 1  # a class that is predicted and does not occur
    found = measured(said, truth)
    predicted, every = said.argmax(1), list(range(CLASSES))
    present = sorted(set(truth.tolist()))
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=every).tolist()
    expected = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    for row, *values in zip(found["per_class"], *expected, strict=True):
        assert list(row.values()) == pytest.approx(values)
    mean = f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(mean)
    recalls = [r["recall"] for r in found["per_class"] if r["support"]]
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls))
    assert found["nll"] == pytest.approx(log_loss(truth, said.exp().numpy(), labels=every))
    assert found["accuracy"] == pytest.approx(float((predicted == truth).double().mean()))
    assert found["n"] == 80


def test_the_balanced_accuracy_is_that_of_scikit_learn_where_every_class_occurs() -> None:
    said, truth = drawn(200)
    found = measured(said, truth)["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(truth, said.argmax(1)))


def test_calibration_by_hand() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]], dtype=torch.float64)
    found = measured(sure.clamp_min(1e-300).log(), torch.tensor([0, 1, 1, 1]))
    assert [b["count"] for b in found["calibration"]] == [1, 2, 1]  # 0.6, 0.9 twice, 1
    assert [b["accuracy"] for b in found["calibration"]] == [1, 0.5, 1]
    assert found["ece"] == pytest.approx((1 * 0.4 + 2 * 0.4 + 0) / 4)
    assert all(b["upper"] - b["lower"] == pytest.approx(1 / BINS) for b in found["calibration"])
    assert all(b["lower"] < b["confidence"] <= b["upper"] for b in found["calibration"])


def test_a_summary_has_the_same_figures_and_no_lists() -> None:
    said, truth = drawn(50)
    whole, brief = measured(said, truth), measured(said, truth, summary=True)
    assert brief == whole | {"per_class": [], "confusion": [], "calibration": []}


def test_a_probability_of_zero_has_a_finite_logarithm() -> None:
    said = log_probabilities(torch.tensor([[1.0, 0.0]]), "probs")
    assert math.isfinite(measured(said, torch.tensor([1]))["nll"])


@pytest.mark.parametrize("space", ["logits", "log_probs", "probs", "votes"])
def test_every_space_has_probabilities(space: str) -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert log_probabilities(scores, space).exp().sum(-1) == pytest.approx(torch.ones(2))


def test_fidelity() -> None:
    (one, _), (two, _) = drawn(60, 1), drawn(60, 2)
    assert faithful(one, one) == {"agreement": 1.0, "kl": 0.0}
    found = faithful(student=one, other=two)
    kl = torch.nn.functional.kl_div(one, two, reduction="batchmean", log_target=True)
    assert found["kl"] == pytest.approx(float(kl))
    same = (one.argmax(1) == two.argmax(1)).double()
    assert found["agreement"] == pytest.approx(float(same.mean()))


def test_a_mixture_is_fitted_to_the_most_likely_weights() -> None:
    said, truth = zip(*(drawn(300, s) for s in range(3)), strict=True)
    likelihood = torch.stack([s.gather(1, truth[0].unsqueeze(1))[:, 0].exp() for s in said])
    weights = mixture_weights(likelihood)
    assert float(weights.sum()) == pytest.approx(1) and bool((weights >= 0).all())

    def fit(w: Tensor) -> float:
        return float((w.double() @ likelihood).log().sum())

    best = fit(weights)
    grid = torch.cartesian_prod(torch.arange(21), torch.arange(21)) / 20
    for a, b in grid[grid.sum(1) <= 1].tolist():
        assert fit(torch.tensor([a, b, 1 - a - b])) <= best + 1e-3


def test_a_party_that_is_always_right_gets_all_the_weight() -> None:
    weights = mixture_weights(torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.1, 0.3]]).double())
    assert weights[0] > 0.999


def spread(*answers: object) -> float | None:
    apart = Spread(CLASSES)
    for given in answers:
        apart.add(given)  # type: ignore[arg-type]
    return apart.mean()


def test_disagreement_is_the_generalised_jensen_shannon_divergence() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, CLASSES, generator=rng)
    probs = torch.softmax(logits.double(), -1)
    expected = (shannon(probs.mean(0)) - shannon(probs).mean(0)).mean()
    answers = [predictions(logits[k : k + 1], "logits") for k in range(4)]
    assert spread(*answers) == pytest.approx(float(expected))
    assert spread(predictions(logits, "logits")) == spread(*answers)
    as_probs = [predictions(torch.softmax(logits[k : k + 1], -1), "probs") for k in range(4)]
    assert spread(*as_probs) == pytest.approx(float(expected), rel=1e-5)


def test_who_agrees_is_not_apart_and_opposites_are_ln_2_apart() -> None:
    one = torch.eye(CLASSES).unsqueeze(0)
    assert spread(predictions(one, "probs"), predictions(one, "probs")) == 0
    other = predictions(one.roll(1, -1), "probs")
    assert spread(predictions(one, "probs"), other) == pytest.approx(math.log(2))
    assert spread() is None


def test_what_is_masked_or_distrusted_does_not_disagree() -> None:
    one, other = torch.eye(3).unsqueeze(0), torch.eye(3).roll(1, -1).unsqueeze(0)
    other[0, 0] = float("nan")
    mask, trust = torch.tensor([[False, True, True]]), torch.tensor([[1.0, 0.0, 1.0]])
    apart = Spread(3)
    apart.add(predictions(one, "probs"))
    apart.add(predictions(other, "probs", mask=mask, trust=trust))
    assert apart.mean() == pytest.approx(math.log(2) / 3)  # in one row of three


def test_answers_about_some_classes_say_nothing_of_the_others() -> None:
    narrow = torch.tensor([[[0.5, 0.5]]])
    apart = Spread(4)
    apart.add(predictions(narrow, "probs", classes=torch.tensor([[[0, 1]]])))
    apart.add(predictions(narrow, "probs", classes=torch.tensor([[[2, 3]]])))
    assert apart.mean() == pytest.approx(math.log(2))


def test_the_entropy_of_targets() -> None:
    even = predictions(torch.full((1, 3, CLASSES), 1 / CLASSES), "probs")
    assert mean_entropy(even, CLASSES) == pytest.approx(math.log(CLASSES))
    scores = torch.stack([torch.full((CLASSES,), 1 / CLASSES), torch.eye(CLASSES)[0]]).unsqueeze(0)
    trusted = predictions(scores, "probs", trust=torch.tensor([[0.0, 1.0]]))
    assert mean_entropy(trusted, CLASSES) == 0
    nothing = predictions(scores, "probs", mask=torch.zeros(1, 2, dtype=torch.bool))
    assert mean_entropy(nothing, CLASSES) is None
