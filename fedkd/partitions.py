"""Partitions of private samples among clients: every public function is a built-in by its name.

All have the form `(labels, clients, seed, *, parameters) -> list of index arrays`: `labels` is [N],
the arrays are disjoint, index `labels`, and none is empty. The drawing is that of flwr-datasets;
what follows from its sharp edges is handled here. Samples are shuffled first, because some of its
partitioners cut contiguous blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedkd.config import Count
from fedkd.rng import SERVER, SETUP, number

Labels = npt.NDArray[np.int64]
Parts = list[npt.NDArray[np.int64]]
Alpha = Annotated[float, Field(gt=0, le=1e6)]

_ATTEMPTS = 10


def iid(labels: Labels, clients: int, seed: int) -> Parts:
    """Everybody draws from the same distribution; sizes differ by one at most."""
    _enough(labels, clients)
    return _load(lambda library, _: library.IidPartitioner(clients), labels, clients, seed)


def dirichlet(
    labels: Labels, clients: int, seed: int, *, alpha: Alpha = 0.5, min_size: Count = 1
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
    _enough(labels, clients, min_size)
    return _draw(
        lambda library, drawn: library.DirichletPartitioner(
            clients, "label", alpha, min_partition_size=min_size, seed=drawn
        ),
        labels,
        clients,
        seed,
        f"data.partition.min_size: each of {clients} clients should get at least {min_size} of "
        f"{len(labels)} samples at alpha {alpha}, found a smaller client in every one of "
        f"{11 * _ATTEMPTS} draws; raise data.partition.alpha, lower min_size or the number of "
        f"clients, or use inner_dirichlet, which keeps sizes equal",
    )


def inner_dirichlet(labels: Labels, clients: int, seed: int, *, alpha: Alpha = 0.5) -> Parts:
    """Each client draws its samples by label probabilities of its own, from Dirichlet(alpha).

    Sizes differ by one at most and every sample is used, so that clients filled last take the
    classes that are left: their mixture departs from their draw. It deals sample by sample: 60,000
    take 2 s for 100 clients and 12 s for 2,000. D. A. E. Acar et al., ICLR 2021,
    https://arxiv.org/abs/2111.04263.
    """
    _enough(labels, clients)
    sizes = [len(labels) // clients + (client < len(labels) % clients) for client in range(clients)]
    return _draw(
        lambda library, drawn: library.InnerDirichletPartitioner(sizes, "label", alpha, seed=drawn),
        labels,
        clients,
        seed,
        f"data.partition.alpha: should leave every client some class to draw from, found {alpha}, "
        f"where a client ran out of its classes in every one of {_ATTEMPTS} draws; raise alpha",
    )


def pathological(
    labels: Labels, clients: int, seed: int, *, classes_per_client: Count = 2
) -> Parts:
    """Each client holds exactly so many classes; a class is shared equally by its holders.

    Every class is held by somebody and every sample is used. The first class of a client goes
    round in turn and the others are drawn; with fewer clients than classes a shuffled row of
    classes is dealt out instead, because drawing would leave some unused. Q. Li et al., ICDE 2022,
    https://arxiv.org/abs/2102.02079.
    """
    _enough(labels, clients)
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
    parts = _draw(
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
        f"of {_ATTEMPTS} draws; lower it or the number of clients",
    )
    return [np.concatenate(parts[i * holders : (i + 1) * holders]) for i in range(clients)]


# Any: flwr-datasets is imported only when it is needed (3 s), and so are its types
_Make = Callable[[Any, int], Any]


def _draw(make: _Make, labels: Labels, clients: int, seed: int, refusal: str) -> Parts:
    """Repeat an unlucky draw under derived seeds; `refusal` says what could not be had."""
    unlucky: ValueError | None = None
    for attempt in range(_ATTEMPTS):
        try:
            drawn = number(seed, SETUP, SERVER, f"partition {attempt}")
            return _load(make, labels, clients, drawn)
        except ValueError as error:
            unlucky = error
    raise ValueError(refusal) from unlucky


def _load(make: _Make, labels: Labels, clients: int, seed: int) -> Parts:
    import datasets
    import flwr_datasets.partitioner as library

    rng = np.random.default_rng((seed, 1))  # apart from the library's own, which starts from seed
    order = rng.permutation(len(labels))
    # classes are numbered densely and at random: the library's inner Dirichlet reads class i as
    # the i-th, and its pathological partitioner deals classes in numerical order
    present, dense = np.unique(labels, return_inverse=True)
    dense = rng.permutation(len(present))[dense]
    partitioner = make(library, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"index": order, "label": dense[order]})
    with warnings.catch_warnings():  # each redraw warns; what fails in the end raises
        warnings.simplefilter("ignore")
        loaded = [partitioner.load_partition(i).with_format("numpy") for i in range(clients)]
    return [np.asarray(part["index"][:], dtype=np.int64) for part in loaded]


def _enough(labels: Labels, clients: int, each: int = 1) -> None:
    if len(labels) < clients * each:
        raise ValueError(
            f"data.partition: {clients} clients with at least {each} private samples each need "
            f"{clients * each}, found {len(labels)}; lower the number of clients, or raise "
            f"data.private or lower what the test, validation and public sets take"
        )
