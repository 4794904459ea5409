"""The experiment as data: YAML and overrides in, one frozen `Config` out.

Nothing heavy is imported here, so that a misspelt key is refused in milliseconds. What a plug-in
(strategy, world, model, source, partition, loss) takes stands beside its `name` and is checked
later against the signature of its factory.

Two kinds of sections: everything outside `execution` defines the bits of a run, `execution` never
does. Values given as `auto` are resolved once, when the run starts, and written to the run folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

Auto = Literal["auto"]
Natural = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class ConfigError(ValueError):
    """What the user wrote cannot be run; the text names parameter, rule, finding and way out."""


class Section(BaseModel):
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


Plugin = Annotated[Named, BeforeValidator(_spelled_out)]


def _listed(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _public(value: object) -> object:
    return {"size": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Public(Section):
    """The proxy set that everybody sees."""

    size: Count = 450
    labelled: bool = False


class Data(Section):
    """Where the samples come from and who holds which; all parts are disjoint by construction."""

    source: Plugin = Named(name="digits")
    seed: Seed | Auto = "auto"  # auto: the training seed
    test: Count | Auto = "auto"  # auto: the source's own test set
    validation: Natural = 97
    public: Annotated[Public, BeforeValidator(_public)] = Public()
    private: Count | Auto = "auto"  # auto: all that is left
    partition: Plugin = Named(name="dirichlet", alpha=0.1, min_size=10)


class ClientGroup(Section):
    """`count` clients whose teachers cycle through `model`; ids run on from group to group."""

    count: Count = 10
    model: Annotated[tuple[Plugin, ...], Field(min_length=1), BeforeValidator(_listed)]
    weights: str | None = None  # a teacher, or a folder of teachers, as safetensors


class SGD(Section):
    name: Literal["sgd"]
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None


class Adam(Section):
    """Adam; `adamw` decays the weights apart from the gradient (Loshchilov & Hutter, 2019)."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]
    ] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None


class TorchOptimizer(BaseModel):
    """Any other optimiser of `torch.optim` by class name; its models are not stacked."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, Field(pattern=r"^torch\.optim:[A-Za-z]\w*$")]
    lr: Positive = 1e-3
    clip_norm: Positive | None = None

    @property
    def params(self) -> dict[str, Any]:  # Any: the optimiser's own keyword arguments
        return dict(self.model_extra or {})


def _kind(value: object) -> str:
    name = value.get("name", "adam") if isinstance(value, Mapping) else getattr(value, "name", "")
    return {"sgd": "sgd", "adam": "adam", "adamw": "adam"}.get(str(name), "torch")


Optimizer = Annotated[
    Annotated[SGD, Tag("sgd")] | Annotated[Adam, Tag("adam")] | Annotated[TorchOptimizer, Tag("torch")],
    Discriminator(_kind),
    BeforeValidator(_spelled_out),
]


class Learning(Section):
    """One optimisation: how long, in which batches, by which optimiser and loss.

    `first_epochs` holds in the first round; `schedule` is a scheduler of
    `torch.optim.lr_scheduler`, stepped once an epoch; `loss` is `auto` for the method's own.
    With `keep_state` the optimiser's moments live on from round to round.
    """

    epochs: Natural = 5
    first_epochs: Natural | None = None
    batch: Count = 32
    optimizer: Optimizer = Adam(name="adam", lr=2e-3)
    schedule: Plugin | None = None
    loss: Annotated[Named | Auto, BeforeValidator(lambda v: v if v == "auto" else _spelled_out(v))] = "auto"
    keep_state: bool = False

    def epochs_in(self, round_: int) -> int:
        return self.first_epochs if round_ == 1 and self.first_epochs is not None else self.epochs


class LearningPhases(Section):
    """The three optimisations of a round, and FedMD's on public labels before the first."""

    private: Learning = Learning()
    client: Learning = Learning()
    server: Learning = Learning()
    pretrain: Learning = Learning()


class Compute(Section):
    """What of the hardware enters the bits."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    stack: Literal["auto", "never"] | Count = "auto"  # at most so many clients in one pass
    task_threads: Count | Auto = "auto"
    server_threads: Count | Auto = "auto"


class Evaluation(Section):
    """What is measured beside the method, through the observer channel."""

    teachers: bool = True
    every: Count = 1
    pooled: bool = True
    local: bool = True
    labels: bool = True


class Execution(Section):
    """Where and how the work is done; never what comes out."""

    runtime: Literal["ray", "local", "flower"] = "ray"
    workers: Count | Auto = "auto"
    cpus_per_task: Positive = 1.0
    gpus_per_task: NonNegative | Auto = "auto"
    address: str | None = None
    store: Literal["folder", "carried"] = "folder"
    retries: Natural = 2
    timeout_s: Positive | None = None
    out: str | None = None
    progress: bool = True
    search: tuple[str, ...] = ()  # folders that may hold strategies/ and simulations/


class Config(Section):
    """One experiment (all but `execution`) and how to carry it out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "run"
    seed: Seed = 0
    rounds: Count = 10
    data: Data = Data()
    clients: Annotated[tuple[ClientGroup, ...], Field(min_length=1)]
    student: Plugin
    strategy: Plugin = Named(name="entropy")
    world: Plugin = Named(name="everyone")
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


