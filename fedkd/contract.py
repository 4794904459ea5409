"""What every method keeps: named laws over a `Strategy`, each a sentence and a check.

A law is called with a strategy and made-up logits [J, R, C] of clients, and raises `Broken` with
what was expected and found. Exceptions are declared by the method as traits, and
each law says which of them it excepts. `fedkd check` holds methods of third parties to the same
laws as this project's tests hold its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedkd import rng as streams
from fedkd import wire
from fedkd.transforms import Total, combine, party, probabilities, stack
from fedkd.types import (
    CONSENSUS,
    Linear,
    Predictions,
    PrivateView,
    Shape,
    Space,
    State,
    Strategy,
    Traffic,
    Trait,
    predictions,
)

_CLOSE = 1e-5  # float32 scores of order one after a sharpening that multiplies errors by ten
_SURE = 50.0  # the logit of a liar


class Broken(AssertionError):
    """A law that does not hold, told as what it expects and what was found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


class _Only(NamedTuple):
    """The methods that a law is about, where it is not about all."""

    words: str
    holds: Callable[[Strategy], bool]


_MEANS = _Only("weighted means (Linear)", lambda s: isinstance(s.combine, Linear))
_SOFT = _Only(
    "weighted means (Linear) of probabilities",
    lambda s: isinstance(s.combine, Linear) and s.shares.answers == "probs",
)
_REPLYING = _Only("methods that reply from records", lambda s: s.reply is not None)
_ANNOTATING = _Only("methods that annotate", lambda s: s.annotate is not None)


@dataclass(frozen=True, slots=True)
class Law:
    """One property of every method; `way_out` is what helps where it does not hold."""

    name: str
    says: str
    way_out: str
    unless: frozenset[Trait]
    only: _Only | None
    _check: Callable[[Strategy, Predictions], None]

    def excepted(self, strategy: Strategy) -> str:
        """Why the law is not asked of this method; empty where it is."""
        if traits := sorted(self.unless & strategy.traits):
            return f"not asked of a method that declares {' and '.join(traits)}"
        if self.only and not self.only.holds(strategy):
            return f"asked of {self.only.words} alone"
        return ""

    def __call__(self, strategy: Strategy, logits: Predictions) -> None:
        """Raises `Broken` where the law does not hold for these answers."""
        if not self.excepted(strategy):
            self._check(strategy, logits)


_laws: list[Law] = []


def _law(
    way_out: str, *, unless: tuple[Trait, ...] = (), only: _Only | None = None
) -> Callable[[Callable[[Strategy, Predictions], None]], Law]:
    def made(check: Callable[[Strategy, Predictions], None]) -> Law:
        says = (check.__doc__ or "").partition("\n")[0].removesuffix(".")
        law = Law(check.__name__, says, way_out, frozenset(unless), only, check)
        _laws.append(law)
        return law

    return made


