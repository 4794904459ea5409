"""What may import what, and what may not be named where, read from the source text."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "fedkd").rglob("*.py"))
PLUGINS = sorted(p for place in ("strategies", "simulations") for p in (ROOT / place).glob("*.py"))

# From the command lines down to the ground. A module imports from the rows below its own and never
# from its own row, so there are no cycles.
LAYERS = (
    ("__main__", "check", "completion", "export", "metrics", "replay", "simulate", "sweep",
     "verify"),
    ("report", "schema"),
    ("board",),
    ("sweeps",),
    ("runtime.pool",),
    ("contribution", "runtime.ray"),
    ("runs", "runtime.flower", "runtime.local"),
    ("runtime.apps",),
    ("explain", "progress", "results.replaying", "tracking"),
    ("conduct",),
    ("results.final",),
    ("engine", "rehearsal", "reporting.several"),
    ("exchange", "forecast", "observer", "reporting.settings", "reporting.single"),
    ("client", "costs", "results.archive", "tables"),
    ("answers", "bundles", "chronicle", "results.modules", "results.provenance", "tasks"),
    ("assemble", "results.finished", "results.robustness", "sessions", "sources", "summary"),
    ("codecs", "course", "data", "folder", "guarantees", "incidents", "learning", "links",
     "partitions", "rules", "runfolder", "sources.files", "sources.hub"),
    ("asking", "codecs.lossless", "codecs.lossy", "columns", "listing", "optimisers",
     "partitions.by_label", "partitions.by_size", "plugins", "points", "privacy.sgd", "publics",
     "recorded", "reporting.page", "rules.guards", "sources.arrays", "sources.cifar",
     "sources.mnist"),
    ("attacks", "ballots", "coding", "commits", "config", "contract", "encoding", "forms",
     "images", "losses", "partitions.by_value", "pictures", "reporting.document",
     "results.measures", "rules.robust", "rules.weightings", "signatures"),
    ("annotations", "axes", "dealing", "holdings", "mechanisms", "offers", "parameters",
     "privacy.ledger", "privacy.smooth", "reading", "reporting.tabular", "results.hashes",
     "samples", "shell", "stacks", "store", "trackers", "transforms", "wire"),
    ("commands", "cursor", "densities", "disk", "drawing", "faults", "figures", "models",
     "phrases", "pooling", "privacy", "privacy.calibration", "privacy.votes", "reporting",
     "reporting.charts", "reporting.statistics", "results", "rng", "runtime", "runtime.private",
     "types", "unpickling"),
)  # fmt: skip
LEAVES = {
    "types",
    "transforms",
    "rules",
    "annotations",
    "attacks",
    "ballots",
    "codecs",
    "coding",
    "densities",
    "losses",
    "privacy",
    "privacy.ledger",
    "privacy.votes",
    "data",
    "models",
    "rng",
    "wire",
}
WITHOUT_TORCH = (
    "faults", "reading", "offers", "parameters", "config", "plugins", "folder", "recorded",
    "runfolder", "course", "incidents", "summary", "chronicle", "tables", "phrases", "drawing",
    "pictures", "holdings", "report", "sources", "shell", "simulate", "reporting.several",
    "reporting.page", "__main__", "check", "commands", "completion", "listing", "schema",
    "signatures", "axes", "points", "board", "sweep", "results.finished", "results.hashes",
    "replay", "verify", "export", "metrics", "figures", "trackers",
)  # fmt: skip
PUBLIC_FLOWER = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
# the package's front imports these lazily, so that `from fedkd import run` works
FRONT = {"config", "contribution", "runs", "results.modules", "sweeps"}


def module_of(file: Path) -> str:
    """The name within fedkd: `runtime.local`; empty for the package itself."""
    parts = file.relative_to(ROOT / "fedkd").with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imported(file: Path, *, when_loaded: bool = False) -> set[str]:
    """The modules that a file imports; with `when_loaded` only those outside of functions."""
    return set(_imports(ast.parse(file.read_bytes()), when_loaded))


def _imports(node: ast.AST, when_loaded: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute, so that they can be read"
            module = child.module or ""
            for alias in child.names:
                name = f"{module}.{alias.name}"
                yield name if is_module(name) else module
        elif isinstance(child, ast.Call) and "import" in ast.unparse(child.func):
            # importlib.import_module("x"); an f-string gives its constant beginning
            argument = child.args[0] if child.args else None
            if isinstance(argument, ast.JoinedStr):
                argument = argument.values[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)
        hidden = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not (when_loaded and (hidden or typing_only)):
            yield from _imports(child, when_loaded)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def ours(file: Path, *, when_loaded: bool = False) -> set[str]:
    names = imported(file, when_loaded=when_loaded)
    return {n.removeprefix("fedkd.").rstrip(".") for n in names if n.startswith("fedkd.")}


def root_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: module_of(f) or "fedkd")
def test_an_import_goes_only_downwards(file: Path) -> None:
    row = {name: i for i, names in enumerate(LAYERS) for name in names}
    module, found = module_of(file), ours(file)
    if not module:
        assert found <= FRONT
        return
    assert module in row, f"fedkd.{module} has no place in LAYERS"
    # `runtime.` is what is left of import_module(f"fedkd.runtime.{name}")
    strangers = found - row.keys()
    assert not strangers, f"fedkd.{module} imports what has no place in LAYERS: {strangers}"
    upwards = {name for name in found if row[name] <= row[module]}
    assert not upwards, f"fedkd.{module} imports {upwards}, which lie beside or above it"


def test_the_table_holds_every_module_once() -> None:
    names = [name for names in LAYERS for name in names]
    assert sorted(names) == sorted(m for m in map(module_of, FILES) if m)


def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path) -> None:
    """What the other tests stand on: lazy, dynamic and typing-only imports."""
    file = tmp_path / "odd.py"
    file.write_text(
        "import ray.util\nfrom fedkd import wire\nfrom fedkd.types import Ask\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import flwr\n    importlib.import_module(f'fedkd.runtime.{x}')\n"
    )
    late = {"torch", "flwr", "fedkd.runtime."}
    at_once = {"ray.util", "fedkd.wire", "fedkd.types"}
    assert imported(file) == at_once | late
    assert imported(file, when_loaded=True) == at_once


def test_only_the_runtimes_know_flower_and_ray() -> None:
    for file in [*FILES, *PLUGINS]:
        strangers = {n for n in imported(file) if root_of(n) in ("flwr", "ray")}
        if file.is_relative_to(ROOT / "fedkd" / "runtime"):
            continue
        assert not strangers, f"{file.name} imports {strangers}"


def test_private_parts_of_flower_are_used_in_one_file() -> None:
    for file in FILES:
        private = {
            name
            for name in imported(file)
            if root_of(name) == "flwr" and not name.startswith(PUBLIC_FLOWER)
        }
        if module_of(file) == "runtime.private":
            assert private
        else:
            assert not private, f"{file.name} imports {private}"


@pytest.mark.parametrize("file", PLUGINS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_plug_ins_import_only_leaves(file: Path) -> None:
    strangers = ours(file) - LEAVES
    assert not strangers, f"{file} imports {strangers}"
    assert not {root_of(n) for n in imported(file)} & {"strategies", "simulations"}


def test_plug_ins_are_reached_by_name_alone() -> None:
    for file in FILES:
        found = {n for n in imported(file) if root_of(n) in ("strategies", "simulations")}
        assert not found, f"{file.name} imports {found}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_checks_a_config_never_waits_for_torch(module: str) -> None:
    """Along all imports that are made when the module is loaded."""
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        place = ROOT.joinpath("fedkd", *name.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        heavy = {"torch", "safetensors", "flwr", "ray", "flwr_datasets", "sklearn"}
        heavy |= {"datasets", "pandas", "pyarrow", "PIL"}
        found = {root_of(n) for n in imported(file, when_loaded=True)} & heavy
        assert not found, f"fedkd.{module} reaches fedkd.{name}, which imports {found}"
        waiting += ours(file, when_loaded=True)


def test_neither_torch_nor_flower_is_loaded_to_list_or_to_refuse() -> None:
    script = """
