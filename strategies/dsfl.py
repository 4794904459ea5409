"""DS-FL: distillation-based semi-supervised federated learning, with SA and ERA.

S. Itahara, T. Nishio, Y. Koda, M. Morikura, K. Yamamoto, IEEE Transactions on Mobile Computing
22(1), 2023, https://arxiv.org/abs/2008.06180
"""

from typing import Literal

from fedkd.transforms import mean, random_rows, sharpen, softmax
from fedkd.types import CLASSIC, Count, Positive, Shares, Strategy, identity


def dsfl(
    aggregation: Literal["era", "sa"] = "era",
    temperature: Positive = 0.1,
    rows: Count | None = 1000,
) -> Strategy:
    """SA: q = mean_k p_k.  ERA: q = softmax(mean_k p_k / T), the probabilities taken as logits.

    T < 1 lowers the entropy of the consensus; T = 1 is *not* SA, it flattens. How sharp ERA is
    depends on the number of classes: equal one-hots at T = 0.1 peak at 1 / (1 + (C - 1) e^-10).
    SA does not use the temperature. Clients and the server's model learn q by KL at temperature 1.
    """
    era = aggregation == "era"
    return Strategy(
        combine=mean(),
        finish=sharpen(temperature) if era else identity,
        request=random_rows(rows),
        upload=softmax(),
        program=CLASSIC,
        shares=Shares(answers="probs", traits=frozenset({"sharpens"}) if era else frozenset()),
    )
