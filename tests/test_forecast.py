"""What is foretold of a run's guarantees is what its ledger then holds, or more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import small

from fedkd.assemble import Plan
from fedkd.config import Config
from fedkd.explain import explain
from fedkd.forecast import Forecast
from fedkd.privacy.ledger import BudgetSpent, Group
from fedkd.progress import Quiet

QUIET = {
    "evaluation": {**small.EXPERIMENT["evaluation"], "teachers": False, "disagreement": False},
    "clients": [{"count": 4, "model": [small.MLP]}],
    "rounds": 3,
    "data": {**small.EXPERIMENT["data"], "test": 60, "private": 200},
}
NOISY = "privacy.answers={name: gaussian, sigma: 20.0}"
HALF = "world={name: partial, fraction: 0.5}"
CONFIDENT = {"name": "pate", "rule": "confident", "sigma": 2.0, "threshold": 3.0,
             "threshold_sigma": 1.0}  # fmt: skip
# a method with overrides: equal to the run where all take part and every row is answered
EQUAL: dict[str, tuple[object, tuple[str, ...]]] = {
    "nothing": ("dsfl", ()),
    "gaussian": ("dsfl", (NOISY,)),
    "gaussian of an epsilon": (
        "fedmd", ("privacy.answers={name: gaussian, epsilon: 0.5, delta: 0.0001, clip: 2.0}",),
    ),
    "laplace": ({"name": "dsfl", "rows": 20}, ("privacy.answers={name: laplace, epsilon: 0.2}",)),
    "randomised response": ("dsfl", ("privacy.answers={name: randomised_response, epsilon: 1.0}",)),
    "dp_sgd by noise": (
        "entropy", ("privacy.training={noise_multiplier: 1.5}", "learning.private.first_epochs=2"),
    ),
    "dp_sgd by epsilon": ("fedmd", ("privacy.training={epsilon: 4.0, delta: 0.001}",)),
    "dp_sgd and answers": ("dsfl", ("privacy.training={noise_multiplier: 1.5}", NOISY)),
    "teachers that stop": (
        "dsfl", ("privacy.training={noise_multiplier: 2.0}",
                 "world={name: frozen_teachers, until: 2}"),
    ),
    "weights": ("fedavg", ("privacy.training={noise_multiplier: 2.0}",)),
    "gnmax": ({"name": "pate", "sigma": 2.0, "rows": 30}, ()),
    "lnmax": ({"name": "pate", "sigma": 2.0, "rule": "lnmax"}, ()),
    "a sample, no noise": ("fedmd_nfdp", ()),
    "coefficients": ({"name": "fedaux", "noise_multiplier": 3.0}, ()),
    "summaries": ("fd", ()),
}  # fmt: skip
AT_MOST: dict[str, tuple[object, tuple[str, ...]]] = {
    "confident": (CONFIDENT, ()),
    "some clients": ("dsfl", (NOISY, HALF)),
    "some clients learn": ("entropy", ("privacy.training={noise_multiplier: 2.0}", HALF)),
    "a cache": ({"name": "scarlet", "rows": 60}, (NOISY,)),
    "more rows for fewer": ("odd_methods:shares_out", (NOISY, HALF)),
}


@pytest.fixture(autouse=True)
def without_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure that takes longest, which nobody foretells."""
    monkeypatch.setattr("fedkd.privacy.ledger.by_losses", lambda spent, delta: None)


def chosen(method: object, overrides: tuple[str, ...]) -> Config:
    return small.config(method, *overrides, **QUIET)


def both(method: object, overrides: tuple[str, ...], folder: Path) -> tuple[Any, Any]:
    """`privacy.json` as foretold and as it is after the run."""
    config = chosen(method, overrides)
    foretold = Forecast(small.plan(config, folder)).told()
    small.run(config, folder)
    return foretold, json.loads((folder / "privacy.json").read_text())


@pytest.mark.parametrize("about", EQUAL)
def test_what_is_foretold_is_what_the_run_says(about: str, tmp_path: Path) -> None:
    foretold, found = both(*EQUAL[about], tmp_path)
    bounded = found["guarantees"] or found["weak"]
    assert (about in ("nothing", "summaries")) == (not bounded)
    assert json.loads(json.dumps(foretold)) == found