def made_up(cases: int = 30) -> Iterator[Predictions]:
    """Logits of one to five clients, unsure and sure, with gaps, some trusted less than others.

    Always the same ones, so that a law which does not hold today does not tomorrow.
    """
    for case in range(cases):
        rng = streams.stream(case, streams.SETUP, streams.SERVER, "made-up answers")
        j, r, c = 1 + (case + 2) % 5, 1 + (case + 3) % 6, 2 + (case // 3 + 1) % 4
        scale, missing = (1.0, 5.0, 0.0, _SURE)[case % 4], (0.0, 0.3, 0.8)[case % 3]
        trust = 0.1 + torch.rand(j, r, generator=rng) if case % 2 else torch.ones(j, r)
        yield predictions(
            scale * torch.randn(j, r, c, generator=rng),
            "logits",
            mask=torch.rand(j, r, generator=rng) >= missing,
            trust=trust,
            asked=torch.ones(j, dtype=torch.int64),
        )


# going through a round


class Outcome(NamedTuple):
    """What upload, combine and finish come to."""

    states: tuple[State, State]  # of combine and of finish
    result: Predictions
    facts: Mapping[str, float | Tensor]


def _shape(given: Predictions) -> Shape:
    return Shape(int(given.parties.max()) + 1, given.scores.shape[1], given.scores.shape[2])


def stream(seed: int = 0) -> torch.Generator:
    """The generator that laws draw from."""
    return streams.stream(seed, 1, streams.SERVER, "contract")


def _begin(strategy: Strategy, given: Predictions) -> tuple[State, State]:
    rule = strategy.combine
    first = rule.init(_shape(given)) if not isinstance(rule, Linear) else {}
    return first, strategy.finish.init(_shape(given))


def uploaded(strategy: Strategy, logits: Predictions, seed: int = 0) -> Predictions:
    """What the clients send, each for itself; replies from records are made of the logits."""
    init, apply = strategy.upload.init, strategy.upload.apply
    if strategy.reply is not None:
        logits = _replies(logits, strategy.shares.answers)
    each = range(len(logits.parties))
    return stack(apply(init(_shape(logits)), party(logits, j), stream(seed)).result for j in each)


def _replies(logits: Predictions, space: Space | None) -> Predictions:
    """Made-up replies in a space; a vote of n says that a class is above n others."""
    z = logits.scores
    made = {
        "log_probs": z.log_softmax(-1),
        "probs": z.softmax(-1),
        "votes": (z.unsqueeze(-1) > z.unsqueeze(-2)).sum(-1).to(z.dtype),
    }.get(space or "logits", z)
    scores = torch.where(logits.mask.unsqueeze(-1), made, z)
    return replace(logits, scores=scores, space=space or "logits")


def _combined(strategy: Strategy, logits: Predictions) -> Predictions:
    sent = uploaded(strategy, logits)
    return combine(strategy.combine, _begin(strategy, logits)[0], sent, stream()).result


def consensus(
    strategy: Strategy,
    logits: Predictions,
    states: tuple[State, State] | None = None,
    seed: int = 0,
) -> Outcome:
    """Upload, combine and finish; the result without the rows that were not asked."""
    first, second = _begin(strategy, logits) if states is None else states
    generator = stream(seed)
    one = combine(strategy.combine, first, uploaded(strategy, logits, seed), generator)
    two = strategy.finish.apply(second, one.result, generator)
    asked, there = logits.scores.shape[1], two.result.scores.shape[1]
    if there != asked and "caches" not in strategy.traits:
        raise Broken(f"a target for each of the {asked} rows asked", f"{there} rows")
    result = replace(
        two.result,
        scores=two.result.scores[:, :asked],
        mask=two.result.mask[:, :asked],
        trust=two.result.trust[:, :asked],
        rows=two.result.rows[:asked],
        extras=None,
    )
    return Outcome((one.state, two.state), result, {**one.facts, **two.facts})


def _require(holds: bool | Tensor, expected: str, found: str) -> None:
    if not bool(holds):
        raise Broken(expected, found)


def close(found: Predictions, expected: Tensor, what: str, tolerance: float = _CLOSE) -> None:
    """Both are compared where there is a target, relative to the size of the scores."""
    expected = expected.expand_as(found.scores)
    scale = expected.abs().amax().clamp_min(1)
    gap = (found.scores - expected).abs()[found.mask]
    away = float(gap.max() / scale) if gap.numel() else 0.0
    _require(away < tolerance, what, f"scores that differ by {away:.2g}")


def _same(a: Predictions, b: Predictions, what: str) -> None:
    for name in ("scores", "mask", "trust", "rows", "parties", "asked"):
        equal = torch.equal(getattr(a, name), getattr(b, name))
        _require(equal, what, f"other {name}")


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=stream(7))


def _weights(strategy: Strategy, sent: Predictions) -> Tensor:
    """The share of each party in each row, [J, R]; a row without answers has none."""
    assert isinstance(strategy.combine, Linear)
    _, denominator = strategy.combine.weigh(sent)
    denominator = torch.where(sent.mask, denominator, 0).double()
    total = denominator.sum(0)
    return denominator / torch.where(total > 0, total, 1)


# what a consensus keeps


@_law("normalise at the end of `finish`, and declare the space in which the scores are")
def targets_lie_on_the_simplex(strategy: Strategy, logits: Predictions) -> None:
    """Targets are finite, and those that are probabilities sum to one."""
    result = consensus(strategy, logits).result
    found = result.scores[result.mask].double()
    _require(torch.isfinite(found).all(), "finite scores", "NaN or infinite ones")
    if result.space == "probs" and found.numel():
        low, sums = float(found.min()), found.sum(-1)
        worst = float(sums[(sums - 1).abs().argmax()])
        _require(low >= 0, "probabilities of at least 0", f"{low:.3g}")
        _require(abs(worst - 1) < 1e-6, "probabilities that sum to 1", f"a sum of {worst:.7g}")


