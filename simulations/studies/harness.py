"""What all studies share: settings × seeds as one sweep, then a table, a picture and all figures.

A study is no world: plain names are looked up in `simulations/` alone, not in folders below it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedkd import board, drawing, folder, shell, sweep
from fedkd.faults import ConfigError
from fedkd.figures import figures
from fedkd.reporting.statistics import Spread
from fedkd.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tree = dict[str, Any]  # Any: YAML, checked by `fedkd.sweep`
Settings = Mapping[str, Mapping[str, Any]]
Runs = Mapping[str, Sequence[Run]]  # by the name of the setting, a run a seed

_FASHION_MNIST = {"test": 2000, "validation": 100, "public": 500, "private": 1500}
_POOL = 10_000  # training samples that a seed draws its private and public ones from
_DIGITS = {"test": 300, "validation": 40, "public": 120, "private": 600}


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line asks for."""

    study: str
    seeds: int
    out: Path
    quick: bool
    runtime: str
    command: str
    only: tuple[str, ...] = ()  # the parts that are asked for; none named, all of them


@dataclass(frozen=True, slots=True)
class Findings:
    """What a study has found: figures for machines, a text and a picture for readers."""

    rows: Sequence[Mapping[str, object]]
    text: str  # Markdown
    picture: bytes | None = None  # PNG


class Guarantee(NamedTuple):
    """Of the worst client, for all that a run has let out, under a neighbouring relation."""

    epsilon: float
    delta: float
    relation: str


def main(
    study: str,
    about: str,
    seeds: int,
    do: Callable[[Given], tuple[Tree, Settings, Runs, Findings]],
    arguments: Sequence[str] | None = None,
    parts: Sequence[str] = (),
) -> int:
    """The command line of a study, which may have `parts`; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog=f"python -m simulations.studies.{study}",
                                     description=about)  # fmt: skip
    add = parser.add_argument
    add("--seeds", type=int, metavar="N", help=f"how many seeds ({seeds}; 2 with --quick)")
    add("--out", default=f"runs/studies/{study}", metavar="FOLDER",
        help="what is finished in it is not done again (%(default)s)")  # fmt: skip
    add("--quick", action="store_true", help="a few settings, on digits: does it run?")
    add("--runtime", choices=("ray", "local"), default="ray",
        help="several runs at once, or here, one after the other (%(default)s)")  # fmt: skip
    if parts:
        add("--only", nargs="+", choices=parts, default=[], metavar="PART",
            help=f"these alone: {', '.join(parts)}")  # fmt: skip
    asked = parser.parse_args(words)
    count = (2 if asked.quick else seeds) if asked.seeds is None else asked.seeds
    shown = shlex.join([w for w in words if w not in ("--out", asked.out)])
    command = f"python -m simulations.studies.{study} {shown}".strip()
    only = tuple(asked.only) if parts else ()
    given = Given(study, count, Path(asked.out), asked.quick, asked.runtime, command, only)
    return shell.answered(lambda: _do(given, do), False)


def _do(given: Given, do: Callable[[Given], tuple[Tree, Settings, Runs, Findings]]) -> int:
    if given.seeds < 2:
        raise ConfigError(
            f"--seeds: should be at least 2, so that there is a spread, found {given.seeds};"
            " ask for more"
        )
    base, settings, runs, found = do(given)
    # a part that trains nothing has neither an experiment nor runs
    there = [those[0].folder for those in runs.values()]
    first = folder.about(there[0]) if there else folder.surroundings()
    of_data = base.get("data", {})
    data = {k: v for k, v in of_data.items() if k != "source"}
    told = {
        "study": given.study,
        "command": given.command,
        "date": date.today().isoformat(),
        "seeds": given.seeds,
        "machine": first["machine"],
        "versions": first["versions"],
        "source": of_data.get("source", {}).get("name"),
        "base": {**{k: v for k, v in base.items() if k != "execution"}, "data": data},
        "settings": settings,
        "rows": found.rows,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    folder.write_json(given.out / "results.json", told)
    (given.out / "results.md").write_text(found.text, encoding="utf-8")
    if found.picture is not None:
        (given.out / f"{given.study}.png").write_bytes(found.picture)
    print(found.text)
    print(f"All of it {shell.near(given.out.absolute())}")
    return 0


def small(given: Given, clients: int, rounds: int, **changes: object) -> Tree:
    """The experiment that settings vary: DS-FL's plain mean over small perceptrons, IID."""
    learning = {"epochs": 2, "batch": 50, "optimizer": {"name": "adam", "lr": 0.002}}
    off = ("pooled", "local", "labels", "metrics", "disagreement", "teachers")
    return {
        "name": given.study,
        "rounds": 2 if given.quick else rounds,
        "data": changes.get("data") or _usual(given),
        "clients": [{"count": clients, "model": [{"name": "mlp", "hidden": [32]}]}],
        "student": {"name": "mlp", "hidden": [32]},
        "strategy": {"name": "dsfl", "aggregation": "sa", "rows": None},
        "learning": {phase: learning for phase in ("private", "client", "server")},
        "evaluation": dict.fromkeys(off, False),
        "compute": {"device": "cpu", "task_threads": 1, "server_threads": 1},
        **changes,
    }


