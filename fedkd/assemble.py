"""The one place where names become objects: a resolved `Config` to a frozen `Plan`.

A Plan holds closures and does not travel: every process assembles its own from the resolved config
and the prepared data, once.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd import config as configs
from fedkd import data, guarantees, losses, optimisers, plugins, publics, rng
from fedkd.annotations import Annotation
from fedkd.config import Config, ConfigError, Learning, Named
from fedkd.faults import shown
from fedkd.links import linked
from fedkd.samples import Source
from fedkd.stacks import Network, Weights
from fedkd.types import Linear, Loss, Phase, Shape, Strategy, Transform, World, identity

Factory = Callable[[], nn.Module]

_CACHE_BYTES = 4 << 20  # what a core's share of the caches holds, about
_MOST_STACKED = {"cpu": 32, "cuda": 256}
# multiply-adds of a training step above which a batched pass gains nothing any more: measured, see
# benchmarks/stacks.py
_BUSY = {"cpu": 4_000_000, "cuda": 2_000_000_000}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as configured: how to make one, how to run a stack of them, how large a stack."""

    name: str  # with its parameters, as in mlp hidden=[64]
    make: Factory
    network: Network
    multiply_adds: int  # of one sample, forward
    stack: int


@dataclass(frozen=True)
class Plan:
    """All that a run needs, as objects."""

    config: Config
    strategy: Strategy
    world: World
    dataset: data.DataSet
    device: torch.device
    student: Architecture
    architectures: tuple[Architecture, ...]
    teacher: tuple[int, ...]  # the architecture of every client
    losses: dict[str, Loss]  # by phase: private, client, server

    @property
    def clients(self) -> int:
        return len(self.teacher)

    @property
    def has_student(self) -> bool:
        """Whether the method makes one at all."""
        return bool({"distil_server", "average_weights"} & set(self.strategy.program))

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """How many private samples every client has."""
        return tuple(self.dataset.histogram.sum(1).tolist())

    def learnt(self, round_: int) -> list[int]:
        """How many of them every client trains on in a round; none where it learns nothing."""
        return [n if self.world.learns(c, round_) else 0 for c, n in enumerate(self.samples)]

    @cached_property
    def unbounded(self) -> list[str]:
        """What of the experiment has no guarantee, in words."""
        rounds, knows = self.config.rounds, self.world.knows is not None
        return list(
            guarantees.unbounded(self.strategy, max(self.samples), rounds=rounds, knows=knows)
        )

    @cached_property
    def public(self) -> Tensor:
        """The ids [P, 3] of all public rows; samples are numbered through from set to set."""
        rows = torch.zeros(len(self.dataset.public), 3, dtype=torch.int64)
        rows[:, 0] = torch.from_numpy(self.dataset.sets.copy())
        rows[:, 1] = torch.arange(len(rows))
        return rows

    @cached_property
    def rows(self) -> Tensor:
        """The ids [R, 3] of all that may be asked about: public rows, or labels."""
        if self.strategy.summarise is None:
            return self.public
        labels = torch.arange(self.dataset.classes)
        return torch.stack([0 * labels, labels, 0 * labels], 1)

    def inputs(self, indices: Any) -> Tensor:  # Any: an index array
        return self.dataset.batch(indices).to(self.device)

    @cached_property
    def public_inputs(self) -> Tensor:
        """The public set on the device, made once a process."""
        return self.inputs(self.dataset.public)

    @cached_property
    def test_inputs(self) -> Tensor:
        return self.inputs(self.dataset.test)

    @cached_property
    def test_labels(self) -> Tensor:
        return self.dataset.labels(self.dataset.test)

    def private_labels(self, client: int) -> Tensor:
        """What a client takes for the labels of its samples, [n]; a world may have them wrong."""
        labels, classes = self.dataset.labels(self.dataset.private(client)), self.dataset.classes
        stream = rng.stream(self.config.data_seed, rng.SETUP, client, "labels")
        found = self.world.labels(client, self.clients)(labels, classes, stream)
        if found.shape != labels.shape or found.dtype != labels.dtype:
            raise ValueError(
                f"labels: {len(labels)} of int64 expected, found {tuple(found.shape)} of"
                f" {found.dtype}"
            )
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < classes:
            raise ValueError(f"labels: should be from 0 to {classes - 1}, found others")
        return found

    def fresh(self, party: int, purpose: str = "init") -> Weights:
        """The first weights of a client's teacher (or of the student: `rng.SERVER`).

        Other models of the same kind have a `purpose` of their own.
        """
        made = self.student if party == rng.SERVER else self.architectures[self.teacher[party]]
        with rng.borrow(rng.stream(self.config.seed, rng.SETUP, party, purpose)):
            weights = made.network.weights(made.make())
        path = None if party == rng.SERVER else self.stored(party)
        return weights if path is None else read_weights(path, weights, made.network)

    def stored(self, client: int) -> Path | None:
        """Where a client's given weights lie, if the config gives any."""
        for group in self.config.clients:
            if client < group.count:
                if group.weights is None:
                    return None
                path = Path(group.weights)
                return path / f"{client:05d}.safetensors" if os.path.isdir(path) else path
            client -= group.count
        return None

    def factors(self, learning: Learning, round_: int, where: str) -> list[float]:
        """The learning-rate factors of a round's epochs; a schedule runs on from round to round."""
        before = sum(learning.epochs_in(r) for r in range(1, round_))
        epochs = learning.epochs_in(round_)
        return optimisers.schedule(learning.schedule, before + epochs, where)[before:]


