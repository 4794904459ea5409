"""The two Flower apps. They know neither where they run nor what a method is.

The ClientApp hands task bytes to `fedkd.client` or `fedkd.observer`; the ServerApp conducts a run
over whatever Grid it is given.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import folder
from fedkd.assemble import prepare, resolve
from fedkd.client import work
from fedkd.conduct import Watch, conduct
from fedkd.config import Config, load_config
from fedkd.exchange import Kind
from fedkd.observer import observe

_TYPES: dict[Kind, str] = {"work": "train.work", "observe": "query.observe"}
_POLL_S = 0.005
_TTL_S = 7 * 24 * 3600.0

client = ClientApp()


@client.train("work")
def _work(message: Message, context: Context) -> Message:
    return _reply(message, work(_content(message)))


@client.query("observe")
def _observe(message: Message, context: Context) -> Message:
    return _reply(message, observe(_content(message)))


def _content(message: Message) -> bytes:
    content = message.content["task"]["bytes"]
    if not isinstance(content, bytes):
        raise TypeError(f"task: bytes expected, found {type(content).__name__}")
    return content


def _reply(message: Message, content: bytes) -> Message:
    return Message(RecordDict({"reply": ConfigRecord({"bytes": content})}), reply_to=message)


class GridTransport:
    """Tasks over a Flower Grid. A node is a seat: any bundle may go to any of them."""

    def __init__(self, grid: Grid, workers: int, over: threading.Event | None = None) -> None:
        self.workers = workers
        self._grid, self._over = grid, over or threading.Event()
        self._nodes = itertools.cycle(self._registered(grid))

    @staticmethod
    def _registered(grid: Grid) -> Sequence[int]:
        for _ in range(12000):  # main() of a ServerApp may start before its nodes are there
            if nodes := sorted(grid.get_node_ids()):
                return nodes
            time.sleep(_POLL_S)
        raise RuntimeError("runtime: no node came within a minute")

    def submit(self, kind: Kind, messages: Sequence[bytes]) -> Sequence[str]:
        made = [
            Message(
                RecordDict({"task": ConfigRecord({"bytes": content})}),
                next(self._nodes),
                _TYPES[kind],
                ttl=_TTL_S,
            )
            for content in messages
        ]
        return list(self._grid.push_messages(made))

    def fetch(self, ticket: str) -> bytes:
        while not self._over.is_set():
            for reply in self._grid.pull_messages([ticket]):
                if reply.has_error():
                    raise RuntimeError(f"runtime: a task was lost: {reply.error.reason}")
                content = reply.content["reply"]["bytes"]
                assert isinstance(content, bytes)
                return content
            time.sleep(_POLL_S)
        raise RuntimeError("runtime: there is nobody left to wait for")


def server_app(
    config: Config, run: Path, watch: Watch, over: threading.Event | None = None
) -> ServerApp:
    """A ServerApp that conducts one run; what comes out is in the run folder.

    It ends with an error once `over` is set: where it runs in a thread of somebody else's, nothing
    else could end it.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        workers = config.execution.workers
        seats = len(list(grid.get_node_ids())) if workers == "auto" else workers
        conduct(config, run, GridTransport(grid, seats, over), watch)

    return app


class Silent:
    """Nobody looks on."""

    def stage(self, text: str) -> None: ...
    def round(self, record: dict[str, object], seconds: dict[str, float]) -> None: ...


server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    """For `flwr run`: the config's name and overrides come from the app's own configuration."""
    overrides = str(context.run_config.get("overrides", "")).split()
    chosen = load_config(str(context.run_config.get("config", "digits")), overrides)
    config = resolve(chosen)
    run = folder.create(config)
    prepare(config, run / "data")
    nodes = len(GridTransport._registered(grid))
    conduct(config, run, GridTransport(grid, nodes), Silent())
