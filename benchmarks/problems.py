"""What is measured: two experiments on Fashion-MNIST, as configs, and where the data lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

Problem = dict[str, Any]  # Any: YAML, checked by `load_config`


def twenty_teachers(folder: Path, clients: int = 20, rounds: int = 5) -> Problem:
    """Clients of three architectures that learn for real: what a pass costs is what counts."""
    adam = {"name": "adam", "lr": 0.001}
    return {
        "name": "twenty-teachers",
        "rounds": rounds,
        "data": {
            "source": {"name": "idx", "folder": str(folder)},
            "validation": 1000,
            "public": 5000,
            "private": 20000,
            "partition": {"name": "dirichlet", "alpha": 0.1, "min_size": 10},
        },
        "clients": [
            {
                "count": clients,
                "model": [
                    {"name": "mlp", "hidden": [200]},
                    "lenet5",
                    {"name": "cnn", "channels": [8, 16], "hidden": 32},
                ],
            }
        ],
        "student": {"name": "cnn", "channels": [8, 16], "hidden": 32},
        "strategy": "entropy",
        "learning": {
            "private": {"epochs": 4, "batch": 32, "optimizer": adam},
            "client": {"epochs": 1, "batch": 64, "optimizer": adam},
            "server": {"epochs": 4, "batch": 64, "optimizer": adam},
        },
        "evaluation": {"pooled": False, "local": False, "labels": False},
    }


def thousand_clients(folder: Path, clients: int = 1000, rounds: int = 3) -> Problem:
    """Many clients with hardly any work: what a message costs is what counts."""
    adam = {"name": "adam", "lr": 0.001}
    return {
        "name": "thousand-clients",
        "rounds": rounds,
        "data": {
            "source": {"name": "idx", "folder": str(folder)},
            "test": 1000,
            "validation": 100,
            "public": 200,
            "private": 20 * clients,
            "partition": {"name": "pathological", "classes_per_client": 2},
        },
        "clients": [{"count": clients, "model": {"name": "mlp", "hidden": [64]}}],
        "student": {"name": "mlp", "hidden": [64]},
        "strategy": "entropy",
        "learning": {
            "private": {"epochs": 1, "batch": 20, "optimizer": adam},
            "client": {"epochs": 1, "batch": 64, "optimizer": adam},
            "server": {"epochs": 1, "batch": 64, "optimizer": adam},
        },
        "evaluation": {"teachers": False, "pooled": False, "local": False, "labels": False},
    }


def data_folder() -> Path:
    """The folder of Fashion-MNIST's IDX files. Raises `ValueError` where it is not to be found."""
    asked = os.environ.get("FEDKD_DATA")
    if asked is None:
        raise ValueError(
            "FEDKD_DATA: should name the folder that holds fashion_mnist/ with the four IDX files,"
            " found nothing; set it, as in FEDKD_DATA=data python -m benchmarks"
        )
    folder = Path(asked).expanduser().absolute() / "fashion_mnist"
    if not folder.is_dir():
        raise ValueError(
            f"FEDKD_DATA: should name a folder that holds fashion_mnist/, found {asked!r} without"
            " it; correct the variable or put Fashion-MNIST's four IDX files there"
        )
    return folder
