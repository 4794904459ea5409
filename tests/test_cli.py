"""The command line: what is said, what it exits with, and what it leaves behind."""

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedkd import progress, reading, report
from fedkd.config import ConfigError, load_config
from fedkd.simulate import main

ROOT = Path(__file__).parents[1]
# the smallest run that has everything in it
SMALL = [
    "--runtime=local",
    "rounds=2",
    "clients.0.count=4",
    "clients.0.model={name: mlp, hidden: [8]}",
    "student={name: mlp, hidden: [8]}",
    *(f"learning.{who}.epochs=1" for who in ("private", "client", "server")),
    *(f"learning.{who}.first_epochs=1" for who in ("private", "server")),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Refused:
    """Call the command line with a fault: exit code 2, one message, and nothing left behind."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        before = tree(Path.cwd())
        assert main(["--quiet", "--runtime", "local", *arguments]) == 2
        out, err = self._capsys.readouterr()
        assert not out
        assert "Traceback" not in err
        assert all(line.startswith("fedkd: ") for line in err.splitlines())
        assert len(set(err.splitlines())) == len(err.splitlines()) > 0
        assert tree(Path.cwd()) == before
        return err.replace("fedkd: ", "")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(capsys)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, Python's own caches apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def test_an_unknown_key(refused: Refused) -> None:
    assert "strategi: there is no such key (did you mean strategy?)" in refused("strategi=dsfl")
    said = refused("learning.private.lr=0.1")
    assert said.startswith(
        "learning.private.lr: there is no such key; known here are batch, epochs"
    )
    # the parameters of a plug-in are the business of its factory
    said = refused("strategy.temprature=1")
    assert "strategy.temprature: entropy has no such parameter (did you mean temperature?)" in said


def test_an_unknown_value(refused: Refused) -> None:
    assert refused("execution.runtime=rey", "--runtime", "rex") == (
        "execution.runtime: should be 'ray', 'local' or 'flower', found 'rex'; change it in the"
        " config or as an override execution.runtime=…\n"
    )
    assert "there is no strategy called 'dsfk' (did you mean dsfl?)" in refused("strategy=dsfk")
    assert "student: there is no model called 'mlq' (did you mean mlp?)" in refused("student=mlq")
    said = refused("learning.private.optimizer.name=adan")
    assert said.startswith("learning.private.optimizer.name: should be sgd, adam, adamw or torch.")
    said = refused("name=a/b")
    assert said.startswith("name: should be made of letters, digits, '.', '_' and '-'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=many", "rounds: should be a whole number, found 'many'"),
        ("rounds=2.5", "rounds: should be a whole number, found 2.5"),
        ("rounds='5'", "should be a whole number, found '5' (text; write 5 without quotes)"),
        ("evaluation.local=1", "evaluation.local: should be true or false, found 1"),
        ("learning.client.optimizer.lr=true", "lr: should be a number, found True"),
        ("learning.client.optimizer.lr='0.1'", "lr: should be a number, found '0.1' (text"),
        ("learning.client.optimizer.lr=.inf", "lr: should be a finite number, found inf"),
        ("clients=20", "clients: should be a list, found 20"),
        ("student=", "student: should be a name, or a mapping with a name"),
        ("strategy.temperature=warm", "strategy.temperature: should be a valid number"),
        ("execution.workers=0", "execution.workers: should be at least 1 or 'auto', found 0;"),
        ("compute.stack=0", "compute.stack: should be 'auto' or 'never' or at least 1, found 0;"),
        ("clients.0.model=3", "clients.0.model: should be a name, or a mapping"),
        ("clients.1.count=3", "clients.1 should be an index from 0 to 0"),
        ("clients.0.count.x=3", "clients.0.count.x does not exist, because clients.0.count is"),
        ("rounds=[", "the value of rounds should be valid YAML, found '['"),
        ("=3", "should read key=value"),
    ],
)  # fmt: skip
def test_a_wrong_type(refused: Refused, override: str, message: str) -> None:
    said = refused(override)
    assert message in said
    assert len(said.splitlines()) == 1


def test_several_faults_are_told_at_once(refused: Refused) -> None:
    said = refused("rounds=0", "seed=-1", "foo=1").splitlines()
    assert [line.partition(":")[0] for line in said] == ["foo", "seed", "rounds"]


def test_temperature_zero(refused: Refused) -> None:
    said = refused("strategy.temperature=0")
    assert "strategy.temperature: should be greater than 0, found 0" in said


def test_more_classes_per_client_than_there_are(refused: Refused) -> None:
    said = refused("data.partition={name: pathological, classes_per_client: 11}")
    assert "classes_per_client: should be at most 10" in said and "found 11; lower it" in said


def test_an_empty_client(refused: Refused, here: Path) -> None:
    said = refused("data.private=5", "data.partition=iid")
    assert "10 clients with at least 1 private samples each need 10, found 5" in said
    (here / "greedy.py").write_text(
        "import numpy as np\n"
        "def first_takes_all(labels, clients, seed):\n"
        "    none = [np.arange(0) for _ in range(clients - 1)]\n"
        "    return [np.arange(len(labels)), *none]\n"
    )
    said = refused("data.partition=greedy:first_takes_all")
    assert "data.partition: should give 10 disjoint, non-empty" in said
    assert "found no sample for client 1 (9 empty clients); lower the number of clients" in said


def test_a_public_set_larger_than_what_is_left(refused: Refused) -> None:
    said = refused("data.public=2000")
    assert said == (
        "data.public.size: should be at most 1300, the rest of 1797 training samples after"
        " data.test 400, data.validation 97, found 2000; lower it or one of the others\n"
    )


@pytest.mark.parametrize("who", ["student", "clients.0.model.1"])
def test_a_model_with_the_wrong_output_size(refused: Refused, here: Path, who: str) -> None:
    (here / "narrow.py").write_text(
        "from torch import nn\n"
        "def seven(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    said = refused(f"{who}=narrow:seven")
    assert said.startswith(
        f"{who}: narrow:seven must give 10 logits a sample, one a class, found [7]"
    )


def test_a_model_that_cannot_take_the_samples(refused: Refused) -> None:
    assert "student: model lenet5: images should be large enough" in refused("student=lenet5")


def idx_files(folder: Path) -> None:
    for part, count in (("train", 60), ("t10k", 20)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 4, 4) + bytes(count * 16)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 3 for i in range(count))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_a_missing_or_truncated_file(refused: Refused, here: Path) -> None:
    source = "data.source={name: idx, folder: files}"
    said = refused(source)
    assert "data.source.folder: should hold train-images-idx3-ubyte or" in said
    (here / "files").mkdir()
    idx_files(here / "files")
    path = here / "files" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    said = refused(source)
    assert f"{Path('files') / path.name} should hold the 960 values its header states" in said
    assert "found 953; fetch the file again" in said


def test_a_table_with_missing_or_strange_values(refused: Refused, here: Path) -> None:
    rows = [f"{i},{i % 7},{'ab'[i % 2]},{i % 3}" for i in range(60)]
    source = "data.source={name: csv, file: a.csv, label: sick}"
    (here / "a.csv").write_text("age,pay,job,sick\n" + "\n".join(rows))
    said = refused("data.source={name: csv, file: a.csv, label: sik}")
    assert said.startswith(
        "data.source.label: should name a column, found 'sik' (did you mean sick"
    )
    assert "the columns are age, pay, job, sick" in said
    (here / "a.csv").write_text("age,pay,job,sick\n,,a,1\nold,3,,2\n" + "\n".join(rows))
    said = refused(source)
    assert said.startswith("data.source.missing: no value should be missing, found gaps in age (1)")
    assert "age (1), pay (1), job (1); set it to impute" in said
    said = refused(source, "data.source.missing=impute", "data.source.encode=refuse").splitlines()
    assert "data.source: age should hold numbers, found 1 of 61 values that are none" in said[0]
    assert said[1].startswith("data.source.encode: every column should hold numbers, found words")
    assert "data.source.missing: should be 'refuse', 'impute'" in refused(
        source, "data.source.missing=guess"
    )
    assert "data.source.file: should be a file, found none at b.csv" in refused(
        source, "data.source.file=b.csv"
    )
    fixed = ["data.source.missing=impute", "data.source.na=['', old]"]
    said = refused(source, *fixed, "data.partition={name: natural_id, by: jb}",
                   "data.test=5", "data.validation=5", "data.public=5")  # fmt: skip
    assert said.startswith("data.partition.by: should name a column of the source, found 'jb'")


def test_public_sets_that_cannot_be(refused: Refused, here: Path) -> None:
    (here / "files").mkdir()
    idx_files(here / "files")
    other = "{source: {name: idx, folder: files}, size: 9}"
    assert refused(f"data.public={other}", "data.public.labelled=true").startswith(
        "data.public.labelled: should be false for another data set unless it has the classes of"
    )
    said = refused(f"data.public=[300,{other}]", "data.public.1.size=90")
    assert said.startswith("data.public.1.size: should be at most 60, the samples of the other")
    said = refused(f"data.public=[300,{other}]", "data.public.1.source.folder=nowhere")
    assert said.startswith("data.public.1.source.folder: should hold train-images-idx3-ubyte")
    said = refused("data.public={source: digits}")
    assert said.startswith("data.public.source: should be another data set than data.source")
    said = refused("data.public={without: [11]}")
    assert said.startswith("data.public.without: should name classes of the data set, or number")
    said = refused("data.public={noise: uniform, labelled: true}")
    assert said.startswith("data.public: should be given without labelled where noise is set")
    assert "there is no such key (did you mean noise?)" in refused("data.public={nose: uniform}")


def test_pictures_of_different_sizes(refused: Refused, here: Path) -> None:
    from PIL import Image

    for name, side in (("cat", 8), ("dog", 9)):
        (here / "pictures" / name).mkdir(parents=True)
        Image.new("L", (side, side)).save(here / "pictures" / name / "1.png")
    said = refused("data.source={name: image_folder, folder: pictures}")
    assert said.startswith("data.source.resize: images should have one size, found 8x8 in")


def test_stored_teachers_that_are_missing_or_do_not_fit(refused: Refused, here: Path) -> None:
    said = refused("clients.0.weights=none.safetensors")
    assert "found no file 'none.safetensors'; correct the path" in said
    from safetensors.torch import save_file
    from torch import ones

    save_file({"weight": ones(2)}, here / "odd.safetensors")
    said = refused("--quick", "clients.0.weights=odd.safetensors")
    assert "'odd.safetensors' should fit the model" in said and "1.bias, 1.weight" in said


def test_a_strategy_file_with_a_syntax_error(refused: Refused, here: Path) -> None:
    (here / "strategies").mkdir()
    (here / "strategies" / "broken.py").write_text("def broken(:\n    pass\n")
    said = refused("strategy=broken")
    assert "broken.py, line 1: invalid syntax" in said and "correct the file" in said


@pytest.mark.parametrize(
    ("override", "kind", "found"),
    [
        ("strategy=returning:dictionary", "Strategy", "dict"),
        ("world=returning:dictionary", "World", "dict"),
        ("student=returning:nothing", "Module", "NoneType"),
        ("data.source=returning:dictionary", "Source", "dict"),
    ],
)
def test_a_factory_that_returns_something_else(
    refused: Refused, here: Path, override: str, kind: str, found: str
) -> None:
    (here / "returning.py").write_text(
        "def dictionary():\n    return {}\ndef nothing(shape, classes):\n    pass\n"
    )
    said = refused(override)
    assert f"should return {kind}, found {found}; correct its return statement" in said


def test_an_existing_run_folder(refused: Refused, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("the only copy")
    said = refused("--out", "mine")
    assert said.startswith("execution.out: should be a new or empty folder, found ")
    assert "name another folder with --out or remove it" in said
    (here / "file").write_text("the only copy")
    assert "should be a new or empty folder" in refused("--out", "file")


def test_an_unwritable_run_folder(refused: Refused, here: Path) -> None:
    (here / "file").write_text("the only copy")
    said = refused("--out", "file/below")
    assert "should be a folder that can be written, found: Not a directory" in said
    assert "execution.out: /proc/fedkd" in refused("--out", "/proc/fedkd")
    assert "File name too long" in refused("--out", "n" * 300)


def test_a_fault_found_late_takes_the_run_folder_away(refused: Refused, here: Path) -> None:
    refused("--out", "new/below", "data.public=2000")
    assert not (here / "new").exists()
    (here / "empty").mkdir()
    refused("--out", "empty", "student=lenet5")
    assert (here / "empty").is_dir()  # it was not ours


def test_a_cluster_that_is_not_there(refused: Refused) -> None:
    said = refused("--runtime", "ray", "execution.address=127.0.0.1:1", "--out", "new")
    assert said.startswith("execution.address: a Ray cluster should answer at 127.0.0.1:1, found:")


def test_more_than_the_machine_has(refused: Refused) -> None:
    said = refused("--runtime", "ray", "execution.gpus_per_task=64", "--out", "new")
    assert said.startswith("execution.workers: should be at most 0, as many as the cluster has")


def test_a_config_that_is_missing_or_no_config(refused: Refused, here: Path) -> None:
    said = refused("digit")
    assert "'digit' is neither a file nor one of the built-in" in said
    assert "(did you mean digits?)" in said
    (here / "a.yaml").write_text("rounds: [1\nname: x\n")
    assert "should be valid YAML, found: expected ',' or ']'" in refused("a.yaml")
    (here / "a.yaml").write_text("- 1\n")
    assert "should hold a mapping of sections, found list" in refused("a.yaml")
    (here / "a.yaml").write_text("rounds: 1\nseed: 2\nrounds: 3\n")
    assert "the key 'rounds' is given twice, line 3, column 1" in refused("a.yaml")
    (here / "a.yaml").write_text("rounds: 1\n")
    said = refused("a.yaml").splitlines()
    assert [line.partition(";")[0] for line in said] == [
        f"{key}: is required and was not given" for key in ("clients", "student", "strategy")
    ]
    (here / "a.yaml").write_bytes(b"\xff\xfe")
    assert "should be a readable text file" in refused("a.yaml")
    assert "there should be one CONFIG, found digits and a.yaml" in refused("digits", "a.yaml")


def test_numbers_are_read_as_people_mean_them(here: Path) -> None:
    (here / "a.yaml").write_text(
        "student: {name: mlp, eps: 1e-3}\nclients: [{model: mlp}]\nname: 2024-01-01\n"
        "strategy: dsfl\n"
        "learning: {private: {optimizer: {lr: 2E-3}}}\n"
    )
    config = load_config("a.yaml", ["strategy.temperature=1e-1", 'execution.out="1e3"'])
    assert config.student.params == {"eps": 0.001}
    assert config.learning.private.optimizer.lr == 0.002
    assert config.strategy.params == {"temperature": 0.1}
    assert config.name == "2024-01-01" and config.execution.out == "1e3"
    with pytest.raises(ConfigError, match="not empty"):
        load_config("a.yaml", ["clients=[]"])


WITHOUT = """
import sys
for name in ("torch", "numpy", "flwr", "ray", "matplotlib"):
    sys.modules[name] = None  # importing it fails
from fedkd.simulate import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "python -m fedkd.simulate --quick"),
        (["--list"], 0, "Entropy-weighted mean of soft labels"),
        (["rounds=0"], 2, "rounds: should be at least 1, found 0"),
        (["strategy={name: entropy", "rounds=1"], 2, "should be valid YAML"),
        (["nowhere.yaml"], 2, "'nowhere.yaml' is neither a file"),
        (["--runtime", "rey", "--explain"], 2, "should be 'ray', 'local' or 'flower'"),
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[str], code: int, said: str) -> None:
    done = command(["-c", WITHOUT, *arguments])
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=500
    )


