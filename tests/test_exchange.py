"""Who is trained together, what travels together, what is counted, and what is refused."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import wire
from fedkd.answers import check, spread
from fedkd.asking import ClientFailure
from fedkd.assemble import Plan
from fedkd.bundles import bundles_of, cost, stacks_of
from fedkd.exchange import Exchange, Question, Reply
from fedkd.store import digest
from fedkd.transforms import mean, stack
from fedkd.types import Predictions, Shares, Strategy, World, predictions

STEPS = ("train", "answer")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exchange")


@pytest.fixture(scope="module")
def plan(home: Path) -> Plan:
    return small.plan(small.config(), home)


def made_up(
    kinds: Sequence[int], sizes: Sequence[int], stacks: Sequence[int], costs: Sequence[int]
) -> Any:
    """As much of a Plan as the rules read: clients of some architectures, with private samples."""
    return SimpleNamespace(
        teacher=tuple(kinds),
        architectures=[
            SimpleNamespace(stack=n, multiply_adds=c) for n, c in zip(stacks, costs, strict=True)
        ],
        samples=tuple(sizes),
        dataset=SimpleNamespace(test=range(50)),
        public=range(40),
        rows=range(40),
        strategy=Strategy(combine=mean()),
        config=small.config(),
        world=World(participants=lambda round_, clients, rng: range(clients)),
    )


@st.composite
def populations(draw: st.DrawFn) -> Any:
    clients = draw(st.integers(1, 90))
    architectures = draw(st.integers(1, 3))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return made_up(
        [rng.randrange(architectures) for _ in range(clients)],
        [rng.choice([1, 5, 5, 40, 300]) for _ in range(clients)],
        [draw(st.sampled_from([1, 2, 5, 32])) for _ in range(architectures)],
        [draw(st.sampled_from([100, 5_000, 10**6])) for _ in range(architectures)],
    )


@given(populations(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_stack_is_of_one_architecture_and_everybody_is_in_one(population: Any, seed: int) -> None:
    everybody = range(len(population.teacher))
    some = sorted(
        random.Random(seed).sample(everybody, random.Random(seed).randint(1, len(everybody)))
    )
    stacks = stacks_of(population, some)
    assert sorted(c for s in stacks for c in s) == some
    assert stacks == sorted(stacks, key=lambda s: s[0])
    for clients in stacks:
        (kind,) = {population.teacher[c] for c in clients}
        assert clients == sorted(clients)
        assert 1 <= len(clients) <= population.architectures[kind].stack
    assert stacks_of(population, some) == stacks


@given(populations())
@settings(max_examples=60, deadline=None)
def test_a_stack_is_of_near_ids_and_similar_sizes(population: Any) -> None:
    """Within four stacks' worth of ids, sorted by size: few rows are padded, few answers wait."""
    sizes = population.samples
    for kind, made in enumerate(population.architectures):
        own = [c for c, k in enumerate(population.teacher) if k == kind]
        place = {c: i // (4 * made.stack) for i, c in enumerate(own)}
        stacks = [s for s in stacks_of(population, range(len(population.teacher))) if s[0] in place]
        windows: dict[int, list[list[int]]] = {}
        for clients in stacks:
            (window,) = {place[c] for c in clients}
            windows.setdefault(window, []).append(clients)
        for inside in windows.values():
            spans = sorted((max(sizes[c] for c in s), min(sizes[c] for c in s)) for s in inside)
            assert all(a[0] <= b[1] or a == b for a, b in itertools.pairwise(spans))
            # nobody is left in a stack of their own where there is room
            full = math.ceil(sum(map(len, inside)) / made.stack)
            assert len(inside) == full


@given(populations(), st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_bundles_carry_every_stack_once_heaviest_first(population: Any, workers: int) -> None:
    stacks = stacks_of(population, range(len(population.teacher)))
    bundles = bundles_of(population, stacks, STEPS, workers, 1)
    assert sorted((s for b in bundles for s in b), key=lambda s: s[0]) == stacks
    assert all(len(b) == 1 or sum(map(len, b)) <= 64 for b in bundles)
    costs = [cost(population, s, STEPS, 1) for b in bundles for s in b]
    classes = [int(math.log2(c)) for c in costs]
    assert classes == sorted(classes, reverse=True)


@given(populations(), st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_workers_end_together(population: Any, workers: int) -> None:
    """Whoever is free takes the next bundle: all are done within one stack of an even share."""
    stacks = stacks_of(population, range(len(population.teacher)))
    costs = {s[0]: cost(population, s, STEPS, 1) for s in stacks}
    busy = [0.0] * workers
    for bundle in bundles_of(population, stacks, STEPS, workers, 1):
        busy[busy.index(min(busy))] += sum(costs[s[0]] for s in bundle)
    assert max(busy) <= sum(costs.values()) / workers + max(costs.values()) * (1 + 1e-9)


def test_an_empty_list_of_stacks_makes_no_bundle(plan: Plan) -> None:
    assert bundles_of(plan, [], STEPS, 2, 1) == []


# Asking

ROWS = torch.tensor([[0, i, 0] for i in (3, 5, 8, 13, 21)])


def asked(exchange: Exchange, question: Question, clients: Sequence[int]) -> dict[int, Reply]:
    replies = list(exchange.ask(question, clients))
    assert [r.client for r in replies] == list(clients)
    return {r.client: r for r in replies}


def answers(replies: dict[int, Reply]) -> Predictions:
    return stack(r.answer for r in replies.values() if r.answer is not None)


def same(one: Predictions, two: Predictions) -> None:
    for name in ("scores", "mask", "trust", "rows", "parties", "asked"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.space == two.space


def test_replies_come_in_ascending_id_whatever_order_the_work_is_done_in(
    plan: Plan, tmp_path: Path
) -> None:
    """One worker or three, in order or at random: the same answers, to the bit."""
    question, everybody = Question(1, STEPS, plan.public[::4]), range(plan.clients)
    found = []
    for seed, workers in enumerate((1, 1, 3, 3)):
        order = random.Random(seed) if seed else None
        transport = small.InProcess(workers, order)
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "data").symlink_to(plan_data(plan))
        exchange = small.exchange(plan, tmp_path / str(seed), transport)
        found.append(answers(asked(exchange, question, everybody)))
    for other in found[1:]:
        same(found[0], other)
    assert found[0].parties.tolist() == list(everybody)


def plan_data(plan: Plan) -> Path:
    return Path(plan.dataset.x.filename).parent  # type: ignore[attr-defined]  # mapped from a file


@pytest.fixture
def made(plan: Plan, tmp_path: Path) -> Iterator[tuple[Exchange, small.InProcess, list[Any]]]:
    (tmp_path / "data").symlink_to(plan_data(plan))
    transport, events = small.InProcess(2), list[Any]()
    yield small.exchange(plan, tmp_path, transport, events), transport, events


def test_only_those_asked_are_set_to_work(plan: Plan, made: Any) -> None:
    exchange, transport, _ = made
    replies = asked(exchange, Question(1, STEPS, ROWS), [1, 4])
    served = [s for _, m, _ in transport.seen for s in wire.unpack(m)[0]["stacks"]]
    assert sorted(c for s in served for c in s["clients"]) == [1, 4]
    assert exchange.refs.keys() == {1, 4}
    assert all(r.steps == -(-len(plan.dataset.private(c)) // 16) for c, r in replies.items())


def test_what_is_not_asked_for_is_not_sent(made: Any) -> None:
    exchange, _, _ = made
    replies = asked(exchange, Question(1, ("train",), ROWS[:0]), range(6))
    assert all(r.answer is None and r.steps > 0 for r in replies.values())
    assert (exchange.bytes.up, exchange.bytes.down) == (0, 0)


def test_every_byte_of_communication_is_counted(plan: Plan, made: Any) -> None:
    exchange, _, _ = made
    clients, header = range(6), wire.HEADER_BYTES
    asked(exchange, Question(1, ("answer",), ROWS), clients)
    assert exchange.bytes.up == 6 * (header + 4 * 5 * 10)
    assert exchange.bytes.down == 0  # both sides derive the rows

    exchange.bytes.up = exchange.bytes.down = 0
    asked(exchange, Question(1, ("answer",), ROWS, known=False), clients)
    assert exchange.bytes.down == 6 * 4 * 5  # a row list that only the server knows

    exchange.bytes.up = exchange.bytes.down = 0
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[0, :2] = mask[3, 4] = True
    asked(exchange, Question(1, ("answer",), ROWS, mask), clients)
    assert exchange.bytes.down == 6 * 1  # five bits are a byte
    assert exchange.bytes.up == 6 * header + 4 * 10 * 3

    exchange.bytes.up = exchange.bytes.down = 0
    asked(exchange, Question(1, ("answer",), ROWS, mask, known=False), clients)
    assert exchange.bytes.down == 4 * 3

    exchange.bytes.up = exchange.bytes.down = 0
    target = predictions(
        torch.full((1, 5, 10), 0.1), "probs", rows=ROWS, parties=torch.tensor([-1])
    )
    payload = wire.encode(target)
    asked(exchange, Question(1, ("distil",), ROWS, downloads={-1: payload}), clients)
    assert exchange.bytes.down == 6 * len(payload)  # a broadcast counts for every receiver

    exchange.bytes.up = exchange.bytes.down = 0
    some = replace(target, mask=torch.tensor([[True, False, False, True, False]]))
    own = {c: wire.encode(some if c else target) for c in clients}
    asked(exchange, Question(1, ("distil",), ROWS, downloads=own), clients)
    assert exchange.bytes.down == sum(map(len, own.values()))


def test_the_observer_is_not_communication(plan: Plan, made: Any) -> None:
    exchange, transport, _ = made
    said = list(exchange.observe("teachers", 1, range(6), answers=True))
    assert sorted(s["client"] for s in said) == list(range(6))
    assert {kind for kind, _, _ in transport.seen} == {"observe"}
    assert (exchange.bytes.up, exchange.bytes.down) == (0, 0) and not exchange.refs


def test_each_client_is_asked_only_what_its_mask_says(plan: Plan, made: Any) -> None:
    """Its answers to some rows are its answers to all, cut; elsewhere there is nothing."""
    exchange, _, _ = made
    everything = answers(asked(exchange, Question(1, ("answer",), ROWS), range(6)))
    rng = torch.Generator().manual_seed(1)
    mask = torch.rand(6, 5, generator=rng) > 0.5
    mask[2] = False
    question = Question(1, ("answer",), ROWS, mask)
    replies = asked(exchange, question, range(6))
    for client, reply in replies.items():
        assert reply.answer is not None
        assert torch.equal(reply.answer.rows, ROWS[mask[client]])
        wide = spread(reply.answer, ROWS, mask, range(6))
        assert torch.equal(wide.rows, ROWS) and torch.equal(wide.mask[0], mask[client])
        assert torch.equal(wide.scores[0, mask[client]], everything.scores[client, mask[client]])
        assert not wide.scores[0, ~mask[client]].any() and not wide.trust[0, ~mask[client]].any()
    total, said = exchange.total(mean(), question, range(6))
    joint = total.consensus()
    assert torch.equal(joint.mask[0], mask.any(0)) and all(r.answer is None for r in said)
    for r in range(5):
        if mask[:, r].any():
            expected = everything.scores[mask[:, r], r].mean(0)
            torch.testing.assert_close(joint.scores[0, r], expected)


def test_a_task_depends_on_where_the_state_lies_and_not_on_who_else_is_asked(
    plan: Plan, made: Any
) -> None:
    """A client's state is in the shard of its own stack and task; the next task reads it there."""
    exchange, transport, _ = made
    asked(exchange, Question(1, ("train",), ROWS[:0]), range(6))
    first = dict(exchange.refs)
    asked(exchange, Question(1, ("answer",), ROWS), range(6))
    heads = [wire.unpack(m)[0] for _, m, _ in transport.seen]
    late = [s for h in heads if h["steps"] == ["answer"] for s in h["stacks"]]
    for clients in late:
        assert clients["refs"] == [first[c] for c in clients["clients"]]
    assert set(first.values()).isdisjoint(exchange.refs.values())


# Refusing


def rebuilt(
    payload: bytes, change: Callable[[Predictions], Predictions], rows: torch.Tensor
) -> bytes:
    return wire.encode(change(wire.decode(payload, rows)))


def tampering(victim: int, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A reply in which one client's payload is another."""

    def tamper(reply: bytes) -> bytes:
        head, blobs = wire.unpack(reply)
        for said in head["clients"]:
            if said["client"] == victim:
                blobs[said["payload"]] = change(blobs[said["payload"]])
        return wire.pack(head, blobs)

    return tamper


NAN, INF = float("nan"), float("inf")


def at(value: float) -> Callable[[Predictions], Predictions]:
    def change(p: Predictions) -> Predictions:
        scores = p.scores.clone()
        scores[0, 2, 7] = value
        return replace(p, scores=scores)

    return change


def trusted(value: float) -> Callable[[Predictions], Predictions]:
    return lambda p: replace(p, trust=torch.full_like(p.trust, value))


def with_extra(name: str, tensor: torch.Tensor) -> Callable[[Predictions], Predictions]:
    return lambda p: replace(p, extras={name: (tensor,)})


def narrower(p: Predictions) -> Predictions:
    scores = p.scores[:, :, :9]
    return replace(p, scores=scores / scores.sum(-1, keepdim=True))


def fewer_rows(p: Predictions) -> Predictions:
    return predictions(p.scores[:, :4], p.space, parties=p.parties, asked=p.asked)


def of_two(p: Predictions) -> Predictions:
    two = torch.tensor([0, 1])
    return predictions(p.scores.repeat(2, 1, 1), p.space, parties=two, asked=p.asked.repeat(2))


RUBBISH = {
    "nan": (at(NAN), "scores: should be finite"),
    "infinite": (at(INF), "scores: should be finite"),
    "negative": (at(-0.01), "probabilities should be >= 0"),
    "no simplex": (lambda p: replace(p, scores=p.scores * 1.01), "sum to 1 within"),
    "nan trust": (trusted(NAN), "trust: should be finite and at least 0"),
    "negative trust": (trusted(-1.0), "trust: should be finite and at least 0"),
    "another client": (lambda p: replace(p, parties=p.parties + 1), "party: should be 0, found"),
    "the consensus": (lambda p: replace(p, parties=p.parties - 1), "party: should be 0, found"),
    "two parties": (of_two, "party: should be 0, found"),
    "an old round": (lambda p: replace(p, asked=p.asked - 1), "round: should be 1, found"),
    "logits": (lambda p: replace(p, space="logits"), "the method declares probs, found logits"),
    "fewer classes": (narrower, "10 classes expected, found 9"),
    "fewer rows": (fewer_rows, "5 rows were asked, found 4"),
    "own classes": (
        lambda p: replace(p, classes=torch.arange(10).view(1, 1, 10)),
        "classes: may not cross the wire",
    ),
    "weights": (with_extra("weights", torch.zeros(1, 99)), "weights: may not cross the wire"),
    "labels": (with_extra("labels", torch.zeros(1, 5)), "labels: may not cross the wire"),
    "indices": (with_extra("indices", torch.arange(5)), "indices: may not cross the wire"),
    "features": (with_extra("features", torch.zeros(5, 2)), "features: may not cross the wire"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUBBISH)
def test_rubbish_is_refused_by_name(made: Any, case: str) -> None:
    change, text = RUBBISH[case]
    exchange, transport, events = made
    transport.tamper = tampering(0, lambda payload: rebuilt(payload, change, ROWS))
    with pytest.raises(ClientFailure, match="round 1: the answer of client 0 was refused") as found:
        asked(exchange, Question(1, ("answer",), ROWS), range(6))
    assert text in str(found.value)
    assert [(e["kind"], e["clients"], e["round"]) for e in events] == [("refused", [0], 1)]
    assert text in events[0]["cause"]


def test_other_rows_than_asked_are_refused(plan: Plan) -> None:
    rows = ROWS.clone()
    given = predictions(torch.full((1, 5, 10), 0.1), "probs", rows=ROWS, asked=torch.tensor([1]))
    check(plan, given, 1, 0, ROWS)
    rows[2] = rows[3]
    with pytest.raises(ValueError, match="rows: should be those that were asked, in order"):
        check(plan, replace(given, rows=rows), 1, 0, ROWS)
    with pytest.raises(ValueError, match="rows: should be those that were asked, in order"):
        check(plan, replace(given, rows=ROWS.flip(0)), 1, 0, ROWS)


def test_declared_extras_may_cross_if_they_are_finite(plan: Plan) -> None:
    shares = Shares(answers="probs", extras=frozenset({"features"}))
    declares = replace(plan, strategy=replace(plan.strategy, shares=shares))
    given = predictions(
        torch.full((1, 5, 10), 0.1), "probs", rows=ROWS, asked=torch.tensor([1]),
        extras={"features": (torch.zeros(5, 3),)},
    )  # fmt: skip
    check(declares, given, 1, 0, ROWS)
    with pytest.raises(ValueError, match="features: may not cross the wire"):
        check(plan, given, 1, 0, ROWS)
    broken = replace(given, extras={"features": (torch.full((5, 3), INF),)})
    with pytest.raises(ValueError, match="features: should be finite"):
        check(declares, broken, 1, 0, ROWS)


def test_a_method_without_answers_gets_none(plan: Plan) -> None:
    shares = Shares(answers=None)
    silent = replace(plan, strategy=replace(plan.strategy, shares=shares))
    given = predictions(torch.full((1, 5, 10), 0.1), "probs", rows=ROWS, asked=torch.tensor([1]))
    with pytest.raises(ValueError, match="the method declares no answers"):
        check(silent, given, 1, 0, ROWS)


@pytest.mark.parametrize("cut", [0, 10, -1], ids=["empty", "half a header", "a byte short"])
def test_a_broken_payload_is_refused(made: Any, cut: int) -> None:
    exchange, transport, events = made
    transport.tamper = tampering(0, lambda payload: payload[:cut])
    with pytest.raises(ClientFailure, match="client 0 was refused: payload: "):
        asked(exchange, Question(1, ("answer",), ROWS), range(6))
    assert [e["kind"] for e in events] == ["refused"]


def test_a_reply_about_others_is_ignored_and_the_client_missed(made: Any) -> None:
    exchange, transport, events = made

    def swapped(reply: bytes) -> bytes:
        head, blobs = wire.unpack(reply)
        head["clients"][0]["client"] = 99
        return wire.pack(head, blobs)

    transport.tamper = swapped
    with pytest.raises(ClientFailure, match="one part about client 0 expected, found none"):
        asked(exchange, Question(1, ("answer",), ROWS), range(6))
    assert [(e["kind"], e["clients"], e["outcome"]) for e in events] == [
        ("unasked", [99], "ignored"),
        ("refused", [0], "stopped"),
    ]


@pytest.mark.parametrize("name", ["../../elsewhere", "000009-000009-000000"])
def test_a_reply_brings_no_shard_but_its_own(
    plan: Plan, made: Any, tmp_path: Path, name: str
) -> None:
    exchange, transport, _ = made

    def smuggling(reply: bytes) -> bytes:
        head, blobs = wire.unpack(reply)
        shards = {name: {"sha256": digest(b"x"), "blob": len(blobs)}}
        return wire.pack({**head, "shards": shards}, [*blobs, b"x"])

    transport.tamper = smuggling
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ClientFailure, match="which is not its own"):
        asked(exchange, Question(1, ("train",), ROWS[:0]), range(6))
    new = set(tmp_path.rglob("*")) - set(before)
    assert all(p.name.startswith("000001-0-000001-") for p in new)


def test_a_fault_on_the_client_side_names_the_client(made: Any) -> None:
    """Here the download of client 3 alone is damaged."""
    exchange, _, events = made
    target = predictions(
        torch.full((1, 5, 10), 0.1), "probs", rows=ROWS, parties=torch.tensor([-1])
    )
    payloads = {c: wire.encode(target) for c in range(6)} | {3: b"rubbish"}
    with pytest.raises(ClientFailure, match="round 1: client 3 failed with WireError") as found:
        asked(exchange, Question(1, ("distil",), ROWS, downloads=payloads), range(6))
    assert "Traceback" in str(found.value)
    (event,) = events
    assert (event["kind"], event["clients"], event["round"]) == ("failure", [3], 1)
    json.dumps(event)
