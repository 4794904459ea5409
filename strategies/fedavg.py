"""FedAvg: the yardstick that sends weights instead of answers.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

from fedkd.transforms import mean, softmax
from fedkd.types import Shares, Strategy


def fedavg() -> Strategy:
    """w = sum_k (n_k / n) w_k: clients train the server's weights, the server averages them.

    All models must be of one architecture. Who takes part (the paper's fraction C) is the world's
    affair, the local epochs E those of `learning.private`. No public data are used; upload and
    combine describe the ensemble that is measured beside the method, the mean of probabilities.
    """
    return Strategy(
        combine=mean(),
        upload=softmax(),
        feedback="weights",
        program=("train", "average_weights"),
        shares=Shares(
            answers=None,
            extras=frozenset({"weights", "examples"}),
            uplink=lambda t: t.weights + (2 + len("examples") + 2 + 4) + 8,
            downlink=lambda t: t.weights,
            traits=frozenset({"weights"}),
            needs=frozenset({"one_architecture"}),
        ),
    )
