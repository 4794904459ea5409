"""The ledger: which releases have happened, by client, and what they come to together.

It holds counts of releases and nothing else, so that it is a function of what was asked: a retry
of the same question, with the same noise, is no second release. Composition is left to Google's
dp-accounting; where all of a client's releases are Gaussian or pure, the exact figure of the first
and the sum of the others is taken if it is smaller.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, get_args

from fedkd.privacy import calibration
from fedkd.types import Per, Release, Unit

Parameters = Mapping[str, float]


class About(NamedTuple):
    """What a guarantee about a unit means: by what data are neighbours, and what must hold."""

    relation: str
    assumes: tuple[str, ...]


class Kind(NamedTuple):
    """A mechanism: what it takes, and by unit what its guarantee is about.

    `multiplier` is the noise of a Gaussian relative to its L2 sensitivity, on a Poisson sample
    where it takes a `sample_rate`; `pure` the epsilon of a release with delta 0. The third way are
    the steps of DP-SGD. `weak` is one whose claim is no protection of each record; `claim` gives
    it.
    """

    takes: tuple[str, ...]
    about: Mapping[Unit, About]
    multiplier: Callable[[Parameters], float] | None = None
    pure: Callable[[Parameters], float] | None = None
    claim: Callable[[Parameters], tuple[float, float]] | None = None


_ANSWERS = "any two values of the answers of one client"
_LOCAL = (
    "the server needs no trust: the noise is drawn by the client, after clipping",
    "answers are meant and not training records, of which one may change many answers",
    "the seed of the run stays secret, for its noise follows from it",
)
_ADDED = "one record more or less at one client"
_REPLACED = "one record replaced at one client"
_ALL = "all data of one client"
_VOTES = (
    "the server is trusted: it sees every vote",
    "nothing of the votes leaves it but what the mechanism says",
    "clients hold disjoint data, so each record is protected at least as well as its client",
    "the seed of the run stays secret, for its noise follows from it",
)
_INNER = (
    "the server needs no trust: votes stay in the client, which draws the noise",
    "each model that votes has learnt from records of its own, so a record is behind one vote of"
    " each partition; to which it is dealt does not depend on what is in it",
    "nothing but these models looks at the records; their number and how they are scaled are known",
    "the seed of the run stays secret, for its noise and the dealing follow from it",
)
_KNOWN = "the number of a client's records, which sets the noise, and how they are scaled are known"
_NEIGHBOURS = (
    "the server is trusted: it sees how the neighbours of every client vote",
    "nothing of these counts leaves it but what the mechanism says",
    "every row samples each record anew and independently at the rate (Poisson)",
    "no private record has a say in what is near, but by what was released before",
    "the seed of the run stays secret, for its noise and samples follow from it",
)
_DECLARED = (
    "its sensitivity is that of the whole unit, as the method declares it",
    "who draws the noise is trusted with what it is added to",
    "the seed of the run stays secret, for its noise follows from it",
)
_NOISED: Mapping[Unit, About] = {
    "prediction": About(_ANSWERS, _LOCAL),
    "record": About(_ADDED, _DECLARED),
    "client": About(_ALL, _DECLARED),
}
_TEACHERS: Mapping[Unit, About] = {"client": About(_ALL, _VOTES)}
_COMMITTEE: Mapping[Unit, About] = {"record": About(_REPLACED, _INNER)}
_NEAR: Mapping[Unit, About] = {"record": About(_ADDED, _NEIGHBOURS)}
KINDS: Mapping[str, Kind] = {
    "gaussian": Kind(("sigma", "sensitivity"), _NOISED, lambda p: p["sigma"] / p["sensitivity"]),
    "laplace": Kind(
        ("scale", "sensitivity"), _NOISED, pure=lambda p: p["sensitivity"] / p["scale"]
    ),
    "randomised_response": Kind(("epsilon",), _NOISED, pure=lambda p: p["epsilon"]),
    "dp_sgd": Kind(
        ("noise_multiplier", "sample_rate", "steps"),
        {
            "record": About(
                _ADDED,
                (
                    "every step samples each record independently at the rate (Poisson)",
                    "nothing but what is counted here looks at the records",
                    _KNOWN,
                    "the seed of the run stays secret, for its noise and samples follow from it",
                ),
            )
        },
    ),
    "gnmax": Kind(("sigma",), _TEACHERS, lambda p: p["sigma"] / math.sqrt(2)),
    "vote_threshold": Kind(("sigma",), _TEACHERS, lambda p: p["sigma"]),
    "lnmax": Kind(("scale",), _TEACHERS, pure=lambda p: 2 / p["scale"]),
    "inner_gnmax": Kind(("sigma",), _COMMITTEE, lambda p: p["sigma"] / math.sqrt(2)),
    "inner_vote_threshold": Kind(("sigma",), _COMMITTEE, lambda p: p["sigma"]),
    "inner_lnmax": Kind(("scale",), _COMMITTEE, pure=lambda p: 2 / p["scale"]),
    # a record in the sample displaces one neighbour at most, whose vote goes with it
    "sampled_gnmax": Kind(("sigma", "sample_rate"), _NEAR, lambda p: p["sigma"] / math.sqrt(2)),
    # the largest count under noise and all counts, of one sample: a Gaussian in C + 1 dimensions
    "sampled_confident_gnmax": Kind(
        ("sigma", "threshold_sigma", "sample_rate"),
        _NEAR,
        lambda p: (2 / p["sigma"] ** 2 + 1 / p["threshold_sigma"] ** 2) ** -0.5,
    ),
    "coefficients": Kind(
        ("sigma", "sensitivity"),
        {
            "record": About(
                _ADDED,
                (
                    "the coefficients alone come of the records; scores are made of them and public"
                    " data",
                    _KNOWN,
                    "the seed of the run stays secret, for its noise follows from it",
                ),
            )
        },
        lambda p: p["sigma"] / p["sensitivity"],
    ),
    "sampling": Kind(
        ("records", "drawn", "replacement"),
        {
            "record": About(
                _REPLACED,
                (
                    "weak: no noise at all; delta is the chance of being drawn, and a record that"
                    " was drawn is not protected",
                ),
            )
        },
        claim=lambda p: calibration.nfdp(
            int(p["records"]), int(p["drawn"]), bool(p["replacement"])
        ),
    ),
}
# a figure of the votes themselves, kept apart: {"at 2.0": RDP, …}
DEPENDENT = "data-dependent"
_NOTHING = 1e6  # an epsilon, about, of one release above which there is no guarantee to speak of
_FAR = 100.0  # an epsilon from which on loss distributions grow beyond memory


class BudgetSpent(RuntimeError):
    """A release that would exceed the budget, and was not made; the text says which.

    `changed` is what the command that goes on with the run has to say beside it.
    """

    changed = "--branch FOLDER privacy.budget.epsilon=MORE"


class Account(NamedTuple):
    """Releases that are alike, whoever makes them."""

    unit: Unit
    mechanism: str
    parameters: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, release: Release) -> Account:
        found = tuple(sorted((n, float(v)) for n, v in release.parameters.items()))
        return cls(release.unit, release.mechanism, found)


class Group(NamedTuple):
    """What is composed: releases about one unit under one neighbouring relation."""

    unit: Unit
    relation: str


class Ledger:
    """Counts by account and client; `copy` before trying out what a charge would come to.

    `unbounded` is in words what was let out without any guarantee, in the order of its noting.
    """

    def __init__(
        self,
        counts: Mapping[Account, Mapping[int, int]] = {},
        observed: Mapping[str, Mapping[float, float]] = {},
        unbounded: Iterable[str] = (),
    ) -> None:
        self._counts = {account: dict(by) for account, by in counts.items()}
        self.observed = {unit: dict(curve) for unit, curve in observed.items()}
        self.unbounded = tuple(unbounded)

    def copy(self) -> Ledger:
        return Ledger(self._counts, self.observed, self.unbounded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.dumps() == other.dumps()

    def __bool__(self) -> bool:
        return bool(self._counts or self.observed or self.unbounded)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def charge(self, client: int, release: Release, times: int = 1) -> None:
        """Note that a client is about to make a release so often; once at most if it is per run.

        What guarantees nothing is not counted. Raises `ValueError` for parameters that the
        mechanism does not take, or that no noise stands behind.
        """
        kind = KINDS.get(release.mechanism)
        if kind is None or times < 1:
            return
        checked(release)
        by = self._counts.setdefault(Account.of(release), {})
        by[client] = 1 if release.per == "run" else by.get(client, 0) + times

    def note(self, unbounded: Iterable[str]) -> None:
        """Add what is let out without a guarantee: later rounds may have one, in a branch."""
        self.unbounded = tuple(dict.fromkeys([*self.unbounded, *unbounded]))

    def after(self, charges: Iterable[tuple[int, Release, int]]) -> Ledger:
        """Another one, after these charges."""
        found = self.copy()
        for charge in charges:
            found.charge(*charge)
        return found

    def observe(self, unit: Unit, curve: Mapping[float, float]) -> None:
        """Add RDP by order that depends on the data, for the experimenter's eyes alone.

        A total of some of the releases about a unit is none, so observe either all or none.
        """
        sums = self.observed.setdefault(unit, {})
        for order, value in curve.items():
            sums[order] = sums.get(order, 0.0) + value

    def groups(self) -> tuple[Group, ...]:
        """What has been let out under a guarantee that composes, and of whom."""
        found = {(a.unit, about(a).relation) for a in self._counts if not weak(a)}
        return tuple(Group(*pair) for pair in sorted(found))

    def clients(self, group: Group) -> list[int]:
        """Those with releases in the group, ascending."""
        return sorted({c for a, by in self._counts.items() if _in(a, group) for c in by})

    def spent(self, client: int, group: Group) -> frozenset[tuple[Account, int]]:
        """What a client has let out, and how often."""
        return frozenset(
            (a, by[client]) for a, by in self._counts.items() if _in(a, group) and client in by
        )

    def epsilon(self, client: int, group: Group, delta: float) -> float:
        """What it comes to at this delta."""
        return composed(self.spent(client, group), delta)

    def weak(self) -> list[tuple[Account, dict[int, int]]]:
        """Claims that are shown apart, since they protect no single record."""
        return [(a, dict(by)) for a, by in sorted(self._counts.items()) if weak(a)]

    def dumps(self) -> str:
        """All of it as JSON; `loads` gives it back."""
        counts = [
            [a.unit, a.mechanism, dict(a.parameters), {str(c): by[c] for c in sorted(by)}]
            for a, by in sorted(self._counts.items())
        ]
        observed = {u: [[o, v] for o, v in sorted(c.items())] for u, c in self.observed.items()}
        told = {"counts": counts, "observed": observed, "unbounded": self.unbounded}
        return json.dumps(told, sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> Ledger:
        told = json.loads(text)
        return cls(
            {
                Account(unit, name, tuple(sorted(parameters.items()))): {
                    int(c): n for c, n in by.items()
                }
                for unit, name, parameters, by in told["counts"]
            },
            {unit: {o: v for o, v in curve} for unit, curve in told["observed"].items()},
            told.get("unbounded", ()),  # of older runs nobody knows
        )


def checked(release: Release) -> None:
    """Hold a release to its form, and one of a known mechanism to what that takes.

    Raises `ValueError`, also for noise that is so small that nothing is guaranteed.
    """
    if not isinstance(release, Release):
        raise ValueError(f"release: should be a fedkd.types.Release, found {release!r:.100}")
    name, given = release.mechanism, release.parameters
    for what, said, known in (("unit", release.unit, Unit), ("per", release.per, Per)):
        if said not in get_args(known):
            raise ValueError(
                f"release: {name} should have {what} {', '.join(get_args(known))}, found {said!r}"
            )
    kind = KINDS.get(name)
    if kind is None:
        return
    if set(given) != set(kind.takes):
        raise ValueError(
            f"release: {name} should have {', '.join(kind.takes)}, found"
            f" {', '.join(given) or 'none'}"
        )
    for parameter, value in given.items():
        if parameter != "replacement" and not 0 < value < math.inf:
            raise ValueError(
                f"release: {name} should have {parameter} above 0, found {value}, which guarantees"
                " nothing"
            )
    if given.get("sample_rate", 0.0) > 1:
        raise ValueError(
            f"release: {name} should have a sample_rate of at most 1, found {given['sample_rate']}"
        )
    if release.unit not in kind.about:
        meant = " or ".join(f"{unit}, for {its.relation}" for unit, its in kind.about.items())
        raise ValueError(
            f"release: {name} should have unit {meant}, found {release.unit}; take a mechanism that"
            f" is about a {release.unit}, or say in words what becomes known"
        )
    if kind.multiplier:
        least = 1 / kind.multiplier(given)
    else:
        least = kind.pure(given) if kind.pure else 1 / given.get("noise_multiplier", 1.0)
    if least > _NOTHING:
        raise ValueError(
            f"release: {name} should have noise of a millionth of what it hides or more, found"
            f" {', '.join(f'{n}={v:g}' for n, v in given.items())}, which guarantees nothing"
        )


def about(account: Account) -> About:
    """What a mechanism's guarantee means for the unit that it is declared for."""
    return KINDS[account.mechanism].about[account.unit]


