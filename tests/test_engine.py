"""Whole runs of each method, in process: what is recorded, what it means, what defines the bits."""

import json
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file
from small import METHODS
from torch import Tensor, nn

from fedkd import rng, wire
from fedkd.asking import ClientFailure
from fedkd.assemble import Plan
from fedkd.commits import Commits
from fedkd.conduct import Watch, conduct
from fedkd.config import Config
from fedkd.engine import Finished, rounds
from fedkd.exchange import Exchange
from fedkd.learning import answer
from fedkd.stacks import gather
from fedkd.store import Folder, under
from fedkd.transforms import shannon
from fedkd.types import Predictions, State

HALF = {"name": "partial", "fraction": 0.5}
SGD = {"name": "sgd", "lr": 0.05}
# methods of the project, and those of the tests that use what no method of the project does
ODD = ("odd_methods:abstaining", "odd_methods:student_back", "odd_methods:remembering")
EVERY = (*METHODS, *ODD)
SEAMS = (*small.PROTOTYPES, *ODD)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run of a method; each is run once."""
    folders: dict[str, Path] = {}

    def folder(method: str) -> Path:
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method.replace(":", "-"))
            small.run(small.config(method), folders[method])
        return folders[method]

    return folder


def playing(
    chosen: Config, folder: Path, transport: small.InProcess | None = None
) -> tuple[Plan, Exchange, list[Finished]]:
    """The rounds without a run folder, every commit kept."""
    plan = small.plan(chosen, folder)
    exchange = small.exchange(plan, folder, transport)
    return plan, exchange, list(rounds(plan, exchange))


def committing(folder: Path) -> Commits:
    """The commits in a folder, where nothing is to be damaged."""
    return Commits(folder, Folder(folder / "clients"), 2, pytest.fail)


def state_of(exchange: Exchange, folder: Path, client: int) -> State:
    return Folder(folder / "clients").get(exchange.refs[client])


def consensus_in(finished: Finished) -> Predictions:
    return wire.decode(finished.state.server["consensus"].numpy().tobytes())


def same_state(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


# Records


def fraction(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


@pytest.mark.parametrize("method", EVERY)
def test_a_run_leaves_all_that_was_promised(ran: Callable[[str], Path], method: str) -> None:
    folder = ran(method)
    student = set() if method in small.WITHOUT_STUDENT else {"student.safetensors"}
    assert {p.name for p in folder.iterdir()} == student | {
        "checklist.md", "citations.bib", "clients", "commits", "data", "hashes.json",
        "privacy.json",
        "partition.json", "provenance.json", "records.jsonl", "run.json", "teachers",
        "timings.jsonl",
    }  # fmt: skip
    assert len(list((folder / "teachers").iterdir())) == 6
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    assert [t["round"] for t in timings] == [1, 2]
    assert all(s >= 0 for t in timings for s in t["seconds"].values())


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("method", EVERY)
def test_records_say_what_they_should_and_nothing_else(
    ran: Callable[[str], Path], method: str
) -> None:
    """No time, host or attempt is among the keys, and every value is a plain one."""
    text = (ran(method) / "records.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [r["round"] for r in lines] == [1, 2]
    assert socket.gethostname() not in text and str(ran(method)) not in text
    for record in lines:
        assert record.keys() == {
            "round", "participants", "absent", "late", "dropped", "virtual_s", "steps",
            "labels_used", "rows", "facts", "bytes", "student", "ensemble", "teachers", "entropy",
            "disagreement", "sha256", "privacy",
        }  # fmt: skip
        assert record["participants"] == list(range(6))
        assert record["absent"] == record["late"] == record["dropped"] == []
        assert record["virtual_s"] is None  # this world has no clock
        assert record["steps"].keys() == {"clients", "server"}
        assert record["rows"].keys() == {"asked", "dropped"}
        assert record["bytes"].keys() == {"up", "down"}
        assert all(
            isinstance(n, int) and n >= 0
            for k in ("steps", "rows", "bytes")
            for n in record[k].values()
        )
        assert (record["steps"]["clients"] > 0) == (method not in small.UNTRAINED)
        assert record["bytes"]["up"] > 0
        assert record["labels_used"] == 0
        assert all(isinstance(v, float) for v in record["facts"].values())
        if record["student"] is not None:
            assert record["student"].keys() == {"test", "test_nll", "validation", "public"}
            assert all(fraction(record["student"][k]) for k in ("test", "validation", "public"))
            assert record["student"]["test_nll"] > 0
        assert record["teachers"].keys() == {"test", "own"}
        assert all(len(v) == 6 and all(map(fraction, v)) for v in record["teachers"].values())
        assert fraction(record["ensemble"]["test"])
    # a method without a model of the server has no student to speak of
    assert (lines[0]["student"] is None) == (method in small.WITHOUT_STUDENT)


@pytest.mark.parametrize("method", [*SEAMS, "cronus"])
def test_a_method_learns(tmp_path: Path, method: str) -> None:
    """Four rounds lift ensemble and student far above the 10 % of chance.

    Where classes are spread unevenly, a filter of outliers drops the few who know a class, so its
    clients hold samples of all.
    """
    chosen = small.config(
        method, "rounds=4", "data.private=600", "learning.private.epochs=4",
        "learning.private.optimizer.lr=0.01", "learning.client.epochs=2",
        "learning.server.epochs=12", "evaluation.every=4",
        *(["data.partition=iid"] if method == "cronus" else []),
    )  # fmt: skip
    last = small.run(chosen, tmp_path)[-1]
    assert last["ensemble"]["test"] > 0.75
    if last["student"] is not None:
        assert last["student"]["test"] > 0.5


@pytest.mark.parametrize("method", ["entropy", "kt_pfl", "fedavg"])
def test_whatever_runs_twice_gives_the_same_bytes(
    ran: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    """With other workers, in a random order of work, and the global generators elsewhere."""
    torch.rand(3)
    random.random()
    transport = small.InProcess(workers=3, order=random.Random(5))
    small.run(small.config(method, "execution.workers=3"), tmp_path, transport)
    assert small.bits(tmp_path) == small.bits(ran(method))


@pytest.mark.parametrize("method", SEAMS)
def test_state_that_travels_in_messages_gives_the_same_bytes(
    ran: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    transport = small.InProcess()
    small.run(small.config(method, "execution.store=carried"), tmp_path, transport)
    assert small.bits(tmp_path) == small.bits(ran(method))
    heads = [wire.unpack(message)[0] for _, message, _ in transport.seen]
    assert all(head["store"] is None for head in heads)  # no worker was told of a folder
    assert any(head["shards"] for head in heads)
    shards = {p.name: p.read_bytes() for p in (tmp_path / "clients").iterdir()}
    assert shards == {p.name: p.read_bytes() for p in (ran(method) / "clients").iterdir()}


def test_a_model_that_draws_is_trained_alone_and_gives_the_same_bytes(tmp_path: Path) -> None:
    model = "odd_methods:drawing"
    chosen = small.config(clients=[{"count": 6, "model": model}], student=model)
    for folder, order in (("one", None), ("two", random.Random(3))):
        small.run(chosen, tmp_path / folder, small.InProcess(order=order))
        torch.rand(7)  # the global generator moves on
    assert small.bits(tmp_path / "one") == small.bits(tmp_path / "two")
    assert [a.stack for a in small.plan(chosen, tmp_path / "one").architectures] == [1]


# Resuming


@pytest.mark.parametrize("method", SEAMS)
def test_going_on_from_a_commit_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    """Stopped after two of three rounds: records, states and clients are as without a pause."""
    chosen = small.config(method, "rounds=3", world=HALF)
    _, steady, whole = playing(chosen, tmp_path / "whole")

    plan = small.plan(chosen, tmp_path / "parts")
    going = rounds(plan, small.exchange(plan, tmp_path / "parts"))
    commits = committing(tmp_path / "parts")
    for _ in range(2):
        commits.add(next(going).state)
    next(going)  # the third round is done and never committed
    going.close()

    kept = committing(tmp_path / "parts").last()
    assert kept is not None and kept.round == 2
    resumed = small.exchange(plan, tmp_path / "parts", session=1)
    rest = list(rounds(plan, resumed, kept))
    assert [f.record for f in rest] == [f.record for f in whole[2:]]
    for found, expected in zip(rest, whole[2:], strict=True):
        same_state(found.state.server, expected.state.server)
        assert found.state.refs.keys() == expected.state.refs.keys()
        assert found.state.clock == expected.state.clock
    for client in steady.refs:
        same_state(
            state_of(resumed, tmp_path / "parts", client),
            state_of(steady, tmp_path / "whole", client),
        )


# Seeds


def seeded(seed: int, data_seed: object, folder: Path) -> tuple[Plan, Path]:
    chosen = small.config("entropy", f"seed={seed}", f"data.seed={data_seed}", world=HALF)
    small.run(chosen, folder)
    return small.plan(chosen, folder), folder


def data_of(folder: Path) -> dict[str, bytes]:
    files = [p for p in (folder / "data").rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_each_seed_decides_its_own_and_nothing_else(tmp_path: Path) -> None:
    """The data seed: who holds what. The training seed: first weights, batches, who takes part."""
    names = {"a": (3, 8), "b": (4, 8), "c": (3, 9), "d": (8, "auto")}
    made = {n: seeded(*seeds, tmp_path / n) for n, seeds in names.items()}
    plans = {n: plan for n, (plan, _) in made.items()}
    data = {n: data_of(folder) for n, (_, folder) in made.items()}
    assert data["a"] == data["b"] == data["d"]  # auto: the training seed is the data seed, too
    changed = {n for n in data["a"] if data["a"][n] != data["c"][n]}
    assert {"data/splits/test.npy", "data/splits/public.npy", "data/splits/private.npy"} <= changed
    assert "data/x.npy" not in changed

    for party in (rng.SERVER, 0, 5):
        first = {n: plan.fresh(party).flat for n, plan in plans.items()}
        assert torch.equal(first["a"], first["c"]) and not torch.equal(first["a"], first["b"])
    parts = {n: [r["participants"] for r in small.records(f)] for n, (_, f) in made.items()}
    assert parts["a"] == parts["c"]
    assert parts["a"] != parts["b"] or parts["a"] != parts["d"]
    students = {n: small.bits(folder)["student.safetensors"] for n, (_, folder) in made.items()}
    assert len(set(students.values())) == 4


def test_how_the_work_is_done_is_no_part_of_the_experiment() -> None:
    chosen = small.config()
    other = small.config(
        "entropy", "execution.runtime=ray", "execution.workers=7", "execution.store=carried",
        "execution.retries=0", "execution.out=elsewhere", "execution.cpus_per_task=2",
    )  # fmt: skip
    assert chosen.execution != other.execution
    assert chosen.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    "change",
    ["name=other", "seed=4", "rounds=3", "data.seed=9", "data.public=81",
     "data.public.labelled=true", "data.partition.alpha=0.6", "clients.0.count=7",
     "student.hidden=[17]", "strategy=dsfl", "strategy.temperature=0.3", "world=partial",
     "learning.private.epochs=2", "learning.client.optimizer.lr=0.006",
     "learning.keep_optimizer=false", "compute.stack=2", "compute.precision=bf16",
     "compute.task_threads=2", "compute.server_threads=2", "evaluation.every=2"],
)  # fmt: skip
def test_every_part_of_the_experiment_is_in_its_fingerprint(change: str) -> None:
    assert small.config("entropy", change).fingerprint() != small.config().fingerprint()
    assert small.config().experiment().keys() == Config.model_fields.keys() - {"execution"}


# What methods mean


def plain_federated_averaging(plan: Plan, attended: Sequence[Sequence[int]]) -> Tensor:
    """The server's weights after the rounds, as the paper's Algorithm 1 has it."""
    network, batch = plan.student.network, plan.config.learning.private.batch
    server = plan.fresh(rng.SERVER)
    for round_, clients in enumerate(attended, 1):
        total = torch.zeros_like(server.flat[0], dtype=torch.float64)
        samples = 0
        for client in clients:
            own = plan.dataset.private(client)
            x, y = plan.inputs(own), plan.dataset.labels(own)
            module = network.module(server).train()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
            stream = rng.stream(plan.config.seed, round_, client, "train")
            for _ in range(plan.config.learning.private.epochs):
                for at in torch.randperm(len(own), generator=stream).split(batch):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(module(x[at]), y[at]).backward()
                    optimizer.step()
            total += len(own) * network.weights(module).flat[0].double()
            samples += len(own)
        server = replace(server, flat=(total / samples).float().unsqueeze(0))
    return server.flat[0]


@pytest.mark.parametrize("world", ["everyone", HALF], ids=["everyone", "half"])
def test_averaging_weights_is_the_papers_loop(tmp_path: Path, world: object) -> None:
    """Within 1e-5 after three rounds: clients are trained in stacks, elsewhere one by one."""
    chosen = small.config(
        "fedavg", "rounds=3", f"learning.private.optimizer={json.dumps(SGD)}", world=world
    )
    plan, _, done = playing(chosen, tmp_path)
    attended = [f.record["participants"] for f in done]
    assert all(len(p) == (6 if world == "everyone" else 3) for p in attended)
    found = done[-1].state.server["student/weights"]
    expected = plain_federated_averaging(plan, attended)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - plan.fresh(rng.SERVER).flat[0]).abs().max() > 0.01


@pytest.mark.parametrize("method", ["entropy", "fedmd", "dsfl", "kt_pfl", "scarlet"])
def test_of_one_client_the_consensus_is_its_own_answer(tmp_path: Path, method: str) -> None:
    """Of a method that sharpens: sharpened, so in the same order."""
    transport = small.InProcess()
    chosen = small.config(method, "rounds=1", clients=[{"count": 1, "model": [small.MLP]}])
    _, _, (done,) = playing(chosen, tmp_path, transport)
    (said,) = [b for head, blobs in replies(transport) for b in payloads(head, blobs).values()]
    joint = consensus_in(done)
    own = wire.decode(said, joint.rows)
    if method in ("dsfl", "scarlet"):
        assert torch.equal(joint.scores.argmax(-1), own.scores.argmax(-1))
        assert bool((shannon(joint.scores) <= shannon(own.scores) + 1e-6).all()) or method == "dsfl"
    else:
        torch.testing.assert_close(joint.scores, own.scores, rtol=0, atol=1e-6)


def replies(transport: small.InProcess) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [wire.unpack(reply) for kind, _, reply in transport.seen if kind == "work"]


def payloads(head: Mapping[str, Any], blobs: Sequence[bytes]) -> dict[int, bytes]:
    """What was uploaded, by client."""
    said = {s["client"]: s["payload"] for s in head["clients"]}
    return {c: blobs[i] for c, i in said.items() if i is not None}


def test_mirrors_of_the_cache_stay_equal_under_partial_participation(tmp_path: Path) -> None:
    """At 50 %, over eight rounds of 30 rows kept for two: a client's mirror is the server's cache
    as it was sent, bit for bit, however many rounds the client has missed; and our end of the link
    says the same as the client's own."""
    method = {"name": "scarlet", "rows": 30, "duration": 2}
    chosen = small.config(method, "rounds=8", "evaluation.teachers=false", world=HALF)
    plan = small.plan(chosen, tmp_path)
    exchange = small.exchange(plan, tmp_path)
    clients = Folder(tmp_path / "clients")
    cache: dict[int, State] = {}  # the server's, by round
    heard: dict[int, int] = {}  # the round whose cache a client was last sent
    late, compared = 0, 0
    for finished in rounds(plan, exchange):
        record, server = finished.record, finished.state.server
        number = record["round"]
        cache[number] = under("finish/", server)
        for client in record["participants"]:
            if number > 1:  # a round begins with the digest of the one before
                late += number - 1 > heard.get(client, 0) + 1
                heard[client] = number - 1
        for client in exchange.refs:
            mirror = under("down/", clients.get(exchange.refs[client]))
            if client not in heard:
                assert not mirror
                continue
            expected = cache[heard[client]]
            assert torch.equal(mirror["stamp"], expected["stamp"])
            assert torch.equal(mirror["values"], expected["values"])
            link = under(f"link/down/{client}/", server)
            assert torch.equal(link["stamp"], mirror["stamp"])
            compared += 1
    assert compared > 20 and late > 3  # some have missed rounds and caught up
    assert any(bool((c["stamp"] == 0).any() and (c["stamp"] > 0).any()) for c in cache.values())