def test_the_module_is_a_command(here: Path) -> None:
    done = command(["-m", "fedkd.simulate", "seed=-1"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedkd: seed: should be at least 0, found -1; change it")
    done = command(["-m", "fedkd.simulate", "--no-such-option"])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not list(here.iterdir())


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "strategies").mkdir()
    (here / "strategies" / "mine.py").write_text('"""My own."""\ndef mine(power=2.0):\n    ...\n')
    (here / "strategies" / "broken.py").write_text("def broken(:\n")
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for title in ("strategies", "simulations", "models", "sources", "partitions", "losses"):
        assert f"{title}:\n" in said
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in said.splitlines() if line}
    assert lines["mine"] == "My own. [power=2.0]"
    assert lines["broken"].startswith("unusable: syntax error in line 1")
    assert lines["mlp"].endswith("logistic regression. [hidden=(64,)]")
    assert lines["iid"].endswith("sizes differ by one at most.")
    assert lines["digits"].endswith("the default experiment.")


def test_a_run_from_the_command_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main([*SMALL, "--out", "mine", "name=small"]) == 0
    out, err = capsys.readouterr()
    run = here / "mine"
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["Global", "test,", "%"]
    assert any(line.startswith("Student, last round ") for line in lines)
    assert lines[-4:] == [
        "Protected nothing", "Report    mine/report.md",
        "Page      mine/report.html", "All of it mine",
    ]  # fmt: skip
    assert (run / "pictures" / "partition.png").is_file() and (run / "report.html").is_file()
    said = err.splitlines()
    assert said[0] == "load PyTorch" and said[-1] == "report"
    rounds = [line for line in said if line.startswith("round ")]
    assert [line.partition("   ")[0] for line in rounds] == ["round 1/2", "round 2/2"]
    assert all("student" in line and "ensemble" in line and line.endswith(" s") for line in rounds)
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert f"student {100 * records[1]['student']['test']:5.1f}%" in rounds[1]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert json.loads((run / "partition.json").read_text())["models"] == ["mlp hidden=[8]"] * 4
    for name in ("report.md", "report.json", "student.safetensors", "teachers/00003.safetensors"):
        assert (run / name).is_file()
    assert [p.name for p in here.iterdir()] == ["mine"]
    # the same again goes nowhere
    before = tree(here)
    assert main([*SMALL, "--out", "mine"]) == 2
    assert tree(here) == before


