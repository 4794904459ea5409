"""Which names a config may use, and where they come from, read from source text alone.

A plain name of an open kind (strategy, world) is a file of the folder `strategies/` or
`simulations/` and the function of the same name in it. All such folders count as one: beside this
package, in the working directory, in the `search` folders and on `sys.path`. A plain name of any
other kind is a documented function of `fedkd.models`, of the modules of `fedkd.sources` and so on.
Installed distributions add names by entry points of the groups `fedkd.strategies`, `fedkd.models`,
…
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from fedkd.faults import ConfigError, shown

Kind = Literal[
    "strategy",
    "world",
    "model",
    "source",
    "partition",
    "loss",
    "rule",
    "annotation",
    "codec",
    "mechanism",
    "tracker",
]

PLACES: Mapping[Kind, str] = {
    "strategy": "strategies",
    "world": "simulations",
    "model": "models",
    "source": "sources",
    "partition": "partitions",
    "loss": "losses",
    "rule": "rules",
    "annotation": "annotations",
    "codec": "codecs",
    "mechanism": "mechanisms",
    "tracker": "trackers",
}
OPEN = ("strategies", "simulations")


@dataclass(frozen=True, slots=True)
class Offer:
    """A name that a config may use, described from source text alone."""

    name: str
    summary: str  # first line of the factory's docstring, else of its file's
    signature: str  # as written, with the brackets; empty when it cannot be read
    origin: str  # the file, or the entry point


@dataclass(frozen=True, slots=True)
class Found:
    """Where a plain name leads to, before anybody has looked into the file."""

    name: str
    target: str  # pkg.mod:factory
    file: Path | None
    origin: str


def search_folders() -> tuple[str, ...]:
    """The absolute folders that another process needs as `search` to resolve the same names.

    The working directory first, then the folder of the running script, then every folder on
    `sys.path` that holds `strategies/` or `simulations/`, but not this installation's own.
    """
    here = Path.cwd().resolve()
    script = [Path(sys.path[0]).resolve()] if sys.path and os.path.isdir(sys.path[0]) else []
    rest = [f for f in folders(()) if any(os.path.isdir(f / place) for place in OPEN)]
    own = Path(__file__).resolve().parents[1]
    return tuple(dict.fromkeys(str(f) for f in [here, *script, *rest] if f == here or f != own))


def offers(kind: Kind, search: Sequence[str] = ()) -> list[Offer]:
    """All plain names of a kind, in alphabetical order, without importing anything."""
    described = (describe(found) for found in candidates(kind, search))
    return sorted((o for o in described if o is not None), key=lambda o: (o.name, o.origin))


def folders(search: Sequence[str]) -> tuple[Path, ...]:
    """Every folder in which `strategies/` or `simulations/` may lie, in order of import."""
    own = Path(__file__).resolve().parents[1]
    places = [Path.cwd(), *searched(search), own, *map(Path, sys.path)]
    return tuple(dict.fromkeys(p.resolve() for p in places))


def searched(search: Sequence[str]) -> list[Path]:
    """The `search` folders, absolute. Raises `ConfigError` for what can be no folder."""
    try:
        return [Path(s).expanduser().resolve() for s in search]
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, links in a circle
        raise ConfigError(
            f"execution.search: should name folders, found {shown(list(search))}: {error};"
            " correct it"
        ) from None


def candidates(kind: Kind, search: Sequence[str]) -> Iterator[Found]:
    """Every plain name once per distinct offer: a file with the same bytes is the same offer."""
    place, seen = PLACES[kind], set[tuple[str, object]]()
    for found in _files(place, search) if place in OPEN else _functions(place):
        content = content_of(found.file) if found.file else None
        if (found.name, content) not in seen:
            seen |= {(found.name, content), (found.name, found.target)}
            yield found
    for point in _installed(f"fedkd.{place}", tuple(sys.path)):
        target = point.value.replace(" ", "")
        if (point.name, target) not in seen:
            seen.add((point.name, target))
            by = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
            source = source_of(target.partition(":")[0])
            yield Found(point.name, target, source, f"the entry point {point.name} = {target}{by}")


@lru_cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of the packages on `path`, which is `sys.path`: reading them takes 10 ms."""
    return tuple(entry_points(group=group))


def binds(found: Found) -> bool:
    """Whether a folder's file gives the name any meaning; if not, it is somebody else's file."""
    tree = parsed(found.file) if found.file and found.origin == str(found.file) else None
    if not isinstance(tree, ast.Module):
        return True  # cannot be told
    for node in ast.walk(tree):
        names: tuple[str | None, ...] = ()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            names = (node.name, getattr(node, "asname", None))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = (node.id,)
        if found.name in names:
            return True
    return False


def _files(place: str, search: Sequence[str]) -> Iterator[Found]:
    for folder in folders(search):
        inside = folder / place
        for file in sorted(inside.glob("*.py") if os.path.isdir(inside) else ()):
            name = file.stem
            if name.isidentifier() and not name.startswith("_") and file.is_file():
                yield Found(name, f"{place}.{name}:{name}", file, str(file))


def _functions(place: str) -> Iterator[Found]:
    """The documented functions of a module of ours, or of the modules of a package of ours."""
    home = Path(__file__).resolve().with_name(place)
    files = [home.with_suffix(".py")] if not home.is_dir() else sorted(home.glob("[a-z]*.py"))
    for file in files:
        tree = parsed(file) if file.is_file() else None
        module = f"fedkd.{place}" + (f".{file.stem}" if file.parent == home else "")
        for node in tree.body if isinstance(tree, ast.Module) else ():
            if (
                isinstance(node, ast.FunctionDef)
                and node.name[0] != "_"
                and ast.get_docstring(node)
            ):
                yield Found(node.name, f"{module}:{node.name}", file, str(file))


def content_of(file: Path) -> bytes | Path:
    """The bytes of a file; an unreadable one stands for itself, so as to equal no other."""
    try:
        return file.read_bytes()
    except OSError:
        return file


def source_of(module: str) -> Path | None:
    """The file that a module would be loaded from, found without importing its parents."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def parsed(file: Path) -> ast.Module | str:
    """The syntax tree, or what is wrong with the file."""
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        return f"syntax error in line {error.lineno}: {error.msg}"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def describe(found: Found) -> Offer | None:
    """What the source says of it; None for a folder's file that offers nothing."""
    if found.file is None:
        return Offer(found.name, "", "", found.origin)
    tree = parsed(found.file)
    if isinstance(tree, str):
        return Offer(found.name, f"unusable: {tree}", "", found.origin)
    wanted = found.target.partition(":")[2]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            text = ast.get_docstring(node) or ast.get_docstring(tree) or ""
            signature = f"({ast.unparse(node.args)})"
            return Offer(found.name, text.partition("\n")[0], signature, found.origin)
    # A file that happens to lie in some strategies/ folder offers nothing; an entry point may
    # rightly name a class or an imported function.
    return None if found.origin == str(found.file) else Offer(found.name, "", "", found.origin)
