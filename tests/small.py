"""A small experiment on the digits, and a transport without Flower: what many tests stand on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedkd.asking import Kind, Transport
from fedkd.assemble import Plan, assemble, prepare, resolve
from fedkd.client import work
from fedkd.conduct import conduct
from fedkd.config import Config, load_config
from fedkd.exchange import Exchange
from fedkd.observer import observe
from fedkd.store import Folder

METHODS = sorted(p.stem for p in Path(__file__).parents[1].joinpath("strategies").glob("[a-z]*.py"))
MLP = {"name": "mlp", "hidden": [16]}
OTHER = {"name": "mlp", "hidden": [12]}
OPTIMIZER = {"name": "adam", "lr": 0.005}
EXPERIMENT: Mapping[str, Any] = {
    "name": "small",
    "seed": 3,
    "rounds": 2,
    "data": {
        "source": "digits",
        "test": 150,
        "validation": 40,
        "public": 80,
        "private": 300,
        "partition": {"name": "dirichlet", "alpha": 0.5, "min_size": 8},
    },
    "clients": [{"count": 6, "model": [MLP, OTHER]}],
    "student": MLP,
    "strategy": "entropy",
    "learning": {
        phase: {"epochs": 1, "batch": 16, "optimizer": OPTIMIZER}
        for phase in ("private", "client", "server", "pretrain")
    },
    "compute": {"device": "cpu", "task_threads": 1, "server_threads": 1},
    "evaluation": {"pooled": False, "local": False, "labels": False, "metrics": False},
    "execution": {"runtime": "local", "workers": 1},
}
# one method for each seam: what takes long is tried on these alone
PROTOTYPES = ("cfd", "entropy", "fd", "fedavg", "fedmd", "kt_pfl", "scarlet", "selective_fd")
WITHOUT_STUDENT = ("fd", "kt_pfl", "rhfl")  # methods whose server makes none
UNTRAINED = ("private_knn",)  # methods whose clients learn nothing
# what a method needs beyond that
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"clients": [{"count": 6, "model": [MLP]}]},
    # with six clients and some hundred samples the usual noise would leave nothing to learn
    "pate": {"strategy": {"name": "pate", "sigma": 0.5}},
    "private_knn": {"strategy": {"name": "private_knn", "sample_rate": 0.5, "sigma": 1.0}},
    "fedmd_nfdp": {"strategy": {"name": "fedmd_nfdp", "share": 0.8}},
}


def config(strategy: object = "entropy", *overrides: str, **changes: object) -> Config:
    """The experiment with another method, other sections and overrides."""
    name = strategy["name"] if isinstance(strategy, dict) else strategy
    needs = dict(NEEDS.get(str(name), {}))
    if isinstance(strategy, dict):
        needs.pop("strategy", None)
    tree = {**EXPERIMENT, "strategy": strategy, **needs, **changes}
    return resolve(load_config(tree, overrides))


def plan(chosen: Config, folder: Path) -> Plan:
    """The Plan of a config, with its data in `folder/data`, which is made where it is not there."""
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(chosen, folder / "data")
    return assemble(chosen, folder / "data")


class InProcess:
    """A transport that serves every task where it stands, in an order of its own."""

    def __init__(self, workers: int = 1, order: random.Random | None = None) -> None:
        self.workers = workers
        self.seen: list[tuple[Kind, bytes, bytes]] = []  # task and reply, in order of service
        self.tamper: Callable[[bytes], bytes] = lambda reply: reply
        self._order = order
        self._waiting: dict[str, tuple[Kind, bytes]] = {}
        self._done: dict[str, bytes] = {}
        self._tickets = 0

    def submit(
        self, kind: Kind, messages: Sequence[bytes], limits: Sequence[float | None] = ()
    ) -> Sequence[str]:
        tickets = [str(self._tickets + i) for i in range(len(messages))]
        self._tickets += len(messages)
        self._waiting |= {t: (kind, m) for t, m in zip(tickets, messages, strict=True)}
        return tickets

    def fetch(self, ticket: str) -> bytes:
        while ticket not in self._done:
            waiting = sorted(self._waiting, key=int)
            following = self._order.choice(waiting) if self._order else ticket
            kind, message = self._waiting.pop(following)
            reply = self.served(kind, message)
            self.seen.append((kind, message, reply))
            self._done[following] = reply
        return self._done.pop(ticket)

    def served(self, kind: Kind, message: bytes) -> bytes:
        return self.tamper({"work": work, "observe": observe}[kind](message))


class Silent:
    """Nobody looks on."""

    def stage(self, text: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None: ...


def exchange(
    given: Plan,
    folder: Path,
    transport: Transport | None = None,
    events: list[Any] | None = None,
    session: int = 0,
) -> Exchange:
    note = ([] if events is None else events).append
    clients, data = Folder(folder / "clients"), str(folder / "data")
    return Exchange(given, transport or InProcess(), clients, data, note, session)


def run(chosen: Config, folder: Path, transport: InProcess | None = None) -> list[dict[str, Any]]:
    """A whole run without Flower; everything is in `folder`. Gives the records."""
    plan(chosen, folder)
    conduct(chosen, folder, transport or InProcess(), Silent())
    return records(folder)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def bits(folder: Path) -> dict[str, bytes]:
    """All that a run is held to: records, student, teachers and yardsticks."""
    names = ["records.jsonl", "student.safetensors", "yardsticks.json", "partition.json"]
    paths = [folder / n for n in names] + sorted((folder / "teachers").iterdir())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.exists()}


def equal_on_ray(chosen: Config, place: Path) -> bool:
    """Whether two workers of Ray come to the bits, and the guarantees, of this process."""
    from fedkd import run

    told, found = chosen.model_dump(mode="json", exclude={"execution"}), []
    for runtime, workers in (("local", 1), ("ray", 2)):
        out = place / runtime
        execution = {"runtime": runtime, "workers": workers, "out": str(out), "progress": False}
        run(load_config({**told, "execution": execution}))
        found.append(bits(out) | {"privacy": (out / "privacy.json").read_bytes()})
    return found[0] == found[1]


def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST as distributed; skips the test where it is not there."""
    usual = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("FEDKD_DATA", usual)) / "fashion_mnist"
    if not data.is_dir():
        pytest.skip(f"no Fashion-MNIST in {data}; set FEDKD_DATA to a folder that holds it")
    return data
