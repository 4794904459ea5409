"""Configurations at random: drawn from the schema itself, then broken in as many ways as we know.

A case is a function of its number. What may stand in a section is read from `Config`, what a
plug-in takes from its signature, and which plug-ins there are from `fedkd.offers`, so that a new
key or method is tried without a change here.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
import math
import pathlib
import random
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import small
import torch
import yaml
from pydantic import TypeAdapter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedkd import offers, parameters, plugins
from fedkd.config import Config

Json = dict[str, Any]  # a JSON schema, or a config tree
Path = tuple[str | int, ...]

# what the caller of a plug-in fills in, by kind
_TAKEN: Mapping[offers.Kind, int] = {"model": 2, "partition": 3, "mechanism": 2}
# which kind a key names where it is not called so; None for what torch offers
_KINDS: Mapping[str, offers.Kind | None] = {
    "student": "model", "schedule": None, "combine": "rule", "annotate": "annotation",
    "up": "codec", "down": "codec", "trackers": "tracker", "answers": "mechanism",
}  # fmt: skip
_TORCH: Mapping[str, tuple[Any, type]] = {
    "schedule": (torch.optim.lr_scheduler, LRScheduler),
    "optimizer": (torch.optim, Optimizer),
}
_WORDS = ("a", "fine-name", "x_1.y", "B", "two words")

# YAML as one writes it, where a value is expected
ODD = (
    "null", "true", "''", "text", "[]", "{}", "[[]]", "-1", "0", "0.5", "1e400", "-.inf", ".nan",
    "1e-3", "'1e-3'", "1e-320", "1e308", "9223372036854775807", "9223372036854775808",
    "1000000000", "1000000000000", "-1000000000000000000000000000000", "9" * 90, "9" * 5000,
    "0x" + "f" * 5000, "0x_", "0b_", "1:2:3:4", "1" + ":59" * 400, "2024-01-01", "!!int abc",
    "!!float x", "!!bool maybe", "!!timestamp never", "!!binary aGVsbG8=", "!!binary '*'",
    "!!set {a, b}", "!!omap [a: 1]", "!!str 3", "!!null x", "!unknown 3", "*nowhere",
    "&itself [*itself]", "&itself {a: *itself}", "{<<: 3}", "{<<: [3]}", "{? [1, 2] : 3}",
    "{1: 2}", "{null: x}", "{true: x}", "{name: }", "{name: {name: mlp}}", "{name: [mlp]}",
    "{name: ''}", "{'': 1}", "{name: mlp, '': 1}", "{name: mlp, 3: 4}", "{name: mlp, self: 1}",
    "{name: mlp, classes: 3}", "{name: entropy, temperature: [1]}", "{name: mlp, hidden: 64}",
    "{name: mlp, hidden: [1000000000]}", "{name: mlp, hidden: [65536, " + "65536, " * 6 + "1]}",
    "{name: mlp, hidden: [0]}", "{name: cnn, channels: []}", "{name: resnet_gn, blocks: 1000000}",
    "{name: resnet_gn, width: 1000000000000}", "{name: dirichlet, alpha: 1e-300}",
    "{name: inner_dirichlet, alpha: 1e-300}", "{name: dirichlet, min_size: 1000000000000}",
    "{name: idx, folder: ''}", '{name: idx, folder: "a\\0b"}', "{name: idx, folder: '~nowhere/x'}",
    "{name: 'torch.optim:SGD', params: 3}", "{name: 'torch.optim:LBFGS'}", "torch.optim:Optimizer",
    "torch.optim:SparseAdam", "torch.optim:lr_scheduler", "StepLR", "{name: StepLR, step_size: 0}",
    "{name: LambdaLR, lr_lambda: text}", "ReduceLROnPlateau", "{name: ExponentialLR, gamma: 1e300}",
    "{name: CosineAnnealingLR, T_max: 0}", "{name: OneCycleLR, max_lr: 1, total_steps: 2}",
    "LRScheduler", "sys:exit", "torch.nn:Flatten", "torch.nn:Identity",
     "json:loads", "math:pi", "nowhere:f", "a:b:c", ":",
    "strategies", "strategies.entropy:entropy", "fedkd.losses:kl", "os.path:join", "import:x",
    "'é:ü'", "'entropy\\n'", "'../entropy'", "entropi", "Entropy", "kl", "kl_at", "mse", "digits",
    "../x", "/etc/passwd", "/", "'~'", "'~nowhere'", '"a\\0b"', '"a\\nb: c"', '"\\e[31mred"',
    '"\\ud800"', "日本語", "'\u202e'", "x" * 5000, "'" + "../" * 400 + "'", "[" * 30 + "]" * 30,
    "[" * 500 + "]" * 500, "[" * 50_000, "{a: " * 40 + "1" + "}" * 40,
    "[" + "1, " * 3000 + "1]", "{name: mlp, hidden: [" + "1, " * 200 + "1]}",
)  # fmt: skip

_LAUGHS = "laugh0: &laugh0 ha\n" + "".join(
    f"laugh{i}: &laugh{i} [{', '.join([f'*laugh{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
_MERGES = "laugh0: &laugh0 {ha: 1}\n" + "".join(
    f"laugh{i}: &laugh{i} {{<<: [{', '.join([f'*laugh{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
LINES = (
    "\tname: tab\n", "rounds: 1\nrounds: 2\n", "---\n", "...\n", "%YAML 9.9\n", "? x\n", "- x\n",
    "x: [1, 2\n", 'x: "\n', "x: 'a\n", "x: |\n  text\n", "@x: 1\n", "`x`: 1\n", "{}: 1\n",
    "!!python/object/apply:os.getcwd []\n", "x: !!python/name:os.system\n", "<<: *nowhere\n",
    "seed: !!python/object/new:int ['3']\n", "name: &n run\nx: *n\n", "# only a comment\n",
    "\ufeff", "\x00", "\x07", "\x85", "\u2028", "é: 1\n", "name: \"\\ud800\"\n", _LAUGHS, _MERGES,
)  # fmt: skip
WHOLE = (
    b"", b"\n", b"null", b"3", b"text", b"[]", b"{}", b"---\n---\n", b"\xff\xfe", b"\xff\x00\x80",
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", bytes(range(256)), b"\x00" * 64, b"[" * 100_000,
    b"{" * 100_000, b"- " * 10_000, b"a: " * 100, b"&a " * 100, b"x" * 3_000_000,
    b"x: " + b"y" * 3_000_000, b"".join(b"k%d: 1\n" % i for i in range(300_000)),
    "name: run\n".encode("utf-16"), "name: run\n".encode("utf-8-sig"), b"name: 'a\nb'\n",
)  # fmt: skip
OVERRIDES = (
    "", "=", "=3", "rounds", "rounds=", "rounds==3", "rounds=3=4", "a..b=1", ".rounds=3",
    "rounds.=3", "rounds.x=3", "clients.9.count=3", "clients.x.count=1", "clients.-1.count=1",
    "clients.0.model.0.hidden.0=3", "clients.²=1", "clients." + "9" * 5000 + ".count=1",
    ".".join("a" * 5000) + "=1", "strategy.name=fedmd", "student.hidden=[8]", "data.public=60",
    "data.public.labelled=true", "data.source.name.x=1", "learning.private.optimizer.lr=1e-4",
    "learning.client.schedule.name=StepLR", "x\ny=1", "rounds=\x00", "rounds=[", "rounds=*x",
    "world=partial", "world.fraction=.nan", "data=", "clients=", "clients=[]", "execution.out=3",
    "rounds=!!python/name:os.system", "\ud800=1", "rounds=\ud800", "name=\x1b[31m", "é=1",
    "rounds=" + "[" * 2000, "name=../../x", 'name="a/b"', "name=''", "name=" + "x" * 200,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file and overrides, and whether all in it is as the schema wants it and of usual size."""

    number: int
    content: bytes
    overrides: tuple[str, ...]
    tame: bool

    def __str__(self) -> str:
        shown = repr(self.content) if len(self.content) > 8000 else self.content.decode("latin-1")
        said = [o if len(o) <= 200 else f"{o[:200]!r}…" for o in self.overrides]
        return f"case {self.number}\noverrides: {said}\n{shown[:8000]}"


