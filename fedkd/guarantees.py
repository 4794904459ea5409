"""What a method lets out, and what bounds it: mechanisms put into it, claims held to the data.

From here on `privacy.answers` is the method's own upload. What is refused here is refused before
anything is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from fedkd import plugins
from fedkd.config import Budget, Config, ConfigError
from fedkd.mechanisms import Mechanism
from fedkd.privacy import ledger, sgd
from fedkd.privacy.ledger import KINDS, BudgetSpent, Ledger
from fedkd.transforms import chain, let_out
from fedkd.types import Linear, Predictions, Release, State, Step, Strategy, Transform, identity

_USUAL_DELTA = 1e-5
_OPEN = "the answers of the clients, as the server and all who learn from them see: none"
# by which sums and searches in floating point may miss a figure that is spent to the last digit
_ROUNDING = 1e-9


class Charge(NamedTuple):
    """A release that is about to happen, and how often."""

    client: int
    release: Release
    times: int


def trained(strategy: Strategy, config: Config) -> Strategy:
    """The strategy with what `privacy.training` lets out, where there is any.

    Raises `ConfigError` where private epochs are about something else than each of a client's
    samples and its label, for which the accountant would be wrong.
    """
    if config.privacy.training is None:
        return strategy
    why = None
    if strategy.subset is not None:
        why = "samples drawn from them, some perhaps twice"
    elif "recall" in strategy.program:
        why = "targets of others beside their labels"
    if why:
        raise ConfigError(
            "privacy.training: should go with a method whose clients learn all of their samples"
            f" with their labels alone, found that those of {config.strategy.name} learn {why};"
            " leave it out or choose another strategy"
        )

    def releases(samples: int, round_: int) -> tuple[Release, ...]:
        own, made = strategy.train_releases(samples, round_), sgd.release(config, samples, round_)
        if made is None:
            return own
        if not made.parameters["noise_multiplier"]:
            made = Release("training without noise", "record", {})
        return (*own, made)

    return replace(strategy, train_releases=releases)


def protected(
    strategy: Strategy,
    config: Config,
    classes: int,
    search: Sequence[str] = (),
    *,
    knows: bool = False,
) -> Strategy:
    """The strategy with `privacy.answers` at the end of its upload.

    `knows` is whether clients answer about classes of their own alone. Raises `ConfigError` where
    it sends no answers, or something beside them that no mechanism touches, and where its rule
    cannot make up for what the mechanism does.
    """
    spec, name = config.privacy.answers, config.strategy.name
    if spec is None:
        return strategy
    space, extras = strategy.shares.answers, strategy.shares.extras
    if space is None or extras:
        found = "that it sends no answers"
        if extras:
            found = f"that it sends {', '.join(sorted(extras))} beside them, without noise"
        raise ConfigError(
            f"privacy.answers: {spec.name} should go with a method that sends scores of public rows"
            f" alone, found of {name} {found}; leave it out or choose another method"
        )
    made = plugins.build(
        "mechanism", spec, space, classes,
        search=search, expect=Mechanism, where="privacy.answers",
    )  # fmt: skip
    assert isinstance(made, Mechanism)
    finish = strategy.finish
    if made.correct is not identity:
        if knows:
            raise ConfigError(
                f"privacy.answers: {spec.name} should go with clients that answer about all"
                f" {classes} classes, for which its odds are, found that those of world"
                f" {config.world.name} answer about some; choose gaussian, laplace or another world"
            )
        if not isinstance(strategy.combine, Linear):
            raise ConfigError(
                f"privacy.answers: {spec.name} should go with a rule that is a mean, whose bias the"
                f" server can undo, found another one in {name}; set combine to mean or choose"
                " gaussian or laplace"
            )
        finish = _before(made.correct, finish)
    upload = made.step if strategy.upload is identity else chain(strategy.upload, made.step)
    return replace(strategy, upload=upload, finish=finish)


def _before(first: Transform, then: Transform) -> Transform:
    """A step without state before another one, whose state keeps its names: requests read it."""

    def apply(state: State, given: Predictions, rng: Any) -> Step:  # Any: a Generator
        return then.apply(state, first.apply({}, given, rng).result, rng)

    return then._replace(apply=apply)


def client_releases(strategy: Strategy, samples: int, round_: int) -> dict[str, list[Release]]:
    """What one client lets out by step of a question, where the server is not trusted."""
    found: dict[str, list[Release]] = {"train": list(strategy.train_releases(samples, round_))}
    if strategy.committee is not None and samples:
        committee = strategy.committee
        found["convene"] = [*committee.teach.releases] * committee.partitions
        found["convene"] += committee.agree.releases
    if strategy.shares.answers is not None:
        found["answer"] = [*_annotated(strategy), *strategy.upload.releases]
    return found


def _annotated(strategy: Strategy) -> tuple[Release, ...]:
    """What a client says of its data, beside its answers or in their place."""
    return strategy.annotate_releases if _looks(strategy) else ()


def _looks(strategy: Strategy) -> list[str]:
    """How clients look at their records when they answer, in words; DP-SGD covers none of it."""
    ways = {
        "annotates": strategy.annotate,
        "summarises": strategy.summarise,
        "replies from records": strategy.reply,
    }
    return [word for word, way in ways.items() if way is not None]


def server_releases(strategy: Strategy) -> tuple[Release, ...]:
    """What the server lets out about its clients, at most."""
    rule = () if isinstance(strategy.combine, Linear) else strategy.combine.releases
    return (*rule, *strategy.finish.releases)


def charges(
    strategy: Strategy,
    round_: int,
    steps: Sequence[str],
    rows: Mapping[int, int],
    samples: Sequence[int],
    *,
    server: bool,
) -> list[Charge]:
    """What a question lets out, by client; `rows` are asked of each, who has so many `samples`.

    `server` are the releases of the server that follow on it, at most.
    """
    found = []
    for client, asked in rows.items():
        mine = client_releases(strategy, samples[client], round_)
        releases = [r for step in steps for r in mine.get(step, ())]
        if server and "answer" in steps:
            releases += server_releases(strategy)
        for release in releases:
            found.append(Charge(client, release, asked if release.per == "row" else 1))
    return found


def rows_of(clients: Sequence[int], rows: Tensor, mask: Tensor | None) -> dict[int, int]:
    """How many rows are asked of each client: of all `rows` [R, 3], or by `mask` [K', R]."""
    counts = [len(rows)] * len(clients) if mask is None else mask.sum(1).tolist()
    return dict(zip(clients, counts, strict=True))


def settle(
    account: Ledger, rows: Mapping[int, int], made: Sequence[tuple[Transform, Step]]
) -> None:
    """Enter what steps of the server have let out about the clients that were asked of `rows`.

    What is let out of a row says nothing of a client that was not asked about it. A figure of the
    votes themselves is kept where it is about all that was let out of the unit, in all rounds.
    """
    before, curves = {group.unit for group in account.groups()}, list[Release]()
    for transform, step in made:
        for client, asked in rows.items():
            for release, times in let_out(transform, step.released, asked):
                most = asked if release.per == "row" else times
                account.charge(client, release, min(times, most))
        curves += [r for r, _ in step.released or () if r.mechanism == ledger.DEPENDENT]
    for curve in curves:
        if curve.unit in account.observed or curve.unit not in before:
            account.observe(curve.unit, {float(o): v for o, v in curve.parameters.items()})
    for unit in {r.unit for transform, _ in made for r in transform.releases if not curves}:
        account.observed.pop(unit, None)


def limit(budget: Budget) -> float:
    """The epsilon above which a budget is exceeded, by more than rounding: 3 times 0.1 is 0.3."""
    return budget.epsilon * (1 + _ROUNDING)


class Overdrawn(NamedTuple):
    """A client that has spent more than the budget of a unit, and in words what it came to."""

    client: int
    epsilon: float
    text: str


def over(account: Ledger, budget: Budget, among: Collection[int] | None = None) -> list[Overdrawn]:
    """Who has spent more than the budget, by group and client; `among` these clients, or all."""
    found = []
    for group in account.groups():
        for client in account.clients(group):
            if among is not None and client not in among:
                continue
            epsilon = account.epsilon(client, group, budget.delta)
            if epsilon > limit(budget):
                text = f"{epsilon:.4g} by {group.unit} at delta {budget.delta:g} ({group.relation})"
                found.append(Overdrawn(client, epsilon, text))
    return found


def overdrawn(account: Ledger, due: Sequence[Charge], budget: Budget) -> dict[int, str]:
    """Who would have spent more than the budget after these releases, and what it came to."""
    after = account.after(due)
    asked = {charge.client for charge in due}
    return {one.client: f"epsilon {one.text}" for one in over(after, budget, asked)}


def refusal(round_: int, spent: Mapping[int, str], budget: Budget) -> BudgetSpent:
    """What is told when nobody may be asked any more."""
    client, text = next(iter(sorted(spent.items())))
    return BudgetSpent(
        f"privacy.budget: round {round_} would exceed epsilon {budget.epsilon:g} for"
        f" {len(spent)} clients, client {client} with {text}, so it was not begun; run fewer"
        " rounds, ask about fewer rows, add noise, or branch with a larger budget"
    )


def check(
    strategy: Strategy, config: Config, sizes: Sequence[int], *, conspired: bool = False
) -> None:
    """Hold what is claimed to the data, `sizes` [K] private samples. Raises `ConfigError`.

    `conspired` is whether the world has liars who know what the others say.
    """
    name, privacy = config.strategy.name, config.privacy
    _check_declared(strategy, config)
    _check_places(strategy, name)
    _check_calibrated(strategy, config, conspired)
    _check_releases(strategy, config, sizes)
    own = None if privacy.answers is None else privacy.answers.params.get("delta")
    given = {
        "budget": None if privacy.budget is None else privacy.budget.delta,
        "training": None if privacy.training is None else privacy.training.delta,
        "answers": own,
    }
    for place, delta in given.items():
        if isinstance(delta, float) and delta >= 1 / sum(sizes):
            raise ConfigError(
                f"privacy.{place}.delta: should be below 1/n for n = {sum(sizes):,} private"
                f" samples, found {delta:g}, with which letting out a whole sample would be"
                f" allowed; set it to {0.1 / sum(sizes):.1g} or less"
            )
    budget = privacy.budget
    if budget is None:
        return
    bounded = [r for r in _all(strategy, max(sizes), config.rounds) if _guaranteed(r)]
    if not bounded:
        raise ConfigError(
            f"privacy.budget: should be for what mechanisms let out, found that {name} has none"
            " here, so that any epsilon is exceeded; set privacy.answers, give privacy.training or"
            " the method a noise above 0, choose a private method, or leave the budget out"
        )
    open_ = _OPEN in unbounded(strategy, max(sizes), rounds=config.rounds)
    if open_ and privacy.undeclared != "allow":
        raise ConfigError(
            f"privacy.budget: should be for all that is let out, found that of {name} it bounds"
            f" {', '.join(dict.fromkeys(r.mechanism for r in bounded))} alone, and the answers of"
            " the clients not at all; set privacy.answers or privacy.training, leave the budget"
            " out, or set privacy.undeclared to allow, and the report says so"
        )


def _check_releases(strategy: Strategy, config: Config, sizes: Sequence[int]) -> None:
    """What is declared has the form that the ledger reads, for the fewest and the most samples."""
    answers, method = config.privacy.answers, f"strategy: {config.strategy.name}"
    for samples in {min((n for n in sizes if n), default=0), max(sizes)}:
        place = method
        try:
            for release in _all(strategy, samples, config.rounds):
                place = method
                if answers is not None and release in strategy.upload.releases[-1:]:
                    place = f"privacy.answers: {answers.name}"
                elif config.privacy.training is not None and release.mechanism == "dp_sgd":
                    place = "privacy.training"
                ledger.checked(release)
        except Exception as error:  # a method's own code may raise anything
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ConfigError(
                f"{place} should declare what its noise guarantees, found for a client of"
                f" {samples} samples: {kind}{error}; correct the noise, or the method's releases"
            ) from error


def _check_declared(strategy: Strategy, config: Config) -> None:
    """A look at private data is declared; what nothing bounds is not beside a budget."""
    name, privacy = config.strategy.name, config.privacy
    if privacy.undeclared == "allow":
        return
    way_out = "set privacy.undeclared to allow, and the report says so"
    if looks := _undeclared(strategy):
        raise ConfigError(
            f"strategy: {name} {looks}, which looks at private data, and should declare what"
            " becomes known by it, found no release; give it annotate_releases (with the mechanism"
            f" in words where nothing bounds it), or {way_out}"
        )
    open_ = [r.mechanism for r in _annotated(strategy) if not _guaranteed(r)]
    if privacy.budget is not None and open_:
        raise ConfigError(
            f"privacy.budget: should be beside releases that a mechanism bounds, found"
            f" {', '.join(open_)} in {name}; leave that out, or {way_out}"
        )


def _check_calibrated(strategy: Strategy, config: Config, conspired: bool) -> None:
    """Noise of the server is made for what one unit can change in the method's own sum."""
    name, noisy = config.strategy.name, [r for r in server_releases(strategy) if _guaranteed(r)]
    if noisy and conspired:
        raise ConfigError(
            f"world: {config.world.name} should have no liars who know all answers where noise in"
            f" {name} is made for what a {noisy[0].unit} can change in its own counts, found some,"
            " whose lies may change with it; choose lies that need no other's answers or another"
            " method"
        )
    noisy = [r for r in strategy.finish.releases if _guaranteed(r)]
    if noisy and config.combine != "auto":
        raise ConfigError(
            f"combine: should be auto where noise in {name} is made for what a {noisy[0].unit}"
            f" can change in its own counts, found {config.combine.name}, for which nobody has said"
            " what that is; leave combine at auto or choose another method"
        )
    if noisy and strategy.reply is not None and config.codecs.up:
        raise ConfigError(
            f"codecs.up: should be left out where the noise of {name} is made for counts that one"
            f" {noisy[0].unit} changes by one, found {config.codecs.up[0].name}, whose rounding"
            " may make more of it; leave codecs.up out"
        )


def _undeclared(strategy: Strategy) -> str:
    """How clients look at their records without a release for it, in words; empty where none do.

    What a reply tells may be bounded behind it: by a step of its own, or by a server that is
    trusted with the replies, as with votes.
    """
    looks, behind = _looks(strategy), (*strategy.upload.releases, *server_releases(strategy))
    declared = strategy.annotate_releases or (looks == ["replies from records"] and behind)
    return "" if declared else " and ".join(looks)


def _check_places(strategy: Strategy, name: str) -> None:
    """Noise is where it is counted, and as often: its streams are named by the round."""
    inner = strategy.committee.teach.releases if strategy.committee else ()
    noisy = [*_annotated(strategy), *inner, *strategy.upload.releases, *server_releases(strategy)]
    times = strategy.program.count("answer")
    if times > 1 and any(_guaranteed(r) for r in noisy):
        raise ConfigError(
            f"strategy: {name} should answer once a round where its answers have noise, which is"
            f" drawn by round and would be the same again, found {times} times; correct its program"
        )
    for place in ("download", "receive"):
        lost = [r.mechanism for r in getattr(strategy, place).releases if _guaranteed(r)]
        if lost:
            raise ConfigError(
                f"strategy: {name} should have its noise in upload, combine or finish, where it is"
                f" counted, found {', '.join(lost)} in {place}; move it there"
            )


def _all(strategy: Strategy, samples: int, rounds: int) -> list[Release]:
    """What is let out in the first round or the next, which may train more or less."""
    mine = [client_releases(strategy, samples, r) for r in range(1, min(rounds, 2) + 1)]
    return [*(r for m in mine for s in m.values() for r in s), *server_releases(strategy)]


def once(strategy: Strategy) -> list[str]:
    """Mechanisms whose noise is drawn once a run, of what does not change from round to round."""
    return [r.mechanism for r in _all(strategy, 1, 1) if r.per == "run" and _guaranteed(r)]


def _guaranteed(release: Release) -> bool:
    kind = KINDS.get(release.mechanism)
    return kind is not None and kind.claim is None


def unbounded(
    strategy: Strategy, samples: int, *, rounds: int = 1, knows: bool = False
) -> Iterator[str]:
    """What of a method has no guarantee, in words; every run says it.

    `knows` is whether clients answer about classes of their own alone. The first of the `rounds`
    may train for longer than others, or not at all.
    """
    mine = [client_releases(strategy, samples, r) for r in range(1, min(rounds, 2) + 1)]
    # what is made of a private model is post-processing, what is read from records is not
    trained = any(_guaranteed(r) for m in mine for r in m["train"])
    taught = any(_guaranteed(r) for m in mine for r in m.get("convene", ()))
    if "average_weights" in strategy.program and not trained:
        yield "the weights of the clients, as the server sees them: none"
    read = strategy.summarise is not None or strategy.reply is not None
    own = strategy.annotate_releases if read and strategy.annotate is None else ()
    local = [r for r in (*own, *strategy.upload.releases) if _guaranteed(r)]
    covered = any(r.unit != "prediction" for r in local)
    if strategy.shares.answers is not None and not covered and (read or not (trained or taught)):
        server = any(_guaranteed(r) for r in server_releases(strategy))
        if local:
            who = "the server sees" if server else "anybody sees"
            yield f"the training records behind the answers, as {who} them: none by record"
        elif server:
            yield "the answers of the clients, as the server sees them: none"
        else:
            yield _OPEN
    if _undeclared(strategy):
        what = "of their own answers" if _looks(strategy) == ["annotates"] else "of their records"
        yield f"what clients say {what}: undeclared, none (allowed by the config)"
    for release in _annotated(strategy):
        if not _guaranteed(release):
            yield f"{release.mechanism}: none"
    if knows:
        yield "which classes a client has samples of, exact: none"


def earlier(account: Ledger, now: Collection[str]) -> list[str]:
    """What a branch has left behind that had no guarantee, beside what has none now."""
    return [text for text in account.unbounded if text not in now]


def delta_of(config: Config, samples: int) -> float:
    """The delta at which figures are told: that of the budget, else of the target of training.

    Where there is neither, a tenth of 1/n at most.
    """
    budget, training = config.privacy.budget, config.privacy.training
    if budget is not None:
        return budget.delta
    if training is not None and training.delta is not None:
        return training.delta
    return min(_USUAL_DELTA, 0.1 / max(1, samples))


def spent(account: Ledger, delta: float) -> dict[str, float]:
    """The worst client's epsilon by unit, for a record of a round."""
    found: dict[str, float] = {}
    for group in account.groups():
        worst = max(account.epsilon(c, group, delta) for c in account.clients(group))
        found[group.unit] = max(worst, found.get(group.unit, 0.0))
    return found


def told(
    strategy: Strategy,
    config: Config,
    sizes: Sequence[int],
    account: Ledger,
    *,
    knows: bool = False,
    losses: bool = True,
) -> dict[str, Any]:  # Any: JSON
    """The content of `privacy.json`: every guarantee with its assumptions, and what has none.

    Figures by loss distributions take seconds; without `losses` they are left open.
    """
    delta, budget = delta_of(config, sum(sizes)), config.privacy.budget
    now = list(unbounded(strategy, max(sizes), rounds=config.rounds, knows=knows))
    guarantees = []
    for group in account.groups():
        clients = account.clients(group)
        epsilons = {c: account.epsilon(c, group, delta) for c in clients}
        worst = max(clients, key=lambda c: (epsilons[c], -c))
        its = account.spent(worst, group)
        names = sorted({a.mechanism for a, _ in its})
        assumes = dict.fromkeys(a for n in names for a in KINDS[n].about[group.unit].assumes)
        # it takes seconds a client, so that of others their usual figure must do
        tighter = ledger.by_losses(its, delta) if losses else None
        if tighter is not None:
            others = (epsilons[c] for c in clients if account.spent(c, group) != its)
            tighter = max(tighter, *others, 0.0)
        guarantees.append(
            {
                "unit": group.unit,
                "relation": group.relation,
                "mechanisms": names,
                "epsilon": epsilons[worst],
                "by_losses": tighter,
                "client": worst,
                "clients": {str(c): epsilons[c] for c in clients},
                "releases": sum(n for _, n in its),
                "one": max(ledger.composed(frozenset({(a, 1)}), delta) for a, _ in its),
                "assumes": list(assumes),
            }
        )
    weak = []
    for found, by in account.weak():
        claim = KINDS[found.mechanism].claim
        assert claim is not None
        epsilon, its_delta = claim(dict(found.parameters))
        weak.append(
            {
                "unit": found.unit,
                "relation": ledger.about(found).relation,
                "mechanism": found.mechanism,
                "epsilon": epsilon,
                "delta": its_delta,
                "clients": sorted(by),
                "assumes": list(ledger.about(found).assumes),
            }
        )
    return {
        "delta": delta,
        "budget": None if budget is None else budget.model_dump(mode="json"),
        "undeclared": config.privacy.undeclared,
        "guarantees": guarantees,
        "weak": weak,
        "none": [*now, *(f"before the branch, {text}" for text in earlier(account, now))],
        "data_dependent": {
            unit: {
                # every client has its figure for any votes, too, which may be converted better
                "epsilon": min(
                    ledger.dependent_epsilon(curve, delta),
                    spent(account, delta).get(unit, 0.0),
                ),
                "caution": "it depends on the votes, so it is private itself: do not publish it",
            }
            for unit, curve in account.observed.items()
        },
    }
