"""CFD: few-bit soft labels both ways, and clients that begin anew from the student each round.

F. Sattler, A. Marban, R. Rischke, W. Samek, "CFD: Communication-efficient federated distillation
via soft-label quantization and delta coding", IEEE TNSE 9(4), 2022,
https://arxiv.org/abs/2012.00632
"""

from fedkd.transforms import mean, softmax
from fedkd.types import Shares, Strategy


def cfd(reset: bool = True) -> Strategy:
    """q(x) = mean_k Q_b(p_k(x)) teaches a student that stays; Q_b(p_s(x)) teaches clients anew.

    A round is: back to the first weights, learn the student's answers, train, answer. Q_b, the
    differences and the coder are `codecs` (see configs/cfd.yaml); without them b = 32. The paper
    begins from one common seed; here each client has first weights of its own, for models may
    differ. Its coder is CABAC. `reset` false lets clients go on from where they were, as a
    re-implementation does.
    """
    return Strategy(
        combine=mean(),
        upload=softmax(),
        download=softmax(),
        feedback="student",
        program=(
            *(("reset",) if reset else ()),
            "distil_clients",
            "train",
            "answer",
            "combine",
            "distil_server",
        ),
        shares=Shares(answers="probs"),
    )
