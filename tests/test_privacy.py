"""Noise as it is drawn, the ledger against accounts by hand, budgets, resumes, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import resuming
import small
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedkd
from fedkd import guarantees, rng
from fedkd.__main__ import main
from fedkd.config import ConfigError, load_config
from fedkd.mechanisms import Mechanism, _onto_simplex, gaussian, laplace, randomised_response
from fedkd.offers import offers
from fedkd.privacy import calibration
from fedkd.privacy.ledger import KINDS, About, BudgetSpent, Group, Ledger, by_losses
from fedkd.rehearsal import rehearse
from fedkd.results.archive import Stored, path_of
from fedkd.types import Predictions, PrivateView, Release, Strategy, predictions
from strategies.fedaux import fedaux

QUIET = {"evaluation": {**small.EXPERIMENT["evaluation"], "teachers": False, "disagreement": False}}
NOISY = "privacy.answers={name: gaussian, sigma: 2.0}"
FACTOR = (2 / 3, 3 / 2)
LEAST = 1e-3  # of a p-value


def answers(scores: torch.Tensor, space: Any = "logits") -> Predictions:
    return predictions(scores.unsqueeze(0), space)


def told(mechanism: Mechanism, scores: torch.Tensor, space: Any, seed: int = 0) -> torch.Tensor:
    """What a client says, through the step as it is applied in a run."""
    stream = rng.stream(seed, 1, 3, "upload")
    return mechanism.step.apply({}, answers(scores, space), stream).result.scores[0]


def fits_gaussian(values: torch.Tensor, sigma: float) -> bool:
    """Chi-square of the variance, two-sided, and Kolmogorov-Smirnov of the shape."""
    x = values.double().flatten().numpy()
    statistic = float((x**2).sum()) / sigma**2
    tail = min(stats.chi2.cdf(statistic, len(x)), stats.chi2.sf(statistic, len(x)))
    return bool(min(2 * tail, stats.kstest(x, "norm", args=(0, sigma)).pvalue) > LEAST)


def fits_laplace(values: torch.Tensor, scale: float) -> bool:
    x = values.double().flatten().numpy()
    return bool(stats.kstest(x, "laplace", args=(0, scale)).pvalue > LEAST)


# calibration


def test_the_noise_of_a_guarantee_is_the_least_that_has_it() -> None:
    for epsilon in (0.1, 1.0, 8.0):
        for delta in (1e-6, 1e-3):
            sigma = calibration.gaussian_sigma(epsilon, delta, 2.0)
            assert calibration.gaussian_delta(epsilon, sigma, 2.0) == pytest.approx(delta, rel=1e-9)
            assert calibration.gaussian_epsilon(delta, sigma, 2.0) == pytest.approx(epsilon)
            if epsilon < 1:  # the classical bound holds there, and is wider
                assert sigma < 2.0 * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@given(st.floats(0.01, 5), st.floats(0.3, 20))
@settings(deadline=None)
def test_delta_is_that_of_the_definition(epsilon: float, sigma: float) -> None:
    """sup over events of P(A) - e^eps P'(A), integrated over where the ratio of densities is."""
    from scipy.integrate import quad

    def gap(x: float) -> float:
        one, other = stats.norm.pdf(x, 1, sigma), stats.norm.pdf(x, 0, sigma)
        return max(0.0, one - math.exp(epsilon) * other)

    edge = sigma**2 * epsilon + 0.5  # where the densities have the ratio e^epsilon
    by_hand, _ = quad(gap, edge, max(edge, 1) + 40 * sigma, limit=200)
    assert calibration.gaussian_delta(epsilon, sigma, 1.0) == pytest.approx(by_hand, abs=1e-7)


def test_randomised_response_has_the_odds_of_the_sheet() -> None:
    kept, other = calibration.response_odds(1.0, 10)
    assert (kept, other) == pytest.approx((0.23197, 0.08534), abs=5e-6)
    assert kept / other == pytest.approx(math.e)


