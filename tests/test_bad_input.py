"""What is asked for wrongly, through every command: exit code 2, what is wrong and the way out."""

import json
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import small
import yaml
from PIL import Image
from stored_runs import make_run

from fedkd.__main__ import main
from fedkd.recorded import SCHEMA

TABLE = "age,pay,job,sick\n" + "\n".join(f"{i},{i % 7},{'ab'[i % 2]},{i % 3}" for i in range(60))
CSV = "data.source={name: csv, file: a.csv, label: sick}"
PARTS = '''
"""Models and methods that cannot be private."""
import torch
from torch import nn
from fedkd.transforms import mean
from fedkd.types import Release, Strategy


def normalising(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


def keeping(shape, classes):
    return nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(),
                         nn.Linear(64, classes))


def _look(view, model, inputs, rng):
    return torch.ones(len(inputs), dtype=torch.bool), torch.ones(len(inputs))


def hiding():
    return Strategy(mean(), annotate=_look)


def misdeclared():
    said = Release("gaussian", "record", {"scale": 1.0})
    return Strategy(mean(), annotate=_look, annotate_releases=(said,))


def failing():
    return Strategy(mean(), train_releases=lambda samples, round_: 1 / 0)
'''
SMALL = ("data.test=5", "data.validation=5", "data.public=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, sweeps and data, sound ones and others. No test may change it."""
    folder = tmp_path_factory.mktemp("bad")
    run = make_run(folder / "run")
    make_run(folder / "cut", status="interrupted", seed=6)
    for path in (run / "run.json", folder / "cut" / "run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "a checksum"}))
    _sweeps(folder)
    for name, schema in (("old", None), ("later", SCHEMA + 1)):
        shutil.copytree(run, folder / name)
        about = json.loads((run / "run.json").read_text())
        about.pop("schema")
        about |= {"schema": schema} if schema else {}
        (folder / name / "run.json").write_text(json.dumps(about))
    shutil.copytree(run, folder / "other")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = {"name": "idx", "folder": "x"}
    (folder / "other" / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(run, folder / "damaged")
    (folder / "damaged" / "records.jsonl").write_text('{"round": 1}\n')
    (folder / "damaged" / "run.json").write_text("{")
    _data(folder)
    (folder / "broken.py").write_text("def broken(:\n")
    (folder / "odd.py").write_text("def odd():\n    return {}\n")
    (folder / "file").write_text("the only copy")
    (folder / "private_parts.py").write_text(PARTS)
    small_ones = {"clients": [{"count": 3, "model": [small.MLP]}], "rounds": 1}
    data = {**small.EXPERIMENT["data"], "public": 30, "private": 120}
    (folder / "it.yaml").write_text(
        yaml.safe_dump({**small.EXPERIMENT, **small_ones, "data": data})
    )
    return folder


def _sweeps(folder: Path) -> None:
    base = {"of": {"name": "digits"}, "overrides": []}
    for name in ("sweep", "empty-sweep"):
        (folder / name / "runs").mkdir(parents=True)
        (folder / name / "sweep.yaml").write_text(
            yaml.safe_dump({"config": base, "vary": {"seed": [0, 1]}, "sets": [{}]})
        )
    make_run(folder / "sweep" / "runs" / "one")
    (folder / "changed-sweep").mkdir()
    (folder / "changed-sweep" / "sweep.yaml").write_text("vary: {seed: [0]}\n")
    (folder / "no-list.yaml").write_text("strategy: dsfl\n")
    (folder / "list.yaml").write_text("- {strategi: dsfl}\n")


def _data(folder: Path) -> None:
    (folder / "a.csv").write_text(TABLE)
    (folder / "gaps.csv").write_text(f"{TABLE}\n,1,a,1\nold,3,b,2\n")
    (folder / "idx").mkdir()
    for part, count in (("train", 60), ("t10k", 20)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 4, 4) + bytes(count * 16 - 7)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 3 for i in range(count))
        (folder / "idx" / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / "idx" / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    for name, side in (("cat", 8), ("dog", 9)):
        (folder / "pictures" / name).mkdir(parents=True)
        Image.new("L", (side, side)).save(folder / "pictures" / name / "1.png")


# the words of a command, and what must be said: the parameter, what was found, the way out
SIMULATE: Sequence[tuple[str, Sequence[str]]] = (
    ("strategi=dsfl", ["strategi: there is no such key (did you mean strategy?)"]),
    ("strategy.name=pate", ["strategy.temperature: pate has no such parameter; it takes rule",
                            "leave it out: strategy=pate drops what another was given"]),
    ("strategy.temprature=1", ["strategy.temprature: entropy has no such parameter",
                               "did you mean temperature?"]),
    ("strategy=dsfk", ["no strategy called 'dsfk' (did you mean dsfl?)", "put a file NAME.py"]),
    ("combine=medain", ["combine: there is no rule called 'medain' (did you mean median?)"]),
    ("codecs.up=fp61", ["codecs.up", "'fp61' (did you mean fp16?)"]),
    ("rounds=many", ["rounds: should be a whole number, found 'many'; change it"]),
    ("strategy.temperature=0", ["strategy.temperature: should be greater than 0, found 0"]),
    ("data.partition={name: pathological, classes_per_client: 11}",
     ["classes_per_client: should be at most 10", "found 11; lower it"]),
    ("data.private=5 data.partition=iid", ["1 private samples each need 10, found 5"]),
    ("data.public=2000", ["data.public.size: should be at most 1300", "found 2000; lower it"]),
    ("student=lenet5", ["student: model lenet5: images should be large enough"]),
    ("clients.0.weights=none.safetensors", ["clients.weights", "correct the path"]),
    ("data.source={name: idx, folder: idx} data.partition=iid",
     ["train-images-idx3-ubyte should hold the 960 values", "found 953; fetch the file again"]),
    ("data.source={name: idx, folder: nowhere}", ["data.source.folder: should hold train-images"]),
    ("data.source={name: csv, file: b.csv, label: sick}",
     ["data.source.file: should be a file, found none at b.csv"]),
    ("data.source={name: csv, file: a.csv, label: sik}",
     ["should name a column, found 'sik' (did you mean sick", "columns are age, pay, job, sick"]),
    ("data.source={name: csv, file: gaps.csv, label: sick}",
     ["data.source.missing: no value should be missing, found gaps in age (1)", "impute"]),
    ("data.source={name: csv, file: gaps.csv, label: sick, missing: impute}",
     ["data.source: age should hold numbers, found 1 of 61 values"]),
    (f"{CSV} data.source.encode=refuse", ["every column should hold numbers, found words in job"]),
    (" ".join([CSV, "data.partition={name: natural_id, by: jb}", *SMALL]),
     ["data.partition.by: should name a column of the source, found 'jb'"]),
    ("data.source={name: image_folder, folder: pictures}",
     ["data.source.resize: images should have one size, found 8x8"]),
    ("data.public={source: digits}", ["data.public.source: should be another data set"]),
    ("strategy=odd:odd", ["should return Strategy, found dict; correct its return statement"]),
    ("strategy=broken:broken", ["broken.py, line 1: invalid syntax", "correct"]),
    ("strategy=fedavg", ["must be one model", "set clients and student to the same model"]),
    ("--out run", ["execution.out: should be a new or empty folder", "name another folder"]),
    ("--out file/below", ["execution.out", "Not a directory"]),
    ("digit", ["'digit' is neither a file nor one of the built-in", "did you mean digits?"]),
    ("digits multi_teacher", ["there should be one CONFIG, found digits and multi_teacher"]),
    ("--runtime rey", ["execution.runtime: should be 'ray', 'local' or 'flower', found 'rey'"]),
    ("--resume nowhere", ["nowhere"]),
    ("--resume run --quick", ["--quick: should not come with --resume"]),
    ("--branch b", ["--branch: should come with --resume RUN"]),
    ("--list dsfk", ["--list: should name a kind", "did you mean dsfl"]),
)  # fmt: skip
NOISY = "it.yaml strategy=dsfl privacy.answers={name: gaussian, sigma: 20}"
DP = "it.yaml privacy.training"
ABOVE = {"epsilon": "greater than 0", "delta": "greater than 0"}
FINITE = {"epsilon": "a finite number", "delta": "less than 1"}
ANSWERS = "it.yaml strategy=dsfl privacy.answers"
PRIVACY: Sequence[tuple[str, Sequence[str]]] = (
    *((f"digits privacy.{section}={{{given}, {name}: {value}}}",
       [f"privacy.{section}.{name}: should be {rule[name]}, found {value.strip('.')}"])
      for section, given, name in (("budget", "epsilon: 5", "delta"), ("budget", "delta: 0.00001",
                                   "epsilon"), ("training", "delta: 0.00001", "epsilon"),
                                   ("training", "epsilon: 5", "delta"))
      for value, rule in (("0", ABOVE), ("-1", ABOVE), (".nan", FINITE), (".inf", FINITE))),
    ("digits privacy.budget={epsilon: 5, delta: 1}", ["privacy.budget.delta: should be less than"]),
    ("digits privacy.budget={epsilon: '5'}", ["found '5' (text; write 5 without quotes)"]),
    ("digits privacy.budget={delta: 0.001}", ["privacy.budget.epsilon: is required"]),
    ("digits privacy.budget={epsilon: 5, when_spent: ask}",
     ["privacy.budget.when_spent: should be 'stop' or 'leave_out', found 'ask'"]),
    ("digits privacy.budget={epsilon: 5, dleta: 1}", ["budget.dleta", "did you mean delta"]),
    ("digits privacy.budget=5", ["privacy.budget: should be a mapping of keys to values, found 5"]),
    ("digits privacy.undeclared=yes", ["privacy.undeclared: should be 'refuse' or 'allow'"]),
    ("digits privacy.training={noise_multiplier: 0, epsilon: 5, delta: 0.001}",
     ["given no epsilon where noise_multiplier is 0, for without noise there is none"]),
    ("digits privacy.training={noise_multiplier: 1, epsilon: 5, delta: 0.001}",
     ["privacy.training: should be given either noise_multiplier, or epsilon with delta"]),
    ("digits privacy.training={epsilon: 5}", ["given epsilon and delta together"]),
    ("digits privacy.training={noise_multiplier: 1.0e+300}", ["noise_multiplier: should be at"]),
    ("digits privacy.training={noise_multiplier: -1}", ["noise_multiplier: should be at least 0"]),
    ("digits privacy.training={noise_multiplier: .nan}", ["noise_multiplier: should be"]),
    ("digits privacy.training={noise_multiplier: 1, max_norm: .inf}", ["max_norm: should be"]),
    ("digits privacy.training={noise_multiplier: 1, max_norm: 0}", ["max_norm: should be at"]),
    ("digits privacy.training={noise_multiplier: 1, sample: shuffled}",
     ["privacy.training.sample: should be poisson, which the accountant reckons with", "shuffled"]),
    ("digits privacy.training={noise_multiplier: 1, sample: uniform}",
     ["privacy.training.sample: should be poisson, which", "not drawn independently", "uniform"]),
    (f"{DP}={{noise_multiplier: 1.0e-300}}",
     ["privacy.training should declare what its noise", "noise_multiplier=1e-300, sample_rate"]),
    (f"{DP}={{epsilon: 1, delta: 0.5}}", ["training.delta: should be below 1/n", "set it to"]),
    (f"{DP}={{noise_multiplier: 0}} privacy.budget={{epsilon: 5}}",
     ["privacy.budget: should be for what mechanisms let out, found that entropy has none here"]),
    (f"{DP}={{noise_multiplier: 1}} strategy=fedmd_nfdp",
     ["privacy.training: should go with a method whose clients learn all of their samples",
      "found that those of fedmd_nfdp learn samples drawn from them", "choose another strategy"]),
    (f"{DP}={{noise_multiplier: 1}} strategy=fd", ["those of fd learn targets of others"]),
    (f"{DP}={{noise_multiplier: 1}} clients.0.model=[mlp,'private_parts:normalising']",
     ["clients.model: should look at every record by itself", "found private_parts:normalising",
      "group normalisation, such as resnet_gn"]),
    (f"{DP}={{noise_multiplier: 1}} clients.0.model=private_parts:keeping",
     ["private_parts:keeping and its loss should give the gradient of every record by itself",
      "neither mix records, nor decide by the values they see"]),
    (f"{NOISY} privacy.budget={{epsilon: 50, delta: 0.01}}",
     ["privacy.budget.delta: should be below 1/n for n = 120", "set it to 0.0008 or less"]),
    (f"{NOISY} privacy.budget={{epsilon: 1}}",
     ["should allow one round at least, found epsilon 1, which round 1 would exceed for 3 of 3",
      "is at 1.", "raise epsilon above that"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 0, epsilon: 1}}", ["found 0 with a claimed epsilon"]),
    (f"{ANSWERS}={{name: laplace, scale: 0, epsilon: 1}}", ["found 0 with a claimed epsilon"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 1, epsilon: 1}}", ["sigma or epsilon, found both"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 1, delta: 0.001}}", ["a delta beside epsilon alone"]),
    (f"{ANSWERS}={{name: gaussian, epsilon: 1, delta: 0.5}}",
     ["privacy.answers.delta: should be below 1/n for n = 120", "found 0.5"]),
    (f"{ANSWERS}={{name: gaussian, epsilon: 1, delta: 1}}", ["answers.delta: should be less"]),
    (f"{ANSWERS}={{name: gaussian, epsilon: .nan}}", ["answers.epsilon: should be a finite"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 1.0e-300}}",
     ["privacy.answers: gaussian should declare what its noise guarantees", "sigma=1e-300"]),
    (f"{ANSWERS}={{name: laplace, scale: -1}}", ["answers.scale: should be greater than or equal"]),
    (f"{ANSWERS}={{name: laplace, epsilon: 1, delta: 0.1}}", ["laplace has no such parameter"]),
    (f"{ANSWERS}={{name: randomised_response, epsilon: 1.0e+300}}", ["epsilon=1e+300, which"]),
    (f"{ANSWERS}=gauss", ["there is no mechanism called 'gauss' (did you mean gaussian?)"]),
    (f"{ANSWERS}={{name: randomised_response, epsilon: 1}} combine=median",
     ["should go with a rule that is a mean", "set combine to mean"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 1}} strategy=fedmd", ["should have a clip", "give clip"]),
    (f"{ANSWERS}={{name: gaussian, sigma: 1}} strategy=fedavg clients.0.model=mlp",
     ["fedavg that it sends examples, weights beside them, without noise"]),
    ("it.yaml strategy=pate clients.0.count=1 data.partition=iid",
     ["pate hides each client among the others, so there should be at least 2, found 1"]),
    ("it.yaml strategy={name: fedkt, teachers: 1, protects: record, sigma: 3}",
     ["strategy.teachers: should be at least 2", "found 1", "raise it"]),
    ("it.yaml strategy={name: pate, sigma: 0} privacy.budget={epsilon: 5}",
     ["found that pate has none here"]),
    ("it.yaml strategy={name: pate, sigma: .nan}", ["strategy.sigma: should be a finite number"]),
    ("it.yaml strategy=private_parts:hiding",
     ["annotates, which looks at private data, and should declare what becomes known by it"]),
    ("it.yaml strategy=private_parts:misdeclared",
     ["should declare what its noise guarantees", "gaussian should have sigma, sensitivity"]),
    ("it.yaml strategy=private_parts:failing", ["ZeroDivisionError: division by zero; correct"]),
)  # fmt: skip
SWEEP: Sequence[tuple[str, Sequence[str]]] = (
    ("strategi=a,b", ["strategi: there is no such key (did you mean strategy?)"]),
    ("strategy.temprature=1,2", ["strategy.temprature", "did you mean temperature?"]),
    ("strategy.name=fedmd,kt_pfl strategy.temperatur=1,2", ["strategy.temperatur"]),
    ("seed=4..0", ["seed should be a range with something in it, found 4..0", "smaller number"]),
    ("seed=1,2 seed=3", ["seed should be said once, found it twice", "join them into one axis"]),
    ("strategy=dsfl,fedmd strategy.name=fedmd,dsfl", ["strategy.name should be said once"]),
    ("seed=1,1", ["seed should have each value once, found 1 twice"]),
    ("rounds=0,1", ["rounds: should be at least 1, found 0", "this is at rounds=0"]),
    ("strategy=dsfl,dsfk", ["no strategy called 'dsfk' (did you mean dsfl?)"]),
    ("nowhere.yaml seed=0..1", ["'nowhere.yaml' is neither a file"]),
    ("digits multi_teacher seed=0..1", ["there should be one CONFIG"]),
    ("--resume nowhere", ["nowhere should be the folder of a sweep, found no sweep.yaml"]),
    ("--resume changed-sweep", ["should say which config was swept, found it changed"]),
    ("--resume sweep seed=0..1", ["--resume: should come alone", "--out sweep"]),
    ("rounds=2 seed=0..1 --out sweep", ["a sweep over the same config", "--out"]),
    ("seed=0..1 --out file", ["execution.out", "--out"]),
    ("seed=0..1 --at-once 0", ["--at-once: should be at least 1, found 0"]),
    ("--list nowhere.yaml", ["--list: nowhere.yaml should be a readable YAML file"]),
    ("--list no-list.yaml", ["--list: no-list.yaml should hold a list of mappings, as in"]),
    ("--list list.yaml", ["strategi: there is no such key (did you mean strategy?)"]),
    ("seed=0..1 --runtime flower", ["execution.runtime: should be ray or local in a sweep"]),
)
REPORT: Sequence[tuple[str, Sequence[str]]] = (
    ("nowhere", ["nowhere: should be a run folder", "there is no such folder; give the folder"]),
    ("pictures", ["pictures: should be a run folder", "no config.yaml in it"]),
    ("run other --out new", ["should be of one data set", "digits", "idx", "report on each alone"]),
    ("later", [f"schema should be at most {SCHEMA}, found {SCHEMA + 1}", "with that version"]),
    ("damaged", ["run.json", "the file is damaged or of another version"]),
    ("empty-sweep", ["should be a sweep of which runs have begun", "carry it out first"]),
    ("run --format pdf", ["--format: should be one or more of md, tex, csv, html, found 'pdf'"]),
    ("run --format ,", ["--format: should be one or more of"]),
    ("run --baseline x", ["--baseline: should come with several runs, found one"]),
    ("run cut --baseline x", ["--baseline", "'x'"]),
    ("run cut --format md", ["--format: should come with --out DIR where several runs are given"]),
    ("run --out file/below", ["--out DIR writes elsewhere"]),
)
# what holds of every command that takes a finished run
FINISHED: Sequence[tuple[str, Sequence[str]]] = (
    ("nowhere", ["nowhere should be a run folder, found no such folder; give the folder"]),
    ("pictures", ["pictures should be a run folder, found no config.yaml in it"]),
    ("cut", ["should be a finished run, found its status interrupted", "simulate --resume cut"]),
    ("damaged", ["run.json should say what the run is, found it damaged"]),
)
REPLAY: Sequence[tuple[str, Sequence[str]]] = (
    *FINISHED,
    ("run", ["execution.store_answers=true"]),
    ("run temperature=1", ["should read strategy=NAME", "found 'temperature=1'; put strategy="]),
    ("run strategy=", ["strategy: should name a rule", "--list"]),
    ("run strategy={x: 1}", ["strategy: should be a name, or have one"]),
    ("run --out file", ["should be a new or empty folder", "name another folder with --out"]),
)
VERIFY: Sequence[tuple[str, Sequence[str]]] = (
    *FINISHED,
    ("run --files", ["hashes.json should be there, found nothing; the run is of an earlier"]),
)
METRICS: Sequence[tuple[str, Sequence[str]]] = (
    *FINISHED,
    ("run", ["metrics.json should be there", "run the experiment with evaluation.metrics=true"]),
    ("run --eps 0.1", ["eps: should come with --robustness, found without; add it"]),
    ("run --robustness --eps 7", ["eps: should be above 0 and at most 1, found [7.0]"]),
)
EXPORT: Sequence[tuple[str, Sequence[str]]] = (
    *FINISHED,
    ("run --format pdf", ["format: should be one of safetensors", "found 'pdf'"]),
    ("run --teacher 99", ["teacher: should be from 0 to 3, found 99"]),
    ("run --teacher -1", ["teacher: should be from 0 to 3, found -1"]),
    ("run --out file", ["out: should be a new file, found file, which exists"]),
)
CHECK: Sequence[tuple[str, Sequence[str]]] = (
    ("nowhere.py", ["found no file nowhere.py; correct the path"]),
    ("broken.py", ["broken.py, line 1: invalid syntax"]),
    ("odd.py", ["should return Strategy, found dict"]),
    ("dsfk", ["no strategy called 'dsfk' (did you mean dsfl?)"]),
    ("no_lab.rules:rule", ["no_lab"]),
    ("dsfl temprature=1", ["strategy.temprature: dsfl has no such parameter", "temperature?"]),
    ("dsfl temperature=0", ["strategy.temperature: should be greater than 0, found 0"]),
    ("dsfl era", ["a parameter should read param=value, found 'era'"]),
)
SCHEMA_: Sequence[tuple[str, Sequence[str]]] = (
    ("--out nowhere/a.json", ["nowhere/a.json", "--out"]),
)
ASKED = {
    "simulate": (*SIMULATE, *PRIVACY),
    "sweep": SWEEP,
    "report": REPORT,
    "replay": REPLAY,
    "verify": VERIFY,
    "metrics": METRICS,
    "export": EXPORT,
    "check": CHECK,
    "schema": SCHEMA_,
}
QUIET = ("simulate", "sweep", "verify", "check")


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, Python's own caches apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def words_of(text: str) -> list[str]:
    """The words of a line, as a shell has them; mappings in braces are one word."""
    words, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == " " and not depth:
            words.append("")
        else:
            words[-1] += character
    return words


@pytest.mark.parametrize(
    ("command", "asked", "parts"),
    [(command, *case) for command, cases in ASKED.items() for case in cases],
    ids=[f"{command} {asked}" for command, cases in ASKED.items() for asked, _ in cases],
)
def test_it_is_refused(
    command: str,
    asked: str,
    parts: Sequence[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    words = words_of(asked)
    if command == "simulate" and "--runtime" not in words and "--resume" not in words:
        words += ["--runtime", "local"]
    if command in QUIET:
        words.append("--quiet")
    before = tree(place)
    assert main([command, *words]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert lines and all(line.startswith("fedkd: ") for line in lines)
    assert len(set(lines)) == len(lines) and "Traceback" not in err
    assert [part for part in parts if part not in err] == [], err
    assert tree(place) == before


@pytest.mark.parametrize(
    "words",
    [
        ["report"],
        ["replay"],
        ["metrics", "run", "--format", "pdf"],
        ["metrics", "run", "--eps", "much"],
        ["export", "run", "--teacher", "last"],
        ["sweep", "seed=0..1", "--at-once", "many"],
        ["check"],
        ["schema", "digits"],
        ["completion", "tcsh"],
        *([command, "--no-such-option"] for command in ASKED),
    ],
    ids=" ".join,
)
def test_an_option_that_is_not_there_shows_the_usage(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out
    assert err.startswith("usage: ") and ": error: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("cut", "This run is not complete: its status is interrupted, 4 of 4 rounds"),
        ("old", "This run was written before run folders had a schema number"),
        ("sweep", "trial"),
    ],
)
def test_what_can_be_shown_is_shown(
    folder: str, said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    assert main(["report", str(place / folder), "--out", str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert said in out and not err
    assert os.listdir(tmp_path / "tables")
    assert tree(place) == before


def test_every_command_that_can_be_asked_wrongly_is_here() -> None:
    from fedkd.commands import COMMANDS

    assert COMMANDS.keys() - ASKED.keys() == {"completion"}
