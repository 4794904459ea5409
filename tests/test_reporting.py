"""What reports are asked for: formats, comparisons that hold, and requests that are refused."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stored_runs import change, lines, make_run, metrics, put, record

from fedkd import report
from fedkd.config import ConfigError
from fedkd.recorded import SCHEMA
from fedkd.reporting import tabular
from fedkd.reporting.charts import Bars, Group, Heat, Lines, Series
from fedkd.reporting.page import thinned
from fedkd.reporting.single import pareto
from fedkd.reporting.tabular import Cell, Column, Table

ROOT = Path(report.__file__).resolve().parents[1]
Captured = pytest.CaptureFixture[str]


def refused(arguments: list[object], capsys: Captured) -> str:
    """What is said on standard error, the exit code being 2 and nothing being reported."""
    assert report.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fedkd: ") and "Traceback" not in err
    return err


def configured(run: Path, **changes: object) -> None:
    """Another experiment in a stored run, its fingerprint with it."""
    from fedkd.config import load_config

    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        node, steps = tree, key.split("__")
        for step in steps[:-1]:
            node = node[step]
        node[steps[-1]] = value
    config = load_config(tree)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    change(run, "run.json", fingerprint=config.fingerprint())


def sweep(place: Path, runs: int = 2) -> Path:
    for seed in range(runs):
        for method in ("entropy", "fedmd"):
            make_run(place / "runs" / f"{method}-{seed}", seed=seed, strategy=method)
    place.mkdir(exist_ok=True)
    (place / "sweep.yaml").write_text("axes: {}\n", encoding="utf-8")
    put(place, "sweep.json", {})
    return place


def test_all_formats_of_one_run(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    put(run, "metrics.json", metrics())
    first = report.write(run, out, ("tex", "csv", "html", "md"))
    assert first == out / "report.tex"
    assert {p.name for p in out.iterdir()} == {
        "report.tex", "report.md", "report.html", "report.json", "tables", "pictures",
    }  # fmt: skip
    pictures = {p.stem for p in (out / "pictures").iterdir()}
    assert {"accuracy", "waterfall", "calibration", "clients-test", "times"} <= pictures
    for page in ("report.md", "report.tex"):
        text = (out / page).read_text(encoding="utf-8")
        assert set(re.findall(r"pictures/([a-z-]+)\.png", text)) == pictures
    tex = (out / "report.tex").read_text(encoding="utf-8")
    assert tex.count(r"\begin{") == tex.count(r"\end{") and r"\midrule" in tex
    table = (out / "tables" / "accuracy.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    student = next(row for row in rows if row["quantity"] == "Student, last round")
    assert (student["test"], student["own"], student["steps"]) == ("0.9", "", "60")
    assert float(student["test_se"]) == pytest.approx(0.015)


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report.write(make_run(tmp_path / "run"), out, ["html"])
    assert {p.name for p in out.iterdir()} == {"report.html", "report.json"}


def test_the_links_of_the_waterfall_and_what_answers_cost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put(run, "metrics.json", metrics())
    page = report.write(run, tmp_path / "out", ["html"]).read_text(encoding="utf-8")
    # pooled 97.5, best mixture 96, ensemble 94, student 90
    for name in ("Oracle 96.0 % (\\u22121.5)", "Ensemble 94.0 % (\\u22122.0)",
                 "Student 90.0 % (\\u22124.0)"):  # fmt: skip
        assert name in page
    text = report.markdown([run])
    # 450 rows × 3 classes × 4 bytes; (4810 + 2000) / 2 = 3405 parameters × 4 bytes; 3405 / 3
    assert "| All answers of one client: 450 rows × 3 classes | 5.4 kB |" in text
    assert "| Its weights instead: 3,405 parameters on average | 13.6 kB |" in text
    assert "up to so many rows | 1,135 |" in text
    # 85 % after two rounds: 2 × 72 kB up, 18 + 36 kB down
    assert "| Bytes until the student has 80 % | 198.0 kB |" in text
    assert "| Student | 90.0 | 88.5 | 89.5 | 0.4 | 5.0 |" in text
    assert "Left out, since this run has no figures for it: disagreement of the teachers." in text


def test_of_very_many_teachers_three_are_told(tmp_path: Path) -> None:
    run, found = make_run(tmp_path / "run"), metrics()
    one = found["teachers"][0]
    found["teachers"] = [one | {"accuracy": (k * 7 % 25) / 25} for k in range(25)]
    put(run, "metrics.json", found)
    text = report.markdown([run])
    # 7 k mod 25 is 0, 12 and 24 for k = 0, 16 and 7
    for line in ("0, lowest | 0.0", "16, median | 48.0", "7, highest | 96.0"):
        assert f"| Teacher {line} |" in text
    assert "Of 25 teachers three, by the first column; metrics.json has all." in text
    assert "| Teacher 24 |" not in text


def test_what_each_setting_guarantees_stands_beside_its_accuracy(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, strategy=name) for name in ("dsfl", "fedmd", "entropy")]
    held = {"relation": "one record more or less", "assumes": [], "unit": "record", "client": 0,
            "mechanisms": ["dp_sgd"], "epsilon": 2.25, "one": 1.0, "releases": 4}  # fmt: skip
    claim = {"relation": "one record replaced", "assumes": [], "unit": "record", "epsilon": 0.1,
             "mechanism": "sampling", "delta": 0.25, "clients": [0]}  # fmt: skip
    usual = {"delta": 1e-6, "undeclared": "refuse"}
    assert "ε, worst run" not in report.markdown(runs)
    put(runs[0], "privacy.json", usual | {"guarantees": [held]})
    put(runs[1], "privacy.json", usual | {"weak": [claim]})
    put(runs[2], "privacy.json", usual)
    text = report.markdown(runs)
    assert re.search(r"\| \[1\] dsfl.* \| record \| dp_sgd \| 2.25 \| 1e-06 \| 1 \|", text)
    assert re.search(r"\| \[2\] fedmd.* \| nothing \| weak claim \| none \| none \| 1 \|", text)
    assert re.search(r"\| \[3\] entropy.* \| nothing \| none \| none \| none \| 1 \|", text)


def test_what_a_method_tells_of_itself_is_drawn_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = [record(p, facts={"disagreement": 0.5 - 0.1 * p}) for p in range(4)]
    lines(run, "records.jsonl", records)
    report.write(run, tmp_path / "out", ["md"])
    assert (tmp_path / "out" / "pictures" / "disagreement.png").exists()


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (3.0, 0.95), (4.0, 0.95)]
    assert pareto(points) == ((1.0, 0.5), (3.0, 0.95))


def test_a_page_stays_quick_with_very_many_rounds_and_clients() -> None:
    points = tuple((float(r), 0.5) for r in range(1000))
    band = tuple((x, 0.0, 1.0) for x, _ in points)
    lines_ = Lines("l", "", "", "", (Series("a", points, 0, band=band),
                                     Series("b", points[:1], 1)), note="Bands.")  # fmt: skip
    thin = thinned(lines_)
    assert isinstance(thin, Lines) and thin.note.endswith("shows one in 3.")
    assert [x for x, _ in thin.series[0].points] == [x for x, _, _ in thin.series[0].band]
    assert len(thin.series[0].points) == 334 and thin.series[1].points == points[:1]
    names = tuple(map(str, range(1000)))
    bars = thinned(Bars("b", "", "", "", names, (Group("g", (0.5,) * 1000, 0),)))
    assert isinstance(bars, Bars) and len(bars.categories) == len(bars.groups[0].values) == 334
    heat = thinned(Heat("h", "", "", "", names[:10], names, ((1,) * 10,) * 1000))
    assert isinstance(heat, Heat) and len(heat.rows) == len(heat.values) == 500
    assert heat.every == 2
    few = Bars("b", "", "", "", ("a",), (Group("g", (0.5,), 0),))
    assert thinned(few) is few


def test_latex_is_escaped_and_balanced() -> None:
    foreign = r"50% of_a & #1 {x} \input{/etc/passwd} $x^2$ ~ <b> -- [2] 例"
    table = Table("t", foreign, (Column(foreign, ("a",), True),), ((tabular.text(foreign),),))
    text = tabular.latex(table)
    assert r"\input" not in text and r"\textbackslash{}input\{/etc/passwd\}" in text
    assert r"50\% of\_a \& \#1 \{x\}" in text and r"-{}-" in text and r"\texttt{U+4F8B}" in text
    assert text.isascii() and r"\\" + "\n[" not in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_csv_keeps_bare_values_and_no_formula() -> None:
    columns = Column("a", ("a",), True), Column("b ± c", ("b", "c"))
    table = Table("t", "t", columns, ((tabular.text("=1+1, x"), Cell("shown", (0.25, None))),))
    assert tabular.as_csv(table) == 'a,b,c\n"\'=1+1, x",0.25,\n'
    with pytest.raises(ValueError, match="a cell for every column"):
        Table("t", "t", columns, ((tabular.text("alone"),),))


def test_six_shared_seeds_give_a_verdict(tmp_path: Path, capsys: Captured) -> None:
    runs = [make_run(tmp_path / f"e{s}", seed=s, shift=0.001 * s) for s in range(1, 7)]
    runs += [
        make_run(tmp_path / f"m{s}", seed=s, strategy="fedmd", shift=-0.01) for s in range(1, 7)
    ]
    assert report.main([*map(str, runs), "--baseline", "fedmd"]) == 0
    text = capsys.readouterr().out
    # differences 0.011 … 0.016, all of one sign: p = 2 / 2⁶
    line = next(x for x in text.splitlines() if x.startswith("| [1] entropy | [2] fedmd | 6 "))
    assert "+1.4 ± 0.2" in line and line.endswith("| 0.031 | 0.031 | holds |")
    assert report.main([*map(str, runs), "--baseline", "1"]) == 0
    assert "| 0.031 | 0.031 | reversed |" in capsys.readouterr().out
    err = refused([*runs, "--baseline", "fedmb"], capsys)
    assert "--baseline: should name one setting" in err and "[2] fedmd" in err


def test_other_splits_are_not_paired(tmp_path: Path, capsys: Captured) -> None:
    a = make_run(tmp_path / "a")
    b, c = (make_run(tmp_path / name, strategy="fedmd") for name in "bc")
    configured(b, data__partition={"name": "dirichlet", "alpha": 1.0})
    assert report.main([str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "do not all stand on the same data and splits" in text
    assert "none are compared in pairs" in text
    assert (
        "| [2] fedmd, partition.alpha=1.0, …" in text or "| [2] fedmd, partition.alpha=1.0" in text
    )
    # where the checksums of the data are known, they decide
    for run, checksum in ((a, "x"), (c, "y")):
        change(run, "run.json", data=checksum)
    assert "none are compared in pairs" in report.markdown([a, c])
    change(c, "run.json", data="x")
    assert "In pairs" in report.markdown([a, c])


def test_what_is_told_public_labels_stands_apart(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", strategy="fedmd")
    configured(b, data__public={"size": 450, "labelled": True})
    text = report.markdown([a, b])
    first, _, rest = text.partition("methods that are told public labels**")
    assert "[1] entropy" in first and "| [2]" not in first
    assert "| Student, last round | [2]" in rest


@pytest.mark.parametrize("apart", ["source", "classes"])
def test_other_data_sets_are_not_compared(tmp_path: Path, capsys: Captured, apart: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", name="other")
    if apart == "source":
        configured(b, data__source={"name": "idx", "folder": "x"})
    else:
        change(b, "partition.json", classes=["cat", "dog", "eel"])
    err = refused([a, b], capsys)
    assert "should be of one data set" in err and "report on each alone" in err
    assert ('data.source "digits" in trial' in err) == (apart == "source")
    assert "cat, dog, eel" in err or apart == "source"


def test_a_sweep_is_reported_into_its_folder(tmp_path: Path, capsys: Captured) -> None:
    place = sweep(tmp_path / "s")
    (place / "runs" / "waiting").mkdir()
    (place / "runs" / "fedmd-1" / "records.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    assert report.main([str(place)]) == 0
    text = capsys.readouterr().out
    assert "1 of 5 runs of the sweep have not begun" in text
    assert "Left out, since it cannot be read" in text and "fedmd-1" in text
    assert "| Student, last round | [1] entropy | 90.0 ± 0.0 | 2 |" in text
    assert (place / "report.html").is_file() and (place / "pictures").is_dir()


def test_a_sweep_without_runs_is_refused(tmp_path: Path, capsys: Captured) -> None:
    place = sweep(tmp_path / "s", runs=0)
    assert "none that has; carry it out first" in refused([place], capsys)
    (place / "runs" / "a").mkdir(parents=True)
    assert "found 1 run folders and none that has" in refused([place], capsys)


def test_a_sweep_without_finished_runs_says_so(tmp_path: Path, capsys: Captured) -> None:
    place = sweep(tmp_path / "s", runs=1)
    for run in (place / "runs").iterdir():
        change(run, "run.json", status="running")
        lines(run, "records.jsonl", [record(0)])
    assert report.main([str(place)]) == 0
    text = capsys.readouterr().out
    assert "There is no complete run to compare" in text and "1 of 4 rounds are recorded" in text


def test_schemas(tmp_path: Path, capsys: Captured) -> None:
    run = make_run(tmp_path / "run")
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert about.pop("schema") == SCHEMA
    put(run, "run.json", about)
    assert "before run folders had a schema number" in report.markdown([run])
    change(run, "run.json", schema=SCHEMA + 1)
    err = refused([run], capsys)
    assert f"schema should be at most {SCHEMA}, found {SCHEMA + 1}" in err and "later fedkd" in err
    other = make_run(tmp_path / "other")
    put(other, "metrics.json", metrics() | {"schema": 2})
    assert "metrics.json: schema: Input should be 1, found '2'" in refused([other], capsys)


@pytest.mark.parametrize("text", ["pdf", "md,htm", "", "md,,html"])
def test_an_unknown_format_is_refused(tmp_path: Path, capsys: Captured, text: str) -> None:
    err = refused([make_run(tmp_path / "run"), "--format", text], capsys)
    assert "--format: should be one or more of md, tex, csv, html" in err
    assert ("did you mean html?" in err) == (text == "md,htm")
    with pytest.raises(ConfigError):
        report.write(tmp_path / "run", formats=["pdf"])


def test_several_runs_need_a_place_for_files(tmp_path: Path, capsys: Captured) -> None:
    runs = [make_run(tmp_path / name, strategy=name) for name in ("entropy", "fedmd")]
    assert "add --out DIR" in refused([*runs, "--format", "html"], capsys)
    assert "should come with several runs" in refused([runs[0], "--baseline", "1"], capsys)


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from fedkd import report\n"
        "try: report.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'flwr', 'ray', 'scipy', 'matplotlib', 'markdown_it'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "python -m fedkd.report runs/A runs/B" in done.stdout and "exit codes" in done.stdout
