"""One-shot ensemble distillation: every client answers once, the ensemble teaches one student.

N. Guha, A. Talwalkar, V. Smith, "One-shot federated learning", 2019,
https://arxiv.org/abs/1902.11175
"""

from typing import Literal

from fedkd.transforms import mean, softmax
from fedkd.types import Shares, Strategy, identity


def one_shot(space: Literal["probs", "logits"] = "probs") -> Strategy:
    """q(x) = (1/K) sum_k p_k(x), of probabilities or, as `logits`, softmax of the mean score.

    Meant for one round after private training to convergence: set rounds to 1 and the epochs of
    learning.private high. Nothing goes back to the clients, so in more rounds they train on alone
    and the student is distilled anew from where it was. The paper also selects which clients enter
    the ensemble, by validation accuracy or data size; here all do.
    """
    return Strategy(
        combine=mean(),
        upload=softmax() if space == "probs" else identity,
        feedback="none",
        program=("train", "answer", "combine", "distil_server"),
        shares=Shares(answers=space),
    )
