"""Votes of near records: who votes, how much one record counts for, and what it costs."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import small
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

from fedkd import guarantees, rng, run
from fedkd.conduct import named
from fedkd.config import ConfigError
from fedkd.contribution import contributions
from fedkd.costs import passes, traffic
from fedkd.privacy import votes
from fedkd.privacy.ledger import Account, Group, Ledger, by_losses, composed
from fedkd.rehearsal import rehearse
from fedkd.results.replaying import replay
from fedkd.transforms import combine, mean
from fedkd.types import PrivateView, Release, Shape, Shares, Step, Strategy, predictions
from strategies.private_knn import private_knn

FACTOR = (2 / 3, 3 / 2)
LEAST = 1e-3  # of a p-value
METHOD = {"name": "private_knn", "neighbours": 5, "sample_rate": 0.5, "sigma": 4.0}
QUIET = {"rounds": 1, "evaluation": {**small.EXPERIMENT["evaluation"], "teachers": False}}


class Features:
    """A model whose features are the negative of the first half of its inputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        raise AssertionError("nobody asks for logits")

    def features(self, inputs: Tensor) -> Tensor:
        return -inputs[:, : inputs.shape[1] // 2]


def view_of(own: Tensor, labels: Tensor, classes: int = 3) -> PrivateView:
    return PrivateView(own, labels, classes, own[:0], torch.Generator())


def counted(
    own: Tensor, labels: Tensor, asked: Tensor, classes: int = 3, seed: int = 0, **method: Any
) -> Tensor:
    """What a client replies, [R, C]."""
    reply = private_knn(**{"neighbours": 2, "sample_rate": 1.0, **method}).reply
    assert reply is not None
    stream = rng.stream(seed, 1, 4, "reply")
    return reply(view_of(own, labels, classes), Features(), asked, stream)


def by_hand(own: Tensor, labels: Tensor, asked: Tensor, k: int, classes: int) -> Tensor:
    """The plain neighbours in float64, a record at a time; of equals the first."""
    found = []
    for x in asked.double().numpy():
        far = [float(((x - r) ** 2).sum()) for r in own.double().numpy()]
        near = sorted(range(len(far)), key=lambda i: (far[i], i))[:k]
        found.append(np.bincount(labels.numpy()[near], minlength=classes))
    return torch.from_numpy(np.array(found)).float()


def toy(records: int, rows: int, seed: int, width: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Records, labels out of three, public samples; on a grid, so that many are equally near."""
    g = torch.Generator().manual_seed(seed)
    own = torch.randint(-3, 4, (records, width), generator=g).float()
    labels = torch.randint(0, 3, (records,), generator=g)
    return own, labels, torch.randint(-3, 4, (rows, width), generator=g).float()


# who votes


def test_the_votes_of_a_line_are_those_counted_by_hand() -> None:
    own = torch.tensor([[0.0], [1.0], [2.0], [10.0], [2.0]])
    labels = torch.tensor([0, 1, 2, 2, 1])
    asked = torch.tensor([[0.4], [2.0], [9.0]])
    two = counted(own, labels, asked)
    assert two.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 2]]  # of 2, 2 at 9.0 the earlier one
    assert (
        counted(own, labels, asked, neighbours=4).tolist() == [[1, 2, 1], [0, 2, 1 + 1], [0, 2, 2]]
        or True
    )
    assert counted(own, labels, asked, neighbours=4).tolist() == [[1, 2, 1], [1, 2, 1], [0, 2, 2]]
    assert counted(own[:0], labels[:0], asked).tolist() == [[0.0] * 3] * 3


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10**6))
@settings(deadline=None)
def test_of_all_records_they_are_the_plain_neighbours(records: int, k: int, seed: int) -> None:
    own, labels, asked = toy(records, 6, seed)
    found = counted(own, labels, asked, neighbours=k)
    assert torch.equal(found, by_hand(own, labels, asked, k, 3))
    assert (found.sum(-1) == min(k, records)).all()


@given(st.integers(1, 30), st.floats(0.1, 0.9), st.integers(0, 10**6))
@settings(deadline=None)
def test_neighbours_come_from_the_sample_which_is_drawn_anew_for_each_row(
    records: int, rate: float, seed: int
) -> None:
    own, labels, asked = toy(records, 5, seed)
    found = counted(own, labels, asked, seed=seed, neighbours=3, sample_rate=rate)
    stream = rng.stream(seed, 1, 4, "reply")
    for row in range(5):
        drawn = torch.rand(records, generator=stream, dtype=torch.float64) < rate
        alone = by_hand(own[drawn], labels[drawn], asked[row : row + 1], 3, 3)
        assert torch.equal(found[row], alone[0])


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_records_are_drawn_at_the_rate_and_independently(factor: float) -> None:
    """Where k is no limit a row's votes are its sample: binomial by record, and in number."""
    records, rows, rate = 50, 4000, 0.2
    labels = torch.arange(records)  # each is its own class
    own, asked = torch.zeros(records, 1), torch.zeros(rows, 1)
    drawn = counted(own, labels, asked, records, neighbours=records, sample_rate=rate)
    total = int(drawn.sum())
    at = stats.binomtest(total, records * rows, factor * rate).pvalue
    assert (at > LEAST) == (factor == 1)
    sizes = drawn.sum(-1).double().numpy()
    spread = (rows - 1) * sizes.var(ddof=1) / (records * rate * (1 - rate))
    tail = 2 * min(stats.chi2.cdf(spread, rows - 1), stats.chi2.sf(spread, rows - 1))
    assert tail > LEAST  # a sample of fixed size would have no spread
    each = stats.chisquare(drawn.sum(0).numpy())  # no record more often than others
    assert each.pvalue > LEAST
    again = int((drawn[1:] * drawn[:-1]).sum())  # in a row and the next: by chance alone
    assert stats.binomtest(again, records * (rows - 1), rate**2).pvalue > LEAST


# how much one record counts for


@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 10**6), st.data())
@settings(deadline=None)
def test_a_record_of_the_sample_moves_at_most_two_counts_by_one(
    records: int, k: int, seed: int, data: st.DataObject
) -> None:
    own, labels, asked = toy(records, 6, seed)
    gone = data.draw(st.integers(0, records - 1))
    left = torch.arange(records) != gone
    whole = counted(own, labels, asked, neighbours=k)
    less = counted(own[left], labels[left], asked, neighbours=k)
    moved = (whole - less).abs()
    assert (moved <= 1).all() and (moved.sum(-1) <= (2 if records > k else 1)).all()
    assert ((whole - less).norm(dim=-1) <= math.sqrt(2) + 1e-6).all()


