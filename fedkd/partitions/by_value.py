"""Who a sample came from: partitions that follow a column, named by `data.partition.by`.

The column stands in the place of the labels: natural ids, or a quantity.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedkd.dealing import Parts, Values, deal, enough

Strictness = Annotated[float, Field(ge=0, le=1)]


def natural_id(labels: Values, clients: int, seed: int) -> Parts:
    """One client for each value of the column: a hospital, a writer, a country. In their order."""
    ids = len(np.unique(labels))
    if clients != ids:
        raise ValueError(
            f"data.partition: natural_id should have a client for each of {ids} ids that the "
            f"private samples have, found {clients} clients; set their number to {ids}, or use "
            f"grouped_natural_id with fewer"
        )
    return _by_id(labels, clients, seed)


def grouped_natural_id(labels: Values, clients: int, seed: int) -> Parts:
    """The values of the column are dealt to the clients at random, as many to each as can be.

    All samples of an id stay together: a group of writers, an organisation of users.
    """
    ids, code = np.unique(labels, return_inverse=True)
    if clients > len(ids):
        raise ValueError(
            f"data.partition: grouped_natural_id should have at most {len(ids)} clients, the ids "
            f"that the private samples have, found {clients}; lower their number"
        )
    group = np.random.default_rng((seed, 2)).permutation(len(ids)) % clients
    return _by_id(group[code.reshape(-1)].astype(np.int64), clients, seed)


def continuous(labels: Values, clients: int, seed: int, *, strictness: Strictness = 0.5) -> Parts:
    """Samples are sorted by strictness z + (1 - strictness) noise and cut into equal blocks.

    z is the column, standardised; the noise is standard normal. At 0 everybody draws from the same
    distribution, at 1 each client holds an interval of the quantity.
    """
    enough(labels, clients)
    if strictness and not np.std(labels) > 0:
        raise ValueError(
            "data.partition.by: should name a column whose values differ, found one value "
            "throughout; name another column or set strictness to 0"
        )
    return deal(
        lambda library, drawn: library.ContinuousPartitioner(
            clients, "label", strictness, seed=drawn
        ),
        labels,
        clients,
        seed,
        "as they are",
    )


def _by_id(ids: Values, clients: int, seed: int) -> Parts:
    """The library's own natural id partitioner draws a progress bar; groups of one are the same."""
    return deal(
        lambda library, _: library.GroupedNaturalIdPartitioner(
            "label", group_size=1, mode="strict", sort_unique_ids=True
        ),
        ids,
        clients,
        seed,
        "in order",
    )
