"""One run from a Plan to a full run folder, over whatever transport a runtime brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file

from fedkd import folder
from fedkd.assemble import Plan, assemble
from fedkd.config import Config
from fedkd.engine import rounds
from fedkd.exchange import Exchange, Transport
from fedkd.stacks import Network, Weights, gather
from fedkd.store import Folder, commit, under


class Watch(Protocol):
    """Whoever looks on: the command line's progress, a notebook, nobody."""

    def stage(self, text: str) -> None: ...
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None: ...  # Any: JSON


def conduct(config: Config, run: Path, transport: Transport, watch: Watch) -> None:
    """Carry a resolved experiment out over prepared data; all of it ends in the run folder."""
    plan = assemble(config, run / "data")
    teachers = [plan.architectures[t].network.parameters for t in plan.teacher]
    parameters = {"student": plan.student.network.parameters, "teachers": teachers}
    folder.describe(run, config, parameters, "running")
    folder.write_json(run / "partition.json", _partition(plan))
    clients = Folder(run / "clients")
    exchange = Exchange(
        plan,
        transport,
        clients,
        str(run / "data"),
        lambda e: folder.append(run / "events.jsonl", e),
    )
    student: Weights | None = None
    try:
        for finished in rounds(plan, exchange):
            commit(run / "commits", finished.state, clients)
            folder.append(run / "records.jsonl", finished.record)
            number = finished.record["round"]
            folder.append(run / "timings.jsonl", {"round": number, "seconds": finished.seconds})
            student = gather([under("student/", finished.state.server)])
            watch.round(finished.record, finished.seconds)
        if student is not None:
            save_file(named(plan.student.network, student, 0), run / "student.safetensors")
        _save_teachers(plan, exchange, clients, run / "teachers")
        yardsticks(plan, exchange, run, watch.stage)
    except BaseException:
        folder.describe(run, config, parameters, "failed")
        raise
    folder.describe(run, config, parameters, "finished")


def yardsticks(plan: Plan, exchange: Exchange, run: Path, stage: Callable[[str], None]) -> None:
    """What the result is measured against, as far as the experiment asks for it."""
    wanted = plan.config.evaluation
    known = bool((plan.dataset.truth >= 0).any())  # no true label, no such yardstick
    names = [n for n in ("pooled", "labels") if getattr(wanted, n) and (known or n != "labels")]
    pending = {n: exchange.alone(n) for n in names}
    local = (
        exchange.observe("local", 0, range(plan.clients), answers=False) if wanted.local else None
    )
    if pending or local:
        stage("yardsticks: what training alone would have given")
    said: dict[str, Any] = {name: fetch() for name, fetch in pending.items()}
    if local is not None:
        by_client = sorted(local, key=lambda c: int(c["client"]))
        said["local"] = {
            kind: [[c["rounds"][r][kind] for c in by_client] for r in range(plan.config.rounds)]
            for kind in ("test", "own")
        }
        said["local"]["steps"] = sum(c["steps"] for c in by_client)
    if said:
        if "labels" in said:
            said["labels"]["labels"] = said["labels"].pop("samples")
        folder.write_json(run / "yardsticks.json", said)


def named(network: Network, weights: Weights, k: int) -> dict[str, Any]:  # Any: Tensor
    """One model as a state dict of the module's own names."""
    tensors = network.module(weights, k).state_dict()
    return {n: t.detach().cpu().contiguous() for n, t in tensors.items()}


def _save_teachers(plan: Plan, exchange: Exchange, clients: Folder, out: Path) -> None:
    out.mkdir()
    for client, kind in enumerate(plan.teacher):
        ref = exchange.refs.get(client)
        weights = gather([clients.get(ref)]) if ref else plan.fresh(client)
        save_file(
            named(plan.architectures[kind].network, weights, 0), out / f"{client:05d}.safetensors"
        )


def _partition(plan: Plan) -> dict[str, Any]:  # Any: JSON
    dataset = plan.dataset
    return {
        "classes": list(dataset.class_names),
        "histogram": dataset.histogram.tolist(),
        "sizes": {
            "test": len(dataset.test),
            "validation": len(dataset.validation),
            "public": len(dataset.public),
            "private": int(dataset.histogram.sum()),
        },
        "provenance": dataset.provenance,
        "licence": dataset.licence,
        "models": [plan.architectures[t].name for t in plan.teacher],
    }
