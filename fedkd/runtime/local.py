"""In process: the reference. Breakpoints work, and work is done when its reply is asked for."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedkd.conduct import Watch
from fedkd.config import Config
from fedkd.runtime import private
from fedkd.runtime.apps import client, server_app


class LocalGrid(Grid):
    """A Grid with one node, whose messages wait until they are pulled."""

    def __init__(self, app: ClientApp) -> None:
        private.identify()
        self._app, self._run = app, private.empty_run()
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: private.Run) -> None:
        self._run = run

    @property
    def run(self) -> private.Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [1]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        tickets = []
        for message in messages:
            ticket = uuid.uuid4().hex
            private.set_message_id(message, ticket)
            self._waiting[ticket] = message
            tickets.append(ticket)
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._served(i) for i in list(message_ids) if i in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _served(self, ticket: str) -> Message:
        # what is inside are bytes, so that nothing is shared by accident
        message = self._waiting.pop(ticket)
        context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), {})
        try:
            reply = self._app(message, context)
        except Exception as error:  # Flower's code 2: the app raised
            reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
        private.set_message_id(reply, uuid.uuid4().hex)
        return reply


def start(config: Config, run: Path, watch: Watch) -> None:
    """Conduct a run in this process."""
    server_app(config, run, watch)(LocalGrid(client), Context(1, 1, {}, RecordDict(), {}))
