"""What a run leaves when it has ended, and what is done with it."""

import csv
import hashlib
import importlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file

import fedkd
from fedkd import data, export, folder, metrics, replay, report, verify, wire
from fedkd.config import ConfigError
from fedkd.results import final, modules, provenance
from fedkd.results.archive import Kept, Stored, path_of
from fedkd.results.measures import log_probabilities
from fedkd.results.replaying import replay as replayed
from fedkd.types import predictions

ROOT = Path(__file__).parents[1]
CNN = {"name": "cnn", "channels": [4], "hidden": 8}
IN_FULL = "evaluation.metrics=true"
STORED = "execution.store_answers=true"
Make = Callable[..., Path]


def run(
    path: Path, strategy: object = "entropy", *words: str, workers: int = 1, **changes: object
) -> Path:
    """A finished run folder, as the command line leaves it."""
    config = small.config(strategy, IN_FULL, STORED, *words, **changes)
    folder.create(config, path)
    order = random.Random(workers) if workers > 1 else None
    small.run(config, path, small.InProcess(workers, order))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs by their arguments, each made once; nobody changes them."""
    done: dict[str, Path] = {}

    def make(strategy: object = "entropy", *words: str, **changes: object) -> Path:
        key = repr((strategy, words, sorted(changes.items())))
        if key not in done:
            done[key] = run(tmp_path_factory.mktemp("run") / "it", strategy, *words, **changes)
        return done[key]

    return make


@pytest.fixture
def copied(made: Make, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return Path(shutil.copytree(made(), tmp_path / "copy"))


class Called:
    """A command line: what it printed, once it ended as expected."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(
        self, main: Callable[[Sequence[str]], int], *arguments: object, code: int = 0
    ) -> str:
        self._capsys.readouterr()
        found = main([str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        assert found == code, out + err
        assert "Traceback" not in err
        if code == 2:
            assert not out and all(x.startswith("fedkd: ") for x in err.splitlines())
        return out or err


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Called:
    return Called(capsys)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Metrics


@pytest.mark.parametrize("method", small.PROTOTYPES)
def test_metrics_agree_with_the_last_record(made: Make, method: str) -> None:
    path = made(method)
    found, last = read(path / "metrics.json"), small.records(path)[-1]
    assert found["schema"] == 1
    assert set(found) == {"schema", "student", "ensemble", "teachers", "oracle", "fidelity"}
    assert found["ensemble"]["accuracy"] == last["ensemble"]["test"]
    accuracies = [t["accuracy"] for t in found["teachers"]]
    assert accuracies == last["teachers"]["test"]
    assert max(accuracies) <= found["oracle"]["mixture"] <= 1
    assert max(accuracies) <= found["oracle"]["any"] <= 1
    if method in small.WITHOUT_STUDENT:
        assert found["student"] is found["fidelity"] is None
        return
    assert found["student"]["accuracy"] == last["student"]["test"]
    assert found["student"]["nll"] == pytest.approx(last["student"]["test_nll"])
    assert set(found["fidelity"]["ensemble"]) == {"agreement", "kl"}
    assert len(found["fidelity"]["teachers"]) == 6
    assert set(found["student"]) == {
        "n", "accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "per_class", "confusion",
        "calibration",
    }  # fmt: skip


def test_the_same_bytes_whoever_carries_it_out(made: Make, tmp_path: Path) -> None:
    other = run(tmp_path / "other", workers=3)
    names = ("records.jsonl", "metrics.json")
    assert all((made() / n).read_bytes() == (other / n).read_bytes() for n in names)
    assert small.bits(made()) == small.bits(other)


def test_what_is_too_much_to_keep_is_asked_for_again(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "_MOST_KEPT", 0)
    assert read(run(tmp_path / "again") / "metrics.json") == read(made() / "metrics.json")


def test_a_mixture_of_many_is_fitted_to_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of sixty: what is kept of four teachers is no more than was allowed."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (60,), generator=rng)
    said = [log_probabilities(torch.randn(60, 3, generator=rng), "logits") for _ in range(4)]
    kept: list[torch.Tensor] = []

    def fitted(likelihood: torch.Tensor) -> list[float]:
        kept.append(likelihood)
        return [0.25] * 4

    monkeypatch.setattr(final, "mixture_weights", fitted)
    monkeypatch.setattr(final, "_MOST_FITTED", 24)
    found = final.summed(4, truth, None, None, lambda: iter(enumerate(said)))
    every_tenth = torch.stack([s[::10].gather(1, truth[::10, None])[:, 0].exp() for s in said])
    assert torch.equal(kept[0], every_tenth) and found["oracle"]["mixture"] > 0


def test_of_very_many_teachers_each_is_summarised() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (40,), generator=rng)
    said = [log_probabilities(torch.randn(40, 3, generator=rng), "logits") for _ in range(65)]
    found = final.summed(65, truth, None, None, lambda: iter(enumerate(said)))
    assert found["student"] is found["ensemble"] is found["fidelity"] is None
    assert all(t["confusion"] == [] and t["accuracy"] >= 0 for t in found["teachers"])
    right = torch.stack([s.argmax(1) == truth for s in said]).any(0)
    assert found["oracle"]["any"] == float(right.double().mean())
    few = final.summed(64, truth, None, None, lambda: iter(enumerate(said[:64])))
    assert len(few["teachers"][0]["confusion"]) == 3


def test_who_was_not_heard_of_has_no_figures() -> None:
    said = log_probabilities(torch.eye(3), "logits")
    found = final.summed(2, torch.arange(3), said, said, lambda: iter([(1, said)]))
    assert found["teachers"][0] is None is found["fidelity"]["teachers"][0]
    assert found["teachers"][1]["accuracy"] == found["oracle"]["mixture"] == 1
    nobody = final.summed(2, torch.arange(3), said, None, lambda: iter(()))
    assert nobody["oracle"] is None is nobody["fidelity"]["ensemble"]


def test_records_say_how_sure_and_how_far_apart(made: Make) -> None:
    for record, round_ in zip(small.records(made()), (1, 2), strict=True):
        stored = Stored(path_of(made() / "answers", round_), 1 << 30)
        probs = torch.cat([a.scores for a in stored.answers()]).double()
        mean = -torch.xlogy(probs.mean(0), probs.mean(0)).sum(-1)
        each = -torch.xlogy(probs, probs).sum(-1).mean(0)
        assert record["disagreement"] == pytest.approx(float((mean - each).mean()))
        assert stored.consensus is not None
        targets = wire.decode(stored.consensus).scores[0].double()
        sure = -torch.xlogy(targets, targets).sum(-1).mean()
        assert record["entropy"] == pytest.approx(float(sure))
        assert record["sha256"]["consensus"] == hashlib.sha256(stored.consensus).hexdigest()
    weights = small.records(made("fedavg"))[0]
    assert weights["disagreement"] is weights["entropy"] is weights["sha256"]["consensus"] is None


def test_what_is_not_measured_changes_nothing_else(made: Make, tmp_path: Path) -> None:
    words = ("evaluation.disagreement=false", "evaluation.metrics=false")
    config = small.config("entropy", *words)
    records = small.run(config, tmp_path / "less")
    assert not (tmp_path / "less" / "metrics.json").exists()
    assert not (tmp_path / "less" / "answers").exists()
    full = [r | {"disagreement": None} for r in small.records(made())]
    assert records == full
    student = "student.safetensors"
    assert (tmp_path / "less" / student).read_bytes() == (made() / student).read_bytes()


# Stored answers


def kept(path: Path) -> bytes:
    archive = Kept(path)
    rows = torch.tensor([[0, 0, 0], [0, 1, 0]])
    archive.begin(1, rows)
    archive.add(predictions(torch.rand(1, 2, 3), "logits", rows=rows))
    archive.add(predictions(torch.rand(1, 2, 3), "logits", rows=rows, parties=torch.tensor([4])))
    archive.end(predictions(torch.rand(1, 2, 3), "logits", rows=rows, parties=torch.tensor([-1])))
    return path_of(path, 1).read_bytes()


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    kept(tmp_path)
    stored = Stored(path_of(tmp_path, 1), 1 << 20)
    assert [int(a.parties[0]) for a in stored.answers()] == [0, 4] and len(stored) == 2
    assert stored.consensus is not None and stored.rows.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_damaged_answers_are_refused(tmp_path: Path) -> None:
    whole, path = kept(tmp_path), path_of(tmp_path, 1)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="answers"):
            Stored(path, 1 << 20)
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="answers"):
            Stored(path, 1 << 20)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="checksum"):
        Stored(path, 1 << 20)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="too long"):
        Stored(path, 16)


