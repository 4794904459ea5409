"""Rules that a small part of the clients cannot sway far, whatever it says.

They count heads: trust is what a client says of itself, so all that is read of it is whether it is
above 0. All but Krum's selection over whole answers work row by row, on those who answered the row;
where K, f or a share is named, K is their number there. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.transforms import consensus_of, pure, row_blocks
from fedkd.types import Count, Natural, Predictions, Shape, State, Trait, Transform

Half = Annotated[float, Field(ge=0, lt=0.5)]
# (scores [J, r, S] float64, 0 where there is no answer; answered [J, r]) -> scores [r, S], mask [r]
Rowwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_EQUAL = 1e-9  # figures that differ by less than this part are a tie: rounding must not decide
_ITERATIONS = 100


def median(tie: Literal["lower", "upper", "mean"] = "lower") -> Transform:
    """q_c = median_k s_k,c, class by class; probabilities are then scaled to sum one.

    `tie` says which of the middle two counts where their number is even. A row whose medians are
    all 0 (certain clients, all of another opinion) has no target. Targets may lie outside of the
    convex hull of the answers.
    """

    def middle(scores: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        n = answered.sum(0)
        low = n // 2 if tie == "upper" else (n - 1) // 2
        return _between(scores, answered, low, low + 1 if tie != "mean" else n // 2 + 1)

    return _rowwise(middle, "leaves_hull", "abstains")


def trimmed_mean(share: Half = 0.2) -> Transform:
    """q_c = mean_k s_k,c without the floor(share K) largest and as many smallest, class by class.

    share 0 is the mean, (K - 1) / 2K of odd K the median. Probabilities are then scaled to sum one;
    a row of which nothing but zeros is left has no target.
    """

    def trim(scores: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        n = answered.sum(0)
        cut = _part(share, n)
        return _between(scores, answered, cut, n - cut)

    return _rowwise(trim, "leaves_hull", "abstains", "counts_clients")


def geometric_median() -> Transform:
    """q = argmin_x sum_k ||x - s_k||_2: Weiszfeld's iteration from the median, class by class.

    At most 100 iterations, until a step is below 1e-8 of |x|. From the mean, where it is often
    begun, a liar as far as 1e12 would still be felt after them. Where an iterate meets an answer (a
    distance below 1e-12 of |x|), the step of Y. Vardi and C.-H. Zhang, PNAS 97(4), 2000, leads away
    from it if it is not the solution; a mere clamp of the distance would stay there.
    """
    return _rowwise(_weiszfeld)


def krum(f: Natural = 1, flattened: bool = True) -> Transform:
    """The answer whose K - f - 2 nearest others are nearest, by the sum of squared distances.

    P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, NeurIPS 2017. f is the number of liars
    that it is to bear, K > 2f + 2. `flattened` compares whole answers (the mean over the rows that
    both answered) and takes those of one client; else each row has a client of its own. A tie goes
    to the one nearest to all, then to the mean of those that are tied. A row with too few answers,
    or which the chosen one did not answer, has no target.
    """
    return _krum("krum", f, lambda n: torch.ones_like(n), flattened)


def multi_krum(f: Natural = 1, m: Count | None = None, flattened: bool = True) -> Transform:
    """The mean of the m answers with the best score of `krum`; m = K - f where none is given.

    m = 1 is Krum, m = K the mean.
    """
    return _krum("multi_krum", f, lambda n: n - f if m is None else n.clamp_max(m), flattened)


def spectral_filter(share: Half | None = None) -> Transform:
    """The mean without those that stand out most along the widest direction, in two passes.

    By row: v the top eigenvector of the covariance of the answers, score |<s_k - mean, v>|; the
    floor(eps K / 2) with the largest scores go, then as many again by the scores of the rest; eps
    is `share`, by default the largest minority, (ceil(K/2) - 1) / K, so up to four clients lose
    nobody. After I. Diakonikolas et al., ICML 2017; on soft labels by H. Chang et al.,
    https://arxiv.org/abs/1912.11279. Of equal scores at the border each loses the same part of its
    weight, so liars who say the same are not spared, and the order of clients is irrelevant.
    Directions that are equally wide count together, so nothing hangs on which of them is found.
    """

    def filtered(scores: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        n = answered.sum(0)
        minority = ((n + 1) // 2 - 1).clamp_min(0)
        # floor(eps K / 2), with eps K whole where it is the largest minority
        cut = minority // 2 if share is None else _part(share / 2, n)
        weight = answered.double()
        for _ in range(2):
            weight = _without_most(weight, _outlying(scores, weight), cut.double())
        return _weighted(scores, weight), n > 0

    return _rowwise(filtered, "counts_clients")


def _rowwise(rule: Rowwise, *traits: Trait) -> Transform:
    """A rule on rows as a `Transform`, block by block, so that memory stays bounded."""

    def whole(given: Predictions) -> Predictions:
        j, r, s = given.scores.shape
        answered = _heard(given)
        scores, mask = torch.zeros(r, s, dtype=torch.float64), torch.zeros(r, dtype=torch.bool)
        for block in row_blocks(j, r, s + min(j, s) ** 2 // j):
            here = answered[:, block]
            scores[block], mask[block] = rule(_values(given, block, here), here)
        if given.space == "probs":
            scores = scores.clamp_min(0)
            mask = mask & (scores.sum(-1) > 0)
        elif given.space == "log_probs":
            scores = scores.log_softmax(-1)
        return consensus_of(given, scores, mask)

    return pure(whole)._replace(traits=frozenset({"robust", *traits}))


def _heard(given: Predictions) -> Tensor:
    """Whose answer counts, [J, R]; trust is not read where there is no answer."""
    return given.mask & (torch.where(given.mask, given.trust, 0) > 0)


def _values(given: Predictions, block: slice, answered: Tensor) -> Tensor:
    return torch.where(answered.unsqueeze(-1), given.scores[:, block], 0).double()


def _part(share: float, n: Tensor) -> Tensor:
    """floor(share * n) of the share as it is written: 0.29 * 100 is 28.999… in floats."""
    return (share * n.double() * (1 + _EQUAL)).floor().long()


def _mean(scores: Tensor, kept: Tensor) -> Tensor:
    kept = kept.unsqueeze(-1)
    return torch.where(kept, scores, 0).sum(0) / kept.sum(0).clamp_min(1)


def _between(scores: Tensor, answered: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the values of rank low <= rank < high, class by class."""
    ordered = scores.masked_fill(~answered.unsqueeze(-1), torch.inf).sort(0).values
    rank = torch.arange(len(scores)).unsqueeze(-1)
    return _mean(ordered, (rank >= low) & (rank < high)), answered.any(0)


