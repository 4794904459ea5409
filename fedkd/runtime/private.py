"""All that we use of Flower beyond its public packages, in one place, for the pinned version.

`Message(...)` needs an identity outside of Flower's own runs; `Grid` asks for a `Run`; and
`run_simulation` is the only Python entry to Flower's own engine.
"""

from __future__ import annotations

from importlib.metadata import version

from flwr.app import Message
from flwr.simulation import run_simulation
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

PINNED = "1.41"
if not version("flwr").startswith(f"{PINNED}."):
    raise ImportError(
        f"flwr: {PINNED}.* is needed, found {version('flwr')}; install with the constraints file"
    )

__all__ = ["Run", "empty_run", "identify", "run_simulation", "set_message_id"]


def identify() -> None:
    """Give this process an identity, so that messages can be made outside of Flower's own runs."""
    try:
        TaskIdentity.run_id  # noqa: B018 (reading raises where nobody has set it)
    except RuntimeError:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def empty_run() -> Run:
    """A run without an app, as `Grid` wants one."""
    return Run.create_empty(run_id=1)


def set_message_id(message: Message, value: str) -> None:
    """As Flower's own grids do when a message is pushed."""
    message.metadata.__dict__["_message_id"] = value
