"""DP-SGD: the invariants D1-D4, by hand and by statistics, and what cannot be private."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import small
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import stats
from test_stacks import (
    ADAM,
    RMSPROP,
    SGD,
    SHAPE,
    SIZES,
    Deciding,
    dropping,
    far,
    fresh,
    learning,
    make,
    samples,
    stream,
)
from torch import Tensor, nn

from fedkd.config import Config, ConfigError, load_config
from fedkd.learning import Feed, Fit, Pool, fit
from fedkd.losses import cross_entropy
from fedkd.privacy import sgd
from fedkd.privacy.ledger import BudgetSpent
from fedkd.rehearsal import rehearse
from fedkd.stacks import Network, Weights
from fedkd.types import Release

EPOCHS, BATCH = 3, 8
PLAIN = {"name": "sgd", "lr": 1.0}
NAMES = ("mlp", "cnn", "resnet_gn")  # matrix products, channels last, under vmap as a whole


def trained(
    network: Network,
    weights: Weights,
    pool: Pool,
    own: Sequence[Tensor],
    optimizer: dict[str, object],
    sigma: float | Sequence[float] = 0.0,
    max_norm: float = float("inf"),
    *,
    clients: Sequence[int] | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
) -> Fit:
    """The clients with these positions as one stack, privately."""
    chosen = range(len(own)) if clients is None else clients
    sigmas = [sigma] * len(own) if isinstance(sigma, float) else sigma
    feeds = [
        Feed(own[c], own[c], stream(c, 3), sgd.Private(sigmas[c], max_norm, stream(c, 4)))
        for c in chosen
    ]
    return fit(network, weights.take(torch.tensor(list(chosen))), pool, feeds,
               learning(optimizer, batch), cross_entropy(), epochs=epochs,
               factors=[1.0] * epochs)  # fmt: skip


def looped(
    module: nn.Module,
    pool: Pool,
    own: Tensor,
    client: int,
    optimizer: torch.optim.Optimizer,
    batch: int = BATCH,
) -> None:
    """An ordinary loop of PyTorch over the batches that a client draws."""
    n = len(own)
    module.train()
    for rows in sgd.poisson(n, batch, EPOCHS * -(-n // batch), stream(client, 3)):
        optimizer.zero_grad()
        picked, labels = pool.inputs[own[rows]], pool.labels
        assert labels is not None
        loss = nn.functional.cross_entropy(module(picked), labels[own[rows]], reduction="sum")
        (loss / min(batch, n)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("optimizer", "kind", "params"),
    [(SGD, torch.optim.SGD, {"lr": 0.002, "momentum": 0.9, "weight_decay": 1e-3}),
     (ADAM, torch.optim.Adam, {"lr": 1e-3})],
    ids=["sgd", "adam"],
)  # fmt: skip
def test_d1_without_noise_and_clipping_it_is_plain_descent(
    name: str,
    optimizer: dict[str, object],
    kind: Callable[..., torch.optim.Optimizer],
    params: dict[str, float],
) -> None:
    """On the same Poisson batches, in a stack of clients with unequal numbers of records.

    Adam divides a gradient by its own size, and rounding with it where that is small.
    """
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, 4), samples()
    done = trained(network, weights, pool, own, optimizer)
    assert done.steps == [EPOCHS * -(-n // BATCH) for n in SIZES]
    for c in range(4):
        module = network.module(weights, c)
        looped(module, pool, own[c], c, kind(module.parameters(), **params))
        tolerance = 1e-5 if optimizer is SGD else 1e-4
        assert far(done.weights.flat[c], network.weights(module).flat[0]) < tolerance
        assert far(done.weights.flat[c], weights.flat[c]) > 10 * tolerance


def test_d1_holds_for_any_optimiser_of_torch() -> None:
    network = Network(make("cnn"))
    weights, (pool, own) = fresh(network, "cnn", 1), samples((25,))
    done = trained(network, weights, pool, own, RMSPROP)
    module = network.module(weights)
    theirs = torch.optim.RMSprop(module.parameters(), lr=0.003, momentum=0.5)
    looped(module, pool, own[0], 0, theirs)
    assert far(done.weights.flat, network.weights(module).flat) < 1e-4
    noised = trained(network, weights, pool, own, RMSPROP, 1.0, 1.0)
    assert far(done.weights.flat, noised.weights.flat) > 1e-3


def test_d1_a_step_over_all_records_is_one_of_gradient_descent() -> None:
    """Where the batch holds everybody nothing is left to chance: the full gradient, to the end."""
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 1), samples((6,))
    done = trained(network, weights, pool, own, PLAIN, epochs=1, batch=6)
    module, labels = network.module(weights), pool.labels
    assert labels is not None
    nn.functional.cross_entropy(module(pool.inputs), labels).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter -= parameter.grad
    assert far(done.weights.flat, network.weights(module).flat) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e12, 1e25, float("inf"), float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_d2_no_sample_moves_the_sum_by_more_than_the_bound(name: str, scale: float) -> None:
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, 1), samples((3,))
    hostile = pool._replace(inputs=pool.inputs * torch.tensor([scale, 1, 1]).view(3, 1, 1, 1))
    bound = 0.05
    with_it = trained(network, weights, hostile, own, PLAIN, 0.0, bound, epochs=1)
    alone = trained(network, weights, pool, [own[0][1:]], PLAIN, 0.0, bound, epochs=1)
    moved = 3 * (with_it.weights.flat - weights.flat) - 2 * (alone.weights.flat - weights.flat)
    assert bool(moved.isfinite().all())
    assert float(moved.norm()) <= bound * (1 + 1e-3)  # float32, of weights that are larger
    if scale == 1:
        assert float(moved.norm()) > 0.9 * bound  # clipped, and not lost


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize(
    "name",
    [*NAMES, "pooled", "hooked", "shared_weights", "tied_weights", "tied_and_shared", "Scaled"],
)
def test_d2_a_step_is_that_of_one_backward_pass_a_sample(name: str, n: int) -> None:
    """Each clipped over all parameters together, and the sum divided by those expected."""
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, 1), samples((n,))
    module, labels = network.module(weights), pool.labels
    assert labels is not None
    each = []
    for row in own[0]:
        module.zero_grad()
        one = slice(int(row), int(row) + 1)
        nn.functional.cross_entropy(module(pool.inputs[one]), labels[one]).backward()
        each.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    norms = [float(torch.stack([g.norm() for g in grads]).norm()) for grads in each]
    bound = sorted(norms)[n // 2] * 0.999  # half of them are clipped, at least one
    total = [torch.zeros_like(p) for p in module.parameters()]
    for grads, norm in zip(each, norms, strict=True):
        for into, gradient in zip(total, grads, strict=True):
            into += gradient * min(1.0, bound / norm)
    with torch.no_grad():
        for parameter, gradient in zip(module.parameters(), total, strict=True):
            parameter -= gradient / n
    done = trained(network, weights, pool, own, PLAIN, 0.0, bound, epochs=1, batch=32)
    assert far(done.weights.flat, network.weights(module).flat) < 1e-5
    assert far(done.weights.flat, weights.flat) > 1e-3


def test_gradients_of_two_samples_by_hand() -> None:
    """Logistic regression from zero: g = (p - onehot) (x, 1), of norms 2.5 and 0.625."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    network = Network(module)
    pool = Pool(torch.tensor([[3.0, 4.0], [0.0, 0.75]]), None, "logits", torch.tensor([0, 1]))
    weights = Weights(torch.zeros(1, 6), {})
    bound, own = 1.0, [torch.arange(2)]
    done = trained(network, weights, pool, own, PLAIN, 0.0, bound, epochs=1)
    # weights 2x2, then biases; p is a half, so every entry is half of (x, 1) with a sign
    first = torch.tensor([-3.0, -4.0, 3.0, 4.0, -1.0, 1.0]) / 2
    second = torch.tensor([0.0, 0.75, 0.0, -0.75, 1.0, -1.0]) / 2
    assert float(first.norm()) == pytest.approx((2 * 26) ** 0.5 / 2)
    assert float(second.norm()) == pytest.approx((2 * 1.5625) ** 0.5 / 2)  # 0.884: left as it is
    torch.testing.assert_close(done.weights.flat[0], -(first / first.norm() + second) / 2)


