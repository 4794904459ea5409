"""The values that flow through a round, and the contract of a method.

Shapes are written J parties, R public rows, S score columns, C classes, K clients. A consensus is
`Predictions` with one party (or one party per receiver when it is personal), so every step of a
method has one type and `chain` needs no cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol, get_args

import torch
from pydantic import Field
from torch import Generator, Tensor

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**53)]  # as far as every reader of JSON counts
Natural = Annotated[int, Field(ge=0, le=2**53)]

Space = Literal["logits", "log_probs", "probs", "votes"]
State = Mapping[str, Tensor]
Facts = Mapping[str, "float | Tensor"]
Extras = Mapping[str, tuple[Tensor, ...]]

CONSENSUS = -1  # the party id of a consensus


@dataclass(frozen=True, slots=True)
class Predictions:
    """What J parties say about R public rows; see the module for the letters.

    `scores` [J, R, S] floats; `mask` [J, R] False where there is no answer: such entries are never
    read and never sent; `trust` [J, R] >= 0, how much an answer counts; `rows` [R, 3] the ids
    (public set, sample, position); `parties` [J] ascending client ids, -1 for a consensus;
    `asked` [J] the round of the question; `classes` [J, R or 1, S] the class of each column, None
    where the columns are all classes in order; `extras` knowledge beyond scores, by declared name.

    Raises `ValueError` where the shapes do not fit.
    """

    scores: Tensor
    mask: Tensor
    trust: Tensor
    rows: Tensor
    parties: Tensor
    asked: Tensor
    space: Space
    classes: Tensor | None = None
    extras: Extras | None = None

    def __post_init__(self) -> None:
        if self.scores.dim() != 3:
            raise ValueError(
                f"predictions: scores must be [J, R, S], found {tuple(self.scores.shape)}"
            )
        j, r, s = self.scores.shape
        expected = {"mask": (j, r), "trust": (j, r), "rows": (r, 3), "parties": (j,), "asked": (j,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"predictions: {name} must be {list(shape)}, found {list(found)}")
        if self.mask.dtype != torch.bool:
            raise ValueError(f"predictions: mask must be boolean, found {self.mask.dtype}")
        if self.space not in get_args(Space):
            raise ValueError(
                f"predictions: space must be one of {get_args(Space)}, found {self.space!r}"
            )
        if self.classes is not None and tuple(self.classes.shape) not in {(j, r, s), (j, 1, s)}:
            raise ValueError(
                f"predictions: classes must be [{j}, {r} or 1, {s}], found"
                f" {list(self.classes.shape)}"
            )
        if j > 1 and not bool((self.parties[1:] > self.parties[:-1]).all()):
            raise ValueError(f"predictions: parties must ascend, found {self.parties.tolist()}")


def predictions(
    scores: Tensor,
    space: Space,
    *,
    mask: Tensor | None = None,
    trust: Tensor | None = None,
    rows: Tensor | None = None,
    parties: Tensor | None = None,
    asked: Tensor | None = None,
    classes: Tensor | None = None,
    extras: Extras | None = None,
) -> Predictions:
    """`Predictions` with the ordinary rest: all answered and trusted, rows and parties 0, 1, …"""
    j, r = scores.shape[:2]
    if rows is None:
        rows = torch.zeros(r, 3, dtype=torch.int64)
        rows[:, 1] = torch.arange(r)
    return Predictions(
        scores,
        torch.ones(j, r, dtype=torch.bool) if mask is None else mask,
        torch.ones(j, r) if trust is None else trust,
        rows,
        torch.arange(j) if parties is None else parties,
        torch.zeros(j, dtype=torch.int64) if asked is None else asked,
        space,
        classes,
        extras,
    )


class Shape(NamedTuple):
    """The sizes that a step may base its state on: all clients, all public rows, all classes."""

    parties: int
    rows: int
    classes: int


Unit = Literal["record", "client", "prediction"]


class Release(NamedTuple):
    """What an observer may learn from a step that looked at private data, for the accountant.

    `unit` is what is protected, `mechanism` a name that `fedkd.privacy.ledger` knows how to compose
    (any other says in words what becomes known, and guarantees nothing). It happens once `per` row
    that is asked, round or run.
    """

    mechanism: str
    unit: Unit
    parameters: Mapping[str, float]
    per: Literal["row", "round", "run"] = "round"


class Step(NamedTuple):
    """What a step hands back. Facts (floats, or [R] tensors) go to the records and nowhere else.

    `released`, each with how often, is what it has let out where that is less than its transform
    declares; None for all that is declared.
    """

    state: State
    result: Predictions
    facts: Facts
    released: tuple[tuple[Release, int], ...] | None = None


Trait = Literal[
    # exceptions to the contract that every method else keeps
    "sharpens",  # equal answers do not give themselves
    "personal",  # a target a client
    "caches",  # rows of earlier rounds beside those that were asked
    "weights",  # sends weights
    "batchwise",  # what counts in a row depends on the other rows
    "leaves_hull",  # a target may lie outside of the convex hull of the answers
    "abstains",  # a row that somebody answered may have no target
    "counts_clients",  # doubling every client changes the target
    "noisy",  # noise for privacy decides what a target is
    # what an experiment should know of a rule
    "confident",  # who is sure counts for more, whether right or wrong
    "robust",  # what a small part of the clients says cannot move a target far
]
Need = Literal[
    "public_labels",  # of rules in `extras["labels"]` [J, R], -1 where unknown
    "student",  # of rules in `extras["student"]` [J, R, C]: the logits of the server's student
    "one_architecture",
    "linear",  # nobody sees more than the sum of the answers
    "several_clients",  # what one says is told to all where it is the only one
]


class Transform(NamedTuple):
    """A step on `Predictions`: pure, its state handed back, its randomness an argument.

    As `Strategy.combine` it may have traits of its own, and need what the server knows of the rows.
    """

    init: Callable[[Shape], State]
    apply: Callable[[State, Predictions, Generator], Step]
    releases: tuple[Release, ...] = ()
    traits: frozenset[Trait] = frozenset()
    needs: frozenset[Need] = frozenset()


class Linear(NamedTuple):
    """A rule whose consensus is sum(numerator) / sum(denominator) over parties.

    `weigh` maps Predictions to a numerator [J, R, S] and a denominator [J, R]; both must be finite
    where the mask is True and are not read elsewhere. Such a rule may be folded one party at a
    time, stacked or summed securely.
    """

    weigh: Callable[[Predictions], tuple[Tensor, Tensor]]
    traits: frozenset[Trait] = frozenset()
    needs: frozenset[Need] = frozenset()


class Codec(NamedTuple):
    """Predictions to payload and back. Both ends keep state; a stateless codec keeps it empty.

    `encode(state, predictions, rng)` and `decode(state, payload, rows, rng)`, where `rows` [R, 3]
    are the rows of the exchange, which both ends know.
    """

    init: Callable[[Shape], State]
    encode: Callable[[State, Predictions, Generator], tuple[State, bytes]]
    decode: Callable[[State, bytes, Tensor, Generator], tuple[State, Predictions]]


class Ask(NamedTuple):
    """Which rows are asked of whom: `rows` [R, 3] and `mask` [K', R], None for all of everyone.

    Where `known`, both sides derive `rows` from the seed and the list itself is not sent; a mask is
    always sent and counted, one bit a row.
    """

    rows: Tensor
    mask: Tensor | None
    known: bool


class PrivateView(NamedTuple):
    """What a client may look at in `annotate`, `summarise` and `reply`: its own samples [n, …] and
    labels [n], and the whole public set [P, …]. `once` is the same stream in every round, for what
    is drawn only once."""

    inputs: Tensor
    labels: Tensor
    classes: int
    public: Tensor
    once: Generator


class OwnModel(Protocol):
    """A client's teacher in eval mode, for `annotate`, `summarise` and `reply`."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, …]."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """What the last linear layer is given, [B, d]."""
        ...


# (state of `finish`, round, all public rows [P, 3], asked clients [K'], rng) -> Ask
Request = Callable[[State, int, Tensor, Sequence[int], Generator], Ask]
# (private view, own model, rng) -> logits [C, C] and mask [C], a row for each label
Summarise = Callable[[PrivateView, OwnModel, Generator], tuple[Tensor, Tensor]]
# (private view, own model, public inputs [R, …], rng) -> scores [R, S] in `shares.answers`
Reply = Callable[[PrivateView, OwnModel, Tensor, Generator], Tensor]
# (private view, own model, public inputs [R, …], rng) -> mask [R], trust [R]
Annotate = Callable[[PrivateView, OwnModel, Tensor, Generator], tuple[Tensor, Tensor]]


class Target(NamedTuple):
    """What a batch should come to: soft scores [.., B, C] in a space, hard labels [.., B], or both.

    Labels are -1 where they are unknown.
    """

    scores: Tensor | None
    space: Space
    labels: Tensor | None


Loss = Callable[[Tensor, Target], Tensor]  # logits [.., B, C] -> loss of every sample [.., B]


@dataclass(frozen=True, slots=True)
class Losses:
    """The method's own losses; None stands for cross-entropy (private) and KL (client, server)."""

    private: Loss | None = None
    client: Loss | None = None
    server: Loss | None = None


Phase = Literal[
    "pretrain",  # once, before the first round: every client learns the public labels
    "reset",  # clients: back to the weights that they began with
    "recall",  # clients: take the last consensus about labels into the private epochs
    "train",  # clients: private epochs
    "answer",  # clients: predict the requested public rows and upload
    "combine",  # server: answers to consensus
    "distil_clients",  # clients: learn the last consensus, or the student's answers
    "distil_server",  # server: the student learns the consensus
    "average_weights",  # clients upload weights, the server averages them into the student
]
CLASSIC: tuple[Phase, ...] = ("train", "answer", "combine", "distil_clients", "distil_server")
STUDENT_FIRST: tuple[Phase, ...] = ("train", "answer", "combine", "distil_server", "distil_clients")
DISTIL_FIRST: tuple[Phase, ...] = ("distil_clients", "train", "answer", "combine", "distil_server")


class Traffic(NamedTuple):
    """The sizes that a byte formula may use: of one message."""

    rows: int  # rows asked or sent
    classes: int
    parameters: int  # of the model, buffers included
    changed: int  # rows whose value is sent (caches; else equal to rows)

    @property
    def weights(self) -> int:
        """Bytes of the extra `weights`, float32 [1, parameters]."""
        # a named tensor is 2 bytes, its name, then 2 bytes and 4 a dimension before its values
        return (2 + len("weights") + 2 + 2 * 4) + 4 * self.parameters


@dataclass(frozen=True, slots=True)
class Shares:
    """What may cross the wire, and how much of it.

    `answers` is the space of what clients send, None when they send no answers; `extras` are the
    names that may stand beside it (`classes` for answers about some classes only). `uplink` and
    `downlink` give the bytes of one message's body (the fixed header apart), at most where the
    direction is in `varying`. `traits` are the exceptions to the contract that every method else
    keeps (see the contract suite), `needs` what the experiment must provide.
    """

    answers: Space | None = "logits"
    extras: frozenset[str] = frozenset()
    uplink: Callable[[Traffic], int] = lambda t: 4 * t.rows * t.classes
    downlink: Callable[[Traffic], int] = lambda t: 4 * t.rows * t.classes
    traits: frozenset[Trait] = frozenset()
    needs: frozenset[Need] = frozenset()
    varying: frozenset[Literal["up", "down"]] = frozenset()


def _nothing(shape: Shape) -> State:
    return {}


def _as_is(state: State, given: Predictions, rng: Generator) -> Step:
    return Step(state, given, {})


identity = Transform(_nothing, _as_is)


def nothing_declared(samples: int, round_: int) -> tuple[Release, ...]:
    """The releases of private training that nothing bounds."""
    return ()


def everything(
    state: State, round_: int, public: Tensor, clients: Sequence[int], rng: Generator
) -> Ask:
    """Ask every client about every public row."""
    return Ask(public, None, known=True)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A published method: what is asked, sent, combined, fed back and learnt, and in which order.

    Only `combine` is mandatory. The fields say where a step runs, which is the threat model: noise
    in `upload` is local privacy, noise in `finish` needs a trusted server. A codec of None is the
    dense one: float32, nothing left out.

    With `summarise` a client says of each label what its model makes of its own samples of that
    label, and no public row is asked about: the rows of all steps are the labels, (0, y, 0), and a
    `recall` before `train` gives the private loss the last consensus about each sample's label as
    its target's scores, zeros where there is none.

    With `reply` a client answers public rows from its own records, in the place of its model's
    logits: what goes through `annotate` and `upload` are these scores, in the space that
    `shares.answers` names. They are read from the records themselves, whatever the model was
    trained by, so a release must bound them: in `annotate_releases`, in `upload`, or behind it.

    `subset` draws, once a run, the positions [m] of the private samples that a client trains on,
    out of how many it has; repeats count. `train_releases`, given that number and the round, are
    what its private training lets out whoever sees the model or anything made of it.
    """

    combine: Linear | Transform
    finish: Transform = identity
    request: Request = everything
    annotate: Annotate | None = None
    annotate_releases: tuple[Release, ...] = ()  # of `summarise` and `reply`, too
    summarise: Summarise | None = None
    reply: Reply | None = None
    subset: Callable[[int, Generator], Tensor] | None = None
    train_releases: Callable[[int, int], tuple[Release, ...]] = nothing_declared
    upload: Transform = identity
    upload_codec: Codec | None = None
    download: Transform = identity
    download_codec: Codec | None = None
    receive: Transform = identity
    feedback: Literal["consensus", "student", "weights", "none"] = "consensus"
    momentum: float = 0.0  # of the student from round to round: its running mean is what counts
    losses: Losses = field(default_factory=Losses)
    program: tuple[Phase, ...] = CLASSIC
    shares: Shares = field(default_factory=Shares)

    @property
    def traits(self) -> frozenset[Trait]:
        """Its own and those of its rule."""
        return self.shares.traits | self.combine.traits

    @property
    def needs(self) -> frozenset[Need]:
        """What the method and its rule need of the experiment."""
        return self.shares.needs | self.combine.needs


class Effort(NamedTuple):
    """What one question asks of one client: multiply-adds of its passes, payload bytes each way."""

    multiply_adds: float
    down: int
    up: int


# (labels [n] from 0 to classes - 1, classes, rng) -> labels [n], the ones that a client believes
Relabel = Callable[[Tensor, int, Generator], Tensor]
# (answers [J, R, S] as the server has them, liars [J], rng) -> the same with the liars' changed
Conspire = Callable[[Predictions, Tensor, Generator], Predictions]


def as_they_are(labels: Tensor, classes: int, rng: Generator) -> Tensor:
    """The private labels of a client whose data are right."""
    return labels


def nobody(clients: int) -> frozenset[int]:
    """The liars of a world without any."""
    return frozenset()


@dataclass(frozen=True, slots=True)
class World:
    """Who takes part in a round, what goes wrong on the way to the server, and how long it takes.

    `participants(round, clients, rng)` gives ascending ids; `learns(client, round)` is False for a
    frozen teacher; `stays(client, round, rng)` is False for one that takes its question and is not
    heard of again in this round, its work lost; `upload(client, clients)` is put before the
    method's own upload (a fault, an attack).

    `labels(client, clients)` is what becomes of a client's private labels where it loads them;
    pooled and local yardsticks train on the same, for these are the data that there are, and every
    evaluation goes by the true ones. `knows`, given how many private labels of each class a client
    has [C], says which classes it answers about [C]; None for all of them.

    `liars(clients)` names those who lie, by whatever means. `conspire` is an adversary that knows
    all answers of a round before the liars give theirs: no client could do that alone, so it is
    carried out where the answers are, and the records name whose were changed.

    `seconds(client, round, effort, rng)` is the virtual time from question to answer. Who needs
    more than `deadline` of them has worked, but its answer is not waited for and it sits out the
    rest of the round; infinite is an answer that never arrives. None for a world without a clock.
    """

    participants: Callable[[int, int, Generator], Sequence[int]]
    learns: Callable[[int, int], bool] = lambda client, round_: True
    stays: Callable[[int, int, Generator], bool] = lambda client, round_, rng: True
    upload: Callable[[int, int], Transform] = lambda client, clients: identity
    labels: Callable[[int, int], Relabel] = lambda client, clients: as_they_are
    knows: Callable[[Tensor], Tensor] | None = None
    liars: Callable[[int], frozenset[int]] = nobody
    conspire: Conspire | None = None
    seconds: Callable[[int, int, Effort, Generator], float] | None = None
    deadline: float | None = None
