"""Many models in one pass: the same as an ordinary loop of PyTorch over each of them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from fedkd import models
from fedkd.config import Learning, Named
from fedkd.learning import Feed, Fit, Pool, answer, fit
from fedkd.losses import cross_entropy
from fedkd.offers import offers
from fedkd.optimisers import schedule, start
from fedkd.rng import borrow
from fedkd.stacks import Network, Weights, gather

SHAPE, CLASSES = (1, 16, 16), 5
SIZES = (25, 14, 8, 21)  # with batches of 8 the last ones have 1, 6, 8 and 5 samples
SGD = {"name": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 1e-3}
ADAM = {"name": "adam", "lr": 1e-3}
RMSPROP = {"name": "torch.optim:RMSprop", "lr": 0.003, "momentum": 0.5}
FACTORS = (1.0, 0.3)  # of the learning rate in each of the epochs
BUILT_IN = [o.name for o in offers("model") if o.origin.endswith("models.py")]
MODELS = {name: {} for name in BUILT_IN} | {"mlp": {"hidden": (24, 16)}, "cnn": {"hidden": 32}}


def learning(optimizer: dict[str, object], batch: int = 8) -> Learning:
    return Learning.model_validate({"optimizer": optimizer, "batch": batch})


def stream(client: int, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * salt + client)


class Crossing(nn.Module):
    """No row of layers: a shortcut around a batch normalisation, weights of its own shape."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(256), nn.Linear(256, CLASSES)
        self.scale = nn.Parameter(torch.ones(2, 1, 256))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        scores: Tensor = self.out(x * self.scale[0] + self.norm(x) * self.scale[1])
        return scores


def flat_row() -> nn.Module:
    """A row of layers that no built-in model has, though they run in the batched pass as well."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.GroupNorm(3, 6), nn.SiLU(),
        nn.Conv2d(6, 4, 3, dilation=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(3),
        nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(16, CLASSES, bias=False),
    )  # fmt: skip


def passing_norm() -> nn.Module:
    """A batch normalisation that keeps no running mean."""
    norm = nn.BatchNorm1d(12, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 12), norm, nn.Linear(12, CLASSES))


def shared_activation() -> nn.Module:
    """One activation in two places."""
    act = nn.Tanh()
    layers = nn.Linear(256, 12), act, nn.Linear(12, 12), act, nn.Linear(12, CLASSES)
    return nn.Sequential(nn.Flatten(), *layers)


def shared_weights() -> nn.Module:
    """One layer with weights in two places."""
    square = nn.Linear(12, 12)
    layers = nn.Linear(256, 12), square, nn.Tanh(), square, nn.Linear(12, CLASSES)
    return nn.Sequential(nn.Flatten(), *layers)


def tied_weights() -> nn.Module:
    """Two layers with one weight."""
    one, other = nn.Linear(12, 12), nn.Linear(12, 12)
    other.weight = one.weight
    layers = nn.Linear(256, 12), one, nn.Tanh(), other, nn.Linear(12, CLASSES)
    return nn.Sequential(nn.Flatten(), *layers)


def tied_and_shared() -> nn.Module:
    """Two layers with one weight, the first of them in two places."""
    made = tied_weights()
    return nn.Sequential(*list(made)[:5], nn.Tanh(), made[2], made[5])


class Scaled(nn.Module):
    """A parameter that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.scale = nn.Linear(256, CLASSES), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(x.flatten(1)) * self.scale
        return scores


def hooked() -> nn.Module:
    """A layer that does something else on the side."""
    first = nn.Linear(256, 12)
    first.register_forward_hook(lambda layer, given, found: 2 * found + 1)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(12, CLASSES))


def pooled() -> nn.Module:
    """Windows of two sizes, the second time over an odd number of rows."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def frozen_layers() -> nn.Module:
    """A row of layers of which all but two stay as they are."""
    return nn.Sequential(
        frozen(nn.Conv2d(1, 4, 3)), frozen(nn.BatchNorm2d(4)), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, bias=False), nn.Flatten(), frozen(nn.Linear(75, 16)), nn.Tanh(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


class Backbone(nn.Module):
    """Features that stay as they are, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = frozen(nn.Sequential(nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.ReLU()))
        self.out = nn.Linear(3 * 12 * 12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.features(x).flatten(1))
        return scores


