"""What a run will guarantee, before anything is trained: the ledger, foretold.

It is kept by the same charges as that of the run, for clients that take part in every round and
servers that answer every row that is asked. So no client can spend more, unless others are lost in
a round and it is asked in their place; and where all take part and all is answered the figures are
those of the run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from fedkd import guarantees
from fedkd.assemble import Plan
from fedkd.config import ConfigError
from fedkd.costs import asked
from fedkd.guarantees import Charge, Overdrawn
from fedkd.privacy.ledger import Account, Group, Ledger, composed
from fedkd.types import State

_MOST_CHARGES = 100_000  # about; rounds after that many are taken to be as the last one looked at


class Spending(NamedTuple):
    """What the worst client lets out of one unit: how often in round 1 and in all, and epsilon."""

    group: Group
    client: int
    releases: Sequence[tuple[Account, float, int, int]]  # epsilon of one; in round 1; in all
    first: float
    last: float


class Overdraft(NamedTuple):
    """Who cannot take part in all rounds under the budget, and from when on."""

    clients: Sequence[int]
    begins: int  # the round that would exceed the budget of one of them
    ends: int | None  # the round that would exceed that of all clients


class Forecast:
    """The ledger of a plan, round by round."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self.rounds = plan, plan.config.rounds
        self.delta = guarantees.delta_of(plan.config, sum(plan.samples))

    @cached_property
    def _due(self) -> list[list[Charge]]:
        looked = min(self.rounds, max(2, _MOST_CHARGES // self._plan.clients))
        return [self._most(r) for r in range(1, looked + 1)]

    def _most(self, round_: int) -> list[Charge]:
        """What is due of everybody, or of those who take part where they are asked for more."""
        found = due(self._plan, round_, range(self._plan.clients))
        clients, _ = asked(self._plan, round_)
        if len(clients) == self._plan.clients:
            return found
        own: dict[int, list[Charge]] = {client: [] for client in clients}
        for charge in due(self._plan, round_, clients):
            own[charge.client].append(charge)
        of_all = [charge for charge in found if charge.client not in own]
        for charge in (c for c in found if c.client in own):
            of_all.append(max(charge, own[charge.client].pop(0), key=lambda c: c.times))
        return of_all

    def ledger(self, rounds: int) -> Ledger:
        """What all clients have let out after so many rounds, at most."""
        found = Ledger()
        for charges in self._due[:rounds]:
            for charge in charges:
                found.charge(*charge)
        for charge in self._due[-1]:
            found.charge(charge.client, charge.release, charge.times * (rounds - len(self._due)))
        return found

    @cached_property
    def after(self) -> Ledger:
        """What has been let out after the last round, at most."""
        return self.ledger(self.rounds)

    def told(self) -> dict[str, Any]:  # Any: JSON
        """`privacy.json` as it would be at most, but for the figures by loss distributions."""
        plan = self._plan
        return guarantees.told(
            plan.strategy,
            plan.config,
            plan.samples,
            self.after,
            knows=plan.world.knows is not None,
            losses=False,
        )

    def spending(self) -> list[Spending]:
        """By unit and relation, of the client that spends most."""
        first, found = self.ledger(1), []
        for told in self.told()["guarantees"]:
            group, client = Group(told["unit"], told["relation"]), told["client"]
            before = dict(first.spent(client, group))
            releases = [
                (a, composed(frozenset({(a, 1)}), self.delta), before.get(a, 0), times)
                for a, times in sorted(self.after.spent(client, group))
            ]
            begun = first.epsilon(client, group, self.delta)
            found.append(Spending(group, client, releases, begun, told["epsilon"]))
        return found

    def overdraft(self, group: Group) -> Overdraft | None:
        """Who would exceed the budget, where there is one that does not last."""
        budget, clients = self._plan.config.privacy.budget, self.after.clients(group)
        if budget is None:
            return None
        most = guarantees.limit(budget)
        last = {c: self.after.epsilon(c, group, self.delta) for c in clients}
        over = [c for c in clients if last[c] > most]
        if not over:
            return None
        rounds = range(1, self.rounds + 1)

        def spent(round_: int) -> list[float]:
            book = self.ledger(round_)
            return [book.epsilon(c, group, self.delta) for c in over]

        begins = rounds[bisect_right(rounds, most, key=lambda r: max(spent(r)))]
        ends = None
        if len(over) == self._plan.clients:
            ends = rounds[bisect_right(rounds, most, key=lambda r: min(spent(r)))]
        return Overdraft(over, begins, ends)


def due(
    plan: Plan, round_: int, clients: Sequence[int], state: State | None = None
) -> list[Charge]:
    """What a round lets out at most if these clients take part.

    `state` is that of the method's finish, which may decide what is asked; None before round 1.
    """
    ask = asked(plan, round_, clients, state)[1]
    rows, samples = guarantees.rows_of(clients, ask.rows, ask.mask), plan.learnt(round_)
    program = plan.strategy.program
    return guarantees.charges(plan.strategy, round_, program, rows, samples, server=True)


def afford(plan: Plan, account: Ledger, round_: int, state: State | None = None) -> None:
    """Refuse a budget that is spent already, in whatever way, or that the next round would exceed.

    `account` is what was let out before that round; `state` is as for `due`. Raises `ConfigError`.
    """
    budget = plan.config.privacy.budget
    if budget is None:
        return
    if open_ := guarantees.earlier(account, plan.unbounded):
        raise ConfigError(
            "privacy.budget: should be for a branch of a run that let out no more without a"
            f" guarantee, for nothing takes that back, found before round {round_}:"
            f" {'; '.join(open_)}; leave the budget out or begin a new run"
        )
    if spent := guarantees.over(account, budget):
        raise ConfigError(
            "privacy.budget.epsilon: should be at least what is spent already, for nothing takes"
            f" that back, found {budget.epsilon:g} where {_worst(spent)} before round {round_};"
            " raise it or begin a new run"
        )
    if round_ > plan.config.rounds:
        return
    clients, _ = asked(plan, round_, state=state)
    over = guarantees.over(account.after(due(plan, round_, clients, state)), budget)
    gone = {one.client for one in over}
    if gone and (budget.when_spent == "stop" or gone == set(clients)):
        raise ConfigError(
            f"privacy.budget: should allow one round at least, found epsilon {budget.epsilon:g},"
            f" which round {round_} would exceed for {len(gone)} of {len(clients)} clients:"
            f" {_worst(over)} after it; raise epsilon above that, ask about fewer rows or add noise"
            + (", in a branch of the run (--branch FOLDER)" if round_ > 1 else "")
        )


def _worst(over: Sequence[Overdrawn]) -> str:
    one = min(over, key=lambda one: (-one.epsilon, one.client))
    return f"client {one.client} is at {one.text}"