def test_a_round_that_was_not_ended_leaves_no_answers(tmp_path: Path) -> None:
    archive = Kept(tmp_path)
    archive.begin(1, torch.zeros(0, 3, dtype=torch.int64))
    archive.begin(1, torch.zeros(0, 3, dtype=torch.int64))
    assert not path_of(tmp_path, 1).exists()
    archive.end(None)
    assert [p.name for p in tmp_path.iterdir()] == ["000001.answers"]
    assert Stored(path_of(tmp_path, 1), 1 << 20).consensus is None


def test_a_run_that_goes_on_keeps_the_same_answers_and_figures(copied: Path, made: Make) -> None:
    for part in (copied / "commits").glob("000002.*"):
        part.unlink()
    for name in ("metrics.json", "answers/000002.answers"):
        (copied / name).unlink()
    records = small.run(small.config("entropy", IN_FULL, STORED), copied)
    assert [e["round"] for e in small.events(copied) if e["kind"] == "resume"] == [1]
    assert len(records) == 2
    for name in ("records.jsonl", "metrics.json", "answers/000002.answers"):
        assert (copied / name).read_bytes() == (made() / name).read_bytes()


# Replay


@pytest.mark.parametrize(
    "method", ["dsfl", {"name": "entropy", "feedback": False}, "scarlet", "fedmd"], ids=str
)
def test_a_replay_by_the_own_rule_has_the_same_bytes(
    made: Make, tmp_path: Path, method: object, called: Called
) -> None:
    """Also with feedback: the stored answers are those that followed from it."""
    path = made(method)
    out = called(replay.main, path, "--out", tmp_path / "own")
    assert "student and 2 of 2 consensuses" in out
    told = read(tmp_path / "own" / "replay.json")
    assert told["same_consensus"] == [True, True] and told["same_student"]
    student = "student.safetensors"
    assert (path / student).read_bytes() == (tmp_path / "own" / student).read_bytes()
    for a, b in zip(small.records(path), small.records(tmp_path / "own"), strict=True):
        assert all(a[k] == b[k] for k in ("student", "entropy", "disagreement", "sha256", "round"))


