"""What happened in a run, as its report tells it: failures, absences, virtual time, resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
from stored_runs import SESSION, TEACHERS, change, lines, make_run, put, record

from fedkd import folder, report
from fedkd.incidents import incidents
from fedkd.phrases import inert, plain, ranges, time_text
from fedkd.progress import line_of, note_of
from fedkd.recorded import Event


def failure(round_: int, client: int, cause: str, outcome: str, **more: object) -> dict[str, Any]:
    event = {"kind": "failure", "round": round_, "phase": "train + answer", "clients": [client]}
    return event | {"cause": cause, "outcome": outcome, **more}


def text_of(run: Path) -> str:
    return report.markdown([run])


def test_every_failure_is_told_and_equal_causes_stand_together(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lost = {"kind": "lost", "round": 3, "phase": "distil", "clients": [0, 1, 2, 3]}
    events = [
        failure(1, 3, "ValueError: no luck\nat all", "retried", traceback="Traceback …"),
        failure(1, 3, "ValueError: no luck\nat all", "retried"),
        failure(2, 1, "ValueError: no luck", "dropped"),
        {**lost, "cause": "the worker died (exit code -9)", "outcome": "retried"},
        {**lost, "round": 4, "cause": "the worker died (exit code -11)", "outcome": "retried"},
        {"kind": "refused", "round": 2, "phase": "answer", "clients": [2],
         "cause": "scores: should be finite", "outcome": "stopped"},
        {"kind": "unasked", "round": 2, "phase": "answer", "clients": [7, 9],
         "cause": "reply: it speaks of [7, 9]", "outcome": "ignored"},
        {"kind": "lost", "phase": "pooled", "cause": "OSError: gone", "outcome": "retried"},
    ]  # fmt: skip
    lines(run, "events.jsonl", events)
    text = text_of(run)
    told = text.partition("## Failures: 8\n")[2].partition("**Communication**")[0]
    table = [line for line in told.splitlines() if line.startswith("| ")]
    assert table[-5:] == [
        "| 1, 2 | train + answer | 1, 3 | failed: ValueError: no luck | 3 "
        "| tried again 2×, left out of the round 1× |",
        "| 3, 4 | distil | 0–3 | lost: the worker died (exit code -9) (others with other numbers) "
        "| 2 | tried again 2× |",
        "| 2 | answer | 2 | answer refused: scores: should be finite | 1 | the run stopped |",
        "| 2 | answer | 7, 9 | spoke unasked: reply: it speaks of [7, 9] | 1 | passed over |",
        "| — | pooled | — | lost: OSError: gone | 1 | tried again |",
    ]
    assert "Tracebacks are in events.jsonl." in text
    assert "no luck\nat all" not in text and "No failures" not in text


def test_very_many_causes_are_cut_off_with_their_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    letters = [chr(97 + i // 8) + chr(97 + i % 8) for i in range(60)]
    lines(run, "events.jsonl", [failure(1, 0, name, "dropped") for name in letters])
    text = text_of(run)
    assert "10 more of 10 other kinds are in events.jsonl." in text and "## Failures: 60" in text
    assert text.count("failed: ") == 50


def test_what_a_client_says_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    said = "ValueError: \x1b[2J a|b <img src=x> ![p](http://x) `code`" + "y" * 500
    lines(run, "events.jsonl", [failure(1, 0, said, "dropped")])
    report.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "failed:" in line)
    assert "\x1b" not in text and "<img" not in row and "](http" not in row and "`" not in row
    assert "a\\|b" in row and len(row) < 400


def test_resumes_damage_and_rounds_begun_again_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    newer = {**SESSION, "versions": SESSION["versions"] | {"torch": "2.14.0"}}  # type: ignore[operator]
    change(run, "run.json", sessions=[SESSION, SESSION, newer])
    lines(
        run,
        "events.jsonl",
        [
            {"kind": "resume", "round": 2, "session": 1},
            {"kind": "damage", "cause": "commit 000003: clients/x is torn"},
            {"kind": "resume", "round": 0, "session": 2},
            {"kind": "round", "round": 3, "cause": "round 3: 1 of 4 clients are left"},
        ],
    )
    text = text_of(run)
    for line in (
        "- Resumed after round 2\n",
        "- Damage was found: commit 000003: clients/x is torn\n",
        "- Resumed from the beginning, on torch 2.14.0 instead of 2.13.0\n",
        "- Round 3 was begun again: round 3: 1 of 4 clients are left\n",
    ):
        assert line in text
    assert "Failures" not in text


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("interrupted", "It was interrupted."),
        ("failed", "It failed."),
        ("running", "It is under way, or it was killed."),
    ],
)
def test_an_unfinished_run_says_so_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, says: str
) -> None:
    run = make_run(tmp_path / "my runs" / "a", status=status)
    lines(run, "records.jsonl", [record(0), record(1)])
    monkeypatch.chdir(tmp_path)
    text = text_of(run)
    assert f"its status is {status}, 2 of 4 rounds are recorded. {says}" in text
    assert "`python -m fedkd.simulate --resume 'my runs/a'`" in text
    both = report.markdown([run, make_run(tmp_path / "b")])
    assert "left out of the means (2 of 4 rounds are recorded). Go on with it: `python -m" in both


def test_what_cannot_be_resumed_is_not_said_to_be(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", status="failed")
    change(old, "run.json", sessions=[])  # of an earlier version
    short = make_run(tmp_path / "short")
    lines(short, "records.jsonl", [record(0)])
    for run in (old, short):
        assert "--resume" not in text_of(run) and "not complete" in text_of(run)


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    new = ("absent", "late", "dropped", "virtual_s")
    old = [{k: v for k, v in record(p).items() if k not in new} for p in range(4)]
    lines(run, "records.jsonl", old)
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del about["sessions"]
    put(run, "run.json", about)
    events = [{"round": 4, "kind": "failure", "client": 3, "cause": "deadline passed"}]
    lines(run, "events.jsonl", events)
    assert "| 4 | — | 3 | failed: deadline passed | 1 | — |" in text_of(run)


def test_a_torn_event_costs_no_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    whole = json.dumps({"kind": "resume", "round": 2, "session": 1})
    (run / "events.jsonl").write_text(whole[:9] + whole + "\n" + whole + "\n" + whole[:9])
    text = text_of(run)
    assert "2 lines of events.jsonl cannot be read" in text and "Resumed after round 2" in text


def test_a_branch_names_its_origin_and_is_no_repetition(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", seed=1), make_run(tmp_path / "other", seed=2)
    put(run, "branched_from.json", {"run": "first", "round": 2, "fingerprint": "abc"})
    text = text_of(run)
    assert "Branched from first after round 2;" in text and "`abc`" in text
    both = report.markdown([run, other])
    assert "| [1] branched after round=2 |" in both and "| [2] entropy |" in both
    assert "  - branched after round: 2" in both


def test_who_was_missing_is_counted_by_round(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = [record(0), record(1, absent=[3], late=[1, 2]), record(2, dropped=[0]), record(3)]
    lines(run, "records.jsonl", records)
    text = text_of(run)
    assert "| Rounds | Clients asked | Vanished | Too late | Left out after a failure |" in text
    for line in ("| 1 | 4 | 0 | 0 | 0 |", "| 2 | 4 | 1 | 2 | 0 |", "| 3 | 4 | 0 | 0 | 1 |"):
        assert line in text
    assert "Vanished" not in text_of(make_run(tmp_path / "whole"))
    many = [record(0) | {"round": r + 1, "late": [1]} for r in range(45)]
    lines(run, "records.jsonl", many)  # 45 rounds in spans of 3
    spans = report.summarise(run).missing
    assert [(s.first, s.last, s.asked, s.late) for s in spans] == [
        (3 * i + 1, 3 * i + 3, 12, 3) for i in range(15)
    ]


def test_teachers_that_were_not_evaluated_are_left_out_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    some = {"test": [0.8, None, 0.7, 0.9], "own": [0.9, None, 0.8, 1.0]}
    nobody = {"test": [None] * 4, "own": [None] * 4}
    records = [record(p) for p in range(4)]
    records[2] |= {"teachers": some}
    records[3] |= {"teachers": nobody, "ensemble": None}
    lines(run, "records.jsonl", records)
    yardsticks = json.loads((run / "yardsticks.json").read_text(encoding="utf-8"))
    yardsticks["local"] = {
        "test": [[0.5, None, 0.3, None]] * 4,
        "own": [[0.5, None, 0.7, None]] * 4,
    }
    put(run, "yardsticks.json", yardsticks)
    report.write(run)
    rows = {row.key: row for row in report.summarise(run).rows}
    # (0.8 + 0.7 + 0.9) / 3, (0.9 + 0.8 + 1.0) / 3
    assert rows["teachers"].test == pytest.approx(0.8) and rows["teachers"].own == pytest.approx(
        0.9
    )
    assert (rows["teachers"].round, rows["teachers"].clients) == (3, 3)
    assert rows["ensemble"].clients == 3 and rows["local"].test == pytest.approx(0.4)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "Federated teachers, mean (round 3, of 3 clients)" in text
    assert "Local-only teachers, worst (round 3, of 2 clients)" in text
    lines(run, "records.jsonl", [record(0, teachers=nobody, ensemble=None)])
    put(run, "yardsticks.json", {"local": {"test": [[None] * 4], "own": [[None] * 4]}})
    assert {row.key for row in report.summarise(run).rows} == {"student", "best"}


def test_time_to_accuracy_is_where_it_is_first_reached(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seconds=30.5)
    # students 70, 85, 93, 90 %; bytes 90, 108, 126, 144 kB a round
    text = text_of(run)
    for line in (
        "- Virtual time: 122 s in total",
        "| Accuracy of the student | Virtual seconds | Round | Bytes up and down |",
        "| 50 % | 30.5 | 1 | 90.0 kB |",
        "| 70 % | 30.5 | 1 | 90.0 kB |",
        "| 80 % | 61 | 2 | 198.0 kB |",
        "| 90 % | 91.5 | 3 | 324.0 kB |",
        "| 95 % | — | — | — |",
    ):
        assert line in text
    report.write(run)
    assert (run / "pictures" / "time.png").exists()
    assert "](pictures/time.png)" in (run / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_without_a_clock_or_with_one_that_stands_still_there_is_no_time(
    tmp_path: Path, seconds: float | None
) -> None:
    run = make_run(tmp_path / "run", seconds=seconds)
    report.write(run)
    assert "irtual" not in (run / "report.md").read_text(encoding="utf-8")
    assert not (run / "pictures" / "time.png").exists()


def test_without_a_student_the_teachers_are_what_time_is_told_of(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seconds=2.0)
    lines(run, "records.jsonl", [record(p, student=None, virtual_s=2.0 * p + 2) for p in range(4)])
    assert [sum(those) / 4 for those in TEACHERS] == pytest.approx([0.35, 0.6, 0.75, 0.85])
    text = text_of(run)
    assert "| Accuracy of the teachers' mean |" in text and "| 70 % | 6 | 3 | 324.0 kB |" in text
    assert "Student, last round" not in text


def test_runs_are_laid_side_by_side_over_virtual_time(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a1", seed=1, seconds=10),
        make_run(tmp_path / "a2", seed=2, seconds=20, shift=0.025),
        make_run(tmp_path / "b1", seed=1, strategy="fedmd", seconds=5),
        make_run(tmp_path / "b2", seed=2, strategy="fedmd"),
    ]
    events = [failure(1, 3, "ValueError: no luck", "dropped")]
    lines(runs[2], "events.jsonl", events)
    records = [record(p, virtual_s=5.0 * p + 5, late=[1] * (p == 2)) for p in range(4)]
    lines(runs[2], "records.jsonl", records)
    out = tmp_path / "out"
    assert report.main([*map(str, runs), "--out", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    for line in (
        # 85 % after 20 s and 87.5 % after 40 s; 90 % in round 3 of both; 95 % in round 3 of one
        "| 80 % of the student | 30 ± 14.1 | 10 |",
        "| 90 % of the student | 45 ± 21.2 | 15 |",
        "| 95 % of the student | 60 (1 of 2 runs) | — |",
        "| Bytes down | Virtual seconds | Clients missing, all rounds | Failures |",
        "| 180.0 kB | 60 ± 28.3 | 0.0 | 0.0 |",
        "| 180.0 kB | 20 | 0.5 ± 0.7 | 0.5 ± 0.7 |",
        "![The student over virtual time, a line a seed](pictures/time-student.png)",
    ):
        assert line in text
    assert (out / "pictures" / "time-student.png").exists()
    plain_ = [make_run(tmp_path / f"c{s}", seed=s) for s in (1, 2)]
    assert "irtual" not in report.markdown(plain_)


def test_a_real_run_in_a_world_with_a_clock(tmp_path: Path) -> None:
    world = {"name": "stragglers", "jitter": 0.3, "deadline": 0.2}
    chosen = small.config("entropy", "rounds=3", world=world)
    run = folder.create(chosen, tmp_path / "run")
    records = small.run(chosen, run)
    summary = report.summarise(run)
    assert summary.complete and not summary.incidents and not summary.happenings
    assert [m.seconds for m in summary.moments] == [r["virtual_s"] for r in records]
    total = sum(r["bytes"]["up"] + r["bytes"]["down"] for r in records)
    assert summary.moments[-1].bytes == total
    assert 0 < sum(span.late for span in summary.missing) == sum(len(r["late"]) for r in records)
    report.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert f"Virtual time: {time_text(records[-1]['virtual_s'])} s" in text and "Too late" in text
    assert (run / "pictures" / "time.png").exists()


def test_an_interrupted_run_is_reported_and_its_command_goes_on_with_it(tmp_path: Path) -> None:
    class Stops(small.Silent):
        def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
            raise KeyboardInterrupt

    chosen = small.config("entropy")
    run = folder.create(chosen, tmp_path / "run")
    small.plan(chosen, run)
    with pytest.raises(KeyboardInterrupt):
        small.conduct(chosen, run, small.InProcess(), Stops())
    summary = report.summarise(run)
    assert not summary.complete and summary.rounds == 1
    assert summary.resume == f"python -m fedkd.simulate --resume {run}"
    small.run(chosen, run)
    assert "- Resumed after round 1\n" in text_of(run)
    assert report.summarise(run).complete


def test_nothing_is_written_through_a_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, elsewhere = make_run(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "pictures").symlink_to(elsewhere)
    assert report.main([str(run)]) == 2
    assert "symbolic link" in capsys.readouterr().err and not list(elsewhere.iterdir())


def test_a_progress_line_survives_what_was_not_measured() -> None:
    given = record(1, student=None, ensemble=None, virtual_s=12.5, late=[0, 1], dropped=[2])
    given["teachers"] = {"test": [None, 0.5, None, 0.7], "own": [None] * 4}
    assert line_of(given, {"clients": 1.0}, 4) == (
        "round 2/4   student    —   ensemble    —   mean teacher  60.0%      1.0 s"
        "   12.5 virtual s   2 late   1 dropped"
    )
    given["teachers"]["test"] = [None] * 4
    assert "mean teacher    —" in line_of(given, {}, 4)


def test_an_event_is_told_in_a_line() -> None:
    event = failure(2, 3, "ValueError: no\x1b[2J luck\nat all", "dropped")
    assert note_of(event) == (
        "round 2, train + answer, client 3: ValueError: no [2J luck;"
        " it is left out of the rest of the round"
    )
    lost = {"kind": "lost", "phase": "pooled", "cause": "gone", "outcome": "retried"}
    assert note_of(lost) == "pooled: gone; it is tried again"
    assert note_of({"kind": "odd", "round": 1}) == "round 1"


def test_phrases() -> None:
    assert ranges([3, 1, 2, 2, 9, 7, 6]) == "1–3, 6, 7, 9" and ranges([]) == ""
    assert ranges(range(0, 100, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, … (50 in all)"
    assert [time_text(s) for s in (0.0, 0.01234, 12.34, 99.96, 1234.5)] == [
        "0", "0.0123", "12.3", "100", "1,234",
    ]  # fmt: skip
    assert plain("\n \n a\tb \u202e\ud800c\nd") == "a b c" and len(plain("x" * 999)) == 200
    assert inert("a & <b> [c](d)") == "a &amp; &lt;b> [c]\\(d)"


def test_causes_that_differ_in_numbers_alone_are_one() -> None:
    causes = ("payload: at most 10, found 1,234", "payload: at most 10, found 99", "payload: gone")
    found = incidents([Event("refused", r, "answer", cause=c) for r, c in enumerate(causes, 1)])
    assert [(i.cause, i.times, i.varied, i.rounds) for i in found] == [
        (causes[0], 2, True, (1, 2)),
        (causes[2], 1, False, (3,)),
    ]