@_law("let no weight depend on a client's place or id; state by client is indexed by given.parties")
def client_order_is_irrelevant(strategy: Strategy, logits: Predictions) -> None:
    """The order of the clients is irrelevant."""
    order = _shuffled(len(logits.parties))
    moved = replace(
        logits, scores=logits.scores[order], mask=logits.mask[order], trust=logits.trust[order]
    )
    before, after = consensus(strategy, logits).result, consensus(strategy, moved).result
    personal = "personal" in strategy.traits  # targets move with their clients
    what = "the same targets where clients swap their answers"
    close(after, before.scores[order] if personal else before.scores, what)


@_law(
    "treat the columns of scores alike; no weight goes by a class's number",
    unless=("noisy",),  # its noise is drawn for each column
)
def classes_are_alike(strategy: Strategy, logits: Predictions) -> None:
    """No class is special."""
    order = _shuffled(logits.scores.shape[-1])
    moved = replace(logits, scores=logits.scores[..., order])
    expected = consensus(strategy, logits).result.scores[..., order]
    what = "targets that are shuffled as the classes of the answers are"
    close(consensus(strategy, moved).result, expected, what)


@_law(
    "take no statistic over rows, or declare the trait batchwise",
    unless=("personal", "batchwise"),  # whose weights are statistics over all rows
)
def rows_do_not_mix(strategy: Strategy, logits: Predictions) -> None:
    """What is said of one row does not touch another."""
    others = torch.randn(logits.scores.shape, generator=stream(3))
    others[:, 0] = logits.scores[:, 0]
    changed = consensus(strategy, replace(logits, scores=others)).result
    before = consensus(strategy, logits).result
    kept = torch.equal(changed.mask[:, 0], before.mask[:, 0])
    kept &= torch.equal(changed.scores[:, 0], before.scores[:, 0])
    _require(kept, "the same target for row 0 where only other rows change", "another one")


@_law(
    "make the weights sum to one; a method that sharpens declares the trait sharpens",
    unless=("sharpens", "noisy"),
)
def equal_clients_agree_with_themselves(strategy: Strategy, logits: Predictions) -> None:
    """Clients that say the same are agreed with."""
    alike = replace(logits, scores=logits.scores[:1].expand_as(logits.scores).clone())
    full = replace(alike, mask=torch.ones_like(alike.mask))
    expected = uploaded(strategy, full).scores[:1]
    close(consensus(strategy, alike).result, expected, "the answer that all clients gave")


@_law(
    "use shares, not sums or counts, of clients; or declare the trait counts_clients",
    unless=("personal", "counts_clients", "noisy"),
)
def doubling_every_client_changes_nothing(strategy: Strategy, logits: Predictions) -> None:
    """Twice as many clients of the same kinds come to the same."""
    twice = predictions(
        logits.scores.repeat_interleave(2, 0),
        logits.space,
        mask=logits.mask.repeat_interleave(2, 0),
        trust=logits.trust.repeat_interleave(2, 0),
        asked=logits.asked.repeat_interleave(2, 0),
    )
    expected = consensus(strategy, logits).result.scores
    close(consensus(strategy, twice).result, expected, "the same targets with all clients twice")


@_law("return a denominator that is at least 0, and mask False where no client answered")
def weights_are_shares_and_no_answer_is_no_target(strategy: Strategy, logits: Predictions) -> None:
    """Weights are shares of one, and a row that nobody answered has no target."""
    sent = uploaded(strategy, logits)
    if isinstance(strategy.combine, Linear):
        share = _weights(strategy, sent)
        low, total = float(share.min()), share.sum(0)
        _require(low >= 0, "weights of at least 0", f"{low:.3g}")
        off = float((total - sent.mask.any(0).double()).abs().max())
        _require(
            off < 1e-9, "weights that sum to 1 where anybody answered", f"a sum off by {off:.2g}"
        )
    silent = logits.mask.clone()
    silent[:, 0] = False
    result = consensus(strategy, replace(logits, mask=silent)).result
    _require(not result.mask[:, 0].any(), "no target for a row that nobody answered", "one")
    known, answered = result.mask[:, 1:].any(0), logits.mask[:, 1:].any(0)
    _require(not (known & ~answered).any(), "no target for rows that nobody answered", "some")
    kept = "abstains" in strategy.traits or torch.equal(known, answered)
    _require(kept, "a target for each row that somebody answered", "fewer")


