"""Cronus: clients agree on soft labels by a robust mean.

H. Chang, V. Shejwalkar, R. Shokri, A. Houmansadr, "Cronus: robust and heterogeneous collaborative
learning with black-box knowledge transfer", 2019, https://arxiv.org/abs/1912.11279
"""

from fedkd.rules import spectral_filter
from fedkd.transforms import random_rows, softmax
from fedkd.types import DISTIL_FIRST, Count, Shares, Strategy


def cronus(rows: Count | None = None, student: bool = True) -> Strategy:
    """q(x) = the mean of the p_k(x) that a spectral filter leaves (see `rules.spectral_filter`).

    The paper's first phase, private training alone, is `learning.private.first_epochs`. In the
    second its clients train on private samples and (x, q(x)) jointly; here they digest the last
    consensus, then train. `rows` is how much of the public set is asked a round, None for all. The
    paper has no server model; `student` distils one from the consensus beside the method.
    """
    return Strategy(
        combine=spectral_filter(),
        request=random_rows(rows),
        upload=softmax(),
        program=tuple(p for p in DISTIL_FIRST if student or p != "distil_server"),
        shares=Shares(answers="probs"),
    )
