"""Distillation losses: the invariants KD1 to KD7 of Hinton's loss, and the distances of logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.losses import cross_entropy, kl, kl_at, kl_top, l1, mse
from fedkd.transforms import probabilities
from fedkd.types import Target


def pair(seed: int, batch: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, batch, classes, generator=rng, dtype=torch.float64)
    return student, teacher


def soft(teacher: Tensor, labels: Tensor | None = None) -> Target:
    return Target(teacher, "logits", labels)


def gradient(loss: object, student: Tensor, target: Target) -> Tensor:
    student = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, target).sum(), student)  # type: ignore[operator]
    return found


@given(st.integers(0, 2**32), st.sampled_from([1.0, 4.0]))
@settings(max_examples=25, deadline=None)
def test_kd1_nothing_to_learn_from_oneself_plus_a_constant(seed: int, temperature: float) -> None:
    student, _ = pair(seed)
    target = soft(student + 7.0)
    assert float(kl(temperature)(student, target).abs().max()) < 1e-12
    assert float(gradient(kl(temperature), student, target).abs().max()) < 1e-12


def test_kd2_alpha_zero_is_cross_entropy_bit_for_bit() -> None:
    student, teacher = (t.float() for t in pair(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    target = soft(teacher, labels)
    assert torch.equal(kl(4.0, alpha=0.0)(student, target), cross_entropy()(student, target))
    torch.testing.assert_close(
        cross_entropy()(student, target), F.cross_entropy(student, labels, reduction="none")
    )


@pytest.mark.parametrize("seed", range(5))
def test_kd3_the_gradient_hardly_depends_on_the_temperature(seed: int) -> None:
    student, teacher = pair(seed, batch=200, classes=10, scale=4.0)
    norms = [
        float(gradient(kl(t), student, soft(teacher)).norm()) for t in (4.0, 8.0, 16.0, 32.0, 64.0)
    ]
    assert max(norms) / min(norms) < 1.3
    # T to infinity: matching of centred logits, (z_s - z_t) / C
    apart = student - teacher
    limit = (apart - apart.mean(-1, keepdim=True)) / 10
    hot = gradient(kl(1e4), student, soft(teacher))
    assert float((hot - limit).norm() / limit.norm()) < 1e-3


def test_kd4_the_gradient_is_that_of_the_formula() -> None:
    student, teacher = pair(4)
    found = gradient(kl(3.0), student, soft(teacher))
    # T^2 times (1/T)(q - p)
    torch.testing.assert_close(found, 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)))
    nudge = torch.zeros_like(student)
    nudge[2, 1] = 1e-5
    up, down = (kl(3.0)(student + s * nudge, soft(teacher)).sum() for s in (1, -1))
    assert float((up - down) / 2e-5) == pytest.approx(float(found[2, 1]), rel=1e-6)


@given(st.integers(0, 2**32), st.floats(0.5, 20))
@settings(max_examples=25, deadline=None)
def test_kd5_it_is_a_divergence(seed: int, temperature: float) -> None:
    student, teacher = pair(seed)
    assert float(kl(temperature)(student, soft(teacher)).min()) >= 0
    assert float(kl(temperature)(teacher, soft(teacher)).abs().max()) < 1e-10


def test_kd6_a_one_hot_teacher_is_cross_entropy() -> None:
    student, _ = pair(6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    target = Target(F.one_hot(labels, 5).double(), "probs", None)
    expected = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(kl()(student, target), expected)
    torch.testing.assert_close(cross_entropy()(student, target), expected)


def test_kd7_a_cold_teacher_is_its_argmax() -> None:
    teacher = torch.tensor([[1.0, 3.0, 2.0]])
    torch.testing.assert_close(probabilities(teacher, "logits", 1e-3), torch.tensor([[0.0, 1, 0]]))
    cold = probabilities(teacher / 6, "probs", 1e-3)
    torch.testing.assert_close(cold, torch.tensor([[0.0, 1, 0]]))


def test_the_mean_over_a_batch_is_batchmean() -> None:
    student, teacher = pair(8)
    expected = F.kl_div(
        F.log_softmax(student / 2, -1), (teacher / 2).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(kl(2.0)(student, soft(teacher)).mean(), 4 * expected)


def test_probabilities_of_probabilities_are_softened_as_their_logits() -> None:
    _, teacher = pair(9)
    for temperature in (0.5, 1.0, 4.0):
        for scores, space in (
            (teacher.softmax(-1), "probs"),
            (teacher.log_softmax(-1), "log_probs"),
        ):
            torch.testing.assert_close(
                probabilities(scores, space, temperature), (teacher / temperature).softmax(-1)
            )


def test_votes_become_shares() -> None:
    found = probabilities(torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), "votes", 1.0)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]]))


def test_mixing_worked_by_hand_and_rows_without_labels() -> None:
    student = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    target = Target(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "probs", torch.tensor([1, -1]))
    # KL of a one-hot against (1/2, 1/2) is ln 2, and so is the cross-entropy with label 1;
    # the second row has no label: its soft part alone
    found = kl(1.0, alpha=0.25)(student, target)
    torch.testing.assert_close(found, torch.full((2,), 0.6931472))
    found = kl(2.0, alpha=0.25)(student, target)
    torch.testing.assert_close(found, torch.tensor([0.25 * 4 + 0.75, 4.0]) * 0.6931472)


def test_mixing_without_labels_is_refused() -> None:
    student, teacher = pair(10)
    with pytest.raises(ValueError, match=r"kl\.alpha: .* found 0\.5; set alpha to 1"):
        kl(alpha=0.5)(student, soft(teacher))


def test_kl_at_takes_soft_labels_as_they_are() -> None:
    student, teacher = pair(11)
    made_at_five = Target((teacher / 5).softmax(-1), "probs", None)
    torch.testing.assert_close(kl_at(5.0)(student, made_at_five), kl(5.0)(student, soft(teacher)))
    assert float(kl_at(5.0)(teacher, made_at_five).abs().max()) < 1e-12
    assert float(kl(5.0)(teacher, made_at_five).min()) > 0.01  # softened twice
    with pytest.raises(ValueError, match="consensus is in logits"):
        kl_at(5.0)(student, soft(teacher))


def test_distances_of_logits_worked_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[2.0, 4.0, 3.0]])
    assert l1()(student, soft(teacher)).item() == 2.0  # (1 + 2 + 3) / 3
    assert mse()(student, soft(teacher)).item() == pytest.approx(14 / 3)  # (1 + 4 + 9) / 3


@pytest.mark.parametrize("loss", [l1(), mse()])
def test_distances_need_logits(loss: object) -> None:
    student, teacher = pair(12)
    with pytest.raises(ValueError, match="compares logits, the consensus is in probs"):
        loss(student, Target(teacher.softmax(-1), "probs", None))  # type: ignore[operator]


@pytest.mark.parametrize("loss", [kl(), kl_at(), kl_top(2), l1(), mse(), cross_entropy()])
def test_without_scores_or_labels_there_is_nothing_to_learn(loss: object) -> None:
    student, _ = pair(13)
    with pytest.raises(ValueError, match="needs a consensus"):
        loss(student, Target(None, "logits", None))  # type: ignore[operator]


@pytest.mark.parametrize("loss", [kl(3.0), kl_top(2), l1(), mse(), cross_entropy()])
def test_stacked_clients_learn_what_they_learn_alone(loss: object) -> None:
    student, teacher = pair(14)
    both = loss(torch.stack([student, teacher]), soft(torch.stack([teacher, student])))  # type: ignore[operator]
    assert both.shape == (2, 6)
    torch.testing.assert_close(both[1], loss(teacher, soft(student)))  # type: ignore[operator]