@_law(
    "make it a weighted mean; a method that sharpens declares the trait sharpens",
    unless=("sharpens", "leaves_hull", "noisy"),
)
def targets_lie_in_the_hull(strategy: Strategy, logits: Predictions) -> None:
    """No target lies beyond all answers, from wherever one looks."""
    sent, result = uploaded(strategy, logits), consensus(strategy, logits).result
    classes = sent.scores.shape[-1]
    towards = torch.cat([torch.eye(classes), torch.randn(16, classes, generator=stream(5))]).T
    furthest = (sent.scores @ towards).masked_fill(~sent.mask.unsqueeze(-1), -torch.inf).amax(0)
    beyond = (result.scores @ towards - furthest)[result.mask]
    scale = float(sent.scores.abs().amax().clamp_min(1))
    most = float(beyond.max()) / scale if beyond.numel() else 0.0
    _require(most < _CLOSE, "targets in the convex hull of the answers", f"one {most:.2g} beyond")


@_law(
    "let weights not depend on what a client says, or bound them",
    only=_SOFT,  # before `finish`; personal weights depend on what the liars say
)
def liars_have_bounded_influence(strategy: Strategy, logits: Predictions) -> None:
    """A liar moves probabilities by no more than its share of the weight.

    By a share a: at most a sqrt(2), and 2a in L1. A mean of logits has no such bound.
    """
    if len(logits.parties) < 2:
        return
    honest = replace(logits, mask=logits.mask & (logits.parties > 0).unsqueeze(-1))
    lying = logits.scores.clone()
    lying[0] = -_SURE
    lying[0, :, 0] = _SURE
    logits = replace(logits, scores=lying)
    sent = uploaded(strategy, logits)
    share = _weights(strategy, sent)[0]
    with_liar, without = _combined(strategy, logits), _combined(strategy, honest)
    both = (with_liar.mask & without.mask)[0]
    moved = (with_liar.scores - without.scores)[0].double()
    over = torch.maximum(moved.norm(dim=-1) - share * 2**0.5, moved.abs().sum(-1) - 2 * share)
    most = float(over[both].max()) if bool(both.any()) else 0.0
    _require(most <= _CLOSE, "a move within the liar's share", f"one that exceeds it by {most:.2g}")


@_law("take a softmax before anything that looks at the size of logits")
def a_constant_added_to_logits_changes_no_label(strategy: Strategy, logits: Predictions) -> None:
    """A constant added to a client's logits changes no label."""
    shift = torch.randn(*logits.scores.shape[:2], 1, generator=stream(4))
    before = consensus(strategy, logits).result
    after = consensus(strategy, replace(logits, scores=logits.scores + shift)).result
    after = replace(after, scores=probabilities(after.scores, after.space, 1.0))
    # a sum of two float32 numbers of size 50 is good to 4e-6, and sharpening multiplies that
    expected = probabilities(before.scores, before.space, 1.0)
    close(after, expected, "the same probabilities where logits are shifted", 2e-4)


@_law(
    "divide by the weights of those who answered; sharpening declares the trait sharpens",
    unless=("noisy",),
)
def one_client_passes_through(strategy: Strategy, logits: Predictions) -> None:
    """A client that is alone is passed through.

    Sharpened where the method sharpens: then the favourite class at least is the same.
    """
    alone = replace(party(logits, 0), parties=torch.tensor([0]))
    result, sent = consensus(strategy, alone).result, uploaded(strategy, alone)
    kept = "abstains" in strategy.traits or torch.equal(result.mask, sent.mask)
    _require(kept, "targets for the rows that the only client answered", "others")
    if "sharpens" in strategy.traits:
        favourite = result.scores.argmax(-1, keepdim=True)
        lead = sent.scores.amax(-1) - sent.scores.gather(-1, favourite).squeeze(-1)
        _require((lead[result.mask] < _CLOSE).all(), "the only client's favourite class", "another")
    else:
        close(result, sent.scores, "the answers of the only client")