@pytest.mark.parametrize(
    "words", [("privacy.answers={name: randomised_response, epsilon: 2.0}",), ("combine=median",)]
)
def test_the_own_rule_is_the_one_that_the_config_made_of_it(
    made: Make, tmp_path: Path, words: Sequence[str]
) -> None:
    path = made("dsfl", *words)
    done = replayed(path, None, tmp_path / "own")
    assert all(done.same_consensus) and done.same_student
    ours, theirs = small.records(path), small.records(tmp_path / "own")
    assert [r["privacy"] for r in ours] == [r["privacy"] for r in theirs]


def test_what_was_said_under_noise_may_be_read_by_any_rule_and_needs_no_other_noise(
    made: Make, tmp_path: Path
) -> None:
    """What is made of noisy answers is free; a second look at votes that had none is not."""
    path = made("fedmd", "privacy.answers={name: gaussian, sigma: 2.0, clip: 4.0}")
    silent = fedkd.config.Named(name="fedmd", rows=60)
    done = replayed(path, silent, tmp_path / "again")
    assert done.same_consensus == [True, True]
    assert done.records[-1]["privacy"]["epsilon"] == {}
    assert small.records(path)[-1]["privacy"]["epsilon"]["prediction"] > 0
    voted = replayed(path, fedkd.config.Named(name="pate", sigma=3.0), tmp_path / "votes")
    assert voted.records[-1]["privacy"]["epsilon"]["client"] > 0
    assert any("more of the same votes" in t for t in read(voted.folder / "replay.json")["limits"])


