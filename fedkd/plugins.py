"""Names into factories, and factories into objects.

A plain name is looked up as `fedkd.offers` says; `pkg.mod:factory` is imported as written. The
factory's signature is the schema of its parameters. Every fault is one `ConfigError`.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fedkd.config import Named
from fedkd.faults import ConfigError, did_you_mean, shown
from fedkd.offers import (
    OPEN,
    PLACES,
    Kind,
    Offer,
    binds,
    candidates,
    content_of,
    folders,
    offers,
    search_folders,
    searched,
)
from fedkd.parameters import Factory, check

__all__ = ["Factory", "Kind", "Offer", "bind", "build", "offers", "resolve", "search_folders"]


def build(
    kind: Kind,
    spec: Named,
    *args: object,
    search: Sequence[str] = (),
    expect: type | tuple[type, ...] | None = None,
    where: str,
) -> object:
    """Call the factory that `spec` names with `args` and, by keyword, the checked `spec.params`.

    `where` is the place in the config that errors begin with. Raises `ConfigError` for all that
    `resolve` refuses, for a parameter that the factory's signature does not admit, for whatever
    the factory raises, and for a result that is not an instance of `expect`.
    """
    return bind(kind, spec, taken=len(args), search=search, expect=expect, where=where)(*args)


def bind(
    kind: Kind,
    spec: Named,
    *,
    taken: int = 0,
    search: Sequence[str] = (),
    expect: type | tuple[type, ...] | None = None,
    where: str,
) -> Factory:
    """The first half of `build`: find and check once, call with `taken` arguments many times."""
    factory = _resolve(kind, spec.name, search, where)
    params = check(factory, spec.params, taken=taken, label=spec.name, where=where)

    def call(*args: object) -> object:
        try:
            made = factory(*args, **params)
        except ValueError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from error
        except (Exception, SystemExit) as error:
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"{where}: {spec.name} should work with its parameters, found {fault[:300]};"
                " change them or correct it"
            ) from error
        if expect is not None and not isinstance(made, expect):
            kinds = expect if isinstance(expect, tuple) else (expect,)
            raise ConfigError(
                f"{where}: {spec.name} ({_file_of(factory)}) should return "
                f"{' or '.join(k.__name__ for k in kinds)}, found {type(made).__name__}; "
                "correct its return statement or name another factory"
            )
        return made

    return call


def resolve(kind: Kind, name: str, search: Sequence[str] = ()) -> Factory:
    """The factory called `name`: a plain name, or `pkg.mod:factory` imported as written.

    Puts the `search` folders at the end of `sys.path`. A later call with other folders takes them
    away again together with the modules that came from them, so that a process that serves
    several runs never gives one run the code of another; a call without folders changes nothing.
    """
    return _resolve(kind, name, search, kind)


def _resolve(kind: Kind, name: str, search: Sequence[str], where: str) -> Factory:
    _reach(search)
    if ":" in name:
        return _load(name, where)
    found = [c for c in candidates(kind, search) if c.name == name]
    found = [f for f in found if binds(f)] or found if len(found) > 1 else found
    if not found:
        raise ConfigError(_unknown(kind, name, search, where))
    if len(found) > 1:
        origins = " and by ".join(f.origin for f in found)
        raise ConfigError(
            f"{where}: {name} is offered more than once, by {origins}; "
            "rename or remove all but one, or write pkg.mod:factory for the one you mean"
        )
    file = found[0].file
    if file is not None and found[0].origin == str(file) and PLACES[kind] in OPEN:
        _prefer(PLACES[kind], file, where)
    return _load(found[0].target, where)


def _unknown(kind: Kind, name: str, search: Sequence[str], where: str) -> str:
    known = sorted({o.name for o in offers(kind, search)})
    place, way_out = PLACES[kind], "write pkg.mod:factory for one of your own"
    looked = f"fedkd.{place}"
    if place in OPEN:
        paths = (f / place for f in folders(search))
        looked = ", ".join(str(p) for p in paths if os.path.isdir(p)) or f"no folder {place}/"
        way_out = f"put a file NAME.py with a function NAME into {place}/ or {way_out}"
    return (
        f"{where}: there is no {kind} called {shown(name)}{did_you_mean(name, known)}; "
        f"there are {', '.join(known) or 'none'} (looked in {looked}, and for entry points "
        f"fedkd.{place}); {way_out}"
    )


def _reach(search: Sequence[str]) -> None:
    """Make the folders importable and both namespaces the union of all their folders."""
    first = _namespace(OPEN[0])
    ours: list[str] = list(vars(first).get("__searched__", ()))  # kept where sys.path is: globally
    gone: set[Path] = set()
    if search:
        wanted = [str(path) for path in searched(search)]
        gone = {Path(p) for p in ours if p not in wanted}
        sys.path[:] = [p for p in sys.path if Path(p) not in gone]
        there = {str(Path(p).resolve()) for p in sys.path}
        new = [p for p in dict.fromkeys(wanted) if p not in there]
        sys.path += new
        vars(first)["__searched__"] = tuple([p for p in ours if p in wanted] + new)
    places = folders(search)
    for place in OPEN:
        module = _namespace(place)
        file = getattr(module, "__file__", None)
        paths = [str(Path(file).parent)] if file and Path(file).name == "__init__.py" else []
        paths += [str(f / place) for f in places if os.path.isdir(f / place)]
        module.__path__ = list(dict.fromkeys(paths))
        if module.__spec__ is not None:
            module.__spec__.submodule_search_locations = list(module.__path__)
        inside = f"{place}."
        _forget(
            n
            for n in list(sys.modules)
            if n.startswith(inside) and str(_root(n) / place) not in paths
        )
    if gone:
        _forget(n for n in list(sys.modules) if n != "__main__" and _root(n) in gone)
    importlib.invalidate_caches()  # a file written a moment ago must be seen


def _namespace(place: str) -> ModuleType:
    """The module `place`, made by hand: a user's `__init__.py` would shadow the other folders."""
    module = sys.modules.get(place)
    if module is None:
        module = ModuleType(place)
        module.__spec__ = ModuleSpec(place, None, is_package=True)
        module.__path__ = []
        sys.modules[place] = module
    return module


