"""Methods and a model that use what no built-in one does, as in `odd_methods:abstaining`."""

import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from fedkd import wire
from fedkd.transforms import chain, mean, pure, softmax
from fedkd.types import (
    Codec,
    Predictions,
    PrivateView,
    Shape,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
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

    return Strategy(combine=mean(), annotate=annotate, upload=softmax(), shares=PROBS)


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
    """A method with a fault in what one client does."""

    def fail(state: State, given: Predictions, rng: Generator) -> Step:
        if int(given.parties[0]) == client:
            raise ZeroDivisionError("nobody checked this")
        return Step(state, given, {})

    made = entropy()
    return replace(made, upload=chain(Transform(lambda shape: {}, fail), made.upload))


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