def test_quiet_says_nothing_but_the_result(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    switched_off = [f"evaluation.{n}=false" for n in ("teachers", "pooled", "local", "labels")]
    assert main([*SMALL, *switched_off, "--quiet", "rounds=1"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert out.count("Student, last round") == 1
    (run,) = (here / "runs").iterdir()
    assert run.name.startswith("digits-2") and report.final_table(run)


FAILING = """
from fedkd.transforms import mean
from fedkd.types import Step, Strategy, Transform

def failing():
    def apply(state, given, rng):
        if given.asked[0] == 2:
            raise ArithmeticError("the answer is 42")
        return Step({}, given, {})
    return Strategy(combine=mean(), upload=Transform(lambda shape: {}, apply))
"""


def test_a_failing_client_is_told_in_a_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "strategies").mkdir()
    (here / "strategies" / "failing.py").write_text(FAILING)
    asked = [*SMALL, "strategy=failing", "--quiet"]
    assert main([*asked, "--out", "a"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "fedkd: round 2: client 0 failed with ArithmeticError: the answer is 42",
        "fedkd: go on with: python -m fedkd.simulate --resume a",
        "fedkd: --debug shows where",
    ]
    assert json.loads((here / "a" / "run.json").read_text())["status"] == "failed"
    assert len((here / "a" / "records.jsonl").read_text().splitlines()) == 1
    assert main([*asked, "--out", "b", "--debug"]) == 1
    assert 'raise ArithmeticError("the answer is 42")' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "fedkd: interrupted\n"),
        (OSError(28, "No space left"), 1, "fedkd: OSError: [Errno 28] No space left\n"),
        (RuntimeError("one\ntwo"), 1, "fedkd: RuntimeError: one\n"),
        (RuntimeError(), 1, "fedkd: RuntimeError\n"),
        (ConfigError("data: wrong"), 2, "fedkd: data: wrong\n"),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr("fedkd.runs.run", run)
    assert main(["--quiet"]) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and "Traceback" not in err
    assert main(["--quiet", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_quick_lies_between_the_config_and_the_overrides(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(config: object, watch: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedkd.runs.run", run)
    main(["--quick"])
    main(["--quick", "rounds=7", "student={name: mlp, hidden: [3]}", "learning.server.batch=9"])
    main(["multi_teacher", "--quick"])
    plain, changed, other = seen
    assert plain.rounds == 5 and plain.name == "digits-quick"
    assert {m.name for m in plain.models} == {"mlp"} and len(plain.models) == 10
    assert plain.student.params == plain.models[9].params == {"hidden": [64]}
    assert plain.learning.private.optimizer.lr == plain.learning.server.optimizer.lr == 1e-3
    assert plain.learning.private.first_epochs == 30
    assert changed.rounds == 7 and changed.student.params == {"hidden": [3]}
    assert changed.learning.server.batch == 9 and changed.learning.server.optimizer.lr == 1e-3
    assert other.rounds == 1 and other.world.name == "frozen_teachers"


def test_the_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    record = {
        "round": 1,
        "student": {"test": 0.5},
        "ensemble": None,
        "teachers": {"test": [0, 0.5]},
    }
    with progress.watching(3, stream=screen) as watch:
        watch.stage("[start] the runtime")
        watch.round(record, {"clients": 1.0, "server": 0.25})
    said = screen.getvalue()
    assert "1/3" in said and "round 2" in said and "[start] the runtime" in said
    assert "round 1/3   student  50.0%   ensemble    —   mean teacher  25.0%      1.2 s" in said


def test_a_table_fits_the_terminal() -> None:
    lines = [("", "Test, %", "Model"), ("the first of all", "98.0", "a b c d e"), ("x", "—", "b")]
    assert progress.text_of(lines).splitlines() == [
        "                  Test, %  Model",
        "the first of all     98.0  a b c d e",
        "x                       —  b",
    ]
    narrow = progress.text_of(lines, width=22).splitlines()
    assert max(map(len, narrow)) <= 22
    assert [w for line in narrow for w in line.split() if w in ("98.0", "—")] == ["98.0", "—"]


CONFIGS = sorted(p.stem for p in reading.folder().glob("*.yaml"))


def fashion() -> str:
    """Where Fashion-MNIST lies, empty if nowhere."""
    data = Path(os.environ.get("FEDKD_DATA", ROOT.parent / "shared" / "data"))
    return str(data / "fashion_mnist") if (data / "fashion_mnist").is_dir() else ""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_explained(
    name: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    text = reading.find(name).read_text()
    assert text.startswith("# ") and load_config(name).name == name
    overrides = []
    if load_config(name).data.source.name == "idx":
        if not fashion():
            pytest.skip("no Fashion-MNIST: set FEDKD_DATA to the folder that holds fashion_mnist/")
        overrides = [f"data.source.folder={fashion()}"]
    assert main([name, *overrides, "--explain", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert not err and not list(here.iterdir())
    for title in ("Experiment", "Models", "Clients", "Learning", "Cost", "Execution"):
        assert f"{title}\n" in out
    assert "Fingerprint" in out
    raw = yaml.safe_load(text)
    models = raw["clients"][0]["model"]
    assert out.count("\nteachers ") == (len(models) if isinstance(models, list) else 1)


@pytest.mark.slow
def test_nothing_foreign_is_said_under_ray(here: Path) -> None:
    done = command(["-m", "fedkd.simulate", "--quick", "rounds=1"])
    assert done.returncode == 0, done.stderr
    known = ("load", "data:", "caution:", "start", "round", "metrics:", "yardsticks:", "report")
    assert {line.split()[0] for line in done.stderr.splitlines()} == set(known)
    assert done.stdout.splitlines()[-1].startswith("All of it runs/digits-quick-")
