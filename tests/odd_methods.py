"""Methods and a model that use what no built-in one does, as in `odd_methods:abstaining`."""

import importlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from fedkd import losses, wire
from fedkd.rng import number
from fedkd.transforms import chain, mean, pure, softmax
from fedkd.types import (
    Ask,
    Codec,
    Losses,
    Predictions,
    PrivateView,
    Release,
    Shape,
    Shares,
    State,
    Step,
    Strategy,
    Target,
    Transform,
    identity,
)
from strategies.entropy import entropy

PROBS = Shares(answers="probs")


def abstaining() -> Strategy:
    """A client answers rows on which it is surer than on half of them; its size is its trust."""

    def annotate(
        own: PrivateView, model: Callable[[Tensor], Tensor], rows: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        sure = model(rows).softmax(-1).amax(-1)
        return sure >= sure.median(), torch.full((len(rows),), len(own.labels) / 100)

    told = (Release("which rows it is sure of, exact", "record", {}),)
    return Strategy(
        combine=mean(), annotate=annotate, annotate_releases=told, upload=softmax(), shares=PROBS
    )


def silent() -> Strategy:
    """The same, and says nothing of what becomes known by it."""
    return replace(abstaining(), annotate_releases=())


def student_back() -> Strategy:
    """Clients learn what the server's student says."""
    program = ("train", "answer", "combine", "distil_server", "distil_clients")
    return Strategy(
        combine=mean(), upload=softmax(), feedback="student", program=program, shares=PROBS
    )


def remembering() -> Strategy:
    """An upload of differences: both ends keep what was last sent, row by row."""

    def empty(shape: Shape) -> State:
        return {"last": torch.zeros(shape.rows, shape.classes)}

    def moved(state: Mapping[str, Tensor], rows: Tensor, scores: Tensor) -> State:
        last = state["last"].clone()
        last[rows] += scores
        return {"last": last}

    def encode(state: State, given: Predictions, rng: Generator) -> tuple[State, bytes]:
        rows = given.rows[:, 1]
        difference = given.scores[0] - state["last"][rows]
        payload = wire.encode(
            Predictions(
                difference.unsqueeze(0), given.mask, given.trust, given.rows, given.parties,
                given.asked, given.space,
            )
        )  # fmt: skip
        return moved(state, rows, difference), payload

    def decode(
        state: State, payload: bytes, rows: Tensor, rng: Generator
    ) -> tuple[State, Predictions]:
        sent = wire.decode(payload, rows)
        after = moved(state, rows[:, 1], sent.scores[0])
        scores = after["last"][rows[:, 1]].unsqueeze(0)
        return after, Predictions(
            scores, sent.mask, sent.trust, rows, sent.parties, sent.asked, sent.space
        )

    return Strategy(
        combine=mean(), upload=softmax(), upload_codec=Codec(empty, encode, decode), shares=PROBS
    )


def leaking() -> Strategy:
    """A method whose upload would carry the private labels."""
    steal = pure(lambda p: replace(p, extras={"labels": (torch.zeros(1, 9),)}))
    return Strategy(combine=mean(), upload=chain(softmax(), steal), shares=PROBS)


def lethal(marker: str, client: int = 0, at: int = 2) -> Strategy:
    """The default method, whose worker is killed in the midst of a task, unless `marker` is there.

    Who kills leaves the marker behind, so that the task succeeds when it is done again.
    """

    def strike(state: State, given: Predictions, rng: Generator) -> Step:
        due = (int(given.parties[0]), int(given.asked[0])) == (client, at)
        if due and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Step(state, given, {})

    made = entropy()
    return replace(made, upload=chain(Transform(lambda shape: {}, strike), made.upload))


def failing(client: int = 0) -> Strategy:
    """A method with a fault in what one client does, in every round."""

    def fail(state: State, given: Predictions, rng: Generator) -> Step:
        if int(given.parties[0]) == client:
            raise ZeroDivisionError("nobody checked this")
        return Step(state, given, {})

    made = entropy()
    return replace(made, upload=chain(Transform(lambda shape: {}, fail), made.upload))


def _raise() -> None:
    raise ZeroDivisionError("nobody checked this")


def _stubborn() -> None:
    """It takes no exception for an answer."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def _stuck() -> None:
    """As if in foreign code: no signal reaches it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(90)


def _greedy() -> None:
    """It asks for more memory than its process may have."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), before[1]))
    try:
        torch.zeros(1 << 28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# what may happen at a place of a client's own
HAPPENS: Mapping[str, Callable[[], object]] = {
    "raises": _raise,
    "exits": lambda: sys.exit("enough"),
    "sleeps": lambda: time.sleep(600),
    "stubborn": _stubborn,
    "stuck": _stuck,
    "greedy": _greedy,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "dies": lambda: os._exit(1),
}


def _with_scores(change: Callable[[Tensor], Tensor]) -> Callable[[Predictions], object]:
    return lambda p: replace(p, scores=change(p.scores))


def _with_one(value: float) -> Callable[[Tensor], Tensor]:
    def change(scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[0, 0, 0] = value
        return scores

    return change


# what may come out of a client's upload in place of its answer
RUBBISH: Mapping[str, Callable[[Predictions], object]] = {
    "nothing": lambda p: None,
    "nan": _with_scores(_with_one(math.nan)),
    "infinite": _with_scores(_with_one(math.inf)),
    "no simplex": _with_scores(lambda scores: scores * 1.01),
    "too few classes": _with_scores(lambda s: s[:, :, 1:] / s[:, :, 1:].sum(-1, keepdim=True)),
    "double": _with_scores(lambda scores: scores.double()),
    "another party": lambda p: replace(p, parties=p.parties + 1),
    "an old round": lambda p: replace(p, asked=p.asked - 1),
    "other rows": lambda p: replace(
        p, scores=p.scores[:, 1:], mask=p.mask[:, 1:], trust=p.trust[:, 1:], rows=p.rows[1:]
    ),
    "undeclared": lambda p: replace(p, extras={"labels": (torch.zeros(1, 9),)}),
}


def misbehaving(
    how: str,
    place: Literal["annotate", "upload", "encode", "receive"] = "upload",
    client: int = 0,
    at: int = 2,
    marker: str = "",
    method: str = "entropy",
    settings: dict[str, int] | None = None,
    picky: bool = False,
    seed: int = 3,
) -> Strategy:
    """A method of which one client fails in one round, at one place, as `how` says.

    Whose turn it is is told by the stream, which is named after round, client and place. With a
    `marker` it happens once: the file is left behind by who fails, for others to see. `picky`: the
    client takes every second target only.
    """
    module = sys.modules[__name__]
    if not hasattr(module, method):
        module = importlib.import_module(f"strategies.{method}")
    made: Strategy = getattr(module, method)(**settings or {})

    def due(where: str, rng: Generator) -> bool:
        if where != place or rng.initial_seed() != number(seed, at, client, where):
            return False
        if marker and Path(marker).exists():
            return False
        if marker:
            Path(marker).touch()
        return True

    def happen(where: str, rng: Generator) -> None:
        if how in HAPPENS and due(where, rng):
            HAPPENS[how]()

    def annotate(
        own: PrivateView, model: Callable[[Tensor], Tensor], rows: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        happen("annotate", rng)
        return torch.ones(len(rows), dtype=torch.bool), torch.ones(len(rows))

    def upload(state: State, given: Predictions, rng: Generator) -> Step:
        happen("upload", rng)
        done = made.upload.apply(state, given, rng)
        if how in RUBBISH and due("upload", rng):
            return done._replace(result=RUBBISH[how](done.result))  # type: ignore[arg-type]  # rubbish
        return done

    def encode(state: State, given: Predictions, rng: Generator) -> tuple[State, bytes]:
        happen("encode", rng)
        codec = made.upload_codec
        return codec.encode(state, given, rng) if codec else (state, wire.encode(given))

    def receive(state: State, given: Predictions, rng: Generator) -> Step:
        happen("receive", rng)
        done = made.receive.apply(state, given, rng)
        if not picky or rng.initial_seed() != number(seed, int(given.asked[0]), client, "receive"):
            return done
        second = (torch.arange(len(given.rows)) % 2).bool()
        return done._replace(result=replace(done.result, mask=done.result.mask & second))

    codec = made.upload_codec or Codec(
        identity.init, encode, lambda state, payload, rows, rng: (state, wire.decode(payload, rows))
    )
    return replace(
        made,
        annotate=annotate,
        annotate_releases=(Release("nothing of its samples", "record", {}),),
        upload=Transform(made.upload.init, upload),
        upload_codec=codec._replace(encode=encode),
        receive=Transform(made.receive.init, receive),
    )


def choking(clients: int = 2) -> Strategy:
    """A loss that fails while a stack of so many learns what came back."""
    usual = losses.kl()

    def loss(logits: Tensor, target: Target) -> Tensor:
        if logits.dim() == 3 and len(logits) == clients:
            raise ZeroDivisionError("nobody checked this")
        return usual(logits, target)

    return replace(entropy(), losses=Losses(client=loss))


class Drawing(nn.Module):
    """A model that drops inputs without a layer for it, so that nobody can see that it draws."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(nn.functional.dropout(x.flatten(1), 0.3, self.training))
        return scores


def drawing(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Drawing(math.prod(shape), classes)


def trains_before_it_distils() -> Strategy:
    """Private epochs and then those on the consensus, of which the answers are made."""
    program = ("train", "distil_clients", "answer", "combine", "distil_server")
    return replace(entropy(), program=program)


def shares_out() -> Strategy:
    """Rows are dealt to those who take part: the fewer they are, the more is asked of each."""

    def request(
        state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
    ) -> Ask:
        dealt = torch.arange(len(public)) % len(clients)
        return Ask(public, torch.stack([dealt == k for k in range(len(clients))]), True)

    return replace(entropy(), request=request)


def asks_apart() -> Strategy:
    """Every client is asked about other rows, and about ever fewer of them the higher its id."""

    def request(
        state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
    ) -> Ask:
        ids = torch.arange(len(public))
        return Ask(public, torch.stack([(ids + c) % (c + 2) == 0 for c in clients]), True)

    return replace(entropy(), request=request)
