"""FedKT: votes by hand, the committee inside of a client, and both of its accounts."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import small
import torch
from scipy import stats
from test_dp_sgd import Twice

from fedkd import guarantees, rng, wire
from fedkd.__main__ import main
from fedkd.assemble import Plan, _check
from fedkd.client import _Stack
from fedkd.config import ConfigError
from fedkd.privacy.calibration import gaussian_delta
from fedkd.rehearsal import rehearse
from fedkd.tasks import Task, rows_to
from fedkd.types import Committee, Predictions, State, Step, Strategy, Transform, predictions
from strategies.fedkt import fedkt
from strategies.pate import pate

QUIET = {"rounds": 1, "evaluation": {**small.EXPERIMENT["evaluation"], "teachers": False}}
INNER = {"name": "fedkt", "partitions": 2, "teachers": 3}


def said(labels: list[list[int]] | torch.Tensor, classes: int = 3) -> Predictions:
    """Logits [J, R, C] of voters that are sure of labels [J, R]."""
    return predictions(
        9.0 * torch.nn.functional.one_hot(torch.as_tensor(labels), classes).float(), "logits"
    )


def committee_of(made: Strategy) -> Committee:
    assert made.committee is not None
    return made.committee


def done(step: Any, given: Predictions, seed: int = 0) -> Step:
    return step.apply({}, given, rng.stream(seed, 1, 0, "step"))


def labels_of(given: Predictions) -> list[int | None]:
    """The class of each row; None where it has none."""
    known = given.mask[0] & (given.scores[0] > 0).any(-1)
    return [int(c) if k else None for c, k in zip(given.scores[0].argmax(-1), known, strict=True)]


# the rules, by hand


def test_votes_to_labels_by_hand() -> None:
    made = fedkt(partitions=2, teachers=3)
    inner = committee_of(made)
    taught = done(inner.teach, said([[0, 1, 2, 0], [0, 2, 2, 1], [1, 2, 0, 2]])).result
    assert labels_of(taught) == [0, 2, 2, 0]  # of three that differ the first class wins
    assert taught.space == "probs" and taught.trust.tolist() == [[1.0] * 4]
    ballots = []
    for students in ([[0, 1, 2], [0, 2, 2]], [[0, 0, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 2]]):
        own = done(inner.agree, said(students)).result
        assert own.mask.all() and own.space == "votes"  # to abstain is an answer, too
        ballots.append(done(made.upload, own).result)
    assert [labels_of(b) for b in ballots] == [[0, None, 2], [0, 0, None], [1, None, None]]
    given = predictions(torch.cat([b.scores for b in ballots]), "votes")
    counts = done(made.combine, given).result
    assert counts.scores[0].tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert labels_of(done(made.finish, counts).result) == [0, 0, 2]


def test_a_row_on_which_all_abstain_has_a_target_only_under_noise() -> None:
    """Whether anybody voted is as private as the votes."""
    empty = predictions(torch.zeros(4, 500, 3), "votes")
    for sigma, answered in ((0.0, 0), (1.0, 500)):
        made = fedkt(sigma=sigma)
        found = done(made.finish, done(made.combine, empty).result)
        assert int(found.result.mask.sum()) == answered
        assert [n for _, n in found.released or ()] == [answered]
    assert set(labels_of(found.result)) == {0, 1, 2}


def test_without_noise_both_counts_are_pluralities() -> None:
    labels = torch.randint(0, 4, (9, 60), generator=torch.Generator().manual_seed(1))
    made, other = fedkt(1, 9), pate(sigma=0)
    inner = done(committee_of(made).teach, said(labels, 4)).result
    counts = done(other.combine, done(other.upload, said(labels, 4)).result).result
    outer = done(other.finish, counts)
    plurality = torch.nn.functional.one_hot(labels, 4).sum(0).argmax(-1).tolist()
    assert labels_of(inner) == labels_of(outer.result) == plurality
    agreed = done(committee_of(made).agree, said(labels[:1], 4)).result
    assert labels_of(agreed) == labels[0].tolist()  # a single student agrees with itself


@pytest.mark.parametrize("protects", ["client", "record"])
@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_noise_is_as_wide_as_it_is_declared(protects: Any, factor: float) -> None:
    """Ten voters are of one mind on two classes: how often the noise outvotes them."""
    voters, rows, sigma = 10, 30_000, 8.0
    unanimous, wide = said(torch.zeros(voters, rows, dtype=torch.int64), 2), factor * sigma
    right = []
    rules: tuple[Literal["gnmax", "lnmax"], ...] = ("gnmax", "lnmax")
    for rule in rules:
        made = fedkt(1, voters, protects, rule, sigma)
        if protects == "record":
            result = done(committee_of(made).teach, unanimous).result
        else:
            counts = done(made.combine, done(made.upload, unanimous).result).result
            result = done(made.finish, counts).result
        right.append(labels_of(result).count(0))
    u = voters / wide
    odds = (float(stats.norm.cdf(u / math.sqrt(2))), 1 - math.exp(-u) * (2 + u) / 4)
    for found, chance in zip(right, odds, strict=True):
        assert (stats.binomtest(found, rows, chance).pvalue > 1e-3) == (factor == 1)


# inside of a client


def plan_of(folder: Path, strategy: object = INNER, *overrides: str, **changes: Any) -> Plan:
    chosen = small.config(strategy, "data.private=180", *overrides, **{**QUIET, **changes})
    return small.plan(chosen, folder)


def at_work(
    plan: Plan, clients: list[int], masks: list[list[bool]] | None = None, round_: int = 1
) -> _Stack:
    """The clients of one stack after they have convened their committees and answered."""
    blobs = [rows_to(plan.rows)]
    head: dict[str, Any] = {"round": round_, "rows": 0, "masks": None, "downloads": {}}
    if masks is not None:
        head["masks"] = {str(c): 1 + i for i, c in enumerate(clients)}
        blobs += [np.packbits(m).tobytes() for m in masks]
    states = [plan.fresh(c).row(0) for c in clients]
    stack = _Stack(plan, Task(head, blobs), {"clients": clients}, states)
    stack.do(["convene", "answer"])
    return stack


def watched(plan: Plan) -> tuple[Plan, list[torch.Tensor]]:
    """The same plan, and where what its teachers say is put."""
    inner, seen = committee_of(plan.strategy), list[torch.Tensor]()

    def teach(state: State, given: Predictions, stream: torch.Generator) -> Step:
        seen.append(given.scores)
        return inner.teach.apply(state, given, stream)

    watching = replace(inner, teach=inner.teach._replace(apply=teach))
    return replace(plan, strategy=replace(plan.strategy, committee=watching)), seen


def test_one_record_is_behind_one_vote_of_each_partition(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**INNER, "partitions": 3})
    watching, before = watched(plan)
    at_work(watching, [1])
    changed, rows = plan.dataset.private(1), []
    for record in (0, len(changed) - 1):
        x, y = np.array(plan.dataset.x), np.array(plan.dataset.y)
        x[changed[record]] = x.max() - x[changed[record]]
        y[changed[record]] = (y[changed[record]] + 5) % 10
        other, after = watched(replace(plan, dataset=replace(plan.dataset, x=x, y=y)))
        at_work(other, [1])
        assert len(before) == len(after) == 3
        for one, two in zip(before, after, strict=True):
            moved = [not torch.equal(a, b) for a, b in zip(one, two, strict=True)]
            assert sum(moved) == 1
            rows.append(moved.index(True))
            counts = [torch.nn.functional.one_hot(t.argmax(-1), 10).sum(0) for t in (one, two)]
            apart = (counts[0] - counts[1]).abs()
            assert int(apart.max()) <= 1 and int(apart.sum(-1).max()) <= 2
    assert len(set(rows)) > 1  # partitions are dealt each for itself


def test_a_client_answers_as_its_students_and_keeps_the_first(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    stack, alone = at_work(plan, [0, 2, 4]), at_work(plan, [4])
    assert stack.payloads[2] == alone.payloads[0]  # whoever is in its stack
    assert torch.equal(stack.models.flat[2], alone.models.flat[0])
    network = plan.architectures[plan.teacher[4]].network
    _, forward = network.bind(alone.students[0], 0, 2)
    students = forward(plan.public_inputs.expand(2, *plan.public_inputs.shape), False)
    assert torch.equal(alone.students[0].flat[0], alone.models.flat[0])
    assert not torch.equal(alone.students[0].flat[0], alone.students[0].flat[1])
    votes, sent = students.argmax(-1), wire.decode(alone.payloads[0], plan.rows)
    expected = [int(a) if a == b else None for a, b in zip(*votes, strict=True)]
    assert labels_of(sent) == expected and None in expected
    # two partitions of three teachers with a batch of 16, and a student each for 80 public rows
    sizes = committee_of(plan.strategy).sizes(plan.samples[4])
    assert sum(sizes) == plan.samples[4] and max(sizes) - min(sizes) <= 1
    assert alone.steps == [2 * sum(-(-n // 16) for n in sizes) + 2 * 5]


def test_a_stack_of_one_at_a_time_is_a_committee_too(tmp_path: Path) -> None:
    """Optimisers of torch take models one by one."""
    spec = "{name: 'torch.optim:Adagrad', lr: 0.01}"
    phases = ("private", "client")
    plan = plan_of(tmp_path, INNER, *(f"learning.{p}.optimizer={spec}" for p in phases))
    stack = at_work(plan, [3])
    assert plan.architectures[plan.teacher[3]].stack == 1
    assert not stack.faults and stack.steps[0] > 0


def test_students_learn_and_answer_the_rows_that_their_client_is_asked(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    some = [r % 3 == 0 for r in range(80)]
    watching, seen = watched(plan)
    stack = at_work(watching, [5], [some])
    assert [tuple(s.shape) for s in seen] == [(3, 27, 10)] * 2
    rows = plan.rows[torch.tensor(some)]
    assert len(labels_of(wire.decode(stack.payloads[0], rows))) == 27
    everything, full = watched(plan)
    at_work(everything, [5])
    assert torch.equal(full[0][:, ::3], seen[0])  # teachers do not care what is asked


def test_a_fault_in_a_committee_is_its_clients_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    inner, calls = committee_of(plan.strategy), list[int]()

    def teach(state: State, given: Predictions, stream: torch.Generator) -> Step:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no quorum")
        return inner.teach.apply(state, given, stream)

    odd = replace(inner, teach=inner.teach._replace(apply=teach))
    stack = at_work(replace(plan, strategy=replace(plan.strategy, committee=odd)), [0, 2])
    assert list(stack.faults) == [0] and list(stack.payloads) == [1]
    assert stack.faults[0]["phase"] == "convene" and "no quorum" in stack.faults[0]["message"]
    assert stack.payloads[1] == at_work(plan, [0, 2]).payloads[1]


def test_the_students_of_a_liar_lie_alike(tmp_path: Path) -> None:
    """Or they would disagree, and a lie would be an abstention."""
    plan = plan_of(tmp_path, INNER, "world={name: lying, how: random_label}")
    (liar,) = plan.world.liars(6)
    rehearse(plan)
    clients = [c for c in range(6) if plan.teacher[c] == plan.teacher[liar]]
    lying, honest = at_work(plan, clients), at_work(plan_of(tmp_path), clients)
    told = labels_of(wire.decode(lying.payloads[clients.index(liar)], plan.rows))
    assert None not in told and len(set(told)) == 10
    for k, client in enumerate(clients):
        assert (lying.payloads[k] == honest.payloads[k]) == (client != liar)


def test_who_does_not_learn_answers_with_its_model_and_lets_nothing_out(tmp_path: Path) -> None:
    private = {**INNER, "protects": "record", "sigma": 3.0}
    chosen = small.config(private, **{**QUIET, "rounds": 2, "world": "frozen_teachers"})
    one, two = small.run(chosen, tmp_path)  # teachers stand still after round 1
    assert one["steps"]["clients"] > 0 and two["steps"]["clients"] == 0
    assert one["privacy"]["epsilon"] == two["privacy"]["epsilon"] != {}
    plan = small.plan(chosen, tmp_path)
    stack = at_work(plan, [0], round_=2)
    assert None not in labels_of(wire.decode(stack.payloads[0], plan.rows))
    assert torch.equal(stack.models.flat[0], plan.fresh(0).flat[0])


# runs


def run_of(folder: Path, **strategy: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (record,) = small.run(small.config({**INNER, **strategy}, **QUIET), folder)
    return record, json.loads((folder / "privacy.json").read_text())


def gaussian_epsilon_by_bisection(sigma: float, releases: int, delta: float) -> float:
    """Of so many Gaussians of sensitivity sqrt(2), which are one."""
    noise, low, high = sigma / math.sqrt(2 * releases), 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        spent = gaussian_delta(middle, noise, 1.0)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def test_noise_at_the_server_is_charged_once_a_row_to_every_client(tmp_path: Path) -> None:
    record, told = run_of(tmp_path, sigma=30.0, rule="gnmax", rows=40)
    (found,) = told["guarantees"]
    assert (found["unit"], found["mechanisms"], found["releases"]) == ("client", ["gnmax"], 40)
    expected = gaussian_epsilon_by_bisection(30.0, 40, told["delta"])
    assert set(found["clients"]) == {str(c) for c in range(6)}
    assert all(e == pytest.approx(expected, rel=1e-6) for e in found["clients"].values())
    assert record["privacy"]["epsilon"] == {"client": found["epsilon"]}
    assert found["assumes"][0].startswith("the server is trusted")
    assert told["none"] == ["the answers of the clients, as the server sees them: none"]


def test_noise_in_the_clients_is_charged_once_a_row_and_partition(tmp_path: Path) -> None:
    record, told = run_of(tmp_path, sigma=30.0, rule="gnmax", rows=40, protects="record",
                          partitions=3)  # fmt: skip
    (found,) = told["guarantees"]
    assert (found["unit"], found["mechanisms"], found["releases"]) == (
        "record", ["inner_gnmax"], 120)  # fmt: skip
    expected = gaussian_epsilon_by_bisection(30.0, 120, told["delta"])
    assert all(e == pytest.approx(expected, rel=1e-6) for e in found["clients"].values())
    assert record["privacy"]["epsilon"] == {"record": found["epsilon"]}
    assert found["relation"] == "one record replaced at one client"
    assert found["assumes"][0].startswith("the server needs no trust") and told["none"] == []


def test_laplace_noise_is_pure_and_adds_up(tmp_path: Path) -> None:
    _, told = run_of(tmp_path / "a", sigma=4000.0, rows=10, protects="record")
    (found,) = told["guarantees"]
    assert found["epsilon"] <= 10 * 2 * 2 / 4000 and found["one"] == pytest.approx(2 / 4000)
    assert found["mechanisms"] == ["inner_lnmax"] and found["releases"] == 20
    _, told = run_of(tmp_path / "b", sigma=0.0, rows=10)
    assert not told["guarantees"]
    assert told["none"] == [
        "the answers of the clients, as the server and all who learn from them see: none"
    ]


def test_a_budget_holds_for_what_a_committee_lets_out(tmp_path: Path) -> None:
    private = {**INNER, "protects": "record", "sigma": 50.0, "rule": "gnmax", "rows": 30}
    plan = plan_of(tmp_path, private, "privacy.budget.epsilon=3")
    rows = dict.fromkeys(range(6), 30)
    due = guarantees.charges(
        plan.strategy, 1, ("convene", "answer"), rows, plan.samples, server=True
    )
    noisy = [c for c in due if c.release.mechanism == "inner_gnmax"]
    assert len(noisy) == 2 * 6 and {c.times for c in noisy} == {30}
    dear = plan_of(tmp_path, {**private, "sigma": 0.1}, "privacy.budget.epsilon=3")
    with pytest.raises(ConfigError, match=r"privacy.budget: should allow one round"):
        rehearse(dear)


def test_runs_are_equal_whoever_does_the_work_and_however_often(tmp_path: Path) -> None:
    chosen = small.config({**INNER, "protects": "record", "sigma": 1.0}, **QUIET)
    small.run(chosen, tmp_path / "a")
    small.run(chosen, tmp_path / "b", Twice(3, random.Random(4)))
    assert small.bits(tmp_path / "a") == small.bits(tmp_path / "b")


@pytest.mark.slow
def test_runs_are_equal_on_ray(tmp_path: Path) -> None:
    chosen = small.config({**INNER, "protects": "record", "sigma": 1.0}, **QUIET)
    assert small.equal_on_ray(chosen, tmp_path)


# what is refused


def test_too_little_data_for_so_many_teachers_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["simulate", "fedkt", "strategy.teachers=30", "data.partition.min_size=10"]
    assert main([*words, "execution.runtime=local", "--explain"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "a private sample for each of the 30 teachers of a client, found client" in err
    assert "lower the number of teachers" in err and "data.partition.min_size" in err


def test_a_record_is_hidden_by_more_than_one_teacher() -> None:
    with pytest.raises(ValueError, match=r"strategy\.teachers: should be at least 2 .* found 1"):
        fedkt(teachers=1, protects="record", sigma=3.0)
    fedkt(teachers=1, protects="record")
    fedkt(teachers=1, protects="client", sigma=3.0)


def test_what_a_committee_cannot_go_with_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    inner = committee_of(plan.strategy)

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            _check(replace(plan, strategy=replace(plan.strategy, **changes)))

    _check(plan)
    refused("found convene alone", committee=None)
    program = plan.strategy.program
    refused("found a committee alone", program=program[1:])
    refused("answer should follow convene at once", program=("convene", "train", *program[1:]))
    refused("at least 1 partition and 1 teacher, found 0", committee=replace(inner, partitions=0))
    refused("found subset beside it", subset=lambda n, stream: torch.arange(n))
    with pytest.raises(ConfigError, match=r"privacy.training: .*found a committee in fedkt"):
        rehearse(plan_of(tmp_path, INNER, "privacy.training.noise_multiplier=1.0"))


def test_a_committee_that_makes_several_targets_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    several = Transform(lambda shape: {}, lambda state, given, stream: Step(state, given, {}))
    odd = replace(committee_of(plan.strategy), teach=several)
    with pytest.raises(ConfigError, match=r"committee\.teach: should make one target, 3"):
        rehearse(replace(plan, strategy=replace(plan.strategy, committee=odd)))


def test_a_teacher_that_normalises_by_batches_needs_two_samples(tmp_path: Path) -> None:
    clients = [{"count": 6, "model": ["test_dp_sgd:normalising"]}]

    def plan(samples: int) -> Plan:
        some = ("data.partition=iid", f"data.private={samples}")
        return plan_of(tmp_path / str(samples), {**INNER, "teachers": 8}, *some, clients=clients)

    with pytest.raises(ConfigError, match="or teacher of its committee, 2 samples"):
        rehearse(plan(60))
    rehearse(plan(96))