OWN = {
    f.__name__: f
    for f in (
        Crossing, Scaled, flat_row, passing_norm, shared_activation, tied_weights, hooked, pooled,
        frozen_layers, Backbone,
    )
}  # fmt: skip


class Drawing(nn.Module):
    """Drops inputs without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(nn.functional.dropout(x.flatten(1), 0.5, self.training))
        return scores


class Deciding(nn.Module):
    """Goes by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(x.flatten(1))
        return scores if bool(x.mean() > 0) else -scores


def cumulative_norm() -> nn.Module:
    norm = nn.BatchNorm1d(12, momentum=None)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 12), norm, nn.Linear(12, CLASSES))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES))


ALONE = (Drawing, Deciding, cumulative_norm, dropping, shared_weights, tied_and_shared)


def make(name: str) -> nn.Module:
    own = OWN | {f.__name__: f for f in ALONE}
    if name in own:
        return own[name]()
    module: nn.Module = getattr(models, name)(SHAPE, CLASSES, **MODELS[name])
    return module


def fresh(network: Network, name: str, clients: int) -> Weights:
    rows = []
    for client in range(clients):
        with borrow(stream(client, 1)):
            rows.append(network.weights(make(name)).row(0))
    return gather(rows)


def samples(
    sizes: Sequence[int] = SIZES, shape: Sequence[int] = SHAPE
) -> tuple[Pool, list[Tensor]]:
    rng = stream(0, 2)
    inputs = torch.randn(sum(sizes), *shape, generator=rng)
    labels = torch.randint(CLASSES, (sum(sizes),), generator=rng)
    return Pool(inputs, None, "logits", labels), list(torch.arange(sum(sizes)).split(list(sizes)))


def train(
    network: Network,
    weights: Weights,
    pool: Pool,
    own: Sequence[Tensor],
    optimizer: dict[str, object],
    clients: Sequence[int],
    *,
    factors: Sequence[float] = FACTORS,
    batch: int = 8,
) -> Fit:
    """The clients with these positions as one stack."""
    return fit(
        network,
        weights.take(torch.tensor(clients)),
        pool,
        [Feed(own[c], own[c], stream(c, 3)) for c in clients],
        learning(optimizer, batch),
        cross_entropy(),
        epochs=len(factors),
        factors=factors,
    )


def plain_loop(
    module: nn.Module,
    pool: Pool,
    rows: Tensor,
    rng: torch.Generator,
    optimizer: torch.optim.Optimizer,
    *,
    factors: Sequence[float] = FACTORS,
    batch: int = 8,
    clip_norm: float | None = None,
) -> int:
    """PyTorch as anybody would write it; gives the number of gradient steps."""
    assert pool.labels is not None
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    rates, steps = [g["lr"] for g in optimizer.param_groups], 0
    module.train()
    for factor in factors:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for at in rows[torch.randperm(len(rows), generator=rng)].split(batch):
            if batch_norm and len(at) == 1:  # one sample alone has no variance
                continue
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(pool.inputs[at]), pool.labels[at]).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
            steps += 1
    return steps


def one_by_one(
    network: Network, weights: Weights, pool: Pool, own: Sequence[Tensor], kind: str
) -> tuple[Weights, list[int]]:
    """All clients by the plain loop, as a stack again."""
    rows, steps = [], []
    for client, mine in enumerate(own):
        module = network.module(weights, client)
        optimizer: torch.optim.Optimizer
        if kind == "sgd":
            optimizer = torch.optim.SGD(
                module.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-3
            )
        else:
            optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        steps.append(plain_loop(module, pool, mine, stream(client, 3), optimizer))
        rows.append(network.weights(module).row(0))
    return gather(rows), steps


