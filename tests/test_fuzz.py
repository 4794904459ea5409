"""Rubbish into every decoder: what is not refused is right, and nothing outgrows its bytes."""

import importlib
import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from odd_methods import remembering
from torch import Tensor

from fedkd.transforms import combine, party, stack
from fedkd.types import Codec, Predictions, Shape, State, Strategy, predictions
from fedkd.wire import HEADER_BYTES, Limits, WireError, decode, encode, pack, unpack
from strategies.scarlet import scarlet

MIB = 1 << 20
LIMITS = Limits(blanks=1 << 16)
PER_BYTE, CONSTANT = 64, 64 * MIB  # as promised by `decode` and `unpack`
HOW_MANY = (300, pytest.param(10_000, marks=pytest.mark.slow))
# magic, version, space, dtype, flags, round, party, J, R, S, number of extras, zeros
PAYLOAD_FIELDS = (*((4 + i, "B") for i in range(4)), *((8 + 4 * i, "I") for i in range(5)),
                  *((28 + i, "B") for i in range(4)))  # fmt: skip
MESSAGE_FIELDS = ((4, "B"), (5, "I"), (9, "I"))
JSON_PIECES = (b"[", b"]", b"{", b"}", b'"', b",", b":", b'{"round":1,', b"1e999", b"-", b"NaN",
               b"\\ud800", b"\xff", b"[" * 3000, b"9" * 5000)  # fmt: skip