def weak(account: Account) -> bool:
    """Whether a mechanism's claim protects no single record."""
    return KINDS[account.mechanism].claim is not None


def _in(account: Account, group: Group) -> bool:
    same = (account.unit, about(account).relation) == group
    return same and not weak(account)


@lru_cache(maxsize=4096)
def composed(spent: frozenset[tuple[Account, int]], delta: float) -> float:
    """The smallest epsilon that the releases are known to have together at this delta."""
    if not spent:
        return 0.0
    kinds = [(KINDS[a.mechanism], dict(a.parameters), n) for a, n in sorted(spent)]
    whole = [(_whole(a), n) for a, n in sorted(spent)]
    if all(noise or k.pure for (noise, _), (k, _, _) in zip(whole, kinds, strict=True)):
        # Gaussians are one Gaussian together, to which pure ones add what they have, at most
        precision = sum(n / noise**2 for noise, n in whole if noise)
        pure = sum(n * k.pure(p) for k, p, n in kinds if k.pure)
        normal = calibration.gaussian_epsilon(delta, precision**-0.5, 1.0) if precision else 0.0
        return min(normal + pure, _accounted(spent, delta)) if pure else normal
    return _accounted(spent, delta)


def _whole(account: Account) -> float | None:
    """The noise multiplier of a Gaussian that looks at everything; None for all else."""
    kind, p = KINDS[account.mechanism], dict(account.parameters)
    sampled = p.get("sample_rate", 1.0) < 1
    return None if kind.multiplier is None or sampled else kind.multiplier(p)


