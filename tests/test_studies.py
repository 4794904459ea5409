"""Studies: in a tiny form they run and write what they promise; verdicts on made-up numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import mechanisms, offers
from fedkd.faults import ConfigError
from fedkd.privacy import ledger, votes
from fedkd.privacy.ledger import Ledger
from fedkd.reporting.statistics import spread
from fedkd.runs import Run, records
from fedkd.types import Release
from simulations.studies import (
    bytes_front,
    expected_order,
    harness,
    mini_pate,
    privacy_frontier,
    robust_rules,
)
from strategies.pate import pate
from strategies.private_knn import private_knn

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round, so few settings that a study takes seconds."""
    whole = harness.small

    def small(given: harness.Given, clients: int, rounds: int, **changes: object) -> harness.Tree:
        base = whole(given, clients, rounds, **changes)
        learning = {**base["learning"]["private"], "epochs": 1}
        return {**base, "rounds": 1, "learning": dict.fromkeys(base["learning"], learning)}

    monkeypatch.setattr(harness, "small", small)
    monkeypatch.setattr(robust_rules, "PARTITIONS", {"IID": {"name": "iid"}})
    monkeypatch.setattr(bytes_front, "METHODS", {"mean": bytes_front.METHODS["mean"]})
    monkeypatch.setattr(expected_order, "_QUICK", ("O1",))
    little = mini_pate.Size(10, 60, 80, 60, 60, {"name": "mlp", "hidden": [16]}, 40)
    monkeypatch.setattr(mini_pate, "DIGITS", little)
    without = ("DP-SGD, Adam", "gaussian, 40", "randomised")
    ways, held = privacy_frontier.arrangements, privacy_frontier.claims
    monkeypatch.setattr(privacy_frontier, "arrangements",
                        lambda size: [w for w in ways(size) if not w.name.startswith(without)]
                        )  # fmt: skip
    monkeypatch.setattr(privacy_frontier, "claims",
                        lambda size: [c for c in held(size) if c.of != "optimiser"])  # fmt: skip


def written(name: str, out: Path, module: Any) -> dict[str, Any]:
    """What a study leaves behind when it is run twice: the second time it trains nothing."""
    words = ["--quick", "--runtime", "local", "--out", str(out)]
    assert module.main(words) == 0
    first = json.loads((out / "results.json").read_text())
    runs = {p: p.stat().st_mtime_ns for p in out.glob("sweep/runs/*/records.jsonl")}
    assert module.main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("sweep/runs/*/records.jsonl")} == runs
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert {**found, "date": first["date"]} == first
    assert (out / f"{name}.png").read_bytes().startswith(PNG)
    assert "| --- |" in (out / "results.md").read_text()
    assert found["seeds"] == 2 and found["study"] == name and found["versions"]["torch"]
    assert str(out) not in (out / "results.json").read_text(), "the place is nobody else's business"
    return found


def test_robust_rules(tmp_path: Path) -> None:
    rows = written("robust_rules", tmp_path / "s", robust_rules)["rows"]
    cells = {(row["attack"], row["rule"]): row for row in rows}
    assert set(cells) == {(a, r) for a in ("none", "lma") for r in ("mean", "median")}
    for row in rows:
        assert len(row["student"]) == 2 and all(0 <= v <= 1 for v in row["consensus"])
    # the least likely class of the honest is what six of fifteen shout: it shows in the consensus
    assert max(cells["lma", "mean"]["consensus"]) < min(cells["none", "mean"]["consensus"])


def test_bytes_front(tmp_path: Path) -> None:
    rows = written("bytes_front", tmp_path / "s", bytes_front)["rows"]
    plain, coded = rows
    assert plain["codec"] == "none" and coded["codec"] == "simplex 1 + delta + coder"
    # a round of 120 answers about 10 classes: a header of 32 bytes, float32, 10 clients, both ways
    assert plain["bytes"] == [2 * 10 * (32 + 120 * 10 * 4)] * 2
    assert max(coded["bytes"]) < min(plain["bytes"]) / 20


def test_expected_order(tmp_path: Path) -> None:
    rows = written("expected_order", tmp_path / "s", expected_order)["rows"]
    assert {row["of"] for row in rows} == {"O1"} and len(rows) == 4
    for row in rows:
        assert len(row["differences"]) == 2 and row["verdict"] == "undecided"


