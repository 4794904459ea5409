"""MHAT: the server learns from aggregated predictions, and clients imitate the server.

L. Hu, H. Yan, L. Li, Z. Pan, X. Liu, Z. Zhang, "MHAT: An efficient model-heterogenous aggregation
training scheme for federated learning", Information Sciences, 2021
"""

from fedkd.transforms import mean, softmax
from fedkd.types import STUDENT_FIRST, Shares, Strategy


def mhat() -> Strategy:
    """q(x) = mean_k p_k(x) teaches the student, whose own answers then teach the clients.

    Dual distillation over a plain mean: what clients learn is what the student could make of q. The
    loss and the weights of the original are not secured; here they are KL at temperature 1 and
    equal weights.
    """
    return Strategy(
        combine=mean(),
        upload=softmax(),
        feedback="student",
        program=STUDENT_FIRST,
        shares=Shares(answers="probs"),
    )
