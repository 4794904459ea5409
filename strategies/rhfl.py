"""RHFL: clients learn from each other as far as their labels can be believed.

X. Fang, M. Ye, "Robust federated learning with noisy and heterogeneous clients", CVPR 2022
"""

import torch
from torch import Generator, Tensor

from fedkd.losses import symmetric
from fedkd.transforms import others_mean, softmax
from fedkd.types import (
    Losses,
    OwnModel,
    Positive,
    PrivateView,
    Release,
    Shares,
    Strategy,
    Target,
)


def rhfl(lam: Positive = 0.1) -> Strategy:
    """q_k(x) = sum_l t_l p_l(x) / sum_l t_l over l != k,  t_l = 1 / mean of SL(y, z_l) on own data.

    SL = lam CE(y, p) + CE(p, y), also the private loss (`losses.symmetric`). KL to each of the
    others, weighted, has the gradient of KL to their weighted mean. The paper's formulas are not
    secured: it weighs by label quality and by how fast the loss falls, here by the first alone, and
    a client that is left out of its own target is our reading. A client's trust is its own word.
    """

    def trust(
        view: PrivateView, model: OwnModel, inputs: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        labels = view.labels.to(view.inputs.device)
        loss = symmetric(lam)(model(view.inputs), Target(None, "logits", labels)).mean()
        quality = float(1 / loss.clamp_min(1e-3))
        return torch.ones(len(inputs), dtype=torch.bool), torch.full((len(inputs),), quality)

    return Strategy(
        combine=others_mean(),
        annotate=trust,
        annotate_releases=(Release("mean loss on its samples, exact", "record", {}),),
        upload=softmax(),
        losses=Losses(private=symmetric(lam)),
        program=("train", "answer", "combine", "distil_clients"),
        shares=Shares(answers="probs", uplink=lambda t: 4 * t.rows * (t.classes + 1)),
    )
