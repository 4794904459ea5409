"""FedEMA-Distill: robust means of scores, and a student that is a running mean of itself.

Reguieg et al., "FedEMA-Distill", 2026
"""

from typing import Annotated

from pydantic import Field

from fedkd.transforms import mean
from fedkd.types import STUDENT_FIRST, Shares, Strategy

Momentum = Annotated[float, Field(ge=0, lt=1)]


def fedema_distill(momentum: Momentum = 0.5) -> Strategy:
    """z(x) = mean_k z_k(x) teaches the student, then s_t = m s_(t-1) + (1 - m) s_distilled.

    For the paper's median or trimmed mean set `combine` to that rule. The value of `momentum` is
    not secured. Clients learn the answers of the averaged student.
    """
    return Strategy(
        combine=mean(),
        feedback="student",
        momentum=momentum,
        program=STUDENT_FIRST,
        shares=Shares(answers="logits"),
    )
