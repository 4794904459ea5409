"""The JSON Schema of a config, for editors: `fedkd schema [--out FILE]`.

The sections are those of `config`; for each plug-in the names on offer here and now, with their
parameters as their source has them. A name as in `package.module:function` is always admitted.
What only shows when a config is assembled (a range that depends on the data) is not in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd import shell
from fedkd.config import Config, ConfigError, Partition
from fedkd.disk import DiskError, write_atomically
from fedkd.offers import Kind
from fedkd.signatures import Signature, signatures

Schema = dict[str, Any]  # Any: JSON

# which kind is named where: (section, key); None where the names are another library's
PLUGINS: Mapping[tuple[str, str], Kind | None] = {
    ("Config", "strategy"): "strategy",
    ("Config", "combine"): "rule",
    ("Config", "annotate"): "annotation",
    ("Config", "world"): "world",
    ("Config", "student"): "model",
    ("ClientGroup", "model"): "model",
    ("Data", "source"): "source",
    ("Data", "partition"): "partition",
    ("Public", "source"): "source",
    ("Codecs", "up"): "codec",
    ("Codecs", "down"): "codec",
    ("Execution", "trackers"): "tracker",
    ("Learning", "loss"): "loss",
    ("Learning", "schedule"): None,
    ("Privacy", "answers"): "mechanism",
}
# where one stands for a list of one, and how many there must be
_LISTS: Mapping[tuple[str, str], int] = {
    ("ClientGroup", "model"): 1,
    ("Codecs", "up"): 0,
    ("Codecs", "down"): 0,
    ("Execution", "trackers"): 0,
}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_FOREIGN: Schema = {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}
_OPTIMISERS = ("SGD", "Adam", "TorchOptimizer")
_EPILOG = """\
examples:
  %(prog)s --out fedkd.schema.json
  %(prog)s | less

An editor that knows the schema completes the keys of a config and underlines the misspelt ones:
with the YAML extension of VS Code, a config begins with
  # yaml-language-server: $schema=fedkd.schema.json
What your own strategies/ and simulations/ offer is in it if it is made in their folder.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("schema"),
        description="Print the JSON Schema of a config, with all names on offer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write it there instead")
    parser.add_argument("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_args(arguments)
    return shell.answered(lambda: _do(given.out), given.debug)


def _do(out: Path | None) -> int:
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return 0
    try:
        write_atomically(out, text.encode())
    except DiskError as error:
        raise ConfigError(f"{error}; --out FILE should be in a folder that is there") from error
    return 0


def schema() -> Schema:
    """The schema as JSON values."""
    made = _any_of(Config.model_json_schema())
    parts: Schema = made.pop("$defs")
    parts["Config"] = {key: made.pop(key) for key in list(made)}
    for kind in sorted({kind for kind in PLUGINS.values() if kind}):
        parts[kind] = plugin(kind)
    for (section, key), place in PLUGINS.items():
        known = parts[section]["properties"]
        known[key] = _named(known[key], place)
    del parts["Partition"]  # what is named there is the kind
    one: Schema
    for (section, key), least in _LISTS.items():
        one = {"$ref": f"#/$defs/{PLUGINS[section, key]}"}
        several: Schema = {"type": "array", "minItems": least, "items": one}
        parts[section]["properties"][key]["anyOf"] = [one, several]
    public = parts["Data"]["properties"]["public"]
    one = {"anyOf": [{"$ref": "#/$defs/Public"}, {"type": "integer", "minimum": 1}]}
    public["anyOf"] = [*one["anyOf"], {"type": "array", "minItems": 1, "items": one}]
    parts["TorchOptimizer"]["properties"]["name"]["pattern"] = r"^torch\.optim:[A-Za-z]\w*$"
    parts["TorchOptimizer"]["required"] = ["name"]
    optimizer = parts["Learning"]["properties"]["optimizer"]
    optimizer["anyOf"] += [parts[own]["properties"]["name"] for own in parts if own in _OPTIMISERS]
    parts["Config"]["properties"]["name"]["pattern"] = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
    return {"$schema": _DIALECT, "title": "fedkd config", "$ref": "#/$defs/Config", "$defs": parts}


def plugin(kind: Kind) -> Schema:
    """What may stand where a kind is named: a name, or a mapping of a name and its parameters."""
    known = signatures(kind)
    short = [s.offer.name for s in known if not s.required]
    extra = _beside_the_name() if kind == "partition" else {}
    return {
        "anyOf": [
            *([{"enum": sorted(set(short))}] if short else []),
            *(_offer(s, extra) for s in known),
            _FOREIGN,
            {"type": "object", "properties": {"name": _FOREIGN} | extra, "required": ["name"]},
        ]
    }


def _offer(it: Signature, extra: Schema) -> Schema:
    parameters = {p.name: p.schema() for p in it.parameters}
    name: Schema = {"const": it.offer.name}
    if it.offer.summary:
        name["description"] = it.offer.summary
    made: Schema = {
        "type": "object",
        "properties": {"name": name} | extra | parameters,
        "required": ["name", *it.required],
    }
    return made if it.open else made | {"additionalProperties": False}


def _beside_the_name() -> Schema:
    """What a partition takes whichever it is."""
    properties: Schema = Partition.model_json_schema()["properties"]
    return {key: value for key, value in properties.items() if key != "name"}


def _named(there: Schema, kind: Kind | None) -> Schema:
    """The place of a plug-in: its kind in place of pydantic's `Named`, the rest as it is."""
    if kind is None:
        branches: list[Schema] = [{"type": "string"}, {"$ref": "#/$defs/Named"}]
    else:
        branches = [{"$ref": f"#/$defs/{kind}"}]
    rest = [b for b in there.get("anyOf", ()) if "Named" not in b.get("$ref", "")]
    kept = {key: there[key] for key in ("title", "description", "default") if key in there}
    return kept | {"anyOf": [*branches, *rest]}


def _any_of(node: Any) -> Any:  # Any: JSON
    """A short form may fit two branches, so one of them is enough; discriminators are no schema."""
    if isinstance(node, dict):
        kept = {k: _any_of(v) for k, v in node.items() if k != "discriminator"}
        return {("anyOf" if k == "oneOf" else k): v for k, v in kept.items()}
    return [_any_of(inner) for inner in node] if isinstance(node, list) else node


def places_of_plugins() -> Iterator[tuple[str, str]]:
    """Every (section, key) of a config at which pydantic has a plug-in."""
    made = Config.model_json_schema()
    for title, part in {"Config": made, **made["$defs"]}.items():
        for key, value in part.get("properties", {}).items():
            if any(f'"#/$defs/{name}"' in json.dumps(value) for name in ("Named", "Partition")):
                yield title, key


if __name__ == "__main__":
    sys.exit(main())
