"""Flower's own simulation engine under the same two apps."""

from __future__ import annotations

import threading
from pathlib import Path

from fedkd.conduct import Watch
from fedkd.config import Config
from fedkd.runtime import private
from fedkd.runtime.apps import client, server_app


def start(config: Config, run: Path, watch: Watch) -> None:
    """Run under `run_simulation`; what the ServerApp raises is raised here."""
    execution = config.execution
    workers = 1 if execution.workers == "auto" else execution.workers
    resources = {
        # the engine admits whole CPUs only
        "num_cpus": max(1, round(execution.cpus_per_task)),
        "num_gpus": 0.0 if execution.gpus_per_task == "auto" else execution.gpus_per_task,
    }
    init: dict[str, object] = {"log_to_driver": False, "logging_level": "ERROR"}
    if execution.address is None:
        init |= {"address": "local", "num_cpus": workers * resources["num_cpus"]}
    else:
        init["address"] = execution.address
    over = threading.Event()
    try:
        private.run_simulation(
            server_app(config, run, watch, over),
            client,
            num_supernodes=2
            * workers,  # seats: enough that every worker always finds one with work
            backend_config={"client_resources": resources, "init_args": init},  # type: ignore[dict-item]
        )
    finally:  # interrupted, the engine leaves its ServerApp's thread waiting for replies for ever
        over.set()