def test_several_rules_side_by_side(made: Make, tmp_path: Path, called: Called) -> None:
    out = called(
        replay.main, made("fedmd"), "strategy=entropy,dsfl", "rows=60", "strategy=fedmd",
        "strategy={name: entropy, temperature: 0.5}", "--out", tmp_path / "all", code=2,
    )  # fmt: skip
    assert "entropy has no such parameter" in out
    shutil.rmtree(tmp_path / "all", ignore_errors=True)
    out = called(
        replay.main, made("fedmd"), "strategy=entropy,dsfl", "strategy=fedmd",
        "strategy={name: entropy}", "strategy.temperature=0.5", "--out", tmp_path / "all",
    )  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "all").iterdir())
    assert names == ["dsfl", "entropy", "entropy~2", "fedmd"]
    told = {n: read(tmp_path / "all" / n / "replay.json") for n in names}
    assert told["entropy~2"]["strategy"] == {"name": "entropy", "temperature": 0.5}
    assert [n for n in names if told[n]["same_student"]] == ["fedmd"]
    assert "entropy temperature=0.5" in out and "What a replay cannot give" in out
    assert "Student" in report.write(tmp_path / "all" / "dsfl").read_text()
    assert fedkd.load_student(tmp_path / "all" / "dsfl")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_another_rule_gives_what_it_would_have_given_in_the_first_round(
    made: Make, tmp_path: Path
) -> None:
    """Before anything was fed back, a replay is a run: from logits by the rule's own upload."""
    replayed(made("fedmd"), fedkd.config.Named(name="dsfl"), tmp_path / "it")
    replayed(made(), fedkd.config.Named(name="dsfl"), tmp_path / "from-probabilities")
    first = small.records(made("dsfl"))[0]  # trains, then answers, as entropy does
    found = small.records(tmp_path / "from-probabilities")[0]
    assert found["student"] == first["student"] and found["sha256"] == first["sha256"]
    distils_first = small.records(tmp_path / "it")[0]
    assert distils_first["sha256"] == first["sha256"]  # nothing to distil in round 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=fedmd"], "fedmd works on logits, found stored answers in probs"),
        (["strategy=kt_pfl"], "distils a student from a consensus for all, found that kt_pfl has"),
        (["strategy=none"], "there is no strategy called 'none'"),
        (["temperature=1"], "put strategy=NAME before it"),
        (["strategy=a,,b"], "should name a rule"),
        (["strategy={rows: 3}"], "strategy: should be a name, or have one"),
    ],
)
def test_what_cannot_be_replayed(
    made: Make, tmp_path: Path, called: Called, words: list[str], said: str
) -> None:
    assert said in called(replay.main, made(), *words, "--out", tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()


def test_a_rule_of_weights_has_no_answers(made: Make, called: Called) -> None:
    said = called(replay.main, made("fedavg"), code=2)
    assert "execution.store_answers=true" in said and "sends no answers" in said


def test_missing_or_damaged_answers(copied: Path, called: Called) -> None:
    place = path_of(copied / "answers", 2)
    place.write_bytes(place.read_bytes()[:-5])
    assert "000002.answers: it is cut off" in called(replay.main, copied, code=2)
    place.unlink()
    assert "found none of round 2; run the experiment" in called(replay.main, copied, code=2)


def test_nothing_is_overwritten(copied: Path, called: Called) -> None:
    (copied.parent / "there").mkdir()
    (copied.parent / "there" / "file").touch()
    said = called(replay.main, copied, "--out", copied.parent / "there", code=2)
    assert "which exists; nothing is overwritten" in said


# Verify


def test_a_run_can_be_had_again(made: Make, called: Called) -> None:
    """The run was carried out by a transport of the tests, this one by the local runtime."""
    out = called(verify.main, made(), "--quiet", "--workers", 2)
    assert out.startswith("The same: 2 rounds and all results, byte for byte.")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["ray", "flower"])