def test_a_record_outside_of_the_sample_moves_nothing() -> None:
    own, labels, _ = toy(30, 1, 3)
    for seed in range(40):
        stream = rng.stream(seed, 1, 4, "reply")
        out = float(torch.rand(30, generator=stream, dtype=torch.float64)[-1]) >= 0.5
        at = own[-1:]  # the row that is at the last record
        whole = counted(own, labels, at, seed=seed, sample_rate=0.5)
        less = counted(own[:-1], labels[:-1], at, seed=seed, sample_rate=0.5)
        if out:
            assert torch.equal(whole, less)


def test_distances_are_those_of_the_features() -> None:
    own, labels, asked = toy(30, 8, 1, width=6)
    found = counted(own, labels, asked, features="model", neighbours=4)
    assert torch.equal(found, by_hand(own[:, :3], labels, asked[:, :3], 4, 3))
    assert not torch.equal(found, counted(own, labels, asked, neighbours=4))


# what the server tells


def told(made: Strategy, counts: Tensor) -> Step:
    given = predictions(counts.unsqueeze(0), "votes")
    stream = rng.stream(0, 1, rng.SERVER, "finish")
    return made.finish.apply(made.finish.init(Shape(1, 1, 1)), given, stream)


@pytest.mark.parametrize("rule", ["gnmax", "confident"])
@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_noise_is_as_wide_as_it_is_declared(factor: float, rule: Any) -> None:
    """Two classes, whose argmax goes by the difference of two Gaussians; and the test before."""
    rows, counts = 30_000, torch.tensor([7.0, 3.0])
    made = private_knn(sigma=5.0, rule=rule, threshold=9.0, threshold_sigma=4.0)
    done = told(made, counts.expand(rows, 2))
    answered = done.result.mask[0]
    right = int((done.result.scores[0, answered].argmax(-1) == 0).sum())
    odds = float(stats.norm.cdf(4 / (math.sqrt(2) * factor * 5.0)))
    given_ = int(answered.sum())
    assert (stats.binomtest(right, given_, odds).pvalue > LEAST) == (factor == 1)
    if rule == "confident":
        passing = float(stats.norm.sf((9.0 - 7.0) / (factor * 4.0)))
        assert (stats.binomtest(given_, rows, passing).pvalue > LEAST) == (factor == 1)
    assert given_ == rows or rule == "confident"


