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

from fedkd import folder, tracking
from fedkd.asking import Kind, Lost
from fedkd.assemble import prepare, resolve
from fedkd.client import work
from fedkd.conduct import Watch, conduct
from fedkd.config import Config, load_config
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
    """Tasks over a Flower Grid. A node is a seat: any bundle may go to any of them.

    Flower counts a message's time from when it is pushed, also while it waits for a node; `ours`
    are the Grids that count it from when a worker takes it.
    """

    def __init__(
        self, grid: Grid, workers: int, over: threading.Event | None = None, *, ours: bool = True
    ) -> None:
        self.workers = workers
        self._grid, self._over, self._ours = grid, over or threading.Event(), ours
        self._nodes = itertools.cycle(self._registered(grid))
        self._limits: dict[str, float] = {}  # of what has not been fetched

    @staticmethod
    def _registered(grid: Grid) -> Sequence[int]:
        for _ in range(12000):  # main() of a ServerApp may start before its nodes are there
            if nodes := sorted(grid.get_node_ids()):
                return nodes
            time.sleep(_POLL_S)
        raise RuntimeError("runtime: no node came within a minute")

    def submit(
        self, kind: Kind, messages: Sequence[bytes], limits: Sequence[float | None]
    ) -> Sequence[str]:
        before = 0.0 if self._ours else sum(self._limits.values())
        made = []
        for content, limit in zip(messages, limits, strict=True):
            task = RecordDict({"task": ConfigRecord({"bytes": content})})
            time_to_live = _TTL_S if limit is None else before + limit
            made.append(Message(task, next(self._nodes), _TYPES[kind], ttl=time_to_live))
            before += 0.0 if self._ours else limit or 0.0
        tickets = list(self._grid.push_messages(made))
        self._limits |= {t: limit or 0.0 for t, limit in zip(tickets, limits, strict=True)}
        return tickets

    def fetch(self, ticket: str) -> bytes:
        self._limits.pop(ticket, None)
        while not self._over.is_set():
            for reply in self._grid.pull_messages([ticket]):
                if reply.has_error():
                    raise Lost(str(reply.error.reason))
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
        conduct(config, run, GridTransport(grid, seats, over, ours=over is None), watch)

    return app


class Silent:
    """Nobody looks on."""

    def stage(self, text: str) -> None: ...
    def event(self, event: dict[str, object]) -> None: ...
    def round(self, record: dict[str, object], seconds: dict[str, float]) -> None: ...


server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    """For `flwr run`: the config's name and overrides come from the app's own configuration."""
    overrides = str(context.run_config.get("overrides", "")).split()
    chosen = load_config(str(context.run_config.get("config", "digits")), overrides)
    config = resolve(chosen)
    trackers = tracking.trackers(config)
    run = folder.create(config)
    prepare(config, run / "data")
    nodes = len(GridTransport._registered(grid))
    with tracking.following(trackers, config, run, Silent()) as watch:
        conduct(config, run, GridTransport(grid, nodes, ours=False), watch)