def test_mini_pate(tmp_path: Path) -> None:
    size, out = mini_pate.DIGITS, tmp_path / "s"
    found = written("mini_pate", out, mini_pate)["rows"]
    rows = {(row["rule"], row["seed"]): row for row in found if row["part"] == "votes"}
    others = [row["part"] for row in found if row["part"] != "votes"]
    assert others == ["accounting"] * 7 + ["told"] * 2 + ["claims"] * 4 and len(rows) == 4 * 2
    for (rule, seed), row in rows.items():
        assert row["asked"] == 60 and 0 < row["answered"] <= 60 and 0 <= row["labels"] <= 1
        assert (row["answered"] < 60) == (rule == "confident")
        # the same rows and the same teachers, though these were trained for the first rule alone
        assert row["of_all"] == rows["confident", seed]["of_all"] > 0.3
        assert (row["teachers"] is None) == (rule != "confident")
        if rule == "plurality":
            assert row["labels"] == row["plurality"] == row["of_all"] and row["epsilon"] is None
        else:
            assert 0 < row["ledger"] < row["epsilon"]
    gnmax = rows["gnmax", 0]
    assert gnmax["epsilon"] == votes.epsilon(60 * votes.gnmax(1.6), 1e-5) >= gnmax["dependent"]
    assert rows["lnmax", 0]["epsilon"] == votes.epsilon(60 * votes.lnmax(0.8), 1e-5)
    answered = rows["confident", 0]["answered"] * votes.gnmax(1.6)
    assert rows["confident", 0]["epsilon"] == votes.epsilon(
        answered + 60 * votes.threshold(6), 1e-5
    )

    (folder,) = out.glob("sweep/runs/seed=0-*")
    run = Run(folder, records(folder))
    curve = mini_pate.dependent(mini_pate.voted(run), mini_pate.confident(size))
    assert curve is not None and (np.diff(curve, axis=0) > 0).all()
    observed = dict(zip(votes.ORDERS.tolist(), curve[-1].tolist(), strict=True))
    told = rows["confident", 0]["dependent_by_ledger"]
    assert ledger.dependent_epsilon(observed, 1e-5) == pytest.approx(told)

    held = mini_pate._images(harness.Given("mini_pate", 2, out, True, "local", ""), size)
    mini_pate.check_split(run, size, held)
    other = {**held, "x_test": held["x_test"][::-1]}
    with pytest.raises(ConfigError, match="otherwise: the first test images, the last test images"):
        mini_pate.check_split(run, size, other)
    with pytest.raises(ConfigError, match="otherwise: each teacher a like share;"):
        mini_pate.check_split(run, replace(size, each=61), held)


def test_accounts_of_pate_alone_train_nothing(tmp_path: Path) -> None:
    assert mini_pate.main(["--only", "accounting", "--out", str(tmp_path / "s")]) == 0
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"results.json", "results.md"}
    rows = json.loads((tmp_path / "s" / "results.json").read_text())["rows"]
    assert all(abs(row["here"] - row["known"]) < 1e-3 for row in rows) and len(rows) == 7
    assert all(row["ledger"] < row["here"] for row in rows[:-1])


@pytest.mark.parametrize(
    ("labels", "dependent", "expected"),
    [(0.99, 1.0, "holds"), (0.95, 4.0, "reversed"), (0.97, 3.174, "undecided")],
)
def test_claims_of_pate(labels: float, dependent: float, expected: str) -> None:
    row = mini_pate.Row(
        "confident", 0, 640, 300, labels, 1, 1, 0.945, 0.9, 3, 2.5, dependent, 1, 60
    )
    near = (-0.004, -0.002, 0.0, 0.0, 0.002, 0.004)
    rows = [replace(row, labels=labels + d, dependent=dependent + d) for d in near]
    rows += [replace(row, rule="gnmax", labels=0.9) for _ in near]
    assert [claim.verdict for claim in mini_pate.judged(rows)[:2]] == [expected] * 2


def test_privacy_frontier(tmp_path: Path) -> None:
    rows = written("privacy_frontier", tmp_path / "s", privacy_frontier)["rows"]
    private = {row["arrangement"]: row for row in rows if "epsilon" in row}
    assert set(private) == {
        "DP-SGD",
        "Private-kNN",
        "laplace, 120 rows",
        "gaussian, 120 rows",
        "PATE 60",
        "PATE 10",
    }
    told = {}
    for file in (tmp_path / "s").glob("sweep/runs/*/privacy.json"):
        for each in json.loads(file.read_text())["guarantees"]:
            told[each["unit"], *each["mechanisms"]] = each["epsilon"]
    # what is drawn is what the runs have reckoned and not what was aimed at
    assert private["laplace, 120 rows"]["epsilon"] == told["prediction", "laplace"] < 1.9
    assert private["DP-SGD"]["epsilon"] == told["record", "dp_sgd"] < 2
    assert private["Private-kNN"]["epsilon"] == told["record", "sampled_gnmax"] <= 2
    assert "teachers" in private["DP-SGD"] and "teachers" not in private["Private-kNN"]
    assert private["PATE 60"]["epsilon"] == told["client", "gnmax"] == pytest.approx(2)
    assert all(row["aimed"] == 2 and row["delta"] == 1e-5 for row in private.values())
    assert private["DP-SGD"]["noise"].startswith("sigma 3.")
    for row in (row for row in rows if "arrangement" in row):
        assert len(row["labels"]) == 2 and all(0 <= v <= 1 for v in row["student"])
    assert {row["of"] for row in rows if "of" in row} == {"O13", "order"}


