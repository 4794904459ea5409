"""Lies about public rows, as functions of what the liar knows.

A lone liar knows its own logits: its attacks are steps before the method's own upload. An
omniscient adversary knows the honest answers of the same round, and tells all liars what to say:
its attacks are functions of a `Scene`, made into `World.conspire` by `conspiracy`. "Honest" are
those who do not lie and have answered the row; of a row where there is none, the liars' own true
answers. Both keep masks, trust and rows.

Whatever an attack makes of probabilities lies on the simplex again before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fedkd.transforms import probabilities, require
from fedkd.types import Conspire, Predictions, Relabel, Space, State, Step, Transform

SURE = 20.0  # a logit that leaves a thousand other classes 2e-6 together

Lie = Callable[[Tensor, Tensor, Generator], Tensor]  # logits [J, R, C], mask, rng -> logits


class Scene(NamedTuple):
    """What an omniscient adversary knows of a round.

    `scores` [J, R, C] in a `space`, 0 where there is no answer; `honest` [J, R] where an honest
    one stands; `mean` [R, C] their mean in that space; `probs` [R, C] that of their probabilities;
    `share` [R] of the answers that liars give; `first` [J] is the liar with the lowest id.
    """

    scores: Tensor
    honest: Tensor
    mean: Tensor
    probs: Tensor
    share: Tensor
    first: Tensor
    space: Space


Attack = Callable[[Scene, Generator], Tensor]  # what liars say, [R, C] for all or [J, R, C]


def lone(lie: Lie, share_of_rows: float = 1.0) -> Transform:
    """A step on a client's own logits that lies about a share of the rows, drawn each round."""

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        require(given, "logits", "lying")
        told = lie(given.scores, given.mask, rng)
        chosen = _some(given.scores.shape[1], share_of_rows, rng)
        return Step(state, replace(given, scores=torch.where(chosen, told, given.scores)), {})

    return Transform(lambda shape: {}, apply)


def conspiracy(attack: Attack, share_of_rows: float = 1.0) -> Conspire:
    """All liars lie about the same share of the rows and give the honest mean for the rest.

    (The "fraction" of C. Roux, M. Zimmer, S. Pokutta, ICLR 2025.)
    """

    def conspire(given: Predictions, liars: Tensor, rng: Generator) -> Predictions:
        scene = _scene(given, liars)
        chosen = _some(given.scores.shape[1], share_of_rows, rng)
        rest = _sayable(scene.mean, scene.space)
        told = torch.where(chosen, attack(scene, rng), rest).to(given.scores.dtype)
        lied = (given.mask & liars.unsqueeze(-1)).unsqueeze(-1)
        return replace(given, scores=torch.where(lied, told, given.scores))

    return conspire


def flip_labels(pair: tuple[int, int] | None = None) -> Relabel:
    """Private labels y become C - 1 - y, or only those of the first class of a pair the second."""

    def relabel(labels: Tensor, classes: int, rng: Generator) -> Tensor:
        if pair is None:
            return classes - 1 - labels
        source, target = pair
        if max(pair) >= classes or source == target:
            raise ValueError(
                f"lying.pair: should be two different classes from 0 to {classes - 1}, found"
                f" {list(pair)}; correct it"
            )
        return torch.where(labels == source, target, labels)

    return relabel


