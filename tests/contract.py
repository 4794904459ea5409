"""What every method keeps: properties as plain functions of a strategy and logits [J, R, C].

The ids G1 to G13 are those of the project's list of properties; each docstring says which traits
(`shares.traits`) are excepted and why. An `AssertionError` says what was broken.
"""

from collections.abc import Mapping
from dataclasses import replace
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
    Shape,
    State,
    Strategy,
    Traffic,
    predictions,
)

CLOSE = 1e-5  # float32 scores of order one after a sharpening that multiplies errors by ten


class Outcome(NamedTuple):
    states: tuple[State, State]
    result: Predictions
    facts: Mapping[str, "float | Tensor"]


def shape(given: Predictions) -> Shape:
    return Shape(int(given.parties.max()) + 1, given.scores.shape[1], given.scores.shape[2])


def stream(seed: int = 0) -> torch.Generator:
    return streams.stream(seed, 1, streams.SERVER, "contract")


def begin(strategy: Strategy, given: Predictions) -> tuple[State, State]:
    rule = strategy.combine
    first = rule.init(shape(given)) if not isinstance(rule, Linear) else {}
    return first, strategy.finish.init(shape(given))


def uploaded(strategy: Strategy, logits: Predictions, seed: int = 0) -> Predictions:
    """What the clients send, each for itself."""
    init, apply = strategy.upload.init, strategy.upload.apply
    each = range(len(logits.parties))
    return stack(apply(init(shape(logits)), party(logits, j), stream(seed)).result for j in each)


def combined(strategy: Strategy, logits: Predictions) -> Predictions:
    sent = uploaded(strategy, logits)
    return combine(strategy.combine, begin(strategy, logits)[0], sent, stream()).result


def consensus(
    strategy: Strategy,
    logits: Predictions,
    states: tuple[State, State] | None = None,
    seed: int = 0,
) -> Outcome:
    """Upload, combine and finish; the result without the rows that were not asked."""
    first, second = begin(strategy, logits) if states is None else states
    generator = stream(seed)
    one = combine(strategy.combine, first, uploaded(strategy, logits, seed), generator)
    two = strategy.finish.apply(second, one.result, generator)
    asked = logits.scores.shape[1]
    if "caches" not in strategy.shares.traits:
        assert two.result.scores.shape[1] == asked, "rows came or went"
    result = replace(
        two.result,
        scores=two.result.scores[:, :asked],
        mask=two.result.mask[:, :asked],
        trust=two.result.trust[:, :asked],
        rows=two.result.rows[:asked],
        extras=None,
    )
    return Outcome((one.state, two.state), result, {**one.facts, **two.facts})


def close(found: Predictions, expected: Tensor, tolerance: float = CLOSE) -> None:
    """Both are compared where there is a target, relative to the size of the scores."""
    expected = expected.expand_as(found.scores)
    scale = expected.abs().amax().clamp_min(1)
    gap = (found.scores - expected).abs()[found.mask]
    assert gap.numel() == 0 or float(gap.max() / scale) < tolerance, f"differs by {gap.max():.2e}"


def same(a: Predictions, b: Predictions) -> None:
    for name in ("scores", "mask", "trust", "rows", "parties", "asked"):
        assert torch.equal(getattr(a, name), getattr(b, name)), f"{name} differ"


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=stream(7))


def has(strategy: Strategy, *traits: str) -> bool:
    return bool(strategy.shares.traits.intersection(traits))


def weights(strategy: Strategy, sent: Predictions) -> Tensor:
    """The share of each party in each row, [J, R]; a row without answers has none."""
    assert isinstance(strategy.combine, Linear)
    _, denominator = strategy.combine.weigh(sent)
    denominator = torch.where(sent.mask, denominator, 0).double()
    total = denominator.sum(0)
    return denominator / torch.where(total > 0, total, 1)


def g1_probabilities_lie_on_the_simplex(strategy: Strategy, logits: Predictions) -> None:
    result = consensus(strategy, logits).result
    if result.space == "probs":
        found = result.scores[result.mask].double()
        assert bool((found >= 0).all())
        assert bool(((found.sum(-1) - 1).abs() < 1e-6).all())
    assert bool(torch.isfinite(result.scores[result.mask]).all())


def g2_client_order_is_irrelevant(strategy: Strategy, logits: Predictions) -> None:
    """Personal targets move with their clients."""
    order = shuffled(len(logits.parties))
    moved = replace(
        logits, scores=logits.scores[order], mask=logits.mask[order], trust=logits.trust[order]
    )
    before, after = consensus(strategy, logits).result, consensus(strategy, moved).result
    close(after, before.scores[order] if has(strategy, "personal") else before.scores)


