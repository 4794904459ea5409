"""SCARLET: soft labels are cached on both sides, and only those that grew old are asked for again.

H. Azuma, T. Nishio, Y. Kitagawa, T. Nakano, K. Tanimura, "Soft-label caching and sharpening for
communication-efficient federated distillation", IEEE Transactions on Mobile Computing, 2026,
https://arxiv.org/abs/2504.19602
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fedkd.transforms import mean, power, random_rows, softmax
from fedkd.types import (
    CONSENSUS,
    DISTIL_FIRST,
    Ask,
    Codec,
    Count,
    Natural,
    Positive,
    Predictions,
    Request,
    Shape,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
    predictions,
)
from fedkd.wire import WireError
from fedkd.wire import decode as from_wire
from fedkd.wire import encode as to_wire

CACHED, NEWLY_CACHED, EXPIRED, NO_TARGET = range(4)  # two bits a row


def scarlet(
    beta: Positive = 1.5,
    rows: Count | None = 1000,
    duration: Natural = 50,
    restore: bool = False,
) -> Strategy:
    """Enhanced ERA, q_c = pbar_c^beta / sum_c pbar_c^beta, behind a cache of `duration` D rounds.

    A row is asked for if it has no entry or one stored D or more rounds ago. When it comes: no
    entry, store it; age <= D, the old value holds; age > D, delete the entry and use the fresh
    value once, so that the row is stored at its next draw. `restore` stores it at once instead,
    which saves every second upload. A row at age exactly D is thus sent up in vain; in the authors'
    code the server's model learns that fresh value, here it learns what the clients learn. An
    expired row that nobody answers loses its entry and has no target.

    The authors use beta 2.0 at Dirichlet 0.05 and 1.0 at 0.3; the default lies between, for
    Dirichlet 0.1. D = 0 is no cache. A client that missed rounds catches up in its next message.
    """
    return Strategy(
        combine=mean(),
        finish=_cache(power(beta), duration, restore),
        request=_uncached(random_rows(rows), duration),
        upload=softmax(),
        download_codec=Codec(_empty_mirror, _encode, _decode),
        program=DISTIL_FIRST,
        shares=Shares(
            answers="probs",
            # of a client that missed nothing: values, two bits a row, and the name of these bits.
            # A catch-up adds its values, 20 bytes, and 8 a row, deleted ones included
            downlink=lambda t: 4 * t.changed * t.classes + -(-t.rows // 4) + 2 + len("signals") + 6,
            traits=frozenset({"caches"} if beta == 1 else {"caches", "sharpens"}),
        ),
    )


def _uncached(draw: Request, duration: int) -> Request:
    def request(
        state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
    ) -> Ask:
        ask = draw(state, round_, public, clients, rng)
        stamp = state["stamp"][ask.rows[:, 1]]
        wanted = (stamp == 0) | (stamp + duration <= round_)
        return ask._replace(mask=wanted.repeat(len(clients), 1))

    return request


def _cache(sharpen: Transform, duration: int, restore: bool) -> Transform:
    """The server's cache: `values` [P, C], `stamp` [P], the round of storing, 0 for no entry, and
    `sets` [P], the public set of a row, as far as it was seen.

    What goes on holds the rows of this round first, then the rest of the cache with trust 0: known,
    but not to be learnt from now. So trust > 0 or mask False tells the rows of this round. The
    extra `stamp` [1, R'] says what the mirrors are to hold.
    """

    def init(shape: Shape) -> State:
        return {
            "values": torch.zeros(shape.rows, shape.classes),
            "stamp": torch.zeros(shape.rows, dtype=torch.int64),
            "sets": torch.zeros(shape.rows, dtype=torch.int64),
        }

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        fresh = sharpen.apply({}, given, rng).result
        now, at, answered = given.asked[0], given.rows[:, 1], given.mask[0]
        values, stamp, sets = (state[name].clone() for name in ("values", "stamp", "sets"))
        sets[at] = given.rows[:, 0]
        old = stamp[at]
        cached = (old > 0) & (now - old <= duration)
        stored = answered & ~cached & ((old == 0) | restore)
        target = torch.where(cached.unsqueeze(-1), values[at], fresh.scores[0])
        stamp[at] = torch.where(cached, old, torch.where(stored, now, 0))
        values[at] = torch.where((cached | stored).unsqueeze(-1), target, 0)

        others = stamp > 0
        others[at] = False
        rest = others.nonzero().squeeze(-1)
        rows = torch.zeros(len(rest), 3, dtype=torch.int64)
        rows[:, 0], rows[:, 1] = sets[rest], rest
        known = answered | cached
        result = replace(
            fresh,
            scores=torch.cat([target, values[rest]]).unsqueeze(0),
            mask=torch.cat([known, torch.ones(len(rest), dtype=torch.bool)]).unsqueeze(0),
            trust=torch.cat([known.float(), torch.zeros(len(rest))]).unsqueeze(0),
            rows=torch.cat([given.rows, rows]),
            extras={"stamp": (stamp[torch.cat([at, rest])].unsqueeze(0),)},
        )
        facts = {
            "cached": float(cached.sum()),
            "newly_cached": float(stored.sum()),
            "sent_once": float((answered & ~cached & ~stored).sum()),
        }
        return Step({"values": values, "stamp": stamp, "sets": sets}, result, facts)

    return Transform(init, apply)


def _empty_mirror(shape: Shape) -> State:
    """What the client holds: `stamp` [P] and `values` [P, C]; the server drops the values."""
    return {
        "values": torch.zeros(shape.rows, shape.classes),
        "stamp": torch.zeros(shape.rows, dtype=torch.int64),
    }


def _encode(held: State, given: Predictions, rng: Generator) -> tuple[State, bytes]:
    """A signal for each row of the round, the values that the mirror lacks, and what it missed."""
    if given.extras is None or "stamp" not in given.extras:
        raise ValueError("scarlet: the cache's stamps are gone; keep extras in `download`")
    now, at, stamp = given.asked[0], given.rows[:, 1], given.extras["stamp"][0][0]
    cache = torch.zeros_like(held["stamp"])
    cache[at] = stamp
    signal = torch.full_like(stamp, CACHED)
    signal[(stamp == now) & (held["stamp"][at] != now)] = NEWLY_CACHED
    signal[stamp == 0] = EXPIRED
    signal[~given.mask[0]] = NO_TARGET
    of_round = (given.trust[0] > 0) | ~given.mask[0]
    told = of_round & (signal != CACHED)

    mirror = held["stamp"].clone()
    mirror[at[told]] = cache[at[told]]
    missed = (mirror != cache).nonzero().squeeze(-1)
    place = torch.zeros_like(cache)
    place[at] = torch.arange(len(at))
    valued = torch.cat(
        [(told & given.mask[0]).nonzero().squeeze(-1), place[missed[cache[missed] > 0]]]
    )
    payload = _message(given.scores[:, valued], now, signal[of_round], missed, cache[missed])
    return {"stamp": cache}, payload


def _decode(held: State, payload: bytes, rows: Tensor, rng: Generator) -> tuple[State, Predictions]:
    """The targets of the round's rows; the mirror afterwards equals the server's cache."""
    stamp, values, at = held["stamp"].clone(), held["values"].clone(), rows[:, 1]
    message = from_wire(payload)
    signal, missed, when = _read(message, len(rows), values)
    sent, now = message.scores[0], message.asked[0]
    if payload != _message(message.scores, now, signal, missed, when):
        raise WireError("scarlet: the message holds what no server writes")
    valued = (signal == NEWLY_CACHED) | (signal == EXPIRED)
    first = int(valued.sum())

    stamp[missed] = when
    values[missed] = 0
    values[missed[when > 0]] = sent[first:]
    if bool((stamp[at[signal == CACHED]] == 0).any()):
        raise WireError("scarlet: a row is said to be cached and is not; the mirror is out of step")
    scores = values[at]
    scores[signal == NO_TARGET] = 0
    scores[valued] = sent[:first]
    stamp[at] = torch.where(
        signal == CACHED, stamp[at], torch.where(signal == NEWLY_CACHED, now, 0)
    )
    values[at] = torch.where((stamp[at] > 0).unsqueeze(-1), scores, 0)
    result = predictions(
        scores.unsqueeze(0),
        message.space,
        mask=(signal != NO_TARGET).unsqueeze(0),
        trust=(signal != NO_TARGET).float().unsqueeze(0),
        rows=rows,
        parties=message.parties,
        asked=message.asked,
    )
    return {"stamp": stamp, "values": values}, result


def _message(scores: Tensor, now: Tensor, signal: Tensor, missed: Tensor, when: Tensor) -> bytes:
    """Values [1, V, C], signals [R], positions missed [M] and their stamps [M]."""
    extras: dict[str, tuple[Tensor, ...]] = {"signals": (_packed(signal),)}
    if len(missed):
        extras["missed"] = (missed.int(), when.int())
    consensus = torch.tensor([CONSENSUS])
    return to_wire(
        predictions(scores, "probs", parties=consensus, asked=now.view(1), extras=extras)
    )


def _read(message: Predictions, rows: int, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signals [R], positions missed [M] and their stamps [M], checked against each other."""
    none = torch.zeros(0, dtype=torch.int32)
    extras = message.extras or {}
    packed, pair = extras.get("signals", ()), extras.get("missed", (none, none))
    if [(t.dtype, t.shape) for t in packed] != [(torch.uint8, (-(-rows // 4),))]:
        found = sum(t.nbytes for t in packed)
        raise WireError(f"scarlet: two bits for each of {rows} rows, found {found} bytes")
    count = sum(t.numel() for t in pair) // 2
    if [(t.dtype, t.shape) for t in pair] != 2 * [(torch.int32, (count,))]:
        raise WireError(f"scarlet: a stamp for each missed row, found {count} pairs of other kind")
    signal, (missed, when) = _unpacked(packed[0])[:rows], (t.long() for t in pair)
    values = int(((signal == NEWLY_CACHED) | (signal == EXPIRED)).sum() + (when > 0).sum())
    if message.scores.shape != (1, values, held.shape[1]) or message.scores.dtype != held.dtype:
        raise WireError(
            f"scarlet: {values} values are announced, each {held.shape[1]} of {held.dtype},"
            f" found {list(message.scores.shape)} of {message.scores.dtype}"
        )
    stray = (missed.diff() <= 0).any() | ((missed < 0) | (missed >= len(held))).any()
    if bool(stray | ((when < 0) | (when > message.asked)).any()):
        raise WireError(
            f"scarlet: a stamp up to now for each missed row below {len(held)}, in order, found"
            " others"
        )
    return signal, missed, when


def _packed(signal: Tensor) -> Tensor:
    """Four signals a byte, the first lowest."""
    quads = torch.nn.functional.pad(signal, (0, -len(signal) % 4)).view(-1, 4)
    return (quads << torch.tensor([0, 2, 4, 6])).sum(-1).to(torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    return ((packed.long().unsqueeze(-1) >> torch.tensor([0, 2, 4, 6])) & 3).flatten()
