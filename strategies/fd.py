"""FD: clients exchange their models' mean soft label of each class, and no public sample.

E. Jeong, S. Oh, H. Kim, J. Park, M. Bennis, S.-L. Kim, "Communication-efficient on-device machine
learning: federated distillation and augmentation under non-IID private data", NeurIPS workshop
2018, https://arxiv.org/abs/1811.11479
"""

import torch
from torch import Generator, Tensor

from fedkd.losses import cross_entropy
from fedkd.transforms import others_mean, softmax
from fedkd.types import (
    Loss,
    Losses,
    NonNegative,
    OwnModel,
    PrivateView,
    Release,
    Shares,
    Strategy,
    Target,
    Traffic,
)


def fd(gamma: NonNegative = 0.1) -> Strategy:
    """CE(F, y) + gamma CE(F, Fhat_y),  Fhat^(k)_y = mean over the others' Fbar^(l)_y, l != k.

    Fbar^(k)_y is the mean softmax of client k's model over its own samples of label y: rows are
    labels, C x C numbers whatever the model. A label that no other client holds has no second term.
    The paper means over the steps of a round as they are taken; here it is the model at the end of
    the round, in eval mode. `gamma` is not secured; 0.1 is an assumption. FAug, which has a
    generator fill up missing labels, is not here. Averages of few samples are close to those
    samples' own: that is released, and no mechanism bounds it.
    """
    return Strategy(
        combine=others_mean(),
        summarise=_by_label,
        annotate_releases=(
            Release("mean soft label of each class", "record", {}),
            Release("which labels it has, exact", "record", {}),
        ),
        upload=softmax(),
        losses=Losses(private=_regularised(gamma)),
        program=("recall", "train", "answer", "combine"),
        shares=Shares(
            answers="probs", uplink=_bytes, downlink=_bytes, varying=frozenset({"up", "down"})
        ),
    )


def _bytes(t: Traffic) -> int:
    """A row for each label held, and a bit a label where some are not."""
    return 4 * t.changed * t.classes + (t.changed < t.rows) * -(-t.rows // 8)


def _by_label(view: PrivateView, model: OwnModel, rng: Generator) -> tuple[Tensor, Tensor]:
    p, labels = model(view.inputs).softmax(-1).double().cpu(), view.labels.cpu()
    total = torch.zeros(view.classes, view.classes).double().index_add(0, labels, p)
    held = torch.bincount(labels, minlength=view.classes).unsqueeze(-1)
    mean = total / held.clamp_min(1)
    return mean.clamp_min(1e-30).log(), held[:, 0] > 0


def _regularised(gamma: float) -> Loss:
    hard = cross_entropy()

    def loss(logits: Tensor, target: Target) -> Tensor:
        usual = hard(logits, target._replace(scores=None))
        if target.scores is None:
            return usual
        return usual - gamma * (target.scores * logits.log_softmax(-1)).sum(-1)

    return loss
