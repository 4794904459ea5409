"""A record as plain named numbers, for tables, trackers and whatever else draws curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def figures(record: Mapping[str, Any]) -> dict[str, float]:  # Any: JSON
    """`{"student/test": 0.93, "teachers/test/mean": 0.9, "participants": 10, …}`.

    A list of clients counts; a list of one number a client gives mean, min and max of what is
    known. What is not known has no name. `round` is the place on the axis and no figure.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            found[name] = float(len(value))
        elif name != "round":
            found |= dict(_within(name, value))
    return found


def _within(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _within(f"{name}/{key}", inner)
    elif isinstance(value, list):
        known = [v for v in value if isinstance(v, (int, float))]
        if known:
            yield f"{name}/mean", sum(known) / len(known)
            yield f"{name}/min", float(min(known))
            yield f"{name}/max", float(max(known))
    elif isinstance(value, (int, float)):
        yield name, float(value)
