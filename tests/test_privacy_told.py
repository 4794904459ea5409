"""What a report says of privacy: all that `privacy.json` claims, with what it hangs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import stored_runs

from fedkd import guarantees, report
from fedkd.config import Config
from fedkd.privacy.ledger import Ledger

METHOD = {"name": "pate", "rule": "confident", "sigma": 2.0, "threshold": 3.0,
          "threshold_sigma": 1.0, "account_votes": True}  # fmt: skip
FORMATS = ("md", "html", "csv", "tex")


def told(config: Config, folder: Path, *observed: float) -> dict[str, Any]:
    """`privacy.json` of a run that asked every client about forty rows, once."""
    plan, book = small.plan(config, folder), Ledger()
    rows = dict.fromkeys(range(plan.clients), 40)
    steps = ("train", "answer")
    for charge in guarantees.charges(plan.strategy, 1, steps, rows, plan.samples, server=True):
        book.charge(*charge)
    if observed:
        book.observe("client", dict(zip((2.0, 8.0, 32.0), observed, strict=True)))
    found: dict[str, Any] = guarantees.told(plan.strategy, config, plan.samples, book)
    return found


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run under everything at once, and of a weak notion beside it."""
    folder = tmp_path_factory.mktemp("claims")
    noisy = "privacy.answers={name: laplace, scale: 30.0}"
    training = "privacy.training={noise_multiplier: 2.0}"
    every = told(small.config(METHOD, noisy, training), folder, 0.01, 0.2, 0.7)
    weak = told(small.config("fedmd_nfdp"), folder)
    return every | {"weak": weak["weak"], "none": weak["none"]}


def written(folder: Path, kind: str, runs: int = 1) -> str:
    """All text of a report of runs in folders in here."""
    found = [p for p in sorted(folder.iterdir()) if p.is_dir()][:runs]
    out = folder.parent / f"{folder.name}-{kind}"
    report.across(found, out, (kind,))
    paths = [p for p in out.rglob("*") if p.suffix in (f".{kind}",)]
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted(paths))


def plain(text: str) -> str:
    """Without the spelling of a format: escapes, tags' whitespace, line ends."""
    for old, new in (("\\_", "_"), ("\\&", "&"), ("&#x27;", "'"), ("\\", ""), ("\n", " ")):
        text = text.replace(old, new)
    return " ".join(text.split())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_table_has_unit_relation_delta_and_what_has_none(
    kind: str, claims: dict[str, Any], tmp_path: Path
) -> None:
    folder = stored_runs.make_run(tmp_path / "runs" / "it")
    stored_runs.put(folder, "privacy.json", claims)
    said = plain(written(tmp_path / "runs", kind))
    assert {g["unit"] for g in claims["guarantees"]} == {"client", "prediction", "record"}
    for one in claims["guarantees"]:
        assert f"{one['unit']}: {one['relation']}" in said
        assert ", ".join(one["mechanisms"]) in said or kind == "tex"
        assert f"{min(one['epsilon'], one['by_losses'] or one['epsilon']):.3g}"[:3] in said
        if kind != "csv":  # figures and no prose
            assert all(text in said for text in one["assumes"])
    weak = max(claims["weak"], key=lambda w: (w["delta"], w["epsilon"]))
    assert len(claims["weak"]) > 1 and f"{weak['epsilon']:.3g}" in said
    rows = said.count(f"weak, {weak['unit']}: {weak['relation']}")
    assert rows == (2 if kind == "html" else 1)  # where a cell has its text as what to sort by, too
    for text in claims["none"]:
        assert text.removesuffix(": none") in said
    # the figure that depends on the votes is private: no report shows it
    apart = claims["data_dependent"]["client"]
    assert "do not publish" in apart["caution"]
    assert f"{apart['epsilon']:.3g}" not in said and str(apart["epsilon"]) not in said


def test_a_run_without_privacy_says_that_nothing_is_guaranteed(tmp_path: Path) -> None:
    folder = stored_runs.make_run(tmp_path / "runs" / "it")
    stored_runs.put(folder, "privacy.json", told(small.config("dsfl"), tmp_path / "made"))
    said = written(tmp_path / "runs", "md")
    line = next(x for x in said.splitlines() if "as the server and all who learn" in x)
    assert line.count("none") >= 5


def test_a_report_of_several_runs_says_that_choosing_costs(
    claims: dict[str, Any], tmp_path: Path
) -> None:
    folders = [stored_runs.make_run(tmp_path / "runs" / str(s), seed=s) for s in (1, 2)]
    assert "Each run's guarantee" not in written(tmp_path / "runs", "md", 2)
    for folder in folders:
        stored_runs.put(folder, "privacy.json", claims)
    for kind in ("md", "html"):
        assert "is of that run alone" in plain(written(tmp_path / "runs", kind, 2))
