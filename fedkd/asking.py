"""One question under way: which task asks whom, what its reply says, and what is done on failure.

A reply is read as if an enemy had written it. A failure is the client's that it can be laid to, or
else everybody's whose reply is missing; `execution.on_failure` says what becomes of them. Work that
was lost with its worker is done again in any case, each stack by itself, so that one that kills its
workers takes no other along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd import wire
from fedkd.config import Execution
from fedkd.disk import DiskError

Kind = Literal["work", "observe"]
Event = dict[str, Any]  # Any: JSON
T = TypeVar("T")
Bundle = Sequence[Sequence[int]]
_START_S = 60.0  # what a task may take beside its clients: a worker starts and reads its data


class Transport(Protocol):
    """Where tasks go. `fetch` blocks until a ticket's reply is there, and hands it out once.

    A task that has run for longer than its limit (seconds, None for none) may be given up; `fetch`
    raises `Lost` for it, as for one whose worker is gone.
    """

    workers: int

    def submit(
        self, kind: Kind, messages: Sequence[bytes], limits: Sequence[float | None]
    ) -> Sequence[str]: ...
    def fetch(self, ticket: str) -> bytes: ...


class Lost(RuntimeError):
    """A task without a reply: its worker or its node is gone, or its time is up."""

    def __init__(self, cause: str, traceback: str = "") -> None:
        super().__init__(cause)
        self.traceback = traceback


class ClientFailure(RuntimeError):
    """A client's work failed, or its answer was refused; the text says whose, when and why."""


class Shard(NamedTuple):
    """A shard as announced in a reply; its content only where no disk is shared."""

    name: str
    sha256: str
    content: bytes | None


class Said(NamedTuple):
    """One client's part of a reply."""

    steps: int
    payload: bytes | None
    shard: Shard | None
    facts: Mapping[str, Any]  # Any: JSON; what the observer says


@dataclass(frozen=True, slots=True)
class Failure:
    """Why nothing came of a client; `final` where doing it again has been tried."""

    kind: str
    cause: str
    traceback: str = ""
    phase: str | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Sent:
    """A bundle under way, how often it was lost before, and under which names it keeps states."""

    bundle: Bundle
    losses: int
    shards: Mapping[str, Sequence[int]]

    @property
    def clients(self) -> list[int]:
        return [c for stack in self.bundle for c in stack]


class Message(NamedTuple):
    """A task: its bytes, and by shard name the clients whose states it will write."""

    content: bytes
    shards: Mapping[str, Sequence[int]]


