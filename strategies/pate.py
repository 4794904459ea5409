"""PATE: a student learns from noisy votes of teachers, and nothing else of them gets out.

N. Papernot, M. Abadi, U. Erlingsson, I. Goodfellow, K. Talwar, "Semi-supervised knowledge transfer
for deep learning from private training data", ICLR 2017, https://arxiv.org/abs/1610.05755;
N. Papernot, S. Song, I. Mironov, A. Raghunathan, K. Talwar, U. Erlingsson, "Scalable private
learning with PATE", ICLR 2018, https://arxiv.org/abs/1802.08908
"""

from fedkd.ballots import Rule, count, noisy_plurality, vote
from fedkd.transforms import random_rows
from fedkd.types import Count, NonNegative, Positive, Shares, Strategy


def pate(
    rule: Rule = "gnmax",
    sigma: NonNegative = 40.0,
    threshold: NonNegative = 200.0,
    threshold_sigma: Positive = 150.0,
    rows: Count | None = None,
    account_votes: bool = False,
) -> Strategy:
    """argmax_c n_c(x) + noise, where n_c(x) clients say that x is of class c; one round is usual.

    `gnmax` draws N(0, `sigma`^2) for each class, `lnmax` (2017) Laplace noise of scale `sigma`;
    `confident` answers by gnmax only where max n_c + N(0, `threshold_sigma`^2) >= `threshold`, and
    other rows have no target. Set rounds to 1, and `rows` to how many are asked; each further round
    spends as much again. Defaults are those for 250 teachers: noise has to stay well below the
    number of clients, so with 10 or 20 of them little is left of the votes. `sigma` 0 is plurality
    without a guarantee.

    One client is one teacher, so what is protected is all of a client's data, and each record of it
    a fortiori, against whoever sees the student or the targets; the server sees every vote and is
    trusted. Clients vote with models trained without noise. `account_votes` adds the figure that
    depends on the votes to privacy.json: it is smaller, private itself and not to be published, for
    it is not smoothed by its sensitivity; for lnmax there is none.
    """
    return Strategy(
        combine=count,
        finish=noisy_plurality(rule, sigma, threshold, threshold_sigma, account_votes),
        request=random_rows(rows),
        upload=vote,
        feedback="none",
        program=("train", "answer", "combine", "distil_server"),
        shares=Shares(answers="votes", needs=frozenset({"several_clients"})),
    )