def _prefer(place: str, wanted: Path, where: str) -> None:
    """See to it that importing `place.name` gives this file and no other of the same name."""
    folder, inside = str(wanted.parent), wanted.with_suffix("") / "__init__.py"
    if inside.is_file():
        raise ConfigError(f"{where}: {inside} hides the file {wanted}; rename one of them")
    path = _namespace(place).__path__
    path[:] = [folder, *(p for p in path if p != folder)]
    loaded = sys.modules.get(f"{place}.{wanted.stem}")
    file = getattr(loaded, "__file__", None)
    if loaded is not None and (not file or content_of(Path(file)) != content_of(wanted)):
        _forget([f"{place}.{wanted.stem}"])


def _root(name: str) -> Path:
    """The folder that the import of a loaded module started from; the module's name if none."""
    file = getattr(sys.modules[name], "__file__", None)
    if not file:
        return Path(name)
    above = Path(file).resolve().parents
    depth = name.count(".") + (Path(file).name == "__init__.py")
    return above[depth] if depth < len(above) else Path(name)


def _forget(names: Iterable[str]) -> None:
    for name in list(names):
        del sys.modules[name]
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(last, None)


def _load(target: str, where: str) -> Factory:
    name, _, path = target.partition(":")
    if not all(part.isidentifier() for part in [*name.split("."), *path.split(".")]):
        raise ConfigError(
            f"{where}: should read pkg.mod:factory or be a plain name, found {shown(target)};"
            " correct it"
        )
    module = _import(name, where)
    file = getattr(module, "__file__", None) or name
    try:
        factory: object = operator.attrgetter(path)(module)
    except AttributeError:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"{where}: {file} has no {path}{did_you_mean(path, known)}; define a function "
            f"{path} there or name another factory"
        ) from None
    if not callable(factory):
        raise ConfigError(
            f"{where}: {path} in {file} must be a function that can be called, "
            f"found {type(factory).__name__}; define a function {path} there"
        )
    return factory


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise ConfigError(
            f"{where}: {error.filename or name}, line {error.lineno}: {error.msg}{text}; "
            "correct the file"
        ) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: there is no module {name}: {error}; put it into the working directory "
                "or a folder of execution.search, or install it"
            ) from None
        raise ConfigError(
            f"{where}: importing {name} failed with {type(error).__name__}: {error} "
            f"({_line_of(error)}); correct the file or install what it needs"
        ) from error


def _line_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    # a library that fails deep inside, or hooks sys.exit, is not where the fault can be corrected
    told = [f for f in outside if "site-packages" not in f.filename] or outside
    return f"{told[-1].filename}, line {told[-1].lineno}" if told else "no source"


def _file_of(factory: Factory) -> str:
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    return getattr(module, "__file__", None) or "no file"
