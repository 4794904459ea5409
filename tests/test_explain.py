"""What `--explain` foretells is what the engine then counts."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from torch import Tensor

from fedkd import learning, losses
from fedkd.assemble import assemble, prepare, resolve
from fedkd.config import Config, load_config
from fedkd.costs import memory, memory_parts, passes, steps, traffic
from fedkd.explain import explain
from fedkd.learning import Precision, answer
from fedkd.progress import Quiet
from fedkd.runs import run
from fedkd.stacks import Network, Weights
from fedkd.types import Loss, Target

SMALL = [
    "execution.runtime=local",
    "rounds=2",
    "clients.0.count=4",
    "clients.0.model={name: mlp, hidden: [8]}",
    "student={name: mlp, hidden: [8]}",
    "learning.private={epochs: 1, first_epochs: 2, batch: 16}",
    "learning.client={epochs: 2, batch: 64}",
    "learning.server={epochs: 1, first_epochs: 3, batch: 32}",
    *(f"evaluation.{name}=false" for name in ("teachers", "pooled", "local", "labels")),
]


def small(*overrides: str) -> Config:
    return load_config("digits", [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("overrides", "later_is_exact"),
    [
        (["strategy=entropy"], True),
        (["strategy={name: entropy, feedback: false}"], True),
        (["strategy={name: dsfl, rows: 100}"], True),
        (["strategy={name: fedmd, rows: 100}"], True),
        (["strategy=fedavg"], True),
        (["strategy=kt_pfl"], True),
        (["strategy={name: fedkt, rows: 100, teachers: 3, sigma: 0.1}"], True),
        (["strategy={name: fedkt, teachers: 3, sigma: 0.1}", "world=frozen_teachers"], True),
        # a cache asks for fewer rows later on
        (["strategy={name: scarlet, rows: 100}"], False),
        (["world={name: partial, fraction: 0.5}"], True),
        (["world=frozen_teachers"], True),
        (["strategy={name: fedmd, pretrain: true}", "data.public.labelled=true"], True),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_bytes_and_steps_are_those_of_the_run(
    tmp_path: Path, overrides: list[str], later_is_exact: bool
) -> None:
    config = small(*overrides, f"execution.out={tmp_path / 'run'}")
    done = run(config)
    plan = assemble(resolve(config), done.folder / "data")
    for record in done.records:
        bytes_, counted = traffic(plan, record["round"]), steps(plan, record["round"])
        expected = {"up": bytes_.up, "down": bytes_.down}
        server = counted.get("server", 0)
        if record["round"] == 1 or later_is_exact:
            assert record["bytes"] == expected
            assert record["steps"]["server"] == server
            assert record["steps"]["clients"] == sum(counted.values()) - server
        else:
            assert record["bytes"]["up"] <= expected["up"]


COUNTED: Counter[str] = Counter()


def counting(phase: str) -> Loss:
    """A loss that notes how many samples it was asked about, the rehearsal's apart."""
    usual = losses.cross_entropy() if phase in ("train", "pretrain") else losses.kl()

    def loss(logits: Tensor, target: Target) -> Tensor:
        COUNTED[phase] += logits.shape[:-1].numel() * logits.requires_grad
        return usual(logits, target)

    return loss


def answered(net: Network, weights: Weights, inputs: Tensor, precision: Precision) -> Tensor:
    """Counts what goes through a model that answers."""
    COUNTED["answer"] += len(weights) * len(inputs)
    return answer(net, weights, inputs, precision)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy={name: dsfl, rows: 100}"],
        ["strategy=fedavg"],
        ["world={name: partial, fraction: 0.5}"],
        ["world=frozen_teachers"],
        ["strategy={name: fedmd, pretrain: true}", "data.public.labelled=true"],
    ],
    ids=lambda v: v[0],
)
def test_passes_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """Samples are counted by the losses, and by the place where models answer."""
    monkeypatch.setattr("fedkd.client.answer", answered)
    named = {"private": "train", "client": "distil_clients", "server": "distil_server",
             "pretrain": "pretrain"}  # fmt: skip
    own = [
        f"learning.{section}.loss={{name: '{__name__}:counting', phase: {phase}}}"
        for section, phase in named.items()
        if phase != "distil_clients" or "fedavg" not in overrides[0]
    ]
    # one model at a time: a stack pads small batches
    config = small(*overrides, *own, "compute.stack=1", f"execution.out={tmp_path / 'run'}")
    COUNTED.clear()
    done = run(config)
    plan = assemble(resolve(config), done.folder / "data")
    expected: Counter[str] = Counter()
    for record in done.records:
        counted = passes(plan, record["round"])
        for phase, those in counted.items():
            expected[phase] += those.forward
            assert those.backward == (0 if phase == "answer" else those.forward)
        own_steps = sum(p.steps for phase, p in counted.items() if phase != "distil_server")
        assert record["steps"]["clients"] == own_steps
    assert {k: v for k, v in expected.items() if v} == dict(COUNTED)


