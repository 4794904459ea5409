"""What a client says of its own answers: mask and trust, from its own data and model.

Every documented function here is a name for `annotate`. All of it is the client's word: a liar says
what it likes, so a rule that reads trust should stand behind one that does not, or nobody lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fedkd.types import Annotate, PrivateView, Release


class Annotation(NamedTuple):
    """A client's look at its own data, and what an observer learns of them by it."""

    annotate: Annotate
    releases: tuple[Release, ...]


def data_size() -> Annotation:
    """t_k = n_k, the number of its private samples (as B. McMahan et al., 2017, weigh models).

    The number itself becomes known.
    """

    def annotate(
        view: PrivateView, model: Callable[[Tensor], Tensor], inputs: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        return _everywhere(float(len(view.labels)), inputs)

    return Annotation(annotate, (Release("number of samples, exact", "record", {}),))


def private_accuracy() -> Annotation:
    """t_k = the share of its private samples that client k's model gets right.

    The samples are those that it was trained on, for clients hold none back: it tells who has not
    learnt from who has, and not who will do well. `public_accuracy`, a rule, has the server measure
    on public labels instead. Its exact value becomes known.
    """

    def annotate(
        view: PrivateView, model: Callable[[Tensor], Tensor], inputs: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        right = model(view.inputs).argmax(-1) == view.labels.to(view.inputs.device)
        return _everywhere(float(right.double().mean()), inputs)

    return Annotation(annotate, (Release("accuracy on its samples, exact", "record", {}),))


def _everywhere(trust: float, inputs: Tensor) -> tuple[Tensor, Tensor]:
    rows = len(inputs)
    return torch.ones(rows, dtype=torch.bool), torch.full((rows,), trust)