def test_noise_free_claims_are_those_of_the_sheet() -> None:
    found = [calibration.nfdp(n, k, r) for n, k in ((1000, 100), (60, 30)) for r in (True, False)]
    wanted = [(0.0999, 0.0952), (0.1052, 0.1000), (0.496, 0.396), (0.677, 0.5)]
    for (epsilon, delta), (e, d) in zip(found, wanted, strict=True):
        assert (epsilon, delta) == pytest.approx((e, d), abs=1e-3)


# the steps


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_noise_is_as_wide_as_it_is_declared_and_no_other(factor: float) -> None:
    zeros = torch.zeros(400, 10)
    wide = gaussian("logits", 10, epsilon=1.0, clip=2.0)
    (release,) = wide.step.releases
    assert release.parameters["sensitivity"] == pytest.approx(4 * math.sqrt(10))
    drawn = told(wide, zeros, "logits")
    assert fits_gaussian(drawn, factor * release.parameters["sigma"]) == (factor == 1)
    flat = laplace("logits", 10, epsilon=1.0, clip=2.0)
    (release,) = flat.step.releases
    assert release.parameters == {"scale": 40.0, "sensitivity": 40.0}
    assert fits_laplace(told(flat, zeros, "logits"), factor * 40.0) == (factor == 1)


def test_L1_noise_comes_after_clipping_never_before() -> None:
    far = torch.tensor([[1e6, -1e6, 0.0]]).repeat(3000, 1)
    for mechanism in (
        gaussian("logits", 3, sigma=1.0, clip=2.0), laplace("logits", 3, scale=1.0, clip=2.0)
    ):  # fmt: skip
        noise = told(mechanism, far, "logits") - torch.tensor([2.0, -2.0, 0.0])
        assert bool((noise.amax(0) > 3).all()) and bool((noise.amin(0) < -3).all())
        assert noise.mean(0).abs().max() < 0.15
    short = gaussian("logits", 3, sigma=1e-6, clip=2.0, norm="vector")
    assert told(short, far, "logits").norm(dim=-1) == pytest.approx(2.0, abs=1e-4)
    assert short.step.releases[0].parameters["sensitivity"] == 4.0


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
@settings(deadline=None)
def test_L2_the_projection_gives_the_nearest_probabilities(scores: list[float]) -> None:
    x = torch.tensor(scores, dtype=torch.float64)
    found = _onto_simplex(x)
    assert found.min() >= 0 and float(found.sum()) == pytest.approx(1)
    others = torch.distributions.Dirichlet(torch.ones(len(x))).sample((50,)).double()
    others = torch.cat([others, torch.eye(len(x), dtype=torch.float64)])
    assert (x - found).norm() <= (x - others).norm(dim=-1).min() + 1e-6


@pytest.mark.parametrize("size", [3.0, 1e9, 1e30])
def test_L2_noisy_probabilities_are_probabilities(size: float) -> None:
    probs = torch.softmax(torch.randn(50, 6), -1)
    for mechanism in (gaussian("probs", 6, sigma=size), laplace("probs", 6, scale=size)):
        said = told(mechanism, probs, "probs")
        assert said.min() >= 0 and said.sum(-1) == pytest.approx(1, abs=1e-5)


def test_L2_what_makes_up_for_randomised_response_gives_probabilities() -> None:
    """Also of a mean that no true answers have, such as one class alone."""
    mechanism, one = randomised_response("probs", 4, 1.0), answers(torch.eye(4), "probs")
    stream = rng.stream(0, 1, rng.SERVER, "finish")
    assert torch.equal(mechanism.correct.apply({}, one, stream).result.scores[0], torch.eye(4))


def test_L3_without_need_for_privacy_answers_are_as_they_were() -> None:
    probs = torch.softmax(torch.randn(50, 6), -1)
    assert torch.allclose(told(gaussian("probs", 6, epsilon=1e9), probs, "probs"), probs, atol=1e-3)
    assert torch.allclose(told(laplace("probs", 6, epsilon=1e6), probs, "probs"), probs, atol=1e-3)
    said = told(randomised_response("probs", 6, epsilon=50.0), probs, "probs")
    assert torch.equal(said.argmax(-1), probs.argmax(-1))


