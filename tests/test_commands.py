"""`fedkd WORD …`: the words, their help, what is listed, the schema, completion in a real shell."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fedkd import __version__, completion, listing, offers, reading, schema, signatures
from fedkd.__main__ import main
from fedkd.commands import COMMANDS
from fedkd.config import ConfigError, load_config

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "flwr", "ray", "datasets", "sklearn", "matplotlib")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120
    )


# what a word's --help says and what it has imported by then
HELP = f"""
import sys
sys.argv = ["/usr/bin/fedkd", sys.argv[1], "--help"]
from fedkd.__main__ import main
try:
    code = main()
except SystemExit as ended:
    code = ended.code
print("\\nLOADED", *sorted({{*{HEAVY!r}}} & set(sys.modules)))
sys.exit(code)
"""


THERE = [word for word in COMMANDS if (ROOT / "fedkd" / f"{word}.py").is_file()]


def test_the_table_is_complete() -> None:
    """Each word has its module, and each module that is a command its word."""
    assert {c.module for c in COMMANDS.values()} == {f"fedkd.{word}" for word in COMMANDS}
    assert COMMANDS.keys() == set(THERE)
    for file in (ROOT / "fedkd").glob("[a-z]*.py"):
        functions = [n for n in ast.parse(file.read_bytes()).body if isinstance(n, ast.FunctionDef)]
        assert ("main" in {f.name for f in functions}) == (file.stem in COMMANDS), file.name


PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def test_the_page_names_every_word() -> None:
    assert [word for word in COMMANDS if f"| `{word}` |" not in PAGE] == []


@pytest.mark.parametrize("word", [word for word in THERE if f"\n## `fedkd {word}`\n" in PAGE])
def test_the_page_names_every_option(word: str) -> None:
    section = PAGE.partition(f"\n## `fedkd {word}`\n")[2].partition("\n## ")[0]
    options = {o for o in completion.options_of(word) if o != "--help"}
    assert {o for o in options if o not in section} == set()


@pytest.mark.parametrize("word", THERE)
def test_every_word_has_help_that_waits_for_nothing(word: str) -> None:
    done = python("-c", HELP, word)
    assert done.returncode == 0, done.stderr
    said, _, loaded = done.stdout.partition("\nLOADED")
    assert said.startswith(f"usage: fedkd {word} ")
    assert not loaded.split()


def test_the_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    for word, command in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [word, command.summary] for line in lines)
    assert "examples:" in said and "exit codes: 0 done, 1 failed on the way, 2 a fault" in said
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err == said
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedkd {__version__}\n"


def test_a_misspelt_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulat", "--quick"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(
        "fedkd: there is no command 'simulat' (did you mean simulate?); there are"
    )


@pytest.mark.parametrize(
    ("called", "typed"),
    [
        ("/home/me/.venv/bin/fedkd", "fedkd schema"),
        ("/home/me/fedkd/__main__.py", "python -m fedkd schema"),
        ("/home/me/fedkd/schema.py", "python -m fedkd.schema"),
        ("/home/me/.venv/bin/pytest", "python -m fedkd.schema"),
    ],
)
def test_help_shows_what_was_typed(
    called: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SystemExit):
        schema.main(["--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {typed} [-h]")
    assert f"  {typed} --out fedkd.schema.json\n" in said


def test_python_m_fedkd_is_the_same_command() -> None:
    done = python("-m", "fedkd", "simulate", "rounds=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedkd: rounds: should be at least 1, found 0")


def test_a_kind_is_listed_with_its_parameters(here: Path) -> None:
    said = listing.listed("strategies")
    for name in ("dsfl", "entropy", "fedavg", "fedmd", "kt_pfl", "scarlet"):
        assert f"\nstrategy {name}: " in said
    assert "    temperature: float = 0.2, above 0\n" in said
    assert "    rows: int | None = 1000, at least 1\n" in said
    assert "kl(" not in listing.listed("models") and "model cnn: " in listing.listed("models")
    # also by the name of one of them, and by what people call it
    assert listing.listed("strategy") == listing.listed("methods") == said
    assert listing.listed("datasets") == listing.listed("sources")
    assert "\n  digits " in listing.listed("configs")


def test_one_name_is_listed_in_full(here: Path) -> None:
    said = listing.listed("dsfl")
    assert said.startswith("strategy dsfl: DS-FL: distillation-based")
    assert "    aggregation: Literal['era', 'sa'] = 'era'\n" in said
    assert "SA: q = mean_k p_k." in said and "strategy=dsfl" in said
    assert f"  from      {ROOT / 'strategies' / 'dsfl.py'}\n" in said  # and a config of that name
    said = listing.listed("csv")
    assert "    file: str | tuple[str, ...]  (required)\n" in said
    assert "data.source={name: csv, file: …, label: …}" in said
    both = listing.listed("digits")
    assert "source digits: " in both and "config digits:\n    # Ten clients" in both
    (here / "strategies").mkdir()
    (here / "strategies" / "mine.py").write_text(
        "from elsewhere import Odd\ndef mine(power: Odd, *, base: 'int' = 2, **rest):\n"
        '    """My own."""\n'
    )
    assert listing.listed("mine").splitlines() == [
        "strategy mine: My own.",
        "    power: Odd  (required)",
        "    base: int = 2",
        "    and whatever else is given",
        "  named by  strategy={name: mine, power: …}",
        "  from      strategies/mine.py",
    ]


@pytest.mark.parametrize("wrong", ["dsfk", "model s", "", "stratgies"])
def test_what_is_not_there_is_not_listed(wrong: str) -> None:
    if not wrong:
        assert all(f"{place}:\n" in listing.listed() for place in offers.PLACES.values())
        return
    with pytest.raises(ConfigError, match=r"^--list: should name a kind .*\(did you mean ") as told:
        listing.listed(wrong)
    assert "--list alone shows all names" in str(told.value)


SCHEMA = schema.schema()
VALID = Draft202012Validator(SCHEMA)


def faults(tree: object) -> list[str]:
    return [error.json_path for error in VALID.iter_errors(tree)]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    # every place of a plug-in is known with its kind
    assert set(schema.places_of_plugins()) == set(schema.PLUGINS)


@pytest.mark.parametrize("path", sorted(reading.folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_built_in_configs_fit_the_schema(path: Path) -> None:
    assert not faults(reading.read(path))
    # also with all defaults written out, as in a run folder
    assert not faults(load_config(path).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("strategi=dsfl", "$"),
        ("rounds=0", "$.rounds"),
        ("rounds=many", "$.rounds"),
        ("strategy={name: dsfl, temprature: 1}", "$.strategy"),
        ("strategy={name: dsfl, temperature: 0}", "$.strategy"),
        ("strategy=dsfk", "$.strategy"),
        ("student={name: mlp, hidden: 64}", "$.student"),
        ("clients.0.model=mlq", "$.clients[0].model"),
        ("data.source=csv", "$.data.source"),  # needs a file and a label
        ("data.partition={name: iid, alpha: 1}", "$.data.partition"),
        ("data.public={nose: uniform}", "$.data.public"),
        ("learning.private.optimizer={name: sgd, momentun: 0.9}", "$.learning.private.optimizer"),
        ("learning.private.loss=kk", "$.learning.private.loss"),
        ("execution.runtime=rey", "$.execution.runtime"),
        ("combine=medain", "$.combine"),
        ("codecs.up={name: uniform, bitz: 4}", "$.codecs.up"),
        ("execution.trackers=[wandb, mlfow]", "$.execution.trackers"),
        ("name=a/b", "$.name"),
    ],
)
def test_what_a_config_refuses_the_schema_refuses(override: str, place: str) -> None:
    tree = reading.override(reading.read(reading.find("digits")), override, lambda steps: {})
    assert faults(tree) == [place]


@pytest.mark.parametrize(
    "override",
    [
        "strategy=my_lab.rules:my_rule",
        "strategy={name: my_lab:rule, whatever: 3}",
        "clients.0.model=mlp",
        "clients.0.model=[mlp, {name: cnn, hidden: 8}]",
        "data.public=[300, {noise: pink}]",
        "data.partition={name: natural_id, by: hospital}",
        "learning.private.optimizer=adam",
        "learning.private.optimizer={name: sgd, momentum: 0.9}",
        "learning.private.optimizer={lr: 0.1}",
        "learning.private.optimizer={name: 'torch.optim:Adagrad', eps: 1}",
        "learning.private.schedule={name: StepLR, step_size: 5}",
        "combine=median",
        "combine={name: trimmed_mean, share: 0.2}",
        "annotate=auto",
        "codecs.up=fp16",
        "codecs={up: [delta, {name: uniform, bits: 4}], down: []}",
        "execution.trackers=tensorboard",
        "learning.client.loss=auto",
        "learning.client.loss={name: kl, temperature: 2}",
    ],
)
def test_what_a_config_takes_the_schema_takes(override: str) -> None:
    tree = reading.override(reading.read(reading.find("digits")), override, lambda steps: {})
    load_config(tree)
    assert not faults(tree)


def test_the_schema_knows_what_is_offered_here(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "strategies").mkdir()
    text = "import torch\ndef mine(power: float = 2.0): ...\n"
    (here / "strategies" / "mine.py").write_text(text)
    assert schema.main(["--out", "made.json"]) == 0
    valid = Draft202012Validator(json.loads((here / "made.json").read_text()))
    tree: dict[str, Any] = reading.read(reading.find("digits"))
    assert valid.is_valid(tree | {"strategy": {"name": "mine", "power": 3}})
    assert not valid.is_valid(tree | {"strategy": {"name": "mine", "power": "three"}})
    assert not valid.is_valid(tree | {"strategy": {"name": "mine", "powr": 3}})
    assert schema.main([]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((here / "made.json").read_text())
    assert schema.main(["--out", "no/such/folder.json"]) == 2
    assert "no/such/folder.json could not be written" in capsys.readouterr().err


HOSTILE = """
from pathlib import Path
from typing import Annotated, Literal
from pydantic import Field
import nowhere
Loop = list[Loop]
Tower = Annotated[int, Field(le=9**9**9**9)]
Written = Annotated[int, Field(le=Path("ran").write_text("ran"))]
def odd(loop: Loop, tower: Tower, written: Written, far: nowhere.Thing, broken: "list[",
        bare: Annotated[int], pattern: Annotated[str, Field(pattern="(")],
        default: dict = {1: {2, 3}}, other=print("ran"), fine: Literal[1, 2] = 1): ...
