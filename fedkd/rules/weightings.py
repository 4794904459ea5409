"""Weighted means of answers: who counts how much in which row.

A weight multiplies the trust that came with an answer, and weights are scaled to sum one over those
who answered the row. What is averaged stays in the space in which it came; weights that need
probabilities take softmax(z) of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd import transforms
from fedkd.transforms import combine, consensus_of, probabilities, shannon
from fedkd.types import (
    Fraction,
    Linear,
    Need,
    Positive,
    Predictions,
    State,
    Step,
    Trait,
    Transform,
)

_TINY = float(torch.finfo(torch.float32).tiny)  # stands for a probability of 0 in a logarithm
_STEPS = 1000  # of a solver, at most


def mean() -> Linear:
    """q = sum_k t_k s_k / sum_k t_k, trust t, scores s in the space in which they come.

    The mean of probabilities and that of logits are different methods: the first has bounded
    influence, the second is the geometric consensus, softmax(mean_k z_k).
    """
    return transforms.mean()


def geometric_mean() -> Transform:
    """q_c ∝ exp(sum_k w_k ln p_k,c), w = t_k / sum t: the mean of log-probabilities.

    Equal to softmax(mean_k z_k). A class that one client rules out is all but ruled out: zeros
    count as the smallest normal float32, 1.2e-38.
    """

    def pool(given: Predictions) -> Predictions:
        if given.space not in ("probs", "log_probs"):
            raise ValueError(
                f"geometric_mean: works on probs and log_probs, found {given.space}; of logits, use"
                " mean"
            )
        logs = given.scores if given.space == "log_probs" else given.scores.clamp_min(_TINY).log()
        joint = _averaged(replace(given, scores=logs.double(), space="logits"))
        log_q = joint.scores[0].log_softmax(-1)
        scores = log_q if given.space == "log_probs" else log_q.exp()
        return consensus_of(given, scores, joint.mask[0])

    return transforms.pure(pool)._replace(traits=frozenset({"leaves_hull"}))


def entropy(temperature: Positive = 0.2) -> Linear:
    """w_k = exp(-H(p_k) / tau), H in nats: softmax over clients of -H / tau, free of labels.

    A large tau gives the plain mean; tau to 0 leaves the most confident client alone. After K. Kwon
    et al., "Adaptive knowledge distillation based on entropy", ICASSP 2020, whose linear form is
    `ebkd`.
    """

    def weigh(given: Predictions) -> tuple[Tensor, Tensor]:
        certain = probabilities(given.scores, given.space, 1.0)
        weight = given.trust * torch.exp(-shannon(certain) / temperature)
        return given.scores * weight.unsqueeze(-1), weight

    return Linear(weigh, frozenset({"confident"}))


def ebkd() -> Transform:
    """w_k = (1 - H_k / sum_l H_l) / (K - 1), H in nats, K those who answered the row.

    K. Kwon et al., ICASSP 2020. The authors' weights sum to K - 1 and their code divides by K,
    which scales the loss by (K - 1) / K; here they sum to one. All weigh alike where every H is 0.
    """

    def weigh(given: Predictions) -> Tensor:
        certain = probabilities(given.scores, given.space, 1.0)
        return _others_share(shannon(certain).double().clamp_min(0), given.mask)

    return _weighted(weigh, "confident", "counts_clients")


def confidence() -> Linear:
    """w_k = max_c p_k,c: who is sure of a row has more to say about it."""

    def weigh(given: Predictions) -> tuple[Tensor, Tensor]:
        certain = probabilities(given.scores, given.space, 1.0)
        weight = given.trust * certain.amax(-1)
        return given.scores * weight.unsqueeze(-1), weight

    return Linear(weigh, frozenset({"confident"}))


def variance(of: Literal["scores", "probabilities"] = "scores") -> Linear:
    """w_k = Var_c(z_k), of one row: the spread of a client's scores as its confidence.

    Y. J. Cho et al., IJCAI 2022, https://arxiv.org/abs/2204.12703, as described there in words.
    Twice the logits are four times the weight, so a client gains by scaling its logits;
    `of: probabilities` takes Var_c(softmax(z_k)) <= 1/4 and bounds that. Flat answers weigh nothing
    unless all are flat.
    """

    def weigh(given: Predictions) -> tuple[Tensor, Tensor]:
        spread = given.scores
        if of == "probabilities":
            spread = probabilities(spread, given.space, 1.0)
        # not zero, so that flat answers among themselves are still averaged
        weight = given.trust * (spread.double().var(-1, correction=0) + 1e-100)
        return given.scores * weight.unsqueeze(-1), weight

    return Linear(weigh, frozenset({"confident"}))


def ca_mkd() -> Transform:
    """w_k = (1 - softmax_k(CE(y, z_k))) / (K - 1), K those who answered the row.

    H. Zhang, D. Chen, C. Wang, "Confidence-aware multi-teacher knowledge distillation", ICASSP
    2022, its weights of answers (those of features are not exchanged). Needs the labels of the
    public set; rows without a label weigh all alike. The authors' code divides by K once more.
    """

    def weigh(given: Predictions) -> Tensor:
        labels = _told(given, "labels", "ca_mkd", "public labels")
        logs = _log_probabilities(given).double()
        known = (labels >= 0) & given.mask
        loss = -logs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        loss = torch.where(known, loss, 0).masked_fill(~given.mask, -torch.inf)
        top = loss.amax(0).clamp_min(0)
        return _others_share(torch.exp(loss - top), given.mask)

    return _weighted(weigh, "counts_clients", needs=frozenset({"public_labels"}))


def aekd(most: Fraction = 0.6) -> Transform:
    """w = argmin ||sum_k w_k (p_s - p_k)||^2, sum w = 1, 0 <= w_k <= max(C, 1/K), C = `most`.

    The gradients of KL(p_k || p_s) by the student's logits are p_s - p_k, so w is the direction in
    which all losses fall. S. Du et al., "Agree to disagree: adaptive ensemble knowledge
    distillation in gradient space", NeurIPS 2020, who solve it as a one-class SVM with
    nu = 1 / (C K): C = 1/K (nu = 1) is the plain mean, C = 1 (nu = 1/K) the unconstrained point of
    least norm.

    Here w is found for every row, at the student as it stands when the answers are combined; their
    code finds one for every batch at every step. With a single round the student has learnt nothing
    yet, so the weights differ little.
    """

    def weigh(given: Predictions) -> Tensor:
        student = _told(given, "student", "aekd", "the student's logits")
        p = probabilities(given.scores, given.space, 1.0).double()
        away = torch.where(given.mask.unsqueeze(-1), student.double().softmax(-1) - p, 0)
        bound = (1 / given.mask.sum(0).clamp_min(1).double()).clamp_min(most)
        blocks = transforms.row_blocks(len(p), p.shape[1], 2 * len(p) + p.shape[2])
        parts = [_least_norm(away[:, b], given.mask[:, b], bound[b]) for b in blocks]
        return torch.cat(parts, 1) if parts else torch.zeros_like(given.trust)

    return _weighted(weigh, "counts_clients", needs=frozenset({"student"}))


def public_accuracy() -> Transform:
    """w_k = the share of the labelled public rows of this round that client k gets right.

    Weights by validation accuracy, on the only labels that the server can put to all: those of the
    public set. Who answered no such row gets the mean of the others; all weigh alike where no label
    is known, or nobody is right.
    """

    def weigh(given: Predictions) -> Tensor:
        labels = _told(given, "labels", "public_accuracy", "public labels")
        known = (labels >= 0) & given.mask
        right = (known & (given.scores.argmax(-1) == labels)).sum(1).double()
        asked = known.sum(1)
        tried = asked > 0
        share = right / asked.clamp_min(1)
        share = torch.where(tried, share, share.sum() / tried.sum().clamp_min(1))
        if not bool(share.any()):
            share = torch.ones_like(share)
        return share.unsqueeze(-1).expand(given.mask.shape)

    return _weighted(weigh, "batchwise", "abstains", needs=frozenset({"public_labels"}))


def _weighted(
    weigh: Callable[[Predictions], Tensor], *traits: Trait, needs: frozenset[Need] = frozenset()
) -> Transform:
    """The mean with weights [J, R] that depend on all answers."""

    def apply(state: State, given: Predictions, rng: torch.Generator) -> Step:
        scores = torch.where(given.mask.unsqueeze(-1), given.scores, 0)
        trust = torch.where(given.mask, given.trust, 0)
        weight = weigh(replace(given, scores=scores, trust=trust))
        return Step(state, _averaged(replace(given, trust=trust * weight)), {})

    return Transform(lambda shape: {}, apply, traits=frozenset(traits), needs=needs)


def _averaged(given: Predictions) -> Predictions:
    return combine(transforms.mean(), {}, given, torch.Generator()).result


def _others_share(part: Tensor, mask: Tensor) -> Tensor:
    """1 - part_k / sum_l part_l, over K - 1; all alike where all parts are 0, one where K = 1."""
    part = torch.where(mask, part, 0)
    total, answers = part.sum(0), mask.sum(0)
    share = part / torch.where(total > 0, total, 1)
    share = torch.where(total > 0, share, 1 / answers.clamp_min(1))
    return torch.where(answers > 1, (1 - share) / (answers - 1).clamp_min(1), 1.0)


def _log_probabilities(given: Predictions) -> Tensor:
    if given.space in ("logits", "log_probs"):
        return F.log_softmax(given.scores, -1)
    return probabilities(given.scores, given.space, 1.0).clamp_min(_TINY).log()


def _told(given: Predictions, name: str, rule: str, what: str) -> Tensor:
    """What the server knows beside the answers, [J, R, …]."""
    if given.extras is None or name not in given.extras:
        raise ValueError(
            f"{rule}: works with {what} beside the answers, found no extra {name!r}; give it with"
            " `transforms.informed`"
        )
    return given.extras[name][0]


def _least_norm(away: Tensor, mask: Tensor, bound: Tensor) -> Tensor:
    """argmin_w ||sum_j w_j a_j||^2 over the simplex capped at `bound`, by row: [J, r, S] -> [J, r].

    Accelerated projected gradient, started anew where it turns back (B. O'Donoghue, E. Candes,
    2015); a row stops for itself, so that rows do not mix.
    """
    a, mask, bound = away.transpose(0, 1), mask.T, bound.unsqueeze(-1)  # [r, J, S]
    gram = a @ a.transpose(1, 2)
    size = gram.abs().sum(-1).amax(-1, keepdim=True)  # no eigenvalue is larger
    rate = 1 / torch.where(size > 0, size, 1)
    w = _capped(mask.double(), mask, bound)
    ahead, inertia = w, torch.ones_like(rate)
    going = torch.ones_like(rate, dtype=torch.bool)
    for _ in range(_STEPS):
        slope = (gram @ ahead.unsqueeze(-1)).squeeze(-1)
        new = _capped(ahead - rate * slope, mask, bound)
        back = ((ahead - new) * (new - w)).sum(-1, keepdim=True) > 0
        grown = torch.where(back, 1.0, (1 + (1 + 4 * inertia.square()).sqrt()) / 2)
        push = torch.where(back, 0.0, (inertia - 1) / grown)
        moved = (new - ahead).abs().amax(-1, keepdim=True)
        ahead = torch.where(going, new + push * (new - w), ahead)
        w, inertia = torch.where(going, new, w), torch.where(going, grown, inertia)
        going = going & (moved > 1e-11)
        if not bool(going.any()):
            break
    return w.T


def _capped(point: Tensor, mask: Tensor, bound: Tensor) -> Tensor:
    """The nearest w with sum 1 and 0 <= w_j <= bound, 0 where masked, by row [r, J].

    w = clip(point - t, 0, bound); the sum is linear in t between the 2 J places where an entry
    meets a bound, so the t where it is 1 lies on the line between two of them.
    """
    point = point.masked_fill(~mask, -torch.inf)
    places = torch.cat([point, point - bound], -1).sort(-1).values  # [r, 2 J]
    places = places.clamp_min(point.masked_fill(~mask, torch.inf).amin(-1, True) - bound)
    places = places.nan_to_num(0, 0, 0)
    entries = (point.unsqueeze(1) - places.unsqueeze(2)).clamp_min(0).minimum(bound.unsqueeze(1))
    total = entries.sum(-1)  # falls along the places, from J * bound >= 1 to 0
    after = (total >= 1).sum(-1, keepdim=True).clamp(1, places.shape[1] - 1)
    (left, right), (above, below) = (
        (x.gather(-1, after - 1), x.gather(-1, after)) for x in (places, total)
    )
    drop = above - below
    part = ((above - 1) / torch.where(drop > 0, drop, 1)).clamp(0, 1)
    w = (point - (left + part * (right - left))).clamp_min(0).minimum(bound)
    return w / w.sum(-1, keepdim=True).clamp_min(1e-300)