def search(config: Config) -> tuple[str, ...]:
    """The folders that plug-ins are looked for in, as told or as found here."""
    return config.execution.search or plugins.search_folders()


def prepare(config: Config, folder: Path) -> None:
    """Load the sources, split and write the arrays that all processes map into memory."""
    where = search(config)
    source = _source(config.data.source, where, "data.source")
    sets = config.data.publics
    others = []
    for i, spec in enumerate(sets):
        at = f"{publics.place(i, len(sets))}.source"
        if spec.source == config.data.source:
            raise ConfigError(
                f"{at}: should be another data set than data.source, whose test and private samples"
                " it would show to all, found the same; leave it out to hold samples back"
            )
        others.append(None if spec.source is None else _source(spec.source, where, at))
    partition = plugins.bind(
        "partition", config.data.partition, taken=3, search=where, where="data.partition"
    )
    clients, seed = len(config.models), config.data_seed
    try:
        splits = data.split(source, partition, config.data, clients, seed)  # type: ignore[arg-type]  # a plug-in's signature is checked when it is called
        public = publics.draw(source, others, splits.public, sets, seed)
        data.write(source, splits, public, folder)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"data: {error}" if not str(error).startswith("data") else str(error)
        ) from None


def _source(spec: Named, search: Sequence[str], where: str) -> Source:
    try:
        made = plugins.build("source", spec, search=search, expect=Source, where=where)
    except ConfigError as error:
        # sources speak of themselves as data.source, wherever they stand
        text = str(error).replace(f"{where}: data.source", "data.source")
        raise ConfigError(text.replace("data.source", where)) from None
    assert isinstance(made, Source)
    return made


def resolve(config: Config) -> Config:
    """Settle every `auto` by a pure rule from the experiment and this machine."""
    compute, execution = config.compute, config.execution
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    gpus = torch.cuda.device_count()
    device = ("cuda" if gpus else "cpu") if compute.device == "auto" else compute.device
    if device == "cuda" and not gpus:
        raise ConfigError(
            "compute.device: should be there, found no GPU that torch can use for cuda; set it to"
            " cpu or auto"
        )
    tasks = 1 if compute.task_threads == "auto" else compute.task_threads
    workers = execution.workers
    if workers == "auto" and execution.address is None:
        workers = max(1, int(cores // max(execution.cpus_per_task, tasks)))
    gpu_share = execution.gpus_per_task
    if gpu_share == "auto":
        gpu_share = 0.0
        if device == "cuda":
            gpu_share = 1.0 if workers == "auto" else min(1.0, gpus / workers)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"seed": config.data_seed}),
            "compute": compute.model_copy(
                update={
                    "device": device,
                    "task_threads": tasks,
                    "server_threads": 1
                    if compute.server_threads == "auto"
                    else compute.server_threads,
                }
            ),
            "execution": execution.model_copy(
                update={"workers": workers, "gpus_per_task": gpu_share, "search": search(config)}
            ),
        }
    )