def case(number: int) -> Case:
    """The case of that number: two in three are only drawn, the others are also broken."""
    rng = random.Random(number)
    tree = _experiment(rng)
    overrides: list[str] = []
    for _ in range(rng.randrange(5)):
        path, value = _site(rng)
        if rng.random() < 0.3:
            overrides.append(f"{'.'.join(map(str, path))}={_flow(value)}")
        else:
            put(tree, path, value)
    if rng.random() < 0.2:  # one mapping in two places: written with an anchor and an alias
        tree["student"] = tree["clients"][0]["model"][0]
    if rng.random() < 0.67:
        return Case(number, _written(tree), tuple(overrides), True)
    raw: dict[str, str] = {}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(_BREAKS)(tree, rng, raw)
    content = _written(tree, raw)
    if rng.random() < 0.25:
        content = rng.choice(_SPOILS)(content, rng)
    if rng.random() < 0.2:
        overrides.append(rng.choice(OVERRIDES))
    if rng.random() < 0.1:
        path, _ = _site(rng)
        overrides.append(f"{'.'.join(map(str, path))}={rng.choice(ODD)}")
    return Case(number, content, tuple(overrides), False)


def drawn(schema: Json, rng: random.Random, path: Path = ()) -> Any:
    """A value that the schema admits, small where it is a size."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in ("Named", "Partition"):
            return _plugin(rng, next(str(p) for p in reversed(path) if isinstance(p, str)))
        if name == "TorchOptimizer":
            return _of_torch(rng, "optimizer")
        return drawn(_resolved(schema), rng, path)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return drawn(rng.choice(schema[union]), rng, path)
    kind = schema.get("type")
    if kind == "object":
        return {
            name: drawn(inner, rng, (*path, name))
            for name, inner in schema.get("properties", {}).items()
            if name in schema.get("required", ()) or rng.random() < 0.4
        }
    if kind == "array":
        if "prefixItems" in schema:
            return [drawn(inner, rng, path) for inner in schema["prefixItems"]]
        count = schema.get("minItems", 0) + rng.randrange(3)
        return [drawn(schema.get("items", {}), rng, path) for _ in range(count)]
    return _SCALARS[str(kind)](schema, rng)


def _integer(schema: Json, rng: random.Random) -> int:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    high = min(schema.get("maximum", math.inf), low + rng.choice((12, 12, 12, 150)))
    usual = [low, low + 1, rng.randint(low, high), rng.randint(low, high)]
    return rng.choice([n for n in [*usual, schema.get("default")] if isinstance(n, int)])


def _number(schema: Json, rng: random.Random) -> float:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    usual = [0.01, 0.1, 0.3, 0.5, 0.9, 1, 2, low, high, schema.get("default")]
    return rng.choice(
        [
            x
            for x in usual
            if isinstance(x, (int, float))
            and (low is None or x >= low)
            and (above is None or x > above)
            and (high is None or x <= high)
            and (below is None or x < below)
        ]
    )


_SCALARS: Mapping[str, Callable[[Json, random.Random], Any]] = {
    "integer": _integer,
    "number": _number,
    "string": lambda schema, rng: rng.choice(_WORDS),
    "boolean": lambda schema, rng: rng.random() < 0.5,
    "null": lambda schema, rng: None,
    "None": lambda schema, rng: rng.choice([0, 0.5, True, "a", [1]]),  # no type: anything goes
}


@functools.cache
def config_schema() -> Json:
    return Config.model_json_schema()


def _resolved(schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Json = config_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    return found


def _plugin(rng: random.Random, key: str) -> Any:
    """A plug-in with parameters that its signature admits."""
    kind = _KINDS.get(key, key)
    if kind is None:
        return _of_torch(rng, key)
    assert kind in offers.PLACES, f"say in _KINDS what {key} names"
    name = rng.choice(names(kind))
    given = _parameters(_factory(kind, name), _TAKEN.get(kind, 0), rng)
    return {"name": name, **given} if given or rng.random() < 0.5 else name


@functools.cache
def names(kind: offers.Kind) -> list[str]:
    """The project's own: what other tests have left on the path of imports is not meant."""
    root = str(pathlib.Path(offers.__file__).parents[1])
    return sorted({o.name for o in offers.offers(kind) if o.origin.startswith(root)})


