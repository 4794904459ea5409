"""DP-SGD: gradients that tell little of any one sample (Abadi et al., CCS 2016, algorithm 1).

Each step draws its samples independently (Poisson sampling), clips the gradient of every sample to
norm S and adds N(0, (sigma S)^2) to the sum, which it divides by the number of samples expected.
What an accountant needs of it is (sigma, rate, steps), whatever the optimiser does with the sum.

Neighbours are data sets of a client that differ by one record, added or removed. The number n of a
client's records sets rate, steps and divisor, and counts as known. Each round of training costs
anew; what is computed from a trained model, such as any number of answers about public rows and
what is distilled from them, is post-processing and costs nothing more. Samples and noise come from
pseudo-random streams of the run's seed and from floating point: whoever knows the seed, or probes
the last bits of the noise, is outside of the guarantee.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from fedkd.config import Config
from fedkd.stacks import Network, Weights
from fedkd.types import Loss, Release, Target

# of gradients of single samples in one pass: what they take is independent of the batch
_FLOATS = 1 << 24
# RDP at whole orders is a finite sum; fractional ones are slower and add little below epsilon 20.
# All are among those of the ledger, which would else find more than was asked for
_ORDERS = (*range(2, 64), 128, 256, 512)
_PARTS = 10_000  # of one: what a noise multiplier that was searched for is rounded up to


class Private(NamedTuple):
    """What makes one client's steps private: sigma, S, and the stream of the noise alone."""

    noise_multiplier: float
    max_norm: float
    rng: Generator


def private(config: Config, n: int, rng: Generator) -> Private | None:
    """How a client with n records trains; None where the experiment asks for nothing."""
    training = config.privacy.training
    if training is None:
        return None
    return Private(noise_multiplier(config, n), training.max_norm, rng)


def release(config: Config, n: int, round_: int) -> Release | None:
    """What a client with n records gives away by its private epochs of one round; None if nothing.

    Its mechanism `dp_sgd` is `steps` times a Gaussian of `noise_multiplier` on a Poisson sample of
    rate `sample_rate`, all of them floats; noise multiplier 0 protects nobody.
    """
    training, learning = config.privacy.training, config.learning.private
    steps = learning.epochs_in(round_) * steps_an_epoch(learning.batch, n)
    if training is None or not steps:
        return None
    told = {
        "noise_multiplier": noise_multiplier(config, n),
        "sample_rate": sample_rate(learning.batch, n),
        "steps": float(steps),
    }
    return Release("dp_sgd", "record", told)


def noise_multiplier(config: Config, n: int) -> float:
    """sigma of a client with n records: as given, or enough for epsilon and delta in all rounds.

    Whoever misses rounds has spent less. 0 where nothing is ever trained.
    """
    training, learning = config.privacy.training, config.learning.private
    if training is None:
        raise ValueError("noise_multiplier: privacy.training should be set, found nothing")
    if training.noise_multiplier is not None:
        return training.noise_multiplier
    assert training.epsilon is not None and training.delta is not None  # the config sees to it
    epochs = learning.epochs_in(1) + (config.rounds - 1) * learning.epochs
    steps = epochs * steps_an_epoch(learning.batch, n)
    if not steps:
        return 0.0
    return calibrated(training.epsilon, training.delta, sample_rate(learning.batch, n), steps)


@functools.cache
def calibrated(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier for so many steps by RDP, rounded up to four digits.

    Rounding up keeps the promise, and the bits of a run apart from the last digits of the search.
    """
    import dp_accounting  # takes a second, which workers that need no search should not
    from dp_accounting.rdp import RdpAccountant

    def event(sigma: float) -> Any:  # Any: the library is not typed
        gaussian = dp_accounting.GaussianDpEvent(sigma)
        sampled = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        return dp_accounting.SelfComposedDpEvent(sampled, steps)

    least = dp_accounting.calibrate_dp_mechanism(
        lambda: RdpAccountant(_ORDERS),
        event,
        epsilon,
        delta,
        bracket_interval=dp_accounting.LowerEndpointAndGuess(0.0, 1.0),
        tol=1 / _PARTS,
    )
    return math.ceil(float(least) * _PARTS) / _PARTS


def sample_rate(batch: int, n: int) -> float:
    """The chance of each of n records to be in a step, such that `batch` are expected, or all."""
    return min(1.0, batch / n)


def expected(batch: int, n: int) -> float:
    """The records expected in a step."""
    return float(min(batch, n))


def steps_an_epoch(batch: int, n: int) -> int:
    """So many steps that every record is expected once or more; none without records."""
    return -(-n // batch)


def poisson(n: int, batch: int, steps: int, rng: Generator) -> list[Tensor]:
    """The records of each step, every one drawn by itself; a step may have none."""
    rate = sample_rate(batch, n) if n else 0.0
    draws = (torch.rand(n, dtype=torch.float64, generator=rng) for _ in range(steps))
    return [(draw < rate).nonzero()[:, 0] for draw in draws]


def clipped(gradients: Sequence[Tensor], max_norm: float, counts: Tensor) -> list[Tensor]:
    """The sum over samples of gradients [K, B, …], each scaled to norm `max_norm` at most.

    A sample's norm is that over all parameters. Samples where `counts` [K, B] is False are left
    out, as are those whose gradient is not finite, or one sample could decide everything.
    """
    flat = [g.unsqueeze(-1).flatten(2) for g in gradients]  # a parameter may be a single number
    norm = torch.stack([g.square().sum(-1) for g in flat]).sum(0).sqrt()
    sound = norm.isfinite()
    if not bool(sound.all()):
        flat = [g.masked_fill(~sound.unsqueeze(-1), 0) for g in flat]
    factor = (max_norm / norm).clamp_max(1).where(sound & counts, 0)
    return [
        (factor.unsqueeze(1) @ f).view(len(f), *g.shape[2:])
        for f, g in zip(flat, gradients, strict=True)
    ]


def bind(
    net: Network,
    weights: Weights,
    first: int,
    last: int,
    loss: Loss,
    private: Sequence[Private],
    expected: Sequence[float],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The private gradient [n, P] of the models in rows first..last of `weights`.

    It is a function of inputs [n, B, …], labels [n, B] and which of them count [n, B]; the others
    are padding. Where none counts it is noise alone. Every call draws noise anew. `private` and
    `expected`, the records expected in a step, have an item for each row of `weights`.
    """
    each = net.bind_each(weights, first, last, lambda o, y: loss(o, Target(None, "logits", y)))
    own, device = private[first:last], weights.flat.device
    divisor = torch.tensor(expected[first:last], device=device).unsqueeze(1)
    width = max(1, _FLOATS // (len(own) * net.parameters))

    def gradient(inputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        total = torch.zeros(len(own), net.parameters, device=device)
        for at in range(0, inputs.shape[1], width):
            part = slice(at, at + width)
            found = each(inputs[:, part], labels[:, part])
            # a sum in half precision would move by more than the bound for one record
            with torch.autocast(device.type, enabled=False):
                total += net.flattened(clipped(found, own[0].max_norm, counts[:, part]))
        return (total + noise(own, net.parameters).to(device)) / divisor

    return gradient


def noise(private: Sequence[Private], parameters: int) -> Tensor:
    """Fresh noise [K, P] for the sum of a step; every client draws from its own stream, on CPU."""
    rows = []
    for own in private:
        drawn = torch.randn(parameters, generator=own.rng)
        scale = own.noise_multiplier * own.max_norm if own.noise_multiplier else 0.0
        rows.append(drawn * scale)
    return torch.stack(rows)