def test_another_runtime_gives_the_same(made: Make, called: Called, runtime: str) -> None:
    words = ["--quiet", "--runtime", runtime, "--workers", "2"]
    assert "The same" in called(verify.main, made(), *words)


def test_untouched_files(made: Make, called: Called) -> None:
    assert "files are as the run left them" in called(verify.main, made(), "--files")


@pytest.mark.parametrize(
    "name",
    ["records.jsonl", "student.safetensors", "teachers/00002.safetensors", "metrics.json",
     "config.yaml", "partition.json", "answers/000001.answers", "data/splits/test.npy",
     "citations.bib"],
)  # fmt: skip
def test_a_changed_file_is_found(copied: Path, called: Called, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[-9] ^= 1
    if name == "config.yaml":
        content = bytearray((copied / name).read_bytes().replace(b"seed: 3\n", b"seed: 4\n", 1))
    (copied / name).write_bytes(content)
    out = called(verify.main, copied, "--files", code=1)
    assert out.splitlines() == ["The folder is not as the run left it:", f"  {name} was changed"]


def test_files_that_are_missing_or_new_are_found(copied: Path, called: Called) -> None:
    (copied / "teachers" / "00001.safetensors").rename(copied / "teachers" / "00009.safetensors")
    out = called(verify.main, copied, code=1)
    assert "teachers/00001.safetensors is missing" in out and "00009.safetensors was added" in out


def test_a_forged_result_is_found_by_running_it(copied: Path, called: Called) -> None:
    """Also where whoever did it mended the checksums."""
    lines = (copied / "records.jsonl").read_text().splitlines()
    second = json.loads(lines[1])
    second["student"]["test"] = 0.99
    text = "\n".join([lines[0], json.dumps(second, sort_keys=True)]) + "\n"
    (copied / "records.jsonl").write_text(text)
    sums = read(copied / "hashes.json")
    sums["sha256"]["records.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
    (copied / "hashes.json").write_text(json.dumps(sums))
    about = read(copied / "run.json")
    about["versions"]["numpy"] = "0.1"
    (copied / "run.json").write_text(json.dumps(about))
    out = called(verify.main, copied, "--quiet", code=1)
    assert "records.jsonl: first in round 2: student.test (0.99 in the run" in out
    assert "Otherwise here and now: numpy 0.1 then" in out
    assert "safetensors" not in out


def test_what_cannot_be_verified(copied: Path, called: Called, tmp_path: Path) -> None:
    assert "should be 'ray'" in called(verify.main, copied, "--runtime", "moon", code=2)
    (copied / "branched_from.json").write_text("{}")
    assert "branched from another run" in called(verify.main, copied, code=2)
    (copied / "hashes.json").unlink()
    assert "earlier version, which noted no checksums" in called(verify.main, copied, code=2)
    (copied / "replay.json").write_text("{}")
    assert "found a replay of one" in called(verify.main, copied, code=2)


# Models


def test_models_come_back(made: Make) -> None:
    path = made()
    dataset = data.load(path / "data")
    inputs, labels = dataset.batch(dataset.test), dataset.labels(dataset.test)
    found = read(path / "metrics.json")
    student = fedkd.load_student(path)
    assert not student.training
    nll = torch.nn.functional.cross_entropy(student(inputs).double(), labels).detach()
    assert float(nll) == pytest.approx(found["student"]["nll"], rel=1e-6)
    for client in (0, 5):
        right = fedkd.load_teacher(str(path), client)(inputs).argmax(1) == labels
        assert float(right.double().mean()) == found["teachers"][client]["accuracy"]
    with pytest.raises(ConfigError, match="teacher: should be from 0 to 5, found 6"):
        fedkd.load_teacher(path, 6)
    with pytest.raises(ConfigError, match="should have a student, found none: kt_pfl makes none"):
        fedkd.load_student(made("kt_pfl"))


def test_weights_of_another_model_are_refused(copied: Path) -> None:
    shutil.copy(copied / "teachers" / "00001.safetensors", copied / "student.safetensors")
    with pytest.raises(ConfigError, match="should hold the weights of mlp, found"):
        fedkd.load_student(copied)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    groups = [{"count": 2, "model": [CNN]}]
    return run(tmp_path_factory.mktemp("cnn") / "it", student=CNN, clients=groups)


def outputs(path: Path, kind: str, inputs: torch.Tensor) -> torch.Tensor:
    """What a foreign reader makes of an exported model."""
    if kind == "torchscript":
        with warnings.catch_warnings():  # torch would rather have us use torch.export
            warnings.simplefilter("ignore")
            return torch.as_tensor(torch.jit.load(path)(inputs)).detach()
    if kind == "torch.export":
        return torch.as_tensor(torch.export.load(path).module()(inputs)).detach()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {"samples": inputs.numpy()})[0]))


