"""fedkd: federated and multi-teacher distillation, simulated.

`from fedkd import load_config, run` is the whole of it from Python: `run(load_config("digits"))`.
"""

from typing import TYPE_CHECKING, Any

from fedkd.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from fedkd.runs import Run, resume, run
    from fedkd.sweeps import Sweep, sweep

__all__ = ["Config", "ConfigError", "Run", "Sweep", "load_config", "resume", "run", "sweep"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # Any: the module system's own signature
    # torch is imported only when something is to be run
    if name in ("run", "Run", "resume"):
        from fedkd import runs

        return getattr(runs, name)
    if name in ("sweep", "Sweep"):
        from fedkd import sweeps

        return getattr(sweeps, name)
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
