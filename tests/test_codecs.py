"""Codecs by name, in chains and under every method; C1 to C8 are those of the project's list."""

import math
import random
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import resuming
import small
import torch
from test_fuzz import METHODS, PAYLOAD_FIELDS, bounded, damaged, tally
from torch import Generator, Tensor

from fedkd import contract, offers, wire
from fedkd.answers import check
from fedkd.assemble import Plan
from fedkd.codecs import bf16, delta, fp16, range_coder, simplex, topk, uniform
from fedkd.coding import Chain, Link, Quantiser, chained
from fedkd.config import ConfigError
from fedkd.costs import traffic
from fedkd.cursor import WireError
from fedkd.explain import explain
from fedkd.links import linked
from fedkd.losses import kl, kl_top
from fedkd.rehearsal import rehearse
from fedkd.tasks import rows_from
from fedkd.transforms import party
from fedkd.types import (
    Codec,
    Predictions,
    Shape,
    Space,
    State,
    Strategy,
    Target,
    Traffic,
    predictions,
)

HEADER = wire.HEADER_BYTES
LOSSLESS: Mapping[str, Sequence[Link]] = {
    "none": [],
    "coded": [range_coder()],
    "delta": [delta()],
    "both": [delta(), range_coder()],
}
LOSSY: Mapping[str, Sequence[Link]] = {
    "fp16": [fp16()],
    "bf16": [bf16()],
    "fp16-coded": [fp16(), range_coder()],
    "uniform": [uniform(4)],
    "uniform-1": [uniform(1)],
    "uniform-row": [uniform(6, "nearest", "row"), delta(), range_coder()],
    "uniform-drawn": [uniform(8, "stochastic")],
}
OF_PROBS: Mapping[str, Sequence[Link]] = {
    **{f"simplex-{b}": [simplex(b)] for b in (1, 2, 4, 8, 16, 32)},
    "simplex-drawn": [simplex(3, "stochastic")],
    "simplex-random": [simplex(2, ties="random"), range_coder()],
    "simplex-delta": [simplex(1), delta(), range_coder()],
    "simplex-coded": [simplex(5), range_coder()],
    "topk": [topk(3)],
    "topk-uniform": [topk(3, 8, "uniform")],
    "topk-all": [topk(2, 4, "uniform"), delta(), range_coder()],
}
CHAINS = {**LOSSLESS, **LOSSY, **OF_PROBS}


