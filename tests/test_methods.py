"""Every method in its own configurations: they load, run, send what they say, and are worth it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import small
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedkd import reading, wire
from fedkd.answers import check, check_weights
from fedkd.assemble import Plan, assemble, prepare, resolve
from fedkd.client import dense
from fedkd.conduct import named
from fedkd.config import load_config
from fedkd.contract import consensus, stream
from fedkd.rehearsal import rehearse
from fedkd.tasks import rows_from
from fedkd.transforms import combine, others_mean
from fedkd.types import (
    PrivateView,
    Shape,
    State,
    Target,
    Traffic,
    predictions,
)
from fedkd.wire import HEADER_BYTES
from strategies.cfd import cfd
from strategies.fd import fd
from strategies.fedkd_cross_domain import fedkd_cross_domain
from strategies.rhfl import rhfl

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"
OF_METHODS = sorted(
    n for n in reading.built_in() if n in small.METHODS or n.startswith("teachers_")
)
# whose result is no better than local training; docs/methods.md says why
NO_BETTER: tuple[str, ...] = ()
SHRUNK = (
    "rounds=2", "clients.0.count=4", "data.test=150", "data.private=300", "data.public.size=120",
    "data.validation=0", "evaluation.pooled=false", "evaluation.local=false",
    "evaluation.labels=false", "evaluation.metrics=false", "learning.private.first_epochs=1",
    "learning.private.epochs=1", "learning.client.epochs=1", "learning.server.epochs=1",
    "learning.server.first_epochs=1", "execution.runtime=local", "compute.device=cpu",
    "compute.task_threads=1", "compute.server_threads=1",
)  # fmt: skip


# configurations


def test_every_method_has_a_small_configuration_and_that_of_its_paper() -> None:
    names = set(reading.built_in())
    assert {*small.METHODS, *(f"paper/{m}" for m in small.METHODS)} <= names
    for name in names:
        config, stem = load_config(name), name.removeprefix("paper/")
        assert reading.find(name).read_text(encoding="utf-8").startswith("# ")
        if stem in small.METHODS:
            assert config.strategy.name == stem, name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cfd", "dsfl", "fd", "selective_fd"])
def test_the_setting_of_a_paper_is_accepted_where_its_data_are(method: str, tmp_path: Path) -> None:
    folder = small.fashion_mnist().parent / "mnist"
    config = resolve(load_config(f"paper/{method}", [f"data.source.folder={folder}"]))
    prepare(config, tmp_path / "data")
    rehearse(assemble(config, tmp_path / "data"))


@pytest.mark.parametrize("name", OF_METHODS)
def test_a_round_of_every_method_and_every_payload_of_it(name: str, tmp_path: Path) -> None:
    """Two short rounds; payloads are decoded as the receiver would, bytes are the formula's."""
    transport = small.InProcess()
    chosen = resolve(load_config(name, SHRUNK))
    records = small.run(chosen, tmp_path, transport)
    assert [r["round"] for r in records] == [1, 2]
    plan = small.plan(chosen, tmp_path)
    heard = [Heard(plan, way) for way in ("down", "up")]
    for kind, message, reply in transport.seen:
        if kind == "work":
            heard[0].task(message)
            heard[1].reply(message, reply)
    assert heard[1].total == sum(r["bytes"]["up"] for r in records) > 0
    back = {"distil_clients", "recall"} & set(plan.strategy.program)
    assert bool(heard[0].total) == (bool(back) or plan.strategy.feedback == "weights")


class Sent(NamedTuple):
    """One payload, and what it was about."""

    client: int
    payload: bytes
    rows: Tensor
    round: int


