"""Distillation losses: logits [.., B, C] and a `Target` in, the loss of every sample [.., B] out.

Every public function here is a loss by name for `learning.*.loss`. The trainer takes the mean over
the samples of a batch, so `kl` is `batchmean` of KL(teacher || student).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.transforms import probabilities
from fedkd.types import Count, Fraction, Loss, Positive, Target


def cross_entropy() -> Loss:
    """Cross-entropy with the hard labels, or with soft labels where there are no hard ones (-1)."""

    def loss(logits: Tensor, target: Target) -> Tensor:
        if target.labels is not None and target.scores is None:
            return _hard(logits, target.labels)
        teacher = probabilities(_soft(target, "cross_entropy"), target.space, 1.0)
        soft = -(teacher * F.log_softmax(logits, -1)).sum(-1)
        if target.labels is None:
            return soft
        hard = _hard(logits, target.labels.clamp_min(0))
        return torch.where(target.labels >= 0, hard, soft)

    return loss


def kl(temperature: Positive = 1.0, alpha: Fraction = 1.0) -> Loss:
    """alpha T^2 KL(teacher^T || student^T) + (1 - alpha) CE(labels) (Hinton et al., 2015, s.2).

    Rows without a label (-1) count with their soft part alone, unscaled. alpha = 1 needs no labels.
    """

    def loss(logits: Tensor, target: Target) -> Tensor:
        scores = _soft(target, "kl")
        teacher = probabilities(scores, target.space, temperature)
        student = F.log_softmax(logits / temperature, -1)
        soft = temperature**2 * (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)
        if alpha == 1:
            return soft
        if target.labels is None:
            raise ValueError(
                f"kl.alpha: below 1 it mixes in hard labels; there are none here, found {alpha};"
                " set alpha to 1 or data.public.labelled to true"
            )
        known = target.labels >= 0
        hard = _hard(logits, target.labels.clamp_min(0))
        return torch.where(known, alpha * soft + (1 - alpha) * hard, soft)

    return loss


def kl_at(temperature: Positive = 1.0) -> Loss:
    """T^2 KL(q || student^T), q being soft labels that were made at temperature T already.

    `kl` would soften such labels a second time. Needs a consensus of probabilities.
    """

    def loss(logits: Tensor, target: Target) -> Tensor:
        teacher = _soft(target, "kl_at")
        if target.space != "probs":
            raise ValueError(
                f"kl_at: learns probabilities as they are, the consensus is in {target.space};"
                " use kl"
            )
        student = F.log_softmax(logits / temperature, -1)
        return temperature**2 * (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)

    return loss


def kl_top(k: Count) -> Loss:
    """KL(teacher || student) over k + 1 outcomes: the teacher's k likeliest classes, and the rest.

    What the teacher says of single classes beyond these is not learnt, only how likely they are
    together; so it is never more than `kl`, and equal to it where k is the number of classes.
    """

    def loss(logits: Tensor, target: Target) -> Tensor:
        teacher = probabilities(_soft(target, "kl_top"), target.space, 1.0)
        student = F.log_softmax(logits, -1)
        order = teacher.sort(dim=-1, descending=True, stable=True).indices
        teacher, student = teacher.gather(-1, order), student.gather(-1, order)
        if k < teacher.shape[-1]:
            rest = teacher[..., k:].sum(-1, keepdim=True)
            teacher = torch.cat([teacher[..., :k], rest], -1)
            others = student[..., k:].logsumexp(-1, keepdim=True)
            student = torch.cat([student[..., :k], others], -1)
        return (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)

    return loss


def mse() -> Loss:
    """Mean over classes of the squared distance between logits; needs a consensus of logits."""
    return lambda logits, target: (logits - _logits(target, "mse")).square().mean(-1)


def l1() -> Loss:
    """Mean over classes of the absolute distance between logits (D. Li and J. Wang, 2019)."""
    return lambda logits, target: (logits - _logits(target, "l1")).abs().mean(-1)


def symmetric(lam: Positive = 0.1, least: Annotated[float, Field(lt=0)] = -4.0) -> Loss:
    """lam CE(y, p) + CE(p, y), where log 0 counts as `least`: the second is -least (1 - p_y).

    Labels that are wrong pull less: the second term is bounded. Y. Wang et al., "Symmetric cross
    entropy for robust learning with noisy labels", ICCV 2019. Needs hard labels.
    """

    def loss(logits: Tensor, target: Target) -> Tensor:
        if target.labels is None or bool((target.labels < 0).any()):
            raise ValueError(
                "symmetric: needs a hard label of every sample, found some unknown; use it for"
                " private epochs"
            )
        usual = _hard(logits, target.labels)
        return lam * usual - least * (1 - (-usual).exp())

    return loss


def _hard(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _soft(target: Target, name: str) -> Tensor:
    if target.scores is None:
        raise ValueError(f"{name}: needs a consensus to learn from, found hard labels alone")
    return target.scores


def _logits(target: Target, name: str) -> Tensor:
    if target.space != "logits":
        raise ValueError(
            f"{name}: compares logits, the consensus is in {target.space}; use kl, or a strategy"
            " whose consensus is the mean of logits"
        )
    return _soft(target, name)
