"""What privacy costs in time: `python -m benchmarks.dp_sgd` trains with and without DP-SGD.

The same models, samples and numbers of steps, in turn, by CPU time of one thread; the least of
several. Poisson batches hold as many records as shuffled ones on average, and the largest decides
how wide a pass is, so part of the ratio is padding.
"""

from __future__ import annotations

import time

import torch

from fedkd import losses, models, rng
from fedkd.config import Learning
from fedkd.learning import Feed, Pool, fit
from fedkd.privacy import sgd
from fedkd.stacks import Network, gather
from fedkd.tasks import threads

_CLIENTS = (1, 10)
_RECORDS = 128
_EPOCHS = 3
_REPEATS = 3
_CASES = (("mlp", 8), ("cnn", 8), ("resnet_gn", 8), ("cnn", 28), ("lenet5", 28))
_LEARNING = Learning.model_validate({"batch": 32, "optimizer": {"name": "adam"}})


def main() -> None:
    print(f"milliseconds of a step, batch {_LEARNING.batch}, without and with DP-SGD")
    print(f"  {'model':<12}{'sample':<8}{'clients':>8}{'plain':>9}{'private':>9}{'ratio':>7}")
    with threads(1):
        for name, side in _CASES:
            for clients in _CLIENTS:
                plain, private = _measured(name, side, clients)
                print(
                    f"  {name:<12}{f'{side}x{side}':<8}{clients:>8}{plain:>9.2f}{private:>9.2f}"
                    f"{private / plain:>7.1f}",
                    flush=True,
                )


def _measured(name: str, side: int, clients: int) -> tuple[float, float]:
    """Milliseconds of a step of all clients, without and with."""
    shape, stream = (1, side, side), rng.stream(0, rng.SETUP, rng.SERVER, "benchmark")
    make = getattr(models, name)
    network, rows = Network(make(shape, 10)), clients * _RECORDS
    weights = gather([network.weights(make(shape, 10)).row(0) for _ in range(clients)])
    labels = torch.randint(10, (rows,), generator=stream)
    pool = Pool(torch.randn(rows, *shape, generator=stream), None, "logits", labels)
    own = torch.arange(rows).split(_RECORDS)
    least = [float("inf"), float("inf")]
    for _ in range(_REPEATS):
        for kind in (0, 1):
            private = sgd.Private(1.0, 1.0, stream) if kind else None
            feeds = [Feed(mine, mine, stream, private) for mine in own]
            begun = time.process_time()
            done = fit(network, weights, pool, feeds, _LEARNING, losses.cross_entropy(),
                       epochs=_EPOCHS, factors=[1.0] * _EPOCHS)  # fmt: skip
            took = 1e3 * (time.process_time() - begun) / done.steps[0]
            least[kind] = min(least[kind], took)
    return least[0], least[1]


if __name__ == "__main__":
    main()
