"""Ask clients, get answers: stacks into bundles, bytes counted, replies checked and put in order.

The engine sees this and nothing of Flower or Ray. A `Transport` carries task bytes to whoever works
and brings reply bytes back; the exchange decides who is trained together (which defines the bits)
and what travels together (which does not).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedkd import rng, wire
from fedkd.assemble import Plan
from fedkd.client import dense
from fedkd.store import Folder, Ref, ref, shard_of
from fedkd.tasks import rows_to
from fedkd.transforms import Total
from fedkd.types import Codec, Linear, Predictions, Shape, State

Kind = Literal["work", "observe"]
T = TypeVar("T")
EVERYONE = -1  # the key of a download that is the same for all
_WINDOW = 4  # stacks' worth of clients that may be sorted by size before they are stacked
_NEAR = 256  # ids within which the heavy go first: bounds what comes before its turn
_MOST_CLIENTS = 64  # in a bundle: bounds what one message holds
_SIMPLEX = 1e-4


class Transport(Protocol):
    """Where tasks go. `fetch` blocks until a ticket's reply is there, and hands it out once."""

    workers: int

    def submit(self, kind: Kind, messages: Sequence[bytes]) -> Sequence[str]: ...
    def fetch(self, ticket: str) -> bytes: ...


class ClientFailure(RuntimeError):
    """A client's work failed, or its answer was refused; the text says whose, when and why."""


class Reply(NamedTuple):
    """What one client did: gradient steps, and its answer if it was asked for one."""

    client: int
    steps: int
    answer: Predictions | None


@dataclass(frozen=True, slots=True)
class Question:
    """What clients are to do in a round, in order, and about which rows.

    `steps` are words of `fedkd.client`; `rows` [R, 3] the public rows to answer or to learn;
    `mask` [K', R] which of them each client is asked, None for all; `known` whether both sides
    derive the list from the seed; `downloads` payloads by client, or one for all under EVERYONE.
    """

    round: int
    steps: tuple[str, ...]
    rows: Tensor
    mask: Tensor | None = None
    known: bool = True
    downloads: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Count:
    """Bytes of communication since the last reset: answers up, targets and requests down."""

    up: int = 0
    down: int = 0