def stream(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def distributions(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(rows, classes, generator=stream(seed))).softmax(-1)


def one(scores: Tensor, space: Space = "probs", **others: Any) -> Predictions:
    """An answer of client 3 in round 2."""
    party = {"parties": torch.tensor([3]), "asked": torch.tensor([2])}
    return predictions(scores.unsqueeze(0), space, **party | others)


def chain(links: Sequence[Link], classes: int) -> Chain:
    return chained(links, classes, "codecs.up")


def shape_of(given: Predictions) -> Shape:
    return Shape(4, given.scores.shape[1], given.scores.shape[2])


def there_and_back(links: Sequence[Link], given: Predictions) -> tuple[bytes, Predictions]:
    made = chain(links, given.scores.shape[2]).codec
    state = made.init(shape_of(given))
    sent, payload = made.encode(state, given, stream())
    received, result = made.decode(state, payload, given.rows, stream(1))
    same_state(sent, received)
    return payload, result


def same_state(one: State, other: State) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def through(quantiser: Quantiser, scores: Tensor, seed: int = 0) -> Tensor:
    return there_and_back([quantiser], one(scores))[1].scores[0]


# --- the quantiser of the simplex


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_c1_entries_are_whole_numbers_with_the_sum_of_the_grid(
    classes: int, bits: int, rounding: Any
) -> None:
    most = 2**bits - 1
    quantiser = simplex(bits, rounding)
    for scale in (0.0, 1.0, 30.0):
        scores = distributions(40, classes, bits, scale)
        _, symbols = quantiser.encode(scores, stream())
        assert bool((symbols >= 0).all())
        if bits > 1:
            assert bool((symbols.sum(1) <= most).all())
        entries = quantiser.decode(torch.zeros(0), symbols, classes).double() * most
        whole = entries.round()
        assert float((entries - whole).abs().max()) < 1e-9
        assert bool((whole.sum(1) == most).all()) and bool((whole >= 0).all())
        # rounded up or down, nothing else
        assert float((whole - scores.double() * most).abs().max()) < 1 + 1e-6 * most


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_c2_one_bit_is_the_argmax(classes: int) -> None:
    scores = distributions(200, classes)
    found = through(simplex(1), scores)
    assert torch.equal(found.argmax(1), scores.argmax(1)) and torch.equal(
        found.sum(1), found.amax(1)
    )
    equal = torch.full((5, 4), 0.25)
    assert through(simplex(1), equal).argmax(1).tolist() == [0] * 5, "the lowest of equal classes"


def test_c3_thirty_two_bits_keep_what_float32_holds() -> None:
    """The sheet's 1e-9 is that of float64; a sum of float32 entries is one to 1e-7 itself."""
    scores = distributions(300, 10).double()
    found = through(simplex(32), scores.float()).double()
    exact = scores.float().double()
    exact /= exact.sum(1, keepdim=True)
    assert bool(((found - exact).abs() <= 2**-24 * exact + 1e-9).all())


def test_c4_the_largest_remainder_is_the_nearest_point() -> None:
    golden = through(simplex(2), torch.tensor([[0.5, 0.3, 0.2]]))
    torch.testing.assert_close(golden, torch.full((1, 3), 1 / 3))
    for bits, classes in ((1, 4), (2, 3), (2, 4), (3, 3)):
        most = 2**bits - 1
        grid = [g for g in product(range(most + 1), repeat=classes) if sum(g) == most]
        points = torch.tensor(grid).double() / most
        scores = distributions(60, classes, bits)
        least = (points.unsqueeze(0) - scores.double().unsqueeze(1)).abs().sum(-1).amin(1)
        found = (through(simplex(bits), scores).double() - scores.double()).abs().sum(-1)
        torch.testing.assert_close(found, least, atol=1e-6, rtol=0)


def test_ties_are_broken_by_class_or_at_random() -> None:
    equal = torch.full((3000, 4), 0.25)
    assert torch.equal(through(simplex(2), equal)[:, 3], torch.zeros(3000))
    left_out = (through(simplex(2, ties="random"), equal) == 0).float()
    assert torch.equal(left_out.sum(1), torch.ones(3000))
    share = left_out.mean(0)
    assert float((share - 0.25).abs().max()) < 4 * math.sqrt(0.25 * 0.75 / 3000)


@pytest.mark.parametrize("bits", [1, 2, 7, 16])
@pytest.mark.parametrize("classes", [1, 2, 10, 300])
def test_c7_what_is_on_the_grid_stays(bits: int, classes: int) -> None:
    once = through(simplex(bits), distributions(50, classes))
    assert torch.equal(through(simplex(bits), once), once)
    assert torch.equal(through(simplex(bits, "stochastic"), once), once) or bits == 16


# --- stochastic rounding


@pytest.mark.parametrize(
    "quantiser", [simplex(1, "stochastic"), simplex(3, "stochastic"), uniform(2, "stochastic")]
)
def test_stochastic_rounding_is_right_on_average(quantiser: Quantiser) -> None:
    row = torch.tensor([0.42, 0.3, 0.15, 0.08, 0.05])
    tries = 20_000
    head, symbols = quantiser.encode(row.repeat(tries, 1), stream(5))
    found = quantiser.decode(head, symbols, 5).double()
    spread = found.std(0).clamp_min(1e-9)
    assert bool(((found.mean(0) - row.double()).abs() < 5 * spread / math.sqrt(tries) + 1e-7).all())
    assert float(spread.max()) > 0.01, "it is drawn"


def test_rounding_is_drawn_from_the_generator_alone() -> None:
    given = one(distributions(30, 10))
    made = chain([simplex(4, "stochastic")], 10).codec
    payloads = [made.encode({}, given, stream(s))[1] for s in (1, 1, 2)]
    assert payloads[0] == payloads[1] != payloads[2]


# --- other quantisers


@pytest.mark.parametrize(("name", "relative"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_half_precision_loses_half_a_unit_in_the_last_place(name: str, relative: float) -> None:
    logits = 50 * torch.randn(100, 10, generator=stream())
    payload, found = there_and_back(LOSSY[name], one(logits, "logits"))
    assert len(payload) == HEADER + 2 * 1000
    assert bool(((found.scores[0] - logits).abs() <= relative * logits.abs() + 2**-24).all())
    huge = torch.tensor([[1e6, -1e30, 3.4e38]])
    _, found = there_and_back(LOSSY[name], one(huge, "logits"))
    assert bool(torch.isfinite(found.scores).all())
    if name == "fp16":
        assert found.scores[0].tolist() == [[65504.0, -65504.0, 65504.0]]


@pytest.mark.parametrize("scale", ["message", "row"])
@pytest.mark.parametrize("bits", [1, 4, 16])
def test_uniform_steps_are_half_a_step_off_at_most(bits: int, scale: Any) -> None:
    logits = torch.randn(50, 7, generator=stream()) * torch.logspace(-3, 6, 50).unsqueeze(1)
    found = there_and_back([uniform(bits, "nearest", scale)], one(logits, "logits"))[1].scores[0]
    flat = logits if scale == "row" else logits.reshape(1, -1)
    step = (flat.amax(1) - flat.amin(1)).double() / (2**bits - 1)
    limit = step.unsqueeze(1) / 2 + 2**-22 * logits.abs().amax(1, keepdim=True)
    assert bool(((found - logits).abs() <= limit).all())
    constant = torch.full((4, 3), -2.5)
    assert torch.equal(
        there_and_back([uniform(bits, "nearest", scale)], one(constant, "logits"))[1].scores[0],
        constant,
    )


def test_probabilities_stay_on_the_simplex() -> None:
    for classes, (name, links) in product((1, 2, 10, 1000), {**LOSSY, **OF_PROBS}.items()):
        for space in ("probs", "log_probs") if name in LOSSY else ("probs",):
            scores = distributions(30, classes)
            given = one(scores.log() if space == "log_probs" else scores, space)  # type: ignore[arg-type]
            found = there_and_back(links, given)[1].scores[0].double()
            found = found.exp() if space == "log_probs" else found
            assert float((found.sum(1) - 1).abs().max()) < 1e-5, (name, classes, space)
            assert bool((found >= 0).all())
    # all of a row's entries are nearer to nothing than to the first step
    peak = torch.eye(200)[:1]
    flat = torch.full((1, 200), 1 / 200)
    found = there_and_back([uniform(1)], one(torch.cat([peak, flat])))[1].scores[0]
    torch.testing.assert_close(found[1], flat[0])


def test_topk_keeps_the_largest_and_the_rest_is_completed() -> None:
    row = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2]])
    renormalised = through(topk(3), row)
    torch.testing.assert_close(
        renormalised, torch.tensor([[0, 0.4, 0, 0.25, 0.2]]) / 0.85, atol=1e-4, rtol=0
    )
    spread = through(topk(3, completion="uniform"), row)
    expected = torch.tensor([[0.075, 0.4, 0.075, 0.25, 0.2]])
    torch.testing.assert_close(spread, expected, atol=1e-4, rtol=0)
    tied = through(topk(2), torch.full((1, 4), 0.25))
    assert tied.tolist() == [[0.5, 0.5, 0, 0]] or tied[0, 2:].sum() == 0


