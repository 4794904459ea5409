"""A stored run aggregated again by another rule: the engine over answers that lie in files.

Clients are not there, so nothing is trained but the student, and nothing goes back. In a run with
feedback, the answers of later rounds are those of clients who had learnt from the run's own method.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from fedkd import data, disk, folder, plugins, rng
from fedkd.asking import Kind
from fedkd.assemble import Plan, assemble, search
from fedkd.conduct import named
from fedkd.config import Config, ConfigError, Named
from fedkd.engine import rounds
from fedkd.exchange import Exchange, Question, Reply
from fedkd.results.archive import Stored, path_of
from fedkd.results.finished import finished
from fedkd.results.hashes import sha256
from fedkd.stacks import gather
from fedkd.store import Folder, under
from fedkd.types import Ask, Phase, Predictions, Shape, State, Strategy

SCHEMA = 1
# what the answers of one space say in another, without a word of the client's
_LEAST = torch.finfo(torch.float32).tiny
_CONVERTED: Mapping[tuple[str, str | None], Callable[[Tensor], Tensor]] = {
    ("log_probs", "probs"): torch.exp,
    ("probs", "log_probs"): lambda p: p.clamp_min(_LEAST).log(),
}
LIMITS = (
    "clients are not asked again: where they learn from the consensus, a run of the other rule"
    " would have had other answers from round 2 on",
    "teachers, ensemble and bytes sent are not measured again",
)


@dataclass(frozen=True, slots=True)
class Replay:
    """One rule on the stored answers; `records` are those of the engine."""

    folder: Path
    strategy: Named
    records: Sequence[Mapping[str, Any]]  # Any: JSON
    same_consensus: Sequence[bool]  # by round, byte for byte
    same_student: bool


class _Nobody:
    """No client is there."""

    workers = 1

    def submit(
        self, kind: Kind, messages: Sequence[bytes], limits: Sequence[float | None]
    ) -> Sequence[str]:
        raise AssertionError("a replay asks nobody")

    def fetch(self, ticket: str) -> bytes:
        raise AssertionError("a replay asks nobody")


class _Files(Exchange):
    """An exchange whose clients are files, in the words of another rule."""

    def __init__(
        self, plan: Plan, out: Path, kept: Sequence[Stored], own: Strategy, wanted: Strategy
    ) -> None:
        super().__init__(plan, _Nobody(), Folder(out / "clients"), "", lambda event: None)
        self._kept, self._own, self._wanted = kept, own, wanted
        self._uploads: dict[int, State] = {}
        self._sizes = Shape(plan.clients, len(plan.rows), plan.dataset.classes)

    def ask(self, question: Question, clients: Sequence[int]) -> Iterator[Reply]:
        """The answers of that round as they were kept."""
        for given in self._kept[question.round - 1].answers():
            client = int(given.parties[0])
            yield Reply(client, 0, self._translated(given, client, question.round))

    def _translated(self, given: Predictions, client: int, round_: int) -> Predictions:
        wanted = self._wanted.shares.answers
        if self._wanted is self._own or given.space == wanted:
            return given
        if given.space == "logits":  # as the client itself would have sent them
            state = self._uploads.get(client) or self._wanted.upload.init(self._sizes)
            stream = rng.stream(self.plan.config.seed, round_, client, "upload")
            done = self._wanted.upload.apply(state, given, stream)
            self._uploads[client] = done.state
            return done.result
        assert wanted is not None, "it was checked"
        scores = _CONVERTED[given.space, wanted](given.scores)
        mask = given.mask.unsqueeze(-1)
        return replace(given, scores=torch.where(mask, scores, 0), space=wanted)


def replay(run: Path, strategy: Named | None, out: Path) -> Replay:
    """Aggregate a run's answers by a rule (None: its own) and distil a student anew, into `out`.

    Student, seeds, rows and data are the run's own. Raises `ConfigError` where the rule cannot work
    on these answers, with the reason.
    """
    config = finished(run)
    kept = answers_of(run, config)
    chosen = config if strategy is None else config.model_copy(update={"strategy": strategy})
    chosen = chosen.model_copy(
        update={
            "name": f"{config.name[:80]}-replay",
            "evaluation": config.evaluation.model_copy(
                update={"teachers": False, "pooled": False, "local": False, "labels": False}
            ),
            "execution": config.execution.model_copy(update={"out": str(out), "runtime": "local"}),
        }
    )
    plan = assemble(chosen, run / "data")
    own = plugins.build(
        "strategy", config.strategy, search=search(config), expect=Strategy, where="strategy"
    )
    assert isinstance(own, Strategy)
    wanted = own if chosen.strategy == config.strategy else plan.strategy
    _fits(chosen.strategy.name, own, wanted, kept)
    with folder.beside(out) as made:
        folder.create(chosen, made)
        shutil.copytree(run / "data", made / "data", copy_function=_linked)
        shutil.copyfile(run / "partition.json", made / "partition.json")
        done = _replayed(plan, own, wanted, kept, run, made)
    return replace(done, folder=out)


def _replayed(
    plan: Plan, own: Strategy, wanted: Strategy, kept: Sequence[Stored], run: Path, made: Path
) -> Replay:
    def stored_rows(
        state: State, round_: int, public: Tensor, clients: Sequence[int], stream: Generator
    ) -> Ask:
        return Ask(kept[round_ - 1].rows, None, known=True)

    steps: tuple[Phase, ...] = ("answer", "combine", "distil_server")
    program = tuple(phase for phase in wanted.program if phase in steps)
    alone = replace(wanted, program=program, feedback="none", request=stored_rows)
    plan = replace(plan, strategy=alone)
    teachers = [plan.architectures[t].network.parameters for t in plan.teacher]
    parameters = {"student": plan.student.network.parameters, "teachers": teachers}
    folder.begin(made, plan.config, parameters, data.digest(made / "data"))
    same, records, state = [], [], None
    for done in rounds(plan, _Files(plan, made, kept, own, wanted)):
        folder.append(made / "records.jsonl", done.record)
        records.append(done.record)
        consensus = done.state.server.get("consensus")
        told = None if consensus is None else consensus.numpy().tobytes()
        same.append(told == kept[done.record["round"] - 1].consensus)
        state = done.state
    assert state is not None, "there is at least one round"
    student = gather([under("student/", state.server)])
    disk.write_atomically(
        made / "student.safetensors", save(named(plan.student.network, student, 0))
    )
    before = run / "student.safetensors"
    equal = before.is_file() and sha256(before) == sha256(made / "student.safetensors")
    told_of = {
        "schema": SCHEMA,
        "run": run.name,
        "fingerprint": folder.about(run)["fingerprint"],
        "strategy": plan.config.strategy.model_dump(mode="json"),
        "same_consensus": same,
        "same_student": equal,
        "limits": list(LIMITS),
    }
    folder.write_json(made / "replay.json", told_of)
    shutil.rmtree(made / "clients")
    folder.describe(made, "finished")
    return Replay(made, plan.config.strategy, records, same, equal)


def answers_of(run: Path, config: Config) -> list[Stored]:
    """The answers of every round. Raises `ConfigError` where any are missing or damaged."""
    kept = []
    for round_ in range(1, config.rounds + 1):
        place = path_of(run / "answers", round_)
        if not place.is_file():
            raise ConfigError(
                f"replay: {run} should hold the answers of every round, found none of round"
                f" {round_}; run the experiment with execution.store_answers=true (a method that"
                " sends no answers has none to store)"
            )
        try:
            kept.append(Stored(place, config.execution.most_payload_mib << 20))
        except ValueError as error:
            raise ConfigError(
                f"replay: {run / 'answers'} should be as the run wrote it, found {error}; bring the"
                " file back, or run the experiment again"
            ) from None
    return kept


def _fits(name: str, own: Strategy, wanted: Strategy, kept: Sequence[Stored]) -> None:
    """Refuse a rule that these answers are not for."""
    if wanted is not own and own.reply is not None:
        raise ConfigError(
            "strategy: a replay by another rule should be of answers that models gave, found"
            " replies from the clients' records, whose meaning is their own method's; leave the"
            " method as it was, or run the other one"
        )
    if wanted is not own and (wanted.annotate is not None or wanted.reply is not None):
        raise ConfigError(
            f"strategy: {name} has clients look at their own data before they answer, which stored"
            " answers cannot do; run it"
        )
    if "combine" not in wanted.program or "distil_server" not in wanted.program:
        raise ConfigError(
            f"strategy: a replay distils a student from a consensus for all, found that {name}"
            f" has {', '.join(wanted.program)}; run it instead"
        )
    first = next((a for stored in kept for a in stored.answers()), None)
    if first is None or wanted is own:
        return
    found, needs = first.space, wanted.shares.answers
    if found != needs and found != "logits" and (found, needs) not in _CONVERTED:
        raise ConfigError(
            f"strategy: {name} works on {needs}, found stored answers in {found}, from which"
            f" {needs} cannot be made; run it, or replay a run of a method that sends"
            f" {' or '.join(dict.fromkeys([needs or 'answers', 'logits']))}"
        )
    extras = set(first.extras or ()) | ({"classes"} if first.classes is not None else set())
    if strange := sorted(extras - wanted.shares.extras):
        raise ConfigError(
            f"strategy: {name} does not know the {', '.join(strange)} that stand in the stored"
            " answers; run it instead"
        )
    if strange := sorted(wanted.shares.extras - extras):
        raise ConfigError(
            f"strategy: {name} needs {', '.join(strange)} beside the answers, found none stored;"
            " run it instead"
        )


def _linked(source: str, target: str) -> None:
    """The same file under a second name: data are never changed. A copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