@pytest.mark.parametrize(
    ("kind", "teacher"), [("torchscript", None), ("torch.export", 1), ("onnx", None)]
)
def test_an_exported_model_says_the_same(
    convolutional: Path, tmp_path: Path, called: Called, kind: str, teacher: int | None
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    which = [] if teacher is None else ["--teacher", teacher]
    out = tmp_path / "new" / f"model{modules.ENDINGS[kind]}"
    called(export.main, convolutional, "--format", kind, "--out", out, *which)
    own = (
        fedkd.load_student(convolutional)
        if teacher is None
        else fedkd.load_teacher(convolutional, teacher)
    )
    for size in (1, 7):
        inputs = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(size))
        assert outputs(out, kind, inputs) == pytest.approx(own(inputs).detach(), abs=1e-5)


def test_exported_weights_have_their_names(convolutional: Path, called: Called) -> None:
    said = called(export.main, convolutional).strip()
    assert said.endswith("exported/student.safetensors")
    found = load_file(convolutional / "exported" / "student.safetensors")
    expected = fedkd.load_student(convolutional).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found)
    assert "nothing is overwritten" in called(export.main, convolutional, code=2)


def test_a_missing_package_is_named(
    made: Make, tmp_path: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_there", lambda package: False)
    said = called(export.main, made(), "--format", "onnx", "--out", tmp_path / "x", code=2)
    assert "found no onnx and no onnxscript; install them with pip install 'fedkd[onnx]'" in said
    said = called(export.main, made(), "--format", "tflite", "--out", tmp_path / "x", code=2)
    assert "format: should be one of safetensors, torchscript, torch.export, onnx" in said


# The command that shows metrics


def test_the_tables(made: Make, called: Called) -> None:
    out, found = called(metrics.main, made()), read(made() / "metrics.json")
    assert f"| Student | {found['student']['accuracy']:.1%} |" in out
    assert f"| Any teacher right* | {found['oracle']['any']:.1%} |" in out
    assert "know the test labels" in out and out.count("| Teacher ") == 6
    assert "## Student: confusion" in out and "## Ensemble by class" in out
    assert json.loads(called(metrics.main, made(), "--format", "json"))["metrics"] == found
    lines = list(csv.DictReader(io.StringIO(called(metrics.main, made(), "--format", "csv"))))
    (line,) = (x for x in lines if (x["who"], x["figure"]) == ("ensemble", "ece"))
    assert float(line["value"]) == found["ensemble"]["ece"]


@pytest.mark.parametrize("method", ["kt_pfl", "fedavg"])
def test_tables_without_a_student_or_with_averaged_weights(
    made: Make, called: Called, method: str
) -> None:
    assert ("| Student |" in called(metrics.main, made(method))) == (method == "fedavg")


def test_robustness(copied: Path, called: Called) -> None:
    called(metrics.main, copied, "--robustness", "--eps", 0.05, "--eps", 0.3)
    first, found = (copied / "robustness.json").read_bytes(), read(copied / "metrics.json")
    rows = json.loads(first)["rows"]
    assert rows[0]["student"] == found["student"]["accuracy"]
    assert rows[0]["teachers"] == [t["accuracy"] for t in found["teachers"]]
    by_name = {(r["name"], r["severity"]): r for r in rows}
    clean = sum(rows[0]["teachers"])
    for name in ("FGSM", "PGD-10"):
        weak, strong = (sum(by_name[name, eps]["teachers"]) for eps in (0.05, 0.3))
        assert clean >= weak >= strong and clean > strong
    assert {r["name"] for r in rows[1:-4]} == {"gaussian noise", "blur", "contrast", "occlusion"}
    called(metrics.main, copied, "--robustness", "--eps", 0.05, "--eps", 0.3, "--format", "csv")
    assert (copied / "robustness.json").read_bytes() == first


def test_what_metrics_cannot_show(copied: Path, called: Called) -> None:
    assert "at most 1, found [2.0]" in called(
        metrics.main, copied, "--robustness", "--eps", 2, code=2
    )
    assert "should come with --robustness" in called(metrics.main, copied, "--eps", 0.1, code=2)
    (copied / "metrics.json").write_text('{"schema": 0}')
    assert "should have schema 1, found 0" in called(metrics.main, copied, code=2)
    (copied / "metrics.json").unlink()
    assert "run the experiment with evaluation.metrics=true" in called(metrics.main, copied, code=2)


# Any of them


COMMANDS = [replay.main, verify.main, export.main, metrics.main]


@pytest.mark.parametrize("main", COMMANDS)
def test_no_run_no_finished_run_an_older_run(copied: Path, called: Called, main: Any) -> None:
    assert "found no such folder" in called(main, copied / "nowhere", code=2)
    assert "found no config.yaml in it" in called(main, copied / "teachers", code=2)
    about = read(copied / "run.json")
    folder.describe(copied, "interrupted")
    said = called(main, copied, code=2)
    assert "its status interrupted" in said and f"--resume {copied}" in said
    (copied / "run.json").write_text(json.dumps(about))
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text + "sed: 3\n")
    said = called(main, copied, code=2)
    assert "should be a config of this version" in said and "sed: there is no such key" in said
    (copied / "run.json").write_text("{}")
    assert "damaged or of an earlier version" in called(main, copied, code=2)


