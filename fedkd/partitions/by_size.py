"""How much everybody holds: partitions that follow no value of the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedkd.config import Count
from fedkd.dealing import Parts, Values, deal, enough


def iid(labels: Values, clients: int, seed: int) -> Parts:
    """Everybody draws from the same distribution; sizes differ by one at most."""
    enough(labels, clients)
    return deal(lambda library, _: library.IidPartitioner(clients), labels, clients, seed)


def size(labels: Values, clients: int, seed: int, *, sizes: tuple[Count, ...]) -> Parts:
    """So many samples for each client, at random; what is left over is not used."""
    if len(sizes) != clients or sum(sizes) > len(labels):
        raise ValueError(
            f"data.partition.sizes: should be {clients} numbers, one a client, of together at most "
            f"{len(labels)} samples, found {len(sizes)} of {sum(sizes)}; correct them"
        )
    return deal(lambda library, _: library.SizePartitioner(list(sizes)), labels, clients, seed)


def linear(labels: Values, clients: int, seed: int) -> Parts:
    """Client k (from 1) holds a share proportional to k, drawn at random."""
    return _growing(labels, clients, seed, lambda k: k, lambda of: of.LinearPartitioner(clients))


def square(labels: Values, clients: int, seed: int) -> Parts:
    """Client k (from 1) holds a share proportional to k squared, drawn at random."""
    return _growing(labels, clients, seed, np.square, lambda of: of.SquarePartitioner(clients))


def exponential(labels: Values, clients: int, seed: int) -> Parts:
    """Client k (from 1) holds a share proportional to exp(k), drawn at random.

    The first of many clients would hold nothing: 60,000 samples are enough for 11.
    """
    return _growing(labels, clients, seed, np.exp, lambda of: of.ExponentialPartitioner(clients))


def _growing(
    labels: Values,
    clients: int,
    seed: int,
    share: Callable[[Any], Any],  # Any: arrays of floats
    make: Callable[[Any], Any],  # Any: see `fedkd.dealing.Make`
) -> Parts:
    shares = share(np.arange(1.0, clients + 1))
    if int(shares[0] / shares.sum() * len(labels)) < 1:
        needed = int(np.ceil(shares.sum() / shares[0]))
        raise ValueError(
            f"data.partition: the smallest of {clients} clients should get a sample, which takes "
            f"{needed:,} private samples in these proportions, found {len(labels):,}; lower the "
            "number of clients or choose another partition"
        )
    return deal(lambda library, _: make(library), labels, clients, seed)
