"""Worlds: who takes part and who learns, what goes wrong, and how long it takes."""

import fractions
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.answers import check
from fedkd.client import private_pool
from fedkd.config import ConfigError, Named
from fedkd.plugins import build
from fedkd.rehearsal import rehearse
from fedkd.rng import SERVER, SETUP, stream
from fedkd.transforms import Total, mean
from fedkd.types import (
    Effort,
    Predictions,
    Relabel,
    Shape,
    World,
    as_they_are,
    identity,
    predictions,
)
from fedkd.wire import HEADER_BYTES
from simulations.dropout import dropout
from simulations.everyone import everyone
from simulations.flaky import flaky
from simulations.frozen_teachers import frozen_teachers
from simulations.label_spaces import label_spaces
from simulations.lying import lying
from simulations.noisy_labels import noisy_labels
from simulations.partial import partial
from simulations.stragglers import Device, stragglers


def test_everyone_is_everyone() -> None:
    world = everyone()
    assert list(world.participants(3, 5, torch.Generator())) == [0, 1, 2, 3, 4]
    assert world.learns(4, 99) and world.upload(4, 5) is identity


@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_part_is_ascending_of_the_stated_size_and_never_empty(
    clients: int, fraction: float, seed: int
) -> None:
    chosen = list(partial(fraction).participants(1, clients, torch.Generator().manual_seed(seed)))
    assert len(chosen) == max(1, round(fraction * clients))
    assert chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < clients
    assert all(type(c) is int for c in chosen)


def test_parts_are_drawn_from_the_generator() -> None:
    draws = [
        tuple(partial(0.3).participants(t, 20, stream(1, t, SERVER, "participants")))
        for t in (1, 1, 2, 3)
    ]
    assert draws[0] == draws[1] and len(set(draws)) == 3
    # a fair draw of 6 out of 20 leaves nobody out for 60 rounds
    seen = {
        c
        for t in range(60)
        for c in partial(0.3).participants(t, 20, stream(1, t, SERVER, "participants"))
    }
    assert seen == set(range(20))


def test_frozen_teachers_learn_at_first_and_answer_always() -> None:
    world = frozen_teachers(until=2)
    assert [world.learns(0, t) for t in (1, 2, 3)] == [True, True, False]
    assert list(world.participants(3, 4, torch.Generator())) == [0, 1, 2, 3]
    assert not frozen_teachers().learns(0, 2)


FILES = sorted(p.stem for p in Path(__file__).parents[1].joinpath("simulations").glob("[a-z]*.py"))
EFFORT = Effort(multiply_adds=3e9, down=40_000, up=10_000)


def world(name: str, **params: object) -> World:
    """As a config has it made: the parameters are read as JSON and checked."""
    made = build("world", Named(name=name, **params), expect=World, where="world")
    assert isinstance(made, World)
    return made


def far_from(successes: int, trials: int, rate: float) -> float:
    """Standard errors between a binomial count and what the rate makes expect."""
    return abs(successes - trials * rate) / math.sqrt(trials * rate * (1 - rate))


def holds_rate(successes: int, trials: int, rate: float) -> None:
    """The right rate is accepted, two thirds and three halves of it are not."""
    assert far_from(successes, trials, rate) < 4
    assert all(far_from(successes, trials, wrong * rate) > 6 for wrong in (2 / 3, 3 / 2))


