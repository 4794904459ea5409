"""What an answer is held to before it counts, and how it is laid out on the rows of a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedkd.assemble import Plan
from fedkd.types import Predictions, Space

_SIMPLEX = 1e-4


def check(
    plan: Plan,
    given: Predictions,
    round_: int,
    client: int,
    rows: Tensor,
    *,
    observed: Space | Literal["as sent"] | None = None,
) -> None:
    """Hold an answer to the question and to what the method declares. Raises `ValueError`.

    Where it is `observed`, a method that declares no answers may give some: they are not sent. A
    space that is asked for there stands in the place of the method's own.
    """
    shares, classes = plan.strategy.shares, plan.dataset.classes
    if given.parties.tolist() != [client]:
        raise ValueError(f"party: should be {client}, found {given.parties.tolist()}")
    if given.asked.tolist() != [round_]:
        raise ValueError(f"round: should be {round_}, found {given.asked.tolist()}")
    if not torch.equal(given.rows, rows):
        raise ValueError("rows: should be those that were asked, in order, found others")
    found = set(given.extras or ()) | ({"classes"} if given.classes is not None else set())
    # whose classes are its own, which the world decides, says which they are
    undeclared = found - shares.extras - ({"classes"} if plan.world.knows else set())
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
    if shares.answers is None and observed is None:
        raise ValueError("scores: the method declares no answers, found some")
    space = shares.answers if observed in (None, "as sent") else observed
    if given.space != (space or given.space):
        raise ValueError(f"space: the method declares {space}, found {given.space}")
    if given.scores.dtype != torch.float32:  # another one would become that of the consensus
        raise ValueError(
            f"scores: float32 expected, found {str(given.scores.dtype).removeprefix('torch.')};"
            " what is sent narrower, upload_codec decodes to it"
        )
    if given.scores.shape[2] != classes and given.classes is None:
        raise ValueError(f"scores: {classes} classes expected, found {given.scores.shape[2]}")
    if given.classes is not None and bool(((given.classes < 0) | (given.classes >= classes)).any()):
        raise ValueError(f"classes: should be from 0 to {classes - 1}, found others")
    if given.classes is not None and bool((given.classes.sort(-1).values.diff() == 0).any()):
        raise ValueError("classes: should come once each in a row, found some twice")
    values, trust = given.scores[given.mask], given.trust[given.mask]
    if not bool(torch.isfinite(values).all()):
        raise ValueError("scores: should be finite where the mask is true")
    if not bool((torch.isfinite(trust) & (trust >= 0)).all()):
        raise ValueError("trust: should be finite and at least 0")
    if given.space in ("probs", "log_probs") and given.classes is None:
        portions = values.exp() if given.space == "log_probs" else values
        off = float((portions.sum(-1) - 1).abs().max()) if len(values) else 0.0
        if off > _SIMPLEX or bool((portions < 0).any()):
            raise ValueError(
                "scores: probabilities should be >= 0 and sum to 1 within"
                f" {_SIMPLEX}, off by {off:.2g}"
            )


def check_weights(given: Predictions, size: int) -> None:
    """Hold uploaded weights to `size`, the values of a model. Raises `ValueError`."""
    extras = given.extras or {}
    expected = {"weights": (torch.float32, (1, size)), "examples": (torch.int64, (1,))}
    for name, (dtype, shape) in expected.items():
        found = [(t.dtype, tuple(t.shape)) for t in extras.get(name, ())]
        if found != [(dtype, shape)]:
            raise ValueError(
                f"{name}: one tensor {list(shape)} of {dtype} expected, found"
                f" {', '.join(f'{list(s)} of {d}' for d, s in found) or 'none'}"
            )
    if int(extras["examples"][0]) < 0:
        raise ValueError(f"examples: should be at least 0, found {int(extras['examples'][0])}")


def spread(
    given: Predictions, rows: Tensor, mask: Tensor | None, clients: Sequence[int]
) -> Predictions:
    """An answer about the rows asked of one client (`mask` [K', R]) on all rows [R, 3]."""
    if mask is None:
        return given
    asked = mask[list(clients).index(int(given.parties[0]))]
    r, s = len(rows), given.scores.shape[2]
    scores, known, trust = (
        torch.zeros(1, r, s),
        torch.zeros(1, r, dtype=torch.bool),
        torch.zeros(1, r),
    )
    scores[0, asked], known[0, asked], trust[0, asked] = (
        given.scores[0],
        given.mask[0],
        given.trust[0],
    )
    classes = given.classes
    if classes is not None and classes.shape[1] != 1:
        wide = torch.zeros(1, r, s, dtype=classes.dtype)
        wide[0, asked] = classes[0]
        classes = wide
    return replace(given, scores=scores, mask=known, trust=trust, rows=rows, classes=classes)


def narrow(given: Predictions, asked: Tensor) -> Predictions:
    """The answer of one party on the rows asked of it (`asked` [R]) alone; undoes `spread`."""
    classes = given.classes
    return replace(
        given,
        scores=given.scores[:, asked],
        mask=given.mask[:, asked],
        trust=given.trust[:, asked],
        rows=given.rows[asked],
        classes=classes if classes is None or classes.shape[1] == 1 else classes[:, asked],
    )
