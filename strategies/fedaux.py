"""FedAUX on answers only: a client's scores count where a sample looks like its own data.

F. Sattler, T. Korjakow, R. Rischke, W. Samek, "FedAUX: Leveraging unlabeled auxiliary data in
federated learning", IEEE TNNLS 2021, https://arxiv.org/abs/2102.02514
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedkd.densities import own_or_public, sensitivity
from fedkd.transforms import mean
from fedkd.types import (
    CLASSIC,
    STUDENT_FIRST,
    Annotate,
    Ask,
    NonNegative,
    OwnModel,
    Positive,
    PrivateView,
    Release,
    Request,
    Shares,
    State,
    Strategy,
)

Share = Annotated[float, Field(gt=0, lt=1)]


def fedaux(
    lam: Positive = 0.01,
    negatives: Share = 0.2,
    likeness: Literal["inputs", "features"] = "inputs",
    noise_multiplier: NonNegative = 0.0,
    feedback: Literal["student", "consensus"] = "student",
) -> Strategy:
    """z(x) = sum_k s_k(x) z_k(x) / sum_k s_k(x),  s_k(x) = P(own | x) + 1e-8, at temperature 1.

    P is a logistic regression of the client's data against the share `negatives` of the public set,
    which is not learnt from. The paper pretrains a feature extractor by self-supervision, scores
    once before training, and starts the student from averaged weights: give `weights` of a
    pretrained model for the first; `features` are those of the own model, scored anew each round,
    `inputs` are scored alike in all rounds. Permuting private labels changes nothing.

    `noise_multiplier` is the standard deviation of Gaussian noise on the coefficients relative to
    their L2 sensitivity, 2 / (n lam) for the mean loss over n samples that is minimised here. The
    released code claims that for a sum of losses, which has 2 / lam. Noise is drawn once, and the
    coefficients are one release, of which all scores are made. Nothing but the scores is protected,
    and only on `inputs`: features come of a model that has seen the samples.
    """
    if noise_multiplier and likeness == "features":
        raise ValueError(
            "strategy.noise_multiplier: should be 0 on features, which come of private samples"
            f" themselves, found {noise_multiplier:g}; set likeness to inputs"
        )
    release = Release("likeness to its samples, exact", "record", {})
    if noise_multiplier:
        noise = {"sigma": noise_multiplier, "sensitivity": 1.0}
        release = Release("coefficients", "record", noise, "run")
    return Strategy(
        combine=mean(),
        request=_all_but(negatives),
        annotate=_alike(lam, negatives, likeness == "features", noise_multiplier),
        annotate_releases=(release,),
        feedback=feedback,
        program=STUDENT_FIRST if feedback == "student" else CLASSIC,
        shares=Shares(answers="logits", uplink=lambda t: 4 * t.rows * (t.classes + 1)),
    )


def _negatives(rows: int, share: float) -> Tensor:
    """Which public samples are held back [rows]: evenly spread, at least one of two, never all."""
    chosen = (torch.arange(1, rows + 1) * share).floor().diff(prepend=torch.zeros(1)) > 0
    chosen[0] |= not chosen.any()
    chosen[-1] &= not chosen.all()
    return chosen


def _all_but(share: float) -> Request:
    def request(
        state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
    ) -> Ask:
        return Ask(public[~_negatives(len(public), share)], None, known=True)

    return request


def _alike(lam: float, share: float, by_features: bool, noise: float) -> Annotate:
    def annotate(
        view: PrivateView, model: OwnModel, inputs: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        def seen(x: Tensor) -> Tensor:
            return model.features(x) if by_features else x.flatten(1)

        held = _negatives(len(view.public), share).to(view.public.device)
        negatives = view.public[held] if held.any() else view.public
        sigma = noise * sensitivity(len(view.inputs) + len(negatives), lam)
        likeness = own_or_public(seen(view.inputs), seen(negatives), lam, sigma, view.once)
        return torch.ones(len(inputs), dtype=torch.bool), likeness(seen(inputs)) + 1e-8

    return annotate
