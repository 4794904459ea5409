"""The words of the command line: `fedkd WORD …`. What a word does is in the module it leads to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """Where a word leads to: a module with `main(arguments) -> exit code`."""

    module: str
    summary: str


COMMANDS: Mapping[str, Command] = {
    "simulate": Command("fedkd.simulate", "run an experiment, or resume one that was cut off"),
    "sweep": Command("fedkd.sweep", "run one experiment over several seeds, methods or settings"),
    "report": Command("fedkd.report", "report on a run or a sweep, or lay runs side by side"),
    "check": Command("fedkd.check", "hold a method of yours to what every method keeps"),
    "replay": Command("fedkd.replay", "give the stored answers of a run to other rules"),
    "verify": Command("fedkd.verify", "check that a run is untouched, and comes out again"),
    "metrics": Command("fedkd.metrics", "the figures of a run in full, robustness too"),
    "export": Command("fedkd.export", "a model of a run as a file for other programs"),
    "schema": Command("fedkd.schema", "the JSON Schema of a config, for editors"),
    "completion": Command("fedkd.completion", "a script that completes these words in a shell"),
}
