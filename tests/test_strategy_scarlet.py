"""SCARLET's invariants S1 to S9: the sharpening, the cache, and the mirrors of the clients."""

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.contract import consensus, stream
from fedkd.transforms import combine, mean
from fedkd.types import CONSENSUS, Predictions, Shape, State, Strategy, Traffic, predictions
from fedkd.wire import HEADER_BYTES, WireError, decode, encode
from strategies.scarlet import _packed, _unpacked, scarlet

CLASSES = 3


def rows_of(*positions: int) -> Tensor:
    rows = torch.zeros(len(positions), 3, dtype=torch.int64)
    rows[:, 1] = torch.tensor(positions)
    return rows


def labels(*firsts: float) -> Tensor:
    """Soft labels [R, 2] from the probability of class 0."""
    return torch.tensor([[p, 1 - p] for p in firsts])


def arrive(
    strategy: Strategy,
    cache: State,
    round_: int,
    rows: Tensor,
    probs: Tensor,
    mask: Tensor | None = None,
) -> tuple[State, Predictions, dict[str, float]]:
    """One round of the cache, `probs` [R, C] being the mean of what the clients said."""
    joint = predictions(
        probs.unsqueeze(0),
        "probs",
        mask=None if mask is None else mask.unsqueeze(0),
        rows=rows,
        parties=torch.tensor([CONSENSUS]),
        asked=torch.tensor([round_]),
    )
    after = strategy.finish.apply(cache, joint, stream())
    return after.state, after.result, {k: float(v) for k, v in after.facts.items()}


