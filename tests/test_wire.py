"""Payloads: exact round trips, exact sizes, and refusal of whatever is not one."""

import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.types import Predictions, predictions
from fedkd.wire import (
    HEADER_BYTES,
    MAGIC,
    Limits,
    WireError,
    decode,
    encode,
    pack,
    unpack,
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
SMALL = Limits(payload_bytes=100_000, values=10_000)


@st.composite
def messages(draw: st.DrawFn) -> Predictions:
    j, r, s = draw(st.integers(0, 4)), draw(st.integers(0, 5)), draw(st.integers(0, 4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    mask = torch.rand(j, r, generator=rng) >= draw(st.sampled_from([0.0, 0.4, 1.0]))
    trust = torch.rand(j, r, generator=rng) if draw(st.booleans()) else torch.ones(j, r)
    width = draw(st.sampled_from([None, 1, r]))
    extras = {
        name: tuple(
            torch.randint(0, 2, shape, generator=rng).to(draw(st.sampled_from(FLOATS + OTHERS)))
            for shape in draw(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3))
        )
        for name in draw(st.sets(st.sampled_from(["weights", "maps", "f"])))
    }
    return predictions(
        torch.randn(j, r, s, generator=rng).to(draw(st.sampled_from(FLOATS))),
        draw(st.sampled_from(["logits", "log_probs", "probs", "votes"])),
        mask=mask,
        trust=trust,
        rows=torch.randint(0, 100, (r, 3), generator=rng),
        parties=torch.arange(j) * 3 - 1,
        asked=torch.randint(0, 2, (j,), generator=rng) + draw(st.integers(0, 9)),
        classes=None if width is None else torch.randint(0, 9, (j, width, s), generator=rng),
        extras=extras or None,
    )


def same_where_answered(a: Predictions, b: Predictions) -> None:
    for name in ("mask", "rows", "parties", "asked"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.space == b.space and a.scores.dtype == b.scores.dtype
    assert torch.equal(a.scores[a.mask], b.scores[b.mask])
    assert torch.equal(a.trust[a.mask], b.trust[b.mask])
    assert not b.scores[~b.mask].any() and not b.trust[~b.mask].any()
    assert (a.classes is None) == (b.classes is None)
    assert a.classes is None or torch.equal(a.classes, b.classes)
    assert (a.extras or {}).keys() == (b.extras or {}).keys()
    for name, tensors in (a.extras or {}).items():
        for one, two in zip(tensors, (b.extras or {})[name], strict=True):
            assert one.dtype == two.dtype and torch.equal(one, two)


@given(messages(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_round_trip(message: Predictions, send_rows: bool) -> None:
    payload = encode(message, send_rows=send_rows)
    found = decode(payload, None if send_rows else message.rows)
    same_where_answered(message, found)
    assert encode(found, send_rows=send_rows) == payload


@given(messages())
@settings(max_examples=50, deadline=None)
def test_unsent_rows_are_unknown(message: Predictions) -> None:
    assert bool((decode(encode(message)).rows == -1).all())


def test_infinities_and_nan_travel_bit_for_bit() -> None:
    scores = torch.tensor([[[torch.nan, -torch.inf, -0.0]]])
    found = decode(encode(predictions(scores, "logits"))).scores
    assert torch.equal(found.view(torch.int32), scores.view(torch.int32))


def test_the_size_is_that_of_what_is_said() -> None:
    r, c = 13, 7
    dense = predictions(torch.randn(1, r, c), "logits")
    assert len(encode(dense)) == HEADER_BYTES + 4 * r * c
    mask = torch.ones(1, r, dtype=torch.bool)
    mask[0, [1, 4, 5]] = False
    # two bytes of mask for 13 rows, ten answers
    assert len(encode(replace(dense, mask=mask))) == HEADER_BYTES + 2 + 4 * 10 * c
    # trust where it is not all one, of the answers alone
    doubtful = replace(dense, mask=mask, trust=torch.full((1, r), 0.5))
    assert len(encode(doubtful)) == HEADER_BYTES + 2 + 4 * 10 + 4 * 10 * c
    # trust of what was not answered says nothing
    silent = replace(dense, mask=mask, trust=mask.float())
    assert len(encode(silent)) == HEADER_BYTES + 2 + 4 * 10 * c
    # three 4-byte numbers a row where the other side does not know them
    assert len(encode(dense, send_rows=True)) == HEADER_BYTES + 12 * r + 4 * r * c
    assert len(encode(replace(dense, scores=dense.scores.half()))) == HEADER_BYTES + 2 * r * c
    # class ids: their width, then one set for all rows
    own = replace(dense, classes=torch.arange(c).view(1, 1, c))
    assert len(encode(own)) == HEADER_BYTES + 4 + 4 * c + 4 * r * c
    # several parties: their ids; answers to questions of several rounds: these
    two = predictions(torch.randn(2, r, c), "logits")
    assert len(encode(two)) == HEADER_BYTES + 2 * 4 + 2 * 4 * r * c
    stale = replace(two, asked=torch.tensor([1, 2]))
    assert len(encode(stale)) == HEADER_BYTES + 2 * 4 + 2 * 4 + 2 * 4 * r * c
    # a name is 2 bytes and its letters, a tensor 2 and 4 a dimension
    extra = replace(dense, extras={"maps": (torch.zeros(2, 3), torch.zeros(9, dtype=torch.bool))})
    named = 2 + 4 + (2 + 8 + 24) + (2 + 4 + 2)
    assert len(encode(extra)) == HEADER_BYTES + 4 * r * c + named


def test_masked_entries_do_not_travel() -> None:
    hidden = predictions(
        torch.tensor([[[1.0], [123.0]]]), "logits", mask=torch.tensor([[True, False]])
    )
    other = replace(hidden, scores=torch.tensor([[[1.0], [321.0]]]))
    assert encode(hidden) == encode(other)


GOOD = encode(predictions(torch.ones(1, 2, 3), "probs"))


def patched(at: int, form: str, value: object) -> bytes:
    payload = bytearray(GOOD)
    struct.pack_into("<" + form, payload, at, value)
    return bytes(payload)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", f"at least {HEADER_BYTES} bytes, found 0"),
        (b"PK\3\4" + GOOD[4:], "should begin with"),
        (patched(4, "B", 2), "version 1 is read here, found 2"),
        (patched(5, "B", 4), "unknown space 4"),
        (patched(6, "B", 4), "dtype 4"),  # uint8: scores are floats
        (patched(7, "B", 64), "flags 64"),
        (patched(16, "I", 5000), "at most 10000 values, the header says 5000 x 2 x 3"),
        (patched(16, "I", 2), "bytes"),
        (patched(20, "I", 3), "bytes, at least"),
        (patched(20, "I", 1), "12 bytes too many"),
        (GOOD + b"\0", "1 bytes too many"),
        (GOOD[:-1], "bytes, at least"),
        (bytes(100_001), "at most 100000 bytes"),
    ],
)
def test_refusals(payload: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode(payload, limits=SMALL)


def test_refusal_of_another_number_of_rows() -> None:
    with pytest.raises(WireError, match="3 rows were asked, found 2"):
        decode(GOOD, torch.zeros(3, 3))


def test_refusal_of_class_ids_for_some_rows() -> None:
    message = predictions(torch.ones(1, 3, 1), "logits", classes=torch.ones(1, 1, 1).long())
    payload = bytearray(encode(message))
    struct.pack_into("<I", payload, HEADER_BYTES, 2)
    with pytest.raises(WireError, match="class ids for 1 or 3 rows, found 2"):
        decode(bytes(payload))


def test_refusal_of_parties_out_of_order() -> None:
    payload = bytearray(encode(predictions(torch.ones(2, 1, 1), "logits")))
    struct.pack_into("<ii", payload, HEADER_BYTES, 1, 0)
    with pytest.raises(WireError, match="parties must ascend"):
        decode(bytes(payload))


MASKED = encode(predictions(torch.ones(1, 3, 1), "probs", mask=torch.tensor([[True, False, True]])))
TRUSTED = encode(predictions(torch.ones(1, 1, 1), "probs", trust=torch.tensor([[0.5]])))
PAIR = predictions(torch.ones(2, 1, 1), "probs", asked=torch.tensor([4, 5]))
STALE = encode(PAIR, send_rows=True)
NAMED = encode(
    predictions(torch.ones(1, 1, 1), "probs", extras={"a": (), "b": (torch.ones(3) > 0,)})
)


def altered(payload: bytes, at: int, raw: bytes) -> bytes:
    return payload[:at] + raw + payload[at + len(raw) :]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (altered(GOOD, 29, b"\0\1"), "three zeros"),
        (altered(GOOD, 12, b"\xfe\xff\xff\xff"), "no party is called -2"),
        (altered(STALE, 12, b"\1"), "no party is called 1"),
        (altered(GOOD, 11, b"\x80"), "the header's round is the first and 0 or more"),
        (altered(STALE, 8, b"\3"), "the header's round is the first"),
        (altered(STALE, HEADER_BYTES, b"\xfe\xff\xff\xff"), "parties are -1 or more"),
        (altered(STALE, HEADER_BYTES + 12, b"\4"), "rounds that are all one are not sent"),
        (altered(STALE, HEADER_BYTES + 12, b"\0\0\0\x80"), "asked are 0 or more"),
        (altered(STALE, HEADER_BYTES + 16, b"\xff\xff\xff\xff"), "rows are 0 or more"),
        (altered(MASKED, HEADER_BYTES, b"\xb0"), "bits beyond the last are zero"),
        (altered(MASKED, HEADER_BYTES, b"\xe0") + bytes(4), "a mask that is all true"),
        (altered(MASKED, 20, bytes(4)), "a mask that is all true"),
        (altered(TRUSTED, HEADER_BYTES, struct.pack("<f", 1)), "a trust that is all one"),
        (NAMED.replace(b"\1\1b", b"\1\1a"), "none comes twice"),
        (NAMED.replace(b"\1\1b", b"\1\1A"), "names of extras ascend"),
        (NAMED.replace(b"\1\1b", b"\1\1\x1b"), "names are printable ASCII, found '.x1b'"),
        (NAMED.replace(b"\1\1b", b"\0\1"), "names are printable ASCII, found ''"),
        (altered(NAMED, len(NAMED) - 1, b"\xe1"), "bits beyond the last are zero"),
    ],
)
def test_refusals_of_another_spelling(payload: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode(payload, limits=SMALL)


def test_class_ids_are_not_negative() -> None:
    own = encode(predictions(torch.ones(1, 1, 1), "probs", classes=torch.ones(1, 1, 1).long()))
    with pytest.raises(WireError, match="classes are 0 or more"):
        decode(altered(own, HEADER_BYTES + 4, b"\xff\xff\xff\xff"))


def test_what_is_altered_above_is_sound_before() -> None:
    for payload in (GOOD, MASKED, TRUSTED, STALE, NAMED):
        assert encode(decode(payload), send_rows=payload is STALE) == payload


def test_scores_left_out_are_limited() -> None:
    mask = torch.zeros(1, 100, dtype=torch.bool)
    payload = encode(predictions(torch.zeros(1, 100, 5), "probs", mask=mask))
    assert decode(payload, limits=SMALL._replace(blanks=500)).scores.shape == (1, 100, 5)
    with pytest.raises(WireError, match="at most 499 scores are left out, of 1 x 100 x 5"):
        decode(payload, limits=SMALL._replace(blanks=499))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parties": torch.tensor([-2, 1])}, "payload.parties: should lie between -1 and 2"),
        ({"asked": torch.tensor([-1, -1])}, "payload.asked: should lie between 0 and .* -1 to -1"),
        ({"rows": torch.tensor([[0, 1 << 31, 0]])}, "payload.rows: .* found 0 to 2147483648"),
        ({"classes": torch.tensor([[[1]], [[-1]]])}, "payload.classes: should lie"),
        ({"extras": {"": ()}}, "payload.extras: a name is 1 to 255 printable"),
        ({"extras": {"é": ()}}, "printable ASCII letters"),
        ({"extras": {"a" * 256: ()}}, "1 to 255"),
        ({"extras": {"a": (torch.zeros(1),) * 256}}, "found 'a' for 256"),
        ({"extras": {"a": (torch.zeros((1,) * 9),)}}, "at most 8 dimensions"),
    ],
)
def test_what_cannot_be_written_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(replace(PAIR, **change), send_rows=True)  # type: ignore[arg-type]


def test_a_trust_that_rounds_to_one_is_one() -> None:
    nearly = torch.full((1, 1), 1 - 1e-12, dtype=torch.float64)
    payload = encode(predictions(torch.ones(1, 1, 1), "probs", trust=nearly))
    assert len(payload) == HEADER_BYTES + 4 and decode(payload).trust.tolist() == [[1.0]]


def with_extra(name: bytes, dtype: int, shape: tuple[int, ...], raw: bytes) -> bytes:
    head = bytearray(GOOD[:HEADER_BYTES])
    head[28] = 1
    form = struct.pack(f"<BB{len(shape)}I", dtype, len(shape), *shape)
    return bytes(head) + GOOD[HEADER_BYTES:] + struct.pack("<BB", len(name), 1) + name + form + raw


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (with_extra(b"\xff", 0, (1,), bytes(4)), "names are printable ASCII"),
        (with_extra(b"w", 10, (1,), bytes(4)), "unknown dtype 10"),
        (with_extra(b"w", 0, (1,) * 9, bytes(4)), "9 dimensions"),
        (with_extra(b"w", 0, (20_000,), b""), "at most 10000 values"),
        (with_extra(b"w", 9, (20_000,), b""), "at most 10000 values"),
        (with_extra(b"w", 0, (2,), bytes(4)), "bytes, at least"),
    ],
)
def test_refusals_of_extras(payload: bytes, says: str) -> None:
    assert decode(with_extra(b"w", 0, (1,), bytes(4))).extras is not None
    with pytest.raises(WireError, match=says):
        decode(payload, limits=SMALL)


