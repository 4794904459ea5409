"""Completion in a shell: `fedkd completion bash|zsh|fish` prints the script that asks for words.

The script calls `fedkd completion --words WORD…` with what stands on the line so far and gets what
the last word may become, one a line. Options are read from a command's own help, keys and values of
overrides from the schema of a config, so that there is no list of them to be kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from fedkd import offers, reading, shell
from fedkd.commands import COMMANDS
from fedkd.config import ConfigError, load_config

_BASH = """\
_fedkd() {
    local line=${COMP_LINE:0:COMP_POINT} prefix= found
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local current=${words[${#words[@]} - 1]}
    # to bash, what stands before the last = or : is a word of its own
    [[ $COMP_WORDBREAKS == *=* ]] && prefix=${current%"${current##*[=:]}"}
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found#"$prefix"}")
    done < <("${words[0]}" completion --words "${words[@]:1}" 2> /dev/null)
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2> /dev/null
    return 0
}
complete -o default -F _fedkd fedkd
"""
_ZSH = """\
#compdef fedkd
_fedkd() {
    local -a found whole begun
    found=(${(f)"$("${words[1]}" completion --words "${(@)words[2,CURRENT]}" 2> /dev/null)"})
    (( $#found )) || { _files; return }
    whole=(${found:#*[=.]})
    begun=(${(M)found:#*[=.]})
    compadd -Q -- $whole
    compadd -Q -S '' -- $begun
}
compdef _fedkd fedkd
"""
_FISH = """\
function __fedkd_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    $words[1] completion --words $words[2..-1] "$current" 2> /dev/null
end
complete -c fedkd -a '(__fedkd_words)'
"""
SCRIPTS: Mapping[str, str] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_EPILOG = """\
examples:
  eval "$(%(prog)s bash)"                                  in ~/.bashrc
  source <(%(prog)s zsh)                                   in ~/.zshrc, after compinit
  %(prog)s fish > ~/.config/fish/completions/fedkd.fish    once

Words, options, configs, keys (clients.0.model=) and what is on offer as a value are completed.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""
# an option of a help text and what stands behind it: `  -h, --help`, `  --out FOLDER   a folder`
_OPTION = re.compile(r"^  (?:-\w(?: \S+)?, )?(--[\w-]+)(?: (\S+(?: \.\.\.)?))?(?:  .*)?$", re.M)
_CHOICES = re.compile(r"^  \{([\w,]+)\}", re.M)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--words"]:  # what comes behind it is somebody else's options
        return shell.answered(lambda: _complete(words[1:]), False)
    parser = argparse.ArgumentParser(
        prog=shell.typed("completion"),
        description="Print the script that completes the command line in a shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=[*SCRIPTS], help="the shell that is to complete")
    print(SCRIPTS[parser.parse_args(words).shell], end="")
    return 0


def _complete(words: Sequence[str]) -> int:
    for candidate in candidates(words):
        print(candidate)
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words behind `fedkd` may become; empty where it is a file or anything.

    A candidate that ends in `=` or `.` is to be gone on with.
    """
    *before, word = words or [""]
    if not before:
        found: Iterable[str] = [*COMMANDS, "--help", "--version"]
    elif before[0] in COMMANDS:
        found = _of_command(before[0], before[1:], word)
    else:
        found = ()
    return sorted({c for c in found if c.startswith(word)})


def _of_command(command: str, given: Sequence[str], word: str) -> Iterable[str]:
    said, options = _help(command), options_of(command)
    option, sign, _ = word.partition("=")
    if word.startswith("-"):
        values = (f"{option}={v}" for v in _values_of(option, options.get(option, "")))
        return values if sign else options
    if given and options.get(given[-1]):
        if found := list(_values_of(given[-1], options[given[-1]])):
            return found
        if not options[given[-1]].startswith("["):
            return ()
    taken = {i + 1 for i, w in enumerate(given) if options.get(w)}
    free = [w for i, w in enumerate(given) if i not in taken and not w.startswith("-")]
    if "key=value" in said:
        return [*reading.built_in(), *assignments(word, free)]
    if "param=value" in said:
        return _parameters(word, free)
    return [choice for found in _CHOICES.findall(said) for choice in found.split(",")]


def options_of(command: str) -> dict[str, str]:
    """The options of a command by its help, each with what stands behind it."""
    return dict(_OPTION.findall(_help(command)))


@cache
def _help(command: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[command].module).main(["--help"])
    return said.getvalue()


def _values_of(option: str, metavar: str) -> Iterable[str]:
    """What may stand behind an option: the words of `ray|local`, of `{a,b}` and of `--list`."""
    if option == "--list":
        from fedkd import listing

        return listing.words()
    found = re.split(r"[|,]", metavar.strip("[]{}"))
    return found if len(found) > 1 and all(w.islower() for w in found) else ()


def _parameters(word: str, free: Sequence[str]) -> Iterable[str]:
    """A method, and behind it its parameters."""
    from fedkd.schema import plugin

    if not free:
        return [o.name for o in offers.offers("strategy")]
    node = {"anyOf": [plugin("strategy")]}
    return _found(node, {}, {"name": free[0]}, word, "")


def assignments(word: str, given: Sequence[str]) -> list[str]:
    """What a `key=value` may become; `given` are the config and the overrides before it."""
    from fedkd.schema import schema

    made = schema()
    parts = made["$defs"]
    *above, last = word.partition("=")[0].split(".")
    node, value = made, _tree(given)
    for step in above:
        inner = [below for b in _branches(node, parts, value) if (below := _below(b, step))]
        node, value = {"anyOf": inner}, _at(value, step)
    rest = last + "".join(word.partition("=")[1:])
    return list(_found(node, parts, value, rest, "".join(f"{step}." for step in above)))


def _found(node: Any, parts: Any, value: Any, rest: str, prefix: str) -> Iterator[str]:  # Any: JSON
    """Keys of a place as `key=`, `key.`, or the values of one of them as `key=value`."""
    key, sign, _ = rest.partition("=")
    unnamed = {} if key == "name" else value  # any other name may be chosen, too
    for branch in _branches(node, parts, unnamed if sign else value):
        if sign:
            for leaf in _branches(_below(branch, key) or {}, parts, {}):
                yield from (f"{prefix}{key}={v}" for v in _values(leaf))
            continue
        for name, below in branch.get("properties", {}).items():
            for leaf in _branches(below, parts, {}):
                yield f"{prefix}{name}" + ("." if leaf.get("type") == "object" else "=")
                if leaf.get("type") == "array" and _holds_mappings(leaf, parts):
                    yield f"{prefix}{name}."
        if branch.get("type") == "array" and isinstance(value, list):
            yield from (f"{prefix}{i}." for i in range(len(value)))


def _holds_mappings(array: Any, parts: Any) -> bool:  # Any: JSON
    inner = _branches(array.get("items", {}), parts, {})
    return any(branch.get("type") == "object" for branch in inner)


def _branches(node: Any, parts: Any, value: Any) -> Iterator[Any]:  # Any: JSON
    """The alternatives of a place, references followed, without those for another name."""
    if "$ref" in node:
        yield from _branches(parts[node["$ref"].rpartition("/")[2]], parts, value)
    elif "anyOf" in node:
        for inner in node["anyOf"]:
            yield from _branches(inner, parts, value)
    else:
        chosen = value.get("name") if isinstance(value, dict) else value
        called = node.get("properties", {}).get("name", {})
        known = called.get("enum", [called.get("const")])
        other = isinstance(chosen, str) and known != [None] and chosen not in known
        if not (other or (isinstance(value, list) and node.get("type") == "object")):
            yield node


def _below(branch: Any, step: str) -> Any:  # Any: JSON
    if branch.get("type") == "array" and step.isdecimal():
        return branch.get("items")
    return branch.get("properties", {}).get(step)


def _at(value: Any, step: str) -> Any:  # Any: JSON
    if isinstance(value, list):
        return value[int(step)] if step.isdecimal() and int(step) < len(value) else None
    return value.get(step) if isinstance(value, dict) else None


def _values(leaf: Any) -> Iterator[str]:  # Any: JSON
    if leaf.get("type") == "boolean":
        yield from ("true", "false")
    known = leaf.get("enum", [leaf["const"]] if "const" in leaf else [])
    yield from (str(v) for v in known)


def _tree(given: Sequence[str]) -> Any:  # Any: nested YAML
    """What the line so far comes to, as far as it can be read."""
    names = [w for w in given if "=" not in w][:1] or ["digits"]
    overrides = [w for w in given if "=" in w]
    for name, changes in ((names[0], overrides), (names[0], []), ("digits", [])):
        try:
            return load_config(name, changes).model_dump(mode="json")
        except ConfigError:  # it will be told when the command is called
            continue
    return {}


if __name__ == "__main__":
    sys.exit(main())