def test_L4_counts_of_randomised_responses_are_unbiased() -> None:
    epsilon, classes, clients = 1.0, 4, 40_000
    labels = torch.arange(clients) % 10 % classes  # 30 %, 30 %, 20 %, 20 %
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    mechanism = randomised_response("probs", classes, epsilon)
    said = told(mechanism, one_hot, "probs").sum(0)
    kept, other = calibration.response_odds(epsilon, classes)
    for c in range(classes):
        true = float((labels == c).sum())
        found = calibration.unbiased_counts(float(said[c]), clients, epsilon, classes)
        error = math.sqrt(true * kept * (1 - kept) + (clients - true) * other * (1 - other))
        assert abs(found - true) < 4 * error / (kept - other)
    mean = answers((said / clients).unsqueeze(0), "probs")
    undone = mechanism.correct.apply({}, mean, rng.stream(0, 1, rng.SERVER, "finish")).result
    assert undone.scores[0, 0] == pytest.approx([0.3, 0.3, 0.2, 0.2], abs=0.03)
    share = float((told(mechanism, one_hot, "probs").argmax(-1) == labels).double().mean())
    assert share == pytest.approx(kept, abs=0.01)


def test_L5_what_is_protected_is_named_and_is_no_training_record() -> None:
    for made in (
        gaussian("probs", 5, sigma=1.0), laplace("probs", 5, scale=1.0),
        randomised_response("votes", 5, 1.0),
    ):  # fmt: skip
        (release,) = made.step.releases
        assert (release.unit, release.per) == ("prediction", "row")
    assert any("not training records" in text for text in _about("gaussian").assumes)


def _about(name: str) -> About:
    return KINDS[name].about["prediction"]


# the ledger


def test_totals_are_those_of_an_account_by_hand() -> None:
    """Renyi divergences of Gaussian and Laplace noise, summed and converted here."""
    book, delta = Ledger(), 1e-5
    book.charge(0, Release("gaussian", "prediction", {"sigma": 6.0, "sensitivity": 2.0}, "row"), 7)
    book.charge(0, Release("laplace", "prediction", {"scale": 30.0, "sensitivity": 2.0}, "row"), 9)
    book.charge(0, Release("randomised_response", "prediction", {"epsilon": 0.1}), 4)

    def laplacian(a: float, b: float) -> float:
        """Mironov 2017, proposition 6, for L1 sensitivity 1."""
        return math.log(
            a / (2 * a - 1) * math.exp((a - 1) / b) + (a - 1) / (2 * a - 1) * math.exp(-a / b)
        ) / (a - 1)  # fmt: skip

    def converted(a: float) -> float:
        """C. Canonne, G. Kamath, T. Steinke, NeurIPS 2020, proposition 12."""
        rdp = 7 * a / (2 * 3.0**2) + 9 * laplacian(a, 15.0) + 4 * a * 0.1**2 / 2
        return rdp + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)

    (group,) = book.groups()
    by_hand = min(converted(a / 1000) for a in range(1100, 40000))
    assert book.epsilon(0, group, delta) == pytest.approx(by_hand, rel=2e-2)
    assert book.epsilon(0, group, delta) >= by_hand - 1e-9


def test_gaussians_alone_compose_exactly_and_pure_ones_never_worse_than_their_sum() -> None:
    book = Ledger()
    book.charge(0, Release("gaussian", "prediction", {"sigma": 8.0, "sensitivity": 1.0}), 16)
    (group,) = book.groups()
    assert book.epsilon(0, group, 1e-5) == pytest.approx(
        calibration.gaussian_epsilon(1e-5, 2.0, 1.0)
    )
    book = Ledger()
    book.charge(0, Release("laplace", "prediction", {"scale": 1.0, "sensitivity": 1.0}), 2)
    assert book.epsilon(0, group, 1e-12) == pytest.approx(2.0)


def test_loss_distributions_are_tighter_than_renyi_and_above_the_truth() -> None:
    book = Ledger()
    book.charge(0, Release("laplace", "prediction", {"scale": 20.0, "sensitivity": 1.0}), 40)
    (group,) = book.groups()
    found = by_losses(book.spent(0, group), 1e-5)
    assert found is not None
    normal = calibration.gaussian_epsilon(1e-5, 20 / 40**0.5, 1.0)  # in the limit of many
    assert 0.9 * normal < found <= book.epsilon(0, group, 1e-5)