class Exchange:
    """One run's dealings with its clients; `refs` says where each client's state lies."""

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        folder: Folder,
        data: str,
        event: Callable[[dict[str, Any]], None],  # Any: JSON
    ) -> None:
        self.plan, self._transport, self._folder = plan, transport, folder
        self._config = plan.config.model_dump(mode="json")
        self._data, self._event = data, event
        self.refs: dict[int, Ref] = {}
        self.links: dict[int, State] = {}  # our end of the clients' stateful upload codecs
        self.bytes = Count()
        self.tasks = 0
        self._shape = Shape(plan.clients, len(plan.public), plan.dataset.classes)

    def ask(self, question: Question, clients: Sequence[int]) -> Iterator[Reply]:
        """Set the clients to work at once; yield their replies in ascending id as they come.

        Raises `ClientFailure` for a failed client or an answer that breaks the rules.
        """
        stacks = stacks_of(self.plan, clients)
        self.tasks += 1
        task = f"{question.round:06d}-{self.tasks:06d}"
        self._count_down(question, clients)
        bundles = bundles_of(self.plan, stacks, question.steps, self._transport.workers)
        messages = [self._message(question, clients, bundle, task) for bundle in bundles]
        tickets = self._transport.submit("work", messages)
        return self._replies(question, clients, bundles, tickets, task)

    def total(
        self, linear: Linear, question: Question, clients: Sequence[int]
    ) -> tuple[Total, list[Reply]]:
        """The same, but only the sum of a linear statistic: answers are folded and let go."""
        total, said = Total(linear), []
        for reply in self.ask(question, clients):
            if reply.answer is not None:
                total.add(spread(reply.answer, question, clients))
            said.append(reply._replace(answer=None))
        return total, said

    def observe(
        self, kind: str, round_: int, clients: Sequence[int], answers: bool
    ) -> Iterator[dict[str, Any]]:
        """The observer's channel: start at once, yield what is said of clients by ascending id."""
        stacks = stacks_of(self.plan, clients)
        bundles = bundles_of(self.plan, stacks, (kind,), self._transport.workers)
        messages = []
        for bundle in bundles:
            head = {**self._head(round_, bundle), "observe": kind, "answers": answers}
            messages.append(self._packed(head, [], bundle))
        tickets = self._transport.submit("observe", messages)
        fetched = in_order(
            clients, bundles, lambda b: self._observed(bundles[b], tickets[b], round_)
        )
        return (said for _, said in fetched)

    def alone(self, kind: str) -> Callable[[], dict[str, Any]]:
        """A yardstick without clients: start it, and fetch what it says when called."""
        head = {**self._head(0, []), "observe": kind, "answers": False}
        (ticket,) = self._transport.submit("observe", [self._packed(head, [], [])])
        return lambda: dict(self._unpacked(ticket, 0)[0]["said"])

    def _observed(
        self, bundle: Sequence[Sequence[int]], ticket: str, round_: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        head, blobs = self._opened(bundle, ticket, round_)
        for said in head["clients"]:
            if said.get("payload") is not None:
                said["answer"] = wire.decode(blobs[said["payload"]])
            yield said["client"], said

    def _head(self, round_: int, bundle: Sequence[Sequence[int]]) -> dict[str, Any]:
        carried = self.plan.config.execution.store == "carried"
        return {
            "config": self._config,
            "data": self._data,
            "store": None if carried else str(self._folder.root),
            "round": round_,
            "stacks": [
                {"clients": list(s), "refs": [self.refs.get(c) for c in s], "shard": None}
                for s in bundle
            ],
            "shards": {},
        }

    def _packed(
        self, head: dict[str, Any], blobs: list[bytes], bundle: Sequence[Sequence[int]]
    ) -> bytes:
        if head["store"] is None:
            names = {shard_of(self.refs[c]) for s in bundle for c in s if c in self.refs}
            for name in sorted(names):
                head["shards"][name] = len(blobs)
                blobs.append(self._folder.bytes_of(name))
        return wire.pack(head, blobs)

    def _message(
        self, question: Question, clients: Sequence[int], bundle: Sequence[Sequence[int]], task: str
    ) -> bytes:
        head = self._head(question.round, bundle)
        for stack in head["stacks"]:
            stack["shard"] = f"{task}-{stack['clients'][0]:06d}"
        blobs = [rows_to(question.rows)]
        head |= {"steps": list(question.steps), "rows": 0, "masks": None, "downloads": {}}
        inside = [c for s in bundle for c in s]
        if question.mask is not None:
            place = {c: k for k, c in enumerate(clients)}
            head["masks"] = {}
            for client in inside:
                head["masks"][str(client)] = len(blobs)
                blobs.append(np.packbits(question.mask[place[client]].numpy()).tobytes())
        for key in (EVERYONE, *inside):
            if key in question.downloads:
                head["downloads"][str(key)] = len(blobs)
                blobs.append(question.downloads[key])
        return self._packed(head, blobs, bundle)

    def _count_down(self, question: Question, clients: Sequence[int]) -> None:
        """A broadcast counts once a receiving client; so does a row list that is not derived."""
        for k, client in enumerate(clients):
            payload = question.downloads.get(client, question.downloads.get(EVERYONE))
            self.bytes.down += len(payload) if payload is not None else 0
            if "answer" in question.steps:
                if not question.known:
                    asked = (
                        question.rows if question.mask is None else question.rows[question.mask[k]]
                    )
                    self.bytes.down += 4 * len(asked)
                elif question.mask is not None:
                    self.bytes.down += -(-len(question.rows) // 8)

    def _unpacked(self, ticket: str, round_: int) -> tuple[dict[str, Any], list[bytes]]:
        head, blobs = wire.unpack(self._transport.fetch(ticket))
        if "error" in head:
            said = head["error"]
            self._event(
                {
                    "round": round_,
                    "kind": "failure",
                    "clients": said["clients"],
                    "cause": f"{said['type']}: {said['message']}",
                    "traceback": said["traceback"],
                }
            )
            raise ClientFailure(
                f"round {round_}: client {', '.join(map(str, said['clients'][:8]))} failed with"
                f" {said['type']}: {said['message']}\n{said['traceback']}"
            )
        return head, blobs

    def _opened(
        self, bundle: Sequence[Sequence[int]], ticket: str, round_: int
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A bundle's reply, which must speak of its clients, each once and in order."""
        head, blobs = self._unpacked(ticket, round_)
        expected = [c for s in bundle for c in s]
        found = [said["client"] for said in head["clients"]]
        if found != expected:
            raise ClientFailure(
                f"round {round_}: clients {expected} were asked, a reply speaks of {found}"
            )
        return head, blobs

    def _replies(
        self,
        question: Question,
        clients: Sequence[int],
        bundles: Sequence[Sequence[Sequence[int]]],
        tickets: Sequence[str],
        task: str,
    ) -> Iterator[Reply]:
        place = {client: k for k, client in enumerate(clients)}
        fetched = in_order(
            clients, bundles, lambda b: self._done(bundles[b], tickets[b], question.round, task)
        )
        for client, (steps, payload) in fetched:
            given = None
            if payload is not None:
                given = self._answer(question, place[client], client, payload)
            yield Reply(client, steps, given)

    def _done(
        self, bundle: Sequence[Sequence[int]], ticket: str, round_: int, task: str
    ) -> Iterator[tuple[int, tuple[int, bytes | None]]]:
        """What a bundle's clients did; from here on their state is the one that they wrote."""
        head, blobs = self._opened(bundle, ticket, round_)
        shards = {f"{task}-{stack[0]:06d}": stack for stack in bundle}
        for name, index in head["shards"].items():
            if name not in shards:
                raise ClientFailure(
                    f"round {round_}: a reply brings the shard {name!r}, which is not its own"
                )
            self._folder.put_bytes(name, blobs[index])
        for name, stack in shards.items():
            self.refs |= {client: ref(name, client) for client in stack}
        for said in head["clients"]:
            index = said["payload"]
            yield said["client"], (int(said["steps"]), None if index is None else blobs[index])

    def _answer(self, question: Question, k: int, client: int, payload: bytes) -> Predictions:
        """Decode one client's payload and hold it to what was asked and declared."""
        plan = self.plan
        self.bytes.up += len(payload)
        weights = "upload_weights" in question.steps
        rows = question.rows if question.mask is None else question.rows[question.mask[k]]
        codec: Codec = dense if weights else plan.strategy.upload_codec or dense
        link = self.links.get(client) or codec.init(self._shape)
        stream = rng.stream(plan.config.seed, question.round, client, "decode-up")
        try:
            link, given = codec.decode(link, payload, rows[:0] if weights else rows, stream)
            check(plan, given, question.round, client, rows[:0] if weights else rows)
        except ValueError as error:
            self._event(
                {
                    "round": question.round,
                    "kind": "refused",
                    "clients": [client],
                    "cause": str(error),
                }
            )
            raise ClientFailure(
                f"round {question.round}: the answer of client {client} was refused: {error}"
            ) from None
        if link:
            self.links[client] = link
        return given


def in_order(
    clients: Sequence[int],
    bundles: Sequence[Sequence[Sequence[int]]],
    fetch: Callable[[int], Iterator[tuple[int, T]]],
) -> Iterator[tuple[int, T]]:
    """What is said of each client, in the order of `clients`.

    A bundle is fetched when the next client is in it; until then its reply waits where it is, so
    that this process holds little of what came early.
    """
    home = {c: b for b, bundle in enumerate(bundles) for s in bundle for c in s}
    early: dict[int, T] = {}
    for client in clients:
        if client not in early:
            early.update(fetch(home[client]))
        yield client, early.pop(client)


def check(plan: Plan, given: Predictions, round_: int, client: int, rows: Tensor) -> None:
    """Hold an answer to the question and to what the method declares. Raises `ValueError`."""
    shares, classes = plan.strategy.shares, plan.dataset.classes
    if given.parties.tolist() != [client]:
        raise ValueError(f"party: should be {client}, found {given.parties.tolist()}")
    if given.asked.tolist() != [round_]:
        raise ValueError(f"round: should be {round_}, found {given.asked.tolist()}")
    if not torch.equal(given.rows, rows):
        raise ValueError("rows: should be those that were asked, in order, found others")
    found = set(given.extras or ()) | ({"classes"} if given.classes is not None else set())
    undeclared = found - shares.extras
    if undeclared:
        raise ValueError(
            f"{', '.join(sorted(undeclared))}: may not cross the wire; the method declares"
            f" {', '.join(sorted(shares.extras)) or 'answers alone'} (Strategy.shares.extras)"
        )
    for name, tensors in (given.extras or {}).items():
        if not all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point()):
            raise ValueError(f"{name}: should be finite")
    if len(rows) == 0:
        return
    if shares.answers is None:
        raise ValueError("scores: the method declares no answers, found some")
    if given.space != shares.answers:
        raise ValueError(f"space: the method declares {shares.answers}, found {given.space}")
    if given.scores.shape[2] != classes and given.classes is None:
        raise ValueError(f"scores: {classes} classes expected, found {given.scores.shape[2]}")
    if given.classes is not None and bool(((given.classes < 0) | (given.classes >= classes)).any()):
        raise ValueError(f"classes: should be from 0 to {classes - 1}, found others")
    values, trust = given.scores[given.mask], given.trust[given.mask]
    if not bool(torch.isfinite(values).all()):
        raise ValueError("scores: should be finite where the mask is true")
    if not bool((torch.isfinite(trust) & (trust >= 0)).all()):
        raise ValueError("trust: should be finite and at least 0")
    if given.space == "probs" and given.classes is None:
        off = float((values.sum(-1) - 1).abs().max()) if len(values) else 0.0
        if off > _SIMPLEX or bool((values < 0).any()):
            raise ValueError(
                "scores: probabilities should be >= 0 and sum to 1 within"
                f" {_SIMPLEX}, off by {off:.2g}"
            )


def spread(given: Predictions, question: Question, clients: Sequence[int]) -> Predictions:
    """An answer about the rows asked of one client, on all rows of the question."""
    if question.mask is None:
        return given
    asked = question.mask[list(clients).index(int(given.parties[0]))]
    r, s = len(question.rows), given.scores.shape[2]
    scores, mask, trust = (
        torch.zeros(1, r, s),
        torch.zeros(1, r, dtype=torch.bool),
        torch.zeros(1, r),
    )
    scores[0, asked], mask[0, asked], trust[0, asked] = (
        given.scores[0],
        given.mask[0],
        given.trust[0],
    )
    classes = given.classes
    if classes is not None and classes.shape[1] != 1:
        wide = torch.zeros(1, r, s, dtype=classes.dtype)
        wide[0, asked] = classes[0]
        classes = wide
    return replace(
        given, scores=scores, mask=mask, trust=trust, rows=question.rows, classes=classes
    )


def stacks_of(plan: Plan, clients: Sequence[int]) -> list[list[int]]:
    """Who is trained together: clients of one architecture and similar size, ids not far apart.

    A pure function of the experiment and the participants, so that bits do not depend on workers.
    Ids stay within a window, so that answers can be folded in ascending order with a small buffer.
    """
    stacks = []
    sizes = plan.dataset.histogram.sum(1)
    for index, made in enumerate(plan.architectures):
        own = [c for c in clients if plan.teacher[c] == index]
        for start in range(0, len(own), made.stack * _WINDOW):
            window = sorted(own[start : start + made.stack * _WINDOW], key=lambda c: (-sizes[c], c))
            stacks += [
                sorted(window[i : i + made.stack]) for i in range(0, len(window), made.stack)
            ]
    return sorted(stacks, key=lambda s: s[0])


def cost(plan: Plan, stack: Sequence[int], steps: Sequence[str]) -> float:
    """About how much work a stack is: multiply-adds of all passes."""
    made = plan.architectures[plan.teacher[stack[0]]]
    learning, config = plan.config.learning, plan.config
    private = float(sum(plan.dataset.histogram[c].sum() for c in stack))
    public = float(len(plan.public) * len(stack))
    passes = {
        "train": 3 * private * learning.private.epochs,
        "distil": 3 * public * learning.client.epochs,
        "pretrain": 3 * public * learning.pretrain.epochs,
        "answer": public,
        "teachers": float(len(plan.dataset.test) * len(stack)),
        "local": 3 * private * learning.private.epochs * config.rounds,
    }
    return made.multiply_adds * (1.0 + sum(passes.get(step, 0.0) for step in steps))


def bundles_of(
    plan: Plan, stacks: Sequence[list[int]], steps: Sequence[str], workers: int
) -> list[list[list[int]]]:
    """What travels together: heavy bundles first, then lighter ones, so workers end together.

    Among clients of near ids, stacks go by cost down to a factor of two, then by id, so that
    answers arrive nearly in the order in which they are folded. Each bundle takes its share of
    what is left (guided self-scheduling), bounded in clients so that a message stays small.
    """
    costs = {s[0]: cost(plan, s, steps) for s in stacks}
    queue = deque(sorted(stacks, key=lambda s: (s[0] // _NEAR, -int(np.log2(costs[s[0]])), s[0])))
    left = sum(costs.values())
    bundles: list[list[list[int]]] = []
    while queue:
        bundle = [queue.popleft()]
        load, clients, share = costs[bundle[0][0]], len(bundle[0]), left / (2 * workers)
        while (
            queue
            and load + costs[queue[0][0]] <= share
            and clients + len(queue[0]) <= _MOST_CLIENTS
        ):
            load, clients = load + costs[queue[0][0]], clients + len(queue[0])
            bundle.append(queue.popleft())
        bundles.append(bundle)
        left -= load
    return bundles