@given(messages())
@settings(max_examples=20, deadline=None)
def test_a_payload_cut_anywhere_is_refused(message: Predictions) -> None:
    payload = encode(message, send_rows=True)
    for end in range(len(payload)):
        with pytest.raises(WireError):
            decode(payload[:end], limits=SMALL)


@pytest.fixture(scope="module")
def little_memory() -> Iterator[None]:
    """A gigabyte more than now: claiming more is an error then, not a dead machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def claiming(j: int, r: int, s: int) -> bytes:
    payload = bytearray(GOOD[:HEADER_BYTES])
    struct.pack_into("<III", payload, 16, j, r, s)
    return bytes(payload)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "payload",
    [
        claiming(1, 1 << 28, 0),
        claiming(0, 1 << 31, 1 << 31),
        claiming(1, 1 << 28, 1),
        claiming(1 << 27, 4, 0),
        with_extra(b"w", 0, (0, *[(1 << 32) - 1] * 3), b""),
        with_extra(b"w", 9, (0, *[(1 << 32) - 1] * 3), b""),
    ],
    ids=["no-columns", "no-parties", "many-rows", "many-parties", "no-values", "no-bits"],
)
def test_a_few_bytes_cannot_claim_gigabytes(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode(payload)


@pytest.mark.usefixtures("little_memory")
@given(messages(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_payload_is_read_or_refused(message: Predictions, data: st.DataObject) -> None:
    payload = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        decode(bytes(payload), limits=SMALL)


@pytest.mark.usefixtures("little_memory")
@given(st.binary(max_size=80))
@settings(deadline=None)
def test_noise_after_the_magic_is_read_or_refused(noise: bytes) -> None:
    with suppress(WireError):
        decode(MAGIC + b"\1" + noise, limits=SMALL)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), json_values, max_size=3), st.lists(st.binary(max_size=20)))
@settings(max_examples=50, deadline=None)
def test_bundles_round_trip(head: dict[str, object], blobs: list[bytes]) -> None:
    assert unpack(pack(head, blobs)) == (head, blobs)


@pytest.mark.parametrize("end", range(len(pack({"a": 1}, [b"xyz", b""]))))
def test_a_bundle_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(WireError):
        unpack(pack({"a": 1}, [b"xyz", b""])[:end])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (GOOD, "should begin with"),
        (pack({}, []) + b"\0", "its parts take"),
        (pack({}, []).replace(b"{}", b"{;"), "not JSON"),
        (pack({}, []).replace(b"{}", b"[]"), "must be an object, found list"),
        (pack({}, []).replace(b"B\1", b"B\2"), "version 1 is read here, found 2"),
        (pack({"a": 1, "b": 2}, []).replace(b"b", b"a"), "a key comes twice"),
        (pack({"": "abcd"}, []).replace(b"abcd", b"\xc3\xa9cd"), "not JSON"),
        (pack({"": 1e9}, []).replace(b"{", b"[").replace(b"}", b"["), "not JSON"),
    ],
)
def test_refusals_of_bundles(message: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        unpack(message)
