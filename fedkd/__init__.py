"""fedkd: federated and multi-teacher distillation, simulated.

`from fedkd import load_config, run` is the whole of it from Python: `run(load_config("digits"))`.
"""

from typing import TYPE_CHECKING, Any

from fedkd.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from fedkd.results.modules import export_model, load_student, load_teacher
    from fedkd.runs import Run, run

__all__ = [
    "Config",
    "ConfigError",
    "Run",
    "export_model",
    "load_config",
    "load_student",
    "load_teacher",
    "run",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # Any: the module system's own signature
    if name in ("run", "Run"):  # torch is imported only when something is to be run
        from fedkd import runs

        return getattr(runs, name)
    if name in ("load_student", "load_teacher", "export_model"):
        from fedkd.results import modules

        return getattr(modules, name)
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