@_law(
    "draw from the generator that a step is given, keep nothing between calls outside of the state"
)
def the_same_seed_gives_the_same_bits(strategy: Strategy, logits: Predictions) -> None:
    """The same seed gives the same bits.

    Also when the answers are folded one by one, as they come in over the network.
    """
    what = "the same targets and state for the same seed and answers"
    one, two = consensus(strategy, logits, seed=1), consensus(strategy, logits, seed=1)
    _same(one.result, two.result, what)
    for a, b in zip(one.states, two.states, strict=True):
        equal = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        _require(equal, what, "another state")
    if isinstance(strategy.combine, Linear):
        sent = uploaded(strategy, logits)
        folded = Total(strategy.combine)
        for j in range(len(sent.parties)):
            folded.add(party(sent, j))
        _same(folded.consensus(), _combined(strategy, logits), "the same bits client by client")


@_law("make it a weighted mean: shares that are at least 0, of the scores themselves", only=_MEANS)
def the_mean_is_no_worse_than_its_parts(strategy: Strategy, logits: Predictions) -> None:
    """The mean is on no label worse than its parts on average.

    NLL(sum w p) <= sum w NLL(p), for any label; of logits, too, since NLL is convex in them.
    """
    sent, mixed = uploaded(strategy, logits), _combined(strategy, logits)

    def loss(scores: Tensor) -> Tensor:  # [.., R, C], for each possible label
        if sent.space == "logits":
            return -scores.double().log_softmax(-1)
        return -(scores.double() + 1e-30).log()  # added, not clamped: the mean moves along

    share = _weights(strategy, sent).unsqueeze(-1)
    scores = torch.where(sent.mask.unsqueeze(-1), sent.scores, 0)
    excess = (loss(mixed.scores[0]) - (share * loss(scores)).sum(0))[mixed.mask[0]]
    scale = float(scores.abs().amax().clamp_min(1))
    most = float(excess.max()) if excess.numel() else 0.0
    expected = "a log-loss of at most the clients' mean"
    _require(most < _CLOSE * scale, expected, f"one {most:.2g} above it, or none")


# how a method behaves


@_law("copy before writing; no operation in place")
def inputs_stay_as_they_are(strategy: Strategy, logits: Predictions) -> None:
    """A step changes nothing that it was given."""
    sent, states = uploaded(strategy, logits), _begin(strategy, logits)
    kept = [t.clone() for t in (logits.scores, logits.mask, logits.trust, sent.scores, sent.trust)]
    kept_states = [{k: v.clone() for k, v in s.items()} for s in states]
    step = combine(strategy.combine, states[0], sent, stream())
    result = step.result.scores.clone()
    strategy.finish.apply(states[1], step.result, stream())
    now = (logits.scores, logits.mask, logits.trust, sent.scores, sent.trust)
    same = all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    _require(same, "answers as they were before the step", "changed ones")
    _require(torch.equal(step.result.scores, result), "what combine made unchanged", "it changed")
    for before, after in zip(kept_states, states, strict=True):
        same = all(torch.equal(before[k], after[k]) for k in before)
        _require(same, "the state that was handed in unchanged", "it changed")


@_law("use torch.where(mask, scores, 0) before sums: NaN times 0 is NaN")
def masked_entries_are_never_read(strategy: Strategy, logits: Predictions) -> None:
    """What is masked is never read."""
    what = "the same targets whatever stands where mask is False"
    expected = consensus(strategy, logits)
    for poison in (torch.nan, torch.inf):
        scores = logits.scores.masked_fill(~logits.mask.unsqueeze(-1), poison)
        trust = logits.trust.masked_fill(~logits.mask, poison)
        found = consensus(strategy, replace(logits, scores=scores, trust=trust))
        finite = torch.isfinite(found.result.scores).all()
        _require(finite, what, "NaN or infinite scores")
        _same(found.result, expected.result, what)


@_law("return mask False and finite scores for rows without answers; guard divisions by 0")
def silence_is_no_target(strategy: Strategy, logits: Predictions) -> None:
    """Silence is no target."""
    result = consensus(strategy, replace(logits, mask=torch.zeros_like(logits.mask))).result
    _require(not result.mask.any(), "no target where nobody answered anything", "some")
    finite = torch.isfinite(result.scores).all()
    _require(finite, "finite scores where nobody answered anything", "NaN or infinite ones")


