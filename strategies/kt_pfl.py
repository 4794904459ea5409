"""KT-pFL: every client is taught its own mixture of all clients' soft labels.

J. Zhang, S. Guo, X. Ma, H. Wang, W. Xu, F. Wu, "Parameterized knowledge transfer for personalized
federated learning", NeurIPS 2021, https://arxiv.org/abs/2111.02862
"""

import torch
from torch import Generator, Tensor

from fedkd.losses import kl_at
from fedkd.transforms import random_rows, softmax
from fedkd.types import (
    Count,
    Losses,
    NonNegative,
    Positive,
    Predictions,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
)


def kt_pfl(
    temperature: Positive = 10.0,
    rho: NonNegative = 0.5,
    step: Positive = 0.5,
    rows: Count | None = 5000,
) -> Strategy:
    """p*_n = sum_m c_nm p_m, the coefficients c learnt with the models, each row on the simplex.

    Every round takes one step of size `step` down  ||p*_n - p_n||^2 + rho ||c_n - 1/K||^2  (squared
    error summed over classes, averaged over rows): the first term by its gradient, the second
    exactly, then the nearest point of the simplex. So rho to infinity gives uniform rows whatever
    the step; soft labels at T = 10 differ little, so the authors' 0.5 keeps rows near uniform,
    and a smaller one makes targets more personal. The paper weighs the first term by n_n/N, here by
    1, for sizes are not shared; its code takes softmax(5 c) for the simplex, which is no projection
    (only uniform rows stay where they are), adapts the step, and distils before private training.
    """
    return Strategy(
        combine=_mixture(rho, step),
        request=random_rows(rows),
        upload=softmax(temperature),
        losses=Losses(client=kl_at(temperature)),
        program=("train", "answer", "combine", "distil_clients"),
        shares=Shares(answers="probs", traits=frozenset({"personal"})),
    )


def _mixture(rho: float, step: float) -> Transform:
    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        c, here = state["coefficients"].clone(), given.parties  # [K, K], [J]
        trust = torch.where(given.mask, given.trust, 0).double()  # [J, R]
        p = torch.where(given.mask.unsqueeze(-1), given.scores.detach(), 0).double()  # [J, R, C]

        # an unanswered row counts as the mean of the answers, an absent client as all mean: both
        # neither attract nor repel. The mean itself is the same for all m, so the simplex undoes it
        answers = given.mask.sum(0)
        centre = p.sum(0) / answers.clamp_min(1).unsqueeze(-1)
        away = torch.where(given.mask.unsqueeze(-1), p - centre, 0).flatten(1)
        gram = away @ away.T / (answers > 0).sum().clamp_min(1)  # [J, J]
        gradient = torch.zeros_like(c[here])  # [J, K]
        gradient[:, here] = 2 * (c[here][:, here] - torch.eye(len(here)).double()) @ gram
        pull = 2 * step * rho
        c[here] = _simplex((c[here] - step * gradient + pull / len(c)) / (1 + pull))

        near = c[here][:, here]
        weight = near @ trust  # [J, R]: rows of c renormalised over those who answered
        mixed = (near @ (trust.unsqueeze(-1) * p).flatten(1)).view_as(p)
        taught = weight > 0
        target = mixed / torch.where(taught, weight, 1).unsqueeze(-1)
        result = Predictions(
            target.to(given.scores.dtype),
            taught,
            taught.to(given.trust.dtype),
            given.rows,
            here,
            given.asked,
            given.space,
        )
        return Step({"coefficients": c}, result, {"own_coefficient": float(c.diagonal().mean())})

    return Transform(
        lambda shape: {
            "coefficients": torch.full(2 * (shape.parties,), 1 / shape.parties, dtype=torch.float64)
        },
        apply,
    )


def _simplex(rows: Tensor) -> Tensor:
    """The nearest point of the probability simplex, by row (Duchi et al., ICML 2008, fig. 1)."""
    falling = rows.sort(-1, descending=True).values
    excess = (falling.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1)
    last = (falling > excess).sum(-1, keepdim=True) - 1
    return (rows - excess.gather(-1, last)).clamp_min(0)