@pytest.mark.parametrize("about", AT_MOST)
def test_no_client_spends_more_than_is_foretold(about: str, tmp_path: Path) -> None:
    foretold, found = both(*AT_MOST[about], tmp_path)
    (most,), (spent,) = foretold["guarantees"], found["guarantees"]
    assert (most["unit"], most["relation"]) == (spent["unit"], spent["relation"])
    for client, epsilon in spent["clients"].items():
        assert epsilon <= most["clients"][client]
    assert min(spent["clients"].values()) < most["epsilon"]
    assert (foretold["none"], foretold["delta"]) == (found["none"], found["delta"])


def test_rounds_that_are_not_looked_at_are_as_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small.plan(chosen("entropy", ("privacy.training={noise_multiplier: 2.0}", "rounds=50",
                                         "learning.private.first_epochs=4")), tmp_path)  # fmt: skip
    whole = Forecast(plan).after
    monkeypatch.setattr("fedkd.forecast._MOST_CHARGES", 8)
    short = Forecast(plan)
    assert len(short._due) == 2 and short.after == whole
    assert short.ledger(1) == Forecast(plan).ledger(1) != whole


def budgeted(spent: str, epsilon: float, rounds: int = 12) -> Config:
    budget = f"privacy.budget={{epsilon: {epsilon}, delta: 0.0001, when_spent: {spent}}}"
    # clients with unlike numbers of records spend unlike amounts
    return chosen("entropy", ("privacy.training={noise_multiplier: 1.0}", budget,
                              f"rounds={rounds}"))  # fmt: skip


def group_of(plan: Plan) -> Group:
    (told,) = Forecast(plan).told()["guarantees"]
    return Group(told["unit"], told["relation"])


def test_the_round_in_which_the_budget_ends_is_foretold(tmp_path: Path) -> None:
    config = budgeted("stop", 6.0)
    plan = small.plan(config, tmp_path)
    over = Forecast(plan).overdraft(group_of(plan))
    assert over is not None and 1 < over.begins < 12
    with pytest.raises(BudgetSpent, match=f"round {over.begins} would exceed"):
        small.run(config, tmp_path)
    assert len(small.records(tmp_path)) == over.begins - 1
    assert Forecast(small.plan(budgeted("stop", 900.0), tmp_path)).overdraft(group_of(plan)) is None


def test_who_will_be_left_out_and_when_is_foretold(tmp_path: Path) -> None:
    config = budgeted("leave_out", 6.0, 3)
    plan = small.plan(config, tmp_path)
    over = Forecast(plan).overdraft(group_of(plan))
    assert over is not None and over.ends is None
    records = small.run(config, tmp_path)
    left = [set(r["privacy"]["spent"]) for r in records]
    assert next(r for r, out in enumerate(left, 1) if out) == over.begins
    assert left[-1] == set(over.clients)


def test_all_of_it_is_explained() -> None:
    def lines(config: Config) -> list[str]:
        table = dict(explain(config, Quiet(sys.stderr)))["Privacy"]
        return [": ".join(line) for line in table]

    said = lines(chosen("dsfl", (NOISY, "privacy.budget={epsilon: 12.0, delta: 0.0001}")))
    assert said[0] == "Guarantee: by prediction: any two values of the answers of one client"
    assert said[1].endswith("80 in round 1, 240 in 3 rounds")
    assert "of every client" in said[2] and "at delta 0.0001" in said[2]
    assert said[3] == "  Budget: 12 lasts for 3 rounds"
    assert said[4].startswith("  Holds if: the server needs no trust")
    assert said[5] == "No guarantee: the training records behind the answers, as anybody sees them"
    ended = lines(budgeted("stop", 8.0))
    assert any("would be exceeded in round" in line for line in ended)
    left = lines(budgeted("leave_out", 8.0))
    assert any("leaves out" in line and "the run stops before" in line for line in left)
    aimed = "privacy.training={epsilon: 4.0, delta: 0.001}"
    assert not any("Target" in line for line in lines(chosen("fedmd", (aimed,))))
    other = "privacy.budget={epsilon: 50.0, delta: 0.0001}"
    target = lines(chosen("fedmd", (aimed, other)))
    assert any(line.startswith("  Target: ") and "of the 4 asked for" in line for line in target)
    weak = lines(chosen("fedmd_nfdp", ()))
    assert weak[0].startswith("Weak claim: by record") and weak[2].startswith(
        "  Why weak: no noise"
    )
    assert lines(chosen("dsfl", ())) == [
        "No guarantee: the answers of the clients, as the server and all who learn from them see"
    ]
