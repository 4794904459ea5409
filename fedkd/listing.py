"""`--list`: what a config may name, read from source text alone; no plug-in is imported."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedkd import offers, reading
from fedkd.faults import ConfigError, did_you_mean, shown
from fedkd.offers import PLACES, Kind
from fedkd.shell import near
from fedkd.signatures import Signature, signatures

# where a config names it; any other kind is told by its place alone
_KEYS: Mapping[str, str] = {
    "strategy": "strategy",
    "world": "world",
    "model": "student",
    "source": "data.source",
    "partition": "data.partition",
    "loss": "learning.client.loss",
}
# what people call it beside its place
_ALSO: Mapping[str, str] = {
    "worlds": "simulations",
    "simulation": "simulations",
    "data": "sources",
    "datasets": "sources",
    "methods": "strategies",
    "method": "strategies",
}
_CONFIGS = "configs"


def listed(wanted: str = "") -> str:
    """All kinds with a line a name, one kind, or all that goes by one name, with its parameters.

    Raises `ConfigError` for what is neither a kind nor a name.
    """
    if not wanted:
        return "\n\n".join([*map(_kind, PLACES), _configs()])
    place = _ALSO.get(wanted, wanted)
    for kind, kept in PLACES.items():
        if place in (kept, kind):
            return "\n\n".join([f"{kept}:", *(_whole(kind, s) for s in signatures(kind))])
    if place in (_CONFIGS, "config"):
        return _configs()
    found = [_whole(k, s) for k in PLACES for s in signatures(k) if s.offer.name == wanted]
    found += [_config(n, path) for n, path in reading.built_in().items() if n == wanted]
    if not found:
        raise ConfigError(_unknown(wanted))
    return "\n\n".join(found)


def words() -> list[str]:
    """All that may stand behind `--list`."""
    names = {o.name for kind in PLACES for o in offers.offers(kind)}
    return [*PLACES.values(), _CONFIGS, *sorted(names | set(reading.built_in()))]


def _unknown(wanted: str) -> str:
    near_by = did_you_mean(wanted, [*words(), *_ALSO, *PLACES])
    kinds = ", ".join([*PLACES.values(), _CONFIGS])
    return (
        f"--list: should name a kind ({kinds}) or something of a kind, found {shown(wanted)}"
        f"{near_by}; --list alone shows all names"
    )


def _kind(kind: Kind) -> str:
    lines = ((s.offer.name, _free(s), _about(kind, s)) for s in signatures(kind))
    return "\n".join([f"{PLACES[kind]}:", *_columns(lines)])


def _configs() -> str:
    lines = ((name, "", _first_comment(p)) for name, p in reading.built_in().items())
    return "\n".join([f"{_CONFIGS}:", *_columns(lines)])


def _columns(lines: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    known = list(lines)
    width = max((len(name) for name, _, _ in known), default=0)
    for name, parameters, summary in known:
        yield f"  {name:{width}}  {summary}{f'  [{parameters}]' if parameters else ''}".rstrip()


def _about(kind: Kind, it: Signature) -> str:
    """A file's first line says what a method or a world is, the function's gives its formula."""
    return it.heading or it.offer.summary if PLACES[kind] in offers.OPEN else it.offer.summary


def _free(it: Signature) -> str:
    return ", ".join(
        p.name + (f"={ast.unparse(p.default)}" if p.default is not None else "")
        for p in it.parameters
    )


def _whole(kind: Kind, it: Signature) -> str:
    """One factory: what it is, what it takes, how to name it, where it comes from."""
    about, name = _about(kind, it), it.offer.name
    text = [f"{kind} {name}: {about}" if about else f"{kind} {name}"]
    text += [f"    {p}" + "  (required)" * (p.default is None) for p in it.parameters]
    if it.open and it.offer.signature:
        text.append("    and whatever else is given")
    rest = it.text.removeprefix(about).strip() if it.text.startswith(about) else it.text
    if rest:
        text += ["", textwrap.indent(rest, "  "), ""]
    if key := _KEYS.get(kind):
        given = "".join(f", {n}: …" for n in it.required)
        text.append(f"  named by  {key}={f'{{name: {name}{given}}}' if given else name}")
    return "\n".join([*text, f"  from      {_origin(it.offer.origin)}"])


def _origin(origin: str) -> str:
    return near(Path(origin)) if Path(origin).is_absolute() else origin


def _config(name: str, path: Path) -> str:
    text = path.read_text(encoding="utf-8").rstrip()
    return f"config {name}:\n{textwrap.indent(text, '    ')}\n  from      {near(path)}"


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