def far(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def test_all_built_in_models_are_found() -> None:
    assert len(BUILT_IN) >= 6 and {"mlp", "cnn", "resnet_gn"} <= set(BUILT_IN)


@pytest.mark.parametrize("name", [*BUILT_IN, *OWN])
def test_a_stack_is_trained_as_its_models_one_by_one(name: str) -> None:
    """SGD with momentum, unequal partitions, ragged last batches.

    Float32 sums run in another order: weights, batch statistics and predictions agree within 1e-5
    of the largest of them, and what training has changed within 1e-3 of the largest change.
    """
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, len(SIZES)), samples()
    expected, steps = one_by_one(network, weights, pool, own, "sgd")
    for stacks in ([[0, 1, 2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]):
        for clients in stacks:
            done = train(network, weights, pool, own, SGD, clients)
            assert done.steps == [steps[c] for c in clients]
            reference = expected.take(torch.tensor(clients))
            before = weights.flat[clients]
            assert far(done.weights.flat, reference.flat) < 1e-5
            assert far(done.weights.flat - before, reference.flat - before) < 1e-3
            for buffer, tensor in done.weights.buffers.items():
                assert far(tensor.double(), reference.buffers[buffer].double()) < 1e-5
            found, wanted = (answer(network, w, pool.inputs) for w in (done.weights, reference))
            assert far(found, wanted) < 1e-5


@pytest.mark.parametrize("name", [*BUILT_IN, *OWN])
def test_a_stack_under_adam_comes_to_the_same_models(name: str) -> None:
    """Predictions agree within 1e-4 of the largest logit; with batch normalisation within 5 %.

    Adam divides a gradient by its own size. A bias before a batch normalisation has none but for
    rounding, so it wanders by the learning rate, and the running mean lags behind it.
    """
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, len(SIZES)), samples()
    expected, steps = one_by_one(network, weights, pool, own, "adam")
    done = train(network, weights, pool, own, ADAM, range(len(SIZES)))
    assert done.steps == steps
    found, wanted = (answer(network, w, pool.inputs) for w in (done.weights, expected))
    tolerance = 0.05 if network.batch_statistics else 1e-4
    assert far(found, wanted) < tolerance
    assert float((found.argmax(-1) == wanted.argmax(-1)).double().mean()) > 0.95
    before = answer(network, weights, pool.inputs)
    assert far(wanted, before) > 2 * tolerance  # training has moved them by more


@pytest.mark.parametrize("name", [*BUILT_IN, *OWN])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_rows_of_a_stack_are_strangers_to_each_other(
    name: str, optimizer: dict[str, object]
) -> None:
    """Other samples of client 1 leave every bit of the others as it is, moments included."""
    network = Network(make(name))
    weights, (pool, own) = fresh(network, name, len(SIZES)), samples()
    assert pool.labels is not None
    inputs, labels = pool.inputs.clone(), pool.labels.clone()
    inputs[own[1]] = inputs[own[1]] * 3 - 1
    labels[own[1]] = (labels[own[1]] + 1) % CLASSES
    changed = pool._replace(inputs=inputs, labels=labels)
    one, two = (train(network, weights, p, own, optimizer, range(4)) for p in (pool, changed))
    others = [0, 2, 3]
    assert torch.equal(one.weights.flat[others], two.weights.flat[others])
    for before, after in ((one.weights.buffers, two.weights.buffers), (one.moments, two.moments)):
        assert all(torch.equal(before[n][others], after[n][others]) for n in before)
    assert not torch.equal(one.weights.flat[1], two.weights.flat[1])
    assert not network.buffers or any(
        not torch.equal(b[1], two.weights.buffers[n][1]) for n, b in one.weights.buffers.items()
    )


