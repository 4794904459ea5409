"""Clients with label spaces of their own: they answer about the classes that they know."""

from torch import Tensor

from fedkd.types import Count, World


def label_spaces(least: Count = 1) -> World:
    """A client knows the classes of which it has `least` private samples, its most frequent at any
    rate, and its answers have columns for these alone.

    Which classes are missing is the partition's affair (`pathological`, `dirichlet`). Scores are
    normalised over the known classes, and the consensus about a class is that of those who know it:
    sum_k w_k p_k,c / sum_k w_k over k with c known, scaled to sum 1. Only weighted means can do so.
    """

    def knows(counts: Tensor) -> Tensor:
        return counts >= min(least, int(counts.max()))

    return World(participants=lambda round_, clients, rng: range(clients), knows=knows)
