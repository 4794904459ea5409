"""What a stored run may be resumed with: the same experiment, carried out in whatever way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd import disk, folder
from fedkd.commits import LOGS, Commit, Commits
from fedkd.config import Config, ConfigError, load_config
from fedkd.store import Folder

# what the tensors of a commit stand for: with other ones they would mean something else
_ROOTED = re.compile(
    r"(seed|data|clients|student|compute|strategy\.name|learning\.keep_optimizer"
    r"|learning\.\w+\.optimizer\.name)\b.*"
)
_COPIED = ("data", "clients", "commits", "answers")


def config_of(path: Path) -> Config:
    """The resolved config of a run folder. Raises `ConfigError` where there is none."""
    stored = path / "config.yaml"
    if not stored.is_file():
        near = sorted(p.parent.name for p in path.parent.glob("*/config.yaml"))[:5]
        raise ConfigError(
            f"resume: {path} should be a run folder, found no config.yaml in it; "
            + (f"near it lie {', '.join(near)}" if near else "name the folder that a run has made")
        )
    found = load_config(str(stored))
    told = folder.about(path)
    same = told and told["versions"].get("fedkd") == folder.surroundings()["versions"]["fedkd"]
    if same and told["fingerprint"] != found.fingerprint():
        raise ConfigError(
            f"resume: {stored} should be the experiment that run.json says the run began with,"
            f" found another (fingerprint {found.fingerprint()[:12]}, not"
            f" {told['fingerprint'][:12]}); bring the file that was changed back, and say what is"
            " to change as key=value"
        )
    return found


def settled(chosen: Config, stored: Config) -> Config:
    """`auto` stands for what it was resolved to when the run began."""

    def fill(new: Any, old: Any) -> Any:  # Any: JSON
        if isinstance(new, dict) and isinstance(old, dict):
            return {k: fill(v, old.get(k)) for k, v in new.items()}
        return old if new == "auto" and old is not None else new

    tree = chosen.model_dump(mode="json")
    before = stored.model_dump(mode="json", exclude={"execution"})
    return load_config({k: fill(v, before.get(k)) for k, v in tree.items()})


def differences(stored: Config, chosen: Config) -> list[str]:
    """Where two experiments differ, a line each: `rounds: 10 in the run, 20 now`."""
    return [
        f"{key}: {_shown(old)} in the run, {_shown(new)} now"
        for key, old, new in _differing(stored.experiment(), chosen.experiment(), "")
    ]


def refusal(path: Path, differences: Sequence[str]) -> ConfigError:
    """Why a changed experiment is not resumed, and the way out."""
    return ConfigError(
        "\n".join(
            [
                f"resume: {path} should be gone on with as the experiment that it is, found:",
                *(f"  {text}" for text in differences),
                "leave these as they were, or go on with the changed experiment in a new folder:"
                " --branch FOLDER",
            ]
        )
    )


def branch(
    path: Path,
    stored: Config,
    chosen: Config,
    out: Path,
    event: Callable[[dict[str, Any]], None],
    accept: Callable[[Path, Commit], None],
) -> Path:
    """A new run folder for a changed experiment that goes on from the last commit of a run.

    The run itself stays as it is. Raises `ConfigError` where its commit means nothing to the
    changed experiment; `accept` may raise one, too, with the folder and its commit in hand.
    """
    rooted = [text for text in differences(stored, chosen) if _ROOTED.fullmatch(text)]
    if rooted:
        raise ConfigError(
            "\n".join(
                [
                    "resume: a branch should have the models, data and method of its run, found:",
                    *(f"  {text}" for text in rooted),
                    "start a new run with them",
                ]
            )
        )
    execution = chosen.execution.model_copy(update={"out": str(out)})
    # made beside its place and renamed: half a branch would begin at round 1
    with folder.alone(path), folder.beside(out) as made:
        folder.create(chosen.model_copy(update={"execution": execution}), made)
        with disk.refusing(made):
            for name in (n for n in _COPIED if (path / n).is_dir()):
                shutil.copytree(path / name, made / name)
            for name in (n for n in LOGS if (path / n).is_file()):
                shutil.copyfile(path / name, made / name)
        commits = Commits(
            made,
            Folder(made / "clients"),
            stored.execution.keep_commits,
            lambda text: event({"kind": "damage", "cause": text}),
        )
        done = commits.last()
        if done is None or done.round > chosen.rounds:
            raise ConfigError(
                f"resume: a branch should begin at a committed round of at most {chosen.rounds},"
                f" found {done.round if done else 'none'} in {path}; raise rounds, or start a new"
                " run"
            )
        accept(made, done)
        origin = {"run": path.name, "round": done.round, "fingerprint": stored.fingerprint()}
        folder.write_json(made / "branched_from.json", origin)
    return out


def _differing(old: Any, new: Any, at: str) -> Iterator[tuple[str, Any, Any]]:  # Any: JSON
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _differing(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differing(a, b, f"{at}.{place}")
    elif old != new:
        yield at, old, new


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)
