"""Selective-FD: clients answer only about samples like their own, the server drops the ambiguous.

J. Shao, F. Wu, J. Zhang, "Selective knowledge sharing for privacy-preserving federated distillation
without a good teacher", Nature Communications 15, 2024, https://arxiv.org/abs/2304.01731
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedkd.densities import kulsif
from fedkd.transforms import mean, pure, random_rows, softmax
from fedkd.types import (
    Annotate,
    Count,
    Fraction,
    OwnModel,
    Positive,
    Predictions,
    PrivateView,
    Release,
    Shares,
    Strategy,
    Traffic,
)

Quantile = Annotated[float, Field(ge=0, lt=1)]


def selective_fd(
    quantile: Quantile = 0.25,
    ambiguity: Positive = 2.0,
    likeness: Literal["inputs", "features"] = "inputs",
    width: Positive = 5.0,
    lam: Positive | None = None,
    auxiliary: Count = 250,
    fit: Fraction = 0.5,
    rows: Count | None = None,
    released: bool = False,
) -> Strategy:
    """q(x) = mean of p_k(x) over clients with r_k(x) > tau_k, kept if 2 (1 - max q) < `ambiguity`.

    r_k is the KuLSIF ratio of the client's data to `auxiliary` points drawn uniformly from the box
    of the public set, once; tau_k the `quantile` of r_k on the share of its data that it was not
    fitted on. `lam` is auxiliary^-0.5 where none is given. The `features` of the own model are for
    data whose pixels say little (the box is then mapped by the model, anew each round).

    The ambiguity is the L1 distance of q to its one-hot, as a re-implementation has it; the paper's
    own statistic is not secured. 2 or more drops nothing, as in the authors' demonstration. Their
    code multiplies by the matrix that KuLSIF solves for; `released` does as it does. They fit on 5%
    of some 5,400 samples a client; half is the default for clients with fewer. A mask tells which
    public samples a client knows, and no privacy mechanism bounds that.
    """
    chosen = auxiliary**-0.5 if lam is None else lam
    return Strategy(
        combine=mean(),
        finish=pure(lambda given: _unambiguous(given, ambiguity)),
        request=random_rows(rows),
        annotate=_familiar(
            quantile, likeness == "features", width, chosen, auxiliary, fit, released
        ),
        annotate_releases=(Release("which rows are like its samples, exact", "record", {}),),
        upload=softmax(),
        shares=Shares(answers="probs", uplink=_bytes, downlink=_bytes),
    )


def _bytes(t: Traffic) -> int:
    """Soft labels of the accepted rows, and which they are, a bit each, unless all are."""
    return 4 * t.changed * t.classes + (-(-t.rows // 8) if t.changed < t.rows else 0)


def _unambiguous(given: Predictions, most: float) -> Predictions:
    clear = given.mask & (2 * (1 - given.scores.amax(-1)) < most) if most < 2 else given.mask
    return replace(given, mask=clear, trust=clear.to(given.trust.dtype))


def _familiar(
    quantile: float,
    by_features: bool,
    width: float,
    lam: float,
    auxiliary: int,
    fit: float,
    released: bool,
) -> Annotate:
    def annotate(
        view: PrivateView, model: OwnModel, inputs: Tensor, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        def seen(x: Tensor) -> Tensor:
            return model.features(x) if by_features else x.flatten(1)

        shape = (auxiliary, *view.public.shape[1:])
        low, high = view.public.amin(0), view.public.amax(0)
        noise = torch.rand(shape, generator=view.once).to(low.device) * (high - low) + low
        own = seen(view.inputs[torch.randperm(len(view.inputs), generator=view.once)])
        cut = min(max(1, round(fit * len(own))), max(1, len(own) - 1))
        ratio = kulsif(own[:cut], seen(noise), width, lam, released)
        held_out = own[cut:] if cut < len(own) else own
        mask = ratio(seen(inputs)) > ratio(held_out).quantile(quantile)
        return mask, mask.float()

    return annotate
