"""The rounds: a strategy's program, phase by phase, over an exchange.

Read `rounds` top to bottom: it is the whole of a run. Consecutive phases of the clients are one
question; the server's phases run here, and while the clients digest, the student does too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedkd import guarantees, rng, wire
from fedkd.answers import spread
from fedkd.assemble import Plan
from fedkd.client import dense, distillation_pool, from_weights, learnable, to_weights
from fedkd.commits import Commit
from fedkd.exchange import EVERYONE, Exchange, Question, Reply, TooFew
from fedkd.learning import Feed, answer, fit
from fedkd.observer import accuracy, known_accuracy
from fedkd.privacy.ledger import Ledger
from fedkd.results.measures import Spread, mean_entropy
from fedkd.stacks import Weights, gather
from fedkd.store import digest, prefixed, shard_of, under
from fedkd.tasks import threads
from fedkd.transforms import Total, combine, informed, party, stack
from fedkd.types import (
    Ask,
    Linear,
    Predictions,
    Shape,
    Space,
    State,
    Step,
    Transform,
    predictions,
)

ABSENCES = ("absent", "late", "dropped")  # who is missing in a record, and why
_CLIENT_STEPS = {
    "reset": "reset",
    "recall": "recall",
    "train": "train",
    "convene": "convene",
    "answer": "answer",
    "distil_clients": "distil",
    "average_weights": "upload_weights",
}


# phases that the next one of the clients shares a question with
_JOINED = ("reset", "recall", "distil_clients", "train", "convene")


class Finished(NamedTuple):
    """A round's record (no time, host or attempt in it), where the time went, and how to go on."""

    record: dict[str, Any]  # Any: JSON
    seconds: dict[str, float]
    state: Commit


class Archive(Protocol):
    """Who keeps the answers that a round aggregates (`execution.store_answers`)."""

    def begin(self, round_: int, rows: Tensor) -> None: ...
    def add(self, given: Predictions) -> None: ...
    def end(self, consensus: Predictions | None) -> None: ...


@dataclass(slots=True)
class _Run:
    """What lives from round to round. The engine alone changes it."""

    student: Weights
    moments: State | None
    steps: dict[str, State]  # the states of combine, finish and download
    links: dict[int, State]  # our end of the clients' stateful download codecs
    ledger: Ledger
    archive: Archive | None = None
    sent: dict[int, State] = field(default_factory=dict)  # the same after what is on its way
    consensus: Predictions | None = None
    round_rows: Tensor | None = None  # the rows of the question behind the consensus
    record: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def rounds(
    plan: Plan, exchange: Exchange, start: Commit | None = None, archive: Archive | None = None
) -> Iterator[Finished]:
    """Run what is left of an experiment and yield every finished round."""
    run = _begun(plan, exchange, start)
    run.archive = archive
    for round_ in range((start.round if start else 0) + 1, plan.config.rounds + 1):
        try:
            _round(plan, exchange, run, round_)
        except TooFew as error:
            exchange.abandon()
            exchange.note(
                {"kind": "round", "round": round_, "cause": str(error), "outcome": "retried"}
            )
            run = _begun(plan, exchange, start)
            run.archive = archive
            _round(plan, exchange, run, round_)
        start = _commit(exchange, run, round_)
        yield Finished(run.record, run.seconds, start)


def _participants(plan: Plan, round_: int) -> list[int]:
    stream = rng.stream(plan.config.seed, round_, rng.SERVER, "participants")
    clients = sorted(int(c) for c in plan.world.participants(round_, plan.clients, stream))
    if not clients or not set(clients) <= set(range(plan.clients)):
        raise ValueError(
            f"world: {plan.config.world.name} must name clients from 0 to {plan.clients - 1},"
            f" in round {round_} it named {clients}"
        )
    return clients