@contextmanager
def bounded(size: int, constant: int = CONSTANT) -> Iterator[None]:
    """Whoever takes more memory than `size` bytes are allowed, or a second, has failed."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + PER_BYTE * size + constant
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    began = time.thread_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    took = time.thread_time() - began
    assert took < 1 + size / MIB, f"{took:.1f} s for {size} bytes"


def extreme(rng: random.Random, form: str) -> int:
    top = 1 << 8 * struct.calcsize(form)
    power = 1 << rng.randrange(8 * struct.calcsize(form))
    near = rng.randrange(40)
    return rng.choice([0, 1, near, power, power - 1, top - 1, top - 2, rng.randrange(top)]) % top


def damaged(
    rng: random.Random, corpus: Sequence[bytes], fields: Sequence[tuple[int, str]]
) -> bytes:
    """One of the corpus after one or two mishaps; now and then as it was, or noise altogether."""
    raw = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2, 2])):
        at, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        other = rng.choice(corpus)
        match rng.randrange(9):
            case 0 if raw:
                for _ in range(rng.choice([1, 1, 2, 8])):
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                raw += rng.choice([bytes(end - at), rng.randbytes(rng.randrange(1, 40)), other])
            case 3:
                raw[at:] = other[rng.choice([at, rng.randrange(len(other) + 1)]) :]
            case 4 | 5:
                offset, form = rng.choice(fields)
                if offset + struct.calcsize(form) <= len(raw):
                    struct.pack_into(f"<{form}", raw, offset, extreme(rng, form))
            case 6 if len(raw) >= 4:  # a count or a number somewhere in the body
                struct.pack_into("<I", raw, rng.randrange(len(raw) - 3), extreme(rng, "I"))
            case 7:
                raw[at:end] = rng.choice([b"", raw[at:end] * 2, bytes(end - at)])
            case _:
                known = rng.choice([0, 5, HEADER_BYTES])
                raw[known:] = rng.randbytes(rng.randrange(80))
    return bytes(raw)


def tally(
    count: int, trial: Callable[[random.Random], bool], refused: float = 0.2, read: float = 0.05
) -> None:
    """So many trials from a seed each, so that a failure can be repeated; both ends must occur."""
    taken = 0
    for seed in range(count):
        try:
            taken += trial(random.Random(seed))
        except BaseException as error:
            error.add_note(f"at seed {seed}")
            raise
    assert read * count < taken < (1 - refused) * count, f"{taken} of {count} were read"


def kinds() -> list[Predictions]:
    """Messages with and without each optional part, of none, one and several parties and rows."""
    made, rng = list[Predictions](), torch.Generator().manual_seed(0)
    for j, r, part in product((0, 1, 3), (0, 1, 9), range(6)):
        s = int(torch.randint(0, 5, (), generator=rng))
        width = (1, r)[part % 2]
        dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[part % 4]
        made.append(
            predictions(
                torch.randn(j, r, s, generator=rng).to(dtype),
                ("logits", "log_probs", "probs", "votes")[part % 4],  # type: ignore[arg-type]
                mask=torch.rand(j, r, generator=rng) > 0.4 if part in (1, 5) else None,
                trust=torch.rand(j, r, generator=rng) if part in (2, 5) else None,
                rows=torch.randint(0, 100, (r, 3), generator=rng),
                parties=torch.arange(j) * 3 - 1,
                asked=torch.arange(j) // 2 + 5,
                classes=torch.randint(0, 9, (j, width, s), generator=rng) if part > 2 else None,
                extras={
                    "flags": (torch.rand(3, 3, generator=rng) > 0.5, torch.tensor(2.5)),
                    "weights": (torch.randn(1, 7, generator=rng), torch.arange(4), torch.zeros(0)),
                }
                if part > 3
                else None,
            )
        )
    return made


KINDS = kinds()
PAYLOADS = [(encode(p, send_rows=sent), p, sent) for p in KINDS for sent in (False, True)]


def test_payloads_of_all_kinds_come_back_as_they_were() -> None:
    for payload, given, sent in PAYLOADS:
        found = decode(payload, None if sent else given.rows, LIMITS)
        assert encode(found, send_rows=True) == encode(given, send_rows=True)


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_payload_is_read_as_the_one_thing_that_it_spells_or_refused(count: int) -> None:
    corpus = [payload for payload, _, _ in PAYLOADS]

    def trial(rng: random.Random) -> bool:
        payload = damaged(rng, corpus, PAYLOAD_FIELDS)
        with bounded(len(payload)):
            try:
                found = decode(payload, None, LIMITS)
            except WireError as refusal:
                assert len(str(refusal)) < 2000
                return False
        assert not found.scores[~found.mask].any() and not found.trust[~found.mask].any()
        assert encode(found, send_rows=bool(payload[7] & 1)) == payload
        return True

    tally(count, trial)


MESSAGES = [
    pack({}, []),
    pack({"round": 3, "loss": 0.25, "ok": True, "none": None}, [b"", b"xyz", bytes(40)]),
    pack({"stacks": [{"clients": [0, 2], "refs": [None, "a/1"]}], "text": "é\n"}, [bytes(9)]),
]


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_message_is_read_as_head_and_parts_or_refused(count: int) -> None:
    def trial(rng: random.Random) -> bool:
        message = damaged(rng, MESSAGES, MESSAGE_FIELDS)
        if rng.random() < 0.3 and len(message) > 13:  # a head of another text, its length put right
            head = bytearray(message[13 : 13 + struct.unpack_from("<I", message, 5)[0]])
            at = rng.randrange(len(head) + 1)
            new = head[:at] + rng.choice(JSON_PIECES) + head[at + rng.randrange(3) :]
            rest = message[13 + len(head) :]
            message = message[:5] + struct.pack("<I", len(new)) + message[9:13] + new + rest
        with bounded(len(message)):
            try:
                head, blobs = unpack(message)
            except WireError as refusal:
                assert len(str(refusal)) < 2000
                return False
        text = json.dumps(head)
        assert message.endswith(b"".join(blobs)) and all(type(b) is bytes for b in blobs)
        # bytewise, for the head may hold NaN
        again, parts = unpack(pack(head, blobs))
        assert json.dumps(again) == text and parts == blobs
        return True

    tally(count, trial)


class Delivery(NamedTuple):
    """What a receiver had, what came, and what it made of it."""

    state: State
    payload: bytes
    rows: Tensor
    after: State
    result: Predictions


FILES = sorted(p.stem for p in Path(__file__).parents[1].joinpath("strategies").glob("[a-z]*.py"))
METHODS: Mapping[str, Strategy] = {
    **{name: getattr(importlib.import_module(f"strategies.{name}"), name)() for name in FILES},
    "scarlet-short": scarlet(rows=7, duration=2),  # rows come and go
    "remembering": remembering(),  # no file has a codec for the way up
}
CODECS: Mapping[str, Codec] = {
    f"{name}-{way}": codec
    for name, method in METHODS.items()
    for way, codec in (("up", method.upload_codec), ("down", method.download_codec))
    if codec is not None
}


def test_the_codecs_are_found() -> None:
    assert set(CODECS) >= {"scarlet-down", "scarlet-short-down", "remembering-up"}


def deliveries(name: str) -> list[Delivery]:
    """Ten rounds of a method among three clients that come and go, with made-up answers."""
    method, way = METHODS[name.rpartition("-")[0]], name.rpartition("-")[2]
    codec, rng = CODECS[name], torch.Generator().manual_seed(1)
    shape, public = Shape(3, 20, 4), predictions(torch.zeros(1, 20, 4), "logits").rows
    rule = {} if not hasattr(method.combine, "init") else method.combine.init(shape)
    cache, came = method.finish.init(shape), list[Delivery]()
    ends = {c: (codec.init(shape), codec.init(shape)) for c in range(3)}

    def deliver(client: int, given: Predictions, rows: Tensor) -> None:
        here, payload = codec.encode(ends[client][0], given, rng)
        there, result = codec.decode(ends[client][1], payload, rows, rng)
        came.append(Delivery(ends[client][1], payload, rows, there, result))
        ends[client] = here, there

    for round_ in range(1, 11):
        clients = torch.randperm(3, generator=rng)[:2].sort().values
        ask = method.request(cache, round_, public, clients.tolist(), rng)
        mask = torch.rand(2, len(ask.rows), generator=rng) < 0.8
        logits = predictions(
            2 * torch.randn(2, len(ask.rows), 4, generator=rng),
            "logits",
            mask=mask if ask.mask is None else mask & ask.mask,
            rows=ask.rows,
            parties=clients,
            asked=torch.full((2,), round_),
        )
        step = method.upload
        sent = stack(step.apply(step.init(shape), party(logits, k), rng).result for k in range(2))
        for k, client in enumerate(clients.tolist() if way == "up" else ()):
            own = slice(None) if ask.mask is None else ask.mask[k]
            one = party(sent, k)
            deliver(
                client,
                replace(one, scores=one.scores[:, own], mask=one.mask[:, own],
                        trust=one.trust[:, own], rows=one.rows[own]),
                ask.rows[own],
            )  # fmt: skip
        rule, joint, *_ = combine(method.combine, rule, sent, rng)
        cache, joint, *_ = method.finish.apply(cache, joint, rng)
        joint = method.download.apply(method.download.init(shape), joint, rng).result
        for client in clients.tolist() if way == "down" else ():
            k = clients.tolist().index(client)
            deliver(client, joint if len(joint.parties) == 1 else party(joint, k), ask.rows)
    return came


def bits(state: State, result: Predictions) -> tuple[object, ...]:
    tensors = {k: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for k, t in state.items()}
    return tensors, encode(result, send_rows=True)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", HOW_MANY)
def test_a_codec_reads_a_sound_value_or_refuses(name: str, count: int) -> None:
    """A stateful one, too, and then its state is as it was before."""
    came, codec, stream = deliveries(name), CODECS[name], torch.Generator()
    corpus = [d.payload for d in came]
    constant = CONSTANT + 8 * Limits().blanks

    def trial(rng: random.Random) -> bool:
        at = rng.choice(came)
        payload = damaged(rng, rng.choice([corpus, [at.payload]]), PAYLOAD_FIELDS)
        held = bits(at.state, at.result)
        with bounded(len(payload), constant):
            try:
                after, result = codec.decode(at.state, payload, at.rows, stream)
            except ValueError as refusal:
                assert len(str(refusal)) < 2000 and payload != at.payload
                return False
            finally:
                assert bits(at.state, at.result) == held
        if payload == at.payload:
            assert bits(after, result) == bits(at.after, at.result)
        form = [(k, t.dtype, t.shape) for k, t in sorted(after.items())]
        assert form == [(k, t.dtype, t.shape) for k, t in sorted(at.after.items())]
        assert torch.equal(result.rows, at.rows) and result.space in (
            "logits",
            "probs",
            "votes",
            "log_probs",
        )
        assert result.scores.shape == at.result.scores.shape
        return True

    tally(count, trial)


def claim(
    j: int, r: int, s: int, flags: int, body: bytes, dtype: int = 0, extras: int = 0
) -> bytes:
    """A payload as somebody would write it who wants a great deal of memory."""
    head = struct.pack("<4sBBBBiiIIIB3s", b"FKDP", 1, 0, dtype, flags, 0, 0, j, r, s, extras, b"")
    return head + body


GREEDY = {
    # eight answers a byte, each with a place in the mask and a trust
    "no-columns": claim(1, 16 * MIB, 0, 2, b"\xff" * (2 * MIB - 1) + b"\xfe"),
    "trusted": claim(1, MIB, 0, 4, bytes(4 * MIB)),
    "half-masked": claim(1, 2 * MIB, 1, 2, b"\xaa" * (MIB // 4) + bytes(2 * MIB), dtype=1),
    "small-scores": claim(1, 2 * MIB, 1, 0, bytes(4 * MIB), dtype=1),
    "rows": claim(0, 1 << 18, 0, 1, bytes(12 << 18)),
    "parties": claim(MIB, 0, 3, 0, torch.arange(MIB).int().numpy().tobytes()),
    "classes": claim(1, 1, MIB // 2, 8, b"\1\0\0\0" + bytes(4 * MIB)),
    "truths": claim(0, 0, 0, 0, struct.pack("<BBBBBI", 1, 1, 97, 9, 1, 16 * MIB) + bytes(2 * MIB),
                    extras=1),
    "tiny": claim(0, 0, 0, 0, b"".join(
        struct.pack("<BBB", 1, 255, i) + b"\4\0\1" * 255 for i in range(32, 127)), extras=95),
    "blanks": claim(1, 1 << 10, 1 << 6, 2, bytes(1 << 7), dtype=3),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_what_costs_most_memory_keeps_to_the_bound(name: str) -> None:
    payload, blanks = GREEDY[name], MIB
    with bounded(len(payload), 8 * blanks + (CONSTANT if name == "tiny" else 4 * MIB)):
        found = decode(payload, None, Limits(blanks=blanks))
    assert encode(found, send_rows=name == "rows") == payload


def test_what_the_mask_leaves_out_is_limited() -> None:
    nothing = claim(1, 1 << 16, 1 << 13, 2, bytes(1 << 13))  # 2 GiB of zeros for 8 KiB
    with bounded(len(nothing)), pytest.raises(WireError, match="at most 65536 scores are left out"):
        decode(nothing, None, LIMITS)
    with bounded(len(nothing)), pytest.raises(WireError, match="at most 67108864 scores"):
        decode(nothing)


@pytest.mark.parametrize(
    "text",
    ["[],", "{},", '{"a":{}},', '{"ab":[1]},', '"ab",', '"\\u0101",', "1.5,", "1000,", "-1,"],
)
def test_heads_that_cost_most_memory_keep_to_the_bound(text: str) -> None:
    head = b'{"a":[' + (text * (MIB // len(text))).encode()[:-1] + b"]}"
    message = struct.pack("<4sBII", b"FKDB", 1, len(head), 0) + head
    with bounded(len(message), MIB):
        assert unpack(message)[0]["a"]


def test_the_bound_is_felt() -> None:
    with bounded(0), pytest.raises(RuntimeError, match="allocate"):
        torch.zeros(2 * CONSTANT, dtype=torch.uint8)
    with pytest.raises(AssertionError, match="s for 0 bytes"), bounded(0):
        began = time.thread_time()
        while time.thread_time() < began + 1.05:
            pass