def assemble(config: Config, folder: Path) -> Plan:
    """The Plan of a resolved config over data that `prepare` wrote to `folder`.

    Raises `ConfigError` for whatever the parts do not give each other.
    """
    where = search(config)
    dataset = data.load(folder)
    strategy = plugins.build(
        "strategy", config.strategy, search=where, expect=Strategy, where="strategy"
    )
    world = plugins.build("world", config.world, search=where, expect=World, where="world")
    assert isinstance(strategy, Strategy) and isinstance(world, World)
    strategy = _annotated(config, _ruled(config, strategy, where), where)
    strategy = guarantees.trained(strategy, config)
    strategy = guarantees.protected(
        strategy, config, dataset.classes, where, knows=world.knows is not None
    )
    strategy = linked(strategy, config, dataset.classes, where)
    device = torch.device(config.compute.device)
    if device.type == "cuda":
        _deterministic()
    known: dict[str, int] = {}
    architectures: list[Architecture] = []
    teacher = []
    for spec, place in zip(config.models, _places(config), strict=True):
        key = json.dumps(spec.model_dump(), sort_keys=True)
        if key not in known:
            known[key] = len(architectures)
            architectures.append(_architecture(spec, config, dataset, device, place))
        teacher.append(known[key])
    plan = Plan(
        config,
        strategy,
        world,
        dataset,
        device,
        _architecture(config.student, config, dataset, device, "student"),
        tuple(architectures),
        tuple(teacher),
        {
            "private": _loss(
                config.learning.private,
                strategy.losses.private,
                losses.cross_entropy(),
                where,
                "private",
            ),
            "client": _loss(
                config.learning.client, strategy.losses.client, losses.kl(), where, "client"
            ),
            "server": _loss(
                config.learning.server, strategy.losses.server, losses.kl(), where, "server"
            ),
            "pretrain": _loss(
                config.learning.pretrain, None, losses.cross_entropy(), where, "pretrain"
            ),
        },
    )
    _check(plan)
    return plan


def _ruled(config: Config, strategy: Strategy, where: Sequence[str]) -> Strategy:
    """The method with the rule that the config puts in the place of its own."""
    if config.combine == "auto":
        return strategy
    rule, name = config.combine.name, config.strategy.name
    why = None
    if "combine" not in strategy.program:
        why = "a method that combines answers", "which never does"
    elif "personal" in strategy.traits:
        why = "a method with one target for all", "whose own rule makes one a client"
    if why:
        raise ConfigError(
            f"combine: {rule} should go with {why[0]}, found {name}, {why[1]}; leave combine at"
            " auto or choose another strategy"
        )
    kinds = (Linear, Transform)
    made = plugins.build("rule", config.combine, search=where, expect=kinds, where="combine")
    assert isinstance(made, kinds)
    return replace(strategy, combine=made)


def _annotated(config: Config, strategy: Strategy, where: Sequence[str]) -> Strategy:
    """The method with what the config has clients say of their answers: 4 bytes a row more."""
    if config.annotate == "auto":
        return strategy
    name = config.strategy.name
    if strategy.annotate is not None or strategy.shares.answers is None:
        found = "which annotates in its own way" if strategy.annotate else "which sends no answers"
        raise ConfigError(
            f"annotate: {config.annotate.name} should go with a method that leaves trust open,"
            f" found {name}, {found}; leave annotate at auto or choose another strategy"
        )
    made = plugins.build(
        "annotation", config.annotate, search=where, expect=Annotation, where="annotate"
    )
    assert isinstance(made, Annotation)
    body = strategy.shares.uplink
    shares = replace(strategy.shares, uplink=lambda t: body(t) + 4 * t.rows)
    return replace(strategy, annotate=made.annotate, annotate_releases=made.releases, shares=shares)


def cautions(plan: Plan) -> tuple[str, ...]:
    """What works and is likely to mislead; told once, when the run begins, and kept with it."""
    traits, rule = plan.strategy.traits, plan.config.combine
    found = []
    if "confident" in traits and "robust" not in traits:
        where = "strategy" if rule == "auto" else "combine"
        name = plan.config.strategy.name if rule == "auto" else rule.name
        liars = len(plan.world.liars(plan.clients))
        told = f"{liars} of {plan.clients} clients lie" * bool(liars)
        found.append(
            f"{where}: {name} gives most weight to who is sure, and a confident liar is always sure"
            f"; {told or 'nobody lies in this world, but nothing would stop one'}; for a rule that"
            " bears liars set combine to median, geometric_median or spectral_filter"
        )
    if plan.config.annotate != "auto" and "robust" in traits:
        found.append(
            f"annotate: {plan.config.annotate.name} is sent and not used, for a robust rule reads"
            " of trust only whether it is above 0; leave annotate at auto"
        )
    return tuple(found)