def test_personal_targets_reach_the_client_they_are_for(tmp_path: Path) -> None:
    """Everyone is taught the mixture that the server made for them, and nobody else's."""
    method = {"name": "kt_pfl", "rho": 0.0, "step": 50.0, "temperature": 1.0}
    transport = small.InProcess()
    chosen = small.config(method, "rounds=1", "evaluation.teachers=false")
    _, _, (done,) = playing(chosen, tmp_path, transport)
    joint = consensus_in(done)
    assert joint.parties.tolist() == list(range(6))
    got: dict[int, bytes] = {}
    for _, message, _ in transport.seen:
        head, blobs = wire.unpack(message)
        if "distil" in head["steps"]:
            got |= {int(c): blobs[i] for c, i in head["downloads"].items()}
    assert got.keys() == set(range(6)) and len(set(got.values())) == 6
    for client, payload in got.items():
        target = wire.decode(payload, joint.rows)
        assert target.parties.tolist() == [client]
        assert torch.equal(target.scores[0], joint.scores[client])


def test_clients_learn_what_the_student_says(tmp_path: Path) -> None:
    transport = small.InProcess()
    plan, _, (done,) = playing(
        small.config("odd_methods:student_back", "rounds=1"), tmp_path, transport
    )
    student = gather([under("student/", done.state.server)])
    expected = answer(plan.student.network, student, plan.public_inputs)
    (sent,) = {
        blobs[i]
        for head, blobs in (wire.unpack(m) for kind, m, _ in transport.seen if kind == "work")
        for i in head["downloads"].values()
    }
    found = wire.decode(sent, plan.public)
    assert found.space == "logits"
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-6)