def test_all_worlds_are_found() -> None:
    assert set(FILES) >= {"dropout", "everyone", "flaky", "frozen_teachers", "label_spaces",
                          "lying", "noisy_labels", "partial", "stragglers"}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@given(st.integers(1, 60), st.integers(1, 500), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_every_world_keeps_the_contract(name: str, clients: int, round_: int, seed: int) -> None:
    """Made twice and asked out of order, it says the same from the same generator."""

    def said(order: Sequence[int]) -> tuple[list[int], dict[int, tuple[object, ...]]]:
        made = world(name)
        present = list(made.participants(round_, clients, stream(seed, round_, SERVER, "who")))
        each = {}
        for c in order:
            seconds = None
            if made.seconds is not None:
                seconds = made.seconds(c, round_, EFFORT, stream(seed, round_, c, "seconds"))
                assert type(seconds) is float and seconds >= 0
            stays = made.stays(c, round_, stream(seed, round_, c, "stays"))
            assert type(stays) is bool
            logits = torch.randn(1, 3, 4, generator=stream(seed, round_, c, "logits"))
            step = made.upload(c, clients)
            given_ = predictions(logits, "logits", parties=torch.tensor([c]))
            kept = given_.scores.clone()
            state = step.init(Shape(clients, 3, 4))
            told = step.apply(state, given_, stream(seed, round_, c, "fault"))
            assert torch.equal(given_.scores, kept) and told.state == state == {}
            assert told.result.space == "logits" and told.result.parties.tolist() == [c]
            assert bool(torch.isfinite(told.result.scores).all())
            numbers = tuple(told.result.scores.flatten().tolist())
            labels = torch.arange(12) % 4
            wrong = made.labels(c, clients)(labels, 4, stream(seed, SETUP, c, "labels"))
            assert torch.equal(labels, torch.arange(12) % 4) and wrong.dtype == labels.dtype
            assert wrong.shape == labels.shape and 0 <= int(wrong.min()) <= int(wrong.max()) < 4
            each[c] = (seconds, stays, made.learns(c, round_), numbers, tuple(wrong.tolist()))
        assert made.deadline is None or made.deadline > 0
        assert made.liars(clients) <= set(range(clients))
        return present, each

    present, each = said(range(clients))
    assert present == sorted(set(present)) and present[0] >= 0 and present[-1] < clients
    assert (present, each) == said(range(clients)[::-1])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_who_drops_out_is_drawn_at_the_stated_rate_for_each_round_and_client(rate: float) -> None:
    gone = dropout(rate)
    lost = torch.tensor(
        [[not gone.stays(c, t, stream(0, t, c, "stays")) for c in range(100)] for t in range(40)]
    )
    holds_rate(int(lost.sum()), lost.numel(), rate)
    # neither a client nor a round is struck as a whole
    both = int((lost[1:] & lost[:-1]).sum())
    assert far_from(both, lost[1:].numel(), rate**2) < 4
    assert bool(lost.any(0).sum() > 95) and bool(lost.any(1).all())
    assert all(gone.learns(c, 1) and gone.upload(c, 9) is identity for c in range(9))


def test_a_certain_drop_out_leaves_nobody() -> None:
    assert not any(dropout(1.0).stays(c, 1, stream(0, 1, c, "stays")) for c in range(200))


def test_seconds_worked_by_hand() -> None:
    # 0.5 s, 3e9 / 1e9 = 3 s of work, 320,000 bit / 2e6 = 0.16 s down, 80,000 / 1e5 = 0.8 s up
    made = world(
        "stragglers",
        devices=[{"speed": 1000000000, "down": 2e6, "up": 1e5, "latency": 0.5}],
        deadline=4.0,
    )
    assert made.seconds is not None and made.deadline == 4.0
    assert made.seconds(0, 1, EFFORT, torch.Generator()) == pytest.approx(4.46, abs=1e-12)
    assert made.seconds(0, 1, Effort(0, 0, 0), torch.Generator()) == 0.5


KINDS = (Device(1.0, 1.0, 1.0, share=1), Device(0.5, 1.0, 1.0, share=3))


def of_kind(seed: int, clients: int = 2000, shares: tuple[float, float] = (1, 3)) -> Tensor:
    """True where a client has the second of two devices, which takes 2 seconds and not 1."""
    kinds = tuple(d._replace(share=s) for d, s in zip(KINDS, shares, strict=True))
    seconds = stragglers(kinds, seed=seed).seconds
    assert seconds is not None
    one, two = (
        [seconds(c, t, Effort(1.0, 0, 0), stream(9, t, c, "s")) for c in range(clients)]
        for t in (1, 2)
    )
    assert one == two  # a device is for good
    return torch.tensor(one) == 2


def test_devices_are_as_common_as_their_shares_and_independent_of_the_architecture() -> None:
    second = of_kind(seed=5)
    assert (
        far_from(int(second.sum()), 2000, 0.75) < 4 and far_from(int(second.sum()), 2000, 0.5) > 6
    )
    for period in (2, 3, 4):  # architectures go by the id
        for first in range(period):
            mine = second[first::period]
            assert far_from(int(mine.sum()), len(mine), 0.75) < 4
    assert torch.equal(second, of_kind(seed=5, shares=(10, 30)))  # shares are relative
    other = of_kind(seed=6)
    # two independent draws agree with 0.75 ** 2 + 0.25 ** 2
    assert far_from(int((second == other).sum()), 2000, 0.625) < 4


def test_jitter_is_lognormal_about_the_plain_time() -> None:
    def logs(jitter: float) -> Tensor:
        seconds = stragglers(KINDS[:1], jitter=jitter).seconds
        assert seconds is not None
        took = [seconds(0, t, Effort(7.0, 0, 0), stream(1, t, 0, "s")) for t in range(2000)]
        return (torch.tensor(took, dtype=torch.float64) / 7).log()

    assert not logs(0.0).any()
    found = logs(0.4)
    assert abs(float(found.mean())) < 4 * 0.4 / math.sqrt(2000)
    assert float(found.std()) == pytest.approx(0.4, rel=4 / math.sqrt(2 * 2000))


@given(st.floats(0, 1e15), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 10**6))
@settings(deadline=None)
def test_more_work_and_more_bytes_never_take_less_time(
    work: float, down: int, up: int, client: int
) -> None:
    seconds = stragglers().seconds
    assert seconds is not None

    def took(effort: Effort) -> float:
        return seconds(client, 1, effort, torch.Generator())

    least = took(Effort(work, down, up))
    assert 0 < least < math.inf
    for more in (
        Effort(2 * work, down, up),
        Effort(work, 2 * down, up),
        Effort(work, down, 2 * up),
    ):
        assert took(more) >= least


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("stragglers", {"devices": []}, r"stragglers.devices: should name one device .* add one"),
        ("stragglers", {"devices": [{"speed": 1, "down": 1}]},
         r"world.devices.0.up: field required"),
        ("stragglers", {"devices": [{"speed": 0, "down": 1, "up": 1}]},
         r"world.devices.0.speed: should be greater than 0, found 0"),
        ("stragglers", {"devices": [{"speed": 1, "down": 1, "up": 1, "latence": 1}]},
         r"world.devices.0.latence: extra inputs are not permitted"),
        ("stragglers", {"deadline": 0}, r"world.deadline: should be greater than 0"),
        ("stragglers", {"jitter": -1}, r"world.jitter: should be greater than or equal to 0"),
        ("dropout", {"rate": 1.1}, r"world.rate: should be less than or equal to 1"),
        ("flaky", {"fraction": 0}, r"world.fraction: should be greater than 0"),
        ("lying", {"how": "wildly"}, r"world.how: should be 'labels', .* 'ofom', found 'wildly'"),
    ],
)  # fmt: skip
def test_what_a_world_does_not_take(name: str, params: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        world(name, **params)


def unreliable(made: World, clients: int, rounds: int = 30) -> list[int]:
    """Who has lost an answer in one of so many rounds."""
    seconds = made.seconds
    assert seconds is not None
    return [
        c
        for c in range(clients)
        if any(seconds(c, t, EFFORT, stream(2, t, c, "s")) == math.inf for t in range(rounds))
    ]


@given(st.sampled_from([0.07, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.8, 0.9, 1.0]), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_of_any_number_of_clients_the_stated_fraction_is_flaky(fraction: float, seed: int) -> None:
    chosen = unreliable(flaky(fraction, rate=1.0, seed=seed), 100, rounds=1)
    exact = fractions.Fraction(str(fraction))
    for clients in range(1, 101):
        found, wanted = sum(c < clients for c in chosen), exact * clients
        assert found == wanted if wanted.denominator == 1 else found - math.floor(wanted) in (0, 1)


def test_flaky_clients_are_of_every_architecture_and_lose_answers_at_the_stated_rate() -> None:
    made = flaky(0.5, rate=0.4, seed=3)
    chosen = unreliable(made, 400)
    assert len(chosen) == 200
    assert far_from(sum(c % 2 for c in chosen), 200, 0.5) < 4  # 0 or 200, were they spaced evenly
    assert chosen != unreliable(flaky(0.5, rate=0.4, seed=4), 400)
    assert made.seconds is not None and made.deadline is None
    lost = [made.seconds(c, t, EFFORT, stream(1, t, c, "s")) for c in chosen for t in range(30)]
    assert set(lost) == {0.0, math.inf}
    holds_rate(lost.count(math.inf), len(lost), 0.4)


def test_one_of_very_many_may_be_flaky() -> None:
    assert unreliable(flaky(1e-300, rate=1.0), 50, rounds=1) == []


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_stated_number_of_clients_lies(clients: int, fraction: float, seed: int) -> None:
    made = lying(fraction, seed=seed)
    liars = [c for c in range(clients) if made.upload(c, clients) is not identity]
    assert len(liars) == max(1, round(fraction * clients))
    again = lying(fraction, how="same", seed=seed)
    assert liars == [c for c in range(clients) if again.upload(c, clients) is not identity]


def test_liars_are_drawn_from_the_seed() -> None:
    def liars(seed: int) -> tuple[int, ...]:
        upload = lying(0.5, seed=seed).upload
        return tuple(c for c in range(20) if upload(c, 20) is not identity)

    sets = [liars(seed) for seed in range(100)]
    assert len(set(sets)) > 95
    counts = [sum(c in chosen for chosen in sets) for c in range(20)]
    assert all(far_from(n, 100, 0.5) < 4.5 for n in counts)


def lie(how: Literal["flip", "random", "same"], told: Predictions, seed: int = 0) -> Predictions:
    step = lying(1.0, how).upload(0, 1)
    return step.apply({}, told, stream(seed, 1, 0, "fault")).result


def test_lies_worked_by_hand() -> None:
    told = predictions(torch.tensor([[[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]]), "logits")
    assert lie("flip", told).scores.tolist() == [[[-2.0, 1.0, -0.5], [0.0, -3.0, -1.0]]]
    assert lie("same", told).scores.tolist() == [[[20.0, 0, 0], [20.0, 0, 0]]]
    wide = predictions(torch.zeros(1, 1, 1000), "logits")
    assert float(lie("same", wide).scores.softmax(-1)[0, 0, 0]) > 1 - 3e-6


def test_random_lies_have_the_spread_of_the_truth_and_nothing_else_of_it() -> None:
    scores = 3 * torch.randn(1, 2000, 10, generator=stream(1, 1, 0, "truth")) + 50
    mask = torch.arange(2000).view(1, -1) % 4 != 0
    told = predictions(scores.masked_fill(~mask.unsqueeze(-1), torch.nan), "logits", mask=mask)
    found = lie("random", told)
    assert torch.equal(found.mask, mask) and bool(torch.isfinite(found.scores).all())
    # about the mean of each row of ten the spread is sqrt(9/10) of 3
    spread, error = 3 * math.sqrt(0.9), 4 / math.sqrt(2 * 15_000)
    assert float(found.scores.std()) == pytest.approx(spread, rel=2 * error)
    assert all(
        abs(float(found.scores.std()) / (w * spread) - 1) > 6 * error for w in (2 / 3, 3 / 2)
    )
    assert abs(float(found.scores.mean())) < 4 * spread / math.sqrt(20_000)
    pair = torch.stack([found.scores[mask].flatten(), scores[mask].flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(15_000)
    assert not torch.equal(found.scores, lie("random", told, seed=1).scores)
    silent = replace(told, mask=torch.zeros_like(mask))
    assert not lie("random", silent).scores.any()


@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_lie_changes_scores_and_nothing_else(j: int, r: int, c: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    told = predictions(
        torch.randn(j, r, c, generator=rng),
        "logits",
        mask=torch.rand(j, r, generator=rng) < 0.5,
        trust=torch.rand(j, r, generator=rng),
    )
    for how in ("flip", "random", "same"):
        found = lie(how, told, seed)  # type: ignore[arg-type]
        assert replace(found, scores=told.scores) == told
        assert torch.equal(found.scores, lie(how, told, seed).scores)  # type: ignore[arg-type]
        if r and c > 1 and how == "flip":
            assert torch.equal(lie("flip", found).scores, told.scores)


def test_a_lie_is_told_about_logits() -> None:
    with pytest.raises(ValueError, match="lying: works on logits, found probs"):
        lie("flip", predictions(torch.ones(1, 1, 1), "probs"))


@given(st.integers(0, 200), st.floats(0, 1), st.integers(2, 9), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_stated_share_of_labels_is_wrong(
    count: int, share: float, classes: int, seed: int
) -> None:
    labels = torch.randint(classes, (count,), generator=stream(seed, 0, 0, "y"))
    for kind in ("symmetric", "pair"):
        relabel = noisy_labels(share, kind).labels(0, 1)  # type: ignore[arg-type]
        found = relabel(labels, classes, stream(seed, 0, 0, "labels"))
        changed = found != labels
        assert int(changed.sum()) == round(share * count)
        if kind == "pair":
            assert torch.equal(found[changed], (labels[changed] + 1) % classes)


def test_symmetric_noise_is_alike_for_all_other_classes() -> None:
    labels = torch.full((6000,), 2)
    found = noisy_labels(1.0).labels(0, 1)(labels, 4, stream(5, 0, 0, "labels"))
    counts = found.bincount(minlength=4).tolist()
    assert counts[2] == 0 and all(far_from(counts[c], 6000, 1 / 3) < 4 for c in (0, 1, 3))


def test_of_the_clients_the_stated_fraction_has_wrong_labels() -> None:
    def struck(fraction: float, clients: int, seed: int = 0) -> list[int]:
        made = noisy_labels(0.5, fraction=fraction, seed=seed)
        return [c for c in range(clients) if made.labels(c, clients) is not as_they_are]

    assert struck(1.0, 7) == list(range(7)) and len(struck(0.1, 3)) == 1
    assert len(struck(1 / 3, 3)) == 1 and len(struck(0.4, 10)) == 4
    assert len({tuple(struck(0.5, 20, seed)) for seed in range(20)}) > 15


def test_wrong_labels_are_learnt_by_clients_and_yardsticks_and_measure_nothing(
    tmp_path: Path,
) -> None:
    noisy = {"name": "noisy_labels", "share": 0.5, "fraction": 0.5}
    made = small.plan(small.config("entropy", world=noisy), tmp_path)
    right = small.plan(small.config("entropy"), tmp_path)
    every = [range(made.clients), [4], [2, 5]]
    for clients in every:
        pool, own = private_pool(made, clients)
        plain, _ = private_pool(right, clients)
        assert pool.labels is not None and plain.labels is not None
        for client, rows in zip(clients, own, strict=True):
            wrong = pool.labels[rows] != plain.labels[rows]
            struck = made.world.labels(client, 6) is not as_they_are
            assert int(wrong.sum()) == (round(0.5 * len(rows)) if struck else 0)
            assert torch.equal(pool.labels[rows], made.private_labels(client))  # the same each time
    assert (made.dataset.histogram == right.dataset.histogram).all()
    assert torch.equal(made.test_labels, right.test_labels)
    other = small.plan(small.config("entropy", "seed=4", "data.seed=3", world=noisy), tmp_path)
    assert all(torch.equal(other.private_labels(c), made.private_labels(c)) for c in range(6))


@pytest.mark.parametrize(
    ("relabel", "says"),
    [
        (lambda y, classes, rng: y[1:], r"labels: \d+ of int64 expected"),
        (lambda y, classes, rng: y.float(), r"labels: \d+ of int64 expected, .* of torch.float32"),
        (lambda y, classes, rng: y + classes, r"labels: should be from 0 to 9, found others"),
    ],
)
def test_labels_that_are_none_are_refused(relabel: Relabel, says: str, tmp_path: Path) -> None:
    made = small.plan(small.config("entropy"), tmp_path)
    odd = replace(made, world=replace(made.world, labels=lambda client, clients: relabel))
    with pytest.raises(ConfigError, match=rf"world: everyone should work .* found {says}"):
        rehearse(odd)


def test_who_knows_which_classes() -> None:
    counts = torch.tensor([0, 5, 2, 0, 1])
    for least, known in ((1, [1, 2, 4]), (2, [1, 2]), (5, [1]), (50, [1])):
        knows = label_spaces(least).knows
        assert knows is not None and knows(counts).nonzero()[:, 0].tolist() == known


def of_own_classes(ids: list[int], scores: list[list[float]], party: int) -> Predictions:
    return predictions(
        torch.tensor([scores]),
        "probs",
        parties=torch.tensor([party]),
        classes=torch.tensor([[ids]]),
    )


def test_a_class_is_the_affair_of_those_who_know_it() -> None:
    total = Total(mean(), 4)
    total.add(of_own_classes([0, 2], [[0.75, 0.25], [0.5, 0.5]], 0))
    total.add(of_own_classes([2, 1], [[1.0, 0.0], [0.25, 0.75]], 1))
    found = total.consensus()
    # row 0: 0.75 of one, 0 of one, (0.25 + 1) / 2 of two, and nobody knows the last
    expected = torch.tensor([[0.75, 0.0, 0.625, 0.0], [0.5, 0.75, 0.375, 0.0]])
    torch.testing.assert_close(found.scores[0], expected / expected.sum(-1, keepdim=True))
    assert found.classes is None and found.mask.all()


def test_of_logits_what_nobody_knows_is_the_least_likely() -> None:
    total = Total(mean(), 3)
    total.add(replace(of_own_classes([0, 2], [[2.0, -5.0]], 0), space="logits"))
    total.add(replace(of_own_classes([0], [[4.0]], 1), space="logits"))
    assert total.consensus().scores.tolist() == [[[3.0, -5.0, -5.0]]]
    with pytest.raises(ValueError, match="where it is known how many classes there are"):
        Total(mean()).add(of_own_classes([0], [[1.0]], 0))


@given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_classes_that_all_know_in_any_order_are_no_news(j: int, c: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(j, 3, c, generator=rng).softmax(-1)
    mask = torch.rand(j, 3, generator=rng) < 0.7
    plain, own = Total(mean()), Total(mean(), c)
    for k in range(j):
        order = torch.randperm(c, generator=rng)
        given_ = predictions(scores[k : k + 1], "probs", mask=mask[k : k + 1],
                             parties=torch.tensor([k]))  # fmt: skip
        plain.add(given_)
        own.add(replace(given_, scores=given_.scores[..., order], classes=order.view(1, 1, -1)))
    assert torch.equal(plain.consensus().scores, own.consensus().scores)
    assert torch.equal(plain.consensus().mask, own.consensus().mask)


SHARDS = {
    **small.EXPERIMENT["data"],
    "partition": {"name": "pathological", "classes_per_client": 3},
}


@pytest.mark.parametrize("strategy", ["entropy", "fedmd"])
def test_who_knows_three_classes_sends_three_columns(strategy: str, tmp_path: Path) -> None:
    chosen = small.config(strategy, "rounds=1", data=SHARDS, world="label_spaces")
    (record,) = small.run(chosen, tmp_path)
    assert record["bytes"]["up"] == 6 * (HEADER_BYTES + 4 + 3 * 4 + 80 * 3 * 4)
    assert record["ensemble"]["test"] > 0.15 and record["rows"]["dropped"] == 0


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("fedavg", "world: label_spaces changes answers, and clients of fedavg send none"),
        ("kt_pfl", "kt_pfl needs the answers of all about all classes"),
    ],
)
def test_own_classes_are_for_weighted_means(strategy: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        small.plan(small.config(strategy, world="label_spaces"), tmp_path)


def test_a_class_that_is_answered_twice_is_refused(tmp_path: Path) -> None:
    made = small.plan(small.config("entropy", world="label_spaces"), tmp_path)
    given_ = replace(of_own_classes([3, 3], [[0.5, 0.5]], 0), asked=torch.tensor([1]))
    with pytest.raises(ValueError, match="classes: should come once each in a row"):
        check(made, given_, 1, 0, given_.rows)