def folder() -> Path:
    """The configurations that come with the project: beside the package, or inside its wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "configs"


def find(name: str) -> Path:
    """A path as written, or the name of a configuration that comes with the project."""
    for path in (Path(name), folder() / name, folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(p.stem for p in folder().glob("*.yaml"))
    raise ConfigError(
        f"config: {name!r} is neither a file nor one of the built-in configurations"
        f"{_did_you_mean(name, known)}; built in are {', '.join(known)}"
    )


def load_config(source: str | Path | Mapping[str, object] = "digits", overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or a mapping), lay `key=value` overrides over it and check the whole.

    Raises `ConfigError`: one line a fault, each with the parameter, the rule, what was found and
    the way out.
    """
    raw = dict(source) if isinstance(source, Mapping) else _read(find(str(source)))
    for item in overrides:
        raw = _override(raw, item)
    return parse(raw)


def parse(raw: Mapping[str, object]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_explain(e) for e in error.errors()))) from None


def _read(path: Path) -> dict[str, object]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config: {path} must hold a mapping of sections, found {type(raw).__name__}")
    return raw


def _override(raw: Mapping[str, object], item: str) -> dict[str, object]:
    key, sign, text = item.partition("=")
    if not sign or not key:
        raise ConfigError(f"override: {item!r} must read key=value, as in strategy.temperature=0.1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override: the value of {key}={text!r} is not valid YAML; quote it") from None
    value = _number(value)
    tree: Any = json.loads(json.dumps(raw))  # Any: nested YAML
    node, steps = tree, key.split(".")
    for depth, step in enumerate(steps):
        last, so_far = depth == len(steps) - 1, ".".join(steps[: depth + 1])
        if isinstance(node, list):
            if not step.isdigit() or int(step) >= len(node):
                raise ConfigError(
                    f"override: {so_far} must be an index from 0 to {len(node) - 1}, found {step!r}"
                )
            index: Any = int(step)
        elif isinstance(node, dict):
            index = step
        else:
            raise ConfigError(f"override: {so_far} does not exist: {'.'.join(steps[:depth])} is a plain value")
        if last:
            node[index] = value
        else:
            below = node[index] if isinstance(node, list) else node.get(index, _default(steps[: depth + 1]))
            if isinstance(below, str):  # the short form of a plug-in
                below = {"name": below}
            if isinstance(below, int) and not isinstance(below, bool) and step == "public":
                below = {"size": below}
            node[index] = {} if below is None else below
            node = node[index]
    return dict(tree)


def _default(steps: Sequence[str]) -> object:
    """What stands at a path when the YAML says nothing of it."""
    node: Any = Config.model_construct(clients=(), student=Named(name="none")).model_dump(mode="json")
    for step in steps:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _number(value: object) -> object:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _explain(error: Any) -> str:  # Any: pydantic's ErrorDetails
    path = ".".join(str(p) for p in error["loc"] if not _is_branch(p))
    found = error["input"]
    if error["type"] == "extra_forbidden":
        key, known = str(error["loc"][-1]), _fields_at(error["loc"][:-1])
        return f"{path}: there is no such key{_did_you_mean(key, known)}; known here are {', '.join(known)}"
    if error["type"] == "missing":
        return f"{path}: is required and was not given; add it to the config or as an override {path}=…"
    if error["loc"][-1:] == ("torch",) or "torch.optim" in str(error.get("ctx", "")):
        return f"{path}: should be sgd, adam, adamw or torch.optim:CLASS, found {found!r}"
    rule = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    shown = repr(found) if len(repr(found)) <= 80 else f"{repr(found)[:77]}…"
    return f"{path}: should be {rule}, found {shown}; change it in the config or as an override {path}=…"


_OPTIMIZERS = {"sgd": SGD, "adam": Adam, "torch": TorchOptimizer}


def _is_branch(part: object) -> bool:
    """Pydantic names the branch of a union inside the path; people did not write it."""
    branches = {"Named", "int", "float", "nullable", *_OPTIMIZERS}
    return isinstance(part, str) and (part in branches or "[" in part or "-" in part)


def _fields_at(location: Sequence[object]) -> list[str]:
    """The keys that a section admits, by walking the models along an error's path."""
    model: Any = Config
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation)
        elif part in _OPTIMIZERS:
            model = _OPTIMIZERS[str(part)]
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _section(annotation: Any) -> Any:  # Any: the typing module's own objects
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section(a)) is not None), None)