def g3_classes_are_alike(strategy: Strategy, logits: Predictions) -> None:
    order = shuffled(logits.scores.shape[-1])
    moved = replace(logits, scores=logits.scores[..., order])
    close(consensus(strategy, moved).result, consensus(strategy, logits).result.scores[..., order])


def g4_rows_do_not_mix(strategy: Strategy, logits: Predictions) -> None:
    """Excepted: personal targets, whose weights are statistics over all rows."""
    if has(strategy, "personal"):
        return
    others = torch.randn(logits.scores.shape, generator=stream(3))
    others[:, 0] = logits.scores[:, 0]
    changed = consensus(strategy, replace(logits, scores=others)).result
    before = consensus(strategy, logits).result
    assert torch.equal(changed.mask[:, 0], before.mask[:, 0])
    assert torch.equal(changed.scores[:, 0], before.scores[:, 0])


def g5_equal_clients_agree_with_themselves(strategy: Strategy, logits: Predictions) -> None:
    """Excepted: sharpening."""
    if has(strategy, "sharpens"):
        return
    alike = replace(logits, scores=logits.scores[:1].expand_as(logits.scores).clone())
    full = replace(alike, mask=torch.ones_like(alike.mask))
    close(consensus(strategy, alike).result, uploaded(strategy, full).scores[:1])


def g6_doubling_every_client_changes_nothing(strategy: Strategy, logits: Predictions) -> None:
    """Excepted: personal targets, for each client has a target of its own."""
    if has(strategy, "personal"):
        return
    twice = predictions(
        logits.scores.repeat_interleave(2, 0),
        logits.space,
        mask=logits.mask.repeat_interleave(2, 0),
        trust=logits.trust.repeat_interleave(2, 0),
        asked=logits.asked.repeat_interleave(2, 0),
    )
    close(consensus(strategy, twice).result, consensus(strategy, logits).result.scores)


def g7_weights_sum_to_one_and_no_answer_is_no_target(
    strategy: Strategy, logits: Predictions
) -> None:
    sent = uploaded(strategy, logits)
    if isinstance(strategy.combine, Linear):
        share = weights(strategy, sent)
        assert bool((share >= 0).all())
        assert bool(((share.sum(0) - sent.mask.any(0).double()).abs() < 1e-9).all())
    silent = logits.mask.clone()
    silent[:, 0] = False
    result = consensus(strategy, replace(logits, mask=silent)).result
    assert not bool(result.mask[:, 0].any()), "a target for a row that nobody answered"
    assert torch.equal(result.mask[:, 1:].any(0), logits.mask[:, 1:].any(0))


def g8_targets_lie_in_the_hull(strategy: Strategy, logits: Predictions) -> None:
    """Seen from random directions no target stands out. Excepted: sharpening."""
    if has(strategy, "sharpens"):
        return
    sent, result = uploaded(strategy, logits), consensus(strategy, logits).result
    classes = sent.scores.shape[-1]
    towards = torch.cat([torch.eye(classes), torch.randn(16, classes, generator=stream(5))]).T
    furthest = (sent.scores @ towards).masked_fill(~sent.mask.unsqueeze(-1), -torch.inf).amax(0)
    beyond = (result.scores @ towards - furthest)[result.mask]
    scale = float(sent.scores.abs().amax().clamp_min(1))
    assert beyond.numel() == 0 or float(beyond.max()) / scale < CLOSE


def g9_liars_have_bounded_influence(strategy: Strategy, logits: Predictions) -> None:
    """Probabilities of which liars hold a share a move by at most a sqrt(2), and 2a in L1.

    It is asked of weighted means of probabilities before `finish`; a mean of logits has no such
    bound, and personal weights depend on what the liars say.
    """
    if not isinstance(strategy.combine, Linear) or len(logits.parties) < 2:
        return
    honest = replace(logits, mask=logits.mask & (logits.parties > 0).unsqueeze(-1))
    lying = logits.scores.clone()
    lying[0] = -50.0
    lying[0, :, 0] = 50.0
    logits = replace(logits, scores=lying)
    sent = uploaded(strategy, logits)
    if sent.space != "probs":
        return
    share = weights(strategy, sent)[0]
    with_liar, without = combined(strategy, logits), combined(strategy, honest)
    both = (with_liar.mask & without.mask)[0]
    moved = (with_liar.scores - without.scores)[0].double()
    assert bool((moved.norm(dim=-1) <= share * 2**0.5 + CLOSE)[both].all())
    assert bool((moved.abs().sum(-1) <= 2 * share + CLOSE)[both].all())