"""


def test_an_annotation_is_read_and_never_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "strategies").mkdir()
    (here / "strategies" / "odd.py").write_text(HOSTILE)
    (odd,) = (s for s in signatures.signatures("strategy") if s.offer.name == "odd")
    assert len(listing.listed("odd").splitlines()) == 13
    known = {p.name: p.schema() for p in odd.parameters}
    assert known["fine"] == {"enum": [1, 2], "type": "integer", "default": 1}
    assert [known[n] for n in ("tower", "written", "far", "broken", "bare", "other")] == [{}] * 6
    assert "default" not in known["default"]
    Draft202012Validator.check_schema(schema.schema())
    assert not (here / "ran").exists() and not capsys.readouterr().out


# what stands behind `fedkd`, the last word being completed
ASKED: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "words": (["sch"], ["schema"]),
    "options": (["simulate", "--re"], ["--resume"]),
    "values of an option": (["simulate", "--runtime", ""], ["flower", "local", "ray"]),
    "behind its sign": (["simulate", "--runtime=l"], ["--runtime=local"]),
    "names to be listed": (["simulate", "--list", "ds"], ["dsfl"]),
    "configs": (["simulate", "multi"], ["multi_teacher"]),
    "keys": (["simulate", "evaluation.l"], ["evaluation.labels=", "evaluation.local="]),
    "sections": (["simulate", "comp"], ["compute."]),
    "a list of plug-ins": (["simulate", "codecs.u"], ["codecs.up.", "codecs.up="]),
    "names in a list": (["simulate", "codecs.up=delt"], ["codecs.up=delta"]),
    "a rule": (["simulate", "combine=trimmed_mean", "combine.s"], ["combine.share="]),
    "trackers": (["simulate", "execution.trackers=tens"], ["execution.trackers=tensorboard"]),
    "of the named": (["simulate", "strategy=dsfl", "strategy.a"], ["strategy.aggregation="]),
    "of the config's": (["simulate", "digits", "strategy.t"], ["strategy.temperature="]),
    "names": (["simulate", "strategy=scarl"], ["strategy=scarlet"]),
    "names beside others": (["simulate", "strategy.name=scarl"], ["strategy.name=scarlet"]),
    "choices": (["simulate", "strategy=dsfl", "strategy.aggregation=e"],
                ["strategy.aggregation=era"]),
    "in lists": (["simulate", "clients.0.model=le"], ["clients.0.model=lenet5"]),
    "indices": (["simulate", "clients."], ["clients.0."]),
    "flags": (["simulate", "evaluation.local="],
              ["evaluation.local=false", "evaluation.local=true"]),
    "a method": (["check", "sca"], ["scarlet"]),
    "its parameter": (["check", "dsfl", "agg"], ["aggregation="]),
    "its value": (["check", "dsfl", "aggregation=s"], ["aggregation=sa"]),
    "shells": (["completion", "z"], ["zsh"]),
    "folders are the shell's own": (["simulate", "--resume", ""], []),
    "numbers are anybody's own": (["simulate", "rounds="], []),
    "nothing": (["simulatte", ""], []),
}  # fmt: skip


@pytest.mark.parametrize("about", ASKED)
def test_a_word_is_completed(about: str) -> None:
    words, expected = ASKED[about]
    assert completion.candidates(words) == list(expected)


BASH = """
source {script}
COMP_LINE=$1 COMP_POINT=${{#1}}
_fedkd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("fedkd comp", ["completion"]),
        ("fedkd simulate --quick --ru", ["--runtime"]),
        # bash takes what stands before = for a word of its own
        ("fedkd simulate strategy=dsfl strategy.aggregation=", ["era", "sa"]),
        ("fedkd simulate clients.0.model=ml", ["mlp"]),
        ("fedkd simulate rounds=", []),
    ],
)
def test_in_bash(here: Path, line: str, replies: list[str]) -> None:
    (here / "script").write_text(completion.SCRIPTS["bash"])
    command = here / "fedkd"  # as pip would install it, but without torch to be had
    blocked = f"for name in {HEAVY!r}: sys.modules[name] = None"
    command.write_text(
        f"#!{sys.executable}\nimport sys\n{blocked}\nfrom fedkd.__main__ import main\n"
        "sys.exit(main())\n"
    )
    command.chmod(0o755)
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH.format(script=here / "script"), "bash", line],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr
    assert [word for word in done.stdout.splitlines() if word] == replies


def test_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert completion.main([shell]) == 0
        said = capsys.readouterr().out
        assert said == completion.SCRIPTS[shell] and "completion --words" in said
    with pytest.raises(SystemExit) as ended:
        completion.main(["tcsh"])
    assert ended.value.code == 2
