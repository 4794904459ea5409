"""A run folder made by hand in, every figure of its report checked by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stored_runs import STUDENT, lines, make_run, put, record

from fedkd import report
from fedkd.config import load_config

ROOT = Path(report.__file__).resolve().parents[1]


def by_key(summary: report.Summary) -> dict[str, report.Row]:
    return {row.key: row for row in summary.rows}


def test_every_figure_of_the_table(tmp_path: Path) -> None:
    table = report.final_table(make_run(tmp_path / "run"))
    head, *body = table
    assert head == ("", "Global test, %", "± SE", "Public, %", "Own distribution, %",
                    "Gradient steps", "Server labels")  # fmt: skip
    none = "—"
    # errors: sqrt(p (1 - p) / 400), as for 0.975: sqrt(0.024375 / 400) = 0.0078
    assert [row[1:] for row in body] == [
        ("97.5", "0.8", none, none, "800", "166"),
        ("95.0", "1.1", none, none, "60", "450"),
        ("94.0", "1.2", "95.0", none, "400", "0"),
        ("90.0", "1.5", "90.0", none, "60", "0"),
        ("85.0", "1.8", "85.0", none, "30", "0"),  # round 2: two rounds of 15 steps
        ("-4.0", none, "-5.0", none, none, none),
        ("85.0", "1.8", none, "95.0", "400", "0"),
        ("70.0", none, none, "90.0", "400", "0"),
        ("27.5", "2.2", none, "95.0", "380", "0"),  # (3 * 0.23 + 0.41) / 4
        ("23.0", none, none, "90.0", "380", "0"),
    ]
    assert [row[0] for row in body] == [
        "Pooled: student's architecture on all private data",
        "Student's architecture on the true public labels",
        "Ensemble",
        "Student, last round",
        "Student, best on validation (round 2)",
        "Gap, student − ensemble (points)",
        "Federated teachers, mean",
        "Federated teachers, worst",
        "Local-only teachers, mean",
        "Local-only teachers, worst",
    ]


def test_best_is_chosen_on_validation_and_not_on_test(tmp_path: Path) -> None:
    rows = by_key(report.summarise(make_run(tmp_path / "run")))
    assert max(STUDENT) == STUDENT[2]
    assert (rows["best"].round, rows["best"].test) == (2, 0.85)
    assert (rows["student"].round, rows["student"].test) == (4, 0.90)


def test_without_a_validation_split_there_is_no_best_round(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = [record(place) for place in range(4)]
    for one in records:
        one["student"]["validation"] = None
    lines(run, "records.jsonl", records)
    assert "best" not in by_key(report.summarise(run))


def test_rounds_without_evaluation_use_the_last_one_that_has_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = [record(place) for place in range(4)]
    records[3] |= {"teachers": None, "ensemble": None, "labels_used": 20}
    records[1] |= {"labels_used": 30}
    lines(run, "records.jsonl", records)
    summary = report.summarise(run)
    rows = by_key(summary)
    assert (rows["teachers"].round, rows["teachers"].steps) == (3, 300)
    assert rows["gap"].test == pytest.approx(0.93 - 0.92)
    assert rows["student"].labels == 30  # read again in round 4, not 50
    # local-only after as many rounds; its steps are those of all four, so none are shown
    assert rows["local"].test == pytest.approx((3 * 0.22 + 0.41) / 4)
    assert rows["local"].steps is None
    assert "Federated teachers, mean (round 3)" in report.markdown([run])


def test_the_text_names_all_that_a_figure_needs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", strategy={"name": "entropy", "temperature": 0.2})
    summary = report.summarise(run)
    text = report.markdown([run])
    for part in (
        "entropy(temperature=0.2), 4 of 4 rounds",
        "Bytes up: 72.0 kB a round, 288.0 kB in total",
        "Bytes down: 18.0 kB to 72.0 kB a round, 180.0 kB in total",
        "training 5, data 7",
        "torch 2.13.0",
        "Device: cpu; threads: task 1, server 2",
        f"`{load_config(run / 'config.yaml').fingerprint()}`",
        "2 × mlp-64, 2 × cnn-8 of 2,000 to 4,810 parameters; student of 14,000 parameters",
        "handwritten digits; CC BY 4.0",
        "No failures, retries or resumes.",
    ):
        assert part in text
    assert summary.complete and not summary.notes


def test_guarantees_are_told_with_what_they_assume_and_what_has_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert report.guaranteed(folder) == "not recorded"
    alike = {"relation": "one record more or less", "assumes": ["the seed is secret"]}
    own = {"unit": "record", "mechanisms": ["dp_sgd"], "epsilon": 2.25, "client": 3, "one": 1.0,
           "releases": 4, "by_losses": 2.125}  # fmt: skip
    claim = {"unit": "record", "mechanism": "sampling", "epsilon": 0.1, "delta": 0.25,
             "clients": [0], "relation": "one record replaced",
             "assumes": ["weak: no noise at all"]}  # fmt: skip
    larger = claim | {"epsilon": 0.125, "delta": 0.2, "clients": [1]}
    put(folder, "privacy.json", {
        "delta": 1e-6, "undeclared": "allow", "guarantees": [own | alike], "weak": [claim, larger],
        "none": ["the answers, as the server sees them: none", "the records: none by record"],
    })  # fmt: skip
    assert report.guaranteed(folder) == (
        "ε 2.12 by record, δ 1e-06 (dp_sgd); weak: ε 0.1, δ 0.25 at worst (sampling);"
        " not protected: the answers, as the server sees them, the records"
    )
    text = report.markdown([folder])
    assert "| record: one record more or less | dp_sgd | 2.12 | 1e-06 | 4 | 1 |" in text
    assert "| weak, record: one record replaced | sampling | 0.1 | 0.25 | 1 | 0.1 |" in text
    assert text.count("| weak, record") == 1
    assert "| the answers, as the server sees them | none | none" in text
    assert "| the records | none | none" in text
    assert "It holds if the seed is secret. Weak is what promises less than it seems: no no" in text
    assert "to which a budget is held, bounds less tightly: 2.25 by record. Undeclared loo" in text
    put(folder, "privacy.json", {"delta": 1e-6, "undeclared": "refuse"})
    assert report.guaranteed(folder) == "nothing"


def test_a_report_writes_its_files_and_is_a_function_of_the_run(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "elsewhere" / "b")
    before = {path.name for path in first.iterdir()}
    assert report.write(first) == first / "report.md"
    report.write(second, tmp_path / "out")
    made = ("report.md", "report.json", "pictures/accuracy.png", "pictures/partition.png",
            "report.html")  # fmt: skip
    for name in made:
        assert (first / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert {p.name for p in first.iterdir()} - before == {
        "report.md", "report.json", "report.html", "pictures",
    }  # fmt: skip
    assert {path.name for path in second.iterdir()} == before
    stored = json.loads((first / "report.json").read_text(encoding="utf-8"))
    assert stored["rows"][3]["key"] == "student" and stored["rows"][3]["test"] == 0.9
    for name in made[2:4]:
        assert f"]({name})" in (first / "report.md").read_text(encoding="utf-8")
    report.write(first, formats=["html"])  # again, over the earlier one
    assert not list(first.glob(".*"))


@pytest.mark.parametrize("name", ["partition.json", "yardsticks.json", "events.jsonl"])
def test_optional_files_may_be_absent(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    lines(run, "events.jsonl", [{"kind": "resume", "round": 2, "session": 1}])
    (run / name).unlink()
    report.write(run)
    keys = set(by_key(report.summarise(run)))
    assert {"student", "ensemble", "teachers"} <= keys
    assert ("pooled" in keys) == (name != "yardsticks.json")
    assert (run / "pictures" / "partition.png").exists() == (name != "partition.json")


def test_a_run_without_records_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status="failed")
    for name in ("records.jsonl", "yardsticks.json"):
        (run / name).unlink()
    text = report.write(run).read_text(encoding="utf-8")
    assert "not complete: its status is failed, 0 of 4 rounds are recorded" in text
    assert not (run / "pictures" / "accuracy.png").exists()
    assert len(report.final_table(run)) == 1


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_cut_off_last_line_is_left_out_with_a_note(tmp_path: Path, cut: int) -> None:
    run = make_run(tmp_path / "run", status="running")
    path = run / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    summary = report.summarise(run)
    whole = cut == 1  # only the line feed is missing
    assert summary.rounds == (4 if whole else 3)
    assert any("last line of records.jsonl is cut off" in note for note in summary.notes) != whole
    assert any("status is running" in note for note in summary.notes)
    assert not summary.complete


def test_a_changed_config_is_noticed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 5", "seed: 6"), "utf-8")
    assert any("fingerprints differ" in note for note in report.summarise(run).notes)


def test_what_is_no_run_or_damaged_gives_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    damaged = make_run(tmp_path / "damaged")
    content = (damaged / "records.jsonl").read_bytes()
    (damaged / "records.jsonl").write_bytes(b'{"round": \n' + content)
    percent = make_run(tmp_path / "percent")
    lines(percent, "records.jsonl", [record(0) | {"ensemble": {"test": 94.0}}])
    twice = make_run(tmp_path / "twice")
    lines(twice, "records.jsonl", [record(0), record(0)])
    ragged = make_run(tmp_path / "ragged")
    table = json.loads((ragged / "partition.json").read_text(encoding="utf-8"))
    put(ragged, "partition.json", table | {"histogram": [[1, 2]] * 4})
    broken = make_run(tmp_path / "broken")
    (broken / "config.yaml").write_text("rounds: -1\n", encoding="utf-8")
    for folder, says in (
        ("absent", "there is no such folder"),
        ("empty", "there is no config.yaml"),
        ("damaged", "records.jsonl, line 1"),
        ("percent", "ensemble.test: Input should be less than or equal to 1, found '94.0'"),
        ("twice", "rounds should ascend, found [1, 1]"),
        ("ragged", "clients by classes"),
        ("broken", "rounds"),
    ):
        assert report.main([str(tmp_path / folder)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("fedkd: ") and says in err
        assert not (tmp_path / folder / "report.md").exists()


def test_an_unwritable_place_gives_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    run = make_run(tmp_path / "run")
    assert report.main([str(run), "--out", str(tmp_path / "file" / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--out DIR" in err


def test_seeds_are_averaged_and_strategies_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path / f"e{seed}", seed=seed, shift=shift, name=f"trial-{seed}")
        for seed, shift in ((1, -0.02), (2, 0.0), (3, 0.02))
    ]
    runs += [make_run(tmp_path / f"m{seed}", seed=seed, strategy="fedmd") for seed in (1, 2)]
    runs.append(make_run(tmp_path / "open", seed=9, status="running"))
    runs.append(make_run(tmp_path / "again", seed=1, shift=0.01))
    assert report.main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    # 0.88, 0.90, 0.92: mean 0.90, deviation 0.02; t(2) = 4.3027, so 0.90 ± 4.3027 * 0.02 / sqrt(3)
    assert "| Student, last round | [1] entropy | 90.0 ± 2.0 | 3 | 1.5 | 85.0 to 95.0 |" in text
    assert "| Student, last round | [2] fedmd | 90.0 ± 0.0 | 2 | 1.5 | 90.0 to 90.0 |" in text
    assert "| Gap, student − ensemble (points) | [1] entropy | -4.0 ± 2.0 | 3 | — |" in text
    assert '  - strategy.name: "fedmd"' in text
    assert "seeds (training/data) 1/7, 2/7, 3/7" in text
    assert "seeds 9/7 is not complete and is left out" in text
    assert "seeds 1/7 was given twice, with other figures" in text
    assert "ran on different seeds" in text
    assert "| [1] entropy | 60 | 400 | 0 | 288.0 kB | 180.0 kB |" in text
    # one table, one kind of data: the student has no figure on clients' own distributions
    own = text.partition("**Accuracy on the clients' own distributions**")[2].partition("**")[0]
    assert "Student, last round" not in own
    assert "| Federated teachers, worst | [1] entropy | 90.0 ± 0.0 | 3 | — | 90.0 to 90.0 |" in own
    # pairs: seeds 1 and 2, differences -0.02 and 0
    assert (
        "| [1] entropy | [2] fedmd | 2 | -1.0 ± 1.4 | -13.7 to 11.7 | — | — | undecided |" in text
    )
    stored = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "![Where accuracy is lost, mean over seeds](pictures/waterfall.png)" in stored
    assert len(json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))) == len(runs)
    assert not (runs[0] / "report.md").exists()


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, strategy=name) for name in ("entropy", "fedmd")]
    text = report.markdown(runs)
    # sqrt(0.94 * 0.06 / 400) = 0.0119
    assert "| Ensemble | [1] entropy | 94.0 | 1 | 1.2 | — |" in text
    assert "different seeds" not in text


def test_the_command_needs_neither_torch_nor_a_runtime(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = (
        "import sys; from fedkd import report; assert report.main(sys.argv[1:]) == 0; "
        "bad = {'torch', 'flwr', 'ray', 'matplotlib.pyplot'} & set(sys.modules); assert not bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Student, last round" in done.stdout
