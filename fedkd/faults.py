"""What the user is told about a fault of theirs: parameter, rule, what was found, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

_MOST_LINES = 20


class ConfigError(ValueError):
    """What the user wrote cannot be run; the text names parameter, rule, finding and way out."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word in brackets, ready to be put into an error; empty if none is near."""
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(value: object, most: int = 80) -> str:
    """A value as Python writes it, on one line, cut to so many characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of more digits than can be shown"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def written(steps: Iterable[object]) -> str:
    """A place in a config as one would write it; a key that would not be seen stands in quotes."""
    return ".".join(
        text if text.isprintable() and 0 < len(text) <= 80 and " " not in text else shown(text)
        for text in map(str, steps)
    )


def joined(lines: Sequence[str]) -> str:
    """One line a fault, as many as somebody may read."""
    rest = len(lines) - _MOST_LINES
    if rest <= 0:
        return "\n".join(lines)
    return "\n".join(
        [*lines[:_MOST_LINES], f"config: found {rest:,} more faults; correct these first"]
    )


def explained(error: ValidationError, root: type[BaseModel], given: object) -> str:
    """One line a fault. Pydantic says one for every branch of a union; here they are one."""
    lines: dict[str, None] = {}
    rules: dict[str, dict[str, None]] = {}
    found: dict[str, object] = {}
    for detail in error.errors(include_url=False):
        path = written(_steps(detail, given)) or "config"
        if detail["type"] == "extra_forbidden":
            known = _fields_at(root, detail["loc"][:-1])
            near = did_you_mean(str(detail["loc"][-1]), known)
            lines[f"{path}: there is no such key{near}; known here are {', '.join(known)}"] = None
        elif detail["type"] == "missing":
            lines[
                f"{path}: is required and was not given; add it to the config or as an override"
                f" {path}=…"
            ] = None
        elif detail["type"] != "too_short" or not detail["input"]:  # else its items are at fault
            rules.setdefault(path, {})[_rule(detail)] = None
            found[path] = detail["input"]
    for path, said in rules.items():
        lines[
            f"{path}: should be {' or '.join(said)}, found {_hinted(found[path])};"
            f" change it in the config or as an override {path}=…"
        ] = None
    return joined(list(lines))


def _steps(detail: Any, given: object) -> list[str]:  # Any: pydantic's ErrorDetails
    """The path of a fault as one would write it: pydantic's also names the branches of unions."""
    steps, value = list[str](), given
    absent = detail["type"] in ("missing", "extra_forbidden")
    for place, part in enumerate(detail["loc"]):
        inside: bool = isinstance(value, Mapping) and part in value
        listed = isinstance(value, Sequence) and isinstance(part, int) and part < len(value)
        if inside or listed:
            value = cast(Any, value)[part]
        elif not (absent and place == len(detail["loc"]) - 1):
            continue
        steps.append(str(part))
    return steps


_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "too_short": "not empty",
    "string_too_short": "not empty",
    "tuple_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}


def _rule(detail: Any) -> str:  # Any: pydantic's ErrorDetails
    bounds = detail.get("ctx", {})
    for name, words in (("ge", "at least"), ("gt", "greater than"), ("le", "at most"),
                        ("lt", "less than")):  # fmt: skip
        if name in bounds:
            bound = bounds[name]
            return f"{words} {bound:,}" if isinstance(bound, int) else f"{words} {bound:g}"
    if "expected" in bounds:
        return str(bounds["expected"])
    said = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if bounds.get("class_name") in ("Named", "Partition"):
        return "a name, or a mapping with a name and its parameters"
    return _RULES.get(detail["type"], said)


def _hinted(value: object) -> str:
    text = shown(value)
    if not isinstance(value, str) or not any(c.isdigit() for c in value):
        return text
    try:
        return f"{text} (text; write {float(value):g} without quotes)"
    except ValueError:
        return text


def _fields_at(root: type[BaseModel], location: Sequence[object]) -> list[str]:
    """The keys that a section admits, by walking the models along an error's path."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        fields = next((m.model_fields for m in models if part in m.model_fields), None)
        if fields is not None:
            models = list(_sections(fields[str(part)].annotation))
        elif isinstance(part, str):  # the branch of a union, named by its tag or by its class
            models = [m for m in models if part in (m.__name__.lower(), m.__name__)] or models
    return sorted(models[0].model_fields) if models else []


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:  # Any: the typing module's objects
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
