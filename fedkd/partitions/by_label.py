"""Who holds which classes: partitions that follow the labels, or what `by` puts in their place."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedkd.config import Count, Natural
from fedkd.dealing import ATTEMPTS, Parts, Values, deal, deal_again, enough

Alpha = Annotated[float, Field(gt=0, le=1e6)]
Sigma = Annotated[float, Field(gt=0, le=20)]


def dirichlet(
    labels: Values, clients: int, seed: int, *, alpha: Alpha = 0.5, min_size: Count = 1
) -> Parts:
    """Each class is dealt to the clients in shares drawn from a symmetric Dirichlet(alpha).

    Sizes vary strongly. `min_size` rejects: the whole partition is drawn again until every client
    has that many samples, up to 110 times. That conditions the distribution, the more so the rarer
    an accepted draw: clients become more equal in size and in labels than alpha says. Of 60,000
    samples in 10 classes at alpha 0.1, nearly every draw leaves nobody empty at 50 clients, 2 in 3
    at 200, 7 in 100 at 500 and none from 1,000 on; use `inner_dirichlet` or a larger alpha there.
    M. Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022; T.-M. H. Hsu et al., 2019,
    https://arxiv.org/abs/1909.06335.
    """
    enough(labels, clients, min_size)
    return deal_again(
        lambda library, drawn: library.DirichletPartitioner(
            clients, "label", alpha, min_partition_size=min_size, seed=drawn
        ),
        labels,
        clients,
        seed,
        f"data.partition.min_size: each of {clients} clients should get at least {min_size} of "
        f"{len(labels)} samples at alpha {alpha}, found a smaller client in every one of "
        f"{11 * ATTEMPTS} draws; raise data.partition.alpha, lower min_size or the number of "
        f"clients, or use inner_dirichlet, which keeps sizes equal",
    )


def inner_dirichlet(labels: Values, clients: int, seed: int, *, alpha: Alpha = 0.5) -> Parts:
    """Each client draws its samples by label probabilities of its own, from Dirichlet(alpha).

    Sizes differ by one at most and every sample is used, so that clients filled last take the
    classes that are left: their mixture departs from their draw. It deals sample by sample: 60,000
    take 2 s for 100 clients and 12 s for 2,000. D. A. E. Acar et al., ICLR 2021,
    https://arxiv.org/abs/2111.04263.
    """
    enough(labels, clients)
    sizes = [len(labels) // clients + (client < len(labels) % clients) for client in range(clients)]
    return deal_again(
        lambda library, drawn: library.InnerDirichletPartitioner(sizes, "label", alpha, seed=drawn),
        labels,
        clients,
        seed,
        f"data.partition.alpha: should leave every client some class to draw from, found {alpha}, "
        f"where a client ran out of its classes in every one of {ATTEMPTS} draws; raise alpha",
    )


def pathological(
    labels: Values, clients: int, seed: int, *, classes_per_client: Count = 2
) -> Parts:
    """Each client holds exactly so many classes; a class is shared equally by its holders.

    Every class is held by somebody and every sample is used. The first class of a client goes
    round in turn and the others are drawn; with fewer clients than classes a shuffled row of
    classes is dealt out instead, because drawing would leave some unused. Q. Li et al., ICDE 2022,
    https://arxiv.org/abs/2102.02079.
    """
    enough(labels, clients)
    classes = len(np.unique(labels))
    if classes_per_client > classes:
        raise ValueError(
            f"data.partition.classes_per_client: should be at most {classes}, the classes that "
            f"the private samples have, found {classes_per_client}; lower it"
        )
    if clients * classes_per_client < classes:
        raise ValueError(
            f"data.partition.classes_per_client: {clients} clients should hold all {classes} "
            f"classes between them, found {classes_per_client} each; raise it to "
            f"{-(-classes // clients)} or add clients"
        )
    # one class a holder and several holders a client: dealt in turn, so that all classes are used
    holders = classes_per_client if clients < classes else 1
    parts = deal_again(
        lambda library, drawn: library.PathologicalPartitioner(
            clients * holders,
            "label",
            classes_per_client // holders,
            class_assignment_mode="first-deterministic",
            seed=drawn,
        ),
        labels,
        clients * holders,
        seed,
        f"data.partition.classes_per_client: each of {clients} clients should get a sample of "
        f"each of its {classes_per_client} classes, found a class of "
        f"{np.unique(labels, return_counts=True)[1].min()} samples with more holders in every one "
        f"of {ATTEMPTS} draws; lower it or the number of clients",
    )
    return [np.concatenate(parts[i * holders : (i + 1) * holders]) for i in range(clients)]


def shard(labels: Values, clients: int, seed: int, *, shards_per_client: Count = 2) -> Parts:
    """Samples sorted by class are cut into equal shards, and each client draws some of them.

    A client holds about as many classes as shards; where a shard crosses a border, one more. What
    does not fill a last shard is left out. H. B. McMahan et al., AISTATS 2017,
    https://arxiv.org/abs/1602.05629.
    """
    enough(labels, clients, shards_per_client)
    return deal(
        lambda library, drawn: library.ShardPartitioner(
            clients, "label", num_shards_per_partition=shards_per_client, seed=drawn
        ),
        labels,
        clients,
        seed,
    )


def power_law(
    labels: Values,
    clients: int,
    seed: int,
    *,
    classes_per_client: Count = 2,
    sigma: Sigma = 2.0,
    min_per_class: Natural = 5,
) -> Parts:
    """So many neighbouring classes a client, in amounts drawn from a lognormal(0, sigma).

    Each client first gets `min_per_class` of each of its classes; the number of clients is a
    multiple of that of classes. T. Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127.
    """
    classes = len(np.unique(labels))
    if clients % classes or classes_per_client > classes:
        raise ValueError(
            f"data.partition: power_law should have a multiple of {classes} clients, the classes "
            f"that the private samples have, with at most {classes} classes each, found {clients} "
            f"clients with {classes_per_client}; change the number of clients or the partition"
        )
    holders = classes_per_client * clients // classes
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < holders * (min_per_class + 1):
        raise ValueError(
            f"data.partition.min_per_class: {holders} clients should share each class, with "
            f"{min_per_class} samples each and one to deal, found a class of {fewest}; lower it, "
            "classes_per_client or the number of clients"
        )

    def make(library: Any, drawn: int) -> Any:  # Any: see `fedkd.dealing.Make`
        amounts = np.random.default_rng((drawn, 2)).lognormal(0, sigma, (classes, holders))
        return library.DistributionPartitioner(
            amounts, clients, classes_per_client, "label", min_per_class, seed=drawn
        )

    return deal(make, labels, clients, seed)