@functools.cache
def _factory(kind: offers.Kind, name: str) -> Callable[..., object]:
    return plugins.resolve(kind, name)


def _of_torch(rng: random.Random, key: str) -> Json:
    """A scheduler or an optimiser of torch; most of what they take is not annotated for us."""
    home, kind = _TORCH[key]
    found = (n for n in dir(home) if n[0].isupper() and isinstance(getattr(home, n), type))
    name = rng.choice([n for n in found if issubclass(getattr(home, n), kind)])
    prefix = "torch.optim:" if key == "optimizer" else ""
    return {"name": prefix + name, **_parameters(getattr(home, name), 1, rng)}


def _parameters(factory: Callable[..., object], taken: int, rng: random.Random) -> Json:
    taking = list(_taking(factory).items())[taken:]
    return {n: drawn(s, rng) for n, (required, s) in taking if required or rng.random() < 0.4}


@functools.cache
def _taking(factory: Callable[..., object]) -> Mapping[str, tuple[bool, Json]]:
    """What a factory takes: whether it must be given, and its schema."""
    return {
        p.name: (p.default is p.empty, _hinted(factory, p))
        for p in inspect.signature(factory).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _hinted(factory: Callable[..., object], parameter: inspect.Parameter) -> Json:
    try:
        schema = TypeAdapter(parameters._hint(factory, parameter, "")).json_schema()
    except Exception:  # a type of torch that is no value of YAML
        return {}
    schema = _inlined(schema, schema.pop("$defs", {}))
    default = parameter.default
    return {**schema, "default": default} if isinstance(default, (int, float)) else schema


def _inlined(schema: Any, definitions: Json) -> Any:
    """The schema without references to its own definitions."""
    if isinstance(schema, list):
        return [_inlined(inner, definitions) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    schema = schema | definitions.get(schema.get("$ref", "").rpartition("/")[2], {})
    return {k: _inlined(v, definitions) for k, v in schema.items() if k != "$ref"}


def _site(rng: random.Random) -> tuple[Path, Any]:
    """A place in the config and a value for it."""
    schema, path = config_schema(), ()
    while True:
        name = rng.choice([n for n in schema["properties"] if (*path, n) != ("execution", "out")])
        path, inner = (*path, name), schema["properties"][name]
        if name == "clients" and rng.random() < 0.8:
            path, inner = (*path, 0), inner["items"]
        below = _resolved(inner)
        named = inner.get("$ref", "").endswith("/Named")
        if below.get("type") != "object" or named or rng.random() < 0.2:
            return path, drawn(inner, rng, path)
        schema = below


def _experiment(rng: random.Random) -> Json:
    tree: Json = json.loads(json.dumps(small.EXPERIMENT))  # no part of it twice
    tree["rounds"] = 1
    if rng.random() < 0.7:
        tree["strategy"] = _plugin(rng, "strategy")
    if rng.random() < 0.2:
        tree["data"]["partition"] = _plugin(rng, "partition")
    if rng.random() < 0.3:
        tree["clients"][0]["model"] = [copy.deepcopy(small.MLP)]
    return tree


def put(tree: Json, path: Path, value: object) -> None:
    node: Any = tree
    for step, following in itertools.pairwise(path):
        inside = step in node if isinstance(node, dict) else isinstance(step, int)
        below = node[step] if inside else None
        if not isinstance(below, dict | list):
            below = [{}] if following == 0 else {}
            node[step] = below
        node = below
    node[path[-1]] = value


def places(tree: Any, path: Path = ()) -> Iterator[Path]:
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    for step, below in items:
        yield (*path, step)
        if isinstance(below, dict | list):
            yield from places(below, (*path, step))


def _at(tree: Json, path: Path) -> Any:
    return functools.reduce(lambda node, step: node[step], path, typing.cast(Any, tree))


def _picked(tree: Json, rng: random.Random) -> tuple[Any, str | int]:
    path = rng.choice(list(places(tree)) or [("x",)])
    return _at(tree, path[:-1]), path[-1]


def _odd_value(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    node, step = _picked(tree, rng)
    mark = f"ODD{len(raw)}ODD"
    raw[mark] = rng.choice(ODD)
    node[step] = mark


def _odd_plugin(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    key = rng.choice([p for p in places(tree) if p[-1] in (*offers.PLACES, *_KINDS, "optimizer")])
    mark = f"ODD{len(raw)}ODD"
    raw[mark] = rng.choice(ODD)
    _at(tree, key[:-1])[key[-1]] = mark


def _left_out(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    node, step = _picked(tree, rng)
    if step in node or isinstance(step, int):
        del node[step]


def _misspelt(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    node, step = _picked(tree, rng)
    if isinstance(node, dict) and isinstance(step, str) and step in node:
        at = rng.randrange(len(step) + 1)
        letter = rng.choice(["", "e", "_", "É", "-", " ", "\n", "."])
        node[step[:at] + letter + step[at + 1 :]] = node.pop(step)


def _one_more(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    node, step = _picked(tree, rng)
    if isinstance(node, dict):
        node[rng.choice(["extra", "name", "params", "self", 3, None, True, "", "x" * 300])] = 1
    else:
        node.append(copy.deepcopy(node[int(step)]) if node else 1)


def _listed(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    node, step = _picked(tree, rng)
    if step in node or isinstance(step, int):
        node[step] = [node[step]] if rng.random() < 0.5 else {"name": node[step]}


def _swapped(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    (one, a), (two, b) = _picked(tree, rng), _picked(tree, rng)
    one[a] = copy.deepcopy(two[b]) if b in two or isinstance(b, int) else None


def _huge(tree: Json, rng: random.Random, raw: dict[str, str]) -> None:
    numbers = [p for p in places(tree) if type(_at(tree, p)) in (int, float)]
    if numbers:
        path = rng.choice(numbers)
        value = rng.choice([10**5, 10**6, 10**9, 10**12, 2**31, 2**63, 1e9, 1e300, 1e-300, -1, 0])
        _at(tree, path[:-1])[path[-1]] = value


_BREAKS = (_odd_value, _odd_plugin, _left_out, _misspelt, _one_more, _listed, _swapped, _huge)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _byte(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + bytes([rng.randrange(256)]) + content[at + rng.randrange(2) :]


def _line_twice(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def _line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = rng.choice([0, len(lines), rng.randrange(len(lines) + 1)])
    odd = rng.choice(LINES).encode("utf-8", "surrogatepass")
    return b"".join([*lines[:at], odd, *lines[at:]])


def _other_line_ends(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n"]))


def _other(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(WHOLE)


_SPOILS = (_cut, _byte, _line_twice, _line, _line, _other_line_ends, _other)


def _written(tree: Json, raw: Mapping[str, str] | None = None) -> bytes:
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    for mark, odd in (raw or {}).items():
        text = text.replace(mark, odd)
    return text.encode("utf-8", "surrogatepass")


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