@pytest.mark.parametrize("name", [*BUILT_IN, "Crossing", "flat_row"])
def test_a_stack_answers_as_its_models_do(name: str) -> None:
    """In eval mode, on more samples than fit in one pass."""
    network = Network(make(name))
    weights = fresh(network, name, 3)
    for buffer, tensor in weights.buffers.items():
        if tensor.is_floating_point():  # running statistics that differ from client to client
            weights.buffers[buffer].add_(torch.rand(tensor.shape, generator=stream(9)))
    inputs = torch.randn(300, *SHAPE, generator=stream(7))
    found = answer(network, weights, inputs)
    assert found.shape == (3, 300, CLASSES) and found.dtype == torch.float32
    for k in range(3):
        alone = answer(network, weights.take(torch.tensor([k])), inputs)[0]
        with torch.no_grad():
            plain = network.module(weights, k).eval()(inputs)
        torch.testing.assert_close(found[k], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[k], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made", [frozen_layers, Backbone], ids=lambda f: f.__name__)
@pytest.mark.parametrize("optimizer", [SGD, ADAM, RMSPROP], ids=["sgd", "adam", "RMSprop"])
def test_what_is_frozen_stays_as_it_is(
    made: Callable[[], nn.Module], optimizer: dict[str, object]
) -> None:
    module = made()
    network, (pool, own) = Network(module), samples()
    kept = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert network.parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)
    weights = network.weights(module)
    for clients in ([0], [0, 1]) if optimizer is not RMSPROP else ([0],):
        stack = weights.take(torch.zeros(len(clients), dtype=torch.int64))
        feeds = [Feed(own[c], own[c], stream(c, 3)) for c in clients]
        done = fit(network, stack, pool, feeds, learning(optimizer), cross_entropy(), epochs=2,
                   factors=[1.0] * 2)  # fmt: skip
        after = network.module(done.weights)
        for name, parameter in after.named_parameters():
            before = module.get_parameter(name)
            assert parameter.requires_grad == before.requires_grad == (name not in kept)
            assert torch.equal(parameter, before) == (name in kept)
    again = network.weights(after)
    assert torch.equal(again.flat[0], done.weights.flat[0])


def test_layers_over_series_are_stacked_as_they_are_meant() -> None:
    """Samples [T, F]: a linear layer is then applied to every step."""
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, CLASSES))
    network, inputs = Network(module), torch.randn(7, 3, 5, generator=stream(3))
    assert network.stackable(torch.zeros(2, 3, 5))
    weights = network.weights(module).take(torch.zeros(2, dtype=torch.int64))
    found = answer(network, weights, inputs)
    torch.testing.assert_close(found, module(inputs).detach().expand_as(found))


@pytest.mark.parametrize("made", ALONE, ids=lambda f: f.__name__)
def test_models_that_cannot_be_stacked_answer_one_by_one(made: Callable[[], nn.Module]) -> None:
    module = made()
    network, inputs = Network(module), torch.randn(7, *SHAPE, generator=stream(3))
    weights = network.weights(module).take(torch.zeros(2, dtype=torch.int64))
    found = answer(network, weights, inputs)
    torch.testing.assert_close(found, module.eval()(inputs).detach().expand_as(found))


@pytest.mark.parametrize("clients", [[0], [0, 1]])
def test_a_parameter_that_is_not_used_hinders_nobody(clients: list[int]) -> None:
    module = make("mlp")
    module.register_parameter("spare", nn.Parameter(torch.ones(3)))
    network, (pool, own) = Network(module), samples()
    assert network.stackable(torch.zeros(2, *SHAPE))
    weights = network.weights(module).take(torch.zeros(len(clients), dtype=torch.int64))
    done = train(network, weights, pool, own, {"name": "sgd", "lr": 0.002}, range(len(clients)))
    plain = network.module(weights)
    plain_loop(plain, pool, own[0], stream(0, 3), torch.optim.SGD(plain.parameters(), lr=0.002))
    assert torch.equal(network.module(done.weights).get_parameter("spare"), torch.ones(3))
    assert far(done.weights.flat[0], network.weights(plain).flat[0]) < 1e-5