def test_private_training_is_composed_over_rounds() -> None:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    book = Ledger()
    step = Release("dp_sgd", "record", {"noise_multiplier": 1.1, "sample_rate": 0.1, "steps": 20})
    for _ in range(3):
        book.charge(2, step)
    accountant = RdpAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.1)), 60)
    (group,) = book.groups()
    assert group.unit == "record" and book.clients(group) == [2]
    assert book.epsilon(2, group, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5))


def test_a_ledger_survives_being_written_and_keeps_clients_apart() -> None:
    book = Ledger()
    book.charge(11, Release("gaussian", "prediction", {"sigma": 1 / 3, "sensitivity": 2**0.5}), 5)
    book.charge(2, Release("sampling", "record", {"records": 9, "drawn": 3, "replacement": 0},
                           "run"), 5)  # fmt: skip
    book.observe("client", {2.0: 0.1, 3.5: 0.7})
    book.note(["one: none", "another: none", "one: none"])
    again = Ledger.loads(book.dumps())
    assert again == book and again.dumps() == book.dumps()
    assert again.clients(Group("prediction", _about("gaussian").relation)) == [11]
    assert again.unbounded == ("one: none", "another: none")
    ((_, by),) = again.weak()
    assert by == {2: 1}  # once a run, however often it is said


def test_noise_of_a_methods_own_is_about_the_unit_that_it_names() -> None:
    """Counts of records under Laplace noise, beside DP-SGD on the same records; answers apart."""
    book, both = Ledger(), Ledger()
    own = Release("laplace", "record", {"scale": 4.0, "sensitivity": 2.0})
    steps = Release("dp_sgd", "record", {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 20})
    said = Release("laplace", "prediction", {"scale": 4.0, "sensitivity": 2.0})
    for release in (own, said):
        book.charge(0, release, 3)
    for release in (own, said, steps):
        both.charge(0, release, 3)
    units = {group.unit: book.epsilon(0, group, 1e-5) for group in book.groups()}
    assert units == {"record": pytest.approx(1.5), "prediction": pytest.approx(1.5)}
    together = {group.unit: both.epsilon(0, group, 1e-5) for group in both.groups()}
    assert len(both.groups()) == 2 and together["prediction"] == units["prediction"]
    accountant = RdpAccountant()
    dp_sgd = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(dp_sgd, 60).compose(dp_accounting.LaplaceDpEvent(2.0), 3)
    assert together["record"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)


def test_what_is_in_words_guarantees_nothing_and_a_wrong_parameter_is_refused() -> None:
    book = Ledger()
    book.charge(0, Release("number of samples, exact", "record", {}))
    assert not book and not book.groups()
    with pytest.raises(ValueError, match="gaussian should have sigma, sensitivity, found scale"):
        book.charge(0, Release("gaussian", "prediction", {"scale": 1.0}))
    with pytest.raises(ValueError, match=r"unit client, .* found record"):
        book.charge(0, Release("lnmax", "record", {"scale": 1.0}))
    with pytest.raises(ValueError, match="sigma above 0, found 0"):
        book.charge(0, Release("gaussian", "prediction", {"sigma": 0.0, "sensitivity": 1.0}))


# whole runs


def test_a_run_says_what_it_guarantees(tmp_path: Path) -> None:
    chosen = small.config("dsfl", NOISY, **QUIET)
    records = small.run(chosen, tmp_path)
    found = json.loads((tmp_path / "privacy.json").read_text())
    (guarantee,) = found["guarantees"]
    asked = sum(r["rows"]["asked"] for r in records)
    assert (guarantee["unit"], guarantee["releases"]) == ("prediction", asked)
    exact = calibration.gaussian_epsilon(found["delta"], 2.0, (2 * asked) ** 0.5)
    assert guarantee["epsilon"] == pytest.approx(exact)
    assert guarantee["by_losses"] is None  # it is exact already
    assert records[-1]["privacy"]["epsilon"] == {"prediction": guarantee["epsilon"]}
    assert records[0]["privacy"]["epsilon"]["prediction"] < guarantee["epsilon"]
    assert any("training records" in text for text in found["none"])


