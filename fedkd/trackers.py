"""Who may be told of a run while it goes on: TensorBoard, Weights & Biases, MLflow.

A tracker of one's own is any class with the three methods of `Tracker`, named as
`package.module:Class`. Its parameters are what the config may set.
"""

from __future__ import annotations

import importlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from fedkd import disk
from fedkd.figures import figures

Json = dict[str, Any]  # Any: whatever JSON holds
_MOST_VALUE = 500  # characters of a parameter that every MLflow server takes
_MOST_BATCH = 100  # parameters that an MLflow server takes at once


@runtime_checkable
class Tracker(Protocol):
    """Is told of a run, and tells the run nothing.

    It is told of every round once, in ascending order, over all sessions of a run: what it missed
    while it was not there, it is told before the next round. If a method raises, the run goes on
    without this tracker until it is resumed.
    """

    def begin(self, folder: Path, config: Json) -> None:
        """A session begins: the run folder, and the resolved config as plain values."""

    def round(self, record: Json, seconds: dict[str, float]) -> None:
        """A line of `records.jsonl`, and how long the parts of the round took."""

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        """The session ends: `finished`, `interrupted` or `failed`; the last figures by name."""


def tensorboard(folder: str = "tensorboard") -> Tracker:
    """TensorBoard's event files, in the run folder: `tensorboard --logdir runs`."""
    return _TensorBoard(folder)


def wandb(
    project: str = "fedkd",
    entity: str | None = None,
    group: str | None = None,
    tags: tuple[str, ...] = (),
    mode: Literal["online", "offline", "disabled"] | None = None,
) -> Tracker:
    """Weights & Biases, which keeps its files in `./wandb`; `mode` is else as WANDB_MODE says."""
    package = _package("wandb")
    options = {"project": project, "entity": entity, "group": group, "tags": tags, "mode": mode}
    return _Wandb(package, options)


def mlflow(uri: str | None = None, experiment: str = "fedkd") -> Tracker:
    """MLflow; `uri` is else as MLFLOW_TRACKING_URI says."""
    _package("mlflow")
    return _MLflow(importlib.import_module("mlflow.tracking").MlflowClient, uri, experiment)


class _TensorBoard:
    def __init__(self, place: str) -> None:
        self._place = place
        self._writer: Any = None  # Any: torch's SummaryWriter, which has no types

    def begin(self, folder: Path, config: Json) -> None:
        self._path, self._config, self._last = folder / self._place, config, 0

    def round(self, record: Json, seconds: dict[str, float]) -> None:
        self._last = record["round"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # what an earlier session wrote from this round on was never confirmed
            self._writer = SummaryWriter(str(self._path), purge_step=self._last)
            if self._last == 1:
                lines = (f"| {k} | {v} |\n" for k, v in _flat(self._config))
                self._writer.add_text("config", "| | |\n| --- | --- |\n" + "".join(lines), 0)
        self._add({**figures(record), **figures({"seconds": seconds})})

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        if self._writer is not None:
            if status == "finished":
                self._add({f"summary/{name}": value for name, value in summary.items()})
            self._writer.close()

    def _add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, self._last)
        self._writer.flush()


class _Wandb:
    def __init__(self, package: Any, options: Mapping[str, Any]) -> None:  # Any: the module
        self._package, self._options = package, options

    def begin(self, folder: Path, config: Json) -> None:
        self._run = self._package.init(
            id=_kept(folder / "wandb.id", lambda: secrets.token_hex(8)),
            name=folder.name,
            config=config,
            resume="allow",
            reinit="create_new",
            # the terminal belongs to the progress of the run
            settings=self._package.Settings(console="off", quiet=True),
            **self._options,
        )
        self._run.define_metric("*", step_metric="round")

    def round(self, record: Json, seconds: dict[str, float]) -> None:
        found = {**figures(record), **figures({"seconds": seconds}), "round": record["round"]}
        self._run.log(found, step=record["round"])

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        if status == "finished":
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(status != "finished"))


class _MLflow:
    _ENDS: Mapping[str, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

    def __init__(self, client: Callable[..., Any], uri: str | None, experiment: str) -> None:
        self._make, self._uri, self._experiment = client, uri, experiment  # Any: MlflowClient

    def begin(self, folder: Path, config: Json) -> None:
        self._client = self._make(tracking_uri=self._uri)
        self._id = _kept(folder / "mlflow.id", lambda: self._created(folder, config))
        self._client.update_run(self._id, status="RUNNING")

    def round(self, record: Json, seconds: dict[str, float]) -> None:
        self._log({**figures(record), **figures({"seconds": seconds})}, record["round"])

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        if status == "finished":
            self._log({f"summary/{name}": value for name, value in summary.items()}, 0)
        self._client.set_terminated(self._id, self._ENDS[status])

    def _created(self, folder: Path, config: Json) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        home = found.experiment_id if found else self._client.create_experiment(self._experiment)
        made: str = self._client.create_run(home, run_name=folder.name).info.run_id
        param = importlib.import_module("mlflow.entities").Param
        values = [param(name, str(value)[:_MOST_VALUE]) for name, value in _flat(config)]
        for at in range(0, len(values), _MOST_BATCH):
            self._client.log_batch(made, params=values[at : at + _MOST_BATCH])
        return made

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            known = re.sub(r"[^\w\-. /:]", "_", name)  # the characters that MLflow takes
            self._client.log_metric(self._id, known, value, step=step)


def _kept(path: Path, make: Callable[[], str]) -> str:
    """What the others know this run by: made once, and the same when it is resumed."""
    if not path.is_file():
        disk.write_atomically(path, make().encode())
    return path.read_text(encoding="utf-8")


def _flat(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """A config as `data.partition.alpha: 0.1`."""
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and value:
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in inner:
            yield from _flat(part, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _package(name: str) -> Any:  # Any: a module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} should be installed, found {error}; pip install 'fedkd[{name}]'"
        ) from error
