"""Who is charged for what: the ledger against accounts of its own, through whole runs and worlds.

Nothing here is computed by `fedkd.privacy` twice: figures come of closed forms, of mpmath, and of
dp-accounting by another way than the ledger's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import small
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from scipy.optimize import brentq
from scipy.special import log_ndtr

import fedkd
from fedkd import guarantees, wire
from fedkd.commits import Commits
from fedkd.config import Config, ConfigError, load_config
from fedkd.engine import ledger_of
from fedkd.forecast import Forecast
from fedkd.privacy.ledger import Account, BudgetSpent, Ledger
from fedkd.rehearsal import rehearse
from fedkd.store import Folder
from fedkd.tasks import rows_from
from fedkd.transforms import pure
from fedkd.types import Release, Step, Transform, predictions

QUIET = {"evaluation": {**small.EXPERIMENT["evaluation"], "teachers": False, "disagreement": False}}
DELTA = 1e-5
NOISY = "privacy.answers={name: gaussian, sigma: 2.0}"
TRAINING = "privacy.training={noise_multiplier: 2.0}"


def exact(multiplier: float, delta: float = DELTA) -> float:
    """Balle and Wang's condition for sensitivity 1, solved here."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * multiplier), epsilon * multiplier
        return math.exp(log_ndtr(a - b)) - math.exp(epsilon + log_ndtr(-a - b)) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 1 / multiplier**2 + 60.0))


def sampled(sigma: float, rate: float, steps: int, *more: dp.DpEvent) -> float:
    accountant = RdpAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), steps)
    for event in more:
        accountant.compose(event)
    return float(accountant.get_epsilon(DELTA))


def total(*charged: tuple[Release, int]) -> float:
    """What the ledger says of one client, in one group."""
    book = Ledger()
    for release, times in charged:
        book.charge(4, release, times)
    (group,) = book.groups()
    return book.epsilon(4, group, DELTA)


def gaussian(sigma: float, sensitivity: float = 1.0) -> Release:
    return Release("gaussian", "prediction", {"sigma": sigma, "sensitivity": sensitivity}, "row")


def laplace(scale: float, sensitivity: float = 1.0) -> Release:
    return Release("laplace", "prediction", {"scale": scale, "sensitivity": sensitivity}, "row")


def response(epsilon: float) -> Release:
    return Release("randomised_response", "prediction", {"epsilon": epsilon}, "row")


def votes(name: str, size: float) -> Release:
    return Release(name, "client", {"scale" if name == "lnmax" else "sigma": size}, "row")


def dp_sgd(sigma: float, rate: float, steps: int) -> Release:
    given = {"noise_multiplier": sigma, "sample_rate": rate, "steps": float(steps)}
    return Release("dp_sgd", "record", given)


