"""The experiment as data: YAML and overrides in, one frozen `Config` out.

Nothing heavy is imported here, so that a misspelt key is refused in milliseconds. What a plug-in
(strategy, rule, world, model, source, partition, loss, …) takes stands beside its `name` and is
checked later against the signature of its factory.

Two kinds of sections: everything outside `execution` defines the bits of a run, `execution` never
does. Values given as `auto` are resolved once, when the run starts, and written to the run folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from fedkd import reading
from fedkd.faults import ConfigError as ConfigError  # what all others know it by
from fedkd.faults import explained

Auto = Literal["auto"]
# bounds that nobody meets by intent: what lies above is a slip, and would end in memory or time
_MOST_CLIENTS = 1_000_000
Natural = Annotated[int, Field(ge=0, le=10**9, strict=True)]
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
Rounds = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Epochs = Annotated[int, Field(ge=0, le=100_000, strict=True)]
Threads = Annotated[int, Field(ge=1, le=1024, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Section(BaseModel):
    """Keys that are not known are refused; nothing changes after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Named(BaseModel):
    """A plug-in by name, its parameters beside it; a plain string is the name alone."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, Field(min_length=1)]

    @property
    def params(self) -> dict[str, Any]:  # Any: whatever the factory's own signature admits
        return dict(self.model_extra or {})


def _spelled_out(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _spelled_out_unless_auto(value: object) -> object:
    return value if value == "auto" else _spelled_out(value)


Plugin = Annotated[Named, BeforeValidator(_spelled_out)]


def _listed(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _public(value: object) -> object:
    return {"size": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _publics(value: object) -> object:
    return [_public(v) for v in value] if isinstance(value, (list, tuple)) else _public(value)


class Public(Section):
    """A proxy set that everybody sees: held back from the private data, from elsewhere, or noise.

    `source` is another data set, brought to the form of the private samples. `without` leaves
    classes out, by name or number. Labels are hidden unless `labelled`; `label_noise` is the share
    of them that is wrong.
    """

    size: Count = 450
    source: Plugin | None = None
    noise: Literal["uniform", "gaussian", "pink"] | None = None
    without: tuple[Natural | str, ...] = ()
    labelled: Flag = False
    label_noise: Share = 0.0

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.noise is not None:
            told = {"source": self.source, "without": self.without, "labelled": self.labelled}
            if given := [name for name, value in told.items() if value]:
                raise ValueError(f"given without {' and '.join(given)} where noise is set")
        if self.label_noise and not self.labelled:
            raise ValueError("given labelled: true where label_noise is above 0")
        return self


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


Publics = Annotated[
    Annotated[Public, Tag("one")]
    | Annotated[tuple[Public, ...], Tag("several"), Field(min_length=1)],
    Discriminator(_one_or_several),
    BeforeValidator(_publics),
]


class Partition(Named):
    """A partition by name; `by` is the column that stands in the place of the labels."""

    by: str | None = None


class Data(Section):
    """Where the samples come from and who holds which; all parts are disjoint by construction."""

    source: Plugin = Named(name="digits")
    seed: Seed | Auto = "auto"  # auto: the training seed
    test: Count | Auto = "auto"  # auto: the source's own test set
    validation: Natural = 97
    public: Publics = Public()
    private: Count | Auto = "auto"  # auto: all that is left
    partition: Annotated[Partition, BeforeValidator(_spelled_out)] = Partition(
        name="dirichlet", alpha=0.1, min_size=10
    )

    @property
    def publics(self) -> tuple[Public, ...]:
        """The public sets in their order; most experiments have one."""
        return self.public if isinstance(self.public, tuple) else (self.public,)


class ClientGroup(Section):
    """`count` clients whose teachers cycle through `model`; ids run on from group to group."""

    count: Annotated[int, Field(ge=1, le=_MOST_CLIENTS, strict=True)] = 10
    model: Annotated[tuple[Plugin, ...], Field(min_length=1), BeforeValidator(_listed)]
    weights: str | None = None  # a teacher, or a folder of teachers, as safetensors


def _countable(groups: tuple[ClientGroup, ...]) -> tuple[ClientGroup, ...]:
    if sum(group.count for group in groups) > _MOST_CLIENTS:
        raise ValueError(f"at most {_MOST_CLIENTS:,} clients in all")
    return groups


class SGD(Section):
    """Stochastic gradient descent, as `torch.optim.SGD` has it."""

    name: Literal["sgd"]
    lr: Positive = 0.05
    momentum: Share = 0.0
    nesterov: Flag = False
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _look_ahead(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("given a momentum above 0 where nesterov is true")
        return self


class Adam(Section):
    """Adam; `adamw` decays the weights apart from the gradient (Loshchilov & Hutter, 2019)."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None


