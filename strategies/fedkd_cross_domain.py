"""FedKD over another domain: one exchange of coarse and noisy answers, one student.

X. Gong et al., "Preserving privacy in federated learning with ensemble cross-domain knowledge
distillation", AAAI 2022
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from fedkd.transforms import chain, mean, softmax
from fedkd.types import NonNegative, Predictions, Release, Shares, State, Step, Strategy, Transform


def fedkd_cross_domain(noise: NonNegative = 0.0) -> Strategy:
    """q(x) = mean_k Q(p_k(x) + n_k(x)), n ~ N(0, noise^2) by class, brought back to the simplex.

    After the abstract: models trained to the end, one exchange (`rounds: 1`), unlabelled public
    samples of another domain, a quantised and noisy ensemble. The amounts are not secured, so the
    experiment names them: `noise` here, the levels of Q as `codecs.up`. What is negative after the
    noise becomes 0 and the rest is scaled to sum one. No privacy guarantee is claimed for it.
    """
    return Strategy(
        combine=mean(),
        upload=chain(softmax(), _noisy(noise)),
        feedback="none",
        program=("train", "answer", "combine", "distil_server"),
        shares=Shares(answers="probs"),
    )


def _noisy(noise: float) -> Transform:
    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        drawn = noise * torch.randn(given.scores.shape, generator=rng)
        moved: Tensor = (given.scores + drawn).clamp_min(1e-12)
        scores = moved / moved.sum(-1, keepdim=True)
        masked = torch.where(given.mask.unsqueeze(-1), scores, 0)
        return Step(state, replace(given, scores=masked) if noise else given, {})

    released = Release("Gaussian noise on soft labels, no guarantee", "prediction", {"std": noise})
    return Transform(lambda shape: {}, apply, (released,))
