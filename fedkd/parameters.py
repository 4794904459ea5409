"""Parameters from a config, checked against the signature of the factory that takes them.

The annotations are the schema, read by pydantic as strict JSON: a list becomes a tuple and a whole
number a float, but neither a bool nor a piece of text becomes a number.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import SimpleNamespace
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from fedkd.faults import ConfigError, did_you_mean, joined, shown, written

Factory = Callable[..., object]


def check(
    factory: Factory, given: Mapping[str, Any], *, taken: int, label: str, where: str
) -> dict[str, Any]:  # Any: whatever the factory's own signature admits
    """The given parameters as the factory's annotations want them.

    `taken` is the number of leading positional parameters that the caller fills; the others are
    passed by keyword. Raises one `ConfigError` with a line a fault; `label` names the factory and
    `where` is the place in the config, both for the reader of the error.
    """
    free, rest = _free(factory, taken, label, where)
    takes = ", ".join(_shown(factory, p) for p in free.values()) or "no parameters"
    taker = {name: free.get(name, rest) for name in given}
    faults = [
        f"{where}.{written([name])}: {label} has no such parameter"
        f"{meant}; it takes {takes}"
        + ("" if meant else f"; leave it out: {where}={label} drops what another was given")
        for name, parameter in taker.items()
        for meant in [did_you_mean(name, free)]
        if parameter is None
    ] + [
        f"{where}.{name}: is required by {label} and was not given; it takes {takes}"
        for name, parameter in free.items()
        if parameter.default is Parameter.empty and name not in given
    ]
    known = {name: parameter for name, parameter in taker.items() if parameter is not None}
    hints = {name: _hint(factory, p, f"{where}.{name}") for name, p in known.items()}
    values = {name: given[name] for name in known}
    try:
        checked = _validated(hints, values, where)
    except ValidationError as error:
        for name, text in _explained(error, values):
            takes = _shown(factory, known[name]) if name in known else takes
            faults.append(f"{where}.{text}; {label} takes {takes}")
    if faults:
        raise ConfigError(joined(faults))
    return checked


def _free(
    factory: Factory, taken: int, label: str, where: str
) -> tuple[dict[str, Parameter], Parameter | None]:
    """What a config may give: the parameters left to it by name, and `**rest` if there is one."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        raise ConfigError(
            f"{where}: {label} must have a signature that Python can read, it has none; "
            "call it from a function of your own"
        ) from None
    positional = [
        p
        for p in parameters
        if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    star = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
    needed = [p for p in positional if p.kind is Parameter.POSITIONAL_ONLY and p.default is p.empty]
    if (taken > len(positional) and not star) or taken < len(needed):
        raise ConfigError(
            f"{where}: {label} must take {taken} positional arguments, found "
            f"({', '.join(map(str, parameters))}); correct its signature"
        )
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    free = {p.name: p for p in parameters if p.kind in kinds and p not in positional[:taken]}
    return free, next((p for p in parameters if p.kind is Parameter.VAR_KEYWORD), None)


def _hint(factory: Factory, parameter: Parameter, place: str) -> Any:  # Any: a type expression
    """The annotation evaluated where the factory was defined, bounds included."""
    if parameter.annotation is Parameter.empty:
        return Any
    home: Any = factory
    while isinstance(home, functools.partial):
        home = home.func
    if inspect.isclass(home):
        home = home.__init__
    elif not inspect.isroutine(home):
        home = type(home).__call__
    names = getattr(inspect.unwrap(home), "__globals__", {})
    holder = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
    except Exception as error:  # an annotation is code of the factory's author
        raise ConfigError(
            f"{place}: the annotation {parameter.annotation!r} must be a type that can be "
            f"evaluated at run time, found {type(error).__name__}: {error}; "
            "import its names outside of TYPE_CHECKING"
        ) from error


def _shown(factory: Factory, parameter: Parameter) -> str:
    """A parameter as one would write it, with the plain type instead of the alias."""
    text = str(parameter.annotation)
    try:
        hint = _hint(factory, parameter, "")
        plain = typing.get_type_hints(SimpleNamespace(__annotations__={"it": hint}))["it"]
        text = inspect.formatannotation(plain)
    except ConfigError:  # shown as written; whoever gives this parameter is told why
        pass
    name = f"**{parameter.name}" if parameter.kind is Parameter.VAR_KEYWORD else parameter.name
    typed = name if parameter.annotation is Parameter.empty else f"{name}: {text}"
    if parameter.default is Parameter.empty:
        return typed
    return f"{typed} = {_short(parameter.default)}"


def _validated(hints: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Pydantic's reading of the values; fields have neutral names because `copy` is taken."""
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    fields: Any = {
        f"p{i}": (hint, Field(alias=name)) for i, (name, hint) in enumerate(hints.items())
    }
    try:
        model = create_model("Parameters", __config__=config, **fields)
    except PydanticUserError as error:
        raise ConfigError(
            f"{where}: the annotations must be types that can be checked, found {error.message};"
            " correct them in the factory"
        ) from error
    try:
        text = json.dumps(dict(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: the parameters must be plain YAML values, found {error}; "
            "write numbers, text, lists and mappings"
        ) from None
    made = model.model_validate_json(text)
    return {name: getattr(made, f"p{i}") for i, name in enumerate(hints)}


def _explained(error: ValidationError, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(parameter, "parameter.inner: rule, found value"); the branches of a union are one fault."""
    rules: dict[tuple[str, str], dict[str, None]] = {}
    found: dict[tuple[str, str], str] = {}
    for detail in error.errors(include_url=False):
        steps, value = list[str](), typing.cast(Any, values)
        absent = detail["type"] in ("missing", "extra_forbidden")
        for part in detail["loc"]:
            inside = isinstance(value, dict) and part in value
            inside |= isinstance(value, list) and isinstance(part, int) and part < len(value)
            if inside:
                value = value[part]
            if inside or (absent and part == detail["loc"][-1]):
                steps.append(str(part))
        key = (steps[0] if steps else "", written(steps) or "parameters")
        rule = detail["msg"].removeprefix("Value error, ").replace("Input should be ", "should be ")
        rules.setdefault(key, {})[rule[:1].lower() + rule[1:]] = None
        found[key] = _short(detail["input"]) + _unquoted(detail["input"])
    return [(key[0], f"{key[1]}: {' or '.join(rules[key])}, found {found[key]}") for key in rules]


def _unquoted(value: object) -> str:
    """YAML 1.1 reads 1e-3 as text, which nobody means."""
    try:
        return f" (text; write {float(value)!r} without quotes)" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _short(value: object) -> str:
    return shown(value, 60)
