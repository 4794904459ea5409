"""One run from a Plan to a full run folder, over whatever transport a runtime brings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save

from fedkd import data, disk, folder, guarantees
from fedkd.asking import Transport
from fedkd.assemble import Plan, assemble, cautions
from fedkd.commits import Commit, Commits
from fedkd.config import Config
from fedkd.engine import Finished, ledger_of, rounds
from fedkd.exchange import Exchange
from fedkd.privacy.ledger import BudgetSpent
from fedkd.results import hashes, provenance
from fedkd.results.archive import Kept
from fedkd.results.final import metrics
from fedkd.stacks import Network, Weights, gather
from fedkd.store import Folder, under


class Watch(Protocol):
    """Whoever looks on: the command line's progress, a notebook, nobody."""

    def stage(self, text: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...  # Any: JSON
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None: ...  # Any: JSON


def conduct(config: Config, run: Path, transport: Transport, watch: Watch) -> None:
    """Carry a resolved experiment out over prepared data, from the last commit in the run folder.

    All of it ends there; whatever ends it before its time, it can be resumed from there.
    """
    plan = assemble(config, run / "data")
    teachers = [plan.architectures[t].network.parameters for t in plan.teacher]
    parameters = {"student": plan.student.network.parameters, "teachers": teachers}
    told = cautions(plan)
    session = folder.begin(run, config, parameters, data.digest(run / "data"), told)
    try:
        _conducted(plan, run, transport, watch, session)
    except BaseException as error:
        with suppress(disk.DiskError):  # what went wrong first is what is told
            folder.describe(
                run, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            )
        raise
    folder.describe(run, "finished")


def _conducted(plan: Plan, run: Path, transport: Transport, watch: Watch, session: int) -> None:
    """The rounds that are left, and what is written after the last of them."""
    config = plan.config
    for place in (run, run / "teachers"):
        disk.sweep(place)
    folder.write_json(run / "partition.json", _partition(plan))
    clients = Folder(run / "clients")

    def note(event: dict[str, Any]) -> None:
        folder.append(run / "events.jsonl", event)
        watch.event(event)

    def damaged(text: str) -> None:
        note({"kind": "damage", "cause": text})

    commits = Commits(run, clients, config.execution.keep_commits, damaged)
    exchange = Exchange(plan, transport, clients, str(run / "data"), note, session)
    state = commits.last(lambda found: _fits(plan, found))
    if session or state:
        note({"kind": "resume", "round": state.round if state else 0, "session": session})
    archive = Kept(run / "answers") if config.execution.store_answers else None
    try:
        for finished in rounds(plan, exchange, state, archive):
            state = finished.state
            _keep(commits, finished, config)
            watch.round(finished.record, finished.seconds)
    except BudgetSpent:
        _tell_privacy(plan, state, run)
        raise
    assert state is not None, "there is at least one round"
    if plan.has_student:
        student = gather([under("student/", state.server)])
        _save(run / "student.safetensors", named(plan.student.network, student, 0))
    _save_teachers(plan, exchange, clients, run / "teachers")
    if config.evaluation.metrics:
        watch.stage("metrics: student, ensemble and teachers in full")
        folder.write_json(run / "metrics.json", metrics(plan, exchange, state))
    yardsticks(plan, exchange, run, watch.stage)
    _tell_privacy(plan, state, run)
    provenance.write(plan, run)
    folder.write_json(run / "hashes.json", hashes.of(run))


def _tell_privacy(plan: Plan, state: Commit | None, run: Path) -> None:
    """What the run guarantees up to here; without a commit, before anything was let out."""
    told = guarantees.told(
        plan.strategy, plan.config, plan.samples, ledger_of(state),
        knows=plan.world.knows is not None,
    )  # fmt: skip
    folder.write_json(run / "privacy.json", told)


def _fits(plan: Plan, found: Commit) -> None:
    """Refuse a commit that no run of this experiment has made. Raises `ValueError`."""
    strangers = sorted(c for c in found.refs if c >= plan.clients)
    if found.round > plan.config.rounds or strangers:
        raise ValueError(
            f"it is about round {found.round} and clients {strangers[:5]}, in a run of"
            f" {plan.config.rounds} rounds and {plan.clients} clients"
        )
    weights = found.server.get("student/weights")
    if weights is None or weights.numel() != plan.student.network.parameters:
        raise ValueError("its student is another model")


def _keep(commits: Commits, finished: Finished, config: Config) -> None:
    number = finished.record["round"]
    commits.log("records.jsonl", finished.record)
    commits.log("timings.jsonl", {"round": number, "seconds": finished.seconds})
    if number % config.execution.commit_every == 0 or number == config.rounds:
        commits.add(finished.state)
    else:
        commits.forget(finished.state)


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
        heard = {int(c["client"]): c for c in local}
        said["local"] = {
            kind: [
                [heard[c]["rounds"][r][kind] if c in heard else None for c in range(plan.clients)]
                for r in range(plan.config.rounds)
            ]
            for kind in ("test", "own")
        }
        said["local"]["steps"] = sum(c["steps"] for c in heard.values())
    if said:
        if "labels" in said:
            said["labels"]["labels"] = said["labels"].pop("samples")
        folder.write_json(run / "yardsticks.json", said)


def named(network: Network, weights: Weights, k: int) -> dict[str, Any]:  # Any: Tensor
    """One model as a state dict of the module's own names."""
    tensors = network.module(weights, k).state_dict()
    return {n: t.detach().cpu().contiguous() for n, t in tensors.items()}


def _save(path: Path, tensors: dict[str, Any]) -> None:  # Any: Tensor
    disk.write_atomically(path, save(tensors))


def _save_teachers(plan: Plan, exchange: Exchange, clients: Folder, out: Path) -> None:
    with disk.refusing(out, "made"):
        out.mkdir(exist_ok=True)
    for client, kind in enumerate(plan.teacher):
        ref = exchange.refs.get(client)
        weights = gather([clients.get(ref)]) if ref else plan.fresh(client)
        _save(
            out / f"{client:05d}.safetensors", named(plan.architectures[kind].network, weights, 0)
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