import contextlib, io, sys
import fedkd, fedkd.plugins, fedkd.report
from fedkd import simulate
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
    assert simulate.main(["--list"]) == 0
    assert simulate.main(["rounds=none"]) == 2
assert "rounds" in said.getvalue()
loaded = {"torch", "flwr", "ray", "sklearn", "matplotlib.pyplot"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


QUANTITIES = {"entropy"}  # what a record holds, too


def names_of(stem: str) -> re.Pattern[str]:
    """A method as a word of its own or as a part of an identifier: `kt_pfl`, KT-pFL, ktpfl_step.

    One that is called like a quantity is named where it is said to be a method.
    """
    letters = "[-_]?".join(stem.replace("_", ""))
    said = r"(?:strategy|strategies|method|rule)\W+" if stem in QUANTITIES else "(?<![a-z0-9])"
    return re.compile(rf"{said}{letters}(?![a-z0-9])", re.IGNORECASE)


STEMS = [p.stem for p in sorted((ROOT / "strategies").glob("[a-z]*.py"))]


@pytest.mark.parametrize("stem", STEMS)
def test_no_method_is_named_in_the_engine(stem: str) -> None:
    """Not even in a comment: whatever is special to a method is in its own file.

    Excepted are the rules, leaves that methods are made of: one may have the name of a method.
    """
    for file in FILES:
        if file.is_relative_to(ROOT / "fedkd" / "rules"):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            assert not names_of(stem).search(line), f"{file.name}:{number}: {line.strip()}"


def test_names_are_recognised_however_they_are_written() -> None:
    pattern = names_of("kt_pfl")
    assert all(
        pattern.search(t) for t in ("KT-pFL's", "as `kt_pfl` does", "ktpfl_step", "x_kt_pfl")
    )
    assert not pattern.search("ktpflow") and not pattern.search("okt_pfl")
    entropy = names_of("entropy")
    assert entropy.search('strategy: "entropy"') and entropy.search("strategies.entropy import")
    assert not entropy.search("cross_entropy(x)") and not entropy.search('record["entropy"]')
