"""fedkd: federated and multi-teacher distillation, simulated.

`from fedkd import load_config, run` is the whole of it from Python: `run(load_config("digits"))`.
"""

from typing import TYPE_CHECKING, Any

from fedkd.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from fedkd.contribution import contributions
    from fedkd.runs import Run, run

__all__ = ["Config", "ConfigError", "Run", "contributions", "load_config", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # Any: the module system's own signature
    if name in ("run", "Run"):  # torch is imported only when something is to be run
        from fedkd import runs

        return getattr(runs, name)
    if name == "contributions":
        from fedkd import contribution

        return contribution.contributions
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
