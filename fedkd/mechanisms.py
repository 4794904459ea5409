"""Noise between what a client would upload and the wire: `privacy.answers`.

Every documented function here is a name for it. It is called with the space that the method uploads
and the number of classes, and what it gives is one step: a client cannot clip and forget the noise.
What is protected is a prediction: the answers of one client about the rows of a question, each of
them once for every time it is asked. A training record is not protected by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedkd.privacy import calibration
from fedkd.types import (
    NonNegative,
    Positive,
    Predictions,
    Release,
    Space,
    State,
    Step,
    Transform,
    identity,
)

Probability = Annotated[float, Field(gt=0, lt=1)]
Draw = Callable[[Tensor, Generator], Tensor]


class Mechanism(NamedTuple):
    """The client's step, and what the server does to a mean of such answers to make up for it."""

    step: Transform
    correct: Transform = identity


def gaussian(
    space: Space,
    classes: int,
    epsilon: Positive | None = None,
    delta: Probability | None = None,
    sigma: NonNegative | None = None,
    clip: Positive | None = None,
    norm: Literal["value", "vector"] = "value",
) -> Mechanism:
    """x + N(0, sigma^2) on every score, after clipping; probabilities go back to the simplex.

    Give `sigma`, or the (`epsilon`, `delta`) of one answer, from which the analytic calibration
    finds it (B. Balle, Y.-X. Wang, ICML 2018); without a `delta` it is 1e-5. Any two points of the
    simplex are at most sqrt(2) apart. Logits need a `clip` B: of every `value` to [-B, B], which
    leaves 2 B sqrt(C), or of the `vector` to an L2 norm of B, which leaves 2 B.
    """
    bound, far = _bounded(space, classes, clip, norm, "gaussian")
    _one_of("gaussian", "sigma", sigma, epsilon)
    if delta is not None and not epsilon:
        raise ValueError(
            f"privacy.answers: gaussian should have a delta beside epsilon alone, found {delta:g}"
            " beside sigma; leave it out, the delta of all figures is that of privacy.budget"
        )
    chosen = calibration.gaussian_sigma(epsilon, delta or 1e-5, far) if epsilon else sigma or 0.0

    def draw(like: Tensor, rng: Generator) -> Tensor:
        return chosen * torch.randn(like.shape, generator=rng, dtype=like.dtype)

    release = Release("gaussian", "prediction", {"sigma": chosen, "sensitivity": far}, "row")
    return Mechanism(_noisy(space, bound, draw, release))


def laplace(
    space: Space,
    classes: int,
    epsilon: Positive | None = None,
    scale: NonNegative | None = None,
    clip: Positive | None = None,
) -> Mechanism:
    """x + Lap(scale) on every score, after clipping; probabilities go back to the simplex.

    Give `scale`, or the `epsilon` of one answer: scale = D1 / epsilon, where two points of the
    simplex are at most D1 = 2 apart, and logits, every one clipped to [-`clip`, `clip`],
    2 C `clip`.
    """
    bound, _ = _bounded(space, classes, clip, "value", "laplace")
    far = 2.0 if clip is None else 2 * classes * clip
    _one_of("laplace", "scale", scale, epsilon)
    chosen = calibration.laplace_scale(epsilon, far) if epsilon else scale or 0.0

    def draw(like: Tensor, rng: Generator) -> Tensor:
        sizes = torch.empty_like(like).exponential_(generator=rng)
        signs = torch.randint(0, 2, like.shape, generator=rng, dtype=like.dtype)
        return chosen * sizes * (2 * signs - 1)

    release = Release("laplace", "prediction", {"scale": chosen, "sensitivity": far}, "row")
    return Mechanism(_noisy(space, bound, draw, release))