def test_who_abstains_sends_nothing_and_is_not_counted(tmp_path: Path) -> None:
    transport = small.InProcess()
    plan, _, (done,) = playing(
        small.config("odd_methods:abstaining", "rounds=1"), tmp_path, transport
    )
    said = {c: p for head, blobs in replies(transport) for c, p in payloads(head, blobs).items()}
    joint, r = consensus_in(done), len(plan.public)
    numerator, denominator = torch.zeros(r, 10).double(), torch.zeros(r).double()
    for client in range(6):
        own = wire.decode(said[client], plan.public)
        n = int(own.mask.sum())
        assert 0 < n < r
        # a header, a bit a row, and of the rows that are answered trust and ten numbers
        assert len(said[client]) == wire.HEADER_BYTES + -(-r // 8) + n * 4 * 11
        weight = (own.mask * len(plan.dataset.private(client)) / 100).double()[0]
        numerator += own.scores[0].double() * weight.unsqueeze(-1)
        denominator += weight
    expected = numerator / denominator.clamp_min(1e-9).unsqueeze(-1)
    torch.testing.assert_close(joint.scores[0].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(joint.mask[0], denominator > 0)
    assert done.record["rows"]["dropped"] == int((denominator == 0).sum())


def test_both_ends_of_a_stateful_upload_stay_in_step(tmp_path: Path) -> None:
    """What is decoded from differences is what a dense upload would have brought."""
    chosen = small.config("odd_methods:remembering", "rounds=3", world=HALF)
    _, exchange, done = playing(chosen, tmp_path)
    for client, link in exchange.links.items():
        own = under("up/", state_of(exchange, tmp_path, client))
        torch.testing.assert_close(link["last"], own["last"], rtol=0, atol=1e-6)
        torch.testing.assert_close(link["last"].sum(-1), torch.ones(80), rtol=0, atol=1e-5)
    joint = consensus_in(done[-1])
    attended = done[-1].record["participants"]
    expected = torch.stack([exchange.links[c]["last"] for c in attended]).mean(0)
    torch.testing.assert_close(joint.scores[0], expected, rtol=0, atol=1e-6)


def test_a_method_that_leaks_is_stopped_at_the_first_answer(tmp_path: Path) -> None:
    """With the run folder telling of it."""
    chosen = small.config("odd_methods:leaking")
    with pytest.raises(ClientFailure, match="refused: labels: may not cross the wire"):
        small.run(chosen, tmp_path)
    (event,) = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["kind"] == "refused" and event["round"] == 1
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "records.jsonl").read_text()


# Worlds


def test_frozen_teachers_stay_as_they_are(tmp_path: Path) -> None:
    """They answer in every round, and the student goes on alone."""
    world = {"name": "frozen_teachers", "until": 1}
    chosen = small.config("entropy", "rounds=3", world=world)
    plan = small.plan(chosen, tmp_path)
    exchange = small.exchange(plan, tmp_path)
    teachers, students, steps = [], [], []
    for finished in rounds(plan, exchange):
        teachers.append([state_of(exchange, tmp_path, c)["weights"] for c in range(6)])
        students.append(finished.state.server["student/weights"])
        steps.append(finished.record["steps"])
    for later in teachers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(teachers[0], later, strict=True))
    assert not torch.equal(teachers[0][0], plan.fresh(0).flat[0])
    assert not torch.equal(students[0], students[1]) and not torch.equal(students[1], students[2])
    assert steps[0]["clients"] > 0 and steps[1]["clients"] == steps[2]["clients"] == 0
    assert all(s["server"] == steps[0]["server"] > 0 for s in steps)


