"""What the files of a run folder say, as frozen values that were checked.

Only what a report needs is here; keys that are not known are passed over. Neither torch nor a
runtime is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fedkd.config import Config

Fraction = Annotated[float, Field(ge=0, le=1)]
# None: the client failed when it was to be evaluated
Fractions = Annotated[tuple[Fraction | None, ...], Field(min_length=1)]
Status = Literal["running", "finished", "failed", "interrupted"]
Amount = Annotated[float, Field(allow_inf_nan=False)]
# of what a run folder holds, as `run.json` names it; 0: before it named any
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Parameters:
    """Sizes of the models; of the teachers by client."""

    student: int | None = None
    teachers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One of the times that a run was begun or resumed, and on what."""

    versions: Mapping[str, str | None]
    machine: str


@dataclass(frozen=True, slots=True)
class About:
    """`run.json`; versions and machine are those of the first session."""

    fingerprint: str
    name: str
    seed: int
    data_seed: int
    versions: Mapping[str, str | None]
    device: str
    threads: Mapping[str, int]
    machine: str
    status: Status
    parameters: Parameters = Parameters()
    sessions: tuple[Session, ...] = ()
    schema: int = 0
    data: str = ""  # checksum of the data set and its splits
    cautions: tuple[str, ...] = ()  # what was told when the run began


@dataclass(frozen=True, slots=True)
class Origin:
    """`branched_from.json`: the run and the round after which this one went its own way."""

    run: str
    round: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """Samples of the disjoint parts of the data."""

    test: int
    validation: int
    public: int
    private: int


@dataclass(frozen=True, slots=True)
class Partition:
    """`partition.json`; `histogram` [K][C] counts private labels by client and class."""

    classes: tuple[str, ...]
    histogram: tuple[tuple[int, ...], ...]
    sizes: Sizes
    models: tuple[str, ...]
    provenance: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        widths = {len(counts) for counts in self.histogram}
        if len(self.models) != len(self.histogram) or widths != {len(self.classes)}:
            raise ValueError("histogram should be clients by classes, with one model per client")


@dataclass(frozen=True, slots=True)
class Bytes:
    """Communication of a round, over all clients."""

    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Steps:
    """Gradient steps of a round; those of the clients summed."""

    clients: int
    server: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the student or of the ensemble."""

    test: Fraction
    validation: Fraction | None = None
    public: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Teachers:
    """By client [K]: on the global test set, and on the client's own label distribution."""

    test: Fractions
    own: Fractions


@dataclass(frozen=True, slots=True)
class Record:
    """One round, a line of `records.jsonl`; None stands for not evaluated in this round.

    `absent`, `late` and `dropped` are the clients that were asked and did not take part to the end:
    vanished in the simulated world, too slow on its clock, left out after a real failure.
    `virtual_s` are the world's seconds from the beginning to the end of this round.
    """

    round: int
    participants: tuple[int, ...]
    bytes: Bytes
    steps: Steps
    labels_used: int
    student: Accuracy | None = None
    ensemble: Accuracy | None = None
    teachers: Teachers | None = None
    absent: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    virtual_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    facts: Mapping[str, float] = field(default_factory=dict)  # what the method tells of itself
    entropy: Amount | None = None  # of the consensus, nats
    disagreement: Amount | None = None


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What all releases about a unit come to, of the client with most; `one` is a single release.

    `by_losses` is a tighter figure where there is one.
    """

    unit: str
    relation: str
    mechanisms: tuple[str, ...]
    epsilon: Annotated[float, Field(ge=0)]
    client: int
    releases: int
    one: Annotated[float, Field(ge=0)]
    assumes: tuple[str, ...]
    by_losses: Annotated[float, Field(ge=0)] | None = None

    @property
    def least(self) -> float:
        """The smaller of the two figures, both of which hold."""
        return self.epsilon if self.by_losses is None else min(self.epsilon, self.by_losses)


@dataclass(frozen=True, slots=True)
class Weak:
    """A claim that protects no single record."""

    unit: str
    relation: str
    mechanism: str
    epsilon: float
    delta: float
    clients: tuple[int, ...]
    assumes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Private:
    """`privacy.json`; `none` is what has no guarantee, in words."""

    delta: float
    undeclared: str
    guarantees: tuple[Guarantee, ...] = ()
    weak: tuple[Weak, ...] = ()
    none: tuple[str, ...] = ()


def weakest(claims: Sequence[Weak]) -> list[Weak]:
    """Of each mechanism the claim that says least; clients of other sizes have others."""
    names = dict.fromkeys(claim.mechanism for claim in claims)
    return [
        max((c for c in claims if c.mechanism == n), key=lambda c: (c.delta, c.epsilon))
        for n in names
    ]


@dataclass(frozen=True, slots=True)
class Timing:
    """A line of `timings.jsonl`: seconds of a round by what they were spent on."""

    round: int
    seconds: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence lies between `lower` and `upper`; None where there is none."""

    lower: Fraction
    upper: Fraction
    count: int
    confidence: Fraction | None = None
    accuracy: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on the global test set after the last round; `nll` in nats."""

    n: int
    accuracy: Fraction
    macro_f1: Fraction
    balanced_accuracy: Fraction
    nll: Amount
    ece: Fraction
    calibration: tuple[Bin, ...] = ()


@dataclass(frozen=True, slots=True)
class Oracle:
    """What these teachers allow: one of them is right; their best mixture."""

    any: Fraction
    mixture: Fraction


@dataclass(frozen=True, slots=True)
class Faithful:
    """How near the student is to a teacher: share of equal decisions, divergence in nats."""

    agreement: Fraction
    kl: Amount


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The student against the ensemble, and against each teacher."""

    ensemble: Faithful | None = None
    teachers: tuple[Faithful | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Metrics:
    """`metrics.json`; None stands for not measured."""

    schema: Literal[1]
    student: Measured | None = None
    ensemble: Measured | None = None
    teachers: tuple[Measured | None, ...] = ()
    oracle: Oracle | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """The student's architecture trained in another way."""

    test: Fraction
    steps: int | None = None
    labels: int | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """Every teacher alone with the same private epochs, by round and client [rounds][K]."""

    test: Annotated[tuple[Fractions, ...], Field(min_length=1)]
    own: Annotated[tuple[Fractions, ...], Field(min_length=1)]
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """`yardsticks.json`; None stands for not measured."""

    pooled: Level | None = None
    labels: Level | None = None
    local: Local | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of `events.jsonl`: a failure, or a resume, damage found, a round begun again."""

    kind: str
    round: int | None = None
    phase: str | None = None
    client: int | None = None  # runs of earlier versions
    clients: tuple[int, ...] = ()
    cause: str = ""
    traceback: str = ""
    outcome: str = ""
    session: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder as read; `notes` say what is missing or odd about it.

    `resume` is the command that goes on with it, None where there is nothing to go on with.
    """

    about: About
    config: Config
    origin: Origin | None
    partition: Partition | None
    records: tuple[Record, ...]
    yardsticks: Yardsticks
    events: tuple[Event, ...]
    complete: bool
    resume: str | None
    notes: tuple[str, ...]
    timings: tuple[Timing, ...] = ()
    metrics: Metrics | None = None
    privacy: Private | None = None
    sample_bytes: int | None = None  # of one sample as it is stored
