"""Plain Flower: `python -m benchmarks.plain_flower CONFIG DATA OUT`, as its guide teaches.

One client a node, teachers in `context.state`, answers in ArrayRecords, the data read once by each
process, under Flower's own simulation engine with as many workers as ours has.
The passes are those of our run of the same config, as in the bare loop, whose functions it uses.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_LOG_LEVEL", "ERROR")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.bare_loop import build, consensus, load, predict, train

_TIMEOUT_S = 900.0  # without one, a simulation whose workers died waits for ever

client = ClientApp()


@functools.lru_cache(maxsize=1)
def _opened(config: str, folder: str) -> Any:  # Any: the bare loop's own values
    """What the clients of a process share: config, samples, labels, splits, sizes, public set."""
    torch.set_num_threads(1)
    x, y, splits, sizes = load(folder)
    return json.loads(Path(config).read_text()), x, y, splits, sizes, x[splits["public"]]


def _teacher(context: Context, config: Any, sizes: Any) -> torch.nn.Module:
    kinds = config["clients"][0]["model"]
    model = build(kinds[_partition(context) % len(kinds)], sizes)
    if "teacher" in context.state:
        model.load_state_dict(context.state["teacher"].to_torch_state_dict())
    return model


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


@client.train("answer")
def answer(message: Message, context: Context) -> Message:
    """Private epochs, then soft labels on the public set."""
    at = message.content["at"]
    config, x, y, splits, sizes, public = _opened(at["config"], at["data"])
    me, cut = _partition(context), splits["offsets"]
    teacher, own = _teacher(context, config, sizes), splits["private"][cut[me] : cut[me + 1]]
    steps = train(teacher, x[own], y[own], config["learning"]["private"], torch.Generator())
    context.state["teacher"] = ArrayRecord(teacher.state_dict())
    answers = ArrayRecord([predict(teacher, public).numpy()])
    metrics = MetricRecord({"client": me, "steps": steps})
    return Message(RecordDict({"answers": answers, "metrics": metrics}), reply_to=message)


@client.train("digest")
def digest(message: Message, context: Context) -> Message:
    """Learn the consensus."""
    at = message.content["at"]
    config, _, _, _, sizes, public = _opened(at["config"], at["data"])
    teacher = _teacher(context, config, sizes)
    soft = torch.from_numpy(message.content["consensus"]["0"].numpy())
    steps = train(teacher, public, soft, config["learning"]["client"], torch.Generator())
    context.state["teacher"] = ArrayRecord(teacher.state_dict())
    metrics = MetricRecord({"client": _partition(context), "steps": steps})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _exchange(grid: Grid, nodes: list[int], action: str, content: RecordDict) -> list[RecordDict]:
    """One message to every node and the replies of all of them."""
    messages = [Message(content, node, f"train.{action}") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=_TIMEOUT_S))
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"{action}: a client failed: {reply.error.reason}")
    if len(replies) != len(nodes):
        raise RuntimeError(f"{action}: {len(nodes)} nodes were asked, {len(replies)} replied")
    return [reply.content for reply in replies]


def server_app(config_path: str, data: str, out: str) -> ServerApp:
    """A ServerApp that leaves its times, steps and the student's accuracy in `out`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config, x, y, splits, sizes, public = _opened(config_path, data)
        test, truth = x[splits["test"]], y[splits["test"]]
        student, rng = build(config["student"], sizes), torch.Generator()
        deadline = time.monotonic() + _TIMEOUT_S
        while len(nodes := list(grid.get_node_ids())) < len(splits["offsets"]) - 1:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nodes: {len(nodes)} came within {_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        at = ConfigRecord({"config": config_path, "data": data})
        ends, clients, server, accuracy = [], 0, 0, 0.0
        for _ in range(config["rounds"]):
            said = _exchange(grid, nodes, "answer", RecordDict({"at": at}))
            soft = consensus({s["metrics"]["client"]: s["answers"]["0"].numpy() for s in said})
            down = RecordDict({"at": at, "consensus": ArrayRecord([soft.numpy()])})
            said += _exchange(grid, nodes, "digest", down)
            server += train(student, public, soft, config["learning"]["server"], rng)
            accuracy = float((predict(student, test).argmax(1) == truth).double().mean())
            clients += sum(int(s["metrics"]["steps"]) for s in said)
            ends.append(time.monotonic())
        steps = {"clients": clients, "server": server}
        found = {"ends": ends, "steps": steps, "student": accuracy}
        Path(out).write_text(json.dumps(found), encoding="utf-8")

    return app


def main(config_path: str, data: str, out: str) -> None:
    config = json.loads(Path(config_path).read_text())
    workers = config["execution"]["workers"]
    # local: never a cluster that happens to run on this machine
    init = {"address": "local", "num_cpus": workers, "log_to_driver": False}
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {**init, "logging_level": "ERROR"},
    }
    clients = sum(group["count"] for group in config["clients"])
    run_simulation(server_app(config_path, data, out), client, clients, backend_config=backend)


if __name__ == "__main__":
    # by its name, so that the apps travel by reference and the workers keep what they opened
    from benchmarks import plain_flower

    plain_flower.main(*sys.argv[1:])