def _round(plan: Plan, exchange: Exchange, run: _Run, round_: int) -> None:
    clients = _participants(plan, round_)
    run.record = {
        "round": round_,
        "participants": clients,
        "steps": {"clients": 0, "server": 0},
        "labels_used": 0,
        "rows": {"asked": 0, "dropped": 0},
        "entropy": None,
        "disagreement": None,
        "facts": {},
        "privacy": {"epsilon": {}, "spent": []},
    }
    run.seconds = {}
    run.ledger.note(plan.unbounded)
    exchange.begin()
    pending: Iterator[Reply] = iter(())
    if round_ == 1 and "pretrain" in plan.strategy.program:
        # before the first round, so of all clients, whoever takes part in it
        question = Question(round_, ("pretrain",), plan.public)
        pending = exchange.ask(question, range(plan.clients))
    for words in _segments(plan.strategy.program):
        if words[0] in _CLIENT_STEPS:
            _drain(run, pending)
            pending = _ask(plan, exchange, run, round_, words, clients)
        elif words[0] == "combine":
            raise ValueError("program: combine must follow answer")
        else:
            _timed(run, "server", lambda: _distil_server(plan, run, round_))
    _drain(run, pending)
    run.record |= {name: sorted(getattr(exchange.out, name)) for name in ABSENCES}
    run.record["virtual_s"] = None if plan.world.seconds is None else exchange.clock
    run.record["bytes"] = {"up": exchange.bytes.up, "down": exchange.bytes.down}
    run.record["sha256"] = _sums(plan, run)
    delta = guarantees.delta_of(plan.config, sum(plan.samples))
    run.record["privacy"]["epsilon"] = guarantees.spent(run.ledger, delta)
    _timed(run, "observe", lambda: _observe(plan, exchange, run, round_))


def _segments(program: Sequence[str]) -> list[list[str]]:
    """Neighbouring phases of the clients as one; combine goes with the answers that it combines."""
    segments: list[list[str]] = []
    for word in program:
        if word == "pretrain":  # no part of a round
            continue
        joins = segments and segments[-1][-1] in _JOINED
        if segments and (word == "combine" or (word in _CLIENT_STEPS and joins)):
            segments[-1].append(word)
        else:
            segments.append([word])
    return segments


def _ask(
    plan: Plan,
    exchange: Exchange,
    run: _Run,
    round_: int,
    words: Sequence[str],
    clients: Sequence[int],
) -> Iterator[Reply]:
    """Have the clients do these phases; combines their answers where the words say so."""
    clients = [c for c in clients if c not in exchange.out]
    steps = [_CLIENT_STEPS[w] for w in words if w in _CLIENT_STEPS]
    public = plan.rows[:0] if run.round_rows is None else run.round_rows
    downloads: dict[int, bytes] = {}
    if plan.strategy.feedback == "weights":
        steps.insert(0, "load")
        weights = to_weights(run.student, 0, rng.SERVER, round_, plan.dataset.classes)
        downloads = {EVERYONE: wire.encode(weights)}
    if heard := {"distil", "recall"} & set(steps):
        given = _feedback(plan, run)
        if given is None:  # nothing was combined yet
            steps = [s for s in steps if s not in heard]
        else:
            downloads = _encoded(plan, run, round_, given, clients)
    if "distil" in steps and steps[-1] == "answer":
        # what is learnt and what is answered are about different rows: two questions
        after = steps.index("distil") + 1
        left = _charged(plan, run, round_, steps[:after], clients)
        clients = [c for c in clients if c not in left]
        first = Question(round_, tuple(steps[:after]), public, downloads=downloads)
        _drain(run, _told(run, exchange.ask(first, clients)))
        clients = [c for c in clients if c not in exchange.out]
        steps, downloads = steps[after:], {}
    if not steps:
        return iter(())
    if steps[-1] == "answer":
        asked = _request(plan, run, round_, clients)
        if left := _charged(plan, run, round_, steps, clients, asked):
            clients = [c for c in clients if c not in left]
            asked = _request(plan, run, round_, clients)
        run.record["rows"]["asked"] = len(asked.rows)
        if asked.mask is not None:
            run.record["rows"]["asked"] = int(asked.mask.any(0).sum())
        question = Question(round_, tuple(steps), *asked, downloads)
        _timed(run, "clients", lambda: _combine(plan, exchange, run, question, clients))
        return iter(())
    left = _charged(plan, run, round_, steps, clients)
    clients = [c for c in clients if c not in left]
    question = Question(round_, tuple(steps), public, downloads=downloads)
    if steps[-1] == "upload_weights":
        _timed(run, "clients", lambda: _average(plan, exchange, run, question, clients))
        return iter(())
    return _told(run, exchange.ask(question, clients))


def _request(plan: Plan, run: _Run, round_: int, clients: Sequence[int]) -> Ask:
    stream = _stream(plan, round_, "request")
    return plan.strategy.request(run.steps["finish"], round_, plan.rows, clients, stream)


