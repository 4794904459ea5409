"""Fed-ET: small clients teach a larger student by a weighted label and by those who disagree.

Y. J. Cho, A. Manoel, G. Joshi, R. Sim, D. Dimitriadis, "Heterogeneous ensemble knowledge transfer
for training large models in federated learning", IJCAI 2022, https://arxiv.org/abs/2204.12703
"""

from dataclasses import replace

import torch

from fedkd.transforms import pure
from fedkd.types import (
    CONSENSUS,
    STUDENT_FIRST,
    NonNegative,
    Predictions,
    Shares,
    Strategy,
)


def fed_et(lam: NonNegative = 0.05, normalise: bool = False) -> Strategy:
    """y(x) = argmax sum_k a_k z_k,  a_k = Var_c(z_k) / sum_l Var_c(z_l);  CE(y) + lam KL(z_div).

    z_div is the same weighted mean over the clients whose argmax is not y; where all agree there is
    no such term. Both terms are one target, (onehot(y) + lam softmax(z_div)) / (1 + lam), which
    counts 1 + lam: the same gradient.

    After the abstract's concept: formulas and `lam` are not secured. The paper copies the student's
    lower layers back to the clients and averages clients of one architecture first; here clients
    learn the student's answers. The variance grows with the scale of a client's scores, so one with
    large scores decides alone; `normalise` divides each answer by its root mean square first.
    """

    def combine(given: Predictions) -> Predictions:
        scores = torch.where(given.mask.unsqueeze(-1), given.scores, 0).double()
        if normalise:
            scores = scores / scores.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        weight = scores.var(-1, correction=0) * torch.where(given.mask, given.trust, 0)  # [J, R]
        # nobody knows anything: all who answered count alike
        weight = torch.where(weight.sum(0) > 0, weight, given.mask.double())
        label = _largest(_mean(scores, weight))  # [R, C], ties shared
        apart = weight * ~(_largest(scores) & label).any(-1)
        diverse = apart.sum(0) > 0
        target = label / label.sum(-1, keepdim=True)
        mixed = (target + lam * _mean(scores, apart).softmax(-1)) / (1 + lam)
        target = torch.where(diverse.unsqueeze(-1), mixed, target)
        mask = given.mask.any(0)
        return replace(
            given,
            scores=torch.where(mask.unsqueeze(-1), target, 0).unsqueeze(0).to(given.scores.dtype),
            mask=mask.unsqueeze(0),
            trust=(mask * (1 + lam * diverse)).unsqueeze(0).to(given.trust.dtype),
            parties=torch.tensor([CONSENSUS]),
            asked=given.asked.max().reshape(1),
            space="probs",
        )

    return Strategy(
        combine=pure(combine),
        feedback="student",
        program=STUDENT_FIRST,
        shares=Shares(answers="logits", traits=frozenset({"sharpens"})),
    )


def _largest(scores: torch.Tensor) -> torch.Tensor:
    return scores == scores.amax(-1, keepdim=True)


def _mean(scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum_k w_k z_k / sum_k w_k over [J, R, C] and [J, R]; zeros where no weight is."""
    total = weight.sum(0)
    weighted = (scores * weight.unsqueeze(-1)).sum(0)
    return weighted / torch.where(total > 0, total, 1).unsqueeze(-1)