def randomised_response(space: Space, classes: int, epsilon: Positive) -> Mechanism:
    """The favourite class alone, and with a known probability another one in its place.

    It is kept with p = e^epsilon / (e^epsilon + C - 1), else any other has
    q = 1 / (e^epsilon + C - 1). The server turns the mean m of what it gets into (m - q) / (p - q),
    which is unbiased, and projects that onto the simplex: so the method's rule has to be a mean.
    """
    if space not in ("probs", "votes"):
        raise ValueError(
            f"privacy.answers: randomised_response should go with methods that send probs or votes,"
            f" found {space}; choose gaussian or laplace"
        )
    kept, other = calibration.response_odds(epsilon, classes)

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        known = torch.where(given.mask.unsqueeze(-1), given.scores, 0)
        label = known.argmax(-1)
        # float32 has no number between 1 - 6e-8 and 1, where it would always be kept
        stay = torch.rand(label.shape, generator=rng, dtype=torch.float64) < kept
        shift = torch.randint(1, classes, label.shape, generator=rng)
        said = torch.where(stay, label, (label + shift) % classes)
        scores = torch.nn.functional.one_hot(said, classes).to(given.scores.dtype)
        return Step(state, replace(given, scores=scores), {})

    def correct(state: State, given: Predictions, rng: Generator) -> Step:
        total = given.scores.double().sum(-1, keepdim=True).clamp_min(1e-30)
        counts = (given.scores.double() / total - other) / (kept - other)
        scores = _onto_simplex(counts).to(given.scores.dtype)
        return Step(state, replace(given, scores=torch.where(
            given.mask.unsqueeze(-1), scores, 0)), {})  # fmt: skip

    release = Release("randomised_response", "prediction", {"epsilon": epsilon}, "row")
    step = Transform(lambda shape: {}, apply, (release,))
    return Mechanism(step, Transform(lambda shape: {}, correct))


def _onto_simplex(scores: Tensor) -> Tensor:
    """The nearest probabilities [.., C] in L2 (J. Duchi et al., ICML 2008).

    It reads the noisy scores alone, so it is post-processing and costs no privacy.
    """
    scores = scores.double()
    scores = scores - scores.amax(-1, keepdim=True)  # or what is far larger than one loses it
    ordered = scores.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    place = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    last = (ordered - excess / place > 0).sum(-1, keepdim=True).clamp_min(1)
    shift = excess.gather(-1, last - 1) / last
    return (scores - shift).clamp_min(0)


def _noisy(
    space: Space, bound: Callable[[Tensor], Tensor], draw: Draw, release: Release
) -> Transform:
    """Clip and noise, as one step that nothing can come between."""

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        # what is no number would go through clipping, noise and all
        sound = given.scores.nan_to_num()
        known = torch.where(given.mask.unsqueeze(-1), sound, 0).double()
        scores = bound(known)
        scores = scores + draw(scores, rng)
        if space in ("probs", "votes"):
            scores = _onto_simplex(scores)
        return Step(state, replace(given, scores=scores.to(given.scores.dtype)), {})

    return Transform(lambda shape: {}, apply, (release,))


def _bounded(
    space: Space, classes: int, clip: float | None, norm: str, name: str
) -> tuple[Callable[[Tensor], Tensor], float]:
    """How scores are bounded, and how far apart in L2 two answers can then be."""
    if space in ("probs", "votes"):
        if clip is not None:
            raise ValueError(
                f"privacy.answers: {name} should have no clip where a method sends {space}, which"
                f" are bounded, found {clip}; leave clip out"
            )
        # clients are honest here; the projection holds what another one sends to the simplex, too
        return lambda x: _onto_simplex(x.clamp(0, 1)), 2**0.5
    if space != "logits":
        raise ValueError(
            f"privacy.answers: {name} should go with methods that send logits, probs or votes,"
            f" found {space}, which have no bound; choose another method"
        )
    if clip is None:
        raise ValueError(
            f"privacy.answers: {name} should have a clip where a method sends logits, which have no"
            " bound of their own, found none; give clip, as 5.0"
        )
    most = clip
    if norm == "vector":
        return lambda x: x * (most / x.norm(dim=-1, keepdim=True).clamp_min(most)), 2 * most
    return lambda x: x.clamp(-most, most), 2 * most * classes**0.5


def _one_of(name: str, noise: str, given: float | None, epsilon: float | None) -> None:
    if given == 0:
        claim = f" with a claimed epsilon of {epsilon:g}" if epsilon else ""
        raise ValueError(
            f"privacy.answers: {name} should have a {noise} above 0, found 0{claim}: no noise"
            f" guarantees nothing; raise it, give epsilon alone, or leave privacy.answers out"
        )
    if (given is None) == (epsilon is None):
        found = "both" if epsilon else "neither"
        raise ValueError(
            f"privacy.answers: {name} should have either {noise} or epsilon, found {found}; the one"
            " follows from the other"
        )
