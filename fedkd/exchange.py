"""Ask clients, get answers: bytes counted, answers checked and put in order, time kept.

The engine sees this and nothing of Flower or Ray. What travels and what becomes of failures is in
`asking`, who is trained together in `bundles`, what an answer is held to in `answers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd import rng, wire
from fedkd.answers import check, check_weights, narrow, spread
from fedkd.asking import Asking, Bundle, Event, Kind, Lost, Message, Said, Transport
from fedkd.assemble import Plan
from fedkd.bundles import bundles_of, multiply_adds, stacks_of
from fedkd.client import dense
from fedkd.store import Folder, Ref, digest, ref, shard_of
from fedkd.tasks import rows_to
from fedkd.transforms import Total, party, stack
from fedkd.types import Codec, Effort, Linear, Predictions, Shape, State

EVERYONE = -1  # the key of a download that is the same for all


class TooFew(RuntimeError):
    """So many clients failed that the round must not go on; the text says how many are left."""


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

    def download(self, client: int) -> bytes | None:
        """What is sent to a client to learn from."""
        return self.downloads.get(client, self.downloads.get(EVERYONE))


@dataclass(slots=True)
class Count:
    """Bytes of communication since the last reset: answers up, targets and requests down."""

    up: int = 0
    down: int = 0


@dataclass(slots=True)
class Absences:
    """Who is out for the rest of a round: left out after a failure, gone, or too late."""

    dropped: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)

    def __contains__(self, client: int) -> bool:
        return client in self.dropped or client in self.absent or client in self.late


class Exchange:
    """One run's dealings with its clients; `refs` says where each client's state lies.

    `session` sets the shards of a resumed run apart from those that it may have left behind.
    """

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        folder: Folder,
        data: str,
        note: Callable[[Event], None],
        session: int = 0,
    ) -> None:
        self.plan, self._transport, self._folder = plan, transport, folder
        self._config = plan.config.model_dump(mode="json")
        self.note = note
        self._data, self._session = data, session
        self.refs: dict[int, Ref] = {}
        self.shards: dict[str, str] = {}  # SHA-256 by name
        self.links: dict[int, State] = {}  # our end of the clients' stateful upload codecs
        self.bytes = Count()
        self._sent: dict[int, int] = {}  # bytes of every client's last upload
        self.out = Absences()
        self.clock = 0.0  # virtual seconds since the beginning
        self._tasks = 0
        self._under_way: list[Asking] = []
        self._shape = Shape(plan.clients, len(plan.rows), plan.dataset.classes)

    def begin(self) -> None:
        """A new round: nothing is counted yet, nobody is out."""
        self.bytes, self.out, self._under_way = Count(), Absences(), []

    def abandon(self) -> None:
        """Let what is under way come to its end and forget it."""
        for asking in self._under_way:
            asking.abandon()

    def ask(self, question: Question, clients: Sequence[int]) -> Iterator[Reply]:
        """Set the clients to work at once; yield their replies in ascending id as they come.

        Who fails is dropped, or raises `ClientFailure`, as the experiment says, and `TooFew` once
        too few are left. Who is late has worked, and its reply is not yielded.
        """
        present = self._present(question, clients)
        self._count_down(question, clients)
        bundles = bundles_of(
            self.plan,
            stacks_of(self.plan, present),
            question.steps,
            self._transport.workers,
            question.round,
        )
        self._tasks += 1
        task = f"{question.round:06d}-{self._session}-{self._tasks:06d}"
        place = {client: k for k, client in enumerate(clients)}
        refs = {c: self.refs[c] for c in present if c in self.refs}

        def message(bundle: Bundle, attempt: int) -> Message:
            return self._message(question, place, bundle, refs, task, attempt)

        asking = self._asking("work", question.round, question.steps, bundles, message)
        return self._replies(asking, question, place, present)

    def total(
        self,
        linear: Linear,
        question: Question,
        clients: Sequence[int],
        seen: Callable[[Predictions], None] = lambda given: None,
    ) -> tuple[Total, list[Reply]]:
        """The same, but only the sum of a linear statistic: answers are folded and let go.

        `seen` is shown each of them before that, laid out on the rows of the question.
        """
        total, said = Total(linear, self.plan.dataset.classes), []
        for reply in self.ask(question, clients):
            if reply.answer is not None:
                given = spread(reply.answer, question.rows, question.mask, clients)
                seen(given)
                total.add(given)
            said.append(reply._replace(answer=None))
        return total, said

    def conspired(
        self, question: Question, clients: Sequence[int], honest: Predictions
    ) -> tuple[Predictions, list[int]]:
        """All answers [J, R, S] after the world's liars have seen them, and whose were changed.

        A lie goes through the method's codec and the checks like any other answer, and its bytes
        count instead of those of the honest one.
        """
        plan, round_ = self.plan, question.round
        lying = plan.world.liars(plan.clients)
        present = [c in lying for c in honest.parties.tolist()]
        if plan.world.conspire is None or not any(present):
            return honest, []
        stream = self._stream(round_, rng.SERVER, "conspire")
        told = plan.world.conspire(honest, torch.tensor(present), stream)
        codec, place = plan.strategy.upload_codec or dense, list(clients).index
        parts, liars = list[Predictions](), list[int]()
        for j, client in enumerate(honest.parties.tolist()):
            if not present[j]:
                parts.append(party(honest, j))
                continue
            lie, k = party(told, j), place(client)
            if question.mask is not None:
                lie = narrow(lie, question.mask[k])
            stream = self._stream(round_, client, "encode")
            _, payload = codec.encode(codec.init(self._shape), lie, stream)
            try:
                _, lie = self._answer(question, k, client, payload)
            except ValueError as error:
                name = plan.config.world.name
                raise ValueError(f"world: {name} told what is no answer: {error}") from error
            self.bytes.up += len(payload) - self._sent[client]
            parts.append(spread(lie, question.rows, question.mask, clients))
            liars.append(client)
        return stack(parts), liars

    def observe(
        self, kind: str, round_: int, clients: Sequence[int], answers: bool
    ) -> Iterator[dict[str, Any]]:
        """The observer's channel: start at once, yield what is said of clients by ascending id."""
        stacks = stacks_of(self.plan, clients)
        bundles = bundles_of(self.plan, stacks, (kind,), self._transport.workers, round_)
        unnamed = torch.tensor([-1]).expand(len(self.plan.dataset.test), 3)

        def message(bundle: Bundle, attempt: int) -> Message:
            head = {**self._head(round_, bundle, self.refs), "observe": kind, "answers": answers}
            return Message(self._packed(head, [], bundle, self.refs), {})

        models = kind == "logits" and self.plan.strategy.reply is None
        space: Literal["logits", "as sent"] = "logits" if models else "as sent"

        def accept(client: int, said: Said) -> dict[str, Any]:
            told: dict[str, Any] = {"client": client, "steps": said.steps, **said.facts}
            if said.payload is not None:
                given = wire.decode(said.payload, unnamed)
                check(self.plan, given, round_, client, unnamed, observed=space)
                told["answer"] = given
            return told

        asking = self._asking("observe", round_, (kind,), bundles, message)
        return (told for _, told in asking.hear(clients, accept))

    def alone(self, kind: str) -> Callable[[], dict[str, Any]]:
        """A yardstick without clients: start it, and fetch what it says when called."""
        head = {**self._head(0, [], {}), "observe": kind, "answers": False}
        content = wire.pack(head, [])
        (ticket,) = self._transport.submit("observe", [content], [None])

        def fetch() -> dict[str, Any]:
            nonlocal ticket
            for attempt in range(self.plan.config.execution.retries + 1):
                try:
                    reply, _ = wire.unpack(self._transport.fetch(ticket))
                    if "error" not in reply:
                        return dict(reply["said"])
                    error = reply["error"]
                    raise Lost(f"{error['type']}: {error['message']}", error["traceback"])
                except Lost as lost:
                    last = attempt == self.plan.config.execution.retries
                    self.note(
                        {
                            "kind": "lost",
                            "phase": kind,
                            "cause": str(lost),
                            "traceback": lost.traceback,
                            "outcome": "stopped" if last else "retried",
                        }
                    )
                    if last:
                        raise
                (ticket,) = self._transport.submit("observe", [content], [None])
            raise AssertionError("the last try returns or raises")

        return fetch

    def _asking(
        self,
        kind: Kind,
        round_: int,
        steps: Sequence[str],
        bundles: Sequence[Bundle],
        message: Callable[[Bundle, int], Message],
    ) -> Asking:
        execution = self.plan.config.execution
        asking = Asking(
            kind, round_, steps, bundles, message, self._transport, execution, self.note
        )
        self._under_way.append(asking)
        return asking

    def _present(self, question: Question, clients: Sequence[int]) -> list[int]:
        """Who will be heard of again; nothing goes wrong before the first round."""
        if "pretrain" in question.steps:
            return list(clients)
        stays = {
            c: self.plan.world.stays(c, question.round, self._stream(question.round, c, "stays"))
            for c in clients
        }
        self.out.absent += [c for c in clients if not stays[c]]
        return [c for c in clients if stays[c]]

    def _stream(self, round_: int, client: int, purpose: str) -> Any:  # Any: a Generator
        return rng.stream(self.plan.config.seed, round_, client, purpose)

    def _head(self, round_: int, bundle: Bundle, refs: Mapping[int, Ref]) -> dict[str, Any]:
        carried = self.plan.config.execution.store == "carried"
        return {
            "config": self._config,
            "data": self._data,
            "store": None if carried else str(self._folder.root),
            "round": round_,
            "stacks": [
                {"clients": list(s), "refs": [refs.get(c) for c in s], "shard": None}
                for s in bundle
            ],
            "shards": {},
        }

    def _packed(
        self, head: dict[str, Any], blobs: list[bytes], bundle: Bundle, refs: Mapping[int, Ref]
    ) -> bytes:
        if head["store"] is None:
            for name in sorted({shard_of(refs[c]) for s in bundle for c in s if c in refs}):
                head["shards"][name] = len(blobs)
                blobs.append(self._folder.bytes_of(name))
        return wire.pack(head, blobs)

    def _message(
        self,
        question: Question,
        place: Mapping[int, int],
        bundle: Bundle,
        refs: Mapping[int, Ref],
        task: str,
        attempt: int,
    ) -> Message:
        head = self._head(question.round, bundle, refs)
        again = f"-{attempt}" if attempt else ""
        for group in head["stacks"]:
            group["shard"] = f"{task}-{group['clients'][0]:06d}{again}"
        blobs = [rows_to(question.rows)]
        head |= {"steps": list(question.steps), "rows": 0, "masks": None, "downloads": {}}
        inside = [c for s in bundle for c in s]
        if question.mask is not None:
            head["masks"] = {}
            for client in inside:
                head["masks"][str(client)] = len(blobs)
                blobs.append(np.packbits(question.mask[place[client]].numpy()).tobytes())
        for key in (EVERYONE, *inside):
            if key in question.downloads:
                head["downloads"][str(key)] = len(blobs)
                blobs.append(question.downloads[key])
        shards = {group["shard"]: group["clients"] for group in head["stacks"]}
        return Message(self._packed(head, blobs, bundle, refs), shards)

    def _count_down(self, question: Question, clients: Sequence[int]) -> None:
        """A broadcast counts once a receiving client; so does a row list that is not derived."""
        for k, client in enumerate(clients):
            self.bytes.down += self._down(question, k, client)

    @staticmethod
    def _down(question: Question, k: int, client: int) -> int:
        size = len(question.download(client) or b"")
        if "answer" in question.steps:
            if not question.known:
                asked = question.rows if question.mask is None else question.rows[question.mask[k]]
                size += 4 * len(asked)
            elif question.mask is not None:
                size += -(-len(question.rows) // 8)
        return size

    def _replies(
        self,
        asking: Asking,
        question: Question,
        place: Mapping[int, int],
        clients: Sequence[int],
    ) -> Iterator[Reply]:
        least, longest = self.plan.config.execution.min_clients, 0.0

        def accept(client: int, said: Said) -> tuple[Reply, int]:
            return self._accepted(question, place[client], client, said)

        for client, (reply, up) in asking.hear(clients, accept):
            effort = Effort(
                multiply_adds(self.plan, client, question.steps, question.round),
                self._down(question, place[client], client),
                up,
            )
            seconds = self._seconds(client, question.round, effort)
            limit = self.plan.world.deadline or math.inf
            waited = min(seconds, limit)
            longest = max(longest, waited if waited < math.inf else 0.0)
            if reply.answer is not None and (seconds > limit or seconds == math.inf):
                self.out.late.append(client)
            else:
                yield reply
            self._enough(asking, question, len(clients), least)
        self._enough(asking, question, len(clients), least)
        self.out.dropped += asking.dropped
        if len(clients) < len(place) and self.plan.world.deadline:
            longest = self.plan.world.deadline  # nobody knows that they are gone before
        self.clock += longest

    def _enough(self, asking: Asking, question: Question, asked: int, least: int) -> None:
        left = asked - len(asking.dropped)
        if asking.dropped and left < least:
            raise TooFew(
                f"round {question.round}: {left} of {asked} clients are left, at least {least} are"
                " needed (execution.min_clients)"
            )

    def _seconds(self, client: int, round_: int, effort: Effort) -> float:
        if self.plan.world.seconds is None:
            return 0.0
        stream = self._stream(round_, client, "seconds")
        return float(self.plan.world.seconds(client, round_, effort, stream))

    def _accepted(self, question: Question, k: int, client: int, said: Said) -> tuple[Reply, int]:
        """A client's reply, checked; from here on its state is the one that it wrote."""
        given, link, up = None, None, 0
        if said.payload is not None:
            up = len(said.payload)
            link, given = self._answer(question, k, client, said.payload)
        elif {"answer", "upload_weights"} & set(question.steps):
            raise ValueError("reply: an answer was asked for, found none")
        shard = said.shard
        assert shard is not None, "asking lets no work pass without its state"
        if shard.name not in self.shards:
            if shard.content is not None:
                if digest(shard.content) != shard.sha256:
                    raise ValueError("reply: its state does not have the checksum that it names")
                self._folder.put_bytes(shard.name, shard.content)
            self.shards[shard.name] = shard.sha256
        self.refs[client] = ref(shard.name, client)
        self.bytes.up += up
        self._sent[client] = up
        if link:
            self.links[client] = link
        return Reply(client, said.steps, given), up

    def _answer(
        self, question: Question, k: int, client: int, payload: bytes
    ) -> tuple[State, Predictions]:
        """Decode one client's payload and hold it to what was asked and declared."""
        plan = self.plan
        weights = "upload_weights" in question.steps
        rows = question.rows if question.mask is None else question.rows[question.mask[k]]
        codec: Codec = dense if weights else plan.strategy.upload_codec or dense
        link = self.links.get(client) or codec.init(self._shape)
        stream = self._stream(question.round, client, "decode-up")
        rows = rows[:0] if weights else rows
        try:
            link, given = codec.decode(link, payload, rows, stream)
        except Exception as error:  # whatever a method's own code makes of what it did not expect
            kind = "" if isinstance(error, ValueError) else f"payload: {type(error).__name__}: "
            raise ValueError(f"{kind}{error}") from error
        check(plan, given, question.round, client, rows)
        if weights:
            network = plan.student.network
            buffers = sum(b.numel() for b in network.buffers.values())
            check_weights(given, network.parameters + buffers)
        return link, given
