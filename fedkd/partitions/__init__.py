"""Partitions of private samples among clients: every public function is a built-in by its name.

All have the form `(labels, clients, seed, *, parameters) -> list of index arrays`: `labels` [N] are
the classes, or the values of the column that `data.partition.by` names; the arrays are disjoint,
index `labels`, and none is empty. The drawing is that of flwr-datasets.
"""

from fedkd.partitions.by_label import dirichlet, inner_dirichlet, pathological, power_law, shard
from fedkd.partitions.by_size import exponential, iid, linear, size, square
from fedkd.partitions.by_value import continuous, grouped_natural_id, natural_id

__all__ = [
    "continuous",
    "dirichlet",
    "exponential",
    "grouped_natural_id",
    "iid",
    "inner_dirichlet",
    "linear",
    "natural_id",
    "pathological",
    "power_law",
    "shard",
    "size",
    "square",
]
