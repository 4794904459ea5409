"""FedMD: heterogeneous clients agree on class scores over public data.

D. Li and J. Wang, "FedMD: Heterogenous federated learning via model distillation",
NeurIPS workshop 2019, https://arxiv.org/abs/1910.03581
"""

from fedkd.losses import l1
from fedkd.transforms import mean, random_rows
from fedkd.types import DISTIL_FIRST, Count, Losses, Phase, Shares, Strategy


def fedmd(rows: Count | None = 5000, pretrain: bool = False, student: bool = True) -> Strategy:
    """f(x) = (1/K) sum_k f_k(x): the mean of the raw class scores on a fresh subset a round.

    A round is Digest (fit the last consensus, mean absolute error on scores), Revisit (private
    epochs), communicate. `rows` above the public set, or None, asks for all of it. Scores are
    unbounded: one client with a large scale decides the mean.

    The paper first trains every client to convergence on *labelled* public data. `pretrain` does
    so; it is off because public labels are stripped here unless the experiment says otherwise. The
    paper has no server model; `student` distils one from the consensus beside the method.
    """
    rounds = tuple(phase for phase in DISTIL_FIRST if student or phase != "distil_server")
    first: tuple[Phase, ...] = ("pretrain",) if pretrain else ()
    return Strategy(
        combine=mean(),
        request=random_rows(rows),
        losses=Losses(client=l1()),
        program=(*first, *rounds),
        shares=Shares(
            answers="logits",
            needs=frozenset({"public_labels"}) if pretrain else frozenset(),
        ),
    )