def test_the_student_may_be_its_own_running_mean(tmp_path: Path) -> None:
    """m times what it was plus 1 - m times what it learnt."""

    def after(momentum: float) -> tuple[Tensor, Tensor]:
        method = {"name": "fedema_distill", "momentum": momentum}
        plan, _, (done,) = playing(small.config(method, "rounds=1"), tmp_path / str(momentum))
        return plan.fresh(rng.SERVER).flat[0], done.state.server["student/weights"]

    (first, learnt), (same, mixed) = after(0.0), after(0.75)
    assert torch.equal(first, same) and not torch.equal(first, learnt)
    torch.testing.assert_close(mixed, 0.75 * first + 0.25 * learnt)


def test_only_those_who_take_part_learn(tmp_path: Path) -> None:
    chosen = small.config("entropy", "rounds=1", world=HALF)
    plan, exchange, (done,) = playing(chosen, tmp_path)
    attended = done.record["participants"]
    assert len(attended) == 3 and exchange.refs.keys() == set(attended)
    # those who were not there are measured as they were made
    absent = [c for c in range(6) if c not in attended]
    for client in absent:
        made = plan.architectures[plan.teacher[client]]
        logits = answer(made.network, plan.fresh(client), plan.test_inputs)[0]
        expected = float((logits.argmax(-1) == plan.test_labels).double().mean())
        assert done.record["teachers"]["test"][client] == pytest.approx(expected, abs=0.02)