def test_noise_reaches_the_server_and_what_is_without_says_none(tmp_path: Path) -> None:
    plain = small.run(small.config("dsfl", **QUIET), tmp_path / "plain")
    noisy = small.run(small.config("dsfl", NOISY, **QUIET), tmp_path / "noisy")
    assert plain[0]["entropy"] != noisy[0]["entropy"]
    found = json.loads((tmp_path / "plain" / "privacy.json").read_text())
    assert not found["guarantees"] and found["none"] == [
        "the answers of the clients, as the server and all who learn from them see: none"
    ]
    assert plain[0]["privacy"] == {"epsilon": {}, "spent": []}


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_scores_are_made_of_coefficients_with_the_noise_that_is_declared(factor: float) -> None:
    """The logit of a score is linear in the coefficients, which are found again from it."""
    made, lam = fedaux(noise_multiplier=3.0), 0.01
    seeded = torch.Generator().manual_seed(0)
    own, public = torch.randn(40, 20, generator=seeded), torch.randn(60, 20, generator=seeded)
    (release,) = made.annotate_releases
    assert (release.mechanism, release.unit, release.per) == ("coefficients", "record", "run")
    places = torch.cat([torch.zeros(1, 20), 0.5 * torch.eye(20)])

    def scores(method: Strategy, client: int, round_: int = 1) -> torch.Tensor:
        once = rng.stream(0, rng.SETUP, client, "once")
        view = PrivateView(own, torch.zeros(40), 2, public, once)
        assert method.annotate is not None
        fresh = rng.stream(0, round_, client, "annotate")
        said = method.annotate(view, lambda x: x, places, fresh)  # type: ignore[arg-type]  # no model is asked
        return torch.logit(said[1].double() - 1e-8)

    exact = scores(fedaux(), 0)
    gaps = torch.stack([scores(made, c) - exact for c in range(60)])
    constant = gaps[:, 0] * 2**0.5  # the intercept alone, at the origin
    slopes = (gaps[:, 1:] - gaps[:, :1]) * 2 * 2**0.5
    noise = torch.cat([constant.unsqueeze(1), slopes], 1)
    negatives = 12  # a fifth of the public samples
    sigma = 3.0 * 2 / ((40 + negatives) * lam)
    assert fits_gaussian(noise, factor * sigma) == (factor == 1)
    assert torch.equal(scores(made, 7), scores(made, 7, 2))  # drawn once, for all rounds


@pytest.mark.parametrize("name", ["selective_fd", "fedaux"])
def test_looks_at_private_data_are_told(name: str, tmp_path: Path) -> None:
    made = small.plan(small.config(name), tmp_path)
    assert any("exact: none" in t for t in guarantees.unbounded(made.strategy, 10))


def test_a_budget_stops_the_run_before_it_is_exceeded(tmp_path: Path) -> None:
    def budget(epsilon: float) -> list[str]:
        return [NOISY, f"privacy.budget={{epsilon: {epsilon}, delta: 0.001}}"]

    one = calibration.gaussian_epsilon(1e-3, 2.0, (2 * 80) ** 0.5)
    chosen = small.config("dsfl", *budget(one * 1.1), **QUIET)
    with pytest.raises(BudgetSpent, match=r"round 2 would exceed .* branch with a larger budget"):
        small.run(chosen, tmp_path)
    assert [r["round"] for r in small.records(tmp_path)] == [1]
    (spent,) = json.loads((tmp_path / "privacy.json").read_text())["guarantees"]
    assert spent["epsilon"] == pytest.approx(one)
    assert len(small.run(small.config("dsfl", *budget(one * 2), **QUIET), tmp_path / "more")) == 2


