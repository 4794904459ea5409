"""Entropy-weighted mean of soft labels: who is sure of a sample has more to say about it.

Label-free confidence weighting, after multi-teacher distillation by entropy (K. Kwon et al.,
"Adaptive knowledge distillation based on entropy", ICASSP 2020), with a softmax over -H/tau in
place of its linear form.
"""

from fedkd import rules
from fedkd.transforms import softmax
from fedkd.types import CLASSIC, Positive, Shares, Strategy


def entropy(temperature: Positive = 0.2, feedback: bool = True) -> Strategy:
    """q(x) = sum_k w_k(x) p_k(x) / sum_k w_k(x),  w_k(x) = exp(-H(p_k(x)) / tau),  H in nats.

    A large tau gives the plain mean; tau to 0 leaves the most confident client alone. A confident
    liar has as much weight as a confident expert: where there may be one, set `combine` to a robust
    rule.
    Without `feedback` the consensus teaches the student alone, as in multi-teacher distillation.
    """
    return Strategy(
        combine=rules.entropy(temperature),
        upload=softmax(),
        feedback="consensus" if feedback else "none",
        program=tuple(p for p in CLASSIC if feedback or p != "distil_clients"),
        shares=Shares(answers="probs"),
    )