def _accounted(spent: Iterable[tuple[Account, int]], delta: float) -> float:
    """By Renyi divergences, which compose by sums (I. Mironov, CSF 2017)."""
    from dp_accounting.rdp import RdpAccountant, compute_epsilon

    total = sum(times * _curve(account) for account, times in sorted(spent))
    return float(compute_epsilon(RdpAccountant().orders, total, delta)[0])


@lru_cache(maxsize=4096)
def _curve(account: Account) -> Any:  # Any: an array of floats
    """Of one release, at the usual orders."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    # an order at which the series of a sampled Gaussian does not converge is left out, and it says
    # so for each: the figure is sound without it
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        accountant.compose(event(account))
    finally:
        log.setLevel(before)
    return accountant.rdp


def by_losses(spent: Iterable[tuple[Account, int]], delta: float) -> float | None:
    """The same by the distribution of privacy losses, which is tighter and takes seconds.

    None where a mechanism has none there, for Gaussians alone, whose figure is exact already, and
    where epsilon is above 100, at which they do not fit into memory for long.
    """
    spent = list(spent)
    exact = all(_whole(account) for account, _ in spent)
    if exact or composed(frozenset(spent), delta) > _FAR:
        return None
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for account, times in sorted(spent):
        made = event(account)
        if not accountant.supports(made):
            return None
        accountant.compose(made, times)
    return float(accountant.get_epsilon(delta))


def dependent_epsilon(curve: Mapping[float, float], delta: float) -> float:
    """What an observed curve comes to, by the conversion of dp-accounting."""
    from dp_accounting.rdp import compute_epsilon

    orders = sorted(curve)
    return float(compute_epsilon(orders, [curve[o] for o in orders], delta)[0])


def event(account: Account) -> Any:  # Any: a dp_accounting.DpEvent, which is not typed
    """One release as dp-accounting has it."""
    import dp_accounting as dp

    kind, p = KINDS[account.mechanism], dict(account.parameters)
    if kind.multiplier:
        gaussian, rate = dp.GaussianDpEvent(kind.multiplier(p)), p.get("sample_rate", 1.0)
        return gaussian if rate == 1 else dp.PoissonSampledDpEvent(rate, gaussian)
    if account.mechanism == "laplace":
        return dp.LaplaceDpEvent(p["scale"] / p["sensitivity"])
    if kind.pure:
        return dp.ZCDpEvent(kind.pure(p) ** 2 / 2)  # M. Bun, T. Steinke, TCC 2016, prop. 1.4
    sampled = dp.PoissonSampledDpEvent(p["sample_rate"], dp.GaussianDpEvent(p["noise_multiplier"]))
    return dp.SelfComposedDpEvent(sampled, int(p["steps"]))