def test_d4_every_record_is_drawn_by_itself() -> None:
    """Batch sizes are binomial, and records come equally often and independently of each other."""
    n, batch, steps = 40, 10, 20_000
    drawn = sgd.poisson(n, batch, steps, stream(0, 9))
    sizes = torch.tensor([len(rows) for rows in drawn]).numpy()
    binomial = stats.binom(n, batch / n)
    edges = range(3, 19)
    seen = [int((sizes <= edges[0]).sum())]
    seen += [int((sizes == k).sum()) for k in edges[1:]] + [int((sizes > edges[-1]).sum())]
    chance = [binomial.cdf(edges[0]), *(binomial.pmf(k) for k in edges[1:]), binomial.sf(edges[-1])]
    assert stats.chisquare(seen, [steps * p for p in chance]).pvalue > 1e-3
    taken = torch.zeros(steps, n)
    for step, rows in enumerate(drawn):
        taken[step, rows] = 1
        assert bool((rows.diff() > 0).all())
    spread = (steps * 0.25 * 0.75) ** 0.5
    assert float((taken.sum(0) - steps / 4).abs().max()) < 4.5 * spread
    between = torch.corrcoef(taken.T) - torch.eye(n)
    assert float(between.abs().max()) < 5 / steps**0.5


def test_d4_what_is_trained_on_is_so_drawn() -> None:
    """Equal records, each of which moves a model by as much: how far it went counts them."""
    clients, n, batch, bound = 300, 40, 10, 1e-3
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    weights = Weights(torch.zeros(clients, network.parameters), {})
    pool = Pool(torch.ones(n, 1, 2, 2), None, "logits", torch.zeros(n, dtype=torch.int64))
    own = [torch.arange(n)] * clients
    done = trained(network, weights, pool, own, PLAIN, 0.0, bound, epochs=1, batch=batch)
    drawn = done.weights.flat.double().norm(dim=1) * batch / bound  # in four steps
    assert float((drawn - drawn.round()).abs().max()) < 0.01
    spread = float((drawn - 4 * batch).square().sum()) / (4 * n * 0.25 * 0.75)
    assert 1e-3 < stats.chi2.cdf(spread, clients) < 1 - 1e-3
    assert abs(float(drawn.mean()) - 4 * batch) < 4 * (4 * n * 0.25 * 0.75 / clients) ** 0.5


