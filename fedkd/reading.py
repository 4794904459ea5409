"""YAML files and `key=value` overrides to one plain tree; `config` knows what may stand in it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedkd.faults import ConfigError, did_you_mean, shown, written

Tree = dict[str, Any]  # Any: nested YAML

# what no experiment needs and every hostile file does
_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000
_DEEPEST = 30
_MOST_DIGITS = 100


def folder() -> Path:
    """The configurations that come with the project: beside the package, or inside its wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "configs"


def built_in() -> dict[str, Path]:
    """The configurations that come with the project, by name: a path without its ending."""
    root = folder()
    found = sorted(root.rglob("*.yaml"), key=lambda p: (len(p.parts), p))
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in found}


def find(name: str) -> Path:
    """A path as written, or the name of a configuration that comes with the project."""
    for path in (Path(name), folder() / name, folder() / f"{name}.yaml"):
        try:
            if path.is_file():
                return path
        except OSError:  # a name that no file system takes, a folder that may not be looked into
            continue
    known = list(built_in())
    raise ConfigError(
        f"config: {shown(name)} is neither a file nor one of the built-in configurations"
        f"{did_you_mean(name, known)}; built in are {', '.join(known)}"
    )


def read(path: Path) -> Tree:
    """A YAML file as a tree. Raises `ConfigError` for what cannot be read or is no mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(
                f"config: {path} should be of at most {_MOST_BYTES:,} bytes, found more; is it"
                " a config?"
            )
        raw = _parsed(content.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config: {path} should be a readable text file, found: {error}; correct the path"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"config: {path} should be valid YAML, found: {_one_line(error)}; correct it there"
        ) from None
    return plain(raw, path)


def plain(tree: object, origin: object = "the mapping") -> Tree:
    """A copy of a tree in the values that every config is made of, whole and of bounded size.

    A tuple becomes a list and a number that is a key becomes text, as in JSON. Raises `ConfigError`
    where it is no mapping, and for what no plug-in could be given safely: other types, text that is
    no Unicode or holds a NUL, values without end.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"config: {origin} should hold a mapping of sections, found {type(tree).__name__};"
            " see the built-in configurations for the form"
        )
    copied: Tree = _copied(tree, (), [0])
    return copied


def yaml_of(tree: Mapping[str, object]) -> str:
    """A tree as YAML that `read` gives back as it is."""
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    assert isinstance(text, str)
    return text


def override(
    raw: Mapping[str, object], item: str, default: Callable[[Sequence[str]], object]
) -> Tree:
    """A copy of the tree with `item`, as in strategy.temperature=0.1, laid over it.

    `default` says what stands at a path of which the tree says nothing.
    """
    key, sign, text = item.partition("=")
    steps = key.split(".")
    if not sign or not all(steps) or len(steps) > _DEEPEST or len(item) > _MOST_BYTES:
        raise ConfigError(
            "override: should read key=value, as in strategy.temperature=0.1, found"
            f" {shown(item)}; quote it in the shell if it holds spaces"
        )
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override: the value of {written(steps)} should be valid YAML, found {shown(text)}"
            f" ({_one_line(error)}); quote it"
        ) from None
    tree: Tree = copy.deepcopy(dict(raw))
    node: Any = tree  # Any: nested YAML
    for depth, step in enumerate(steps):
        index = _index(node, step, steps[:depth])
        if depth == len(steps) - 1:
            node[index] = value
            break
        absent = isinstance(node, dict) and index not in node
        below = copy.deepcopy(default(steps[: depth + 1])) if absent else node[index]
        if isinstance(below, str):  # the short form of a plug-in
            below = {"name": below}
        elif step == "public" and isinstance(below, int):  # the short form of the public set
            below = {"size": below}
        node[index] = {} if below is None else below
        node = node[index]
    return plain(tree)