def _charged(
    plan: Plan,
    run: _Run,
    round_: int,
    steps: Sequence[str],
    clients: Sequence[int],
    asked: Ask | None = None,
) -> set[int]:
    """Enter in the ledger what a question lets out, before it is asked; who must be left out.

    All who are asked are charged, whether they are heard of or not: of one that failed nobody knows
    what it has let out. What the server lets out is entered when it has; it counts here at its
    most. Raises `BudgetSpent` where nobody may be asked, or where the experiment says so.
    """
    rows = dict.fromkeys(clients, 0)
    if asked is not None:
        rows = guarantees.rows_of(clients, asked.rows, asked.mask)
    samples, budget, left = plan.learnt(round_), plan.config.privacy.budget, set[int]()
    if budget is not None:
        due = guarantees.charges(plan.strategy, round_, steps, rows, samples, server=True)
        spent = guarantees.overdrawn(run.ledger, due, budget)
        left = set(spent)
        if left and (budget.when_spent == "stop" or left == rows.keys()):
            raise guarantees.refusal(round_, spent, budget)
        if left:
            run.record["privacy"]["spent"] = sorted({*run.record["privacy"]["spent"], *left})
    rows = {c: n for c, n in rows.items() if c not in left}
    for charge in guarantees.charges(plan.strategy, round_, steps, rows, samples, server=False):
        run.ledger.charge(*charge)
    return left


def _told(run: _Run, replies: Iterator[Reply]) -> Iterator[Reply]:
    """Who replies has what it was sent; until then our end of its codec stands still."""
    sent, run.sent = run.sent, {}
    for reply in replies:
        if reply.client in sent:
            run.links[reply.client] = sent[reply.client]
        yield reply


def _drain(run: _Run, pending: Iterator[Reply]) -> None:
    began = time.perf_counter()
    for reply in pending:
        run.record["steps"]["clients"] += reply.steps
    run.seconds["clients"] = run.seconds.get("clients", 0.0) + time.perf_counter() - began


def _combine(
    plan: Plan, exchange: Exchange, run: _Run, question: Question, clients: Sequence[int]
) -> None:
    """Answers to consensus: folded if the rule is linear, stacked if it is not.

    An adversary that knows all answers needs them all at once, whatever the rule.
    """
    strategy, round_ = plan.strategy, question.round
    facts: dict[str, float | Tensor] = {}
    made: list[tuple[Transform, Step]] = []
    apart = Spread(plan.dataset.classes) if plan.config.evaluation.disagreement else None

    def seen(given: Predictions) -> None:
        if apart is not None:
            apart.add(given)
        if run.archive is not None:
            run.archive.add(given)

    if plan.world.conspire is not None:
        run.record["conspired"] = []
    if run.archive is not None:
        run.archive.begin(round_, question.rows)
    with threads(plan.config.compute.server_threads):
        if isinstance(strategy.combine, Linear) and plan.world.conspire is None:
            total, replies = exchange.total(strategy.combine, question, clients, seen)
            list(_told(run, iter(replies)))
            if not replies:
                return _unanswered(run, question)
            joint = total.consensus()
        else:
            replies = list(_told(run, exchange.ask(question, clients)))
            if not replies:
                return _unanswered(run, question)
            answers = [
                spread(r.answer, question.rows, question.mask, clients)
                for r in replies
                if r.answer is not None
            ]
            everyone = stack(answers)
            if plan.world.conspire is not None:
                everyone, run.record["conspired"] = exchange.conspired(question, clients, everyone)
            for j in range(len(everyone.parties)):
                seen(party(everyone, j))
            everyone = _told_rule(plan, run.student, everyone, question.rows[:, 1])
            done = combine(
                strategy.combine, run.steps["combine"], everyone, _stream(plan, round_, "combine")
            )
            run.steps["combine"], joint = done.state, done.result
            facts |= done.facts
            if isinstance(strategy.combine, Transform):
                made.append((strategy.combine, done))
        finished = strategy.finish.apply(
            run.steps["finish"], joint, _stream(plan, round_, "finish")
        )
        run.record["entropy"] = mean_entropy(finished.result, plan.dataset.classes)
        run.record["disagreement"] = None if apart is None else apart.mean()
    made.append((strategy.finish, finished))
    rows = guarantees.rows_of(clients, question.rows, question.mask)
    guarantees.settle(run.ledger, rows, made)
    run.steps["finish"], run.consensus, run.round_rows = (
        finished.state,
        finished.result,
        question.rows,
    )
    if run.archive is not None:
        run.archive.end(run.consensus)
    facts |= finished.facts
    run.record["steps"]["clients"] += sum(r.steps for r in replies)
    targets = finished.result.mask[0] & (finished.result.trust[0] > 0)
    run.record["rows"]["dropped"] = len(question.rows) - int(targets.sum())
    run.record["facts"] |= {
        n: float(v.double().mean()) if isinstance(v, Tensor) else float(v) for n, v in facts.items()
    }