@pytest.mark.parametrize("completion", ["renormalise", "uniform"])
def test_topk_of_all_classes_is_the_quantiser_alone(completion: Any) -> None:
    scores = distributions(40, 6)
    for k in (6, 9):
        found = through(topk(k, 8, completion), scores)
        torch.testing.assert_close(found, through(simplex(8), scores), atol=1e-6, rtol=0)
    assert torch.equal(through(topk(1), scores), through(simplex(1), scores))


def test_the_rest_as_one_outcome_is_never_more_than_the_whole() -> None:
    teacher = distributions(50, 8).double()
    student = torch.randn(50, 8, generator=stream(2), dtype=torch.float64)
    target = Target(teacher, "probs", None)
    whole = kl()(student, target)
    for k in range(1, 8):
        found = kl_top(k)(student, target)
        assert bool((found <= whole + 1e-12).all()) and bool((found >= -1e-12).all())
    torch.testing.assert_close(kl_top(8)(student, target), whole)
    torch.testing.assert_close(kl_top(20)(student, target), whole)
    # what the codec does to the rest does not matter to it
    sent = through(topk(3, 32, "uniform"), teacher.float()).double()
    torch.testing.assert_close(
        kl_top(3)(student, Target(sent, "probs", None)), kl_top(3)(student, target),
        atol=1e-6, rtol=1e-5,
    )  # fmt: skip


# --- bytes


