"""A run folder that something is to be done with: finished, whole, and of this version.

Nothing heavy is imported, so that a wrong folder is refused at once.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from fedkd import disk, folder, shell
from fedkd.config import Config, ConfigError, load_config

METRICS = 1  # the schema of metrics.json
_MOST = 1 << 28  # bytes that are read of one of our JSON files


def finished(path: Path) -> Config:
    """The resolved config of a finished run. Raises `ConfigError` for anything else."""
    for name in ("config.yaml", "run.json"):
        if not (path / name).is_file():
            found = f"no {name} in it" if path.is_dir() else "no such folder"
            raise ConfigError(
                f"run: {path} should be a run folder, found {found}; give the folder that a"
                " simulation wrote"
            )
    about = folder.about(path)
    if not about:
        raise ConfigError(
            f"run: {path / 'run.json'} should say what the run is, found it damaged or of an"
            " earlier version; bring it back, or run the experiment again"
        )
    if about.get("status") != "finished":
        command = f"{shell.typed('simulate')} --resume {shlex.quote(shell.near(path))}"
        raise ConfigError(
            f"run: {path} should be a finished run, found its status {about.get('status')};"
            f" go on with it first: {command}"
        )
    try:
        return load_config(path / "config.yaml")
    except ConfigError as error:
        version = about["versions"].get("fedkd")
        raise ConfigError(
            f"run: {path / 'config.yaml'} should be a config of this version, found (written by"
            f" fedkd {version}):\n{error}"
        ) from None


def stored(path: Path, schema: int, missing: str) -> dict[str, Any]:  # Any: JSON
    """One of our JSON files; `missing` is the way out where it is not there."""
    if not path.is_file():
        raise ConfigError(f"run: {path} should be there, found nothing; {missing}")
    try:
        found = json.loads(disk.read(path, _MOST))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"run: {path} should be JSON, found: {error}; bring the file back"
        ) from None
    if not isinstance(found, dict) or found.get("schema") != schema:
        told = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise ConfigError(
            f"run: {path} should have schema {schema}, found {told}; use the version of fedkd that"
            " run.json names"
        )
    return found
