"""An experiment from the command line: `fedkd simulate [CONFIG] [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedkd import listing, shell
from fedkd.config import Config, ConfigError, load_config

_EPILOG = """\
examples:
  %(prog)s                          the default: ten clients, five architectures
  %(prog)s --quick                  the same with small models, for the impatient
  %(prog)s --explain                who would train what, and what it would cost
  %(prog)s --list                   all methods, worlds, models, data, configs
  %(prog)s --list NAME              one of them: what it is and what it takes
  %(prog)s strategy=NAME rounds=20  another method of --list, for longer
  %(prog)s clients.0.count=20 data.partition.alpha=0.5 seed=3
  %(prog)s my.yaml --runtime local  in this process, where breakpoints work
  %(prog)s --resume runs/A          go on with a run that was cut off
  %(prog)s --resume runs/A execution.workers=8   the same, carried out otherwise
  %(prog)s --resume runs/A --branch runs/B rounds=40   from there, something else

A key is a path in the config (see configs/digits.yaml); a value is YAML. Of one and the same key,
the option wins over key=value, key=value over --quick, and --quick over CONFIG.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _parser().parse_intermixed_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=shell.typed("simulate"),
        description="Simulate federated distillation: clients share answers on a public set,\n"
        "and a server's student learns from them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="CONFIG | key=value",
        help="a YAML file or the name of a built-in config (digits where none is given), and"
        " any number of overrides")  # fmt: skip
    add("--runtime", metavar="ray|local|flower", help="where the clients run (ray)")
    add("--out", metavar="FOLDER", help="a new folder for the run (runs/NAME-DATE-TIME)")
    add("--resume", metavar="RUN", help="go on with the run in this folder where it was cut off")
    add("--branch", metavar="FOLDER",
        help="with --resume: go on in a new folder, with a changed experiment")  # fmt: skip
    add("--list", nargs="?", const="", metavar="KIND|NAME",
        help="list what a config may name, and the built-in configs; of a kind or a name (as in"
        " --list models, --list mlp) all that there is to know")  # fmt: skip
    add("--explain", action="store_true", help="show the resolved plan and train nothing")
    add("--quick", action="store_true",
        help="all models mlp hidden=[64], learning rate 0.001, at most 5 rounds")  # fmt: skip
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="a traceback for every failure")
    return parser


def _do(given: argparse.Namespace) -> int:
    if given.list is not None:
        print(listing.listed(given.list))
        return 0
    if given.resume is not None:
        return _resume(given)
    if given.branch is not None:
        raise ConfigError("--branch: should come with --resume RUN, found no run to go on with")
    config = _config(given, "digits")
    from fedkd import progress

    if given.explain:
        with progress.watching(config.rounds, given.quiet) as watch:
            watch.stage("load PyTorch")
            from fedkd.explain import explain

            tables = explain(config, watch)
        for number, (title, lines) in enumerate(tables):
            print("\n" * bool(number) + title)
            progress.show(lines, head=len(lines[0]) > 2)
        return 0
    with progress.watching(config.rounds, given.quiet or not config.execution.progress) as watch:
        watch.stage("load PyTorch")
        from fedkd.runs import run

        folder = run(config, watch).folder
        watch.stage("report")
    return _shown(folder)


def _resume(given: argparse.Namespace) -> int:
    refused = [n for n in ("out", "quick", "explain") if getattr(given, n)]
    if any(word.startswith("execution.out=") for word in given.words):
        refused.append("out")
    if refused:
        raise ConfigError(
            f"--{refused[0]}: should not come with --resume, which goes on with a run as it is;"
            " leave it out, or go on in a new folder with --branch FOLDER"
        )
    from fedkd import progress, sessions

    path = Path(given.resume).absolute()
    stored = sessions.config_of(path)
    quiet = given.quiet or not stored.execution.progress
    with progress.watching(stored.rounds, quiet) as watch:
        watch.stage("load PyTorch")
        from fedkd.runs import resume

        done = resume(path, lambda before: _config(given, before), watch, given.branch)
        watch.stage("report")
    return _shown(done.folder)


def _shown(folder: Path) -> int:
    from fedkd import progress, report

    written = report.write(folder)
    progress.show(report.final_table(folder))
    print(f"\nProtected {report.guaranteed(folder)}")
    print(f"Report    {shell.near(written)}")
    print(f"Page      {shell.near(written.with_name('report.html'))}")
    print(f"All of it {shell.near(folder)}")
    return 0


def _config(given: argparse.Namespace, usual: str | Config) -> Config:
    """What the words of the command line ask for, over a built-in config or a stored one."""
    names = [w for w in given.words if "=" not in w]
    overrides = [w for w in given.words if "=" in w]
    if len(names) > 1:
        raise ConfigError(
            f"command line: there should be one CONFIG, found {' and '.join(names)};"
            " an override reads key=value, without spaces"
        )
    for key in ("runtime", "out"):
        if getattr(given, key) is not None:
            overrides.append(f"execution.{key}={json.dumps(getattr(given, key))}")
    if names:
        config = load_config(names[0], overrides)
    elif isinstance(usual, Config):
        config = load_config(usual.model_dump(mode="json"), overrides)
    else:
        config = load_config(usual, overrides)
    return load_config(quick(config), overrides) if given.quick else config


def quick(config: Config) -> dict[str, Any]:  # Any: nested YAML
    """The same experiment with small models and few rounds, to be read by `load_config`."""
    tree = config.model_dump(mode="json")
    small = {"name": "mlp", "hidden": [64]}
    tree |= {"name": f"{config.name[:94]}-quick", "rounds": min(5, config.rounds), "student": small}
    for group in tree["clients"]:
        group |= {"model": [small], "weights": None}
    for learning in tree["learning"].values():
        if isinstance(learning, dict):
            learning["optimizer"]["lr"] = 1e-3
    return tree


if __name__ == "__main__":
    sys.exit(main())