@_law("keep all that a later round needs as tensors in the state that a step hands back")
def state_survives_a_file(strategy: Strategy, logits: Predictions) -> None:
    """A run can go on from what was written to a file.

    Three rounds, the state of the second from memory and from safetensors.
    """
    first = consensus(strategy, logits)
    second = consensus(strategy, replace(logits, asked=logits.asked + 1), first.states)
    read = tuple(dict(load(save(dict(s)))) if s else s for s in second.states)
    last = replace(logits, asked=logits.asked + 2, scores=logits.scores.flip(1))
    _same(
        consensus(strategy, last, second.states).result,
        consensus(strategy, last, (read[0], read[1])).result,
        "the same third round from the state in memory and from its file",
    )


@_law("give floats, or tensors with a number a row, as facts")
def facts_are_numbers(strategy: Strategy, logits: Predictions) -> None:
    """Facts are numbers."""
    rows = logits.scores.shape[1]
    for name, fact in consensus(strategy, logits).facts.items():
        fits = isinstance(fact, float) or (isinstance(fact, Tensor) and fact.shape == (rows,))
        found = list(fact.shape) if isinstance(fact, Tensor) else type(fact).__name__
        _require(fits, f"a float or a tensor [{rows}] as the fact {name}", str(found))


@_law("pick from `public` by ascending positions, drawn from the generator given")
def the_question_is_drawn_from_the_seed(strategy: Strategy, logits: Predictions) -> None:
    """The question is rows of the public set, drawn from the seed."""
    public, clients = logits.rows, logits.parties.tolist()
    states = _begin(strategy, logits)[1], consensus(strategy, logits).states[1]
    for round_, state in enumerate(states, 1):
        one, two = (strategy.request(state, round_, public, clients, stream(2)) for _ in range(2))
        _require(torch.equal(one.rows, two.rows), "the same rows for the same seed", "others")
        ascend = (one.rows[1:, 1] > one.rows[:-1, 1]).all()
        _require(ascend, "rows in ascending order, each once", str(one.rows[:, 1].tolist()))
        known = torch.equal(public[one.rows[:, 1]], one.rows)
        _require(known, "rows of the public set as they stand there", "others")
        if one.mask is not None:
            expected = (len(clients), len(one.rows))
            fits = one.mask.shape == expected and one.mask.dtype == torch.bool
            found = f"{list(one.mask.shape)} of {one.mask.dtype}"
            _require(fits, f"a boolean mask {list(expected)}", found)


@_law("declare it in `shares` (answers, extras), or leave it out of `upload`")
def only_what_is_declared_is_sent(strategy: Strategy, logits: Predictions) -> None:
    """Only what is declared is sent."""
    if strategy.shares.answers is None:
        return
    sent = uploaded(strategy, logits)
    _require(sent.space == strategy.shares.answers, strategy.shares.answers, sent.space)
    strange = sorted(set(sent.extras or {}) - strategy.shares.extras)
    declared = ", ".join(sorted(strategy.shares.extras)) or "nothing"
    _require(not strange, f"{declared} beside the scores", ", ".join(strange))


@_law("correct the formulas `shares.uplink` and `shares.downlink`, bytes of one message's body")
def messages_have_the_stated_length(strategy: Strategy, logits: Predictions) -> None:
    """Messages are as long as the method says.

    Answers that are all there, up and down.
    """
    full = replace(logits, mask=torch.ones_like(logits.mask), trust=torch.ones_like(logits.trust))
    _, rows, classes = full.scores.shape
    traffic = Traffic(rows, classes, 0, rows)
    if strategy.shares.answers is None:
        return
    # what a client makes of its own data, no made-up answer has
    if strategy.upload_codec is None and strategy.annotate is None:
        length = len(wire.encode(party(uploaded(strategy, full), 0)))
        _length("up", strategy.shares.uplink(traffic), length, traffic)
    if strategy.feedback == "consensus":
        if strategy.download_codec is None:
            result = party(consensus(strategy, full).result, 0)
            if not bool(result.mask.all()):  # of one client alone a method may make no target
                return
            length = len(wire.encode(result))
        else:
            length = _codec_round_trip(strategy, full)
        _length("down", strategy.shares.downlink(traffic), length, traffic)


def _length(way: str, stated: int, length: int, traffic: Traffic) -> None:
    what = f"{stated} bytes {way} for {traffic.rows} rows of {traffic.classes} classes"
    body = length - wire.HEADER_BYTES
    _require(body == stated, f"{what}, as stated", str(body))