def _places(config: Config) -> list[str]:
    """Where in the config the model of each client stands."""
    return [
        f"clients.{g}.model.{i % len(group.model)}"
        for g, group in enumerate(config.clients)
        for i in range(group.count)
    ]


def _label(spec: Named) -> str:
    """A plug-in in a few words, told apart by its parameters."""
    return " ".join([spec.name, *(f"{name}={value}" for name, value in spec.params.items())])


def _deterministic() -> None:
    """Have CUDA choose kernels that give the same bits each time, for this whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def _architecture(
    spec: Named, config: Config, dataset: data.DataSet, device: torch.device, where: str
) -> Architecture:
    factory = plugins.bind(
        "model", spec, taken=2, search=search(config), expect=nn.Module, where=where
    )

    def make() -> nn.Module:
        module = factory(dataset.shape, dataset.classes)
        assert isinstance(module, nn.Module)
        return module

    with rng.borrow(rng.stream(config.seed, rng.SETUP, rng.SERVER, "probe")):
        _fits(make, spec, where)
        module = make().eval()
        sample = torch.zeros(2, *dataset.shape)
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                scores = module(sample)
        except Exception as error:  # whatever a module does with samples that it was not made for
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"{where}: {spec.name} should take samples of shape {list(dataset.shape)}, found"
                f" {said[:300]}; choose a model for them"
            ) from None
    if not isinstance(scores, Tensor) or scores.shape != (2, dataset.classes):
        found_shape = (
            list(scores.shape[1:]) if isinstance(scores, Tensor) else type(scores).__name__
        )
        raise ConfigError(
            f"{where}: {spec.name} must give {dataset.classes} logits a sample, one a class, found"
            f" {found_shape}; give its factory's `classes` to the last layer"
        )
    network = Network(module)
    if not network.parameters:
        raise ConfigError(
            f"{where}: {spec.name} should have parameters to learn, found none; choose another"
            " model"
        )
    multiply_adds = counter.get_total_flops() // 4
    with rng.borrow(rng.stream(config.seed, rng.SETUP, rng.SERVER, "probe")):
        stack = _stack(config, network, sample, multiply_adds, device)
    return Architecture(_label(spec), make, network, multiply_adds, stack)


def _fits(make: Factory, spec: Named, where: str) -> None:
    """Refuse a model that is too large to be trained here, before it is made."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):  # shapes without memory
            warnings.simplefilter("ignore")
            count = sum(p.numel() for p in make().parameters())
    except Exception:  # a factory that needs real tensors, or a fault that making it will tell
        return
    needed = 16 * count  # weights, gradient and two moments, float32
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > here:
        raise ConfigError(
            f"{where}: {spec.name} should fit into the {here >> 30} GiB of this machine, found"
            f" {count:,} parameters, which take {needed >> 30} GiB in training; make it smaller"
        )