def test_passes_of_a_committee_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers learn parts, answer, and teach students, who answer in the end."""
    monkeypatch.setattr("fedkd.client.answer", answered)
    own = [
        f"learning.{section}.loss={{name: '{__name__}:counting', phase: {phase}}}"
        for section, phase in (("private", "train"), ("client", "learn"), ("server", "server"))
    ]
    config = small(
        "strategy={name: fedkt, rows: 100, teachers: 3}", *own, "rounds=1", "compute.stack=1",
        f"execution.out={tmp_path / 'run'}",
    )  # fmt: skip
    COUNTED.clear()
    (record,) = run(config).records
    counted = passes(assemble(resolve(config), tmp_path / "run" / "data"), 1)
    # 4 clients with 850 samples in all: twice each, 2 epochs; 2 students, 2 epochs of 100 rows
    assert COUNTED["train"] == 2 * 2 * 850 and COUNTED["learn"] == 4 * 2 * 2 * 100
    assert COUNTED["answer"] == 4 * 2 * 3 * 100 + 4 * 2 * 100
    convened = counted["convene"]
    assert convened.backward == COUNTED["train"] + COUNTED["learn"]
    assert convened.forward == convened.backward + 4 * 2 * 3 * 100
    assert counted["answer"] == (4 * 2 * 100, 0, 0)
    assert record["steps"]["clients"] == convened.steps


def test_memory_is_told_by_what_it_is_for(tmp_path: Path) -> None:
    config = resolve(small("data.partition=iid", "clients.0.count=1", "compute.stack=1"))
    prepare(config, tmp_path / "data")
    plan = assemble(config, tmp_path / "data")
    parts = memory_parts(plan)
    assert memory(plan) == {place: sum(of.values()) for place, of in parts.items()}
    assert parts["worker"]["private samples"] == 850 * 64 * 4
    for place in ("worker", "server"):
        assert parts[place]["public and test samples"] == (450 + 400) * 64 * 4
        # 256 samples through layers that give 64, 8, 8 and 10 numbers
        assert parts[place]["activations"] == 256 * (64 + 8 + 8 + 10) * 4
    assert learning._ANSWER_BATCH == 256


def test_memory_grows_with_what_it_is_for(tmp_path: Path) -> None:
    def needed(name: str, *overrides: str) -> dict[str, int]:
        config = resolve(small(*overrides))
        prepare(config, tmp_path / name)
        return dict(memory(assemble(config, tmp_path / name)))

    base = needed("base")
    wide = needed("wide", "clients.0.model={name: mlp, hidden: [800]}")
    eight = ("clients.0.count=8", "data.partition=iid")
    many = needed("many", *eight)
    gathered = needed("gathered", *eight, "strategy=kt_pfl")
    assert wide["worker"] > base["worker"] and wide["state"] > 50 * base["state"]
    assert many["state"] == 2 * base["state"]
    assert many["server"] == base["server"]  # a linear consensus is folded
    assert gathered["server"] > many["server"]
    # four models of 8 hidden units with two moments each, float32
    assert base["state"] == 4 * 3 * 4 * (64 * 8 + 8 + 8 * 10 + 10)


def test_the_plan_as_tables() -> None:
    tables = dict(explain(small("clients.0.count=3", "data.partition=iid"), Quiet(sys.stderr)))
    assert list(tables) == [
        "Experiment",
        "Models",
        "Clients",
        "Learning",
        "Passes",
        "Cost",
        "Privacy",
        "Execution",
    ]
    said = dict(tables["Experiment"])
    assert "public 450 (labels hidden) · private 850 over 3 clients by iid" in said["Splits"]
    assert said["A round"].startswith("clients train on their private samples → clients answer")
    assert ("teachers", "mlp hidden=[8]", "610", "592", "3", "3") in tables["Models"]
    assert [line[2] for line in tables["Clients"][1:]] == ["284", "283", "283"]
    private = tables["Learning"][1]
    # 284, 283 and 283 samples are 18 batches of 16 each
    assert private == ("private", "cross-entropy", "adam 0.002", "16", "2", "1", "108", "54")
    assert tables["Passes"][1:3] == [
        ("clients train on their private samples", "1,700", "850", "1,700", "850"),
        ("clients answer public rows", "1,350", "1,350", "0", "0"),
    ]
    assert dict(tables["Cost"])["Bytes up, a round"] == f"{3 * (32 + 4 * 4500):,} (54.1 kB)"


def test_many_clients_are_summed_up() -> None:
    tables = dict(explain(small("clients.0.count=40", "data.partition=iid"), Quiet(sys.stderr)))
    assert tables["Clients"][0] == ("Samples of a client", "21 to 22, 21.2 on average")


def test_the_clock_and_what_becomes_of_failures_are_told() -> None:
    base = ("clients.0.count=3", "data.partition=iid")
    tables = dict(explain(small(*base), Quiet(sys.stderr)))
    assert "Clock" not in dict(tables["Experiment"])
    assert dict(tables["Execution"])["Failures"] == (
        "a client that fails stops the run; lost work is done again up to 2 times; no deadline"
    )
    world = "world={name: stragglers, deadline: 1.5}"
    policy = "execution={on_failure: drop, min_clients: 2, retries: 1, deadline_s: 30.0}"
    tables = dict(explain(small(*base, world, policy), Quiet(sys.stderr)))
    waits = "virtual; each question waits 1.5 virtual seconds at most"
    assert dict(tables["Experiment"])["Clock"] == waits
    assert dict(tables["Execution"])["Failures"] == (
        "a client that fails is left out of the rest of the round; lost work is done again up to"
        " 1 time; with fewer than 2 left the round is begun again once, then the run stops; a step"
        " that takes longer than 30 s has failed"
    )