def _weiszfeld(scores: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
    n = answered.sum(0)
    x, _ = _between(scores, answered, (n - 1) // 2, n // 2 + 1)
    going = n > 0
    for _ in range(_ITERATIONS):
        away = scores - x
        distance = away.norm(dim=-1)  # [J, r]
        met = answered & (distance <= 1e-12 * x.norm(dim=-1))
        weight = torch.where(answered & ~met, 1 / torch.where(distance > 0, distance, 1), 0)
        pull = (away * weight.unsqueeze(-1)).sum(0)  # [r, S]
        step = pull / weight.sum(0).clamp_min(1e-300).unsqueeze(-1)
        force = pull.norm(dim=-1)
        held = (met.sum(0) / torch.where(force > 0, force, 1)).masked_fill(force == 0, 1)
        step = step * (1 - held.clamp_max(1)).unsqueeze(-1)
        x = torch.where(going.unsqueeze(-1), x + step, x)
        going = going & (step.norm(dim=-1) > 1e-8 * x.norm(dim=-1))
        if not bool(going.any()):
            break
    return x, answered.any(0)


def _weighted(scores: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum(0).unsqueeze(-1)
    kept = torch.where(weight.unsqueeze(-1) > 0, scores * weight.unsqueeze(-1), 0)
    return kept.sum(0) / torch.where(total > 0, total, 1)


def _without_most(weight: Tensor, outlying: Tensor, cut: Tensor) -> Tensor:
    """Weights [J, r] less `cut` [r] of them in all, where the scores are largest; equals alike."""
    outlying = torch.where(weight > 0, outlying, -1.0)
    ordered, order = outlying.sort(0, descending=True)
    reached = weight.gather(0, order).cumsum(0) >= cut * (1 - _EQUAL)
    border = ordered.gather(0, reached.int().argmax(0, keepdim=True))
    near = border.abs() * _EQUAL + ordered[:1].abs() * 1e-12
    above, at = outlying > border + near, (outlying - border).abs() <= near
    left = cut - torch.where(above, weight, 0).sum(0)
    there = torch.where(at, weight, 0).sum(0)
    part = (left / torch.where(there > 0, there, 1)).clamp(0, 1)
    thinned = torch.where(at, weight * (1 - part), torch.where(above, 0.0, weight))
    return torch.where(cut > 0, thinned, weight)


def _outlying(scores: Tensor, weight: Tensor) -> Tensor:
    """|<s_k - mean, v>|, [J, r]; v spans the directions in which the variance is largest."""
    root = weight.sqrt().unsqueeze(-1)
    away = torch.where(root > 0, (scores - _weighted(scores, weight)) * root, 0).transpose(0, 1)
    size = away.abs().amax((1, 2), keepdim=True)
    away = away / torch.where(size > 0, size, 1)  # [r, J, S]
    if away.shape[1] <= away.shape[2]:  # the same from the smaller of the two squares
        value, vector = torch.linalg.eigh(away @ away.transpose(1, 2))
        along = vector * value.clamp_min(0).sqrt().unsqueeze(1)
    else:
        value, vector = torch.linalg.eigh(away.transpose(1, 2) @ away)
        along = away @ vector
    widest = value >= value[:, -1:] * (1 - 1e-6)
    score: Tensor = (along * widest.unsqueeze(1)).norm(dim=-1).T
    each: Tensor = score / torch.where(weight > 0, root.squeeze(-1), 1)
    return each


def _krum(name: str, f: int, best: Callable[[Tensor], Tensor], flattened: bool) -> Transform:
    def init(shape: Shape) -> State:
        if shape.parties <= 2 * f + 2:
            raise ValueError(
                f"{name}: needs more than 2f + 2 = {2 * f + 2} clients to tell f = {f} liars from"
                f" the others, found {shape.parties}; lower f or choose another rule"
            )
        return {}

    def per_row(scores: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        squared = _squared(scores)
        pairs = answered.T.unsqueeze(2) & answered.T.unsqueeze(1)
        kept = _nearest(squared.masked_fill(~pairs, torch.inf), answered.T, f, best).T
        return _mean(scores, kept), kept.any(0)

    def whole(given: Predictions) -> Predictions:
        j, r, s = given.scores.shape
        answered, blocks = _heard(given), row_blocks(j, r, j + s)
        total = torch.zeros(j, j, dtype=torch.float64)
        for block in blocks:
            here = answered[:, block].T
            pairs = here.unsqueeze(2) & here.unsqueeze(1)
            squared = _squared(_values(given, block, answered[:, block]))
            total += squared.masked_fill(~pairs, 0).sum(0)
        common = answered.double() @ answered.double().T
        far = torch.where(common > 0, total / common.clamp_min(1), torch.inf)
        kept = _nearest(far.unsqueeze(0), answered.any(1).unsqueeze(0), f, best).T & answered
        scores = torch.zeros(r, s, dtype=torch.float64)
        for block in blocks:
            scores[block] = _mean(_values(given, block, answered[:, block]), kept[:, block])
        return consensus_of(given, scores, kept.any(0))

    rule = _rowwise(per_row, "abstains", "counts_clients")
    if flattened:
        rule = pure(whole)._replace(traits=rule.traits | {"batchwise"})
    return rule._replace(init=init)


def _squared(scores: Tensor) -> Tensor:
    """||s_i - s_j||^2 by row: [J, r, S] -> [r, J, J]."""
    x = scores.transpose(0, 1).contiguous()
    away: Tensor = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return away * away


def _nearest(squared: Tensor, here: Tensor, f: int, best: Callable[[Tensor], Tensor]) -> Tensor:
    """Who has the best scores, [r, J]; nobody where there are 2f + 2 or fewer."""
    n = here.sum(-1, keepdim=True)  # [r, 1]
    # itself first, at distance 0; then its K - f - 2 nearest
    itself = torch.eye(squared.shape[-1], dtype=torch.bool)
    ordered = squared.masked_fill(itself, 0).sort(-1).values.cumsum(-1)
    counted = (n - f - 2).clamp_min(0).unsqueeze(-1).expand(-1, ordered.shape[1], 1)
    score = ordered.gather(-1, counted.clamp_max(ordered.shape[-1] - 1)).squeeze(-1)
    score = score.masked_fill(~here, torch.inf)
    total = ordered.gather(-1, (n - 1).clamp_min(0).unsqueeze(-1).expand_as(counted)).squeeze(-1)

    wanted = best(n)
    border = score.sort(-1).values.gather(-1, (wanted - 1).clamp_min(0))
    tied = here & (score <= border * (1 + _EQUAL)) & (score >= border * (1 - _EQUAL))
    sure = here & (score < border) & ~tied
    missing = (wanted - sure.sum(-1, keepdim=True) - 1).clamp_min(0)
    total = total.masked_fill(~tied, torch.inf)
    near = total.sort(-1).values.gather(-1, missing)
    return (sure | (tied & (total <= near * (1 + _EQUAL)))) & (n > 2 * f + 2)
