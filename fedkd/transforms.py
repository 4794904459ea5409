"""Steps on `Predictions` that more than one method uses, and the ways to compose them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fedkd.types import (
    CONSENSUS,
    Ask,
    Linear,
    Predictions,
    Release,
    Request,
    Shape,
    Space,
    State,
    Step,
    Transform,
    everything,
)

_AT_ONCE = 1 << 20  # numbers of a block of rows


def pure(f: Callable[[Predictions], Predictions]) -> Transform:
    """Lift a function without state, randomness or facts."""
    return Transform(lambda shape: {}, lambda state, given, rng: Step(state, f(given), {}))


def chain(*steps: Transform) -> Transform:
    """One step after the other; the state of step i is kept under the prefix `i/`."""

    def init(shape: Shape) -> State:
        return {f"{i}/{k}": v for i, step in enumerate(steps) for k, v in step.init(shape).items()}

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        after: dict[str, Tensor] = {}
        facts: dict[str, float | Tensor] = {}
        released: list[tuple[Release, int]] = []
        told = False
        for i, step in enumerate(steps):
            own = {k.removeprefix(f"{i}/"): v for k, v in state.items() if k.startswith(f"{i}/")}
            rows = given.scores.shape[1]
            own_after, given, said, mine = step.apply(own, given, rng)
            after |= {f"{i}/{k}": v for k, v in own_after.items()}
            facts |= said
            told |= mine is not None
            released += let_out(step, mine, rows)
        return Step(after, given, facts, tuple(released) if told else None)

    return Transform(
        init,
        apply,
        tuple(r for step in steps for r in step.releases),
        frozenset(trait for step in steps for trait in step.traits),
        frozenset(need for step in steps for need in step.needs),
    )


def let_out(
    step: Transform, released: Sequence[tuple[Release, int]] | None, rows: int
) -> Sequence[tuple[Release, int]]:
    """What a step on so many rows has let out, and how often: as it says, else as it declares."""
    if released is not None:
        return released
    return [(r, rows if r.per == "row" else 1) for r in step.releases]


def mean() -> Linear:
    """The trust-weighted mean of the answers, in the space in which they come."""
    return Linear(lambda p: (p.scores * p.trust.unsqueeze(-1), p.trust))


def others_mean() -> Transform:
    """Each party's own target: the trust-weighted mean of what all *others* said, leaving it out.

    Sums of those before and of those after it, in float64, so that nothing cancels. A row that no
    other party answered has no target.
    """

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        trust = torch.where(given.mask, given.trust, 0).double().unsqueeze(-1)
        scores = torch.where(given.mask.unsqueeze(-1), given.scores, 0).double()
        total, weight = _without_own(scores * trust), _without_own(trust)
        mask = weight[..., 0] > 0
        mean = total / torch.where(weight > 0, weight, 1)
        if given.space == "probs":
            mean = _renormalised(mean)
        to = given.scores.dtype
        return Step(
            state,
            replace(given, scores=mean.to(to), mask=mask, trust=mask.to(to), extras=None),
            {},
        )

    return Transform(lambda shape: {}, apply, traits=frozenset({"personal", "abstains"}))


def _without_own(values: Tensor) -> Tensor:
    """The sum over all parties but one [J, …], for each of them."""
    nothing = torch.zeros_like(values[:1])
    before = torch.cat([nothing, values[:-1].cumsum(0)])
    after = torch.cat([values[1:].flip(0).cumsum(0).flip(0), nothing])
    return before + after


class Total:
    """A running sum of a `Linear` statistic in float64: the one place where parties are added up.

    Parties are added in ascending id, one at a time, so that folding answers as they come and
    summing a stack of them give the same bits.

    Of parties that answer about some classes only (`Predictions.classes`) a class has the quotient
    over those who know it; for that the number of `classes` must be given. A class that nobody
    knows is as unlikely as can be said: probability 0, or the least score of the row.
    """

    def __init__(self, linear: Linear, classes: int | None = None) -> None:
        self._linear = linear
        self._classes = classes
        self._numerator: Tensor | None = None
        self._denominator: Tensor | None = None
        self._like: Predictions | None = None
        self._last = -1

    def add(self, given: Predictions) -> None:
        """Add J parties whose ids all lie above those already added."""
        if int(given.parties[0]) <= self._last:
            raise ValueError(
                f"total: parties must come in ascending order, found {int(given.parties[0])}"
                f" after {self._last}"
            )
        self._last = int(given.parties[-1])
        for j in range(given.scores.shape[0]):
            # one party at a time: an exponential over [1, R, S] and over [J, R, S] may differ in
            # the last bit, for vectorised kernels treat the ends of an array apart
            one = party(given, j)
            numerator, denominator = weighed(self._linear, one, self._classes)
            if self._numerator is None or self._denominator is None:
                self._numerator, self._denominator = numerator, denominator
            else:
                self._numerator = self._numerator + numerator
                self._denominator = self._denominator + denominator
        newest = given.asked.max() if self._like is None else self._like.asked.max()
        self._like = replace(given, asked=given.asked.clamp_min(int(newest)), classes=None)

    def consensus(self) -> Predictions:
        """The quotient; a row whose denominator is zero has no target (mask False)."""
        like = self._like
        if like is None or self._numerator is None or self._denominator is None:
            raise ValueError("total: nobody answered; a sum over no parties has no consensus")
        scores, answered = quotient(self._numerator, self._denominator, like.space)
        return consensus_of(like, scores, answered)


def weighed(linear: Linear, one: Predictions, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """One party's terms of the two sums, float64: [R, C], and [R, 1] or by class [R, C]."""
    scores = torch.where(one.mask.unsqueeze(-1), one.scores, 0)
    trust = torch.where(one.mask, one.trust, 0)
    numerator, denominator = linear.weigh(replace(one, scores=scores, trust=trust))
    numerator = torch.where(one.mask.unsqueeze(-1), numerator, 0)[0].double()
    denominator = torch.where(one.mask, denominator, 0)[0].double().unsqueeze(-1)
    if one.classes is None:
        return numerator, denominator
    if classes is None:
        raise ValueError(
            "total: answers about some classes only can be added where it is known how many"
            " classes there are; give their number"
        )
    ids = one.classes[0].expand_as(numerator)
    zeros = torch.zeros(len(numerator), classes, dtype=numerator.dtype)
    counted = denominator.expand_as(numerator)
    return zeros.scatter(1, ids, numerator), zeros.scatter(1, ids, counted)