class Heard:
    """Decodes what goes one way, with a mirror of the state of each client's codec."""

    def __init__(self, plan: Plan, way: str) -> None:
        strategy = plan.strategy
        self.plan, self.way, self.total = plan, way, 0
        self.codec = strategy.upload_codec if way == "up" else strategy.download_codec
        self.length = strategy.shares.uplink if way == "up" else strategy.shares.downlink
        self.shape = Shape(plan.clients, len(plan.rows), plan.dataset.classes)
        self.states: dict[int, State] = {}

    def task(self, message: bytes) -> None:
        head, blobs = wire.unpack(message)
        rows = rows_from(blobs[head["rows"]])
        for client in [c for s in head["stacks"] for c in s["clients"]]:
            place = head["downloads"].get(str(client), head["downloads"].get("-1"))
            if place is not None:
                self.read(Sent(client, blobs[place], rows, head["round"]))

    def reply(self, message: bytes, reply: bytes) -> None:
        asked, parts = wire.unpack(message)
        head, blobs = wire.unpack(reply)
        for said in head["clients"]:
            if said["payload"] is None:
                continue
            rows = rows_from(parts[asked["rows"]])
            if asked["masks"] is not None:
                bits = torch.tensor(list(parts[asked["masks"][str(said["client"])]]))
                mask = (bits.unsqueeze(1) >> torch.arange(7, -1, -1) & 1).flatten().bool()
                rows = rows[mask[: len(rows)]]
            self.read(Sent(said["client"], blobs[said["payload"]], rows, asked["round"]))

    def read(self, sent: Sent) -> None:
        strategy, size = self.plan.strategy, len(sent.payload)
        self.total += size
        network = self.plan.student.network
        weights = network.parameters + sum(b.numel() for b in network.buffers.values())
        rows = sent.rows[:0] if "weights" in strategy.traits else sent.rows
        codec = self.codec or dense
        state = self.states.get(sent.client) or codec.init(self.shape)
        self.states[sent.client], given = codec.decode(state, sent.payload, rows, stream())
        if self.way == "up":
            check(self.plan, given, sent.round, sent.client, rows)
            if "weights" in strategy.traits:
                check_weights(given, weights)
        assert set(given.extras or {}) <= strategy.shares.extras
        answered = int(given.mask.sum())
        formula = self.length(Traffic(len(rows), self.shape.classes, weights, answered))
        if "caches" in strategy.traits and self.way == "down":
            return  # what it sends depends on what is held; the cache's own tests count it
        loose = self.way in strategy.shares.varying
        assert size - HEADER_BYTES <= formula if loose else size - HEADER_BYTES == formula
        if self.codec is None:
            assert sent.payload == wire.encode(given), "a header, what is declared, the scores"


# FD


def view_of(labels: Tensor, logits: Tensor) -> PrivateView:
    none = torch.zeros(0, logits.shape[1])
    return PrivateView(logits, labels, logits.shape[1], none, stream())


