"""Lies worked by hand, the invariants T1 to T4, and an adversary that knows all answers of a round.

T1 to T4 are those of the project's list of properties of attacks.
"""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from fedkd import load_config, run
from fedkd.answers import narrow, spread
from fedkd.attacks import SURE, Attack, conspiracy, fixed_label, flip_labels
from fedkd.config import ConfigError, Named
from fedkd.plugins import build
from fedkd.rehearsal import rehearse
from fedkd.rng import stream
from fedkd.runtime.ray import session
from fedkd.transforms import mean, softmax
from fedkd.types import (
    Codec,
    Predictions,
    PrivateView,
    Release,
    Shares,
    Space,
    State,
    Strategy,
    World,
    as_they_are,
    identity,
    predictions,
)

LONE = ("flip", "random", "random_label", "same", "fdla", "pcfdla")
ONE_HOT = ("second_best", "lma", "cpa")
HIPS = ("hips_lma", "hips_cpa")
OMNISCIENT = (*ONE_HOT, *HIPS, "lie", "paf", "ofom")
RNG = Generator()


def world(how: str, fraction: float = 0.4, **params: object) -> World:
    """As a config has it made."""
    spec = Named(name="lying", how=how, fraction=fraction, **params)
    made = build("world", spec, expect=World, where="world")
    assert isinstance(made, World)
    return made


def told(how: str, answers: Predictions, liars: list[bool], seed: int = 0, **params: object) -> Any:
    """All answers [J, R, C] after the adversary has spoken."""
    conspire = world(how, **params).conspire
    assert conspire is not None
    return conspire(answers, torch.tensor(liars), stream(seed, 1, -1, "conspire")).scores


def alone(how: str, logits: list[float], **params: object) -> Tensor:
    """What one client says of one row."""
    step = world(how, 1.0, **params).upload(0, 1)
    given_ = predictions(torch.tensor([[logits]]), "logits")
    found: Tensor = step.apply({}, given_, stream(0, 1, 0, "fault")).result.scores[0, 0]
    return found


# two honest clients and a liar: their means are [.5, .3, .2] and [.1, .3, .6]
HONEST = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.2, 0.7]], [[0.4, 0.4, 0.2], [0.1, 0.4, 0.5]]])
ANSWERS = predictions(torch.cat([HONEST, torch.full((1, 2, 3), 1 / 3)]), "probs")
LIARS = [False, False, True]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("second_best", [[0, 1, 0], [0, 1, 0]]),
        ("lma", [[0, 0, 1], [1, 0, 0]]),
        # the covariance of the means' classes over the two rows: 0 falls as 2 rises, 1 stays
        ("cpa", [[0, 0, 1], [1, 0, 0]]),
    ],
)
def test_the_certain_lies_of_who_knows_all_by_hand(how: str, expected: list[list[float]]) -> None:
    found = told(how, ANSWERS, LIARS)
    assert found[2].tolist() == expected
    assert torch.equal(found[:2], HONEST)
    logits = told(how, replace(ANSWERS, scores=ANSWERS.scores.log(), space="logits"), LIARS)
    # the mean of probabilities is meant, in whatever space they come
    assert logits[2].tolist() == [[SURE * value for value in row] for row in expected]


def test_little_is_enough_by_hand() -> None:
    found = told("lie", ANSWERS, LIARS, z=1.5)[2]
    # row 0: [.5, .3, .2] + 1.5 [.1, .1, 0] = [.65, .45, .2], scaled by 1 / 1.3
    torch.testing.assert_close(found[0], torch.tensor([0.65, 0.45, 0.2]) / 1.3)
    torch.testing.assert_close(told("lie", ANSWERS, LIARS, z=0.0)[2], HONEST.mean(0))
    logits = replace(ANSWERS, space="logits")
    torch.testing.assert_close(told("lie", logits, LIARS)[2][0], torch.tensor([0.65, 0.45, 0.2]))


