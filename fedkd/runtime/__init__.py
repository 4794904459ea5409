"""Where client work runs: a Flower Grid each. Nothing outside this package names flwr or ray."""

import os
import warnings

# read when flwr and ray are imported, here and in the workers
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_LOG_LEVEL", "ERROR")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# ray announces a change of which GPUs CPU-only workers see; ours are told by `num_gpus`
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