def negated(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """Sign flip: -z, so that the last class becomes the first."""
    return -scores


def gaussian(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """Gaussian logits of the spread of one's own about the mean of each row."""
    answered = mask.unsqueeze(-1)
    own = torch.where(answered, scores, 0)
    away = (own - own.mean(-1, keepdim=True)).square().sum((1, 2), keepdim=True)
    values = answered.sum((1, 2), keepdim=True).clamp_min(1) * own.shape[-1]
    noise = torch.randn(own.shape, generator=rng, dtype=own.dtype)
    return noise * (away / values).sqrt()  # [J, R, C] * [J, 1, 1]


def random_label(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """One-hot of a class drawn for each row."""
    return _certain(torch.randint(scores.shape[-1], mask.shape, generator=rng), scores, "logits")


def fixed_label(label: int = 0) -> Lie:
    """One-hot of one class for every row."""

    def lie(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
        if label >= scores.shape[-1]:
            raise ValueError(
                f"lying.label: should be from 0 to {scores.shape[-1] - 1}, found {label}; lower it"
            )
        return _certain(torch.full(mask.shape, label), scores, "logits")

    return lie


def fdla(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """The largest logit changes places with the smallest; the others stay.

    After FDLA (H. Tang et al., 2024, arXiv 2407.18039); exact formula not secured. It demotes the
    top class by a permutation, so that the logits as a set show nothing.
    """
    top, last = scores.argmax(-1, keepdim=True), scores.argmin(-1, keepdim=True)
    swapped = scores.scatter(-1, top, scores.gather(-1, last))
    return swapped.scatter(-1, last, scores.gather(-1, top))


def pcfdla(peak: float = 0.7) -> Lie:
    """The same, and the false top class then has probability `peak`, the others share the rest.

    p' = peak at the class that was last, (1 - peak) p_c / sum of the others elsewhere, sent as
    ln p'. After PCFDLA (H. Tang et al., 2024, arXiv 2407.18039); exact formula not secured.
    """

    def lie(scores: Tensor, mask: Tensor, rng: Generator) -> Tensor:
        last = scores.argmin(-1, keepdim=True)
        rest = fdla(scores, mask, rng).scatter(-1, last, -torch.inf).log_softmax(-1)
        others = (rest + _log(1 - peak)).clamp_min(-2 * SURE)
        return others.scatter(-1, last, _log(peak))

    return lie


def second_best(scene: Scene, rng: Generator) -> Tensor:
    """One-hot of the second class of the honest mean (of the only one, where there is one)."""
    top = scene.probs.argmax(-1, keepdim=True)
    second = scene.probs.scatter(-1, top, -1.0).argmax(-1)
    return _certain(second, scene.mean, scene.space)


def lma(scene: Scene, rng: Generator) -> Tensor:
    """Loss maximisation: one-hot of argmin_c of the honest mean (Roux et al., ICLR 2025)."""
    return _certain(scene.probs.argmin(-1), scene.mean, scene.space)


def cpa(scene: Scene, rng: Generator) -> Tensor:
    """Class prior: one-hot of the class least like the honest argmax (Roux et al., ICLR 2025).

    Likeness is the covariance S [C, C] of the honest mean's probabilities over the rows of this
    round: what an adversary has seen that knows predictions and neither labels nor other data. The
    paper takes a fixed matrix. One row alone has no covariance; then it is the first other class.
    """
    top = scene.probs.argmax(-1, keepdim=True)
    alike = _covariance(scene)[top.squeeze(-1)].scatter(-1, top, torch.inf)
    return _certain(alike.argmin(-1), scene.mean, scene.space)


def hips_lma(scene: Scene, rng: Generator) -> Tensor:
    """Row by row the honest answer p_k that maximises H(h, (1 - a) h + a p_k).

    h is the honest mean, a the liars' share of the answers, H the cross-entropy. The lie is
    somebody's own answer and lies in the hull of the honest ones ("hiding in plain sight", Roux et
    al., ICLR 2025). Over the whole simplex the same maximum is LMA.
    """
    h, a = scene.probs, scene.share.unsqueeze(-1)
    mixed = (1 - a) * h + a * probabilities(scene.scores.double(), scene.space, 1.0)
    tiny = torch.finfo(mixed.dtype).tiny
    return _chosen(scene, -(h * mixed.clamp_min(tiny).log()).sum(-1))


def hips_cpa(scene: Scene, rng: Generator) -> Tensor:
    """Row by row the honest answer p_k that minimises sum_c S[argmax h, c] p_k,c; S as in CPA."""
    own = probabilities(scene.scores.double(), scene.space, 1.0)  # [J, R, C]
    alike = _covariance(scene)[scene.probs.argmax(-1)]  # [R, C]
    return _chosen(scene, -(own * alike).sum(-1))


def lie(z: float = 1.5) -> Attack:
    """A little is enough: mean + z std over the honest answers, entry by entry.

    G. Baruch, M. Baruch, Y. Goldberg, NeurIPS 2019, on answers in place of gradients as in FedGEMS
    (arXiv 2110.11027, appendix A); z is given and not derived from the number of liars.
    """

    def attack(scene: Scene, rng: Generator) -> Tensor:
        there = scene.honest.unsqueeze(-1)
        away = torch.where(there, scene.scores.double() - scene.mean, 0).square().sum(0)
        spread = (away / there.sum(0).clamp_min(1)).sqrt()
        return _sayable(scene.mean + z * spread, scene.space)

    return attack


def paf(distance: float = 10.0) -> Attack:
    """Naive noise: the honest mean + `distance` times Gaussian noise, the same for all liars.

    After "PAF" of FedGEMS (arXiv 2110.11027, appendix A); exact formula not secured.
    """

    def attack(scene: Scene, rng: Generator) -> Tensor:
        noise = torch.randn(scene.mean.shape, generator=rng, dtype=torch.float64)
        return _sayable(scene.mean + distance * noise, scene.space)

    return attack


def ofom(distance: float = 10.0) -> Attack:
    """One far, one mean: the first liar is far off as in `paf`, the others vouch for it.

    They say the mean over the honest answers and the far one. After "OFOM" of FedGEMS (arXiv
    2110.11027, appendix A); exact formula not secured.
    """

    def attack(scene: Scene, rng: Generator) -> Tensor:
        far = paf(distance)(scene, rng)
        count = scene.honest.sum(0).unsqueeze(-1)
        near = _sayable((count * scene.mean + far) / (count + 1), scene.space)
        return torch.where(scene.first.view(-1, 1, 1), far, near)

    return attack


def _scene(given: Predictions, liars: Tensor) -> Scene:
    """What there is to know, in float64; masked entries are not read."""
    truthful = given.mask & ~liars.unsqueeze(-1)
    honest = torch.where(truthful.any(0), truthful, given.mask)
    scores = torch.where(given.mask.unsqueeze(-1), given.scores, 0)
    there = honest.unsqueeze(-1)
    count = there.sum(0).clamp_min(1)  # [R, 1]

    def mean(of: Tensor) -> Tensor:
        return torch.where(there, of.double(), 0).sum(0) / count

    lying = (given.mask & liars.unsqueeze(-1)).sum(0)
    probs = mean(probabilities(scores.double(), given.space, 1.0))
    return Scene(
        scores,
        honest,
        mean(scores),
        probs,
        lying / given.mask.sum(0).clamp_min(1),
        liars & (liars.cumsum(0) == 1),
        given.space,
    )


def _covariance(scene: Scene) -> Tensor:
    """Of the honest mean's probabilities over the rows that somebody answered, [C, C]."""
    probs = scene.probs[scene.honest.any(0)]
    away = probs - probs.mean(0) if len(probs) else probs
    return away.T @ away / max(1, len(probs))


def _chosen(scene: Scene, gain: Tensor) -> Tensor:
    """Row by row the honest answer of the greatest gain [J, R], bit for bit."""
    best = gain.masked_fill(~scene.honest, -torch.inf).argmax(0)  # [R]
    return scene.scores[best, torch.arange(len(best))]


def _certain(labels: Tensor, like: Tensor, space: Space) -> Tensor:
    """Scores that leave no doubt about labels [..]: [.., C]."""
    one_hot = torch.nn.functional.one_hot(labels, like.shape[-1]).to(like.dtype)
    if space in ("probs", "votes"):
        return one_hot
    return SURE * one_hot if space == "logits" else (SURE * one_hot).log_softmax(-1)


def _sayable(scores: Tensor, space: Space) -> Tensor:
    """The scores made such as the space admits; of votes the one for the largest.

    What was to be negative has probability 0, and what is left is scaled to sum 1. (A point with
    nothing left is certain of its largest entry.)
    """
    if space == "logits":
        return scores
    if space == "log_probs":
        return scores.log_softmax(-1)
    if space == "votes":
        return _certain(scores.argmax(-1), scores, space)
    left = scores.clamp_min(0)
    total = left.sum(-1, keepdim=True)
    sure = _certain(scores.argmax(-1), scores, space)
    return torch.where(total > 0, left / torch.where(total > 0, total, 1), sure)


def _some(rows: int, share: float, rng: Generator) -> Tensor:
    """A share of the rows, rounded, drawn without replacement, [R, 1]; nothing is drawn for all."""
    chosen = torch.ones(rows, 1, dtype=torch.bool)
    if share < 1:
        chosen[torch.randperm(rows, generator=rng)[round(share * rows) :]] = False
    return chosen


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())