class Asking:
    """A question to many clients; it is sent when this is made, and heard client by client."""

    def __init__(
        self,
        kind: Kind,
        round_: int,
        steps: Sequence[str],
        bundles: Sequence[Bundle],
        message: Callable[[Bundle, int], Message],
        transport: Transport,
        execution: Execution,
        note: Callable[[Event], None],
    ) -> None:
        self.dropped: list[int] = []
        self._kind, self._round, self._steps = kind, round_, steps
        self._message, self._transport = message, transport
        self._execution, self._note = execution, note
        self._stack = {c: stack for bundle in bundles for stack in bundle for c in stack}
        self._open = set(self._stack)  # of whom nothing is known yet
        self._home: dict[int, str] = {}  # the ticket that an open client's reply comes with
        self._sent: dict[str, _Sent] = {}  # by ticket, until it is fetched
        self._early: dict[int, Said | Failure] = {}
        self._failures: Counter[int] = Counter()
        self._sendings = 0
        self._send(bundles, 0)

    def hear(
        self, clients: Sequence[int], accept: Callable[[int, Said], T]
    ) -> Iterator[tuple[int, T]]:
        """What comes of each client, in the order of `clients`; who is dropped is passed over.

        `accept` raises `ValueError` to refuse. A bundle is fetched when the next client is in it;
        until then its reply waits where it is, so that this process holds little of what came
        early. Raises `ClientFailure` where the policy is not to go on.
        """
        for client in clients:
            while True:
                said = self._said(client)
                if isinstance(said, Said):
                    try:
                        taken = accept(client, said)
                    except ValueError as error:
                        said = Failure("refused", str(error))
                    else:
                        yield client, taken
                        break
                if not self._tried_again(client, said):
                    break

    def abandon(self) -> None:
        """Wait for what is under way and let go of it."""
        while self._sent:
            with suppress(Lost):
                self._fetch(next(iter(self._sent)))

    def _send(self, bundles: Sequence[Bundle], losses: int) -> None:
        """Set these stacks to work; what comes of their open clients counts.

        States of another sending lie under another name, for in what they hold they may differ.
        """
        made = [self._message(bundle, self._sendings) for bundle in bundles]
        self._sendings += 1
        limits = [self._limit(bundle) for bundle in bundles]
        tickets = self._transport.submit(self._kind, [m.content for m in made], limits)
        for bundle, message, ticket in zip(bundles, made, tickets, strict=True):
            self._sent[ticket] = sent = _Sent(bundle, losses, message.shards)
            self._home |= {c: ticket for c in sent.clients if c in self._open}

    def _limit(self, bundle: Bundle) -> float | None:
        """The last resort: workers look to the deadline themselves, client by client.

        In a step each client has that time for its own part and for its share of what is done
        together.
        """
        each = self._execution.deadline_s
        if each is None:
            return None
        return _START_S + each * sum(map(len, bundle)) * 2 * len(self._steps)

    def _tried_again(self, client: int, failure: Failure) -> bool:
        """Whether the client's stack is under way once more; else it is dropped, or all is over."""
        if self._may_try(client, failure):
            self._event(failure, [client], "retried")
            self._open.add(client)
            self._send([[self._stack[client]]], 0)
            return True
        if self._execution.on_failure == "drop":
            self._event(failure, [client], "dropped")
            self.dropped.append(client)
            return False
        self._event(failure, [client], "stopped")
        if failure.kind == "refused":
            text = f"the answer of client {client} was refused: {failure.cause}"
        elif failure.kind == "lost":
            text = f"client {client} was lost: {failure.cause}"
        else:
            text = f"client {client} failed with {failure.cause}"
        raise ClientFailure(f"round {self._round}: {text}\n{failure.traceback}".rstrip())

    def _may_try(self, client: int, failure: Failure) -> bool:
        execution = self._execution
        if execution.on_failure != "retry" or failure.final:
            return False
        self._failures[client] += 1
        return self._failures[client] <= execution.retries

    def _event(self, failure: Failure, clients: Sequence[int], outcome: str) -> None:
        said: Event = {
            "kind": failure.kind,
            "round": self._round,
            "phase": failure.phase or " + ".join(self._steps),
            "clients": list(clients),
            "cause": failure.cause,
            "outcome": outcome,
        }
        self._note(said | ({"traceback": failure.traceback} if failure.traceback else {}))

    def _said(self, client: int) -> Said | Failure:
        while client not in self._early:
            ticket = self._home[client]
            sent = self._sent[ticket]
            waiting = [c for c in sent.clients if self._home[c] == ticket]
            try:
                reply = self._read(sent, self._fetch(ticket))
            except Lost as error:
                self._lost(sent, waiting, error)
            else:
                self._take({c: reply[c] for c in waiting})
        return self._early.pop(client)

    def _lost(self, sent: _Sent, waiting: Sequence[int], error: Lost) -> None:
        failure = Failure("lost", str(error), error.traceback, final=True)
        if sent.losses >= self._execution.retries:
            return self._take(dict.fromkeys(waiting, failure))
        self._event(failure, waiting, "retried")
        self._send([[stack] for stack in sent.bundle], sent.losses + 1)

    def _take(self, reply: Mapping[int, Said | Failure]) -> None:
        """A stack in which a client failed that may try again is done again as a whole.

        What is trained together defines the bits, and who failed early was no longer in it.
        """
        again: dict[int, Sequence[int]] = {}
        for client, said in reply.items():
            if isinstance(said, Failure) and self._may_try(client, said):
                self._event(said, [client], "retried")
                again[self._stack[client][0]] = self._stack[client]
        for client, said in reply.items():
            if self._stack[client][0] not in again:
                self._early[client] = said
                self._open.discard(client)
        if again:
            self._send([[stack] for stack in again.values()], 0)

    def _fetch(self, ticket: str) -> bytes:
        self._sent.pop(ticket)
        return self._transport.fetch(ticket)

    def _read(self, sent: _Sent, content: bytes) -> dict[int, Said | Failure]:
        """A bundle's reply, client by client. Raises `Lost` where the task as a whole failed."""
        try:
            head, blobs = wire.unpack(content)
            reply = _Reply.model_validate(head)
            if reply.error is not None:
                if reply.error.disk:
                    raise DiskError(reply.error.message)
                raise Lost(str(reply.error), reply.error.traceback)
            shards = self._shards(sent, reply, blobs)
            parts = {c: self._part(c, reply, shards, blobs) for c in sent.clients}
        except (ValidationError, ValueError) as error:
            text = str(error)
            if isinstance(error, ValidationError):
                text = "; ".join(
                    f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]
                )
            return dict.fromkeys(sent.clients, Failure("refused", f"reply: cannot be read: {text}"))
        strangers = sorted({said.client for said in reply.clients} - set(sent.clients))
        if strangers:
            text = f"reply: only clients {sent.clients} were asked here, it speaks of {strangers}"
            self._event(Failure("unasked", text), strangers, "ignored")
        return parts

    def _part(
        self, client: int, reply: _Reply, shards: Mapping[int, Shard], blobs: Sequence[bytes]
    ) -> Said | Failure:
        own = [said for said in reply.clients if said.client == client]
        if len(own) != 1:
            found = f"{len(own)} of them" if own else "none"
            return Failure(
                "refused", f"reply: one part about client {client} expected, found {found}"
            )
        (said,) = own
        if said.error is not None:
            return Failure("failure", str(said.error), said.error.traceback, said.error.phase)
        shard = shards.get(client)
        if self._kind == "work" and shard is None:
            return Failure("refused", f"reply: the state of client {client} is missing")
        payload = None
        if said.payload is not None:
            payload = _blob(blobs, said.payload)
            most = self._execution.most_payload_mib << 20
            if len(payload) > most:
                return Failure(
                    "refused",
                    f"payload: at most {most:,} bytes (execution.most_payload_mib), found"
                    f" {len(payload):,}",
                )
        return Said(said.steps, payload, shard, said.model_extra or {})

    def _shards(self, sent: _Sent, reply: _Reply, blobs: Sequence[bytes]) -> dict[int, Shard]:
        found: dict[int, Shard] = {}
        for name, told in reply.shards.items():
            if name not in sent.shards:
                raise ValueError(f"it brings the shard {name[:99]!r}, which is not its own")
            content = None if told.blob is None else _blob(blobs, told.blob)
            shard = Shard(name, told.sha256, content)
            found |= dict.fromkeys(sent.shards[name], shard)
        return found


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Error(_Part):
    type: str
    message: str
    traceback: str = ""
    phase: str | None = None
    disk: bool = False

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class _Client(_Part):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    client: int
    steps: Annotated[int, Field(ge=0)] = 0
    payload: Annotated[int, Field(ge=0)] | None = None
    error: _Error | None = None


class _Shard(_Part):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    blob: Annotated[int, Field(ge=0)] | None = None


class _Reply(_Part):
    clients: list[_Client] = []
    shards: dict[str, _Shard] = {}
    error: _Error | None = None
    said: Any = None  # what a yardstick without clients says


def _blob(blobs: Sequence[bytes], index: int) -> bytes:
    if index >= len(blobs):
        raise ValueError(f"part {index} of {len(blobs)} does not exist")
    return blobs[index]