def _of_torch(value: str) -> str:
    if not re.fullmatch(r"torch\.optim:[A-Za-z]\w*", value):
        raise ValueError("sgd, adam, adamw or torch.optim:CLASS")
    return value


class TorchOptimizer(BaseModel):
    """Any other optimiser of `torch.optim` by class name; its models are not stacked."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, AfterValidator(_of_torch)]
    lr: Positive = 1e-3
    clip_norm: Positive | None = None

    @property
    def params(self) -> dict[str, Any]:  # Any: the optimiser's own keyword arguments
        return dict(self.model_extra or {})


def _kind(value: object) -> str:
    name = value.get("name", "adam") if isinstance(value, Mapping) else getattr(value, "name", "")
    return {"sgd": "sgd", "adam": "adam", "adamw": "adam"}.get(str(name), "torch")


Optimizer = Annotated[
    Annotated[SGD, Tag("sgd")]
    | Annotated[Adam, Tag("adam")]
    | Annotated[TorchOptimizer, Tag("torch")],
    Discriminator(_kind),
    BeforeValidator(_spelled_out),
]


class Learning(Section):
    """One optimisation: how long, in which batches, by which optimiser and loss.

    `first_epochs` holds in the first round; `schedule` is a scheduler of
    `torch.optim.lr_scheduler`, stepped once an epoch; `loss` is `auto` for the method's own.
    """

    epochs: Epochs = 5
    first_epochs: Epochs | None = None
    batch: Count = 32
    optimizer: Optimizer = Adam(name="adam", lr=2e-3)
    schedule: Plugin | None = None
    loss: Annotated[Named | Auto, BeforeValidator(_spelled_out_unless_auto)] = "auto"

    def epochs_in(self, round_: int) -> int:
        return self.first_epochs if round_ == 1 and self.first_epochs is not None else self.epochs


class LearningPhases(Section):
    """The three optimisations of a round, and one on public labels before the first.

    With `keep_optimizer` every party has one optimiser for the whole run: its moments live on from
    round to round, and a client's private epochs and digests share them where their kind is equal.
    """

    keep_optimizer: Flag = True
    private: Learning = Learning()
    client: Learning = Learning()
    server: Learning = Learning()
    pretrain: Learning = Learning()


def _sampler(value: object) -> object:
    if value != "poisson":
        raise ValueError(
            "poisson, which the accountant reckons with: where records are not drawn independently,"
            " as in a shuffled epoch, its epsilon would not hold"
        )
    return value


class PrivateTraining(Section):
    """DP-SGD for the private epochs, by a noise multiplier or for an (epsilon, delta) in the end.

    With `epsilon` and `delta` every client has the noise that its number of records needs to be
    within them after all rounds. The gradient of each record is clipped to `max_norm`.
    """

    # bounds that keep noise within what weights of float32 can take, and squares above nothing
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6, strict=True)] | None = None
    epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    max_norm: Annotated[float, Field(ge=1e-9, le=1e9, strict=True)] = 1.0
    sample: Annotated[Literal["poisson"], BeforeValidator(_sampler)] = "poisson"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        claimed = self.epsilon is not None or self.delta is not None
        if self.noise_multiplier == 0 and claimed:
            raise ValueError(
                "given no epsilon where noise_multiplier is 0, for without noise there is none"
            )
        if (self.noise_multiplier is None) != claimed:
            raise ValueError("given either noise_multiplier, or epsilon with delta")
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("given epsilon and delta together")
        return self


class Compute(Section):
    """What of the hardware enters the bits."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    stack: Literal["auto", "never"] | Count = "auto"  # at most so many clients in one pass
    task_threads: Threads | Auto = "auto"
    server_threads: Threads | Auto = "auto"


class Codecs(Section):
    """How scores travel, up from the clients and down to them: a codec, or a chain of several.

    An empty chain is the method's own way, float32 as a rule.
    """

    up: Annotated[tuple[Plugin, ...], BeforeValidator(_listed)] = ()
    down: Annotated[tuple[Plugin, ...], BeforeValidator(_listed)] = ()


class Budget(Section):
    """The most that may be let out of every unit that a mechanism protects.

    A release that would exceed it does not happen: the run stops before it, or (`leave_out`) goes
    on without the clients that have spent theirs.
    """

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1, strict=True)] = 1e-5
    when_spent: Literal["stop", "leave_out"] = "stop"