def quotient(numerator: Tensor, denominator: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """The consensus of two sums, scores [.., R, C], and which rows have one [.., R]."""
    known = denominator > 0
    answered = known.any(-1)
    mean = numerator / torch.where(known, denominator, 1.0)
    scores = torch.where(known, mean, 0.0)
    if space == "probs":
        scores = _renormalised(scores)
    elif known.shape[-1] > 1:  # a class that nobody knows
        least = torch.where(known, mean, torch.inf).amin(-1, keepdim=True)
        scores = torch.where(known | ~answered.unsqueeze(-1), scores, least)
    return scores, answered


def _renormalised(scores: Tensor) -> Tensor:
    """Float32 answers sum to one only to 1e-7; what is handed on should, too, after K of them."""
    total = scores.sum(-1, keepdim=True)
    return torch.where(total > 0, scores / torch.where(total > 0, total, 1.0), scores)


def consensus_of(like: Predictions, scores: Tensor, mask: Tensor) -> Predictions:
    """One party for all that answered: scores [R, S] of any precision, a target where mask [R].

    Probabilities are scaled to sum one.
    """
    if like.space == "probs":
        scores = _renormalised(scores)
    mask = mask.unsqueeze(0)
    scores = scores.to(like.scores.dtype).unsqueeze(0)
    return replace(
        like,
        scores=torch.where(mask.unsqueeze(-1), scores, 0),
        mask=mask,
        trust=mask.to(scores.dtype),
        parties=torch.tensor([CONSENSUS]),
        asked=like.asked.max().reshape(1),  # the last party may be a straggler
        extras=None,
        classes=None if like.classes is None else like.classes[:1],
    )


def informed(given: Predictions, **known: Tensor) -> Predictions:
    """The answers with what the server itself knows of the rows, [R, …], as extras of each party.

    It takes the place of what a client may have sent under the same name.
    """
    j = len(given.parties)
    told = {name: (t.cpu().expand(j, *t.shape),) for name, t in known.items()}
    return replace(given, extras={**(given.extras or {}), **told})


def party(given: Predictions, j: int) -> Predictions:
    """The j-th party alone."""
    one = slice(j, j + 1)
    return replace(
        given,
        scores=given.scores[one],
        mask=given.mask[one],
        trust=given.trust[one],
        parties=given.parties[one],
        asked=given.asked[one],
        classes=None if given.classes is None else given.classes[one],
        extras=None
        if given.extras is None
        else {k: tuple(t[one] for t in v) for k, v in given.extras.items()},
    )


def row_blocks(parties: int, rows: int, width: int) -> list[slice]:
    """Rows in blocks of a size that keeps `parties` x block x `width` numbers in a few MiB."""
    size = max(1, _AT_ONCE // max(1, parties * width))
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def stack(answers: Iterable[Predictions]) -> Predictions:
    """Answers of parties in ascending id on the same rows, as one."""
    parts = list(answers)
    first = parts[0]
    return replace(
        first,
        scores=torch.cat([p.scores for p in parts]),
        mask=torch.cat([p.mask for p in parts]),
        trust=torch.cat([p.trust for p in parts]),
        parties=torch.cat([p.parties for p in parts]),
        asked=torch.cat([p.asked for p in parts]),
        classes=None
        if first.classes is None
        else torch.cat([p.classes for p in parts if p.classes is not None]),
        extras=None
        if first.extras is None
        else {
            k: tuple(map(torch.cat, zip(*(p.extras[k] for p in parts if p.extras), strict=True)))
            for k in first.extras
        },
    )


def combine(rule: Linear | Transform, state: State, given: Predictions, rng: Generator) -> Step:
    """Apply either kind of rule to answers that are all there."""
    if isinstance(rule, Transform):
        return rule.apply(state, given, rng)
    total = Total(rule)
    total.add(given)
    return Step(state, total.consensus(), {})


def require(given: Predictions, space: Space, step: str) -> None:
    """Refuse scores of another space: no step converts silently."""
    if given.space != space:
        raise ValueError(
            f"{step}: works on {space}, found {given.space}; put a step before it that converts"
        )


def softmax(temperature: float = 1.0) -> Transform:
    """Logits to probabilities: p = softmax(z / T)."""

    def convert(given: Predictions) -> Predictions:
        require(given, "logits", "softmax")
        scores = torch.softmax(given.scores / temperature, -1)
        # a masked entry may hold anything, NaN included; the next step need not care
        return replace(
            given, scores=torch.where(given.mask.unsqueeze(-1), scores, 0), space="probs"
        )

    return pure(convert)


def sharpen(temperature: float) -> Transform:
    """Probabilities used as logits: q = softmax(p / T) (S. Itahara et al., IEEE TMC, 2023)."""

    def convert(given: Predictions) -> Predictions:
        require(given, "probs", "sharpen")
        return replace(given, scores=torch.softmax(given.scores / temperature, -1))

    return pure(convert)


def power(beta: float) -> Transform:
    """q_c = p_c^beta / sum_c p_c^beta; beta = 1 leaves p (H. Azuma et al., IEEE TMC, 2026)."""

    def convert(given: Predictions) -> Predictions:
        require(given, "probs", "power")
        if beta == 1:
            return given
        # relative to the largest, so that a large beta cannot underflow a whole row
        top = given.scores.amax(-1, keepdim=True)
        raised = (given.scores / torch.where(top > 0, top, 1)).pow(beta)
        total = raised.sum(-1, keepdim=True)
        return replace(given, scores=raised / torch.where(total > 0, total, 1))

    return pure(convert)


def random_rows(count: int | None) -> Request:
    """A fresh random subset of `count` public rows a round, the same for all; None for all rows.

    It is drawn from the seed, so both sides know it and no list is sent.
    """
    if count is None:
        return everything

    def ask(
        state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
    ) -> Ask:
        chosen = torch.randperm(len(public), generator=rng)[:count].sort().values
        return Ask(public[chosen], None, known=True)

    return ask


def shannon(probs: Tensor) -> Tensor:
    """Shannon's H(p) in nats over the last dimension; 0 ln 0 = 0."""
    return -torch.xlogy(probs, probs).sum(-1)


def probabilities(scores: Tensor, space: str, temperature: float) -> Tensor:
    """Soft labels at a temperature; probabilities p become p^(1/T) / sum p^(1/T)."""
    if space in ("logits", "log_probs"):
        return torch.softmax(scores / temperature, -1)
    if temperature != 1:
        top = scores.amax(-1, keepdim=True)
        scores = (scores / torch.where(top > 0, top, 1)).pow(1 / temperature)
    elif space == "probs":
        return scores
    total = scores.sum(-1, keepdim=True)
    return scores / torch.where(total > 0, total, 1)
