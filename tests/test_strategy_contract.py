"""The contract over every file in `strategies/`, and over settings that change its nature."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import contract
from fedkd.transforms import mean, party, pure, softmax
from fedkd.types import (
    Ask,
    Linear,
    Predictions,
    PrivateView,
    Release,
    Shares,
    State,
    Step,
    Strategy,
    Transform,
    identity,
    predictions,
)

FILES = sorted(p.stem for p in Path(__file__).parents[1].joinpath("strategies").glob("[a-z]*.py"))
VARIANTS = (
    ("dsfl", {"aggregation": "sa"}),
    ("entropy", {"temperature": 5.0}),
    ("fedmd", {"pretrain": True, "student": False, "rows": None}),
    ("kt_pfl", {"temperature": 1.0, "rho": 0.0, "step": 5.0}),
    ("scarlet", {"beta": 1.0, "rows": 3}),
    ("scarlet", {"duration": 0, "restore": True}),
)


def build(name: str, **params: object) -> Strategy:
    factory = getattr(importlib.import_module(f"strategies.{name}"), name)
    strategy: Strategy = factory(**params)
    return strategy


CASES = [pytest.param(build(name), id=name) for name in FILES] + [
    pytest.param(build(name, **p), id=f"{name}-{'-'.join(map(str, p.values()))}")
    for name, p in VARIANTS
]


@st.composite
def logits(draw: st.DrawFn) -> Predictions:
    """One to five clients, of any confidence, some rows unanswered, some trusted less."""
    j, r, c = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    scale = draw(st.sampled_from([0.0, 1.0, 5.0, 50.0]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    missing = draw(st.sampled_from([0.0, 0.3, 0.8]))
    uneven = draw(st.booleans())
    return predictions(
        scale * torch.randn(j, r, c, generator=rng),
        "logits",
        mask=torch.rand(j, r, generator=rng) >= missing,
        trust=torch.rand(j, r, generator=rng) + 0.1 if uneven else None,
        asked=torch.ones(j, dtype=torch.int64),
    )


def test_all_strategy_files_are_found() -> None:
    assert set(FILES) >= {"cronus", "dsfl", "entropy", "fedavg", "fedmd", "kt_pfl", "scarlet"}


@pytest.mark.parametrize("law", contract.EVERY, ids=lambda law: law.name)
@pytest.mark.parametrize("strategy", CASES)
def test_contract(strategy: Strategy, law: Callable[[Strategy, Predictions], None]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(logits())
    def holds(given_logits: Predictions) -> None:
        law(strategy, given_logits)

    holds()


def _doubled(p: Predictions) -> Predictions:
    return replace(p, scores=2 * p.scores)


def _by_position(p: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    weight = p.trust * (1 + p.parties).unsqueeze(-1)
    return p.scores * weight.unsqueeze(-1), weight


def _by_column(p: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    tilt = torch.arange(1, 1 + p.scores.shape[-1])
    return p.scores * tilt, p.trust


def _swayed_by_confidence(p: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    return p.scores * p.scores.amax(-1, keepdim=True).pow(20), p.trust


def _batchwise(p: Predictions) -> Predictions:
    return replace(p, scores=p.scores - p.scores.mean(1, keepdim=True))


def _naive(p: Predictions) -> Predictions:
    total = (p.scores * p.mask.unsqueeze(-1) * p.trust.unsqueeze(-1)).sum(0, keepdim=True)
    return replace(
        party(p, 0),
        scores=total / (p.mask * p.trust).sum(0).clamp_min(1e-9)[None, :, None],
        mask=p.mask.any(0, keepdim=True),
        parties=torch.tensor([-1]),
    )


def _in_place(p: Predictions) -> Predictions:
    p.scores.mul_(2)
    return p


def _reversed(
    state: State, round_: int, public: torch.Tensor, clients: Sequence[int], rng: torch.Generator
) -> Ask:
    return Ask(public.flip(0), None, known=True)


def _remembering() -> Transform:
    calls: list[int] = []

    def apply(state: State, p: Predictions, rng: torch.Generator) -> Step:
        calls.append(1)
        return Step(state, replace(p, scores=p.scores + len(calls)), {})

    return Transform(lambda shape: {}, apply)


def _telling(state: State, p: Predictions, rng: torch.Generator) -> Step:
    return Step(state, p, {"told": torch.zeros(99)})


def _doubting(
    own: PrivateView,
    model: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(len(rows), dtype=torch.bool), torch.full((len(rows),), -1.0)


PROBS = Shares(answers="probs")
BROKEN = (
    (
        "targets_lie_on_the_simplex",
        Strategy(mean(), finish=pure(_doubled), upload=softmax(), shares=PROBS),
    ),
    ("client_order_is_irrelevant", Strategy(Linear(_by_position))),
    ("classes_are_alike", Strategy(Linear(_by_column))),
    ("rows_do_not_mix", Strategy(mean(), finish=pure(_batchwise))),
    ("equal_clients_agree_with_themselves", Strategy(mean(), finish=pure(_doubled))),
    ("doubling_every_client_changes_nothing", Strategy(Linear(_by_position))),
    (
        "weights_are_shares_and_no_answer_is_no_target",
        Strategy(Linear(lambda p: (-p.scores, -p.trust))),
    ),
    ("targets_lie_in_the_hull", Strategy(mean(), finish=pure(_doubled))),
    (
        "liars_have_bounded_influence",
        Strategy(Linear(_swayed_by_confidence), upload=softmax(), shares=PROBS),
    ),
    (
        "a_constant_added_to_logits_changes_no_label",
        Strategy(Linear(lambda p: (p.scores.square(), p.trust))),
    ),
    ("one_client_passes_through", Strategy(mean(), finish=pure(_doubled))),
    (
        "the_same_seed_gives_the_same_bits",
        Strategy(Linear(lambda p: (p.scores + torch.rand(1), p.trust))),
    ),
    ("the_mean_is_no_worse_than_its_parts", Strategy(Linear(lambda p: (-p.scores, p.trust)))),
    ("inputs_stay_as_they_are", Strategy(mean(), finish=pure(_in_place))),
    ("masked_entries_are_never_read", Strategy(pure(_naive))),
    (
        "silence_is_no_target",
        Strategy(mean(), finish=pure(lambda p: replace(p, mask=p.mask | True))),
    ),
    ("state_survives_a_file", Strategy(mean(), finish=_remembering())),
    ("facts_are_numbers", Strategy(mean(), finish=Transform(lambda shape: {}, _telling))),
    ("the_question_is_drawn_from_the_seed", Strategy(mean(), request=_reversed)),
    (
        "only_what_is_declared_is_sent",
        Strategy(mean(), upload=pure(lambda p: replace(p, extras={"told": (torch.zeros(9),)}))),
    ),
    ("messages_have_the_stated_length", Strategy(mean(), shares=Shares(uplink=lambda t: t.rows))),
    ("parties_are_one_or_as_many_as_answered", Strategy(pure(lambda p: p))),
    ("annotations_fit_the_rows", Strategy(mean(), annotate=_doubting)),
    (
        "replies_fit_the_rows",
        Strategy(mean(), reply=lambda view, model, inputs, rng: torch.zeros(1, view.classes)),
    ),
    ("what_looks_at_private_data_says_so", Strategy(mean(), annotate=_doubting)),
    (
        "releases_are_what_the_ledger_reads",
        Strategy(Transform(identity.init, identity.apply, (Release("gnmax", "client", {}),))),
    ),
)


def test_each_law_is_put_to_the_test() -> None:
    names = [law.name for law in contract.EVERY]
    assert sorted(law for law, _ in BROKEN) == sorted(names)


@pytest.mark.parametrize(("law", "strategy"), BROKEN, ids=[name for name, _ in BROKEN])
def test_a_broken_method_is_caught(law: str, strategy: Strategy) -> None:
    """Each law can fail: a method made to break it does."""
    (check,) = (known for known in contract.EVERY if known.name == law)
    rng = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2] = False
    given_logits = predictions(
        2 * torch.randn(4, 5, 3, generator=rng),
        "logits",
        mask=mask,
        asked=torch.ones(4, dtype=torch.int64),
    )
    with pytest.raises(contract.Broken):
        check(strategy, given_logits)
