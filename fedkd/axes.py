"""What a sweep varies, as written: `seed=0..4 strategy.name=A,B` to axes of values.

A value is YAML; a comma outside brackets and quotes parts two values, `a..b` or `a..b..step` are
whole numbers, both ends included. A key with one value is no axis but an ordinary override.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from fedkd.faults import ConfigError, shown

MOST_RUNS = 10_000
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
_CLOSING = {"[": "]", "{": "}"}
# these say where and how a run is kept, and a sweep decides that for all of its runs
_OURS = ("execution", "name")


class Axis(NamedTuple):
    """A key of the config and the values that it takes, each as YAML text."""

    key: str
    values: tuple[str, ...]


def read(words: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """The words of a command line as overrides for all runs, and axes, in the order as written.

    Raises `ConfigError` for an empty range or value, a key that is given twice or inside another.
    """
    overrides, axes = [], []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"sweep: should be given as key=value, key=a,b or key=a..b, found {shown(word)}"
            )
        values = values_of(key, text)
        if len(values) == 1 and not _RANGE.fullmatch(text):
            overrides.append(word)
        else:
            axes.append(Axis(key, values))
    check(axes, [word.partition("=")[0] for word in overrides])
    return overrides, axes


def given(axes: Mapping[str, object]) -> list[Axis]:
    """Axes from Python: `{"seed": range(5), "strategy.name": ["A", "B"]}`."""
    made = []
    for key, values in axes.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence | range):
            raise ConfigError(
                f"sweep: {key} should be given a list or a range of values, found {shown(values)};"
                " put a single value into the config"
            )
        made.append(Axis(str(key), tuple(text_of(value) for value in values)))
    check(made, [])
    return made


def values_of(key: str, text: str) -> tuple[str, ...]:
    """The values of one axis as YAML texts."""
    found = _RANGE.fullmatch(text)
    if found is None:
        values = tuple(part.strip() for part in _parted(key, text))
        if len(values) > 1 and not all(values):
            raise ConfigError(
                f"sweep: {key} should have a value between any two commas, found {shown(text)};"
                " write null for none"
            )
        return values
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step == 0 or (last - first) * step < 0:
        raise ConfigError(
            f"sweep: {key} should be a range with something in it, found {text}, which is empty;"
            " write the smaller number first, or a negative step as in 4..0..-1"
        )
    if abs(last - first) // abs(step) >= MOST_RUNS:
        raise ConfigError(f"sweep: {key} should have at most {MOST_RUNS:,} values, found {text}")
    return tuple(map(str, range(first, last + (1 if step > 0 else -1), step)))


def _parted(key: str, text: str) -> list[str]:
    """Split at the commas that stand outside of brackets and quotes."""
    parts, expected, quote, start, escaped = [], [], "", 0, False
    for at, sign in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            doubled = quote == "'" and text[at : at + 2] == "''"
            escaped = doubled or (quote == '"' and sign == "\\")
            quote = "" if sign == quote and not doubled else quote
        elif sign in "'\"" and (at == start or text[at - 1] in "[{,: "):
            quote = sign
        elif sign in _CLOSING:
            expected.append(_CLOSING[sign])
        elif expected and sign == expected[-1]:
            expected.pop()
        elif sign == "," and not expected:
            parts.append(text[start:at])
            start = at + 1
    if expected or quote:
        raise ConfigError(
            f"sweep: the values of {key} should close what they open, found {shown(text)} without"
            f" {expected[-1] if expected else quote}"
        )
    return [*parts, text[start:]]


def text_of(value: object) -> str:
    """A plain value as the YAML text that reads as it."""
    if isinstance(value, str) and re.fullmatch(r"[\w][\w./:~+-]*", value):
        return value if yaml.safe_load(value) == value else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def check(axes: Sequence[Axis], overridden: Sequence[str]) -> None:
    """Refuse axes that are empty, too long, in conflict, or not for a sweep to vary."""
    keys = [axis.key for axis in axes]
    for axis in axes:
        if not axis.values:
            raise ConfigError(
                f"sweep: {axis.key} should have at least one value, found none; add one or leave"
                " the axis out"
            )
        if axis.key.split(".")[0] in _OURS:
            raise ConfigError(
                f"sweep: {axis.key} should not be varied, for it is no part of an experiment; give"
                f" it once, as in {axis.key}={axis.values[0]}, or leave it out"
            )
        twice = [value for i, value in enumerate(axis.values) if value in axis.values[:i]]
        if twice:
            raise ConfigError(
                f"sweep: {axis.key} should have each value once, found {twice[0]} twice; more runs"
                " of one setting are more seeds"
            )
    for i, key in enumerate(keys):
        for other in [*keys[:i], *overridden]:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                what = "twice" if key == other else f"beside {other}"
                raise ConfigError(
                    f"sweep: {key} should be said once, found it {what}, of which one would undo"
                    " the other; join them into one axis"
                    + ("" if key == other else ", as in strategy={name: a, x: 1},{name: b}")
                )
    runs = 1
    for axis in axes:
        runs *= len(axis.values)
    if runs > MOST_RUNS:
        raise ConfigError(
            f"sweep: should be of at most {MOST_RUNS:,} runs, found {runs:,}; vary less at a time"
        )
