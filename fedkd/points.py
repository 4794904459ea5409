"""The runs of a sweep: a checked config for each point of the grid, and a name for its folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fedkd import axes, reading
from fedkd.axes import Axis
from fedkd.config import Config, ConfigError, load_config
from fedkd.faults import did_you_mean
from fedkd.offers import Kind
from fedkd.signatures import signatures

_MOST_NAME = 60


@dataclass(frozen=True, slots=True)
class Point:
    """One run: the values that set it apart, by key, and its whole config."""

    values: Mapping[str, Any]  # Any: YAML
    config: Config

    @property
    def text(self) -> str:
        """`seed=0 strategy.name=A`, as it could be written on a command line."""
        return " ".join(f"{key}={_short(value)}" for key, value in self.values.items())


@dataclass(frozen=True, slots=True)
class Grid:
    """The runs, and for parameters that were left out at some the names that do not take them."""

    points: tuple[Point, ...]
    left_out: Mapping[str, Sequence[str]]  # key -> the names that do not take it


def grid(
    config: str | Path | Mapping[str, object],
    overrides: Sequence[str],
    varied: Sequence[Axis],
    sets: Sequence[Mapping[str, Any]] = ({},),
) -> Grid:
    """Every combination of the axes' values, over each of the `sets` of further overrides.

    The last axis varies fastest. Where the name of a part is said (`strategy.name`), each name
    begins with its own defaults, and parameters of it (`strategy.temperature`) go to the names that
    take them. Raises `ConfigError` for the first point that is no experiment, for a parameter that
    no name takes, and for two points that are the same experiment as written.
    """
    taken_by = cache(parameters)  # of this grid alone: files may have changed by the next
    varying = {axis.key for axis in varied} | {key for given in sets for key in given}
    named = varying | {override.partition("=")[0] for override in overrides}
    parts = {part: kind for part, kind in _PARTS.items() if f"{part}.name" in named}
    # a section may be whole only with what varies in it, as epsilon beside a delta
    sections = {key.rpartition(".")[0] for key in varying} - {""}
    own = [o for o in overrides if _own(o.partition("=")[0], parts, sections)]
    tree = load_config(config, [o for o in overrides if o not in own]).model_dump(mode="json")
    fixed = [Axis(o.partition("=")[0], (o.partition("=")[2],)) for o in own]
    points: dict[str, Point] = {}
    refused: dict[str, list[str]] = {}
    taken: set[str] = set()
    for given in sets:
        whole = [*(Axis(k, (axes.text_of(v),)) for k, v in given.items()), *fixed, *varied]
        axes.check(whole, [])
        told = [axis.key for axis in (*varied,)] + list(given)
        for combination in itertools.product(*(axis.values for axis in whole)):
            chosen = dict(zip((axis.key for axis in whole), combination, strict=True))
            for part, kind in parts.items():
                name = str(yaml.safe_load(chosen[f"{part}.name"]))
                known = taken_by(kind, name)
                for key in [k for k in chosen if _part(k, [part]) and k != f"{part}.name"]:
                    if known is None or key.split(".")[len(part.split("."))] in known:
                        taken.add(key)
                    else:
                        refused.setdefault(key, []).append(name)
                        del chosen[key]
            words = [
                *(f"{p}={{name: {chosen[f'{p}.name']}}}" for p in parts),
                *(f"{k}={v}" for k, v in chosen.items() if not _is_name(k, parts)),
            ]
            values = {k: yaml.safe_load(v) for k, v in chosen.items() if k in told}
            try:
                point = Point(values, load_config(tree, words))
            except ConfigError as error:
                raise at(" ".join(f"{k}={v}" for k, v in chosen.items()), error) from None
            same = points.setdefault(point.config.fingerprint(), point)
            if same is not point and same.text != point.text:
                raise ConfigError(
                    f"sweep: every run should be another experiment, found {same.text} and"
                    f" {point.text} the same; leave one of them out"
                )
    for key in [k for k in refused if k not in taken]:
        names = sorted(set(refused[key]))
        part = _part(key, parts)
        known_all = sorted({p for n in names for p in taken_by(parts[part], n) or ()})
        raise ConfigError(
            f"{key}: none of {', '.join(names)} has such a parameter"
            f"{did_you_mean(key.rpartition('.')[2], known_all)}; they take"
            f" {', '.join(known_all) or 'none'}"
        )
    if len(points) > axes.MOST_RUNS:
        raise ConfigError(
            f"sweep: should be of at most {axes.MOST_RUNS:,} runs, found {len(points):,}"
        )
    return Grid(tuple(points.values()), {k: sorted(set(v)) for k, v in refused.items()})


# what a config names, and the kind of what may stand there
_PARTS: Mapping[str, Kind] = {
    "strategy": "strategy",
    "world": "world",
    "student": "model",
    "data.source": "source",
    "data.partition": "partition",
}


def _part(key: str, parts: Iterable[str]) -> str:
    """Which of the parts a key belongs to, if any."""
    return next((part for part in parts if key.startswith(f"{part}.")), "")


def _own(key: str, parts: Iterable[str], sections: Iterable[str]) -> bool:
    """Whether it is said of each point anew, and not of what all have in common."""
    return bool(_part(key, parts)) or key.rpartition(".")[0] in sections


def _is_name(key: str, parts: Iterable[str]) -> bool:
    return any(key == f"{part}.name" for part in parts)


def parameters(kind: Kind, name: str) -> frozenset[str] | None:
    """What a plug-in may be given, from source text; None where that cannot be known."""
    found = next((s for s in signatures(kind) if s.offer.name == name), None)
    return None if found is None or found.open else frozenset(p.name for p in found.parameters)


def base_of(config: str | Path | Mapping[str, object], overrides: Sequence[str]) -> dict[str, Any]:
    """What all runs have in common, as it is kept in the folder."""
    raw = (
        reading.plain(config)
        if isinstance(config, Mapping)
        else reading.read(reading.find(str(config)))
    )
    return {"of": raw, "overrides": list(overrides)}


def at(point: str, error: ConfigError) -> ConfigError:
    """The fault of one point, told with where it is."""
    return ConfigError(f"{error}\nsweep: this is at {point}" if point else str(error))


def folder_name(point: Point, resolved: Config) -> str:
    """The run's folder: its values for a reader, and the fingerprint by which it is found."""
    parts = [f"{key.split('.')[-1]}={_short(value)}" for key, value in point.values.items()]
    plain = re.sub(r"[^A-Za-z0-9.=+-]+", "_", ",".join(parts).replace(",", "__")).strip("._")
    return f"{plain[:_MOST_NAME] or 'run'}-{resolved.fingerprint()[:12]}"


def group(point: Point) -> str:
    """The setting of a run: its values, the seeds apart."""
    rest = {k: v for k, v in point.values.items() if k not in ("seed", "data.seed")}
    return Point(rest, point.config).text


def _short(value: object) -> str:
    text = axes.text_of(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