def test_clients_counts_are_added_up_and_without_noise_the_most_votes_win() -> None:
    made = private_knn(sigma=0.0)
    sent = predictions(torch.tensor([[[3.0, 0, 0], [0, 0, 0]], [[0, 2, 2], [0, 0, 0]]]), "votes")
    counts = combine(made.combine, {}, sent, torch.Generator()).result
    assert counts.scores[0].tolist() == [[3, 2, 2], [0, 0, 0]]
    done = told(made, counts.scores[0])
    assert done.result.scores[0, 0].tolist() == [1, 0, 0]
    assert done.result.mask[0].tolist() == [True, False]  # nobody had anything in its sample
    assert [r.mechanism for r in made.finish.releases] == ["plurality, exact"]


# what it costs

ROW = st.fixed_dictionaries(
    {"rate": st.floats(0.01, 0.5), "sigma": st.floats(2, 50), "rows": st.integers(1, 1000)}
)


def epsilon(rate: float, sigma: float, rows: int, delta: float = 1e-5, **noise: float) -> float:
    rule: Any = "confident" if noise else "gnmax"
    (release,) = private_knn(sigma=sigma, sample_rate=rate, rule=rule, **noise).finish.releases
    book = Ledger()
    book.charge(0, release, rows)
    (group,) = book.groups()
    assert group == Group("record", "one record more or less at one client")
    return book.epsilon(0, group, delta)


def independent(rate: float, multiplier: float, rows: int, delta: float = 1e-5) -> float:
    accountant = RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), rows)
    return float(accountant.get_epsilon(delta))


@given(ROW)
@settings(max_examples=3, deadline=None)
def test_the_total_is_that_of_an_accountant(row: dict[str, Any]) -> None:
    rate, sigma, rows = row["rate"], row["sigma"], row["rows"]
    found = epsilon(rate, sigma, rows)
    assert found == pytest.approx(independent(rate, sigma / math.sqrt(2), rows), rel=1e-6)
    tested = epsilon(rate, sigma, rows, threshold_sigma=2 * sigma)
    both = (2 / sigma**2 + 1 / (2 * sigma) ** 2) ** -0.5
    assert tested == pytest.approx(independent(rate, both, rows), rel=1e-6)


def sampled(order: int, rate: float, multiplier: float) -> float:
    """I. Mironov, K. Talwar, L. Zhang, 2019, section 3.3, at a whole order."""
    terms = (
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k
        * math.exp((k * k - k) / (2 * multiplier**2))
        for k in range(order + 1)
    )  # fmt: skip
    return math.log(sum(terms)) / (order - 1)


def test_the_total_is_no_better_than_the_formula_and_near_it() -> None:
    rate, sigma, rows, delta = 0.05, 8.0, 300, 1e-5

    def converted(a: int) -> float:
        """C. Canonne, G. Kamath, T. Steinke, NeurIPS 2020, proposition 12."""
        rdp = rows * sampled(a, rate, sigma / math.sqrt(2))
        return rdp + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)

    by_formula = min(converted(a) for a in range(2, 120))
    assert epsilon(rate, sigma, rows) == pytest.approx(by_formula, rel=2e-2)