def sharpened(beta: float, probs: Tensor) -> Tensor:
    strategy = scarlet(beta=beta)
    shape = Shape(1, len(probs), probs.shape[1])
    rows = rows_of(*range(len(probs)))
    return arrive(strategy, strategy.finish.init(shape), 1, rows, probs)[1].scores[0]


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_s1_beta_one_is_the_plain_mean_bit_for_bit(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = predictions(torch.randn(3, 4, 5, generator=rng), "logits", asked=torch.ones(3).long())
    plain = combine(mean(), {}, predictions(logits.scores.softmax(-1), "probs"), stream()).result
    assert torch.equal(consensus(scarlet(beta=1.0), logits).result.scores, plain.scores)


def test_s2_a_large_beta_is_the_argmax() -> None:
    found = sharpened(1e4, torch.tensor([[0.4, 0.35, 0.25], [0.01, 0.01, 0.98]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


def test_s3_worked_example() -> None:
    found = sharpened(2.0, torch.tensor([[0.7, 0.2, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([[0.9074, 0.0741, 0.0185]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0])
def test_s4_s5_an_impossible_class_stays_so_and_changes_nothing(beta: float) -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1]])
    wider = torch.cat([probs, torch.zeros(1, 1)], -1)
    found = sharpened(beta, wider)
    assert found[0, 3] == 0
    torch.testing.assert_close(found[:, :3], sharpened(beta, probs))


def test_s6_without_duration_there_is_no_cache() -> None:
    strategy, plain = scarlet(duration=0), scarlet()
    cache = strategy.finish.init(Shape(1, 6, 2))
    rows = rows_of(0, 2, 5)
    for round_ in range(1, 8):
        ask = strategy.request(cache, round_, rows, [0], stream())
        assert ask.mask is not None and bool(ask.mask.all())
        probs = torch.rand(3, 2, generator=stream(round_)).softmax(-1)
        cache, found, _ = arrive(strategy, cache, round_, rows, probs)
        fresh = arrive(plain, plain.finish.init(Shape(1, 6, 2)), round_, rows, probs)[1]
        assert torch.equal(found.scores[:, :3], fresh.scores[:, :3])


@pytest.mark.parametrize("restore", [False, True])
def test_the_life_of_an_entry_worked_by_hand(restore: bool) -> None:
    strategy = scarlet(beta=1.0, rows=None, duration=2, restore=restore)
    cache = strategy.finish.init(Shape(1, 3, 2))
    rows = rows_of(0, 1)

    def asked(round_: int) -> list[bool]:
        mask = strategy.request(cache, round_, rows, [4, 7], stream()).mask
        assert mask is not None and torch.equal(mask[0], mask[1])
        return [bool(m) for m in mask[0]]

    assert asked(1) == [True, True]
    cache, found, facts = arrive(strategy, cache, 1, rows, labels(0.9, 0.8))
    assert facts == {"cached": 0.0, "newly_cached": 2.0, "sent_once": 0.0}
    assert cache["stamp"].tolist() == [1, 1, 0]

    assert asked(2) == [False, False]
    cache, found, facts = arrive(strategy, cache, 2, rows, labels(0, 0), torch.zeros(2).bool())
    assert facts["cached"] == 2 and torch.equal(found.scores[0], labels(0.9, 0.8))
    assert found.mask.all()  # nobody was asked, and all is known

    # age 2 = D: asked, and the old value holds all the same
    assert asked(3) == [True, True]
    cache, found, facts = arrive(strategy, cache, 3, rows_of(0), labels(0.1))
    assert facts["cached"] == 1 and torch.equal(found.scores[0], labels(0.9, 0.8))
    assert found.rows[:, 1].tolist() == [0, 1] and found.trust.tolist() == [[1, 0]]

    # age 3 > D: the fresh value is used, once or as the new entry
    assert asked(4) == [True, True]
    cache, found, facts = arrive(
        strategy, cache, 4, rows, labels(0.2, 0.0), torch.tensor([True, False])
    )
    assert torch.equal(found.scores[0, :1], labels(0.2))
    assert cache["stamp"].tolist() == [4 if restore else 0, 0, 0]
    assert facts["sent_once"] == (0 if restore else 1)
    # nobody answered the other one: its old value is gone, there is no target
    assert found.mask.tolist() == [[True, False]]

    assert asked(5) == [not restore, True]
    cache, found, facts = arrive(strategy, cache, 5, rows_of(0), labels(0.3))
    assert torch.equal(found.scores[0], labels(0.2 if restore else 0.3))
    assert cache["stamp"].tolist() == [4 if restore else 5, 0, 0]


class Trial:
    """Rounds of clients that come and go; each message is checked as it arrives."""

    def __init__(self, strategy: Strategy, clients: int, public: int) -> None:
        assert strategy.download_codec is not None
        self.strategy, self.codec = strategy, strategy.download_codec
        self.shape = Shape(clients, public, CLASSES)
        self.public = rows_of(*range(public))
        self.cache = strategy.finish.init(self.shape)
        self.here = {k: self.codec.init(self.shape) for k in range(clients)}
        self.there = {k: self.codec.init(self.shape) for k in range(clients)}
        self.consensus: Predictions | None = None
        self.rows = self.public
        self.facts: dict[str, float] = {}

    def deliver(self, client: int) -> bytes:
        given = self.consensus
        assert given is not None
        ends = (self.here[client], self.there[client])
        before = [{k: v.clone() for k, v in end.items()} for end in ends]
        new, payload = self.codec.encode(self.here[client], given, stream())
        received, target = self.codec.decode(self.there[client], payload, self.rows, stream())
        for end, kept in zip(ends, before, strict=True):
            assert all(torch.equal(end[k], kept[k]) for k in kept)
        self.here[client], self.there[client] = new, received
        # the mirror is the cache on all rows, and the server knows it
        assert torch.equal(received["stamp"], self.cache["stamp"])
        assert torch.equal(received["values"], self.cache["values"])
        assert torch.equal(new["stamp"], self.cache["stamp"])
        # the targets are the server's
        front = len(self.rows)
        assert torch.equal(target.mask, given.mask[:, :front])
        assert torch.equal(target.trust, given.trust[:, :front])
        assert torch.equal(target.scores[target.mask], given.scores[:, :front][target.mask])
        assert torch.equal(target.rows, self.rows) and torch.equal(target.asked, given.asked)
        return payload

    def answers(self, round_: int, rng: torch.Generator, silent: float = 0.0) -> None:
        ask = self.strategy.request(self.cache, round_, self.public, [0], rng)
        assert ask.mask is not None
        self.rows = ask.rows
        probs = torch.randn(len(ask.rows), CLASSES, generator=rng).softmax(-1)
        mask = ask.mask[0] & (torch.rand(len(ask.rows), generator=rng) >= silent)
        self.cache, self.consensus, self.facts = arrive(
            self.strategy, self.cache, round_, ask.rows, probs, mask
        )


@given(
    seed=st.integers(0, 2**32),
    duration=st.integers(0, 5),
    restore=st.booleans(),
    rows=st.sampled_from([1, 4, 7, None]),
    silent=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_s7_mirrors_equal_the_cache_under_partial_participation(
    seed: int, duration: int, restore: bool, rows: int | None, silent: float
) -> None:
    trial = Trial(scarlet(rows=rows, duration=duration, restore=restore), 4, 12)
    rng = torch.Generator().manual_seed(seed)
    for round_ in range(1, 16):
        if trial.consensus is not None:
            for client in torch.randperm(4, generator=rng)[:2].tolist():
                trial.deliver(client)
        trial.answers(round_, rng, silent)


@pytest.mark.parametrize("restore", [False, True])
def test_s8_a_message_holds_the_values_that_changed(restore: bool) -> None:
    strategy = scarlet(rows=10, duration=3, restore=restore)
    trial = Trial(strategy, 2, 30)
    sizes = set()
    for round_ in range(1, 40):
        if trial.consensus is not None:
            changed = int(trial.facts["newly_cached"] + trial.facts["sent_once"])
            expected = strategy.shares.downlink(Traffic(10, CLASSES, 0, changed))
            for client in (0, 1):
                payload = trial.deliver(client)
                assert len(payload) == HEADER_BYTES + expected
                assert decode(payload).scores.shape == (1, changed, CLASSES)
            sizes.add(changed)
        trial.answers(round_, stream(round_))
    assert len(sizes) > 3  # from little to much


def test_what_the_mirror_holds_is_not_sent_again() -> None:
    strategy = scarlet(rows=6)
    trial = Trial(strategy, 1, 8)
    trial.answers(1, stream(1))
    sizes = [len(trial.deliver(0)) - HEADER_BYTES for _ in range(2)]
    changed = (Traffic(6, CLASSES, 0, n) for n in (6, 0))
    assert sizes == [strategy.shares.downlink(t) for t in changed]


def test_who_missed_rounds_gets_what_changed_and_nothing_else() -> None:
    strategy = scarlet(beta=1.0, duration=2)
    trial = Trial(strategy, 1, 6)
    trial.shape = Shape(1, 6, 2)
    trial.cache = strategy.finish.init(trial.shape)
    trial.there = {0: trial.codec.init(trial.shape)}

    def learn(round_: int, positions: list[int], *firsts: float) -> None:
        trial.rows = rows_of(*positions)
        trial.cache, trial.consensus, _ = arrive(
            strategy, trial.cache, round_, trial.rows, labels(*firsts)
        )

    learn(1, [0, 1, 2], 0.1, 0.2, 0.3)
    trial.deliver(0)
    learn(2, [3], 0.4)  # missed
    learn(4, [0], 0.5)  # missed: row 0 expired and was deleted
    learn(4, [1, 3, 4], 0.6, 0.7, 0.8)  # row 1 expires, row 3 is cached, row 4 new
    payload = trial.deliver(0)
    # values of rows 1 and 4, and of row 3 that came while it was away
    message = decode(payload)
    torch.testing.assert_close(message.scores[0], labels(0.6, 0.8, 0.4))
    missed, when = (message.extras or {})["missed"]
    assert missed.tolist() == [0, 3] and when.tolist() == [0, 2]
    ordinary = strategy.shares.downlink(Traffic(3, 2, 0, 2))
    assert len(payload) == HEADER_BYTES + ordinary + (20 + 8 * 2) + 4 * 2


@pytest.mark.parametrize(
    ("duration", "restore", "up", "down"),
    [
        (10, False, 0.70, 0.67),
        (50, False, 0.30, 0.285),
        (200, False, 0.094, 0.090),
        (10, True, 0.55, None),
        (50, True, 0.19, None),
        (200, True, 0.054, None),
    ],
)
def test_s9_how_much_is_asked_and_sent(
    duration: int, restore: bool, up: float, down: float | None
) -> None:
    """The published semantics, a tenth of the public set a round, 1000 rounds."""
    strategy = scarlet(beta=1.0, rows=100, duration=duration, restore=restore)
    public, cache = rows_of(*range(1000)), strategy.finish.init(Shape(1, 1000, 1))
    rng, certain = torch.Generator().manual_seed(0), torch.ones(100, 1)
    asked = sent = 0.0
    for round_ in range(1, 1001):
        ask = strategy.request(cache, round_, public, [0], rng)
        assert ask.mask is not None
        cache, _, facts = arrive(strategy, cache, round_, ask.rows, certain, ask.mask[0])
        asked += float(ask.mask.sum())
        sent += facts["newly_cached"] + facts["sent_once"]
    assert asked / 100_000 == pytest.approx(up, rel=0.03)
    if down is not None:
        assert sent / 100_000 == pytest.approx(down, rel=0.03)


@given(st.lists(st.integers(0, 3), max_size=20))
@settings(deadline=None)
def test_signals_take_two_bits(signals: list[int]) -> None:
    packed = _packed(torch.tensor(signals, dtype=torch.int64))
    assert packed.dtype == torch.uint8 and len(packed) == -(-len(signals) // 4)
    assert _unpacked(packed)[: len(signals)].tolist() == signals


def trial_and_message() -> tuple[Trial, bytes]:
    trial = Trial(scarlet(rows=6, duration=4), 2, 8)
    for round_ in (1, 2):
        trial.answers(round_, stream(round_))
    _, payload = trial.codec.encode(trial.here[0], trial.consensus, stream())  # type: ignore[arg-type]
    return trial, payload


def test_a_mirror_out_of_step_is_noticed() -> None:
    trial, _ = trial_and_message()
    trial.deliver(0)
    trial.answers(3, stream(3))
    _, payload = trial.codec.encode(trial.here[0], trial.consensus, stream())  # type: ignore[arg-type]
    with pytest.raises(WireError, match="out of step"):
        trial.codec.decode(trial.there[1], payload, trial.rows, stream())


def test_a_message_that_contradicts_itself_is_refused() -> None:
    trial, payload = trial_and_message()
    with pytest.raises(WireError, match="two bits for each of 9 rows, found 2 bytes"):
        trial.codec.decode(trial.there[0], payload, rows_of(*range(9)), stream())
    at = payload.index(b"signals") + len("signals") + 6
    none = payload[:at] + b"\0\0" + payload[at + 2 :]
    with pytest.raises(WireError, match="values are announced"):
        trial.codec.decode(trial.there[0], none, trial.rows, stream())
    at = payload.index(b"missed") + len("missed") + 6
    far = payload[:at] + struct.pack("<i", 8) + payload[at + 4 :]
    with pytest.raises(WireError, match="missed row below 8"):
        trial.codec.decode(trial.there[0], far, trial.rows, stream())


def test_a_message_has_one_spelling() -> None:
    """Whatever else could be put into it is refused, so that nothing is decided by the reader."""
    trial, payload = trial_and_message()
    sound, rows = decode(payload), trial.rows
    extras = dict(sound.extras or {})
    (signals,), (missed, when) = extras["signals"], extras["missed"]
    assert len(missed) > 1

    def refused(says: str, **change: object) -> None:
        with pytest.raises(WireError, match=says):
            message = encode(replace(sound, **change))  # type: ignore[arg-type]
            trial.codec.decode(trial.there[0], message, rows, stream())

    def other(says: str, **change: object) -> None:
        refused(says, extras={**extras, **change})

    assert encode(sound) == payload
    other("two bits for each", signals=())
    other("two bits for each", signals=(signals, signals))
    other("two bits for each", signals=(signals.to(torch.int8),))
    other("no server writes", signals=(signals + torch.tensor([0, 64]).byte(),))  # rows are six
    other("a stamp for each missed row", missed=(missed,))
    other("a stamp for each missed row", missed=(missed, when[1:]))
    other("a stamp for each missed row", missed=(missed.long(), when))
    other("in order", missed=(missed.flip(0), when.flip(0)))
    other("in order", missed=(torch.full_like(missed, 3), when))
    other("below 8", missed=(missed - 8, when))
    other("a stamp up to now", missed=(missed, when + 9))
    other("no server writes", more=())
    refused("values are announced", scores=sound.scores[..., :2])
    refused("values are announced", scores=sound.scores.double())
    refused("no server writes", space="logits")
    refused("no server writes", parties=torch.tensor([0]))
    refused("no server writes", trust=sound.trust / 2)
    refused("no server writes", mask=torch.zeros_like(sound.mask))


def test_stamps_must_reach_the_encoder() -> None:
    trial, _ = trial_and_message()
    with pytest.raises(ValueError, match="keep extras"):
        trial.codec.encode(trial.here[0], predictions(torch.ones(1, 8, 3), "probs"), stream())
