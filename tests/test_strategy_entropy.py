"""The entropy-weighted mean, worked by hand and at its limits."""

import math

import torch

from fedkd.contract import consensus
from fedkd.types import predictions
from strategies.entropy import entropy

# the first client is sure of class 0, the second knows nothing: H = 0 and ln 2
LOGITS = predictions(torch.tensor([[[200.0, 0.0]], [[0.0, 0.0]]]), "logits")


def test_worked_by_hand() -> None:
    # tau = ln 2: weights 1 and 1/e; class 0 gets (1 + 0.5/e) / (1 + 1/e) = 1.183940 / 1.367879
    found = consensus(entropy(temperature=math.log(2)), LOGITS).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.8655292, 0.1344708]]]))


def test_trust_multiplies_the_weight() -> None:
    # weights 1 and 2e^-1: (1 + 1/e) / (1 + 2/e) = 1.367879 / 1.735759
    doubted = predictions(LOGITS.scores, "logits", trust=torch.tensor([[1.0], [2.0]]))
    found = consensus(entropy(temperature=math.log(2)), doubted).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.7880584, 0.2119416]]]))


def test_a_large_tau_is_the_plain_mean() -> None:
    found = consensus(entropy(temperature=1e6), LOGITS).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.75, 0.25]]]))


def test_a_small_tau_leaves_the_most_confident_alone() -> None:
    found = consensus(entropy(temperature=0.02), LOGITS).result
    torch.testing.assert_close(found.scores, torch.tensor([[[1.0, 0.0]]]))