def test_the_order_of_a_stack_is_given_back() -> None:
    """Inside, clients are sorted by their number of steps; outside nobody sees it."""
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples()
    forth = train(network, weights, pool, own, SGD, [0, 1, 2, 3])
    back = train(network, weights, pool, own, SGD, [3, 2, 1, 0])
    assert forth.steps == back.steps[::-1] == [8, 4, 2, 6]  # two epochs each
    assert far(back.weights.flat.flip(0), forth.weights.flat) < 1e-5
    assert forth.moments["steps"].flatten().tolist() == forth.steps


def test_a_client_without_samples_stays_as_it_is() -> None:
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples()
    done = train(network, weights, pool, [own[0], own[1][:0], own[2], own[3]], SGD, range(4))
    assert done.steps[1] == 0 and torch.equal(done.weights.flat[1], weights.flat[1])
    nobody = train(network, weights, pool, [rows[:0] for rows in own], SGD, range(4))
    assert nobody.steps == [0] * 4 and torch.equal(nobody.weights.flat, weights.flat)


def test_training_changes_nothing_that_it_was_given() -> None:
    network = Network(make("itahara_mnist_cnn"))
    weights, (pool, own) = fresh(network, "itahara_mnist_cnn", 4), samples()
    kept, inputs = weights.clone(), pool.inputs.clone()
    first = train(network, weights, pool, own, ADAM, range(4))
    moments = {n: t.clone() for n, t in first.moments.items()}
    fit(network, first.weights, pool, [Feed(own[0], own[0], stream(0))] * 4, learning(ADAM),
        cross_entropy(), epochs=1, factors=[1.0], moments=first.moments)  # fmt: skip
    assert torch.equal(weights.flat, kept.flat) and torch.equal(pool.inputs, inputs)
    assert all(torch.equal(b, kept.buffers[n]) for n, b in weights.buffers.items())
    assert all(torch.equal(t, first.moments[n]) for n, t in moments.items())


def test_one_sample_alone_cannot_be_normalised() -> None:
    network = Network(make("itahara_mnist_cnn"))
    weights, (pool, own) = fresh(network, "itahara_mnist_cnn", 4), samples()
    single = [own[0], own[1][:1], own[2], own[3]]
    with pytest.raises(ValueError, match="batches of at least two samples, found one; raise"):
        train(network, weights, pool, single, SGD, range(4))


