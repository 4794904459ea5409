"""FedKT: each client is a small PATE whose students vote, if they agree, in a PATE of all clients.

Q. Li, B. He, D. Song, "Practical one-shot federated learning for cross-silo setting", IJCAI 2021,
https://arxiv.org/abs/2010.01017
"""

from dataclasses import replace
from typing import Literal

from fedkd.ballots import count, noisy_plurality, vote
from fedkd.transforms import chain, pure, random_rows
from fedkd.types import (
    Committee,
    Count,
    NonNegative,
    Predictions,
    Shares,
    Strategy,
    Transform,
    Unit,
)


def fedkt(
    partitions: Count = 2,
    teachers: Count = 5,
    protects: Literal["client", "record"] = "client",
    rule: Literal["gnmax", "lnmax"] = "lnmax",
    sigma: NonNegative = 0.0,
    rows: Count | None = None,
) -> Strategy:
    """argmax_c of how many clients vote for c; a client votes where all its students say the same.

    In each of `partitions` a client deals its samples to `teachers` models, whose plurality on the
    public rows a fresh student learns. Set rounds to 1, and `rows` to how many are asked.

    Noise of width `sigma`, Laplace or Gaussian by `rule`, is added to one of two counts:
    - `protects: client` (level 1 of the paper), by the server to that of the clients: it sees the
      votes and is trusted. A client has one vote here and there one for each student, so noise of
      scale b there is b / `partitions` here.
    - `protects: record` (level 2), by each client to those of its teachers: nobody need be trusted.
      A record is behind one teacher of each partition, so a row costs one release for each.

    `sigma` 0 is plurality of both without a guarantee. Formulas were read off the released code and
    not secured from the paper. That code lets students disagree unless there is noise, and then
    asks for as many votes of all clients as one client has students; and it has no students where
    there is one teacher. None of that is done here.
    """

    if teachers == 1 and sigma and protects == "record":
        raise ValueError(
            "strategy.teachers: should be at least 2 where votes of a client's own teachers are to"
            " hide each other, found 1, whose vote would have noise alone before it; raise it, or"
            " set protects to client"
        )

    def noisy(unit: Unit, kind: str) -> Transform:
        return noisy_plurality(rule, sigma if unit == protects else 0.0, unit=unit, kind=kind)

    def agreed(counts: Predictions) -> Predictions:
        return replace(counts, scores=(counts.scores == partitions).to(counts.scores.dtype))

    committee = Committee(
        partitions,
        teachers,
        teach=chain(vote, count, noisy("record", "inner_")),
        agree=chain(vote, count, pure(agreed)),
    )
    return Strategy(
        combine=count,
        finish=noisy("client", ""),
        request=random_rows(rows),
        committee=committee,
        upload=vote,
        feedback="none",
        program=("convene", "answer", "combine", "distil_server"),
        shares=Shares(answers="votes", needs=frozenset({"several_clients"})),
    )
