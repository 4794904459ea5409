"""The command `fedkd WORD …`, also as `python -m fedkd WORD …`: each word is a module of its own.

A word's module is imported when the word is given, so that help never waits for another's needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fedkd import __version__, shell
from fedkd.commands import COMMANDS
from fedkd.faults import did_you_mean, shown

_HELP = """\
usage: {prog} WORD ...

Simulate federated distillation: clients train on private data and share answers on a public set,
not weights; a server's student learns from them.

words:
{words}

examples:
  {prog} simulate                           the default: ten clients, five architectures
  {prog} simulate --explain                 who would train what, and what it would cost
  {prog} simulate --list                    all methods, worlds, models, data, configs
  {prog} simulate strategy=NAME rounds=20   another method of --list, for longer
  {prog} report runs/A runs/B               runs side by side
  {prog} check strategies/mine.py           whether a method of yours keeps the contract

{prog} WORD --help tells more of a word, and {prog} --version the version.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    word, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if word in COMMANDS:
        done: int = importlib.import_module(COMMANDS[word].module).main(rest)
        return done
    if word in ("--help", "-h", "help"):
        print(_help())
        return 0
    if word == "--version":
        print(f"fedkd {__version__}")
        return 0
    if not word:
        print(_help(), file=sys.stderr)
        return 2
    near = did_you_mean(word, COMMANDS)
    known = ", ".join(COMMANDS)
    print(f"fedkd: there is no command {shown(word)}{near}; there are {known}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {word:{width}}  {command.summary}" for word, command in COMMANDS.items())
    return _HELP.format(prog=shell.typed(""), words="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