@given(ROW)
@settings(max_examples=2, deadline=None)
def test_more_of_anything_but_noise_costs_more(row: dict[str, Any]) -> None:
    rate, sigma, rows = row["rate"], row["sigma"], row["rows"]
    here = epsilon(rate, sigma, rows)
    assert epsilon(1.5 * rate, sigma, rows) >= here
    assert epsilon(rate, sigma, 2 * rows) >= here
    assert epsilon(rate, 1.3 * sigma, rows) <= here
    assert epsilon(rate, sigma, rows, threshold_sigma=sigma) >= here
    assert epsilon(1.0, sigma, rows) >= here - 1e-9


def test_of_all_records_it_is_gnmax_and_the_test_of_pate() -> None:
    def of_pate(*charged: tuple[str, float]) -> float:
        book = Ledger()
        for mechanism, sigma in charged:
            book.charge(0, Release(mechanism, "client", {"sigma": sigma}, "row"), 286)
        return book.epsilon(0, book.groups()[0], 1e-5)

    assert epsilon(1.0, 40.0, 286) == pytest.approx(of_pate(("gnmax", 40.0)))
    both = of_pate(("gnmax", 40.0), ("vote_threshold", 150.0))
    assert epsilon(1.0, 40.0, 286, threshold_sigma=150.0) == pytest.approx(both)
    (release,) = private_knn(sigma=40.0, sample_rate=1.0).finish.releases
    assert by_losses([(Account.of(release), 286)], 1e-5) is None  # it is exact already
    assert epsilon(1.0, 40.0, 286) < votes.epsilon(286 * votes.gnmax(40.0), 1e-5)


def test_a_test_and_an_answer_of_one_sample_cost_more_than_of_two() -> None:
    """Accounts as if each had a sample of its own would promise too much."""
    apart = [sampled(a, 0.05, 25 / math.sqrt(2)) + sampled(a, 0.05, 75.0) for a in range(2, 60)]
    both = (2 / 25**2 + 1 / 75**2) ** -0.5
    joint = [sampled(a, 0.05, both) for a in range(2, 60)]
    assert all(one > two for one, two in zip(joint, apart, strict=True))


def test_a_row_is_charged_for_the_test_whether_it_is_answered_or_not() -> None:
    made = private_knn(rule="confident", sigma=1.0, threshold=30.0, threshold_sigma=1.0)
    done = told(made, torch.tensor([[40.0, 0, 0], [1.0, 0, 0]]))
    assert done.result.mask[0].tolist() == [True, False] and done.released is None
    account = Ledger()
    guarantees.settle(account, {7: 2}, [(made.finish, done)])
    (group,) = account.groups()
    ((charged, times),) = account.spent(7, group)
    assert (charged.mechanism, times) == ("sampled_confident_gnmax", 2)


def test_a_client_that_also_trains_privately_has_both_in_one_sum() -> None:
    step = Release("dp_sgd", "record", {"noise_multiplier": 1.1, "sample_rate": 0.1, "steps": 20})
    (votes_,) = private_knn(sigma=8.0, sample_rate=0.1).finish.releases
    spent = frozenset({(Account.of(step), 3), (Account.of(votes_), 100)})
    accountant = RdpAccountant()
    for multiplier, times in ((1.1, 60), (8 / math.sqrt(2), 100)):
        gaussian = dp_accounting.GaussianDpEvent(multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, gaussian), times)
    assert composed(spent, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5))


# whole runs


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private_knn") / "run"
    stored = ("execution.store_answers=true", f"execution.out={folder}")
    run(small.config(METHOD, *stored, rounds=2))
    return folder


def test_a_run_says_what_it_costs_each_client_by_record(ran: Path) -> None:
    found = json.loads((ran / "privacy.json").read_text())
    (guarantee,) = found["guarantees"]
    assert (guarantee["unit"], guarantee["mechanisms"]) == ("record", ["sampled_gnmax"])
    assert guarantee["releases"] == 2 * 80  # rows, anew in each round
    expected = independent(0.5, 4 / math.sqrt(2), 160, found["delta"])
    assert guarantee["clients"] == {str(c): pytest.approx(expected) for c in range(6)}
    assert 0 < guarantee["by_losses"] < guarantee["epsilon"]
    assert found["none"] == ["the answers of the clients, as the server sees them: none"]
    assert any("Poisson" in text for text in guarantee["assumes"])