def _told_rule(
    plan: Plan, student: Weights, given: Predictions, public: Tensor | None
) -> Predictions:
    """The answers with what the rule needs of what the server knows of their rows.

    `public` are the rows' places in the public set; None stands for the test set, of which no rule
    is shown a label.
    """
    needs, known = plan.strategy.combine.needs, dict[str, Tensor]()
    if "public_labels" in needs:
        known["labels"] = torch.full_like(plan.test_labels, -1)
        if public is not None:
            known["labels"] = plan.dataset.labels(plan.dataset.public)[public]
    if "student" in needs:
        inputs = plan.test_inputs
        if public is not None:
            inputs = plan.public_inputs[public.to(plan.device)]
        precision = plan.config.compute.precision
        known["student"] = answer(plan.student.network, student, inputs, precision)[0]
    return informed(given, **known) if known else given


def _unanswered(run: _Run, question: Question) -> None:
    """Nobody was heard of: this round has no consensus, and nothing is learnt from an older one."""
    run.consensus = run.round_rows = None
    if run.archive is not None:
        run.archive.end(None)
    run.record["rows"]["dropped"] = len(question.rows)


def _average(
    plan: Plan, exchange: Exchange, run: _Run, question: Question, clients: Sequence[int]
) -> None:
    """theta = sum_k n_k theta_k / sum_k n_k, in float64 by client id (McMahan et al., 2017)."""
    total, samples = None, 0
    for reply in _told(run, exchange.ask(question, clients)):
        run.record["steps"]["clients"] += reply.steps
        assert reply.answer is not None and reply.answer.extras is not None, "the exchange has seen"
        vector = reply.answer.extras["weights"][0].double()
        examples = int(reply.answer.extras["examples"][0])
        total = vector * examples if total is None else total + vector * examples
        samples += examples
    if total is None or not samples:  # nobody was heard of: the weights stay as they are
        return
    mean = (total / samples).float()
    given = predictions(
        torch.zeros(1, 0, plan.dataset.classes), "logits", extras={"weights": (mean,)}
    )
    run.student = from_weights(given, run.student).to(plan.device)


def _feedback(plan: Plan, run: _Run) -> Predictions | None:
    """What the clients are to learn: the consensus, or the student's answers on its rows."""
    strategy = plan.strategy
    given = run.consensus
    if given is None or strategy.feedback in ("none", "weights"):
        return None
    if strategy.feedback == "student":
        inputs = plan.public_inputs[given.rows[:, 1].to(plan.device)]
        with threads(plan.config.compute.server_threads):
            logits = answer(
                plan.student.network, run.student, inputs, plan.config.compute.precision
            )
        learnt = (given.trust > 0).to(given.trust)  # how much a target counts is not the student's
        given = replace(given, scores=logits.cpu(), space="logits", trust=learnt)
    return given


def _encoded(
    plan: Plan, run: _Run, round_: int, given: Predictions, clients: Sequence[int]
) -> dict[int, bytes]:
    """The download payloads: one for all, or one a client where it is personal or remembered."""
    strategy = plan.strategy
    done = strategy.download.apply(run.steps["download"], given, _stream(plan, round_, "download"))
    run.steps["download"], given = done.state, done.result
    codec = strategy.download_codec or dense
    shape = _shape(plan)
    personal = len(given.parties) > 1
    if not personal and not codec.init(shape):
        return {EVERYONE: codec.encode({}, given, _stream(plan, round_, "encode-down"))[1]}
    place = {int(p): j for j, p in enumerate(given.parties)}
    payloads = {}
    for client in clients:
        own = given
        if personal:
            own = party(given, place.get(client, 0))
            if client not in place:  # it was not there when the targets were made
                own = replace(own, mask=torch.zeros_like(own.mask), parties=torch.tensor([client]))
        link = run.links.get(client) or codec.init(shape)
        stream = rng.stream(plan.config.seed, round_, client, "encode-down")
        link, payloads[client] = codec.encode(link, own, stream)
        if link:
            run.sent[client] = link
    return payloads


