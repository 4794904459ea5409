"""Run the benchmarks: ours and the other in turn, each in a fresh process; print their ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import command_line, long_run, meter, problems, stacks, sweep
from fedkd import Config, ConfigError, load_config
from fedkd.assemble import prepare, resolve

_ROOT = Path(__file__).resolve().parents[1]
_PROBLEMS: dict[str, Callable[..., problems.Problem]] = {
    "bare_loop": problems.twenty_teachers,
    "plain_flower": problems.thousand_clients,
    "commits": problems.twenty_teachers,
}
_ALONE: dict[str, Callable[[], Any]] = {
    "stacks": stacks.measure,
    "long_run": long_run.measure,
    "command_line": command_line.measure,
    "sweep": sweep.measure,
}
_NAMES = (*_PROBLEMS, *_ALONE)
_MEASURES = {
    "elapsed": "whole run, elapsed",
    "cpu": "whole run, CPU of all processes",
    "round": "a round after the first, elapsed",
    "round_cpu": "a round after the first, CPU",
}
Result = dict[str, Any]  # Any: JSON


def main(arguments: Sequence[str]) -> int:
    """Measure what is named and print it; 2 for what cannot be measured as asked."""
    asked = _parser().parse_args(arguments)
    about = _about(arguments)
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    results: dict[str, Any] = {}
    try:
        for name in asked.names or _NAMES:
            print(flush=True)
            results[name] = _ALONE[name]() if name in _ALONE else _beside(name, asked)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if asked.json:
        text = json.dumps({"about": about, "results": results}, indent=1)
        Path(asked.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", choices=[[], *_NAMES], metavar="NAME", help=", ".join(_NAMES))
    add("--pairs", type=int, default=2, help="how often each side runs (2)")
    add("--clients", type=int, help="20 in bare_loop and 1000 in plain_flower if not given")
    add("--rounds", type=int, help="5 in bare_loop and 3 in plain_flower if not given")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config")
    add("--json", metavar="FILE", help="write the results there as well")
    return parser


def _about(arguments: Sequence[str]) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    libraries = ("torch", "flwr", "ray", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "a processor without a name"
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, "a processor without a name")


def _beside(name: str, asked: argparse.Namespace) -> Result:
    """Both sides in turn on one problem, and what came of it."""
    sizes = {k: v for k in ("clients", "rounds") if (v := getattr(asked, k)) is not None}
    problem = _PROBLEMS[name](problems.data_folder(), **sizes)
    config = resolve(load_config(problem, asked.set))
    print(f"{name}: {len(config.models)} clients, {config.rounds} rounds", end=", ")
    print(f"{config.execution.workers} workers on {config.execution.runtime}", flush=True)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="fedkd-benchmark-") as place:
        folder = Path(place)
        prepare(config, folder / "data")
        _write(config, folder / "config.json")
        for _ in range(asked.pairs):
            pairs.append({side: _run(side, folder) for side in ("ours", name)})
            _same_work(name, pairs[-1])
    return _shown(name, pairs)


def _write(config: Config, path: Path) -> None:
    path.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")


def _run(side: str, folder: Path) -> Result:
    """One side in a fresh process: what it says of itself, and its seconds from start to exit."""
    out, config = folder / f"{side}.json", folder / "config.json"
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{side}",
        *map(str, (config, folder / "data", out)),
    ]
    load = os.getloadavg()[0]
    course = meter.run(command, _ROOT)
    found: Result = json.loads(out.read_text(encoding="utf-8"))
    ends = found.pop("ends")
    out.unlink()
    shutil.rmtree(out.with_suffix(""), ignore_errors=True)
    found |= {"load": load, "elapsed": course.elapsed, "cpu": course.cpu[-1]}
    if len(ends) > 1:
        # the first round also holds the start of workers and the first touch of everything
        found["round"] = (ends[-1] - ends[0]) / (len(ends) - 1)
        found["round_cpu"] = course.cpu_between(ends[0], ends[-1]) / (len(ends) - 1)
    print(f"  {side:<13}{course.elapsed:7.1f} s, load before it {load:.1f}", end="")
    print(f", {found['committing']:.2f} s in commits" if "committing" in found else "", flush=True)
    return found


def _same_work(name: str, pair: Result) -> None:
    ours, other = pair["ours"]["steps"], pair[name]["steps"]
    if ours != other:
        raise RuntimeError(
            f"{name}: gradient steps differ, so nothing is compared: {ours}, {other}"
        )


def _shown(name: str, pairs: Sequence[Result]) -> Result:
    """The medians of both sides and the ratio of each pair, printed and as values."""
    found: Result = {"pairs": pairs}
    for key, words in _MEASURES.items():
        if not all(key in pair[side] for pair in pairs for side in pair):
            continue
        ours, other = ([pair[side][key] for pair in pairs] for side in ("ours", name))
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        found[key] = {
            "ours": statistics.median(ours),
            name: statistics.median(other),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
        print(
            f"  {words:<34} ours {found[key]['ours']:.2f} s, {name} {found[key][name]:.2f} s,"
            f" ratio {found[key]['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    last = pairs[-1]
    print(f"  gradient steps {last['ours']['steps']}", end="; ")
    print(f"student {last['ours']['student']:.3f} and {last[name]['student']:.3f}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