FORMULAS = {  # bits a row of C classes; a block begins with a whole byte
    "none": lambda c: [32 * c],
    "fp16": lambda c: [16 * c],
    "bf16": lambda c: [16 * c],
    "uniform": lambda c: [4 * c],
    "uniform-1": lambda c: [c],
    "simplex-1": lambda c: [math.ceil(math.log2(c))],
    "simplex-4": lambda c: [4 * (c - 1)],
    "simplex-32": lambda c: [32 * (c - 1)],
    "topk": lambda c: [min(3, c) * math.ceil(math.log2(c)), 16 * (min(3, c) - 1)],
    "topk-uniform": lambda c: [
        min(3, c) * math.ceil(math.log2(c)), 8 * (3 if c > 3 else c - 1)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_payloads_are_as_long_as_the_formula_says(name: str) -> None:
    for classes, rows in product((1, 2, 10, 1000), (0, 1, 2, 83)):
        given = one(distributions(rows, classes, rows))
        made = chain(CHAINS[name], classes)
        payload, found = there_and_back(CHAINS[name], given)
        body, formula = len(payload) - HEADER, made.length(rows, classes)
        assert body == formula if made.fixed else body <= formula
        if name in FORMULAS:
            head = 8 if name.startswith("uniform") and rows else 0
            assert formula == head + sum(-(-rows * n // 8) for n in FORMULAS[name](classes))
        if name in LOSSLESS:
            assert torch.equal(found.scores, given.scores)
        assert wire.encode(replace(found, scores=given.scores)) == wire.encode(given)


def test_a_coder_makes_shorter_what_is_frequent_and_nothing_much_longer() -> None:
    labels = one(torch.eye(10)[torch.zeros(2000, dtype=torch.int64)])
    assert len(there_and_back([simplex(1), range_coder()], labels)[0]) < HEADER + 20
    skewed = torch.eye(10)[(torch.rand(5000, generator=stream()) * 1.1).long()]
    counts = skewed.mean(0)
    bits = float(-torch.xlogy(counts, counts).sum() / math.log(2)) * 5000
    coded = len(there_and_back([simplex(1), range_coder()], one(skewed))[0]) - HEADER
    assert bits / 8 <= coded <= 1.01 * bits / 8 + 20  # a real bitstream, and no estimate
    noise = one(torch.randn(50, 10, generator=stream()), "logits")
    assert len(there_and_back([range_coder()], noise)[0]) <= HEADER + 2000 + 1


# --- differences


def test_c5_differences_lose_nothing_over_rounds_that_are_missed() -> None:
    """Three clients come and go, with rows and answers of their own; both ends agree throughout."""
    rng = stream(4)
    for links in ([delta()], [simplex(2), delta(), range_coder()], [topk(2), delta()]):
        made = chain(links, 5)
        alone = chain([link for link in links if isinstance(link, Quantiser)], 5).codec
        public = predictions(torch.zeros(1, 30, 5), "probs").rows
        ends = {c: (made.codec.init(Shape(3, 30, 5)),) * 2 for c in range(3)}
        for round_ in range(1, 9):
            for client in torch.randperm(3, generator=rng)[:2].tolist():
                rows = public[torch.rand(30, generator=rng) < 0.6]
                scores = distributions(30, 5, client * 10 + round_ // 3)[rows[:, 1]]
                mask = torch.rand(1, len(rows), generator=rng) < 0.8
                given = one(scores, rows=rows, mask=mask, asked=torch.tensor([round_]))
                here, payload = made.codec.encode(ends[client][0], given, rng)
                there, found = made.codec.decode(ends[client][1], payload, rows, rng)
                same_state(here, there)
                expected = alone.decode({}, alone.encode({}, given, rng)[1], rows, rng)[1]
                assert torch.equal(found.scores, expected.scores)
                if round_ % 4:  # else the message is lost, and both ends stand where they stood
                    ends[client] = here, there


def test_c6_what_did_not_change_is_a_zero_bit() -> None:
    given = one(distributions(83, 10))
    made = chain([simplex(4), delta()], 10).codec
    state, first = made.encode(made.init(shape_of(given)), given, stream())
    again, second = made.encode(state, given, stream())
    same_state(state, again)
    assert len(first) == HEADER + 11 + -(-83 * 36 // 8)
    assert second[HEADER:] == bytes(11)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_c8_a_difference_is_at_most_a_symbol_more(classes: int, share: float) -> None:
    rows = 20_000
    labels = torch.randint(classes, (rows,), generator=stream(1))
    other = (labels + 1) % classes
    moved = torch.where(torch.rand(rows, generator=stream(2)) < share, other, labels)
    made = chain([simplex(1), delta(), range_coder()], classes).codec
    one_hot = torch.eye(classes)
    state, _ = made.encode(made.init(Shape(1, rows, classes)), one(one_hot[labels]), stream())
    _, payload = made.encode(state, one(one_hot[moved]), stream())
    tokens = Counter(torch.where(moved == labels, 0, 1 + moved).tolist())
    entropy = -sum(n / rows * math.log2(n / rows) for n in tokens.values())
    assert entropy <= math.log2(classes + 1)
    coded = 8 * (len(payload) - HEADER) / rows
    assert entropy - 1e-3 <= coded <= 1.01 * entropy + 0.02


# --- what stands around the scores


@pytest.mark.parametrize("name", ["fp16", "simplex-4", "simplex-coded", "both", "topk"])
def test_masks_trust_and_extras_travel_as_ever(name: str) -> None:
    mask = torch.arange(20).unsqueeze(0) % 3 > 0
    scores = distributions(20, 10)
    scores[~mask[0]] = torch.nan
    trust = torch.rand(1, 20, generator=stream()).masked_fill(~mask, torch.nan)
    given = one(scores, mask=mask, trust=trust, extras={"age": (torch.arange(20),)})
    payload, found = there_and_back(CHAINS[name], given)
    assert torch.equal(found.mask, mask) and torch.equal(found.trust[mask], trust[mask])
    assert found.extras is not None and torch.equal(found.extras["age"][0], torch.arange(20))
    assert not bool(found.scores[~mask].any())
    beside = len(wire.encode(given)) - 4 * 10 * int(mask.sum())
    made = chain(CHAINS[name], 10)
    most = beside + made.length(int(mask.sum()), 10)
    assert len(payload) == most if made.fixed else len(payload) <= most


def test_answers_about_some_classes_keep_their_names() -> None:
    for width in (1, 6):
        names = torch.randint(0, 10, (1, width, 3), generator=stream())
        given = one(distributions(6, 3), classes=names)
        made = chain([simplex(3)], 10).codec
        found = made.decode({}, made.encode({}, given, stream())[1], given.rows, stream())[1]
        assert found.classes is not None and torch.equal(found.classes, names)
    with pytest.raises(WireError, match="all classes in order"):
        made = chain([simplex(3), delta()], 10).codec
        made.encode(made.init(Shape(1, 6, 10)), given, stream())
    with pytest.raises(WireError, match="10 columns expected, found 3"):
        chain([simplex(3)], 10).codec.encode({}, replace(given, classes=None), stream())


@pytest.mark.parametrize("name", CHAINS)
def test_nothing_answered_and_nothing_asked(name: str) -> None:
    silent = one(torch.full((9, 4), torch.nan), mask=torch.zeros(1, 9, dtype=torch.bool))
    payload, found = there_and_back(CHAINS[name], silent)
    assert len(payload) == HEADER + 2 and not found.mask.any() and not found.scores.any()
    payload, found = there_and_back(CHAINS[name], one(torch.zeros(0, 4)))
    assert len(payload) == HEADER and found.scores.shape == (1, 0, 4)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_not_sent(name: str, odd: float) -> None:
    scores = distributions(5, 4)
    scores[2, 1] = odd
    with pytest.raises(ValueError, match="finite where the mask is true"):
        there_and_back(CHAINS[name], one(scores))


def test_what_is_no_distribution_is_not_rounded_to_one() -> None:
    for links in ([simplex(4)], [topk(2)], [topk(2, 8, "uniform")]):
        for scores in (torch.tensor([[0.5, 0.6]]), torch.tensor([[1.5, -0.5]])):
            with pytest.raises(ValueError, match=r"probabilities should be >= 0 and sum to 1"):
                there_and_back(links, one(scores))


# --- hostile bytes

FUZZED = ("both", "fp16-coded", "uniform", "uniform-row", "simplex-1", "simplex-delta",
          "simplex-coded", "topk", "topk-all")  # fmt: skip


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.parametrize("count", (200, pytest.param(10_000, marks=pytest.mark.slow)))
def test_a_payload_is_read_as_what_it_spells_or_refused(name: str, count: int) -> None:
    made, shape = chain(CHAINS[name], 6).codec, Shape(4, 40, 6)
    came = []
    state = made.init(shape)
    for i in range(6):
        mask = torch.rand(1, 40, generator=stream(i)) < 0.7 if i % 2 else None
        rest = {"extras": {"age": (torch.arange(3),)}} if i == 3 else {}
        given = one(distributions(40, 6, i // 2), mask=mask, **rest)
        after, payload = made.encode(state, given, stream(i))
        came.append((state, payload, given))
        state = after

    def trial(rng: random.Random) -> bool:
        held, own, given = rng.choice(came)
        payload = damaged(rng, rng.choice([[p for _, p, _ in came], [own]]), PAYLOAD_FIELDS)
        before = {k: t.clone() for k, t in held.items()}
        with bounded(len(payload)):
            try:
                after, found = made.decode(held, payload, given.rows, stream())
            except WireError as refusal:
                assert len(str(refusal)) < 2000 and payload != own
                return False
            finally:
                same_state(held, before)
        assert found.scores.shape == (1, 40, 6) or found.classes is not None
        assert bool(torch.isfinite(found.scores[found.mask]).all())
        if not name.startswith("uniform"):  # whose ranges shrink when they are rounded again
            again = chain(CHAINS[name], 6).codec.encode(held, found, stream())
            assert again[1] == payload or name in ("fp16-coded", "topk", "topk-all")
            same_state(again[0], after) if again[1] == payload else None
        return True

    tally(count, trial, read=0.02)


def words(*floats: float) -> list[int]:
    return [struct.unpack("<I", struct.pack("<f", f))[0] for f in floats]


NEVER_WRITTEN = {  # symbols of one row of three classes that fit their alphabets, and a head
    "infinite half": (fp16(), [], [0x7C00, 0, 0]),
    "half no number": (fp16(), [], [0, 0x7E00, 0]),
    "infinite brain": (bf16(), [], [0, 0, 0xFF80]),
    "sum above one": (simplex(2), [], [2, 2]),
    "top sum above one": (topk(2, 4, "uniform"), [], [0, 1, 15, 1]),
    "falling classes": (topk(2, 4), [], [1, 0, 5]),
    "a class twice": (topk(2, 4), [], [1, 1, 5]),
    "falling range": (uniform(2), words(1.0, 0.0), [0, 1, 2]),
    "range of no width": (uniform(2), words(1.0, 1.0), [0, 1, 0]),
    "endless range": (uniform(2), words(0.0, math.inf), [0, 1, 0]),
    "range of a row": (uniform(2, "nearest", "row"), [], [*words(2.0, 1.0), 0, 1, 3]),
}


@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_symbols_that_nobody_writes_are_refused(name: str) -> None:
    quantiser, head, symbols = NEVER_WRITTEN[name]
    with pytest.raises(WireError, match="payload: "):
        quantiser.decode(torch.tensor(head, dtype=torch.int64), torch.tensor([symbols]), 3)


@pytest.mark.parametrize("code", [b"\2", b"\1abc", b"\1" + b"\xff" * 12, b"\0", b"\1"])
def test_what_no_range_coder_wrote_is_refused(code: bytes) -> None:
    given = one(distributions(50, 6))
    payload = wire.encode(given, coded=code)
    with pytest.raises(WireError):
        chain([simplex(1), range_coder()], 6).codec.decode({}, payload, given.rows, stream())


def test_few_bytes_are_not_blown_up() -> None:
    """The receiver knows rows and classes; nobody makes it take more than these need."""
    given = one(distributions(40, 6))
    payload, _ = there_and_back([simplex(1), range_coder()], given)
    made = chain([simplex(1), range_coder()], 6).codec
    for offset, most in ((16, 1 << 20), (20, 1 << 24), (24, 1 << 24), (24, 7)):
        bomb = bytearray(payload)
        struct.pack_into("<I", bomb, offset, most)
        with bounded(len(bomb), 1 << 20), pytest.raises(WireError):
            made.decode({}, bytes(bomb), given.rows, stream())


def test_rows_that_nobody_knows_take_no_memory() -> None:
    bomb = bytearray(there_and_back([simplex(1)], one(distributions(40, 6)))[0])
    struct.pack_into("<II", bomb, 20, 1 << 28, 1)
    with bounded(len(bomb), 1 << 20), pytest.raises(WireError, match="on the rows asked"):
        wire.decode(bytes(bomb))


def test_the_two_ends_speak_one_language() -> None:
    given = one(distributions(9, 4))
    coded, dense = there_and_back([fp16()], given)[0], wire.encode(given)
    with pytest.raises(WireError, match="only the codec that wrote them"):
        wire.decode(coded, given.rows)
    with pytest.raises(WireError, match="its scores are not coded"):
        chain([fp16()], 4).codec.decode({}, dense, given.rows, stream())
    with pytest.raises(WireError, match="bytes of symbols expected"):
        chain([uniform(16)], 4).codec.decode({}, coded, given.rows, stream())
    logits = there_and_back([fp16()], one(torch.zeros(9, 4), "logits"))[0]
    with pytest.raises(WireError, match="logits are not what"):
        chain([simplex(16)], 4).codec.decode({}, logits, given.rows, stream())


def test_a_row_that_was_never_told_is_not_as_before() -> None:
    given = one(distributions(9, 4))
    made = chain([simplex(4), delta()], 4).codec
    begin = made.init(shape_of(given))
    state, payload = made.encode(begin, given, stream())
    with pytest.raises(WireError, match="never told"):
        made.decode(begin, made.encode(state, given, stream())[1], given.rows, stream())
    with pytest.raises(WireError, match="is as before"):
        made.decode(state, payload, given.rows, stream())


# --- in an experiment


def test_codecs_are_offered_by_name() -> None:
    named = {o.name: o for o in offers.offers("codec")}
    assert set(named) == {"bf16", "delta", "fp16", "range_coder", "simplex", "topk", "uniform"}
    assert all(o.summary and o.signature for o in named.values())


REFUSED = {
    "two quantisers": ("dsfl", "codecs.up=[fp16, simplex]", "found a quantiser, then a quantiser"),
    "coded first": ("dsfl", "codecs.up=[range_coder, fp16]", "found a coder, then a quantiser"),
    "delta first": ("dsfl", "codecs.down=[delta, fp16]", "found delta, then a quantiser"),
    "coded twice": ("dsfl", "codecs.up=[range_coder, range_coder]", "each at most once"),
    "moving range": ("dsfl", "codecs.up=[uniform, delta]", "give it `scale: row`"),
    "wrong space": ("fedmd", "codecs.up=simplex", "codecs.up: its quantiser is for probs, and"),
    "wrong space down": ("fedmd", "codecs.down={name: topk, k: 2}", "codecs.down: its quantiser"),
    "own codec": ("scarlet", "codecs.down=fp16", "found a codec of its own in scarlet"),
    "weights": ("fedavg", "codecs.up=fp16", "fedavg sends none that way; leave codecs.up out"),
    "unknown": ("dsfl", "codecs.up=zip", "there is no codec called 'zip'"),
    "parameter": ("dsfl", "codecs.up={name: simplex, bits: 99}", "codecs.up.bits"),
    "place": ("dsfl", "codecs.up=[{name: simplex, bit: 3}, delta]", "codecs.up.0.bit"),
    "no link": ("dsfl", "codecs.up=fedkd.losses:kl", "should return Quantiser or Delta or Coder"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("codecs")
    small.plan(small.config("dsfl"), place)
    return place


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_coded_is_refused_before_anything_is_trained(
    name: str, prepared: Path
) -> None:
    method, override, says = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        rehearse(small.plan(small.config(method, override), prepared))
    assert says in str(refusal.value), refusal.value
    assert str(refusal.value).startswith(override.partition("=")[0]) and ";" in str(refusal.value)


UNDER: Mapping[str, tuple[object, object]] = {  # what is tried on every method: up, down
    "fp16": ("fp16", "bf16"),
    "lossless": (["delta", "range_coder"], ["range_coder"]),
    "uniform": (
        [{"name": "uniform", "bits": 5, "rounding": "stochastic", "scale": "row"}, "delta"],
        [{"name": "uniform", "bits": 4}, "range_coder"],
    ),
    "simplex": (["simplex", "delta", "range_coder"], [{"name": "simplex", "bits": 3}, "delta"]),
    "topk": ({"name": "topk", "k": 3}, {"name": "topk", "k": 2, "completion": "uniform"}),
}


def under(method: str, strategy: Strategy, pair: str, classes: int) -> Iterator[Strategy]:
    """The method under a pair of codecs, one way at a time, where it takes them."""
    for way, codecs in zip(("up", "down"), UNDER[pair], strict=True):
        name = method.partition("-")[0]  # a variant of a method, or one that has no file
        chosen = small.config(name if name in small.METHODS else "dsfl", codecs={way: codecs})
        try:
            yield linked(strategy, chosen, classes)
        except ConfigError as refusal:
            said = str(refusal)
            own = strategy.upload_codec if way == "up" else strategy.download_codec
            space = strategy.shares.answers
            silent = way == "down" and strategy.feedback == "none"
            assert own or silent or space is None or ("probs" in said and space != "probs"), said


@pytest.mark.parametrize("pair", UNDER)
@pytest.mark.parametrize("method", METHODS)
def test_under_every_method_payloads_are_the_formula_and_near_what_was_meant(
    method: str, pair: str
) -> None:
    """Two rounds of made-up answers that are all there; what goes up, and what comes down."""
    rows, classes = 24, 7
    traffic = Traffic(rows, classes, 0, rows)
    for strategy in under(method, METHODS[method], pair, classes):
        shares = strategy.shares
        shape = Shape(3, rows, classes)
        up = [strategy.upload_codec.init(shape) if strategy.upload_codec else {}] * 2
        down = [strategy.download_codec.init(shape) if strategy.download_codec else {}] * 2
        states = None
        for round_ in (1, 2):
            logits = predictions(
                3 * torch.randn(3, rows, classes, generator=stream(round_)),
                "logits",
                asked=torch.full((3,), round_),
            )
            if METHODS[method].upload_codec is None and strategy.upload_codec:
                sent = party(contract.uploaded(strategy, logits), 1)
                up, payload, found = delivered(strategy.upload_codec, up, sent)
                near(found, sent, UNDER[pair][0])
                # trust and mask that a client makes of its own data are not made up here
                less = "up" in shares.varying or strategy.annotate is not None
                held(payload, shares.uplink(traffic), less)
                assert set(found.extras or {}) <= shares.extras
            if METHODS[method].download_codec is None and strategy.download_codec:
                states, result, _ = contract.consensus(METHODS[method], logits, states)
                meant = party(result, 0)
                if strategy.feedback == "student":
                    meant = replace(
                        meant,
                        scores=logits.scores[:1],
                        space="logits",
                        trust=(meant.trust > 0).to(meant.trust),
                    )
                try:
                    down, payload, found = delivered(strategy.download_codec, down, meant)
                except ConfigError:  # the space of a consensus is known when there is one
                    assert meant.space != "probs" and pair in ("simplex", "topk")
                    continue
                near(found, meant, UNDER[pair][1])
                held(payload, shares.downlink(traffic), "down" in shares.varying)


def delivered(
    codec: Codec, ends: list[State], given: Predictions
) -> tuple[list[State], bytes, Predictions]:
    here, payload = codec.encode(ends[0], given, stream(7))
    there, found = codec.decode(ends[1], payload, given.rows, stream(8))
    same_state(here, there)
    return [here, there], payload, found


def held(payload: bytes, formula: int, at_most: bool) -> None:
    body = len(payload) - HEADER
    assert body <= formula if at_most else body == formula


def near(found: Predictions, meant: Predictions, codecs: object) -> None:
    assert found.space == meant.space and torch.equal(found.mask, meant.mask)
    name = codecs if isinstance(codecs, str) else codecs[0] if isinstance(codecs, list) else codecs
    kind = name if isinstance(name, str) else name["name"]  # type: ignore[index]
    wide = meant.scores.amax() - meant.scores.amin()
    off = (found.scores - meant.scores).abs().amax()
    match kind:
        case "delta" | "range_coder":
            assert torch.equal(found.scores, meant.scores)
        case "fp16" | "bf16":
            unit = 2**-11 if kind == "fp16" else 2**-8
            assert float(off) <= 2 * unit * float(meant.scores.abs().amax())
        case "uniform":
            assert float(off) <= 3 * float(wide) / 15
        case _:
            kept = found.scores.gather(-1, meant.scores.argmax(-1, keepdim=True)).squeeze(-1)
            assert torch.equal(kept, found.scores.amax(-1)), "the likeliest stays the likeliest"


RUNS = [("dsfl", pair) for pair in UNDER] + [
    ("kt_pfl", "simplex"), ("fedmd", "uniform"), ("scarlet", "fp16"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "pair"), RUNS)
def test_in_a_run_every_payload_holds_what_is_declared_in_the_bytes_of_the_formula(
    method: str, pair: str, prepared: Path, tmp_path: Path
) -> None:
    ways = ("up",) if method == "scarlet" else ("up", "down")
    codecs = {way: UNDER[pair][way == "down"] for way in ways}
    made = small.plan(small.config(method, codecs=codecs), prepared)
    (tmp_path / "data").symlink_to(prepared / "data")
    seen = small.InProcess()
    records = small.run(made.config, tmp_path, seen)
    up, down = Listener(made, "up"), Listener(made, "down")
    for kind, message, reply in seen.seen:
        if kind == "work":
            down.hear_task(message)
            up.hear_reply(message, reply)
    assert up.heard or not made.config.codecs.up
    assert down.heard or not made.config.codecs.down
    varying = made.strategy.shares.varying
    for record in records:
        expected = traffic(made, record["round"])._asdict()
        for way in ("up", "down"):
            if "caches" in made.strategy.shares.traits:
                continue
            found = record["bytes"][way]
            assert found <= expected[way] if way in varying else found == expected[way]


class Listener:
    """Decodes what goes one way with a mirror of each client's state, as the receiver would."""

    def __init__(self, plan: Plan, way: str) -> None:
        strategy = plan.strategy
        self.plan, self.way, self.heard = plan, way, 0
        self.codec = strategy.upload_codec if way == "up" else strategy.download_codec
        self.length = strategy.shares.uplink if way == "up" else strategy.shares.downlink
        self.states: dict[int, State] = {}
        self.shape = Shape(plan.clients, len(plan.public), plan.dataset.classes)
        self.on = bool(getattr(plan.config.codecs, way))

    def hear_task(self, message: bytes) -> None:
        head, blobs = wire.unpack(message)
        if not self.on or "distil" not in head["steps"]:
            return
        rows = rows_from(blobs[head["rows"]])
        for client in [c for s in head["stacks"] for c in s["clients"]]:
            place = head["downloads"].get(str(client), head["downloads"].get("-1"))
            self.read(client, blobs[place], rows)

    def hear_reply(self, message: bytes, reply: bytes) -> None:
        asked, parts = wire.unpack(message)
        head, blobs = wire.unpack(reply)
        for said in head["clients"]:
            if not self.on or "answer" not in asked["steps"]:
                continue
            rows = rows_from(parts[asked["rows"]])
            if asked["masks"] is not None:
                bits = torch.tensor(list(parts[asked["masks"][str(said["client"])]]))
                mask = (bits.unsqueeze(1) >> torch.arange(7, -1, -1) & 1).flatten().bool()
                rows = rows[mask[: len(rows)]]
            given = self.read(said["client"], blobs[said["payload"]], rows)
            check(self.plan, given, asked["round"], said["client"], rows)

    def read(self, client: int, payload: bytes, rows: Tensor) -> Predictions:
        assert self.codec is not None
        state = self.states.get(client) or self.codec.init(self.shape)
        self.states[client], given = self.codec.decode(state, payload, rows, stream())
        size = self.length(Traffic(len(rows), self.shape.classes, 0, len(rows)))
        found = len(payload) - HEADER
        assert bool(given.mask.all()), "in this world everybody answers what is asked"
        varying = self.way in self.plan.strategy.shares.varying
        assert found <= size if varying else found == size
        beside, code = wire.opened(payload, rows, self.shape.classes)
        assert set(given.extras or {}) <= self.plan.strategy.shares.extras
        assert payload == wire.encode(beside, coded=code), "a header, what is declared, the code"
        self.heard += 1
        return given


DRAWN = (
    "codecs.up=[{name: simplex, bits: 2, rounding: stochastic}, delta, range_coder]",
    "codecs.down=[{name: simplex, bits: 2, ties: random}, delta]",
)


def test_workers_and_their_order_change_no_bit(prepared: Path, tmp_path: Path) -> None:
    """With drawn rounding and differences both ways, among clients that come and go."""
    world = "world={name: partial, fraction: 0.5}"
    found = []
    for workers in (1, 3):
        place = tmp_path / str(workers)
        place.mkdir()
        (place / "data").symlink_to(prepared / "data")
        chosen = small.config("dsfl", *DRAWN, world, "rounds=3", f"execution.workers={workers}")
        small.run(chosen, place, small.InProcess(workers, random.Random(workers)))
        found.append(small.bits(place))
    assert found[0] == found[1]
    seeds = [small.config("dsfl", f"codecs.up={up}").fingerprint() for up in ("fp16", "bf16")]
    assert seeds[0] != seeds[1] != small.config("dsfl").fingerprint()


def test_a_run_goes_on_with_what_both_ends_remember(tmp_path: Path) -> None:
    """Killed in its fourth round, resumed in another process, to the same bytes."""
    chosen = resuming.experiment("scarlet", "strategy=dsfl", *DRAWN)
    whole = resuming.prepared(chosen, tmp_path / "whole")
    path = resuming.prepared(chosen, tmp_path / "run", whole)
    calls = resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    written = [i for i, call in enumerate(calls) if str(call) == "write timings.jsonl"]
    end = resuming.Failpoint(written[3], "torn")
    assert resuming.killed(path, end, lambda: resuming.carried_out(path))
    heard = resuming.resumed(path)
    assert heard.rounds == [4] and not heard.told("damage")
    assert small.bits(path) == small.bits(whole)


def test_the_plan_says_what_is_sent_at_most() -> None:
    def cost(*overrides: str) -> dict[str, str]:
        tables = dict(explain(small.config("dsfl", *overrides), small.Silent()))
        return {line[0]: line[1] for line in tables["Cost"]}

    fixed = cost("codecs.up={name: simplex, bits: 4}")
    each = HEADER + 80 * 9 * 4 // 8
    assert fixed["Bytes up, a round"].startswith(f"{6 * each:,} (")
    assert fixed["Codecs"] == "up simplex(bits=4)"
    bound = cost("codecs.up=[simplex, delta]", "codecs.down=range_coder")
    assert bound["Bytes up, a round"].startswith(f"at most {6 * (HEADER + 10 + 40):,} (")
    assert bound["Bytes down, a round"].startswith(f"at most {6 * (HEADER + 3201):,} (")
    assert "Codecs" not in cost()
