"""YAML files and `key=value` overrides to one plain tree; `config` knows what may stand in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedkd.faults import ConfigError, did_you_mean

Tree = dict[str, Any]  # Any: nested YAML


def folder() -> Path:
    """The configurations that come with the project: beside the package, or inside its wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "configs"


def find(name: str) -> Path:
    """A path as written, or the name of a configuration that comes with the project."""
    for path in (Path(name), folder() / name, folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(p.stem for p in folder().glob("*.yaml"))
    raise ConfigError(
        f"config: {name!r} is neither a file nor one of the built-in configurations"
        f"{did_you_mean(name, known)}; built in are {', '.join(known)}"
    )


def read(path: Path) -> Tree:
    """A YAML file as a tree. Raises `ConfigError` for what cannot be read or is no mapping."""
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config: {path} should be a readable text file, found: {error}; correct the path"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"config: {path} should be valid YAML, found: {_one_line(error)}; correct it there"
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"config: {path} should hold a mapping of sections, found {type(raw).__name__};"
            " see the built-in configurations for the form"
        )
    return raw


def override(
    raw: Mapping[str, object], item: str, default: Callable[[Sequence[str]], object]
) -> Tree:
    """A copy of the tree with `item`, as in strategy.temperature=0.1, laid over it.

    `default` says what stands at a path of which the tree says nothing.
    """
    key, sign, text = item.partition("=")
    steps = key.split(".")
    if not sign or not all(steps):
        raise ConfigError(
            f"override: should read key=value, as in strategy.temperature=0.1, found {item!r};"
            " quote it in the shell if it holds spaces"
        )
    try:
        value = _parsed(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"override: the value of {key} should be valid YAML, found {text!r}"
            f" ({_one_line(error)}); quote it"
        ) from None
    tree: Tree = _copied(raw)
    node: Any = tree  # Any: nested YAML
    for depth, step in enumerate(steps):
        index = _index(node, step, steps[:depth])
        if depth == len(steps) - 1:
            node[index] = value
            break
        absent = isinstance(node, dict) and index not in node
        below = _copied(default(steps[: depth + 1])) if absent else node[index]
        if isinstance(below, str):  # the short form of a plug-in
            below = {"name": below}
        elif step == "public" and isinstance(below, int):  # the short form of the public set
            below = {"size": below}
        node[index] = {} if below is None else below
        node = node[index]
    return tree


def _index(node: object, step: str, above: Sequence[str]) -> str | int:
    path = ".".join([*above, step])
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise ConfigError(
            f"override: {path} does not exist, because {'.'.join(above)} is the plain value"
            f" {node!r}; set {'.'.join(above)} itself"
        )
    if not step.isdecimal() or int(step) >= len(node):
        raise ConfigError(
            f"override: {path} should be an index from 0 to {len(node) - 1}, found {step!r};"
            f" or set the whole list {'.'.join(above)}=[…]"
        )
    return int(step)


def _copied(value: Any) -> Any:  # Any: nested YAML
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(inner) for inner in value]
    return value


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, a date is text, a key given twice is a mistake."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:  # Any: as in PyYAML
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


def _parsed(text: str) -> object:
    return yaml.load(text, Loader=_Loader)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error) or type(error).__name__
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return " ".join(str(said).split()) + where