def _index(node: object, step: str, above: Sequence[str]) -> str | int:
    path, whole = written([*above, step]), written(above)
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise ConfigError(
            f"override: {path} does not exist, because {whole} is found to be the plain value"
            f" {shown(node)}; set {whole} itself"
        )
    if not node:
        raise ConfigError(
            f"override: {path} should be in a list, found {whole} empty; set the whole list"
            f" {whole}=[…]"
        )
    if not step.isdecimal() or len(step) > len(str(_MOST_VALUES)) or int(step) >= len(node):
        raise ConfigError(
            f"override: {path} should be an index from 0 to {len(node) - 1}, found {shown(step)};"
            f" or set the whole list {whole}=[…]"
        )
    return int(step)


def _copied(value: Any, at: tuple[str, ...], seen: list[int]) -> Any:  # Any: nested YAML
    """`seen` counts the values that were copied; an alias counts wherever it stands."""
    seen[0] += 1
    if seen[0] > _MOST_VALUES or len(at) > _DEEPEST:
        raise ConfigError(
            f"config: should hold at most {_MOST_VALUES:,} values, {_DEEPEST} levels deep, found"
            f" more at {written(at[:3])}; aliases count wherever they stand: write less of them"
        )
    if isinstance(value, Mapping):
        return _mapping(value, at, seen)
    if isinstance(value, (list, tuple)):
        return [_copied(inner, (*at, str(i)), seen) for i, inner in enumerate(value)]
    if isinstance(value, str):
        return _text(value, at)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MOST_DIGITS:
        raise ConfigError(
            f"{written(at)}: should be a number of at most {_MOST_DIGITS} digits, found more;"
            " lower it"
        )
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise ConfigError(
        f"{written(at)}: should be text, a number, true, false, null, a list or a mapping, found"
        f" {shown(value)} ({type(value).__name__}); write it as one of these"
    )


def _mapping(value: Mapping[object, object], at: tuple[str, ...], seen: list[int]) -> Tree:
    copied: Tree = {}
    for key, inner in value.items():
        number = isinstance(key, int) and not isinstance(key, bool) and abs(key) < 2**63
        name = str(key) if number else key
        if not isinstance(name, str) or name in copied:
            raise ConfigError(
                f"{written(at) or 'config'}: should hold keys that are text, each once, found"
                f" {shown(key)}; write it in quotes, or once"
            )
        copied[_text(name, at)] = _copied(inner, (*at, name), seen)
    return copied


def _text(value: str, at: tuple[str, ...]) -> str:
    try:
        value.encode()
        if "\0" not in value:
            return value
    except UnicodeEncodeError:  # half of a character
        pass
    raise ConfigError(
        f"{written(at) or 'config'}: should be text of Unicode characters without NUL, found"
        f" {shown(value)}; correct it"
    )


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, a date is text, a key given twice is a mistake.

    What is too large is refused while it is read, and no tag makes anything but plain values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed = self._merged = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # Any: as in PyYAML
        self._composed, self._depth = self._composed + 1, self._depth + 1
        if self._composed > 2 * _MOST_VALUES or self._depth > _DEEPEST + 1:  # keys are nodes, too
            raise yaml.composer.ComposerError(
                problem=f"more than {_MOST_VALUES:,} values or {_DEEPEST} levels",
                problem_mark=self.get_mark(),
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # Any: as in PyYAML
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # of the scalar's own constructor
            raise yaml.constructor.ConstructorError(
                problem=f"{shown(node.value)} is no {node.tag.rpartition(':')[2]} ({error})",
                problem_mark=node.start_mark,
            ) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # comes here again for each mapping that `<<` names
        self._merged += len(node.value)
        if self._merged > 2 * _MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                problem=f"more than {_MOST_VALUES:,} keys by way of <<",
                problem_mark=node.start_mark,
            )

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:  # Any: as in PyYAML
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {shown(key.value)} is given twice",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None
    or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """The inverse: quotes whatever `_Loader` would take for something else than text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _parsed(text: str) -> object:
    return yaml.load(text, Loader=_Loader)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error) or type(error).__name__
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    text = " ".join(str(said).split())
    return (text if text.isprintable() and len(text) <= 200 else shown(text, 200)) + where