@pytest.mark.parametrize("aimed", [0.5, 2.0, 128.0, 2048.0])
@pytest.mark.parametrize("rows", [100, 1000])
def test_noise_comes_to_the_epsilon_that_is_aimed_at(aimed: float, rows: int) -> None:
    def ledger(release: Release) -> float:
        account = Ledger()
        account.charge(0, release, rows)
        return account.epsilon(0, account.groups()[0], 5e-6)

    noise = privacy_frontier.gaussian(5e-6, rows)(aimed)["privacy.answers"]
    made = mechanisms.gaussian("probs", 10, sigma=noise["sigma"])
    assert ledger(made.step.releases[0]) == pytest.approx(aimed, rel=1e-9)
    strategy = privacy_frontier.votes(5e-6, rows)(aimed)["strategy"]
    told = pate(**{k: v for k, v in strategy.items() if k != "name"}).finish.releases
    assert ledger(told[0]) == pytest.approx(aimed, rel=1e-9)
    if aimed < 8:  # what is searched for is rounded up
        strategy = privacy_frontier.neighbours(5e-6, rows)(aimed)["strategy"]
        told = private_knn(**{k: v for k, v in strategy.items() if k != "name"}).finish.releases
        assert 0.98 * aimed < ledger(told[0]) <= aimed
    one = privacy_frontier.pure("laplace", 5e-6, rows)(aimed)["privacy.answers"]["epsilon"]
    for build in (mechanisms.laplace, mechanisms.randomised_response):
        found = ledger(build("probs", 10, epsilon=one).step.releases[0])
        assert 0.6 * aimed < found <= aimed * (1 + 1e-9)


def test_every_claim_of_the_frontier_has_its_settings() -> None:
    size = privacy_frontier.FULL
    names = {*privacy_frontier.plain(size)}
    for way in privacy_frontier.arrangements(size):
        assert way.plain in names
        names |= {way.setting(epsilon) for epsilon in way.epsilons}
    for claim in privacy_frontier.claims(size):
        assert {setting for setting, _ in (*claim.more, *claim.less)} <= names


def test_studies_are_no_worlds() -> None:
    names = {offer.name for offer in offers.offers("world")}
    studies = {p.stem for p in Path(harness.__file__).parent.glob("*.py")}
    assert "everyone" in names and {"harness", "robust_rules"} <= studies
    assert not names & studies and "studies" not in names


def test_without_its_data_a_study_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    assert robust_rules.main(["--out", str(tmp_path / "s")]) == 2
    assert "FEDKD_DATA: should name the folder" in capsys.readouterr().err
    assert robust_rules.main(["--quick", "--seeds", "1", "--out", str(tmp_path / "s")]) == 2
    assert "--seeds: should be at least 2" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("differences", "by", "within", "expected"),
    [
        ([0.03, 0.04, 0.05, 0.04, 0.03, 0.05], 0.0, None, "holds"),
        ([-0.03, -0.04, -0.05, -0.04, -0.03, -0.05], 0.0, None, "reversed"),
        ([0.03, -0.04, 0.05, -0.04, 0.03, -0.05], 0.0, None, "undecided"),
        # the order is right, by less than is claimed
        ([0.03, 0.04, 0.05, 0.04, 0.03, 0.05], 0.1, None, "reversed"),
        ([-0.003, -0.004, -0.005, -0.004, -0.003, -0.005], -0.015, None, "holds"),
        ([0.002, -0.003, 0.001, 0.0, -0.001, 0.002], 0.0, 0.01, "holds"),
        ([0.02, 0.03, 0.02, 0.03, 0.02, 0.03], 0.0, 0.01, "reversed"),
        ([-0.02, -0.03, -0.02, -0.03, -0.02, -0.03], 0.0, 0.01, "reversed"),
        ([0.02, -0.03, 0.02, -0.03, 0.02, -0.03], 0.0, 0.01, "undecided"),
        ([0.03, 0.04, 0.05, 0.04, 0.03], 0.0, None, "undecided"),  # of too few seeds
    ],
)
def test_verdicts(differences: list[float], by: float, within: float | None, expected: str) -> None:
    assert expected_order.verdict(spread(differences), by, within) == expected


def test_every_setting_is_used_and_every_claim_has_its_settings() -> None:
    claims = expected_order.CLAIMS
    used = {setting for c in claims for setting, _ in (*c.more, *c.less)}
    assert used == {*expected_order.SETTINGS}
    ids = {claim.of for claim in claims}
    assert ids == {"O1", "O2", "O3", "O4", "O8", "O9a", "O9b", "O11", "O12", "O15"}


def test_the_front_is_of_those_whom_nobody_beats() -> None:
    def cell(sent: float, accuracy: float) -> bytes_front.Cell:
        return bytes_front.Cell(sent, spread([accuracy, accuracy]), spread([0.0, 0.0]))

    cells = {"a": cell(9, 0.9), "b": cell(5, 0.8), "c": cell(5, 0.7), "d": cell(6, 0.8)}
    assert bytes_front.front(cells) == ["b", "a"]
    assert bytes_front.front({**cells, "e": cell(4, 0.95)}) == ["e"]
    assert bytes_front.front({"a": cell(1, 0.5), "b": cell(1, 0.5)}) == ["a", "b"]