def dirichlet(alpha: float = 0.1) -> Tree:
    """A partition by label in shares of a Dirichlet distribution."""
    return {"name": "dirichlet", "alpha": alpha, "min_size": 10}


def idx_files(name: str) -> Path:
    """The folder of a data set in `FEDKD_DATA`. Raises `ConfigError` where there is none."""
    asked = os.environ.get("FEDKD_DATA")
    place = Path(asked or ".") / name
    if asked is None or not place.is_dir():
        raise ConfigError(
            f"FEDKD_DATA: should name the folder that holds {name}/ with the four IDX files,"
            f" found {asked or 'nothing'}; set it, or try --quick, which is on digits"
        )
    return place


def _usual(given: Given) -> Tree:
    if given.quick:
        return digits()
    source = stored(given, "fashion_mnist", _POOL, _FASHION_MNIST["test"])
    return {"source": source, **_FASHION_MNIST, "partition": {"name": "iid"}}


def digits() -> Tree:
    """Small data that need no file, for a try."""
    return {"source": {"name": "digits"}, **_DIGITS, "partition": {"name": "iid"}}


def stored(given: Given, name: str, training: int, tested: int) -> Tree:
    """The first samples of an IDX set as one small file, of which every seed draws its own.

    A run keeps a copy of its source, and the whole of it hundreds of times would be too much.
    """
    place = idx_files(name)
    file = given.out / f"{name}.npz"
    if not file.exists():
        import numpy as np

        from fedkd import sources

        whole = sources.idx(str(place))
        assert whole.x_test is not None and whole.y_test is not None, "it is a file of its own"
        given.out.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            x_train=whole.x_train[:training],
            y_train=whole.y_train[:training],
            x_test=whole.x_test[:tested],
            y_test=whole.y_test[:tested],
        )
    return {"name": "npz", "file": str(file.resolve())}


def carried_out(given: Given, base: Tree, settings: Settings) -> Runs:
    """Every setting with every seed, as one sweep. Raises `ConfigError` where a run has failed."""
    seeds = list(range(given.seeds))
    runs = iter(swept(given, base, {"seed": seeds}, list(settings.values()), "sweep"))
    return {name: [next(runs) for _ in seeds] for name in settings}


def swept(
    given: Given,
    base: Tree,
    vary: Mapping[str, Sequence[Any]],
    sets: Sequence[Mapping[str, Any]],
    name: str,
) -> list[Run]:
    """The runs of a sweep that is kept under `name`, each of `sets` with the whole grid of `vary`.

    Raises `ConfigError` where a run has failed.
    """
    with board.watching() as looking:
        done = sweep(
            base,
            vary,
            sets=sets,
            # a run is so short that one commit, at its end, is enough
            overrides=[f"execution.runtime={given.runtime}", "execution.commit_every=1000"],
            out=given.out / name,
            board=looking,
        )
    if done.failed:
        bad = done.failed[0]
        raise ConfigError(
            f"study: every run should end, found {len(done.failed)} that failed, the first"
            f" {dict(bad.values)}: {bad.error}; give the same command again"
        )
    assert len(done.runs) == len(sets) * math.prod(map(len, vary.values())), "two are the same"
    return [each.run for each in done.runs]


def guarantee(run: Run, unit: str) -> Guarantee | None:
    """What the run itself has reckoned for a unit at its end (`privacy.json`); None if nothing."""
    told = json.loads((run.folder / "privacy.json").read_text("utf-8"))
    found = [each for each in told["guarantees"] if each["unit"] == unit]
    assert len(found) < 2, "two relations of one unit are two figures"
    for each in found:
        return Guarantee(each["epsilon"], told["delta"], each["relation"])
    return None


def final(run: Run, figure: str = "student/test") -> float:
    """A figure of the last round."""
    return figures(run.records[-1])[figure]


def percent(given: Spread) -> str:
    """Mean and standard deviation in percent: `81.2 ± 0.4`."""
    return f"{100 * given.mean:.1f} ± {100 * (given.deviation or 0):.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def heat(axes: Axes, means: Sequence[Sequence[float]], across: Sequence[str],
         down: Sequence[str], title: str, names: bool) -> None:  # fmt: skip
    """A table of accuracies in 0..1 as colours, with the figures in percent on them."""
    axes.imshow([[100 * m for m in row] for row in means], vmin=0, vmax=100, cmap="cividis",
                aspect="auto")  # fmt: skip
    axes.set_xticks(range(len(across)), across, rotation=35, ha="right")
    axes.set_yticks(range(len(down)), down if names else [""] * len(down))
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(length=0)
    for i, row in enumerate(means):
        for j, mean in enumerate(row):
            axes.text(j, i, f"{100 * mean:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if mean < 0.5 else drawing.INK)  # fmt: skip