def test_d4_the_noise_is_gaussian_of_the_scale_that_is_accounted_for() -> None:
    """On the steps of a real training: accepted at sigma, rejected at 2/3 and 3/2 of it."""
    sigma, bound, sizes = 1.7, 0.3, (12, 5)
    network = Network(make("cnn"))
    weights, (pool, own) = fresh(network, "cnn", 2), samples(sizes)
    clean = trained(network, weights, pool, own, PLAIN, 0.0, bound, epochs=1, batch=12)
    noised = trained(network, weights, pool, own, PLAIN, sigma, bound, epochs=1, batch=12)
    for k, n in enumerate(sizes):
        noise = (noised.weights.flat[k] - clean.weights.flat[k]) * n
        assert accepted(noise, sigma * bound)
        assert not accepted(noise, sigma * bound * 2 / 3)
        assert not accepted(noise, sigma * bound * 3 / 2)
    both = (noised.weights.flat - clean.weights.flat)[:, : network.parameters]
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / network.parameters**0.5


def accepted(noise: Tensor, scale: float) -> bool:
    return bool(stats.kstest(noise.numpy() / scale, "norm").pvalue > 1e-3)


def test_a_step_without_any_record_is_noise_alone() -> None:
    """Three records, one of them expected in a step, and a stream that draws none at first."""
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 1), samples((3,))
    seed = next(s for s in range(100) if not len(sgd.poisson(3, 1, 1, stream(s))[0]))
    feed = Feed(own[0], own[0], stream(seed), sgd.Private(2.0, 0.5, stream(0, 4)))
    assert feed.private is not None
    bound = sgd.bind(network, weights, 0, 1, cross_entropy(), [feed.private], [1.0])
    nobody = torch.zeros(1, 0, dtype=torch.int64)
    found = bound(torch.zeros(1, 0, *SHAPE), nobody, nobody == 0)
    torch.testing.assert_close(found[0], torch.randn(len(found[0]), generator=stream(0, 4)))
    feed = feed._replace(private=sgd.Private(2.0, 0.5, stream(0, 4)))
    done = fit(network, weights, pool, [feed], learning(PLAIN, 1), cross_entropy(), epochs=1,
               factors=[1.0])  # fmt: skip
    assert done.steps == [3]
    same = stream(0, 4)
    noise = torch.stack([torch.randn(len(found[0]), generator=same) for _ in range(3)])
    drawn = sgd.poisson(3, 1, 3, stream(seed))
    # the other steps move by their noise and by at most 0.5 a record
    rest = done.weights.flat[0] - weights.flat[0] + noise.sum(0)
    assert float(rest.norm()) <= 0.5 * sum(len(rows) for rows in drawn) + 1e-3


