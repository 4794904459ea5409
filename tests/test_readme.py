"""The pages: code runs, configs load, commands parse, links lead somewhere."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import pytest
import torch
import yaml

import fedkd
from fedkd import commands, contract, listing, plugins, reading, simulate
from fedkd.config import Config, load_config
from fedkd.types import Strategy, World, predictions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BUILT_IN = set(reading.built_in())
# what a run in a page is cut down to, so that it takes a second
SMALL = (
    "execution.runtime=local",
    "rounds=1",
    "clients.0.count=2",
    "clients.0.model={name: mlp, hidden: [8]}",
    "student={name: mlp, hidden: [8]}",
    "learning.private.first_epochs=1",
    "learning.server.first_epochs=1",
    "evaluation={pooled: false, local: false, labels: false}",
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OWN_FILE = re.compile(r'"""((?:strategies|simulations)/(\w+)\.py): ')


class Parsed(BaseException):
    """Carries what a parser made of its arguments past the command that would now begin."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given


class Block(NamedTuple):
    """A fenced block, or a line of one, and where it stands."""

    place: str
    text: str


def blocks(kind: str) -> list[Block]:
    """All fenced blocks of a kind, each named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 2
            found += [Block(f"{page.name}:{line}", block[2])] * (block[1] == kind)
    return found


def named(block: Block) -> str:
    return block.place


CODE = [b for b in blocks("python") if not _OWN_FILE.match(b.text)]
FILES = [b for b in blocks("python") if _OWN_FILE.match(b.text)]
COMMANDS = [
    Block(f"{b.place} {line.partition('#')[0].strip()}", line)
    for b in blocks("console")
    for line in b.text.splitlines()
    if line.startswith(("python -m fedkd", "fedkd "))
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory of one's own; what it offers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_every_kind_of_block_is_there() -> None:
    assert CODE and FILES and COMMANDS and blocks("yaml")


@pytest.mark.parametrize("block", CODE, ids=named)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has the files of the same page."""
    for other in FILES:
        if other.place.partition(":")[0] == block.place.partition(":")[0]:
            saved(other, tmp_path)
    monkeypatch.setattr(fedkd, "load_config", _small)
    exec(compile(block.text, block.place, "exec"), {"__name__": "page"})


def _small(source: str, overrides: Sequence[str] = ()) -> Config:
    return load_config(source, [*overrides, *SMALL])


@pytest.mark.parametrize("block", FILES, ids=named)
def test_a_file_of_a_page_runs_by_its_name(block: Block, tmp_path: Path) -> None:
    """Saved where its first line says, in the working directory, as a reader would."""
    found = saved(block, tmp_path)
    kind: Literal["strategy", "world"] = "strategy" if "strategies" in found[1] else "world"
    (record,) = fedkd.run(_small("digits", [f"{kind}={found[2]}"])).records
    assert 0 <= record["student"]["test"] <= 1
    made = plugins.resolve(kind, found[2])()
    assert isinstance(made, World if kind == "world" else Strategy)
    if isinstance(made, Strategy):
        _keeps_the_contract(made)


def saved(block: Block, folder: Path) -> re.Match[str]:
    """Save a file of a page where its first line says; gives path and name."""
    found = _OWN_FILE.match(block.text)
    assert found
    file = folder / found[1]
    file.parent.mkdir(exist_ok=True)
    file.write_text(block.text, encoding="utf-8")
    return found


def _keeps_the_contract(strategy: Strategy) -> None:
    rng = torch.Generator().manual_seed(0)
    for j, r, c in ((1, 3, 4), (4, 6, 3), (5, 2, 5)):
        given = predictions(
            5 * torch.randn(j, r, c, generator=rng),
            "logits",
            mask=torch.rand(j, r, generator=rng) >= 0.3,
            asked=torch.ones(j, dtype=torch.int64),
        )
        for law in contract.EVERY:
            law(strategy, given)


def test_the_smallest_strategy_is_five_lines() -> None:
    (small,) = (b for b in FILES if b.place.startswith("README"))
    assert len(small.text.splitlines()) == 5


def whole(text: str) -> dict[str, Any]:
    """A config as YAML, or sections of one (of a list the last), laid over the default."""
    read = yaml.safe_load(text)
    tree: dict[str, Any] = read[-1] if isinstance(read, list) else read
    complete = {"strategy", "student", "clients"} <= tree.keys()
    return tree if complete else {**reading.read(reading.find("digits")), **tree}


@pytest.mark.parametrize("block", blocks("yaml"), ids=named)
def test_yaml_loads_and_names_what_there_is(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump(whole(block.text)), encoding="utf-8")
    if ":spirals" in block.text:  # a file of the page
        (code,) = (b for b in CODE if "def spirals" in b.text)
        (tmp_path / "my_data.py").write_text(code.text, encoding="utf-8")
    config = load_config(file)
    plugins.build("strategy", config.strategy, expect=Strategy, where="strategy")
    plugins.build("world", config.world, expect=World, where="world")
    plugins.bind("source", config.data.source, search=(str(tmp_path),), where="data.source")
    plugins.bind("partition", config.data.partition, taken=3, where="data.partition")
    for model in (*config.models, config.student):
        plugins.bind("model", model, taken=2, where="model")


@pytest.mark.parametrize("command", COMMANDS, ids=named)
def test_commands_parse(command: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, _stopping(name))
    module, *arguments = shlex.split(command.text.removeprefix("python -m "), comments=True)
    if module == "fedkd":
        word, *arguments = arguments
        module = commands.COMMANDS[word].module
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(module).main(arguments)
    if module == simulate.__name__:
        given = parsed.value.given
        names = [word for word in given.words if "=" not in word]
        if given.list:
            listing.listed(given.list)
        assert set(names) <= BUILT_IN or names[0].endswith(".yaml")
        overrides = [word for word in given.words if "=" in word]
        if given.runtime:
            overrides.append(f"execution.runtime={given.runtime}")
        load_config(names[0] if set(names) & BUILT_IN else "digits", overrides)


def _stopping(name: str) -> Callable[..., NoReturn]:
    real = getattr(argparse.ArgumentParser, name)

    def parse(self: argparse.ArgumentParser, arguments: list[str]) -> NoReturn:
        raise Parsed(real(self, arguments))

    return parse


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))
        assert set(named) <= targets, f"{page.name} names a target that is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = _LINK.findall(_BLOCK.sub("", text))
    assert links
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert ROOT in target.parents
        if heading:
            assert heading in _headings(target), f"{page.name} links to {link}, no such heading"


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = [p.relative_to(ROOT / "fedkd").with_suffix("") for p in ROOT.glob("fedkd/**/*.py")]
    names = {file.as_posix() for file in files if file.name != "__init__"}
    assert {name for name in names if f"`{name}`" in text} == names


def test_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = {path.stem for path in (ROOT / "strategies").glob("[a-z]*.py")}
    methods = text.partition("\n## Methods\n")[2].partition("\n## ")[0]
    assert {name for name in files if f"`{name}`" in methods} == files