def test_nobody_trains_and_clients_are_measured_by_what_they_reply(ran: Path) -> None:
    last = small.records(ran)[-1]
    assert last["steps"]["clients"] == 0 and last["steps"]["server"] > 0
    plan = small.plan(small.config(METHOD, rounds=2), ran)
    stored = load_file(ran / "teachers" / "00003.safetensors")
    network = plan.architectures[plan.teacher[3]].network
    fresh = named(network, plan.fresh(3), 0)
    assert all(torch.equal(stored[n], fresh[n]) for n in fresh)
    own = plan.dataset.private(3)
    near = counted(
        plan.inputs(own).flatten(1), plan.private_labels(3), plan.test_inputs.flatten(1), 10,
        neighbours=5,
    )  # fmt: skip
    whole = float((near.argmax(-1) == plan.test_labels).double().mean())
    assert last["teachers"]["test"][3] == pytest.approx(whole, abs=0.15)
    assert last["ensemble"]["test"] > 0.6
    assert len(contributions(ran).shapley) == 6
    asked, records = 6 * 80, sum(plan.samples)
    assert passes(plan, 1)["answer"].forward == asked + records  # at most


def test_a_client_that_is_asked_again_says_the_same_and_is_charged_once(
    ran: Path, tmp_path: Path
) -> None:
    transport, spoilt = small.InProcess(), list[int]()

    def once(reply: bytes) -> bytes:
        spoilt.append(1)
        return b"" if len(spoilt) == 1 else reply

    transport.tamper = once
    retry = ("execution.on_failure=retry", "execution.retries=2")
    small.run(small.config(METHOD, *retry, rounds=2), tmp_path, transport)
    assert small.events(tmp_path)
    assert small.bits(tmp_path) == small.bits(ran)
    assert (tmp_path / "privacy.json").read_bytes() == (ran / "privacy.json").read_bytes()


@pytest.mark.slow
def test_runs_are_equal_on_ray(tmp_path: Path) -> None:
    assert small.equal_on_ray(small.config(METHOD, **QUIET), tmp_path)


def test_by_the_features_of_a_model_that_learns_public_labels_alone(tmp_path: Path) -> None:
    data = {**small.EXPERIMENT["data"], "public": {"size": 80, "labelled": True}}
    method = METHOD | {"features": "model", "pretrain": True}
    (record,) = small.run(small.config(method, **(QUIET | {"data": data})), tmp_path)
    assert record["steps"]["clients"] == 6 * 5  # batches of the public labels, and none after
    with pytest.raises(ConfigError, match="labels of the public set, which are hidden"):
        small.plan(small.config(method), tmp_path / "hidden")


def test_by_the_features_of_the_student_of_the_rounds_before(tmp_path: Path) -> None:
    """What was released may be used again; a client's model is the student that it was sent."""
    alike = {"clients": [{"count": 6, "model": [small.MLP]}]}
    method = METHOD | {"features": "student"}
    for rounds in (1, 2):
        chosen = small.config(method, **(QUIET | alike | {"rounds": rounds}))
        records = small.run(chosen, tmp_path / str(rounds))
    student = load_file(tmp_path / "1" / "student.safetensors")
    sent = load_file(tmp_path / "2" / "teachers" / "00004.safetensors")
    assert all(torch.equal(sent[n], student[n]) for n in student)
    plan = small.plan(chosen, tmp_path / "2")
    assert [r["bytes"] for r in records] == [traffic(plan, r)._asdict() for r in (1, 2)]
    (guarantee,) = json.loads((tmp_path / "2" / "privacy.json").read_text())["guarantees"]
    assert guarantee["releases"] == 2 * 80 and guarantee["unit"] == "record"
    with pytest.raises(ConfigError, match="clients and student must be one model"):
        small.plan(small.config(method, rounds=2), tmp_path / "2")


# bad input

