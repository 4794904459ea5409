"""What all partitions stand on: flwr-datasets draws, its sharp edges are handled here.

Samples are shuffled first, because some of its partitioners cut contiguous blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedkd.rng import SERVER, SETUP, number

Values = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Parts = list[npt.NDArray[np.int64]]
# Any: flwr-datasets is imported only when it is needed (3 s), and so are its types
Make = Callable[[Any, int], Any]

ATTEMPTS = 10


def deal(
    make: Make,
    values: Values,
    clients: int,
    seed: int,
    numbered: Literal["anew", "in order", "as they are"] = "anew",
) -> Parts:
    """The parts of `make(flwr_datasets.partitioner, seed)` over the column `label`, `values` [N].

    Values are numbered densely and at random (`anew`): the library's inner Dirichlet reads class i
    as the i-th, and its pathological partitioner deals classes in numerical order. Or they keep
    their order, or are not touched.
    """
    import datasets
    import flwr_datasets.partitioner as library

    rng = np.random.default_rng((seed, 1))  # apart from the library's own, which starts from seed
    order = rng.permutation(len(values))
    column: npt.NDArray[Any] = values
    if numbered != "as they are":
        present, column = np.unique(values, return_inverse=True)
        column = rng.permutation(len(present))[column] if numbered == "anew" else column
    partitioner = make(library, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"index": order, "label": column[order]})
    with warnings.catch_warnings():  # each redraw warns; what fails in the end raises
        warnings.simplefilter("ignore")
        loaded = [partitioner.load_partition(i).with_format("numpy") for i in range(clients)]
    return [np.asarray(part["index"][:], dtype=np.int64) for part in loaded]


def deal_again(make: Make, values: Values, clients: int, seed: int, refusal: str) -> Parts:
    """Repeat an unlucky draw under derived seeds; `refusal` says what could not be had."""
    unlucky: ValueError | None = None
    for attempt in range(ATTEMPTS):
        try:
            drawn = number(seed, SETUP, SERVER, f"partition {attempt}")
            return deal(make, values, clients, drawn)
        except ValueError as error:
            unlucky = error
    raise ValueError(refusal) from unlucky


def enough(values: Values, clients: int, each: int = 1) -> None:
    """Raises ValueError where there are fewer samples than `each` times the clients."""
    if len(values) < clients * each:
        raise ValueError(
            f"data.partition: {clients} clients with at least {each} private samples each need "
            f"{clients * each}, found {len(values)}; lower the number of clients, or raise "
            f"data.private or lower what the test, validation and public sets take"
        )
