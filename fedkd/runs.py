"""An experiment as a function call: `run(load_config("digits"))`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import folder
from fedkd.assemble import assemble, prepare, resolve
from fedkd.conduct import Watch
from fedkd.config import Config
from fedkd.rehearsal import rehearse


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and, round by round, its records."""

    folder: Path
    records: Sequence[dict[str, Any]]  # Any: JSON


def run(config: Config, watch: Watch | None = None) -> Run:
    """Carry an experiment out on the runtime that it names; all that comes of it is in its folder.

    Raises `fedkd.ConfigError` before anything is trained, for whatever cannot work, and leaves no
    folder then. What fails later leaves the folder with the rounds that were finished.
    """
    from fedkd.runtime.apps import Silent

    chosen, looking = resolve(config), watch or Silent()
    with folder.draft(chosen) as path:
        looking.stage("data: load, split, partition")
        prepare(chosen, path / "data")
        rehearse(assemble(chosen, path / "data"))  # refuse before workers are started
        looking.stage(f"start the {chosen.execution.runtime} runtime")
        runtime = importlib.import_module(f"fedkd.runtime.{chosen.execution.runtime}")
        runtime.start(chosen, path, looking)
    lines = (path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(path, [json.loads(line) for line in lines])
