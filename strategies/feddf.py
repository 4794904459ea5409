"""FedDF on answers only: the student learns the mean of the clients' scores.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble distillation for robust model fusion in federated
learning", NeurIPS 2020, https://arxiv.org/abs/2006.07242
"""

from typing import Literal

from fedkd.transforms import mean
from fedkd.types import CLASSIC, STUDENT_FIRST, Shares, Strategy


def feddf(feedback: Literal["student", "consensus", "none"] = "student") -> Strategy:
    """min KL(softmax(mean_k z_k) || softmax(z_s)) at temperature 1.

    The paper's clients send weights: the student starts from their average, and clients from the
    student. Here no weights travel, so the student starts from where it was and models may differ;
    what comes back is the student's answers, or the consensus. The paper finds that start worth 6
    to 9 points less than the average (its table 5). It stops early by a labelled validation set at
    the server; here epochs are fixed.
    """
    return Strategy(
        combine=mean(),
        feedback=feedback,
        program=STUDENT_FIRST
        if feedback == "student"
        else tuple(p for p in CLASSIC if feedback != "none" or p != "distil_clients"),
        shares=Shares(answers="logits"),
    )