def _codec_round_trip(strategy: Strategy, full: Predictions) -> int:
    assert strategy.download_codec is not None
    init, encode, decode = strategy.download_codec
    one = combine(strategy.combine, _begin(strategy, full)[0], uploaded(strategy, full), stream())
    whole = strategy.finish.apply(strategy.finish.init(_shape(full)), one.result, stream()).result
    _, payload = encode(init(_shape(full)), whole, stream())
    _, received = decode(init(_shape(full)), payload, full.rows, stream())
    _same(received, consensus(strategy, full).result, "what was sent, after encode and decode")
    return len(payload)


@_law("give the consensus the party -1; with a target a client, declare the trait personal")
def parties_are_one_or_as_many_as_answered(strategy: Strategy, logits: Predictions) -> None:
    """There is one target for all, or one for each who answered."""
    parties = consensus(strategy, logits).result.parties
    personal = "personal" in strategy.traits
    expected = logits.parties if personal else torch.tensor([CONSENSUS])
    found = parties.tolist()
    _require(torch.equal(parties, expected), f"parties {expected.tolist()}", str(found))


class _MadeUpTeacher:
    """A linear map of its inputs, which are also its features."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) @ self._weights

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


@_law(
    "return a boolean mask [R] and a finite trust [R] of at least 0, drawn from the generator",
    only=_ANNOTATING,
)
def annotations_fit_the_rows(strategy: Strategy, logits: Predictions) -> None:
    """An annotation is a mask and a trust for each row."""
    assert strategy.annotate is not None
    _, rows, classes = logits.scores.shape
    one, two = (strategy.annotate(*_made_up_client(rows, classes), stream(11)) for _ in range(2))
    mask, trust = one
    fits = mask.shape == trust.shape == (rows,) and mask.dtype == torch.bool
    found = f"mask {list(mask.shape)} of {mask.dtype}, trust {list(trust.shape)}"
    _require(fits, f"a boolean mask [{rows}] and a trust [{rows}]", found)
    good = torch.isfinite(trust[mask]).all() & (trust[mask] >= 0).all()
    _require(good, "finite trust of at least 0", str(trust[mask].tolist()))
    same = torch.equal(mask, two[0]) and torch.equal(trust[mask], two[1][mask])
    _require(same, "the same annotation for the same seed", "another")


@_law(
    "return scores [R, C] in the space of `shares.answers`, drawn from the generator",
    only=_REPLYING,
)
def replies_fit_the_rows(strategy: Strategy, logits: Predictions) -> None:
    """A reply is a row of scores for each row asked, in the space that is declared."""
    assert strategy.reply is not None
    _, rows, classes = logits.scores.shape
    one, two = (strategy.reply(*_made_up_client(rows, classes), stream(11)) for _ in range(2))
    _require(one.shape == (rows, classes), f"scores [{rows}, {classes}]", str(list(one.shape)))
    _require(torch.isfinite(one).all(), "finite scores", "NaN or infinite ones")
    portions = one.exp() if strategy.shares.answers == "log_probs" else one
    if strategy.shares.answers != "logits":
        low = float(portions.min())
        _require(low >= 0, f"{strategy.shares.answers} of at least 0", f"{low:.3g}")
    if strategy.shares.answers in ("probs", "log_probs"):
        off = float((portions.sum(-1) - 1).abs().max())
        _require(off < _CLOSE, "probabilities that sum to 1", f"a sum off by {off:.2g}")
    _require(torch.equal(one, two), "the same reply for the same seed", "another")
    nobody = _made_up_client(rows, classes, records=0)
    empty = strategy.reply(*nobody, stream(11))
    fits = empty.shape == one.shape and bool(torch.isfinite(empty).all())
    _require(fits, "finite scores from a client without records", "others")


def _made_up_client(
    rows: int, classes: int, records: int = 7
) -> tuple[PrivateView, _MadeUpTeacher, Tensor]:
    """What a client sees when it annotates or replies: records, a model, public inputs [R, 4]."""
    inputs = torch.randn(rows, 4, generator=stream(10))
    own, labels = torch.randn(records, 4, generator=stream(8)), torch.arange(records) % classes
    view = PrivateView(own, labels, classes, inputs, stream(12))
    return view, _MadeUpTeacher(torch.randn(4, classes, generator=stream(9))), inputs


EVERY: tuple[Law, ...] = tuple(_laws)
