"""FedMD-NFDP: FedMD by clients that train on a sample of their data, drawn once.

L. Sun, L. Lyu, "Federated model distillation with noise-free differential privacy", IJCAI 2021,
https://arxiv.org/abs/2009.05537
"""

import torch
from torch import Generator, Tensor

from fedkd.losses import l1
from fedkd.transforms import mean, random_rows
from fedkd.types import DISTIL_FIRST, Count, Fraction, Losses, Release, Shares, Strategy


def fedmd_nfdp(
    share: Fraction = 0.1,
    replacement: bool = False,
    rows: Count | None = 5000,
    student: bool = True,
) -> Strategy:
    """FedMD where a client learns from k = `share` of its n samples, the same in all rounds.

    A weak notion, shown apart from all others: the claim is (ln((n + 1) / (n + 1 - k)), k / n)
    without replacement, and (k ln((n + 1) / n), 1 - ((n - 1) / n)^k) with it. No noise is added.
    That delta is the chance of a record to be drawn, far above 1 / n, and a record that was drawn
    is not protected at all; do not set it beside an epsilon of a mechanism with noise.
    """

    def drawn(samples: int) -> int:
        return min(samples, max(1, round(share * samples)))

    def subset(samples: int, rng: Generator) -> Tensor:
        if replacement:
            return torch.randint(0, max(1, samples), (drawn(samples),), generator=rng)
        return torch.randperm(samples, generator=rng)[: drawn(samples)]

    def releases(samples: int, round_: int) -> tuple[Release, ...]:
        facts = {"records": samples, "drawn": drawn(samples), "replacement": float(replacement)}
        return (Release("sampling", "record", facts, "run"),) if samples else ()

    return Strategy(
        combine=mean(),
        request=random_rows(rows),
        subset=subset,
        train_releases=releases,
        losses=Losses(client=l1()),
        program=tuple(p for p in DISTIL_FIRST if student or p != "distil_server"),
        shares=Shares(answers="logits"),
    )
