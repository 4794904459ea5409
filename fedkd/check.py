"""Hold a method to the contract: `fedkd check strategies/mine.py`, also of third parties.

The laws are those of `contract`, on made-up answers that are always the same. Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd import reading, shell
from fedkd.config import ConfigError, Named
from fedkd.faults import shown

if TYPE_CHECKING:
    from fedkd.contract import Law
    from fedkd.types import Predictions, Strategy

_EPILOG = """\
examples:
  %(prog)s strategies/mine.py                  the function `mine` of that file
  %(prog)s strategies/mine.py:other power=2    another function, with a parameter
  %(prog)s my_lab.rules:my_rule                of a module that can be imported
  %(prog)s NAME                                a method on offer, as in --list strategies

Exceptions are traits that the method declares (see docs/strategies.md); a check that they except
is not made. Each failure is told with what was expected, what was found, and the way out.
exit codes: 0 all kept, 1 something is broken, 2 cannot be loaded, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("check"),
        description="Hold a method to what every method keeps, on made-up answers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("method", metavar="METHOD", help="a file, package.module:function, or a name on offer")
    add(
        "params", nargs="*", metavar="param=value", help="parameters of the method; values are YAML"
    )
    add("--quiet", action="store_true", help="only what failed")
    add("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_intermixed_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _do(given: argparse.Namespace) -> int:
    made = method(given.method, given.params)
    from fedkd import contract

    kept = failed = 0
    for law in contract.EVERY:
        broken = fault(law, made)
        if broken is not None:
            failed += 1
            print(_failure(law, *broken))
            if given.debug:
                traceback.print_exception(broken[0])
        elif reason := law.excepted(made):
            if not given.quiet:
                print(f"—       {law.says}: {reason}")
        else:
            kept += 1
            if not given.quiet:
                print(f"ok      {law.says}")
    if not given.quiet:
        print(f"\n{kept} kept, {failed} broken, {len(contract.EVERY) - kept - failed} not asked")
    return 1 if failed else 0


def method(name: str, params: Sequence[str]) -> Strategy:
    """The strategy of a file, of a module or by its name. Raises `ConfigError`."""
    tree: reading.Tree = {"name": name}
    for item in params:
        if not item.partition("=")[1] or item.startswith("name="):
            raise ConfigError(
                f"command line: a parameter should read param=value, found {shown(item)};"
                " one method is checked at a time"
            )
        tree = reading.override(tree, item, lambda steps: None)
    file, _, function = name.partition(".py:") if ".py:" in name else (name, "", "")
    path = Path(file if file.endswith(".py") else f"{file}.py") if function else Path(file)
    if path.suffix == ".py":
        tree["name"] = f"{_reached(path)}:{function or path.stem}"
    from fedkd import plugins
    from fedkd.types import Strategy

    made = plugins.build("strategy", Named(**tree), expect=Strategy, where="strategy")
    assert isinstance(made, Strategy)
    found = sys.modules.get(path.stem) if path.suffix == ".py" else None
    if found and Path(found.__file__ or "").resolve() != path.resolve():
        raise ConfigError(
            f"strategy: {path} should be loaded by its name {path.stem}, found the module"
            f" {found.__file__} of that name; rename the file"
        )
    return made


def _reached(path: Path) -> str:
    """The module that a file is, its folder being made the first to be searched."""
    if not path.is_file():
        raise ConfigError(
            f"strategy: should be a file, package.module:function or a name of --list strategies,"
            f" found no file {path}; correct the path"
        )
    sys.path.insert(0, str(path.resolve().parent))
    return path.stem


def fault(law: Law, made: Strategy) -> tuple[Exception, Predictions] | None:
    """The first made-up answers for which a law does not hold, and how; None where it does."""
    from fedkd.contract import made_up

    for logits in made_up():
        try:
            law(made, logits)
        except Exception as error:  # a method's own code may raise anything
            return error, logits
    return None


def _failure(law: Law, error: Exception, logits: Predictions) -> str:
    from fedkd.contract import Broken

    j, r, c = logits.scores.shape
    made_of = f"answers of {j} clients about {r} rows, {c} classes"
    if isinstance(error, Broken):
        expected, found = error.expected, error.found
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        expected = "a method that can do with such answers"
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found += f" ({frame.filename}, line {frame.lineno})"
    return (
        f"FAILED  {law.says}\n"
        f"          expected  {expected}\n"
        f"          found     {found}; {made_of}\n"
        f"          way out   {law.way_out}"
    )


if __name__ == "__main__":
    sys.exit(main())
