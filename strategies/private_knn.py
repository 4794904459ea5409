"""Private-kNN: nobody trains; the nearest private records of a public sample vote on its label.

Y. Zhu, X. Yu, M. Chandraker, Y.-X. Wang, "Private-kNN: practical differential privacy for computer
vision", CVPR 2020, https://doi.org/10.1109/CVPR42600.2020.01187
"""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Generator, Tensor

from fedkd.ballots import count, noisy_plurality
from fedkd.transforms import random_rows, row_blocks
from fedkd.types import (
    Count,
    Fraction,
    Need,
    NonNegative,
    OwnModel,
    Phase,
    Positive,
    Predictions,
    PrivateView,
    Release,
    Reply,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
)

Features = Literal["inputs", "model", "student"]


def _sampler(value: object) -> object:
    if value in ("fixed", "replacement"):
        raise ValueError(
            "should be poisson, which the accountant reckons with: of a fixed number of records one"
            " is in the sample in the place of another, so its epsilon would not hold"
        )
    return value


def private_knn(
    neighbours: Count = 30,
    sample_rate: Fraction = 0.05,
    sigma: NonNegative = 25.0,
    rule: Literal["confident", "gnmax"] = "gnmax",
    threshold: NonNegative = 180.0,
    threshold_sigma: Positive = 75.0,
    features: Features = "inputs",
    pretrain: bool = False,
    rows: Count | None = None,
    sample: Annotated[Literal["poisson"], BeforeValidator(_sampler)] = "poisson",
) -> Strategy:
    """argmax_c n_c(x) + N(0, `sigma`^2), where n_c(x) records of class c are among the neighbours.

    For each row that is asked every client draws a fresh sample S of its records, each of them with
    chance g = `sample_rate`, and sends how many of the k = `neighbours` in S nearest to x are of
    each class. The server, which is trusted, adds the clients' counts up and tells the noisy
    argmax. `confident` answers only where max n_c + N(0, `threshold_sigma`^2) >= `threshold`.

    What is protected is a record of one client, against whoever sees the student or the targets. In
    S it takes the place of one neighbour at most: two counts change by one, or one where S has
    fewer than k, so n moves by sqrt(2) at most in L2, and does not move where the record is not in
    S. With it the released noisy counts are a mixture of g parts moved and 1 - g unmoved ones, for
    any S of the others: that is all that the Renyi divergence of the sampled Gaussian mechanism
    rests on (I. Mironov, K. Talwar, L. Zhang, 2019, arXiv 1908.10530), and its argmax is
    post-processing. A row costs one such release, of rate g and noise multiplier sigma / sqrt(2);
    g = 1 is GNMax on plain neighbours. The test and the answer see one sample, so they are no two
    sampled releases: both together are one Gaussian of multiplier (2 / sigma^2 +
    1 / threshold_sigma^2)^-1/2, and each row that is tested is charged for it, answered or not.

    Distances are Euclidean, of what no record may have a say in but by what was released: the
    `inputs`; or the features of the client's own `model`, which never trains on records: fresh, or
    given (`clients.weights`), or with `pretrain` taught the public labels; or those of the
    `student`, which the server sends its clients, fresh in round 1 and then taught by all earlier
    rounds, each of which costs as much again. Of equals the earlier record is nearer.

    Departures: k is of each client, where the paper has one pool of data (defaults are the authors'
    code's for MNIST, with 300 neighbours over ten clients); their code samples a fixed number with
    replacement and accounts for Poisson, and charges tests and answers apart; their features are
    HOG before they are the last student's, and their student is semi-supervised.
    """
    if pretrain and features != "model":
        raise ValueError(
            "strategy.pretrain: should go with features of the model that is pretrained, found"
            f" {features}; leave it out or set features to model"
        )
    first: tuple[Phase, ...] = ("pretrain",) if pretrain else ()
    shares = Shares(
        answers="votes", needs=frozenset({"public_labels"}) if pretrain else frozenset()
    )
    if features == "student":
        needs = frozenset[Need]({"one_architecture"})
        shares = Shares(answers="votes", downlink=lambda t: t.weights, needs=needs)
    return Strategy(
        combine=count,
        finish=_finish(rule, sigma, threshold, threshold_sigma, sample_rate),
        request=random_rows(rows),
        reply=_voters(neighbours, sample_rate, features),
        feedback="weights" if features == "student" else "none",
        program=(*first, "answer", "combine", "distil_server"),
        shares=shares,
    )


def _voters(k: int, rate: float, features: Features) -> Reply:
    def reply(view: PrivateView, model: OwnModel, inputs: Tensor, rng: Generator) -> Tensor:
        counts = torch.zeros(len(inputs), view.classes)
        if not len(view.labels):
            return counts
        seen = _flat if features == "inputs" else model.features
        own, asked, labels = seen(view.inputs).cpu(), seen(inputs).cpu(), view.labels.cpu()
        for block in row_blocks(1, len(asked), len(own)):
            # pair by pair: by a product of matrices a distance would depend on the other records
            far = torch.cdist(asked[block], own, compute_mode="donot_use_mm_for_euclid_dist")
            for row, distance in enumerate(far, block.start):
                drawn = torch.rand(len(own), generator=rng, dtype=torch.float64) < rate
                voters = drawn.nonzero()[:, 0]
                nearest = voters[distance[voters].sort(stable=True).indices[:k]]
                counts[row] = torch.bincount(labels[nearest], minlength=view.classes)
        return counts

    return reply


def _flat(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)


def _finish(
    rule: Literal["confident", "gnmax"],
    sigma: float,
    threshold: float,
    threshold_sigma: float,
    rate: float,
) -> Transform:
    """The noisy plurality; with a test before it, both are one release of every row."""
    at_rate = {"sample_rate": rate}
    made = noisy_plurality(
        rule, sigma, threshold, threshold_sigma, unit="record", kind="sampled_", beside=at_rate
    )
    if rule == "gnmax" or not sigma:
        return made
    noise = {"sigma": sigma, "threshold_sigma": threshold_sigma}
    both = Release("sampled_confident_gnmax", "record", noise | at_rate, "row")

    def apply(state: State, counts: Predictions, rng: Generator) -> Step:
        return made.apply(state, counts, rng)._replace(released=None)

    return made._replace(apply=apply, releases=(both,))