ROWS, STEPS = (3, 40), 25
CASES = {
    "sgd": ({"name": "sgd", "lr": 0.1}, torch.optim.SGD, {}),
    "momentum": ({"name": "sgd", "lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True},
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True},
    ),
    "adam": ({"name": "adam", "lr": 0.01}, torch.optim.Adam, {}),
    "betas": (
        {"name": "adam", "lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-3},
        torch.optim.Adam,
        {"betas": (0.5, 0.9), "eps": 1e-3},
    ),
    "adamw": ({"name": "adamw", "lr": 0.01}, torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("case", CASES)
def test_optimisers_are_those_of_torch(
    case: str, weight_decay: float, clip_norm: float | None
) -> None:
    """Within 1e-6 after 25 steps, for rows that leave the stack at different times."""
    given, kind, params = CASES[case]
    spec = learning(given | {"weight_decay": weight_decay, "clip_norm": clip_norm}).optimizer
    flat = torch.randn(ROWS, generator=stream(0))
    expected = [nn.Parameter(row.clone()) for row in flat]
    theirs = [kind([p], lr=spec.lr, weight_decay=weight_decay, **params) for p in expected]
    _, update = start(spec, flat, None)  # type: ignore[arg-type]
    for step in range(STEPS):
        lr = spec.lr * (0.5 if step >= 10 else 1.0)
        active = 3 if step < 15 else 2
        gradient = torch.randn(active, ROWS[1], generator=stream(step, 5))
        # a rate for all rows, or one for each of them
        rate = lr if step % 2 else torch.full((active, 1), lr)
        update(slice(0, active), gradient.clone(), rate)
        for k in range(active):
            expected[k].grad = gradient[k].clone()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_([expected[k]], clip_norm)
            theirs[k].param_groups[0]["lr"] = lr
            theirs[k].step()
    torch.testing.assert_close(flat, torch.stack([p.data for p in expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "StepLR", "step_size": 2, "gamma": 0.5},
        {"name": "CosineAnnealingLR", "T_max": 5},
        {"name": "ExponentialLR", "gamma": 0.8},
        {"name": "LinearLR", "start_factor": 0.2, "total_iters": 3},
    ],
    ids=lambda s: s["name"],
)
def test_schedules_are_those_of_torch(spec: dict[str, object]) -> None:
    named = Named.model_validate(spec)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = getattr(torch.optim.lr_scheduler, named.name)(optimizer, **named.params)
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"] / 0.3)
        optimizer.step()
        theirs.step()
    assert schedule(named, 6, "learning") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "kind", "params"),
    [
        (RMSPROP, torch.optim.RMSprop, {"momentum": 0.5}),
        ({"name": "torch.optim:NAdam", "lr": 0.003}, torch.optim.NAdam, {}),
    ],
    ids=["RMSprop", "NAdam"],
)
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_any_optimiser_of_torch_works_on_a_model_alone(
    optimizer: dict[str, object],
    kind: type[torch.optim.Optimizer],
    params: dict[str, float],
    clip_norm: float | None,
) -> None:
    network = Network(make("cnn"))
    weights, (pool, own) = fresh(network, "cnn", 4), samples()
    given = optimizer | {"clip_norm": clip_norm}
    module = network.module(weights, 0)
    theirs = kind(module.parameters(), lr=optimizer["lr"], **params)  # type: ignore[call-arg]
    plain_loop(module, pool, own[0], stream(0, 3), theirs, clip_norm=clip_norm)
    done = train(network, weights, pool, own, given, [0])
    assert far(done.weights.flat, network.weights(module).flat) < 1e-5
    with pytest.raises(ValueError, match="takes one model at a time, found 2"):
        train(network, weights, pool, own, given, [0, 1])


@pytest.mark.parametrize("optimizer", [SGD, ADAM, RMSPROP], ids=["sgd", "adam", "RMSprop"])
def test_kept_moments_go_on_as_if_there_had_been_no_pause(optimizer: dict[str, object]) -> None:
    """Two times one epoch, moments handed on, are two epochs, to the bit.

    Of equal partitions: who is in a pass when others have left it decides its last bits.
    """
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples((13, 13, 13, 13))
    clients = [0] if "torch" in str(optimizer["name"]) else [0, 1, 2, 3]
    whole = train(network, weights, pool, own, optimizer, clients, factors=(1.0, 1.0))
    streams = [stream(c, 3) for c in clients]
    feeds = [Feed(own[c], own[c], rng) for c, rng in zip(clients, streams, strict=True)]
    state, moments = weights.take(torch.tensor(clients)), None
    for _ in range(2):
        done = fit(network, state, pool, feeds, learning(optimizer), cross_entropy(),
                   epochs=1, factors=[1.0], moments=moments)  # fmt: skip
        state, moments = done.weights, done.moments
    assert torch.equal(state.flat, whole.weights.flat)
    forgetful = fit(network, state, pool, feeds, learning(optimizer), cross_entropy(),
                    epochs=1, factors=[1.0])  # fmt: skip
    onward = fit(network, state, pool, feeds, learning(optimizer), cross_entropy(),
                 epochs=1, factors=[1.0], moments=moments)  # fmt: skip
    assert not torch.equal(forgetful.weights.flat, onward.weights.flat)


def test_moments_are_each_clients_own() -> None:
    """A client whose moments are zero starts afresh beside others that go on."""
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples((16, 16, 16, 16))
    first = train(network, weights, pool, own, ADAM, range(4))
    mixed = {n: t.clone() for n, t in first.moments.items()}
    for tensor in mixed.values():
        tensor[2] = 0
    args = (pool, [Feed(rows, rows, stream(c, 6)) for c, rows in enumerate(own)])
    done = fit(network, weights, *args, learning(ADAM), cross_entropy(), epochs=1, factors=[1.0],
               moments=mixed)  # fmt: skip
    args = (pool, [Feed(rows, rows, stream(c, 6)) for c, rows in enumerate(own)])
    anew = fit(network, weights, *args, learning(ADAM), cross_entropy(), epochs=1, factors=[1.0])
    assert far(done.weights.flat[2], anew.weights.flat[2]) < 1e-6
    assert far(done.weights.flat[1], anew.weights.flat[1]) > 1e-4
    assert done.moments["steps"].flatten().tolist() == [6, 6, 2, 6]


@pytest.mark.parametrize("name", [*BUILT_IN, *OWN])
def test_models_are_stacked_where_that_can_be_done(name: str) -> None:
    assert Network(make(name)).stackable(torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("made", ALONE, ids=lambda f: f.__name__)
def test_models_that_cannot_be_stacked_learn_alone_as_they_would_in_torch(
    made: Callable[[], nn.Module],
) -> None:
    network = Network(made())
    assert not network.stackable(torch.zeros(2, *SHAPE))
    weights, (pool, own) = network.weights(made()), samples()
    module = network.module(weights)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-3)
    done = train(network, weights, pool, own, SGD, [0])
    if made in (Drawing, dropping):  # draws cannot be told in advance; see the next test
        assert far(done.weights.flat, weights.flat) > 1e-4
        return
    plain_loop(module, pool, own[0], stream(0, 3), optimizer)
    assert far(done.weights.flat, network.weights(module).flat) < 1e-5
    for buffer, tensor in network.weights(module).buffers.items():
        assert far(done.weights.buffers[buffer].double(), tensor.double()) < 1e-5


@pytest.mark.parametrize("made", [Drawing, dropping], ids=lambda f: f.__name__)
@pytest.mark.parametrize("optimizer", [SGD, RMSPROP], ids=["sgd", "RMSprop"])
def test_what_a_model_draws_comes_from_its_clients_own_stream(
    made: Callable[[], nn.Module], optimizer: dict[str, object]
) -> None:
    network = Network(made())
    weights, (pool, own) = network.weights(made()), samples()
    before = torch.get_rng_state()
    one = train(network, weights, pool, own, optimizer, [0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # the global generator is elsewhere by now
    two = train(network, weights, pool, own, optimizer, [0])
    assert torch.equal(one.weights.flat, two.weights.flat)
    feed = Feed(own[0], own[0], stream(0, 8))
    other = fit(network, weights, pool, [feed], learning(optimizer), cross_entropy(),
                epochs=2, factors=FACTORS)  # fmt: skip
    assert not torch.equal(one.weights.flat, other.weights.flat)


def test_the_loss_of_a_batch_is_its_weighted_mean() -> None:
    """One full batch of plain descent: theta - lr sum_i w_i grad_i / n."""
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 1), samples((6,))
    share = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0])
    spec: dict[str, object] = {"name": "sgd", "lr": 0.1}
    done = train(
        network, weights, pool._replace(weight=share), own, spec, [0], factors=(1.0,), batch=6
    )
    module = network.module(weights)
    each = nn.functional.cross_entropy(module(pool.inputs), pool.labels, reduction="none")
    (each * share).sum().div(6).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(done.weights.flat, network.weights(module).flat, rtol=0, atol=1e-6)


def test_half_precision_keeps_weights_in_full() -> None:
    network = Network(make("mlp"))
    weights, (pool, own) = fresh(network, "mlp", 4), samples()
    feeds = [Feed(r, r, stream(c, 3)) for c, r in enumerate(own)]
    done = fit(network, weights, pool, feeds, learning(SGD), cross_entropy(),
               epochs=2, factors=FACTORS, precision="bf16")  # fmt: skip
    full = train(network, weights, pool, own, SGD, range(4))
    assert done.weights.flat.dtype == torch.float32
    # 8 bits of mantissa: off by up to 2^-8 a product, and not by nothing
    assert 1e-6 < far(done.weights.flat, full.weights.flat) < 0.02
    assert answer(network, done.weights, pool.inputs, "bf16").dtype == torch.float32