def nobody() -> object:
    from fedkd.types import World

    return World(participants=lambda round_, clients, rng: [])


def strangers() -> object:
    from fedkd.types import World

    return World(participants=lambda round_, clients, rng: [0, clients])


@pytest.mark.parametrize("world", ["nobody", "strangers"])
def test_a_world_names_clients_that_there_are(tmp_path: Path, world: str) -> None:
    plan = small.plan(small.config(world=f"test_engine:{world}"), tmp_path)
    with pytest.raises(ValueError, match=r"world: .* must name clients from 0 to 5, in round 1"):
        next(rounds(plan, small.exchange(plan, tmp_path)))


def test_before_the_first_round_everyone_learns_the_public_labels(tmp_path: Path) -> None:
    """Also those who do not take part in it; and once only."""
    method = {"name": "fedmd", "pretrain": True}
    chosen = small.config(
        method, "rounds=2", "data.public.labelled=true", "learning.private.epochs=0",
        "learning.client.epochs=0", world=HALF,
    )  # fmt: skip
    _, exchange, done = playing(chosen, tmp_path)
    assert exchange.refs.keys() == set(range(6))
    epoch = -(-80 // 16)
    assert [f.record["steps"]["clients"] for f in done] == [6 * epoch, 0]


# Learning


def test_an_optimiser_is_kept_or_started_anew(tmp_path: Path) -> None:
    kept = playing(small.config("entropy"), tmp_path / "kept")
    anew = playing(small.config("entropy", "learning.keep_optimizer=false"), tmp_path / "anew")
    assert under("moments/adam/", state_of(kept[1], tmp_path / "kept", 0))
    assert not under("moments/", state_of(anew[1], tmp_path / "anew", 0))
    # the first round of the students is the same, the second is not
    students = [[f.state.server["student/weights"] for f in x[2]] for x in (kept, anew)]
    assert not torch.equal(students[0][1], students[1][1])
    # a client has one optimiser for its private epochs and its digests
    steps = under("moments/adam/", state_of(kept[1], tmp_path / "kept", 0))["steps"]
    own = len(kept[0].dataset.private(0))
    assert float(steps) == 2 * (-(-own // 16) + -(-80 // 16))


def test_labels_that_the_server_uses_are_recorded(tmp_path: Path) -> None:
    loss = json.dumps({"name": "kl", "alpha": 0.5})
    chosen = small.config("entropy", "data.public.labelled=true", f"learning.server.loss={loss}")
    record = small.run(chosen, tmp_path)[-1]
    assert record["labels_used"] == 80


def test_a_label_that_is_hidden_cannot_be_learnt(tmp_path: Path) -> None:
    loss = json.dumps({"name": "kl", "alpha": 0.5})
    with pytest.raises(ValueError, match=r"kl.alpha: .* set alpha to 1 or data.public.labelled"):
        small.run(small.config("entropy", f"learning.server.loss={loss}"), tmp_path)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (
            "learning.private.schedule={name: StepLR, step_size: 1, gamma: 0.5}",
            "moments/adam/steps",
        ),
        (
            "learning.client.optimizer={name: 'torch.optim:RMSprop', lr: 0.001}",
            "moments/torch.optim",
        ),
        ("learning.private.optimizer={name: sgd, lr: 0.05, momentum: 0.9}", "moments/sgd/m"),
    ],
)
def test_optimisers_and_schedules_go_through_whole_runs(
    tmp_path: Path, what: str, text: str
) -> None:
    _, exchange, done = playing(small.config("entropy", what), tmp_path)
    assert any(name.startswith(text) for name in state_of(exchange, tmp_path, 0))
    assert done[-1].record["ensemble"]["test"] > 0.2


# Yardsticks


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that hear of nobody, with all yardsticks on."""
    folder = tmp_path_factory.mktemp("measured")
    method = {"name": "entropy", "feedback": False}
    wanted = {"pooled": True, "local": True, "labels": True}
    small.run(small.config(method, evaluation=wanted), folder)
    return folder


def test_local_only_is_what_a_run_without_feedback_gives(measured: Path) -> None:
    """The same private epochs, the same streams: the same figures, round by round."""
    said = json.loads((measured / "yardsticks.json").read_text())
    lines = small.records(measured)
    for kind in ("test", "own"):
        assert said["local"][kind] == [r["teachers"][kind] for r in lines]
    assert said["local"]["steps"] == sum(r["steps"]["clients"] for r in lines)


def test_what_a_pooled_model_and_the_labels_would_have_given(measured: Path) -> None:
    said = json.loads((measured / "yardsticks.json").read_text())
    assert said.keys() == {"local", "pooled", "labels"}
    assert said["pooled"]["samples"] == 300 and said["labels"]["labels"] == 80
    assert said["pooled"]["steps"] == 2 * -(-300 // 16)
    assert said["labels"]["steps"] == 2 * -(-80 // 16)
    assert fraction(said["pooled"]["test"]) and fraction(said["labels"]["test"])


def test_the_ensemble_is_what_the_teachers_say_together(measured: Path) -> None:
    """Recomputed from the teachers' files by the method's formula."""
    plan = small.plan(small.config({"name": "entropy", "feedback": False}), measured)
    joint = torch.zeros(len(plan.test_labels), 10).double()
    right = []
    for client, kind in enumerate(plan.teacher):
        module = plan.architectures[kind].make()
        module.load_state_dict(load_file(measured / "teachers" / f"{client:05d}.safetensors"))
        with torch.no_grad():
            p = module.eval()(plan.test_inputs).softmax(-1).double()
        joint += p * torch.exp(-shannon(p) / 0.2).unsqueeze(-1)
        right.append(float((p.argmax(-1) == plan.test_labels).double().mean()))
    last = small.records(measured)[-1]
    assert last["teachers"]["test"] == pytest.approx(right)
    expected = float((joint.argmax(-1) == plan.test_labels).double().mean())
    assert last["ensemble"]["test"] == pytest.approx(expected)


def test_the_student_in_the_folder_is_the_one_that_was_measured(measured: Path) -> None:
    plan = small.plan(small.config({"name": "entropy", "feedback": False}), measured)
    module = plan.student.make()
    module.load_state_dict(load_file(measured / "student.safetensors"))
    with torch.no_grad():
        logits = module.eval()(plan.test_inputs)
    found = float((logits.argmax(-1) == plan.test_labels).double().mean())
    assert small.records(measured)[-1]["student"]["test"] == pytest.approx(found)


@pytest.mark.parametrize("one", [False, True], ids=["a folder", "one file"])
def test_stored_teachers_are_where_another_run_begins(
    measured: Path, tmp_path: Path, one: bool
) -> None:
    """Each client takes up its own file, or all of them one; without learning they stay so."""
    path = measured / "teachers" / ("00002.safetensors" if one else "")
    models = [small.MLP] if one else [small.MLP, small.OTHER]
    still = small.config(
        {"name": "entropy", "feedback": False}, "learning.private.epochs=0", "rounds=1",
        clients=[{"count": 6, "model": models, "weights": str(path)}],
    )  # fmt: skip
    (record,) = small.run(still, tmp_path)
    before = small.records(measured)[-1]["teachers"]["test"]
    assert record["teachers"]["test"] == pytest.approx([before[2]] * 6 if one else before)
    assert record["steps"]["clients"] == 0
    for client in range(6):
        stored = measured / "teachers" / f"{2 if one else client:05d}.safetensors"
        same_state(
            load_file(tmp_path / "teachers" / f"{client:05d}.safetensors"), load_file(stored)
        )


def test_measuring_less_changes_nothing_else(ran: Callable[[str], Path], tmp_path: Path) -> None:
    """The method does not see who looks on."""
    quiet = small.config("entropy", "evaluation.teachers=false", "evaluation.every=2")
    lines = small.run(quiet, tmp_path)
    assert [r["student"] is None for r in lines] == [True, False]
    assert all(r["teachers"] is None and r["ensemble"] is None for r in lines)
    for name in ("student.safetensors", *(f"teachers/{c:05d}.safetensors" for c in range(6))):
        assert small.bits(tmp_path)[name] == small.bits(ran("entropy"))[name]


# Failing


class Stops(small.Silent):
    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        raise KeyboardInterrupt


def test_a_run_that_is_stopped_keeps_its_finished_rounds(tmp_path: Path) -> None:
    chosen = small.config()
    small.plan(chosen, tmp_path)
    watch: Watch = Stops()
    with pytest.raises(KeyboardInterrupt):
        conduct(chosen, tmp_path, small.InProcess(), watch)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert [r["round"] for r in small.records(tmp_path)] == [1]
    kept = committing(tmp_path).last()
    assert kept is not None and kept.round == 1


def early() -> object:
    from fedkd.transforms import mean
    from fedkd.types import Strategy

    return Strategy(combine=mean(), program=("combine", "answer"))


def personal_student() -> object:
    from strategies.kt_pfl import kt_pfl

    made = kt_pfl()
    return replace(made, program=(*made.program, "distil_server"))


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("test_engine:early", "in the program of test_engine:early combine should follow answer"),
        (
            "test_engine:personal_student",
            "makes one target a client, so the student has none",
        ),
    ],
)
def test_a_program_that_makes_no_sense_is_refused(tmp_path: Path, method: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        playing(small.config(method), tmp_path)