def test_help_needs_no_torch(tmp_path: Path) -> None:
    script = """
import contextlib, io, sys
from fedkd import export, metrics, replay, verify
for command in (export, metrics, replay, verify):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        command.main(["--help"])
    assert "examples:" in said.getvalue() and "exit codes: 0 " in said.getvalue()
    with contextlib.redirect_stderr(io.StringIO()):
        assert command.main(["nowhere"]) == 2
assert not {"torch", "flwr", "ray", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


# Provenance


def test_where_it_comes_from(made: Make) -> None:
    found = read(made() / "provenance.json")
    assert found["data"]["licence"] == "CC BY 4.0"
    assert found["data"]["public"][0]["licence"] == "CC BY 4.0"  # held back from the same data
    assert [t["client"] for t in found["teachers"]] == list(range(6))
    for teacher in found["teachers"]:
        content = (made() / "teachers" / f"{teacher['client']:05d}.safetensors").read_bytes()
        assert teacher["sha256"] == hashlib.sha256(content).hexdigest()
    (strategy,) = (p for p in found["parts"] if p["kind"] == "strategy")
    content = (ROOT / "strategies" / "entropy.py").read_bytes()
    assert strategy["sha256"] == hashlib.sha256(content).hexdigest()


def flat(place: Path) -> Path:
    """A run on features in a file."""
    rng, file = np.random.default_rng(0), place / "own.npz"
    x, y = rng.random((200, 4), np.float32), rng.integers(3, size=200)
    np.savez(file, x_train=x, y_train=y)
    source = {"name": "npz", "file": str(file), "x_test": None, "y_test": None}
    sizes = {"test": 30, "validation": 0, "public": 40, "partition": "iid"}
    return run(place / "it", data={"source": source, **sizes})


def test_files_and_unknown_licences(tmp_path: Path) -> None:
    path = flat(tmp_path)
    found = read(path / "provenance.json")["data"]
    assert found["licence"] == "unknown" == found["public"][0]["licence"]
    content = (tmp_path / "own.npz").read_bytes()
    assert found["files"] == {"own.npz": hashlib.sha256(content).hexdigest()}
    assert "Licence: unknown" in (path / "checklist.md").read_text()
    folders = [str(tmp_path), str(tmp_path.parent)]
    text = (path / "provenance.json").read_text() + (path / "checklist.md").read_text()
    assert not [f for f in folders if f in text]


def test_flat_features_are_corrupted_by_columns(tmp_path: Path, called: Called) -> None:
    path = flat(tmp_path)
    found = json.loads(called(metrics.main, path, "--robustness", "--format", "json"))
    names = {r["name"] for r in found["robustness"]["rows"]}
    assert names == {"clean", "gaussian noise", "dropped columns", "FGSM", "PGD-10"}


@pytest.mark.parametrize("method", small.METHODS)
def test_every_method_says_what_to_cite(method: str) -> None:
    bibtex = provenance.cited(importlib.import_module(f"strategies.{method}"))
    text = provenance.citations("1.2.3", [bibtex])
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)
    assert keys[0] == "fedkd" and len(keys) == 2
    assert text.count("{") == text.count("}")
    for entry in re.findall(r"^@.*?^\}$", text, re.MULTILINE | re.DOTALL)[1:]:
        assert all(f"  {field} = {{" in entry for field in ("title", "author", "year"))


def test_a_method_in_one_file_may_say_it_there() -> None:
    module = ModuleType("mine")
    assert provenance.cited(module).strip() == ""
    module.BIBTEX = "@misc{mine,\n}"  # type: ignore[attr-defined]
    assert provenance.cited(module).strip() == "@misc{mine,\n}"


def test_an_entry_comes_once() -> None:
    one, two = "@misc{a,\n  note = {x},\n}", "@misc{a,\n  note = {y},\n}\n@book{b,\n}"
    text = provenance.citations("1.2.3", [one, two, ""])
    assert re.findall(r"@\w+\{(\w+),", text) == ["fedkd", "a", "b"]
    assert "Version 1.2.3" in text and "note = {x}" in text and "{y}" not in text


def test_the_checklist_is_filled(made: Make) -> None:
    text = (made() / "checklist.md").read_text()
    steps = sum(r["steps"]["clients"] for r in small.records(made()))
    share = small.records(made())[-1]["student"]["test"]
    for expected in (
        "Training seed 3, data seed 3", f"gradient steps of all clients {steps:,}",
        f"Student after the last round: {share:.2%}", "these 150 test samples (Wilson)",
        "## Not known to the run", "Licence: CC BY 4.0",
    ):  # fmt: skip
        assert expected in text
    assert "makes no student" in (made("kt_pfl") / "checklist.md").read_text()


def test_the_interval_is_wilsons() -> None:
    assert provenance.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert provenance.wilson(0.0, 10)[0] == 0 and provenance.wilson(1.0, 10)[1] > 0.9999
