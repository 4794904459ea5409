"""Noise as it leaves: independent of all other noise, as wide as declared, after a real bound."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_pate import said, target
from test_privacy import FACTOR, LEAST, QUIET, fits_gaussian, fits_laplace, told
from torch import Tensor

from fedkd import ballots, rng, wire
from fedkd.client import own_view
from fedkd.config import Config
from fedkd.mechanisms import Mechanism, gaussian, laplace, randomised_response
from fedkd.privacy import calibration, sgd
from fedkd.tasks import rows_from
from fedkd.types import Space, predictions
from strategies.pate import pate

SILENT = {"name": "feddf", "feedback": "none"}  # answers do not depend on what was said before
WIDE = "privacy.answers={name: gaussian, sigma: 3.0, clip: 1000.0}"  # nothing is clipped


def answers(chosen: Any, folder: Path) -> dict[tuple[int, int], Tensor]:
    """Scores [R, C] as they crossed the wire, by round and client."""
    transport, found = small.InProcess(), dict[tuple[int, int], Tensor]()
    small.run(chosen, folder, transport)
    for _, message, reply in transport.seen:
        task, blobs = wire.unpack(message)
        if "answer" not in task.get("steps", ()):
            continue
        head, payloads = wire.unpack(reply)
        for client in head["clients"]:
            given = wire.decode(payloads[client["payload"]], rows_from(blobs[task["rows"]]))
            found[task["round"], client["client"]] = given.scores[0].double()
    return found


def test_no_noise_is_like_any_other_of_a_run(tmp_path: Path) -> None:
    """It is what a run without noise lacks: between clients, rounds, rows, classes, independent."""
    plain = answers(small.config(SILENT, **QUIET), tmp_path / "plain")
    noisy = answers(small.config(SILENT, WIDE, **QUIET), tmp_path / "noisy")
    noise = {name: noisy[name] - plain[name] for name in plain}
    assert len(noise) == 2 * 6 and all(n.shape == (80, 10) for n in noise.values())
    together = torch.stack(list(noise.values()))
    assert fits_gaussian(together, 3.0)
    assert not any(fits_gaussian(together, f * 3.0) for f in FACTOR)
    spread = 5 / 800**0.5  # of a correlation of 800 pairs, five standard deviations
    between = torch.corrcoef(together.flatten(1)) - torch.eye(len(noise))
    assert float(between.abs().max()) < spread
    rows, classes = together.transpose(0, 1).flatten(1), together.transpose(0, 2).flatten(1)
    for sides in (rows, classes):
        off = torch.corrcoef(sides) - torch.eye(len(sides))
        assert float(off.abs().max()) < 5 / sides.shape[1] ** 0.5
    for a, b in itertools.combinations(noise.values(), 2):  # nor is it moved by some rows
        assert not set(a.flatten().tolist()) & set(b.flatten().tolist())


def test_noise_on_gradients_is_drawn_by_client_and_round_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, private = list[int](), sgd.private

    def seen(config: Config, n: int, stream: torch.Generator) -> sgd.Private | None:
        drawn.append(stream.initial_seed())
        return private(config, n, stream)

    monkeypatch.setattr(sgd, "private", seen)
    small.run(small.config("dsfl", "privacy.training={noise_multiplier: 2.0}", **QUIET), tmp_path)
    seed, every = small.EXPERIMENT["seed"], itertools.product((1, 2), range(6))
    assert sorted(drawn) == sorted(rng.number(seed, r, c, "noise") for r, c in every)


@pytest.mark.parametrize(
    ("strategy", "rounds", "draws"),
    [({"name": "pate", "sigma": 2.0}, 3, 3),
     ({"name": "fedkt", "protects": "record", "rule": "gnmax", "sigma": 2.0, "teachers": 2,
       "partitions": 3, "rows": 40}, 1, 6 * 3)],
    ids=["by round", "by client and partition"],
)  # fmt: skip
def test_noise_on_votes_is_like_no_other_of_a_run(
    strategy: Any, rounds: int, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, real = list[Tensor](), ballots._noise

    def seen(rule: ballots.Rule, sigma: float, *named: Any) -> Tensor:
        found = real(rule, sigma, *named)
        drawn.extend([found] if sigma else [])
        return found

    monkeypatch.setattr(ballots, "_noise", seen)
    small.run(small.config(strategy, **QUIET | {"rounds": rounds}), tmp_path)
    assert len(drawn) == draws
    together = torch.stack(drawn)
    assert fits_gaussian(together, 2.0)
    assert len(together.unique()) == together.numel()
    between = torch.corrcoef(together.flatten(1)) - torch.eye(draws)
    assert float(between.abs().max()) < 5 / together[0].numel() ** 0.5


def test_what_is_drawn_once_is_drawn_by_client_and_the_same_in_every_round(tmp_path: Path) -> None:
    plan = small.plan(small.config("fedaux"), tmp_path)
    streams = [own_view(plan, client).once.initial_seed() for client in range(6)]
    assert len(set(streams)) == 6
    assert streams == [own_view(plan, client).once.initial_seed() for client in range(6)]


def test_a_lie_about_its_own_answer_has_the_noise_of_an_answer(tmp_path: Path) -> None:
    world = {"name": "lying", "fraction": 0.5, "how": "same"}
    one = {**QUIET, "rounds": 1, "world": world}
    plain = answers(small.config(SILENT, **one), tmp_path / "plain")
    noisy = answers(small.config(SILENT, WIDE, **one), tmp_path / "noisy")
    lies = [name for name, scores in plain.items() if len(scores.unique(dim=0)) == 1]
    assert len(lies) == 3
    assert fits_gaussian(torch.stack([noisy[name] - plain[name] for name in lies]), 3.0)


def test_what_is_drawn_for_one_purpose_is_drawn_for_no_other() -> None:
    purposes = ("noise", "upload", "once", "finish", "combine", "fault", "train", "encode",
                "annotate", "summarise", "subset", "stays", "seconds")  # fmt: skip
    drawn = [torch.randn(400, generator=rng.stream(0, 1, 0, p)) for p in purposes]
    between = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(purposes))
    assert float(between.abs().max()) < 5 / 400**0.5


def test_rows_that_are_left_out_are_no_key_to_the_noise_of_others() -> None:
    """What is said of the others in another round has nothing in common with what was said."""
    mechanism, scores = gaussian("logits", 5, sigma=1.0, clip=1.0), torch.zeros(1, 40, 5)
    mask = torch.arange(40).unsqueeze(0) % 3 != 0

    def noise(round_: int, given: Any) -> Tensor:
        stream = rng.stream(0, round_, 2, "upload")
        return mechanism.step.apply({}, given, stream).result.scores[0]

    whole = noise(1, predictions(scores, "logits"))
    part = noise(2, predictions(scores, "logits", mask=mask))
    assert not set(whole.flatten().tolist()) & set(part.flatten().tolist())


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_noise_of_any_size_is_as_wide_as_it_says(size: float) -> None:
    zeros = torch.zeros(400, 10)
    assert fits_gaussian(told(gaussian("logits", 10, sigma=size, clip=1.0), zeros, "logits"), size)
    assert fits_laplace(told(laplace("logits", 10, scale=size, clip=1.0), zeros, "logits"), size)


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_noise_on_clipped_vectors_is_as_wide_as_it_is_declared(factor: float) -> None:
    wide = gaussian("logits", 10, epsilon=1.0, clip=2.0, norm="vector")
    (release,) = wide.step.releases
    assert release.parameters["sensitivity"] == 4.0
    assert release.parameters["sigma"] == pytest.approx(
        calibration.gaussian_sigma(1.0, 1e-5, 1.0) * 4
    )
    drawn = told(wide, torch.zeros(400, 10), "logits")
    assert fits_gaussian(drawn, factor * release.parameters["sigma"]) == (factor == 1)


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_a_label_is_kept_as_often_as_its_epsilon_says(factor: float) -> None:
    labels = torch.arange(30_000) % 5
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    said_of = told(randomised_response("votes", 5, 1.5), one_hot, "votes").argmax(-1)
    kept, _ = calibration.response_odds(factor * 1.5, 5)
    right = int((said_of == labels).sum())
    assert (stats.binomtest(right, len(labels), kept).pvalue > LEAST) == (factor == 1)
    others = torch.bincount((said_of - labels) % 5, minlength=5)[1:]
    assert stats.chisquare(others.numpy()).pvalue > LEAST


def test_a_label_is_turned_however_seldom_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """At epsilon 20, one of 54 million; no draw of float32 is as close to one."""

    def highest(shape: torch.Size, *, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        return torch.full(shape, 1 - torch.finfo(dtype).eps / 2, dtype=dtype)

    monkeypatch.setattr(torch, "rand", highest)
    one_hot = torch.eye(10)[[3]]
    assert told(randomised_response("votes", 10, 20.0), one_hot, "votes").argmax() != 3


@pytest.mark.parametrize("factor", [1.0, *FACTOR])
def test_the_threshold_is_tested_under_the_noise_that_is_declared(factor: float) -> None:
    clients, rows, wide = 10, 30_000, 4.0
    made = pate("confident", sigma=0.1, threshold=13.0, threshold_sigma=wide)
    _, done = target(made, said(torch.zeros(clients, rows, dtype=torch.int64), 2))
    answered = int(done.result.mask.sum())
    odds = float(stats.norm.sf((13.0 - clients) / (factor * wide)))
    assert (stats.binomtest(answered, rows, odds).pvalue > LEAST) == (factor == 1)
    assert {r.mechanism: n for r, n in done.released or ()} == {
        "vote_threshold": rows, "gnmax": answered
    }  # fmt: skip


# what is said is bounded before noise, whatever a model says

ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)
ROWS = st.lists(ANY, min_size=4, max_size=4)
FAR = 1e-9


def made(kind: str, space: Space, norm: Literal["value", "vector"]) -> Mechanism:
    """The mechanism with next to no noise."""
    clip = 2.5 if space == "logits" else None
    if kind == "laplace":
        return laplace(space, 4, scale=FAR, clip=clip)
    return gaussian(space, 4, sigma=FAR, clip=clip, norm=norm)


@pytest.mark.parametrize(
    ("kind", "space", "norm", "order"),
    [("gaussian", "logits", "value", 2), ("gaussian", "logits", "vector", 2),
     ("laplace", "logits", "value", 1), ("gaussian", "probs", "value", 2),
     ("laplace", "probs", "value", 1), ("gaussian", "votes", "value", 2)],
)  # fmt: skip
@given(ROWS, ROWS)
@settings(deadline=None)
def test_any_two_answers_are_no_further_apart_than_the_sensitivity(
    kind: str,
    space: Space,
    norm: Literal["value", "vector"],
    order: int,
    one: list[float],
    other: list[float],
) -> None:
    """Infinite, huge, no number at all, probabilities that are none."""
    mechanism = made(kind, space, norm)
    both = told(mechanism, torch.tensor([one, other]), space).double()
    assert bool(both.isfinite().all())
    far = float((both[0] - both[1]).norm(p=order))
    (release,) = mechanism.step.releases
    assert far <= release.parameters["sensitivity"] * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize(
    ("kind", "space", "norm"),
    [("gaussian", "logits", "value"), ("gaussian", "logits", "vector"),
     ("laplace", "logits", "value"), ("gaussian", "probs", "value")],
)  # fmt: skip
def test_the_sensitivity_is_reached(kind: str, space: Space, norm: Any) -> None:
    """A larger one would be more noise than the guarantee takes."""
    rows = torch.tensor([[9.0, 0, 0, 0], [-9.0, 0, 0, 0]])
    if norm == "value":
        rows = torch.tensor([[9.0] * 4, [-9.0] * 4])
    if space == "probs":
        rows = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    mechanism: Mechanism = made(kind, space, norm)
    both = told(mechanism, rows, space).double()
    far = float((both[0] - both[1]).norm(p=1 if kind == "laplace" else 2))
    assert far == pytest.approx(mechanism.step.releases[0].parameters["sensitivity"], rel=1e-6)


def test_what_is_no_probability_counts_as_the_nearest_one() -> None:
    huge, none = [1e30, 0.0, 0.0, 0.0], [float("nan")] * 4
    said_of = told(made("gaussian", "probs", "value"), torch.tensor([huge, none]), "probs")
    assert said_of.tolist() == [pytest.approx([1, 0, 0, 0], abs=1e-6), pytest.approx([0.25] * 4)]


def test_half_the_bits_are_bounded_and_noised_alike() -> None:
    bad = torch.tensor([[1e30, -1e30, float("nan"), 0.0]]).bfloat16()
    low = told(gaussian("logits", 4, sigma=FAR, clip=2.5), bad, "logits")
    assert low.dtype == torch.bfloat16
    assert low[0].tolist() == pytest.approx([2.5, -2.5, 0, 0], abs=1e-6)


def test_pure_noise_has_no_side() -> None:
    """A sign that is drawn unevenly would pass no test of its size alone."""
    zeros = torch.zeros(20_000, 2)
    for mechanism, spread in (
        (gaussian("logits", 2, sigma=1.0, clip=1.0), 1.0),
        (laplace("logits", 2, scale=1.0, clip=1.0), math.sqrt(2)),
    ):
        drawn = told(mechanism, zeros, "logits").double()
        assert abs(float(drawn.mean())) < 4 * spread / math.sqrt(drawn.numel())
        assert stats.binomtest(int((drawn > 0).sum()), drawn.numel()).pvalue > LEAST