def test_hiding_in_plain_sight_by_hand() -> None:
    # row 0, a = 1/3: mixtures [.533, .267, .2] and [.467, .333, .2] of h = [.5, .3, .2]
    h, a = HONEST.mean(0).double(), 1 / 3
    loss = [-(h * ((1 - a) * h + a * HONEST[k].double()).log()).sum(-1)[0] for k in (0, 1)]
    worst = HONEST[0] if loss[0] > loss[1] else HONEST[1]
    assert float(loss[0]) == pytest.approx(-sum(
        x * math.log(y) for x, y in ((0.5, 8 / 15), (0.3, 4 / 15), (0.2, 0.2))
    ), abs=1e-6)  # fmt: skip
    assert torch.equal(told("hips_lma", ANSWERS, LIARS)[2][0], worst[0])
    # S[0] = [.04, 0, -.04]: client 0 says .6 and .2, client 1 says .4 and .2; S[2] = -S[0]
    assert torch.equal(told("hips_cpa", ANSWERS, LIARS)[2][0], HONEST[1, 0])
    assert torch.equal(told("hips_cpa", ANSWERS, LIARS)[2][1], HONEST[1, 1])


def test_one_far_one_mean_by_hand() -> None:
    logits = predictions(torch.cat([HONEST, torch.zeros(3, 2, 3)]), "logits")
    found = told("ofom", logits, [False, False, True, True, True], distance=4.0)
    far = told("paf", logits, [False, False, True, True, True], distance=4.0)[2]
    assert torch.equal(found[2], far) and torch.equal(found[3], found[4])
    torch.testing.assert_close(found[3], (HONEST.sum(0) + far) / 3)
    assert float((far - HONEST.mean(0)).norm()) > 1  # 4 sqrt(6) is expected


def test_what_a_lone_liar_says_by_hand() -> None:
    assert alone("fdla", [2.0, -1.0, 0.5]).tolist() == [-1.0, 2.0, 0.5]
    assert alone("same", [2.0, -1.0, 0.5], label=2).tolist() == [0, 0, SURE]
    assert sorted(alone("random_label", [2.0, -1.0, 0.5]).tolist()) == [0, 0, SURE]
    probs = alone("pcfdla", [math.log(0.7), math.log(0.1), math.log(0.2)], peak=0.6).softmax(-1)
    # 0.1 and 0.7 change places, 0.6 is the peak, and the others share 0.4 as 0.1 to 0.2
    torch.testing.assert_close(probs, torch.tensor([0.4 / 3, 0.6, 0.8 / 3]))
    assert alone("pcfdla", [2.0, -1.0, 0.5], peak=1.0).softmax(-1).argmax() == 1


def test_labels_are_flipped_or_a_pair_of_them() -> None:
    labels = torch.tensor([0, 1, 2, 3, 1])
    assert flip_labels()(labels, 4, RNG).tolist() == [3, 2, 1, 0, 2]
    assert flip_labels((1, 3))(labels, 4, RNG).tolist() == [0, 3, 2, 3, 3]
    made = world("labels", 0.5)
    believed = [made.labels(c, 6)(labels, 4, RNG).tolist() for c in range(6)]
    assert [c for c in range(6) if believed[c] != labels.tolist()] == sorted(made.liars(6))
    assert len(made.liars(6)) == 3


def test_random_labels_are_of_all_classes() -> None:
    step = world("random_label", 1.0).upload(0, 1)
    given_ = predictions(torch.zeros(1, 4000, 4), "logits")
    best = step.apply({}, given_, stream(0, 1, 0, "fault")).result.scores[0].argmax(-1)
    counts = best.bincount(minlength=4)
    assert bool(((counts - 1000).abs() < 4 * math.sqrt(4000 * 0.25 * 0.75)).all())


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Predictions, list[bool]]:
    """Soft labels of one to five clients, some of whom lie, with rows that nobody answers."""
    j, r, c = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    rng = Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale, missing = draw(st.sampled_from([0.0, 1.0, 1e6])), draw(st.sampled_from([0.0, 0.4, 1.0]))
    space: Space = draw(st.sampled_from(["probs", "logits", "log_probs"]))
    scores = scale * torch.randn(j, r, c, generator=rng)
    scores = {"probs": scores.softmax(-1), "log_probs": scores.log_softmax(-1)}.get(space, scores)
    mask = torch.rand(j, r, generator=rng) >= missing
    liars = draw(st.lists(st.booleans(), min_size=j, max_size=j))
    scores = scores.masked_fill(~mask.unsqueeze(-1), torch.nan)
    return predictions(scores, space, mask=mask), liars


