"""fedkd: federated and multi-teacher distillation, simulated.

`from fedkd import load_config, run` is the whole of it from Python: `run(load_config("digits"))`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedkd.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from fedkd.runs import Run, resume, run

__all__ = ["Config", "ConfigError", "Run", "load_config", "resume", "run"]
__version__ = "0.1.0"
# torch is imported only when something is to be run
_LATER = {"Run": "fedkd.runs", "resume": "fedkd.runs", "run": "fedkd.runs"}


def __getattr__(name: str) -> Any:  # Any: the module system's own signature
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