COEFFICIENTS = Release("coefficients", "record", {"sigma": 3.0, "sensitivity": 1.0}, "run")
BY_HAND: dict[str, tuple[float, float]] = {
    "gaussian": (total((gaussian(6.0, 2.0), 9)), exact(3 / 3)),
    "two gaussians": (
        total((gaussian(6.0, 2.0), 9), (gaussian(10.0), 30)), exact((1.0 + 0.3) ** -0.5),
    ),
    "gnmax": (total((votes("gnmax", 40.0), 286)), exact(40 / (2 * 286) ** 0.5)),
    "confident": (
        total((votes("gnmax", 40.0), 286), (votes("vote_threshold", 150.0), 640)),
        exact((286 * 2 / 40**2 + 640 / 150**2) ** -0.5),
    ),
    "few pure ones": (total((laplace(4.0), 2), (response(0.5), 1)), 2 / 4 + 0.5),
    "lnmax": (total((votes("lnmax", 20.0), 3)), 3 * 2 / 20),
    "a gaussian and a pure one": (
        total((gaussian(5.0), 1), (response(0.01), 1)), exact(5.0) + 0.01,
    ),
    "dp_sgd, more epochs in the first round": (
        total((dp_sgd(1.3, 0.2, 15), 1), (dp_sgd(1.3, 0.2, 5), 4)), sampled(1.3, 0.2, 35),
    ),
    "dp_sgd and coefficients": (
        total((dp_sgd(1.3, 0.2, 5), 4), (COEFFICIENTS, 1), (COEFFICIENTS, 1)),
        sampled(1.3, 0.2, 20, dp.GaussianDpEvent(3.0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BY_HAND)
def test_totals_are_those_of_another_account(what: str) -> None:
    found, expected = BY_HAND[what]
    assert found == pytest.approx(expected, rel=1e-6)


def test_many_pure_ones_are_below_their_sum_and_above_the_truth() -> None:
    for release, loss in (
        (votes("lnmax", 20.0), None),
        (laplace(10.0), pld.from_laplace_mechanism(10.0, pessimistic_estimate=False)),
    ):
        found = total((release, 200))
        assert found < 0.5 * 200 * 0.1
        if loss is not None:
            assert found > loss.self_compose(200).get_epsilon_for_delta(DELTA)


SOME = st.lists(
    st.one_of(
        st.builds(gaussian, st.sampled_from([2.0, 5.0, 20.0]), st.sampled_from([1.0, 2**0.5])),
        st.builds(laplace, st.sampled_from([3.0, 10.0, 40.0])),
        st.builds(response, st.sampled_from([0.05, 0.3, 1.0])),
    ).flatmap(lambda release: st.tuples(st.just(release), st.integers(1, 12))),
    min_size=1,
    max_size=3,
)


def naive(release: Release, delta: float) -> float:
    p = release.parameters
    if release.mechanism == "gaussian":
        return exact(p["sigma"] / p["sensitivity"], delta)
    return p["sensitivity"] / p["scale"] if release.mechanism == "laplace" else p["epsilon"]


def least(release: Release) -> Any:  # Any: a privacy loss distribution, which is not typed
    """The losses of one release, rounded down."""
    p, args = release.parameters, {"pessimistic_estimate": False}
    args["value_discretization_interval"] = 1e-3
    if release.mechanism == "gaussian":
        return pld.from_gaussian_mechanism(p["sigma"], sensitivity=p["sensitivity"], **args)
    if release.mechanism == "laplace":
        return pld.from_laplace_mechanism(p["scale"], sensitivity=p["sensitivity"], **args)
    noise = 10 / (math.exp(p["epsilon"]) + 9)  # of ten labels, one drawn evenly so often
    return pld.from_randomized_response(noise, 10, **args)


@given(SOME)
@settings(max_examples=25, deadline=None)
def test_a_total_is_no_less_than_the_truth_and_no_more_than_naive_composition(
    charged: Sequence[tuple[Release, int]],
) -> None:
    found, gaussians = total(*charged), sum(n for r, n in charged if r.mechanism == "gaussian")
    share = DELTA / max(1, gaussians)
    assert found <= sum(n * naive(release, share) for release, n in charged) + 1e-9
    losses = [least(release).self_compose(times) for release, times in charged]
    truth = losses[0]
    for loss in losses[1:]:
        truth = truth.compose(loss)
    assert found >= truth.get_epsilon_for_delta(DELTA) - 0.02  # 36 times 1e-3, half of it at most


def test_a_release_more_never_costs_less() -> None:
    for first in (gaussian(4.0), laplace(8.0), response(0.2)):
        for more in (gaussian(9.0), laplace(30.0), response(0.05)):
            assert total((first, 3)) < total((first, 4)) < total((first, 4), (more, 1))


# who is charged


def spent(folder: Path) -> dict[int, dict[str, int]]:
    """How often a client has released by which mechanism, as committed."""
    commit = Commits(folder, Folder(folder / "clients"), 1, lambda text: None).last()
    told = json.loads(ledger_of(commit).dumps())
    found: dict[int, dict[str, int]] = {}
    for _, mechanism, _, by in told["counts"]:
        for client, times in by.items():
            mine = found.setdefault(int(client), {})
            mine[mechanism] = mine.get(mechanism, 0) + times
    return found


@pytest.mark.parametrize(
    "world",
    [{"name": "dropout", "rate": 0.5},
     {"name": "flaky", "fraction": 1.0, "rate": 0.6}, {"name": "lying", "fraction": 0.5},
     {"name": "stragglers", "deadline": 0.05}],
    ids=lambda w: str(w["name"]),
)  # fmt: skip
def test_who_is_asked_is_charged_heard_of_or_not(world: Any, tmp_path: Path) -> None:
    records = small.run(small.config("dsfl", NOISY, world=world, **QUIET), tmp_path)
    name = world["name"]
    missing = [c for r in records for c in (*r["absent"], *r["late"])]
    assert bool(missing) == (name in ("dropout", "flaky", "stragglers"))
    rows = {r["round"]: r["rows"]["asked"] for r in records}
    expected: dict[int, dict[str, int]] = {}
    for record in records:
        for client in record["participants"]:
            mine = expected.setdefault(client, {"gaussian": 0})
            mine["gaussian"] += rows[record["round"]]
    assert spent(tmp_path) == expected
    (found,) = json.loads((tmp_path / "privacy.json").read_text())["guarantees"]
    for client, mine in expected.items():
        by_hand = exact((2 * mine["gaussian"] / 2.0**2) ** -0.5)
        assert found["clients"][str(client)] == pytest.approx(by_hand, rel=1e-6)


def test_the_server_charges_those_it_asked_for_a_vote_that_came_without_them(
    tmp_path: Path,
) -> None:
    world = {"name": "dropout", "rate": 0.5}
    chosen = small.config({"name": "pate", "sigma": 9.0}, "rounds=1", world=world, **QUIET)
    (record,) = small.run(chosen, tmp_path)
    assert 0 < len(record["absent"]) < 6
    assert spent(tmp_path) == {c: {"gnmax": 80} for c in range(6)}


@pytest.mark.parametrize("strategy", [{"name": "scarlet", "duration": 1, "rows": 40},
                                      "odd_methods:asks_apart"])  # fmt: skip
def test_a_client_is_charged_for_the_rows_that_are_asked_of_it(
    strategy: Any, tmp_path: Path
) -> None:
    """What is cached is asked of nobody, and a mask asks each client about rows of its own."""
    chosen = small.config(
        strategy, NOISY, "rounds=3", world={"name": "partial", "fraction": 0.5}, **QUIET
    )
    transport = small.InProcess()
    small.run(chosen, tmp_path, transport)
    asked: dict[int, dict[str, int]] = {}
    for _, message, _ in transport.seen:
        head, blobs = wire.unpack(message)
        if "answer" not in head.get("steps", ()):
            continue
        rows = len(rows_from(blobs[head["rows"]]))
        for client in (c for stack in head["stacks"] for c in stack["clients"]):
            mine = asked.setdefault(client, {"gaussian": 0})
            if head["masks"] is None:
                mine["gaussian"] += rows
            else:
                bits = np.frombuffer(blobs[head["masks"][str(client)]], np.uint8)
                mine["gaussian"] += int(np.unpackbits(bits).sum())
    assert spent(tmp_path) == asked and len({m["gaussian"] for m in asked.values()}) > 1


def test_training_is_charged_wherever_it_stands_in_a_round(tmp_path: Path) -> None:
    """Before clients learn the consensus, too, which makes a question of its own."""
    chosen = small.config(
        "odd_methods:trains_before_it_distils", TRAINING, "learning.private.first_epochs=3",
        "rounds=3", **QUIET,
    )  # fmt: skip
    small.run(chosen, tmp_path)
    told = json.loads((tmp_path / "privacy.json").read_text())
    (group,) = told["guarantees"]
    for client, n in enumerate(small.plan(chosen, tmp_path).samples):
        steps = (3 + 1 + 1) * math.ceil(n / 16)
        accountant = RdpAccountant()
        accountant.compose(
            dp.PoissonSampledDpEvent(min(1.0, 16 / n), dp.GaussianDpEvent(2.0)), steps
        )
        by_hand = float(accountant.get_epsilon(told["delta"]))
        assert group["clients"][str(client)] == pytest.approx(by_hand, rel=1e-6)


def test_who_only_answers_has_no_training_to_pay_for(tmp_path: Path) -> None:
    chosen = small.config("dsfl", TRAINING, world={"name": "frozen_teachers", "until": 1}, **QUIET)
    first, second = small.run(chosen, tmp_path)
    assert first["privacy"] == second["privacy"] and first["steps"] != second["steps"]
    assert all(mine == {"dp_sgd": 1} for mine in spent(tmp_path).values())


def test_who_trains_from_the_second_round_on_has_a_guarantee(tmp_path: Path) -> None:
    chosen = small.config(
        "dsfl", TRAINING, "learning.private.first_epochs=0",
        "privacy.budget={epsilon: 900.0, delta: 0.0001}", **QUIET,
    )  # fmt: skip
    first, second = small.run(chosen, tmp_path)
    assert not first["privacy"]["epsilon"] and second["privacy"]["epsilon"]["record"] > 0
    assert json.loads((tmp_path / "privacy.json").read_text())["none"] == []


def test_what_the_server_lets_out_is_within_the_budget_before_it_is_asked(tmp_path: Path) -> None:
    one = exact(60.0 / (2 * 80) ** 0.5, 1e-4)
    chosen = small.config(
        {"name": "pate", "sigma": 60.0}, f"privacy.budget={{epsilon: {1.3 * one}, delta: 0.0001}}",
        rounds=3, **QUIET,
    )  # fmt: skip
    with pytest.raises(BudgetSpent, match="round 2 would exceed"):
        small.run(chosen, tmp_path)
    (record,) = small.records(tmp_path)
    assert record["privacy"]["epsilon"]["client"] == pytest.approx(one)
    assert all(mine == {"gnmax": 80} for mine in spent(tmp_path).values())


@pytest.mark.parametrize(
    ("noise", "rows", "epsilon"),
    [("laplace, epsilon: 0.1", 3, 0.3), ("randomised_response, epsilon: 0.1", 7, 0.7),
     ("gaussian, epsilon: 8.0, delta: 1.0e-9", 1, 8.0)],
)  # fmt: skip
def test_a_budget_may_be_spent_to_the_last_digit(
    noise: str, rows: int, epsilon: float, tmp_path: Path
) -> None:
    """3 times 0.1 is more than 0.3 in floats, and a search ends where it is near enough."""

    def chosen(most: float) -> Config:
        budget = f"privacy.budget={{epsilon: {most}, delta: 1.0e-9}}"
        answers = f"privacy.answers={{name: {noise}}}"
        return small.config({"name": "dsfl", "rows": rows}, budget, answers, "rounds=1", **QUIET)

    assert total_of(chosen(epsilon), tmp_path) > epsilon
    plan = small.plan(chosen(epsilon), tmp_path)
    rehearse(plan)
    foretold = Forecast(plan)
    assert [foretold.overdraft(group) for group in foretold.after.groups()] == [None]
    with pytest.raises(ConfigError, match="should allow one round at least"):
        rehearse(small.plan(chosen(epsilon * (1 - 1e-6)), tmp_path))


def total_of(config: Config, folder: Path) -> float:
    (guarantee,) = Forecast(small.plan(config, folder)).told()["guarantees"]
    return float(guarantee["epsilon"])


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0, 8.0])
def test_training_for_an_epsilon_is_within_a_budget_of_it(epsilon: float, tmp_path: Path) -> None:
    """Also where that is small, and the order of its divergence large."""
    chosen = small.config(
        "dsfl", f"privacy.training={{epsilon: {epsilon}, delta: 0.001}}",
        f"privacy.budget={{epsilon: {epsilon}, delta: 0.001}}", **QUIET,
    )  # fmt: skip
    assert 0.95 * epsilon < total_of(chosen, tmp_path) <= epsilon
    rehearse(small.plan(chosen, tmp_path))


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one round: without any guarantee, and with noise that is drawn once a run."""
    home = tmp_path_factory.mktemp("trunks")
    for name, method in {
        "plain": {"name": "dsfl", "rows": 20}, "once": {"name": "fedaux", "noise_multiplier": 4.0},
    }.items():  # fmt: skip
        quiet = (f"execution.out={home / name}", "learning.server.epochs=0", "rounds=1")
        fedkd.run(small.config(method, *quiet, **QUIET))
    return home


def branched(trunk: Path, branch: Path, *overrides: str) -> Any:
    """`privacy.json` of a branch, which was gone on with for another round."""

    def changed(stored: Config) -> Config:
        return load_config(stored.model_dump(mode="json"), ["rounds=2", *overrides])

    fedkd.resume(trunk, changed, branch=branch)
    return json.loads((branch / "privacy.json").read_text())


def test_a_branch_says_what_was_let_out_before_it(trunks: Path, tmp_path: Path) -> None:
    told = branched(trunks / "plain", tmp_path / "noisy", NOISY)
    assert told["guarantees"][0]["releases"] == 20
    assert told["none"] == [
        "the training records behind the answers, as anybody sees them: none by record",
        "before the branch, the answers of the clients, as the server and all who learn from them"
        " see: none",
    ]


@pytest.mark.parametrize(
    ("trunk", "overrides", "text"),
    [
        ("plain", (NOISY, "privacy.budget={epsilon: 50.0, delta: 0.0001}"),
         r"let out no more without a guarantee, .* found before round 2: the answers of the"),
        ("plain", (TRAINING,), "from the first round on, .* found nothing in the run before"),
        ("once", ("strategy.lam=0.1",), r"once a run \(coefficients\) .* found strategy\.lam"),
        ("once", ("strategy.noise_multiplier=2.0",), "drawn once more and be the same, found"),
    ],
)  # fmt: skip
def test_a_branch_that_could_not_keep_what_it_promises_is_refused(
    trunk: str, overrides: tuple[str, ...], text: str, trunks: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        branched(trunks / trunk, tmp_path / "branch", *overrides)
    assert not (tmp_path / "branch").exists()


def test_training_and_coefficients_of_the_same_records_add_up(tmp_path: Path) -> None:
    chosen = small.config({"name": "fedaux", "noise_multiplier": 3.0}, TRAINING, **QUIET)
    records = small.run(chosen, tmp_path)
    told = json.loads((tmp_path / "privacy.json").read_text())
    (group,) = told["guarantees"]
    assert group["mechanisms"] == ["coefficients", "dp_sgd"] and group["unit"] == "record"
    assert records[-1]["privacy"]["epsilon"] == {"record": group["epsilon"]}
    n = small.plan(chosen, tmp_path).samples[0]
    accountant = RdpAccountant()
    step = dp.PoissonSampledDpEvent(min(1.0, 16 / n), dp.GaussianDpEvent(2.0))
    accountant.compose(step, 2 * math.ceil(n / 16))
    accountant.compose(dp.GaussianDpEvent(3.0))
    by_hand = float(accountant.get_epsilon(told["delta"]))
    assert group["clients"]["0"] == pytest.approx(by_hand, rel=1e-6)


def test_every_record_says_what_the_ledger_says_after_its_round(tmp_path: Path) -> None:
    chosen = small.config(
        {"name": "pate", "rule": "confident", "sigma": 2.0, "threshold": 3.0}, NOISY, TRAINING,
        "execution.keep_commits=9", "rounds=3", **QUIET,
    )  # fmt: skip
    records = small.run(chosen, tmp_path)
    assert all(set(r["privacy"]["epsilon"]) == {"client", "prediction", "record"} for r in records)
    for record in records:
        path = tmp_path / "commits" / f"{record['round']:06d}.safetensors"
        text = bytes(load(path.read_bytes())["ledger"].tolist()).decode()
        found = guarantees.spent(Ledger.loads(text), 1e-5)
        assert record["privacy"]["epsilon"] == found
    told = json.loads((tmp_path / "privacy.json").read_text())
    assert {g["unit"]: g["epsilon"] for g in told["guarantees"]} == found


def test_the_tighter_figure_is_above_what_any_client_has_let_out(tmp_path: Path) -> None:
    chosen = small.config("dsfl", TRAINING)
    plan, book = small.plan(chosen, tmp_path), Ledger()
    for client, steps in ((0, 20), (1, 19), (2, 3)):
        book.charge(client, dp_sgd(1.3, 0.2, steps))
    told = guarantees.told(plan.strategy, chosen, plan.samples, book)
    (group,) = told["guarantees"]
    assert group["client"] == 0 and group["epsilon"] == group["clients"]["0"]
    assert group["clients"]["1"] <= group["by_losses"] < group["epsilon"]
    book.charge(1, dp_sgd(1.3, 0.2, 1))  # twenty steps in all, and counted apart
    (group,) = guarantees.told(plan.strategy, chosen, plan.samples, book)["guarantees"]
    assert group["by_losses"] == pytest.approx(group["epsilon"])


def test_the_server_charges_a_client_for_no_more_rows_than_were_asked_of_it() -> None:
    book, answered = Ledger(), votes("gnmax", 5.0)
    step = Transform(lambda shape: {}, lambda s, g, rng: Step(s, g, {}), (answered,))
    done = Step({}, predictions(torch.zeros(1, 0, 2), "votes"), {}, ((answered, 30),))
    guarantees.settle(book, {0: 40, 1: 10, 2: 0}, [(step, done)])
    by = {a.mechanism: c for a, c in book._counts.items()}
    assert by == {"gnmax": {0: 30, 1: 10}}


# what cannot be counted is refused, what has no bound is said


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (
            {"name": "fedmd_nfdp", "share": 0.3},
            "samples .* fedmd_nfdp learn samples drawn",
        ),
        ("fd", "their labels alone, found that those of fd learn targets of"),
    ],
)
def test_private_training_is_of_all_records_by_their_labels(
    strategy: Any, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        small.plan(small.config(strategy, TRAINING), tmp_path)


def test_noise_that_would_be_drawn_twice_or_not_counted_is_refused(tmp_path: Path) -> None:
    chosen = small.config("dsfl", NOISY)
    made = small.plan(chosen, tmp_path).strategy
    guarantees.check(made, chosen, (50, 50))
    twice = ("train", "answer", "combine", "distil_clients", "answer", "combine", "distil_server")
    with pytest.raises(ConfigError, match=r"answer once a round .* found 2 times"):
        guarantees.check(replace(made, program=twice), chosen, (50, 50))
    lost = pure(lambda given: given)._replace(releases=(votes("gnmax", 3.0),))
    for place in ("download", "receive"):
        with pytest.raises(ConfigError, match=f"counted, found gnmax in {place}; move it"):
            guarantees.check(replace(made, **{place: lost}), chosen, (50, 50))


@pytest.mark.parametrize(
    ("strategy", "world", "text"),
    [
        ("fd", "everyone", "which labels it has, exact: none"),
        ("dsfl", "label_spaces", "which classes a client has samples of, exact: none"),
    ],
)
def test_what_leaves_beside_noisy_answers_is_said(
    strategy: str, world: str, text: str, tmp_path: Path
) -> None:
    small.run(small.config(strategy, NOISY, "rounds=1", world=world, **QUIET), tmp_path)
    assert text in json.loads((tmp_path / "privacy.json").read_text())["none"]


@pytest.mark.parametrize(("samples", "delta"), [(300, 1e-5), (10_000, 1e-5), (10**6, 1e-7)])
def test_figures_are_told_at_a_delta_well_below_one_record_of_all(
    samples: int, delta: float
) -> None:
    assert guarantees.delta_of(small.config(), samples) == pytest.approx(delta)
    given = small.config("dsfl", NOISY, "privacy.budget={epsilon: 5, delta: 0.0002}")
    assert guarantees.delta_of(given, samples) == 2e-4
    aimed = small.config("dsfl", "privacy.training={epsilon: 5, delta: 0.0003}")
    assert guarantees.delta_of(aimed, samples) == 3e-4


def test_an_account_is_of_one_release_whatever_the_order_of_its_parameters() -> None:
    one = Release("gaussian", "prediction", {"sigma": 1.0, "sensitivity": 2.0})
    other = Release("gaussian", "prediction", {"sensitivity": 2.0, "sigma": 1.0})
    assert Account.of(one) == Account.of(other)