def believed(answers: Predictions, liars: list[bool]) -> tuple[Tensor, Tensor]:
    """Where honest answers stand [J, R], and the mean of their probabilities [R, C]."""
    honest = answers.mask & ~torch.tensor(liars).unsqueeze(-1)
    honest = torch.where(honest.any(0), honest, answers.mask)
    probs = answers.scores if answers.space == "probs" else answers.scores.softmax(-1)
    there = honest.unsqueeze(-1)
    sums = torch.where(there, probs, 0).double().sum(0)
    return honest, sums / there.sum(0).clamp_min(1)


@pytest.mark.parametrize("how", OMNISCIENT)
@given(scenes(), st.sampled_from([1.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_t1_liars_stay_on_the_simplex(
    how: str, scene: tuple[Predictions, list[bool]], share: float
) -> None:
    """And change nobody's answer but their own, where they have answered, the same twice."""
    answers, liars = scene
    found = told(how, answers, liars, share_of_rows=share)
    again = told(how, answers, liars, share_of_rows=share)
    assert torch.equal(found.nan_to_num(), again.nan_to_num())
    lied = answers.mask & torch.tensor(liars).unsqueeze(-1)
    assert torch.equal(found[~lied].nan_to_num(), answers.scores[~lied].nan_to_num())
    assert found.dtype == torch.float32 and bool(torch.isfinite(found[lied]).all())
    if answers.space != "logits":
        probs = found[lied].double()
        probs = probs.exp() if answers.space == "log_probs" else probs
        assert bool((probs >= 0).all()) and bool(((probs.sum(-1) - 1).abs() < 1e-5).all())


@pytest.mark.parametrize("how", HIPS)
@given(scenes())
@settings(max_examples=25, deadline=None)
def test_t2_who_hides_says_what_an_honest_client_says(
    how: str, scene: tuple[Predictions, list[bool]]
) -> None:
    answers, liars = scene
    found, (honest, _) = told(how, answers, liars), believed(*scene)
    for j, r in (answers.mask & torch.tensor(liars).unsqueeze(-1)).nonzero().tolist():
        those = honest[:, r].nonzero()[:, 0].tolist()
        assert any(torch.equal(found[j, r], answers.scores[k, r]) for k in those)


@given(scenes())
@settings(max_examples=50, deadline=None)
def test_t3_the_worst_lie_is_never_what_the_honest_believe(
    scene: tuple[Predictions, list[bool]],
) -> None:
    answers, liars = scene
    found, (_, h) = told("lma", answers, liars), believed(*scene)
    for j, r in (answers.mask & torch.tensor(liars).unsqueeze(-1)).nonzero().tolist():
        best = found[j, r].argmax()
        assert float(h[r, best]) <= float(h[r].min()) + 1e-6
        if float(h[r].max() - h[r].min()) > 1e-6:
            assert best != h[r].argmax()


def test_t4_a_fraction_of_none_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    nobody = {"name": "lying", "how": "lma", "fraction": 0.0}
    small.run(small.config("entropy", "rounds=1", world=nobody), tmp_path / "none")
    small.run(small.config("entropy", "rounds=1", world="everyone"), tmp_path / "all")
    assert small.bits(tmp_path / "none") == small.bits(tmp_path / "all")


@pytest.mark.parametrize("how", [*LONE, *OMNISCIENT, "labels"])
def test_t4_a_fraction_of_none_is_a_world_without_lies(how: str) -> None:
    made = world(how, 0.0)
    assert made.conspire is None and made.liars(9) == frozenset()
    assert all(made.upload(c, 9) is identity for c in range(9))
    assert all(made.labels(c, 9) is as_they_are for c in range(9))


def test_a_conspiracy_of_nobody_gives_up_folding_and_no_bit(tmp_path: Path) -> None:
    small.run(small.config("entropy", world="test_attacks:silent_adversary"), tmp_path / "one")
    small.run(small.config("entropy"), tmp_path / "two")
    one, two = (small.bits(tmp_path / name) for name in ("one", "two"))
    (first, *_), plain = small.records(tmp_path / "one"), small.records(tmp_path / "two")
    assert first.pop("conspired") == [] and first == plain[0]
    assert {n: b for n, b in one.items() if n != "records.jsonl"} == {
        n: b for n, b in two.items() if n != "records.jsonl"
    }


def silent_adversary() -> World:
    """It would speak, had it anybody to speak for."""
    attack: Attack = lambda scene, rng: scene.probs  # noqa: E731
    return replace(world("lma", 0.0), conspire=conspiracy(attack))


def test_a_lie_takes_the_way_of_an_answer(tmp_path: Path) -> None:
    """It is coded, checked and counted like one, and the records name whose it is."""
    lies = {"name": "lying", "how": "lma", "fraction": 0.5}
    chosen = small.config("test_attacks:halved", "rounds=1", world=lies)
    (record,) = small.run(chosen, tmp_path)
    liars = sorted(world("lma", 0.5).liars(6))
    assert record["conspired"] == liars and len(liars) == 3
    # an honest answer about 80 rows takes 2 bytes a score, a certain one 1 byte a row
    assert record["bytes"]["up"] == 3 * (3 + 80 * 10 * 2) + 3 * (3 + 80)


def halved() -> Strategy:
    """Soft labels as half floats, certain ones as the class alone; three bytes say whose."""

    def encode(state: State, p: Predictions, rng: Generator) -> tuple[State, bytes]:
        certain = bool((p.scores.amax(-1) == 1).all())
        body = p.scores[0].argmax(-1).byte() if certain else p.scores[0].half()
        return state, bytes([certain, int(p.parties), int(p.asked)]) + body.numpy().tobytes()

    def decode(
        state: State, payload: bytes, rows: Tensor, rng: Generator
    ) -> tuple[State, Predictions]:
        certain, party, asked = payload[:3]
        body = bytearray(payload[3:])
        if certain:
            scores = torch.eye(10)[torch.frombuffer(body, dtype=torch.uint8).long()]
        else:
            scores = torch.frombuffer(body, dtype=torch.half).float().view(-1, 10)
            scores = scores / scores.sum(-1, keepdim=True)
        who, when = torch.tensor([party]), torch.tensor([asked])
        return state, predictions(scores[None], "probs", rows=rows, parties=who, asked=when)

    codec = Codec(lambda shape: {}, encode, decode)
    return Strategy(mean(), upload=softmax(), upload_codec=codec, shares=Shares(answers="probs"))


@pytest.mark.parametrize(
    ("strategy", "how", "says"),
    [
        ("fedavg", "lma", r"world: lying changes answers, and clients of fedavg send none"),
        ("fedavg", "flip", r"world: lying changes answers, and clients of fedavg send none"),
        ("odd_methods:remembering", "lma", r"the upload codec of .* remembers what was sent"),
    ],
)
def test_what_cannot_be_lied_about_is_refused(
    strategy: str, how: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        small.plan(small.config(strategy, world={"name": "lying", "how": how}), tmp_path)


def test_lies_that_a_run_would_trip_over_are_refused_before_it(tmp_path: Path) -> None:
    for params, says in (
        ({"how": "same", "label": 10}, r"lying.label: should be from 0 to 9, found 10"),
        ({"how": "labels", "pair": [3, 10]}, r"lying.pair: .* from 0 to 9, found \[3, 10\]"),
        ({"how": "labels", "pair": [3, 3]}, r"lying.pair: should be two different classes"),
    ):
        chosen = small.config("entropy", world={"name": "lying", "seed": 3, **params})
        with pytest.raises(ConfigError, match=says):
            rehearse(small.plan(chosen, tmp_path))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (
            {"how": "lma", "z": 1.0},
            r"lying.z: should be left out where how is lma, found 1.0",
        ),
        ({"how": "flip", "pair": [0, 1]}, r"lying.pair: should be left out where how is flip"),
        ({"how": "labels", "share_of_rows": 0.5}, r"lying.share_of_rows: .* how is labels"),
        ({"how": "pcfdla", "peak": 0.0}, r"world.peak: should be greater than 0"),
        ({"how": "lie", "z": -1.0}, r"world.z: should be greater than or equal to 0"),
    ],
)
def test_a_parameter_of_another_lie_is_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        world(**params)


@pytest.mark.parametrize("how", LONE)
def test_a_share_of_the_rows_is_lied_about(how: str) -> None:
    logits = torch.randn(1, 40, 3, generator=stream(0, 1, 0, "logits"))
    logits[..., 1] += 5  # so that no lie is the truth
    logits[..., 0] = -5
    params = {"label": 2} if how == "same" else {}
    step = world(how, 1.0, share_of_rows=0.25, **params).upload(0, 1)
    told_ = step.apply({}, predictions(logits, "logits"), stream(0, 1, 0, "fault")).result.scores
    assert int((told_ != logits).any(-1).sum()) == 10


def test_for_the_other_rows_conspirators_give_the_honest_mean() -> None:
    found = told("lma", ANSWERS, LIARS, share_of_rows=0.5)[2]
    lied = (found.amax(-1) == 1).tolist()
    assert sorted(lied) == [False, True]
    honest = lied.index(False)
    torch.testing.assert_close(found[honest], HONEST.mean(0)[honest])


def test_votes_stay_votes() -> None:
    votes = predictions(torch.eye(3)[torch.tensor([[0], [0], [1], [2]])], "votes")
    for how in OMNISCIENT:
        found = told(how, votes, [False, False, False, True])[3, 0]
        assert sorted(found.tolist()) == [0, 0, 1], how


def test_narrow_undoes_spread() -> None:
    asked = torch.tensor([[True, False, True, False, True]])
    part = predictions(torch.randn(1, 3, 2, generator=stream(0, 0, 0, "x")), "logits")
    part = replace(part, classes=torch.tensor([[[0, 1], [1, 0], [0, 2]]]))
    rows = torch.zeros(5, 3, dtype=torch.int64)
    rows[:, 1] = torch.arange(5)
    wide = spread(replace(part, rows=rows[asked[0]]), rows, asked, [0])
    found = narrow(wide, asked[0])
    assert wide.scores.shape == (1, 5, 2) and torch.equal(found.rows, rows[asked[0]])
    for name in ("scores", "mask", "trust", "classes"):
        assert torch.equal(getattr(found, name), getattr(part, name))


def masked_method() -> Strategy:
    """A client answers the rows on which it is surer than on half of them."""

    def annotate(own: PrivateView, model: Any, rows: Tensor, rng: Generator) -> Any:
        sure = model(rows).softmax(-1).amax(-1)
        return sure >= sure.median(), torch.ones(len(rows))

    told = (Release("which rows it is sure of, exact", "record", {}),)
    shares = Shares(answers="probs")
    return Strategy(
        mean(), annotate=annotate, annotate_releases=told, upload=softmax(), shares=shares
    )


@pytest.mark.parametrize("strategy", ["scarlet", "kt_pfl", "test_attacks:masked_method"])
def test_conspirators_meet_every_kind_of_question(strategy: str, tmp_path: Path) -> None:
    """Rows asked of some clients only, personal targets, rows that a client leaves out."""
    lies = {"name": "lying", "how": "hips_lma", "fraction": 0.4, "share_of_rows": 0.5}
    found = small.run(small.config(strategy, world=lies), tmp_path)
    assert [r["conspired"] for r in found] == [sorted(world("lma").liars(6))] * 2


ADVERSARY = {"name": "lying", "how": "cpa", "fraction": 0.4, "share_of_rows": 0.7}


def test_the_adversary_is_the_same_however_answers_come_in(tmp_path: Path) -> None:
    chosen = small.config({"name": "dsfl", "rows": 50}, world=ADVERSARY)
    small.run(chosen, tmp_path / "one")
    small.run(chosen, tmp_path / "other", small.InProcess(3, random.Random(1)))
    assert small.bits(tmp_path / "one") == small.bits(tmp_path / "other")
    assert [r["conspired"] for r in small.records(tmp_path / "one")] == [[2, 5]] * 2


@pytest.mark.slow
def test_the_adversary_is_the_same_on_every_runtime(tmp_path: Path) -> None:
    def done(runtime: str, workers: int) -> dict[str, bytes]:
        wanted = {"runtime": runtime, "workers": workers, "out": tmp_path / runtime}
        overrides = [f"execution.{name}={value}" for name, value in wanted.items()]
        return small.bits(run(small.config("dsfl", *overrides, world=ADVERSARY)).folder)

    with session(load_config("digits", ["execution.workers=2"]).execution):
        assert done("ray", 2) == done("local", 1)


@pytest.mark.parametrize("how", OMNISCIENT)
@given(st.integers(2, 6), st.integers(0, 2**32), st.data())
@settings(max_examples=20, deadline=None)
def test_g9_a_share_of_liars_moves_the_mean_of_probabilities_by_no_more_than_that(
    how: str, j: int, seed: int, data: st.DataObject
) -> None:
    """||q - q_honest||_2 <= a sqrt(2) and ||.||_1 <= 2 a."""
    count = data.draw(st.integers(1, j - 1))
    rng = Generator().manual_seed(seed)
    answers = predictions((3 * torch.randn(j, 4, 5, generator=rng)).softmax(-1), "probs")
    found = told(how, answers, [k < count for k in range(j)])
    moved = (found.mean(0) - answers.scores[count:].mean(0)).double()
    assert bool((moved.norm(dim=-1) <= count / j * 2**0.5 + 1e-5).all())
    assert bool((moved.abs().sum(-1) <= 2 * count / j + 1e-5).all())
    if how in HIPS:  # and it stays between the honest ones
        assert bool((found.mean(0) <= answers.scores[count:].amax(0) + 1e-6).all())


def test_lies_hurt_more_the_more_liars_there_are() -> None:
    """The share of rows on which the mean still has the honest class falls from all to none."""
    rng = stream(3, 0, 0, "hurt")
    sure = 6 * torch.nn.functional.one_hot(torch.randint(4, (200,), generator=rng), 4)
    logits = sure + torch.randn(10, 200, 4, generator=rng)
    answers = predictions(logits.softmax(-1), "probs")
    kept = []
    for count in (1, 3, 5, 7):
        liars = [k < count for k in range(10)]
        found = told("lma", answers, liars).mean(0).argmax(-1)
        kept.append(float((found == sure.argmax(-1)).double().mean()))
    assert kept[0] == 1 and kept[-1] == 0 and kept == sorted(kept, reverse=True)
    hidden = told("hips_lma", answers, [k < 5 for k in range(10)]).mean(0).argmax(-1)
    assert float((hidden == sure.argmax(-1)).double().mean()) > kept[2]


def test_fixed_labels_need_no_second_class() -> None:
    one = torch.zeros(1, 1, 1)
    assert fixed_label()(one, torch.ones(1, 1).bool(), RNG).tolist() == [[[SURE]]]
    assert told("second_best", predictions(torch.ones(2, 1, 1), "probs"), [False, True]).all()