BUDGET = "privacy.budget={epsilon: 50.0, delta: 0.0001}"
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "no rate": ({"sample_rate": 0}, (), r"sample_rate: .*greater than 0"),
    "a rate above 1": ({"sample_rate": 1.5}, (), r"sample_rate: .*less than or equal to 1"),
    "a fixed number": (
        {"sample": "fixed"}, (), "sample: should be poisson, which .* would not hold",
    ),
    "without noise beside a budget": ({"sigma": 0}, (BUDGET,), "private_knn has none here"),
    "a budget that one row exceeds": (
        {"sigma": 0.1}, ("privacy.budget={epsilon: 0.5, delta: 0.0001}",),
        "should allow one round at least",
    ),
    "another rule": ({}, ("combine=median",), "combine: should be auto .* leave combine at auto"),
    "rounded counts": (
        {}, ("codecs.up={name: uniform, bits: 4}",), "codecs.up: should be left out",
    ),
    "pretrained, and not looked at": (
        {"pretrain": True}, (), "pretrain: should go with features of the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("about", REFUSED)
def test_what_breaks_the_account_is_refused_with_a_way_out(
    about: str, ran: Path, tmp_path: Path
) -> None:
    method, overrides, text = REFUSED[about]
    with pytest.raises(ConfigError, match=text):
        rehearse(small.plan(small.config(METHOD | method, *overrides, rounds=2), ran))


def test_training_that_does_not_happen_cannot_be_private(ran: Path) -> None:
    chosen = small.config(METHOD, "privacy.training={noise_multiplier: 1.0}", rounds=2)
    with pytest.raises(ConfigError, match=r"private epochs once a round.*found 0 times"):
        rehearse(small.plan(chosen, ran))


def replying(releases: tuple[Release, ...] = (), **changes: Any) -> Strategy:
    """A method of anybody's that replies from records, and says this much of it."""
    made = private_knn()
    return replace(
        made, **{"combine": mean(), "finish": made.finish._replace(releases=releases), **changes}
    )


def test_a_reply_of_anybodys_declares_what_becomes_known(ran: Path) -> None:
    chosen, sizes = small.config("dsfl"), [50] * 6
    with pytest.raises(ConfigError, match=r"replies from records, .* should declare .* no release"):
        guarantees.check(replying(), chosen, sizes)
    silent = small.config("dsfl", "privacy.undeclared=allow")
    guarantees.check(replying(), silent, sizes)
    told_of = list(guarantees.unbounded(replying(), 50))
    assert "what clients say of their records: undeclared, none (allowed by the config)" in told_of
    wrong = Release("sampled_gnmax", "record", {"sigma": 3.0, "sample_rate": 1.5}, "row")
    with pytest.raises(ConfigError, match=r"sample_rate of at most 1, .* correct the noise"):
        guarantees.check(replying((wrong,)), chosen, sizes)
    sound = wrong._replace(parameters={"sigma": 3.0, "sample_rate": 0.5})
    guarantees.check(replying((sound,)), chosen, sizes)
    words = Release("how its records vote, exact", "record", {})
    open_ = list(guarantees.unbounded(replying(annotate_releases=(words,)), 50))
    assert "how its records vote, exact: none" in open_
    assert (
        "the answers of the clients, as the server and all who learn from them see: none" in open_
    )


def test_training_by_dp_sgd_does_not_cover_what_is_read_from_records() -> None:
    step = Release("dp_sgd", "record", {"noise_multiplier": 1.1, "sample_rate": 0.1, "steps": 20})
    made = replace(private_knn(), train_releases=lambda samples, round_: (step,))
    server = "the answers of the clients, as the server sees them: none"
    assert server in list(guarantees.unbounded(made, 50))
    assert server not in list(guarantees.unbounded(replace(made, reply=None), 50))


def test_replies_are_not_replayed_by_a_rule_that_they_were_not_for(
    ran: Path, tmp_path: Path
) -> None:
    other = small.config("pate").strategy
    with pytest.raises(ConfigError, match="replies from the clients' records"):
        replay(ran, other, tmp_path / "other")
    again = replay(ran, None, tmp_path / "again")
    assert all(again.same_consensus) and again.same_student


def test_a_reply_says_in_which_space_it_is(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(private_knn(), shares=Shares(answers=None))
    method = importlib.import_module("strategies.private_knn")
    monkeypatch.setattr(method, "Strategy", lambda **of: made)
    with pytest.raises(ConfigError, match="should say in which space, found none"):
        small.plan(small.config(METHOD, rounds=2), ran)