def test_who_has_spent_its_budget_is_left_out(tmp_path: Path) -> None:
    """Some clients miss rounds, so they can be asked once more when others cannot."""
    one = calibration.gaussian_epsilon(1e-3, 2.0, (2 * 80) ** 0.5)
    chosen = small.config(
        "dsfl", NOISY,
        f"privacy.budget={{epsilon: {one * 1.1}, delta: 0.001, when_spent: leave_out}}",
        world={"name": "partial", "fraction": 0.5}, **QUIET,
    )  # fmt: skip
    first, second = small.run(chosen, tmp_path)
    twice = sorted({*first["participants"]} & {*second["participants"]})
    assert second["privacy"]["spent"] == twice
    (found,) = json.loads((tmp_path / "privacy.json").read_text())["guarantees"]
    assert list(found["clients"].values()) == pytest.approx([one] * len(found["clients"]))
    assert sorted(map(int, found["clients"])) == sorted(
        {*first["participants"], *second["participants"]}
    )


def test_killed_and_resumed_the_ledger_is_the_same(tmp_path: Path) -> None:
    chosen = resuming.experiment(
        "fedmd", "privacy.answers={name: laplace, scale: 9, clip: 1.0}",
        "execution.store_answers=true",
    )  # fmt: skip
    whole = resuming.prepared(chosen, tmp_path / "whole")
    calls = resuming.calls_of(whole, lambda: resuming.carried_out(whole))
    commits = [i for i, c in enumerate(calls) if str(c) == "replace commits/000002.json"]
    broken = resuming.prepared(chosen, tmp_path / "broken", like=whole)
    at = resuming.Failpoint(commits[0], "before")  # all of round 2 was let out, and nobody knows
    assert resuming.killed(broken, at, lambda: resuming.carried_out(broken))
    resuming.resumed(broken)
    assert small.bits(broken) == small.bits(whole)
    assert (broken / "privacy.json").read_bytes() == (whole / "privacy.json").read_bytes()
    for path in (whole / "answers").iterdir():  # what was let out again is what was let out before
        assert (broken / "answers" / path.name).read_bytes() == path.read_bytes()


def test_a_branch_has_spent_what_was_spent_before_it(tmp_path: Path) -> None:
    noisy = "privacy.answers={name: gaussian, sigma: 50.0, clip: 1.0}"
    chosen = resuming.experiment("fedmd", noisy, "rounds=2", world="everyone")
    trunk, branch = resuming.prepared(chosen, tmp_path / "trunk"), tmp_path / "branch"
    resuming.carried_out(trunk)
    resuming.resumed(trunk, "rounds=3", "privacy.answers.sigma=80.0", branch=branch)
    before, after = (json.loads((p / "privacy.json").read_text()) for p in (trunk, branch))
    precision = 2 * 80 * 4 * 10 / 50.0**2  # rows of two rounds, 2 sqrt(10) apart, under sigma 50
    for told, spent in ((before, precision), (after, precision + 80 * 4 * 10 / 80.0**2)):
        by_hand = calibration.gaussian_epsilon(told["delta"], spent**-0.5, 1.0)
        assert told["guarantees"][0]["epsilon"] == pytest.approx(by_hand)
    assert small.records(branch)[1] == small.records(trunk)[1]