def test_a_client_with_one_record_learns() -> None:
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 3), samples((1, 9, 1))
    done = trained(network, weights, pool, own, ADAM, 1.0, 1.0, batch=32)
    assert done.steps == [EPOCHS] * 3
    assert all(far(done.weights.flat[k], weights.flat[k]) > 1e-4 for k in range(3))
    idle = trained(network, weights, pool, [own[0][:0], own[1], own[2]], ADAM, 1.0, 1.0)
    assert idle.steps[0] == 0 and torch.equal(idle.weights.flat[0], weights.flat[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_is_exactly_its_clients(name: str) -> None:
    """Each with its own noise multiplier; a sample's gradient is clipped as it would be alone."""
    network, sigmas = Network(make(name)), (0.5, 0.0, 2.0, 1.0)
    weights, (pool, own) = fresh(network, name, 4), samples()
    together = trained(network, weights, pool, own, SGD, sigmas, 0.1)
    again = trained(network, weights, pool, own, SGD, sigmas, 0.1)
    assert torch.equal(together.weights.flat, again.weights.flat)
    for c in range(4):
        alone = trained(network, weights, pool, own, SGD, sigmas, 0.1, clients=[c])
        assert far(together.weights.flat[c], alone.weights.flat[0]) < 1e-5


def test_what_one_pass_holds_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples()
    whole = trained(network, weights, pool, own, SGD, 1.0, 0.1)
    monkeypatch.setattr(sgd, "_FLOATS", 3 * 4 * network.parameters)
    parts = trained(network, weights, pool, own, SGD, 1.0, 0.1)
    assert far(whole.weights.flat, parts.weights.flat) < 1e-5


def test_dropout_draws_for_every_sample_and_apart_from_the_noise() -> None:
    network = Network(dropping())
    weights, (pool, own) = network.weights(dropping()), samples((25,))
    before = torch.get_rng_state()
    one = trained(network, weights, pool, own, SGD, 1.0, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    two = trained(network, weights, pool, own, SGD, 1.0, 0.1)
    assert torch.equal(one.weights.flat, two.weights.flat)
    clean = trained(network, weights, pool, own, PLAIN, 0.0, 0.1, epochs=1, batch=25)
    noised = trained(network, weights, pool, own, PLAIN, 1.0, 0.1, epochs=1, batch=25)
    assert accepted((noised.weights.flat - clean.weights.flat)[0] * 25, 0.1)
    each = network.bind_each(weights, 0, 1, lambda o, y: o.square().sum(-1))
    same = pool.inputs[:1].expand(2, *SHAPE).unsqueeze(0)
    first, second = each(same, torch.zeros(1, 2, dtype=torch.int64))[0][0]
    assert not torch.equal(first, second)


def test_half_precision_is_clipped_and_noised_in_full() -> None:
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 1), samples((12,))
    feeds = [Feed(own[0], own[0], stream(0, 3), sgd.Private(1.0, 0.1, stream(0, 4)))]
    args: dict[str, Any] = {"epochs": 1, "factors": [1.0]}
    half = fit(network, weights, pool, feeds, learning(PLAIN), cross_entropy(),
               precision="bf16", **args)  # fmt: skip
    full = trained(network, weights, pool, own, PLAIN, 1.0, 0.1, epochs=1)
    assert half.weights.flat.dtype == torch.float32
    assert 0 < far(half.weights.flat, full.weights.flat) < 0.01


def test_d2_half_precision_does_not_round_one_record_into_several() -> None:
    """All of one kind, so that in a narrow sum the last few would be lost, or count twice."""
    network, n, bound = Network(make("mlp")), 512, 0.05
    weights, (one, _) = fresh(network, "mlp", 1), samples((1,))
    assert one.labels is not None
    pool = Pool(one.inputs.expand(n, *SHAPE).contiguous(), None, "logits", one.labels.expand(n))

    def total(some: Tensor) -> Tensor:
        feed = Feed(some, some, stream(0, 3), sgd.Private(0.0, bound, stream(0, 4)))
        done = fit(network, weights, pool, [feed], learning(PLAIN, n), cross_entropy(), epochs=1,
                   factors=[1.0], precision="bf16")  # fmt: skip
        return (weights.flat - done.weights.flat) * len(some)

    moved = total(torch.arange(n)) - total(torch.arange(1, n))
    assert float(moved.norm()) == pytest.approx(bound, rel=1e-2)


def test_d2_a_gradient_that_is_not_finite_counts_as_none() -> None:
    odd = torch.tensor([[[3.0, 4.0], [float("inf"), 0.0], [0.0, float("nan")], [0.0, 0.0]]])
    (total,) = sgd.clipped([odd], 1.0, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(total, torch.tensor([[0.6, 0.8]]))


TRAINING = {"noise_multiplier": 1.0, "max_norm": 0.5}


def private(training: object = TRAINING, *overrides: str, **changes: Any) -> Config:
    strategy = changes.pop("strategy", "entropy")
    return small.config(strategy, *overrides, privacy={"training": training}, **changes)


def epsilon(releases: Sequence[Release | None], delta: float, kind: Any = RdpAccountant) -> float:
    accountant = kind()
    for told in releases:
        assert told is not None and told.mechanism == "dp_sgd" and told.unit == "record"
        given = told.parameters
        noise = dp_accounting.GaussianDpEvent(given["noise_multiplier"])
        step = dp_accounting.PoissonSampledDpEvent(given["sample_rate"], noise)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, int(given["steps"])))
    return float(accountant.get_epsilon(delta))


def test_d3_the_budget_grows_with_training_and_with_nothing_else() -> None:
    config, n = private(), 50
    told = sgd.release(config, n, 1)
    assert told is not None
    # 50 records in batches of 16: 4 steps an epoch, each with 16 of 50
    assert told.parameters == {"noise_multiplier": 1.0, "sample_rate": 0.32, "steps": 4.0}
    for change in ("data.public.size=20", "learning.client.epochs=9", "learning.server.epochs=9",
                   "rounds=7", "evaluation.every=2"):  # fmt: skip
        assert sgd.release(private(TRAINING, change), n, 1) == told
    spent = [epsilon([told] * rounds, 1e-3) for rounds in (1, 2, 4)]
    assert spent == sorted(spent) and spent[0] < spent[2]
    more = sgd.release(private(TRAINING, "learning.private.epochs=3"), n, 1)
    assert more is not None and more.parameters["steps"] == 12
    first = private(TRAINING, "learning.private.first_epochs=0")
    assert sgd.release(first, n, 1) is None and sgd.release(first, n, 2) == told
    assert sgd.release(config, 0, 1) is None
    assert sgd.release(small.config(), n, 1) is None


def test_d3_the_steps_that_are_told_are_those_that_are_taken(tmp_path: Path) -> None:
    config = private(TRAINING, "learning.private.epochs=2", "evaluation.teachers=false")
    plan = small.plan(config, tmp_path)
    for n in plan.dataset.histogram.sum(1).tolist():
        told = sgd.release(config, n, 1)
        feed = Feed(torch.arange(n), torch.arange(n), stream(0), sgd.private(config, n, stream(1)))
        network = plan.architectures[0].network
        pool = Pool(torch.zeros(n, *plan.dataset.shape), None, "logits", torch.zeros(n).long())
        done = fit(network, plan.fresh(0), pool, [feed], config.learning.private, cross_entropy(),
                   epochs=2, factors=[1.0, 1.0])  # fmt: skip
        assert told is not None and told.parameters["steps"] == done.steps[0]


@pytest.mark.parametrize(
    ("target", "n", "first"), [(1.0, 50, 2), (3.0, 50, 9), (8.0, 40, 0), (2.0, 9, 2)]
)
def test_a_target_is_met_by_the_noise_that_it_takes_and_no_more(
    target: float, n: int, first: int
) -> None:
    """Over all rounds, of which the first may train for longer or not at all."""
    config = private(
        {"epsilon": target, "delta": 1e-3}, "rounds=5", "learning.private.epochs=2",
        f"learning.private.first_epochs={first}",
    )  # fmt: skip
    told = [made for r in range(1, 6) if (made := sgd.release(config, n, r))]
    spent = epsilon(told, 1e-3, lambda: RdpAccountant(list(range(2, 128))))
    assert 0.99 * target < spent <= target
    assert epsilon(told, 1e-3, PLDAccountant) < target  # by another way of accounting
    held = sgd.private(config, n, stream(0))
    assert held is not None and told[0] is not None
    assert held.noise_multiplier == told[0].parameters["noise_multiplier"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"noise_multiplier": 0.0, "epsilon": 1.0, "delta": 1e-5}, "without noise there is none"),
        ({"noise_multiplier": 1.0, "epsilon": 1.0, "delta": 1e-5}, "either noise_multiplier, or"),
        ({"max_norm": 1.0}, "either noise_multiplier, or epsilon with delta"),
        ({"epsilon": 1.0}, "epsilon and delta together"),
        ({"noise_multiplier": 1.0, "sample": "shuffled"}, "not drawn independently"),
        ({"noise_multiplier": 1.0, "sample": "round_robin"}, "poisson"),
        ({"noise_multiplier": 1.0, "max_norm": 0.0}, "at least 1e-09"),
        ({"noise_multiplier": -1.0}, "at least 0"),
        ({"epsilon": 1.0, "delta": 1.0}, "less than 1"),
    ],
)
def test_claims_that_cannot_hold_are_refused_at_once(
    training: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config({**small.EXPERIMENT, "privacy": {"training": training}})
    assert str(error.value).startswith("privacy.training")


def deciding(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Goes by what it sees."""

    class Here(Deciding):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(64, classes)

    return Here()


def remembering(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Keeps a mean of what it has seen, and in no buffer."""

    class Here(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.seen = nn.Linear(64, classes), torch.zeros(64)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen = 0.9 * self.seen + 0.1 * x.flatten(1).mean(0)
            scores: Tensor = self.out(x.flatten(1) - self.seen)
            return scores

    return Here()


def centring(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Takes the mean of a batch away, without a layer for it."""

    class Here(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out = nn.Dropout(0.1), nn.Linear(64, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(x.flatten(1))
            scores: Tensor = self.out(x - x.mean(0))
            return scores

    return Here()


def normalising(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A multilayer perceptron with batch normalisation."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, classes)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": f"{__name__}:normalising"}, "batch normalisation mixes the records.*group norm"),
        ({"model": f"{__name__}:deciding"}, "gradient of every record by itself.*choose a model"),
        (
            {"model": f"{__name__}:remembering", "stack": "never"},
            "gradient of every record by itself.*depends on what the model has seen",
        ),
        ({"model": f"{__name__}:centring"}, "by itself.*the other records of a batch; choose"),
        ({"training": {"epsilon": 1.0, "delta": 0.1}}, "delta: should be below 1/n .*set it to"),
        ({"strategy": "untrained"}, "private epochs once a round.*found 0 times"),
    ],
    ids=["batch norm", "deciding", "remembering", "centring", "delta", "no training"],
)
def test_what_cannot_be_private_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = changes.get("model", small.MLP)
    config = private(
        changes.get("training", TRAINING), f"compute.stack={changes.get('stack', 'auto')}",
        clients=[{"count": 3, "model": [model]}],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        plan = small.plan(config, tmp_path)
        if "strategy" in changes:
            program = tuple(p for p in plan.strategy.program if p != "train")
            plan = replace(plan, strategy=replace(plan.strategy, program=program))
        rehearse(plan)


def test_runs_are_private_and_equal_whoever_does_the_work(tmp_path: Path) -> None:
    """One worker, or several in an order of their own; a task that is done twice draws the same."""
    config = private({"epsilon": 2.0, "delta": 1e-3}, "data.private=120")
    small.run(config, tmp_path / "a")
    small.run(config, tmp_path / "b", Twice(3, random.Random(4)))
    assert small.bits(tmp_path / "a") == small.bits(tmp_path / "b")
    plain = small.config("entropy", "data.private=120")
    small.run(plain, tmp_path / "c")
    assert small.bits(tmp_path / "a") != small.bits(tmp_path / "c")


class Twice(small.InProcess):
    """Does every task a second time and keeps that reply."""

    def served(self, kind: Any, message: bytes) -> bytes:
        super().served(kind, message)
        return super().served(kind, message)


@pytest.mark.slow
def test_private_runs_are_equal_on_ray(tmp_path: Path) -> None:
    assert small.equal_on_ray(private(TRAINING, "data.private=120"), tmp_path)


def test_training_by_dp_sgd_is_charged_round_by_round(tmp_path: Path) -> None:
    """What the ledger says after the run is what an accountant says of all steps at once."""
    chosen = small.config(
        "mhat", "privacy.training={noise_multiplier: 2.0}", "privacy.budget.epsilon=50"
    )
    small.run(chosen, tmp_path)
    told = json.loads((tmp_path / "privacy.json").read_text())
    (group,) = told["guarantees"]
    assert group["mechanisms"] == ["dp_sgd"] and group["unit"] == "record"
    plan = small.plan(chosen, tmp_path)
    batch = chosen.learning.private.batch
    for client, n in enumerate(plan.samples):
        steps = chosen.rounds * -(-n // batch)
        accountant = RdpAccountant()
        step = dp_accounting.PoissonSampledDpEvent(
            min(1.0, batch / n), dp_accounting.GaussianDpEvent(2.0)
        )
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        expected = accountant.get_epsilon(told["delta"])
        assert group["clients"][str(client)] == pytest.approx(expected, rel=1e-6)


def test_a_budget_that_dp_sgd_would_exceed_stops_the_run_before_it_does(tmp_path: Path) -> None:
    chosen = small.config(
        "mhat", "rounds=40", "privacy.training={noise_multiplier: 0.8}", "privacy.budget.epsilon=20"
    )
    with pytest.raises(BudgetSpent):
        small.run(chosen, tmp_path)
    assert 0 < len(small.records(tmp_path)) < 40
    told = json.loads((tmp_path / "privacy.json").read_text())
    assert max(told["guarantees"][0]["clients"].values()) <= 20