class Echo:
    """A teacher whose logits are its inputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs

    def features(self, inputs: Tensor) -> Tensor:
        return inputs


def test_FD1_each_client_gets_the_mean_of_all_others() -> None:
    p = torch.rand(5, 4, 4, generator=stream(1)).softmax(-1)
    found = combine(others_mean(), {}, predictions(p, "probs"), stream()).result
    expected = (p.double().sum(0) - p.double()) / 4
    torch.testing.assert_close(found.scores, expected.float(), atol=1e-7, rtol=0)
    assert found.parties.tolist() == [0, 1, 2, 3, 4] and bool(found.mask.all())


def test_FD2_a_client_alone_is_taught_nothing() -> None:
    p = torch.rand(1, 4, 4).softmax(-1)
    assert not combine(others_mean(), {}, predictions(p, "probs"), stream()).result.mask.any()
    loss = fd(gamma=0.5).losses.private
    assert loss is not None
    logits, labels = torch.randn(6, 4, generator=stream(2)), torch.arange(6) % 4
    alone = loss(logits, Target(None, "logits", labels))
    untold = loss(logits, Target(torch.zeros(6, 4), "probs", labels))
    assert torch.equal(alone, untold)
    told = loss(logits, Target(torch.full((6, 4), 0.25), "probs", labels))
    expected = alone - 0.5 * logits.log_softmax(-1).mean(-1)
    torch.testing.assert_close(told, expected)


def test_FD3_what_is_sent_is_a_square_of_the_classes_whatever_the_model_and_public_set() -> None:
    summarise = fd().summarise
    assert summarise is not None
    labels, logits = torch.tensor([2, 0, 2]), torch.randn(3, 4, generator=stream(3))
    rows, mask = summarise(view_of(labels, logits), Echo(), stream())
    assert rows.shape == (4, 4) and mask.tolist() == [True, False, True, False]
    means = torch.stack([logits[1].softmax(-1), logits[[0, 2]].softmax(-1).mean(0)])
    torch.testing.assert_close(rows[mask].float().softmax(-1), means)


def test_FD4_a_label_that_a_client_lacks_is_the_mean_of_those_who_hold_it() -> None:
    p = torch.rand(3, 2, 2, generator=stream(4)).softmax(-1)
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    found = combine(others_mean(), {}, predictions(p, "probs", mask=mask), stream()).result
    torch.testing.assert_close(found.scores[0, 1], p[1, 1])
    torch.testing.assert_close(found.scores[2, 1], p[1, 1])
    assert found.mask.tolist() == [[True, True], [True, False], [True, True]]


def test_FD5_sixteen_rounds_are_102400_bits() -> None:
    shares, full = fd().shares, Traffic(rows=10, classes=10, parameters=10**6, changed=10)
    assert 16 * 8 * (shares.uplink(full) + shares.downlink(full)) == 16 * (100 + 100) * 32 == 102400


def test_what_was_said_of_labels_counts_from_the_second_round_on(tmp_path: Path) -> None:
    base = ("data.partition=iid", "evaluation.teachers=false")
    free, bound = (
        small.run(small.config({"name": "fd", "gamma": g}, *base), tmp_path / str(g))
        for g in (0.0, 5.0)
    )
    assert free[0]["sha256"] == bound[0]["sha256"]  # nothing was said before round 1
    assert free[1]["sha256"] != bound[1]["sha256"]


# CFD


def test_a_reset_client_begins_anew_and_a_frozen_one_stays(tmp_path: Path) -> None:
    """Whoever learns nothing in the second round ends it with its first weights, if it is reset."""
    idle = ("learning.private.first_epochs=1", "learning.private.epochs=0",
            "learning.client.epochs=0")  # fmt: skip
    found = {}
    for reset, world in ((True, "everyone"), (False, "everyone"), (True, "frozen_teachers")):
        chosen = small.config({"name": "cfd", "reset": reset}, *idle, world=world)
        small.run(chosen, tmp_path / f"{reset}{world}")
        stored = load_file(tmp_path / f"{reset}{world}" / "teachers" / "00000.safetensors")
        found[reset, world] = torch.cat([stored[n].flatten() for n in sorted(stored)])
    plan = small.plan(chosen, tmp_path / "Trueeveryone")
    network = plan.architectures[plan.teacher[0]].network
    fresh = named(network, plan.fresh(0), 0)
    first = torch.cat([fresh[n].flatten() for n in sorted(fresh)])
    assert torch.equal(found[True, "everyone"], first)
    assert not torch.equal(found[False, "everyone"], first)
    assert torch.equal(found[False, "everyone"], found[True, "frozen_teachers"])
    assert cfd().program[0] == "reset" and cfd(reset=False).program[0] == "distil_clients"


# RHFL


def test_rhfl_believes_clean_labels_more() -> None:
    annotate = rhfl().annotate
    assert annotate is not None
    labels = torch.arange(12) % 3
    logits = 6.0 * torch.nn.functional.one_hot(labels, 3)
    trusts = [
        annotate(view_of(believed, logits), Echo(), torch.zeros(5, 3), stream())[1]
        for believed in (labels, labels.roll(1))
    ]
    assert float(trusts[0][0]) > 10 * float(trusts[1][0]) > 0


def test_rhfl_leaves_a_client_out_of_its_own_target() -> None:
    p = torch.rand(3, 2, 4, generator=stream(5))
    z = predictions(p, "logits", trust=torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]]))
    found = consensus(rhfl(), z).result
    soft = p.softmax(-1)
    torch.testing.assert_close(found.scores[0], (3 * soft[1] + soft[2]) / 4)


# FedKD over another domain


def test_noise_is_released_bounded_to_the_simplex_and_drawn_from_the_seed() -> None:
    z = predictions(3 * torch.randn(1, 50, 4, generator=stream(6)), "logits")
    noisy, plain = fedkd_cross_domain(noise=0.2).upload, fedkd_cross_domain().upload
    one, two = (noisy.apply(noisy.init(Shape(1, 50, 4)), z, stream(s)).result for s in (1, 1))
    assert torch.equal(one.scores, two.scores) and bool((one.scores > 0).all())
    torch.testing.assert_close(one.scores.sum(-1), torch.ones(1, 50))
    clean = plain.apply(plain.init(Shape(1, 50, 4)), z, stream()).result.scores
    torch.testing.assert_close(clean, z.scores.softmax(-1))
    moved = (one.scores - clean).abs().mean()
    assert 0.05 < float(moved) < 0.3
    assert [dict(r.parameters) for r in noisy.releases] == [{"std": 0.2}]


# what a method is worth


def local_and_found(run: Path) -> Iterator[tuple[str, float, float]]:
    """Local training, and what the method makes of it: (what, local, method)."""
    last = small.records(run)[-1]
    teachers = last["teachers"]["test"]
    if (run / "yardsticks.json").exists():
        alone = json.loads((run / "yardsticks.json").read_text())["local"]["test"][-1]
    else:
        alone = teachers  # frozen: they learn alone
    local = sum(alone) / len(alone)
    if last["student"] is not None:
        yield "student", local, last["student"]["test"]
    else:
        yield "clients", local, sum(teachers) / len(teachers)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_METHODS)
def test_a_method_beats_local_training_or_the_page_says_why_not(name: str, tmp_path: Path) -> None:
    chosen = resolve(
        load_config(name, ["execution.runtime=local", "evaluation.pooled=false",
                           "evaluation.labels=false"])
    )  # fmt: skip
    small.run(chosen, tmp_path)
    for what, local, found in local_and_found(tmp_path):
        assert (found > local) == (name not in NO_BETTER), f"{what}: {found} against {local}"


def test_the_page_lists_every_method_and_gives_reasons_for_exceptions() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = set(re.findall(r"(?m)^\| `(\w+)` \|", text))
    assert set(OF_METHODS) <= table
    for name in NO_BETTER:
        assert re.search(rf"(?m)^- \*\*`{name}`\*\*", text), name