def g10_a_constant_added_to_logits_changes_no_label(
    strategy: Strategy, logits: Predictions
) -> None:
    shift = torch.randn(*logits.scores.shape[:2], 1, generator=stream(4))
    before = consensus(strategy, logits).result
    after = consensus(strategy, replace(logits, scores=logits.scores + shift)).result
    after = replace(after, scores=probabilities(after.scores, after.space, 1.0))
    # a sum of two float32 numbers of size 50 is good to 4e-6, and sharpening multiplies that
    close(after, probabilities(before.scores, before.space, 1.0), 2e-4)


def g11_one_client_passes_through(strategy: Strategy, logits: Predictions) -> None:
    """Sharpened where the method sharpens: then the favourite class at least is the same."""
    alone = replace(party(logits, 0), parties=torch.tensor([0]))
    result, sent = consensus(strategy, alone).result, uploaded(strategy, alone)
    assert torch.equal(result.mask, sent.mask)
    if has(strategy, "sharpens"):
        favourite = result.scores.argmax(-1, keepdim=True)
        lead = sent.scores.amax(-1) - sent.scores.gather(-1, favourite).squeeze(-1)
        assert bool((lead[result.mask] < CLOSE).all())
    else:
        close(result, sent.scores)


def g12_the_same_seed_gives_the_same_bits(strategy: Strategy, logits: Predictions) -> None:
    """Also when the answers are folded one by one, as they come in over the network."""
    one, two = consensus(strategy, logits, seed=1), consensus(strategy, logits, seed=1)
    same(one.result, two.result)
    for a, b in zip(one.states, two.states, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    if isinstance(strategy.combine, Linear):
        sent = uploaded(strategy, logits)
        folded = Total(strategy.combine)
        for j in range(len(sent.parties)):
            folded.add(party(sent, j))
        same(folded.consensus(), combined(strategy, logits))


def g13_the_mean_is_no_worse_than_its_parts(strategy: Strategy, logits: Predictions) -> None:
    """NLL(sum w p) <= sum w NLL(p), for any label; of logits, too, since NLL is convex in them.

    Of the weighted mean before `finish`. Excepted: personal targets have no one mean.
    """
    if not isinstance(strategy.combine, Linear):
        return
    sent, mixed = uploaded(strategy, logits), combined(strategy, logits)

    def loss(scores: Tensor) -> Tensor:  # [.., R, C], for each possible label
        if sent.space == "logits":
            return -scores.double().log_softmax(-1)
        return -(scores.double() + 1e-30).log()  # added, not clamped: the mean moves along

    share = weights(strategy, sent).unsqueeze(-1)
    scores = torch.where(sent.mask.unsqueeze(-1), sent.scores, 0)
    excess = loss(mixed.scores[0]) - (share * loss(scores)).sum(0)
    scale = float(scores.abs().amax().clamp_min(1))
    assert bool((excess[mixed.mask[0]] < CLOSE * scale).all())


def inputs_stay_as_they_are(strategy: Strategy, logits: Predictions) -> None:
    sent, states = uploaded(strategy, logits), begin(strategy, logits)
    kept = [t.clone() for t in (logits.scores, logits.mask, logits.trust, sent.scores, sent.trust)]
    kept_states = [{k: v.clone() for k, v in s.items()} for s in states]
    step = combine(strategy.combine, states[0], sent, stream())
    result = step.result.scores.clone()
    strategy.finish.apply(states[1], step.result, stream())
    now = (logits.scores, logits.mask, logits.trust, sent.scores, sent.trust)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert torch.equal(step.result.scores, result)
    for before, after in zip(kept_states, states, strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)


def masked_entries_are_never_read(strategy: Strategy, logits: Predictions) -> None:
    expected = consensus(strategy, logits)
    for poison in (torch.nan, torch.inf):
        scores = logits.scores.masked_fill(~logits.mask.unsqueeze(-1), poison)
        trust = logits.trust.masked_fill(~logits.mask, poison)
        found = consensus(strategy, replace(logits, scores=scores, trust=trust))
        same(found.result, expected.result)
        assert bool(torch.isfinite(found.result.scores).all())


def silence_is_no_target(strategy: Strategy, logits: Predictions) -> None:
    result = consensus(strategy, replace(logits, mask=torch.zeros_like(logits.mask))).result
    assert not bool(result.mask.any())
    assert bool(torch.isfinite(result.scores).all())


def state_survives_a_file(strategy: Strategy, logits: Predictions) -> None:
    """Three rounds, the state of the second from memory and from safetensors."""
    first = consensus(strategy, logits)
    later = replace(logits, asked=logits.asked + 1)
    second = consensus(strategy, later, first.states)
    read = tuple(dict(load(save(dict(s)))) if s else s for s in second.states)
    last = replace(logits, asked=logits.asked + 2, scores=logits.scores.flip(1))
    same(
        consensus(strategy, last, second.states).result,
        consensus(strategy, last, (read[0], read[1])).result,
    )


def facts_are_numbers(strategy: Strategy, logits: Predictions) -> None:
    rows = logits.scores.shape[1]
    for name, fact in consensus(strategy, logits).facts.items():
        assert isinstance(fact, float) or fact.shape == (rows,), f"{name}: {fact!r}"


def the_question_is_drawn_from_the_seed(strategy: Strategy, logits: Predictions) -> None:
    """Rows of the public set, ascending, the same for the same generator."""
    public, clients = logits.rows, logits.parties.tolist()
    states = begin(strategy, logits)[1], consensus(strategy, logits).states[1]
    for round_, state in enumerate(states, 1):
        one, two = (strategy.request(state, round_, public, clients, stream(2)) for _ in range(2))
        assert torch.equal(one.rows, two.rows)
        assert bool((one.rows[1:, 1] > one.rows[:-1, 1]).all())
        assert torch.equal(public[one.rows[:, 1]], one.rows)
        if one.mask is not None:
            assert one.mask.shape == (len(clients), len(one.rows)) and one.mask.dtype == torch.bool


def messages_have_the_stated_length(strategy: Strategy, logits: Predictions) -> None:
    """Answers that are all there, up and down; what crosses is declared."""
    full = replace(logits, mask=torch.ones_like(logits.mask), trust=torch.ones_like(logits.trust))
    _, rows, classes = full.scores.shape
    traffic = Traffic(rows, classes, 0, rows)
    sent = uploaded(strategy, full)
    if strategy.shares.answers is not None:
        assert sent.space == strategy.shares.answers
        assert set(sent.extras or {}) <= strategy.shares.extras
        # what a client makes of its own data is in the tests of the method
        if strategy.upload_codec is None and strategy.annotate is None:
            length = len(wire.encode(party(sent, 0)))
            assert length == wire.HEADER_BYTES + strategy.shares.uplink(traffic)
    if strategy.shares.answers is not None and strategy.feedback == "consensus":
        result = consensus(strategy, full).result
        expected = wire.HEADER_BYTES + strategy.shares.downlink(traffic)
        if strategy.download_codec is None:
            assert len(wire.encode(party(result, 0))) == expected
        else:
            _codec_round_trip(strategy, full, expected)


def _codec_round_trip(strategy: Strategy, full: Predictions, expected: int) -> None:
    assert strategy.download_codec is not None
    init, encode, decode = strategy.download_codec
    one = combine(strategy.combine, begin(strategy, full)[0], uploaded(strategy, full), stream())
    whole = strategy.finish.apply(strategy.finish.init(shape(full)), one.result, stream()).result
    _, payload = encode(init(shape(full)), whole, stream())
    assert len(payload) == expected
    _, received = decode(init(shape(full)), payload, full.rows, stream())
    same(received, consensus(strategy, full).result)


def parties_are_one_or_as_many_as_answered(strategy: Strategy, logits: Predictions) -> None:
    parties = consensus(strategy, logits).result.parties
    expected = logits.parties if has(strategy, "personal") else torch.tensor([CONSENSUS])
    assert torch.equal(parties, expected)


EVERY = (
    g1_probabilities_lie_on_the_simplex,
    g2_client_order_is_irrelevant,
    g3_classes_are_alike,
    g4_rows_do_not_mix,
    g5_equal_clients_agree_with_themselves,
    g6_doubling_every_client_changes_nothing,
    g7_weights_sum_to_one_and_no_answer_is_no_target,
    g8_targets_lie_in_the_hull,
    g9_liars_have_bounded_influence,
    g10_a_constant_added_to_logits_changes_no_label,
    g11_one_client_passes_through,
    g12_the_same_seed_gives_the_same_bits,
    g13_the_mean_is_no_worse_than_its_parts,
    inputs_stay_as_they_are,
    masked_entries_are_never_read,
    silence_is_no_target,
    state_survives_a_file,
    facts_are_numbers,
    the_question_is_drawn_from_the_seed,
    messages_have_the_stated_length,
    parties_are_one_or_as_many_as_answered,
)