def _distil_server(plan: Plan, run: _Run, round_: int) -> None:
    """The student learns the consensus."""
    given = run.consensus
    if given is None:
        return
    if len(given.parties) > 1:
        raise ValueError(
            f"program: {plan.config.strategy.name} makes one target a client, so the student has"
            " none; leave distil_server out or reduce the targets in finish"
        )
    learning = plan.config.learning.server
    kept = learnable(given)
    with threads(plan.config.compute.server_threads):
        done = fit(
            plan.student.network,
            run.student,
            distillation_pool(plan, [given]),
            [Feed(given.rows[kept, 1], kept, _stream(plan, round_, "distil"))],
            learning,
            plan.losses["server"],
            epochs=learning.epochs_in(round_),
            factors=plan.factors(learning, round_, "learning.server.schedule"),
            precision=plan.config.compute.precision,
            moments=run.moments,
        )
    run.student = _running_mean(run.student, done.weights, plan.strategy.momentum)
    run.moments = done.moments if plan.config.learning.keep_optimizer else None
    run.record["steps"]["server"] += done.steps[0]
    run.record["labels_used"] = plan.dataset.told


def _running_mean(before: Weights, after: Weights, momentum: float) -> Weights:
    """m before + (1 - m) after, of parameters and of buffers that are not counts.

    What did not change is as it was, to the bit.
    """
    if not momentum:
        return after
    mixed = {
        n: before.buffers[n].lerp(b, 1 - momentum) if b.is_floating_point() else b
        for n, b in after.buffers.items()
    }
    return Weights(before.flat.lerp(after.flat, 1 - momentum), mixed)


def _observe(plan: Plan, exchange: Exchange, run: _Run, round_: int) -> None:
    """Measure what this round came to; nothing here is read by the method."""
    record, evaluation = run.record, plan.config.evaluation
    record |= {"student": None, "ensemble": None, "teachers": None}
    if round_ % evaluation.every and round_ != plan.config.rounds:
        return
    asked = None
    if evaluation.teachers:
        asked = exchange.observe("teachers", round_, range(plan.clients), answers=True)
    if plan.has_student:
        with threads(plan.config.compute.server_threads):
            record["student"] = _student_scores(plan, run)
    if asked is not None:
        _teacher_scores(plan, run, round_, asked)


def _student_scores(plan: Plan, run: _Run) -> dict[str, Any]:
    network, precision = plan.student.network, plan.config.compute.precision
    logits = answer(network, run.student, plan.test_inputs, precision)[0].cpu()
    labels = plan.test_labels
    validation = None
    if len(plan.dataset.validation):
        inputs = plan.inputs(plan.dataset.validation)
        validation = accuracy(
            plan,
            answer(network, run.student, inputs, precision)[0].cpu(),
            plan.dataset.labels(plan.dataset.validation),
        )
    public = answer(network, run.student, plan.public_inputs, precision)[0].cpu()
    return {
        "test": accuracy(plan, logits, labels),
        "test_nll": float(torch.nn.functional.cross_entropy(logits.double(), labels)),
        "validation": validation,
        "public": known_accuracy(plan, public, torch.from_numpy(plan.dataset.truth.copy())),
    }


def _teacher_scores(plan: Plan, run: _Run, round_: int, asked: Iterator[dict[str, Any]]) -> None:
    """Every teacher's accuracy, and that of the ensemble by the method's own rule."""
    test: list[float | None] = [None] * plan.clients
    own: list[float | None] = [None] * plan.clients

    def answers() -> Iterator[Predictions]:
        for said in asked:
            test[said["client"]], own[said["client"]] = said["test"], said["own"]
            yield said["answer"]

    joint = ensemble(plan, run.steps["combine"], run.student, round_, answers())
    run.record["teachers"] = {"test": test, "own": own}
    if joint is None:
        return
    scores, _ = joint
    public = None
    samples = plan.strategy.summarise is None  # of a label there is nothing to get right
    if samples and run.consensus is not None and len(run.consensus.parties) == 1:
        kept = learnable(run.consensus)
        truth = torch.from_numpy(plan.dataset.truth.copy())[run.consensus.rows[kept, 1]]
        public = known_accuracy(plan, run.consensus.scores[0, kept], truth)
    run.record["ensemble"] = {"test": accuracy(plan, scores, plan.test_labels), "public": public}