class Privacy(Section):
    """What a run guarantees, and enforces.

    `training` is DP-SGD in the private epochs, `answers` a mechanism between what a client would
    upload and its codec. `undeclared` is what becomes of looks at private data that declare no
    release, and of releases that no budget bounds.
    """

    training: PrivateTraining | None = None
    answers: Plugin | None = None
    budget: Budget | None = None
    undeclared: Literal["refuse", "allow"] = "refuse"


class Evaluation(Section):
    """What is measured beside the method, through the observer channel.

    `metrics` measures student, ensemble and teachers in full after the last round; `disagreement`
    how far the answers of a round lie apart.
    """

    teachers: Flag = True
    every: Count = 1
    pooled: Flag = True
    local: Flag = True
    labels: Flag = True
    metrics: Flag = True
    disagreement: Flag = True


class Execution(Section):
    """Where and how the work is done; never what comes out, as long as the same clients answer.

    A task whose worker dies is done again up to `retries` times. What becomes of a client that
    fails, answers rubbish, takes longer than `deadline_s` in one step or is lost for good is
    `on_failure`: `fail` stops the run, `retry` tries as often first, `drop` goes on without it for
    the rest of the round. With fewer than `min_clients` left the round is begun again once, and
    then the run stops. A stopped run can be resumed. `trackers` are told of the run as it goes on.
    """

    runtime: Literal["ray", "local", "flower"] = "ray"
    workers: Count | Auto = "auto"
    cpus_per_task: Positive = 1.0
    gpus_per_task: NonNegative | Auto = "auto"
    address: str | None = None
    store: Literal["folder", "carried"] = "folder"
    retries: Natural = 2
    on_failure: Literal["fail", "retry", "drop"] = "fail"
    min_clients: Count = 1
    deadline_s: Positive | None = None
    most_payload_mib: Count = 1024
    commit_every: Count = 1  # rounds
    keep_commits: Count = 2
    store_answers: Flag = False  # for `python -m fedkd.replay`
    out: str | None = None
    progress: Flag = True
    trackers: Annotated[tuple[Plugin, ...], BeforeValidator(_listed)] = ()
    search: tuple[str, ...] = ()  # folders that may hold strategies/ and simulations/


def _file_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "made of letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
        )
    return value


class Config(Section):
    """One experiment (all but `execution`) and how to carry it out."""

    name: Annotated[str, AfterValidator(_file_name)] = "run"
    seed: Seed = 0
    rounds: Rounds = 10
    data: Data = Data()
    clients: Annotated[tuple[ClientGroup, ...], Field(min_length=1), AfterValidator(_countable)]
    student: Plugin
    strategy: Plugin
    # the rule in the place of the method's own, and what clients say of their answers
    combine: Annotated[Named | Auto, BeforeValidator(_spelled_out_unless_auto)] = "auto"
    annotate: Annotated[Named | Auto, BeforeValidator(_spelled_out_unless_auto)] = "auto"
    world: Plugin = Named(name="everyone")
    privacy: Privacy = Privacy()
    codecs: Codecs = Codecs()
    learning: LearningPhases = LearningPhases()
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    execution: Execution = Execution()

    @property
    def models(self) -> tuple[Named, ...]:
        """The teacher of every client, by ascending client id."""
        return tuple(g.model[i % len(g.model)] for g in self.clients for i in range(g.count))

    @property
    def data_seed(self) -> int:
        return self.seed if self.data.seed == "auto" else self.data.seed

    def experiment(self) -> dict[str, Any]:  # Any: JSON
        """All that defines the bits, as plain JSON values."""
        return self.model_dump(mode="json", exclude={"execution"})

    def fingerprint(self) -> str:
        """A hash of the experiment: two runs with the same one must give the same bytes."""
        canonical = json.dumps(self.experiment(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_config(
    source: str | Path | Mapping[str, object] = "digits", overrides: Sequence[str] = ()
) -> Config:
    """Read a YAML file (or a mapping), lay `key=value` overrides over it and check the whole.

    Raises `ConfigError`: one line a fault, each with the parameter, the rule, what was found and
    the way out.
    """
    given = isinstance(source, Mapping)
    raw = reading.plain(source) if given else reading.read(reading.find(str(source)))
    for item in overrides:
        raw = reading.override(raw, item, _default)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explained(error, Config, raw)) from None


def _default(steps: Sequence[str]) -> object:
    """What stands at a path when the YAML says nothing of it."""
    required = Named(name="none")
    usual = Config.model_construct(clients=(), student=required, strategy=required)
    node: Any = usual.model_dump(mode="json", exclude={"student", "strategy"})  # Any: nested YAML
    for step in steps:
        node = node.get(step) if isinstance(node, dict) else None
    return node