def test_a_client_that_is_asked_again_is_charged_once_and_says_the_same(tmp_path: Path) -> None:
    """Its first reply is spoilt on the way; noise is drawn from its name, not anew."""
    retry = ("execution.on_failure=retry", "execution.retries=2")
    chosen = small.config("dsfl", NOISY, *retry, **QUIET)
    smooth = small.run(chosen, tmp_path / "smooth")
    transport, spoilt = small.InProcess(), list[int]()

    def once(reply: bytes) -> bytes:
        spoilt.append(1)
        return b"" if len(spoilt) == 1 else reply

    transport.tamper = once
    rough = small.run(chosen, tmp_path / "rough", transport)
    assert rough == smooth and small.events(tmp_path / "rough")
    both = [(tmp_path / n / "privacy.json").read_bytes() for n in ("smooth", "rough")]
    assert both[0] == both[1]


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_codec_makes_of_the_noisy_answer_what_it_can_and_costs_no_privacy(
    kind: str, tmp_path: Path
) -> None:
    """What is coded has been noised already: the ledger is the same, and so is the noise."""
    width = {"gaussian": "sigma: 2.0, clip: 1.0", "laplace": "scale: 9, clip: 1.0"}[kind]
    noisy = [f"privacy.answers={{name: {kind}, {width}}}", "execution.store_answers=true"]
    small.run(small.config("fedmd", *noisy, **QUIET), tmp_path / "plain")
    small.run(small.config("fedmd", *noisy, "codecs.up=fp16", **QUIET), tmp_path / "coded")
    plain, coded = (
        list(Stored(path_of(tmp_path / n / "answers", 1), 2**20).answers())
        for n in ("plain", "coded")
    )
    assert len(plain) == len(coded) == 6
    for exact, heard in zip(plain, coded, strict=True):
        assert torch.equal(heard.scores, exact.scores.half().float())
        assert not torch.equal(heard.scores, exact.scores)
    both = [json.loads((tmp_path / n / "privacy.json").read_text()) for n in ("plain", "coded")]
    assert both[0] == both[1] and both[0]["guarantees"]


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which the budget allows one round of two."""
    home = tmp_path_factory.mktemp("spent")
    epsilon = 1.1 * calibration.gaussian_epsilon(1e-4, 2.0, (2 * 80) ** 0.5)
    budget = f"privacy.budget={{epsilon: {epsilon}, delta: 0.0001}}"
    with pytest.raises(BudgetSpent) as stopped:
        fedkd.run(small.config("dsfl", NOISY, budget, f"execution.out={home / 'run'}", **QUIET))
    (way,) = stopped.value.__notes__  # as it is it would be refused again
    assert way.endswith("run --branch FOLDER privacy.budget.epsilon=MORE")
    assert len(small.records(home / "run")) == 1
    return home / "run"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ["should allow one round at least", "round 2 would exceed for 6 of 6 clients",
              "in a branch of the run (--branch FOLDER)"]),
        (("--branch", "new", "rounds=3"), ["one round at least", "round 2 would exceed"]),
        (
            ("--branch", "new", "privacy.budget.epsilon=0.5"),
            ["privacy.budget.epsilon: should be at least what is spent already", "found 0.5",
             "before round 2; raise it or begin a new run"],
        ),
        (
            ("--branch", "new", "privacy.budget.epsilon=0.5", "rounds=1"),
            ["privacy.budget.epsilon: should be at least what is spent already"],
        ),
        (("privacy.budget.epsilon=900.0",), ["should be gone on with as the experiment"]),
    ],
)  # fmt: skip
def test_what_is_spent_already_is_not_spent_again(
    words: tuple[str, ...], parts: list[str], spent: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(spent.parent)
    before = contents(spent)
    assert main(["simulate", "--resume", "run", "--quiet", *words]) == 2
    err = capsys.readouterr().err
    assert [part for part in parts if part not in err] == [] and "Traceback" not in err
    assert [p.name for p in spent.parent.iterdir()] == ["run"]
    assert contents(spent) == before


def contents(folder: Path) -> dict[Path, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(
    spent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--branch", "more", "privacy.budget.epsilon=900.0", "--quiet"]
    assert main(["simulate", "--resume", str(spent), *more]) == 0
    assert len(small.records(tmp_path / "more")) == 2
    first, both = (json.loads((p / "privacy.json").read_text()) for p in (spent, Path("more")))
    assert both["guarantees"][0]["releases"] == 2 * first["guarantees"][0]["releases"]


# bad input


def test_nothing_but_mechanisms_is_offered_as_one() -> None:
    found = [offer.name for offer in offers("mechanism")]
    assert found == ["gaussian", "laplace", "randomised_response"]


BUDGET = "privacy.budget={epsilon: 50.0, delta: 0.0001}"
REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "delta": (
        "dsfl", (NOISY, "privacy.budget={epsilon: 5.0, delta: 0.01}"),
        r"privacy\.budget\.delta: should be below 1/n for n = 300 private samples, found 0\.01",
    ),
    "no noise, a claim": (
        "dsfl", ("privacy.answers={name: gaussian, epsilon: 1.0, sigma: 0.0}",),
        "sigma above 0, found 0 with a claimed epsilon of 1",
    ),
    "no noise": ("dsfl", ("privacy.answers={name: laplace, scale: 0}",), "scale above 0, found 0"),
    "neither": ("dsfl", ("privacy.answers=gaussian",), "either sigma or epsilon, found neither"),
    "spent": (
        "dsfl", (NOISY, "privacy.budget={epsilon: 0.1, delta: 0.0001}"),
        "should allow one round at least, found epsilon 0.1, which round 1 would exceed for 6 of 6",
    ),
    "nothing bounded": ("dsfl", (BUDGET,), r"privacy\.budget: .* dsfl has none here"),
    "a bound beside open answers": (
        "fedaux", ("strategy={name: fedaux, noise_multiplier: 3.0}", BUDGET),
        "of fedaux it bounds coefficients alone, and the answers of the clients not at all",
    ),
    "unbounded logits": ("fedmd", ("privacy.answers={name: gaussian, sigma: 1}",), "give clip"),
    "clipped probabilities": (
        "dsfl", ("privacy.answers={name: gaussian, sigma: 1, clip: 2}",), "leave clip out",
    ),
    "a rule that is no mean": (
        "dsfl", ("privacy.answers={name: randomised_response, epsilon: 1}", "combine=median"),
        "should go with a rule that is a mean",
    ),
    "odds for all classes": (
        "dsfl",
        ("privacy.answers={name: randomised_response, epsilon: 1}", "world=label_spaces"),
        "answer about all 10 classes, for which its odds are",
    ),
    "lies that are told by all answers": (
        "pate", ("world={name: lying, how: lie}",), "should have no liars who know all answers",
    ),
    "no answers": ("fedavg", (NOISY,), "fedavg that it sends examples, weights beside"),
    "an open annotation": (
        "dsfl", (NOISY, BUDGET, "annotate=data_size"),
        "number of samples, exact in dsfl; leave that out, or set privacy.undeclared to allow",
    ),
    "one teacher": (
        "pate", ("clients=[{count: 1, model: mlp}]",), "should be at least 2, found 1; add clients",
    ),
    "plurality with a budget": (
        "pate", ("strategy={name: pate, sigma: 0}", BUDGET), r"privacy\.budget: .* pate has none",
    ),
    "a weak notion with a budget": ("fedmd_nfdp", (BUDGET,), "fedmd_nfdp has none here"),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("privacy")
    small.plan(small.config("dsfl"), path)
    return path


@pytest.mark.parametrize("about", REFUSED)
def test_what_cannot_hold_is_refused_with_a_way_out(about: str, home: Path, tmp_path: Path) -> None:
    method, overrides, text = REFUSED[about]
    place = tmp_path if "clients" in overrides[0] else home
    with pytest.raises(ConfigError, match=text):
        rehearse(small.plan(small.config(method, *overrides), place))


def test_the_command_line_says_so_in_words(tmp_path: Path) -> None:
    given = load_config(small.EXPERIMENT | {"strategy": "dsfl"}).model_dump(mode="json")
    (tmp_path / "it.yaml").write_text(json.dumps(given))
    said = resuming.command(
        tmp_path, "it.yaml", "--out", "run", NOISY, "privacy.budget={epsilon: 5.0, delta: 0.5}"
    )
    assert said.code == 2 and "below 1/n" in said.err and not (tmp_path / "run").exists()
    one = calibration.gaussian_epsilon(1e-4, 2.0, (2 * 80) ** 0.5)
    said = resuming.command(
        tmp_path, "it.yaml", "--out", "run", "--quiet", NOISY,
        f"privacy.budget={{epsilon: {1.1 * one}, delta: 0.0001}}",
    )  # fmt: skip
    assert said.code == 1 and "round 2 would exceed epsilon" in said.err
    assert (tmp_path / "run" / "privacy.json").is_file()


def test_an_undeclared_look_needs_leave_and_is_told(home: Path) -> None:
    name = "odd_methods:silent"
    with pytest.raises(ConfigError, match="annotates, which looks at private data"):
        small.plan(small.config(name), home)
    made = small.plan(small.config(name, "privacy.undeclared=allow"), home)
    assert any("undeclared, none" in t for t in guarantees.unbounded(made.strategy, 10))