def ensemble(
    plan: Plan, state: State, student: Weights, round_: int, answers: Iterable[Predictions]
) -> tuple[Tensor, Space] | None:
    """What the method's own rule makes of answers about the test set: scores [test, S].

    `answers` come by ascending client id, `state` is that of `combine`. The targets of a personal
    rule are averaged. None where nobody answered.
    """
    rule = plan.strategy.combine
    with threads(plan.config.compute.server_threads):
        if isinstance(rule, Linear):
            total, heard = Total(rule, plan.dataset.classes), False
            for given in answers:
                total.add(given)
                heard = True
            if not heard:
                return None
            joint = total.consensus()
        else:
            everyone = list(answers)
            if not everyone:
                return None
            stream = _stream(plan, round_, "observe")
            told = _told_rule(plan, student, stack(everyone), None)
            joint = combine(rule, state, told, stream).result
    return torch.where(joint.mask.unsqueeze(-1), joint.scores, 0).mean(0), joint.space


def _sums(plan: Plan, run: _Run) -> Mapping[str, str | None]:
    """Checksums of what this round came to, so that another run can be told apart at once."""
    consensus = None
    if run.consensus is not None:
        consensus = digest(wire.encode(run.consensus, send_rows=True))
    student = None
    if plan.has_student:
        student = digest(run.student.flat.detach().cpu().contiguous().numpy().tobytes())
    return {"consensus": consensus, "student": student}


def _timed(run: _Run, name: str, do: Callable[[], None]) -> None:
    began = time.perf_counter()
    do()
    run.seconds[name] = run.seconds.get(name, 0.0) + time.perf_counter() - began


def _stream(plan: Plan, round_: int, purpose: str) -> torch.Generator:
    return rng.stream(plan.config.seed, round_, rng.SERVER, purpose)


def _shape(plan: Plan) -> Shape:
    return Shape(plan.clients, len(plan.rows), plan.dataset.classes)


def _first(plan: Plan) -> _Run:
    shape, strategy = _shape(plan), plan.strategy
    steps = {
        "combine": {} if isinstance(strategy.combine, Linear) else strategy.combine.init(shape),
        "finish": strategy.finish.init(shape),
        "download": strategy.download.init(shape),
    }
    return _Run(plan.fresh(rng.SERVER).to(plan.device), None, steps, {}, Ledger())


def _begun(plan: Plan, exchange: Exchange, start: Commit | None) -> _Run:
    """The state at the end of a round, or before the first."""
    run = _first(plan)
    exchange.refs, exchange.shards, exchange.links, exchange.clock = {}, {}, {}, 0.0
    if start is None:
        return run
    server = start.server
    run.student = gather([under("student/", server)]).to(plan.device)
    run.moments = under("moments/", server) or None
    run.steps = {name: under(f"{name}/", server) for name in run.steps}
    for kind, links in (("down", run.links), ("up", exchange.links)):
        own = under(f"link/{kind}/", server)
        for client in sorted({int(k.partition("/")[0]) for k in own}):
            links[client] = under(f"{client}/", own)
    run.ledger = ledger_of(start)
    if "consensus" in server:
        run.consensus = wire.decode(server["consensus"].numpy().tobytes())
        run.round_rows = server["round_rows"]
    exchange.refs, exchange.shards = dict(start.refs), dict(start.shards)
    exchange.clock = start.clock
    return run


def ledger_of(start: Commit | None) -> Ledger:
    """What had been let out at the end of a round."""
    if start is None or "ledger" not in start.server:
        return Ledger()
    return Ledger.loads(start.server["ledger"].numpy().tobytes().decode())


def _commit(exchange: Exchange, run: _Run, round_: int) -> Commit:
    """Everything that later rounds depend on, as tensors by name."""
    server = prefixed("student/", run.student.row(0))
    server |= prefixed("moments/", run.moments or {})
    for name, state in run.steps.items():
        server |= prefixed(f"{name}/", state)
    for kind, links in (("down", run.links), ("up", exchange.links)):
        for client, state in links.items():
            server |= prefixed(f"link/{kind}/{client}/", state)
    if run.ledger:
        raw = run.ledger.dumps().encode()
        server["ledger"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    if run.consensus is not None and run.round_rows is not None:
        raw = wire.encode(run.consensus, send_rows=True)
        server["consensus"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        server["round_rows"] = run.round_rows
    live = {shard_of(r) for r in exchange.refs.values()}
    exchange.shards = {name: exchange.shards[name] for name in sorted(live)}
    return Commit(round_, server, dict(exchange.refs), dict(exchange.shards), exchange.clock)


__all__ = ["Archive", "Finished", "ensemble", "ledger_of", "rounds"]