def _stack(
    config: Config, network: Network, sample: Tensor, multiply_adds: int, device: torch.device
) -> int:
    """How many clients go in one pass: as the cache holds, or one where a pass is busy anyway."""
    compute, batch = config.compute, config.learning.private.batch
    trained = (config.learning.private, config.learning.client)
    if compute.stack == "never":
        return 1
    if not all(optimisers.stackable(learning.optimizer) for learning in trained):
        return 1
    if not network.stackable(sample):
        return 1
    if compute.stack != "auto":
        return compute.stack
    if multiply_adds * batch > _BUSY[device.type]:
        return 1
    if device.type == "cuda":
        return _MOST_STACKED["cuda"]
    per_model = 16 * network.parameters  # weights, gradient and two moments, float32
    return int(min(_MOST_STACKED["cpu"], max(2, _CACHE_BYTES // per_model)))


def _loss(
    learning: Learning, own: Loss | None, usual: Loss, where: Sequence[str], phase: str
) -> Loss:
    if learning.loss == "auto":
        return own or usual
    chosen = plugins.build("loss", learning.loss, search=where, where=f"learning.{phase}.loss")
    if not callable(chosen):
        raise ConfigError(
            f"learning.{phase}.loss: {learning.loss.name} should return a function of logits and a"
            f" target, it returned {type(chosen).__name__}; correct its return statement"
        )
    return chosen


def read_weights(
    path: Path, like: Weights, network: Network, where: str = "clients.weights"
) -> Weights:
    """One model's weights from a safetensors file. Raises `ConfigError` where they do not fit."""
    if not os.path.isfile(path):  # nothing else, for a pipe would be waited for
        raise ConfigError(
            f"{where}: should be a safetensors file or a folder with one a client, found"
            f" no file {shown(str(path))}; correct the path"
        )
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises its own and the system's kinds
        raise ConfigError(
            f"{where}: {shown(str(path))} should be a readable safetensors file, found:"
            f" {error}; name another one"
        ) from None
    names = dict(zip(network.names, network.shapes, strict=True)) | {
        n: b.shape for n, b in network.buffers.items()
    }
    found = {n: t.shape for n, t in stored.items()}
    if found != names:
        odd = sorted({n for n in names if found.get(n) != names[n]} | (found.keys() - names.keys()))
        raise ConfigError(
            f"{where}: {shown(str(path))} should fit the model, found other tensors for"
            f" {shown(', '.join(odd), 300)}; give the weights of this architecture"
        )
    flat = network.flattened([stored[n].float().unsqueeze(0) for n in network.names])
    return Weights(flat, {n: stored[n].unsqueeze(0) for n in network.buffers})


def _check_program(name: str, program: Sequence[str]) -> None:
    """A program is a tuple of known phases, and answers are combined where they are given."""
    unknown = [word for word in program if word not in get_args(Phase)]
    if unknown or not program:
        raise ConfigError(
            f"strategy: the program of {name} should name phases out of"
            f" {', '.join(get_args(Phase))}, found {', '.join(unknown) or 'none'}; correct it there"
        )
    after = dict(zip(program, (*program[1:], ""), strict=True))
    if ("answer" in program or "combine" in program) and after.get("answer") != "combine":
        raise ConfigError(
            f"strategy: in the program of {name} combine should follow answer at once, found"
            f" {', '.join(program)}; correct it there"
        )
    if {"distil_clients", "distil_server"} & set(program) and "combine" not in program:
        raise ConfigError(
            f"strategy: the program of {name} distils and never combines answers, found"
            f" {', '.join(program)}; add answer and combine"
        )
    for word, following in (("recall", "train"), ("convene", "answer")):
        if word in program and after[word] != following:
            raise ConfigError(
                f"strategy: in the program of {name} {following} should follow {word} at once,"
                f" found {', '.join(program)}; correct it there"
            )


def _check_rows(name: str, strategy: Strategy) -> None:
    """Public rows can be learnt and not recalled, labels the other way round."""
    odd = {"distil_clients", "distil_server"} if strategy.summarise else {"recall"}
    found = sorted(odd & set(strategy.program))
    if strategy.summarise and strategy.feedback != "consensus":
        found.append(f"the feedback {strategy.feedback}")
    if found:
        raise ConfigError(
            f"strategy: {name} answers about {'labels' if strategy.summarise else 'public rows'},"
            f" which should go without {' and '.join(sorted(odd))}, found {' and '.join(found)};"
            " correct it there"
        )


def _check_committee(plan: Plan) -> None:
    """Whoever has a committee convenes it, about public rows, with samples for each teacher."""
    strategy, name = plan.strategy, plan.config.strategy.name
    committee, convenes = strategy.committee, "convene" in strategy.program
    if committee is None or not convenes:
        if convenes or committee:
            raise ConfigError(
                f"strategy: {name} should have a committee and a program that convenes it, or"
                f" neither, found {'convene alone' if convenes else 'a committee alone'}; correct"
                " it there"
            )
        return
    if min(committee.partitions, committee.teachers) < 1:
        raise ConfigError(
            f"strategy: the committee of {name} should have at least 1 partition and 1 teacher,"
            f" found {committee.partitions} and {committee.teachers}; correct it there"
        )
    others = [n for n in ("summarise", "subset", "reply") if getattr(strategy, n) is not None]
    if others:
        raise ConfigError(
            f"strategy: {name} should deal all samples of a client to a committee that answers"
            f" about public rows, found {others[0]} beside it; leave one of the two out"
        )
    fewest = min(plan.samples)
    if fewest < committee.teachers:
        raise ConfigError(
            f"strategy: {name} should have a private sample for each of the {committee.teachers}"
            f" teachers of a client, found client {plan.samples.index(fewest)} with {fewest};"
            " lower the number of teachers, or give each client more samples"
            " (data.partition.min_size, data.private, fewer clients)"
        )


def _check_reply(name: str, strategy: Strategy) -> None:
    """What takes the place of a model's logits is about public rows, in a space that is known."""
    if strategy.reply is None:
        return
    found = None
    if strategy.summarise is not None:
        found = "that it summarises labels as well"
    elif strategy.shares.answers is None:
        found = "none in shares.answers"
    if found:
        raise ConfigError(
            f"strategy: {name} replies to public rows from its clients' records, and should say in"
            f" which space, found {found}; correct it there"
        )


def _check_world(plan: Plan) -> None:
    """A world that changes answers needs answers of a kind that it can change."""
    world, strategy, clients = plan.world, plan.strategy, plan.clients
    name = f"world: {plan.config.world.name}"
    lies = world.conspire is not None or world.knows is not None
    lies |= any(world.upload(c, clients) is not identity for c in range(clients))
    if lies and "answer" not in strategy.program:
        raise ConfigError(
            f"{name} changes answers, and clients of {plan.config.strategy.name} send none; choose"
            " a method whose clients answer public rows, or a world that changes something else"
        )
    codec, shape = strategy.upload_codec, Shape(clients, len(plan.rows), plan.dataset.classes)
    if world.conspire is not None and codec is not None and codec.init(shape):
        raise ConfigError(
            f"{name} replaces answers where all are known, and the upload codec of"
            f" {plan.config.strategy.name} remembers what was sent before; choose a codec without"
            " state, or lies that need no other's answers"
        )
    if world.knows is not None and not isinstance(strategy.combine, Linear):
        raise ConfigError(
            f"{name} has clients answer about classes of their own, and {plan.config.strategy.name}"
            " needs the answers of all about all classes; choose a method whose combine is a"
            " weighted mean (Linear)"
        )
    if world.knows is not None and world.conspire is not None:
        raise ConfigError(
            f"{name} has clients answer about classes of their own, and an adversary that compares"
            " all answers; leave one of the two out"
        )


def _check(plan: Plan) -> None:
    """Refuse what the experiment cannot give the method, before anything is trained."""
    config, strategy = plan.config, plan.strategy
    name, program = config.strategy.name, strategy.program
    for phase in ("private", "client", "server", "pretrain"):
        learning: Learning = getattr(config.learning, phase)
        where = f"learning.{phase}"
        optimisers.schedule(learning.schedule, 1, f"{where}.schedule")
        if isinstance(learning.optimizer, configs.TorchOptimizer):
            optimisers.torch_optimizer(learning.optimizer, f"{where}.optimizer")
    _check_program(name, program)
    _check_rows(name, strategy)
    _check_reply(name, strategy)
    labels = "public_labels" in strategy.needs or "pretrain" in program
    if labels and plan.dataset.told < len(plan.public):
        raise ConfigError(
            f"strategy: {name} learns from the labels of the public set, which are hidden here;"
            " set data.public.labelled to true (of every set), or choose a method that needs none"
        )
    if "linear" in strategy.needs and not isinstance(strategy.combine, Linear):
        raise ConfigError(
            f"combine: should be a weighted sum where {name} lets nobody see more than the sum of"
            f" the answers, found {_label(config.combine) if config.combine != 'auto' else 'auto'},"
            " which needs every single one; choose mean or another linear rule"
        )
    if "several_clients" in strategy.needs and plan.clients < 2:
        raise ConfigError(
            f"strategy: {name} hides each client among the others, so there should be at least 2,"
            " found 1; add clients or choose another method"
        )
    if "student" in strategy.needs and not plan.has_student:
        raise ConfigError(
            f"combine: should need no student where the server has none, found a rule that does"
            f" with {name}; choose a rule or a strategy for it"
        )
    if "one_architecture" in strategy.needs:
        kinds = {
            json.dumps(s.model_dump(), sort_keys=True) for s in (*config.models, config.student)
        }
        if len(kinds) > 1:
            models = sorted({s.name for s in (*config.models, config.student)})
            raise ConfigError(
                f"strategy: {name} sends weights, so clients and student must be one model,"
                f" found {', '.join(models)}; set clients and student to the same model"
            )
    _check_committee(plan)
    _check_world(plan)
    conspired = plan.world.conspire is not None
    guarantees.check(strategy, config, plan.samples, conspired=conspired)
    largest = max(plan.samples)
    if largest == 0:
        raise ConfigError(
            "data.partition: every client is empty; raise data.private or lower clients"
        )
