"""Shared steps: worked by hand, at their limits, and composed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.transforms import (
    Total,
    chain,
    combine,
    mean,
    party,
    power,
    pure,
    random_rows,
    require,
    shannon,
    sharpen,
    softmax,
    stack,
)
from fedkd.types import CONSENSUS, Linear, Predictions, Shape, State, Step, Transform, predictions

RNG = torch.Generator()
SHAPE = Shape(3, 4, 2)


def probs(*rows: tuple[float, ...]) -> Predictions:
    return predictions(torch.tensor([rows]), "probs")


def applied(step: Transform, p: Predictions) -> torch.Tensor:
    return step.apply(step.init(SHAPE), p, RNG).result.scores


def random_answers(seed: int, parties: int = 4, rows: int = 5, classes: int = 3) -> Predictions:
    rng = torch.Generator().manual_seed(seed)
    return predictions(
        torch.randn(parties, rows, classes, generator=rng),
        "logits",
        mask=torch.rand(parties, rows, generator=rng) < 0.7,
        trust=torch.rand(parties, rows, generator=rng) + 0.1,
        asked=torch.full((parties,), 3),
    )


def test_mean_worked_by_hand() -> None:
    p = predictions(
        torch.tensor([[[1.0, 0.0], [4.0, 2.0]], [[0.0, 3.0], [9.0, 9.0]]]),
        "logits",
        mask=torch.tensor([[True, True], [True, False]]),
        trust=torch.tensor([[2.0, 0.5], [1.0, 1.0]]),
    )
    result = combine(mean(), {}, p, RNG).result
    # row 0: (2 (1,0) + (0,3)) / 3; row 1: the first party alone, whatever its trust
    torch.testing.assert_close(result.scores, torch.tensor([[[2 / 3, 1.0], [4.0, 2.0]]]))
    assert result.parties.tolist() == [CONSENSUS] and result.trust.tolist() == [[1.0, 1.0]]


@given(st.integers(0, 2**32), st.integers(1, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_folding_and_stacking_give_the_same_bits(
    seed: int, parties: int, data: st.DataObject
) -> None:
    p = random_answers(seed, parties)
    rule = Linear(lambda q: (q.scores * q.scores.exp(), q.scores.exp().sum(-1)))
    whole, parts = Total(rule), Total(rule)
    whole.add(p)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, parties - 1)))) & set(range(1, parties)))
    for start, end in zip([0, *cuts], [*cuts, parties], strict=True):
        parts.add(stack(party(p, j) for j in range(start, end)))
    assert torch.equal(whole.consensus().scores, parts.consensus().scores)
    assert torch.equal(whole.consensus().mask, parts.consensus().mask)


def test_total_is_exact_where_float32_is_not() -> None:
    scores = torch.tensor([2.0**24, 1.0, 1.0, -(2.0**24)]).view(4, 1, 1)
    assert combine(mean(), {}, predictions(scores, "logits"), RNG).result.scores.item() == 0.5


def test_total_refuses_parties_out_of_order_and_twice() -> None:
    p, total = random_answers(0), Total(mean())
    total.add(party(p, 2))
    for j in (2, 1):
        with pytest.raises(ValueError, match="ascending order"):
            total.add(party(p, j))


def test_total_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody answered"):
        Total(mean()).consensus()


def test_the_consensus_is_as_new_as_its_newest_answer() -> None:
    p = replace(random_answers(0), asked=torch.tensor([2, 5, 4, 3]))
    folded = Total(mean())
    for j in range(4):
        folded.add(party(p, j))
    assert folded.consensus().asked.tolist() == [5]
    assert combine(mean(), {}, p, RNG).result.asked.tolist() == [5]


def test_stack_undoes_party() -> None:
    p = replace(
        random_answers(1),
        classes=torch.arange(3).repeat(4, 1, 1),
        extras={"maps": (torch.arange(8).view(4, 2), torch.ones(4))},
    )
    again = stack(party(p, j) for j in range(4))
    for name in ("scores", "mask", "trust", "parties", "asked", "classes"):
        assert torch.equal(getattr(again, name), getattr(p, name))
    assert again.extras is not None and torch.equal(again.extras["maps"][0], p.extras["maps"][0])


def test_softmax_at_a_temperature() -> None:
    p = predictions(torch.tensor([[[2.0, 0.0]]]), "logits")
    result = softmax(2.0).apply({}, p, RNG).result
    assert result.space == "probs"
    torch.testing.assert_close(result.scores, torch.tensor([[[0.7310586, 0.2689414]]]))


def test_softmax_leaves_no_nan_where_nothing_was_answered() -> None:
    p = predictions(torch.full((1, 1, 2), torch.nan), "logits", mask=torch.zeros(1, 1).bool())
    assert applied(softmax(), p).tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize(
    ("step", "needs"), [(softmax(), "logits"), (sharpen(0.1), "probs"), (power(2), "probs")]
)
def test_no_step_converts_silently(step: Transform, needs: str) -> None:
    other = "probs" if needs == "logits" else "logits"
    with pytest.raises(ValueError, match=f"works on {needs}, found {other}"):
        applied(step, predictions(torch.ones(1, 1, 2), other))


def test_require_names_the_step() -> None:
    with pytest.raises(ValueError, match="vote"):
        require(probs((1.0,)), "votes", "vote")


def test_power_worked_by_hand() -> None:
    # squares 0.49, 0.04, 0.01 sum to 0.54
    found = applied(power(2.0), probs((0.7, 0.2, 0.1)))
    torch.testing.assert_close(found, torch.tensor([[[0.49, 0.04, 0.01]]]) / 0.54)


def test_power_of_a_large_exponent_does_not_underflow() -> None:
    found = applied(power(1000.0), probs((0.3, 0.3, 0.4), (0.5, 0.5, 0.0)))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]]))


def test_power_of_an_unanswered_row_is_no_nan() -> None:
    assert applied(power(2.0), probs((0.0, 0.0))).tolist() == [[[0.0, 0.0]]]


def test_entropy_in_nats() -> None:
    found = shannon(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.6931472, 0.0]))


def _counting(amount: float) -> Transform:
    """Adds `amount` times the number of calls so far, and says so."""

    def apply(state: State, p: Predictions, rng: torch.Generator) -> Step:
        n = state["n"] + 1
        p = replace(p, scores=p.scores + amount * n)
        return Step({"n": n}, p, {f"added {amount}": float(amount * n)})

    return Transform(lambda shape: {"n": torch.tensor(0)}, apply)


def test_chain_delegates_and_keeps_states_apart() -> None:
    both = chain(_counting(1), pure(lambda p: replace(p, scores=2 * p.scores)), _counting(10))
    state = both.init(SHAPE)
    assert set(state) == {"0/n", "2/n"}
    p = predictions(torch.zeros(1, 1, 1), "logits")
    state, result, facts, _ = both.apply(state, p, RNG)
    assert result.scores.item() == 12  # (0 + 1) * 2 + 10
    state, result, facts, _ = both.apply(state, p, RNG)
    assert result.scores.item() == 24  # (0 + 2) * 2 + 20
    assert facts == {"added 1": 2.0, "added 10": 20.0}


def test_chains_nest() -> None:
    inner = chain(_counting(1), _counting(1))
    state = chain(inner, _counting(1)).init(SHAPE)
    assert set(state) == {"0/0/n", "0/1/n", "1/n"}
    after = chain(inner, _counting(1)).apply(
        state, predictions(torch.zeros(1, 1, 1), "logits"), RNG
    )
    assert set(after.state) == set(state) and after.result.scores.item() == 3


def test_random_rows_are_fresh_ascending_and_from_the_generator() -> None:
    public = predictions(torch.zeros(1, 20, 2), "logits").rows
    ask = random_rows(5)
    rng = torch.Generator().manual_seed(1)
    first, second = (ask({}, t, public, [0, 1], rng) for t in (1, 2))
    assert len(first.rows) == 5 and first.known and first.mask is None
    assert bool((first.rows[1:, 1] > first.rows[:-1, 1]).all())
    assert not torch.equal(first.rows, second.rows)
    again = ask({}, 1, public, [0, 1], torch.Generator().manual_seed(1))
    assert torch.equal(first.rows, again.rows)


@pytest.mark.parametrize("count", [None, 20, 99])
def test_random_rows_above_the_public_set_are_all_of_it(count: int | None) -> None:
    public = predictions(torch.zeros(1, 20, 2), "logits").rows
    assert torch.equal(random_rows(count)({}, 1, public, [0], RNG).rows, public)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scores": torch.zeros(2, 3)}, r"scores must be \[J, R, S\]"),
        ({"mask": torch.ones(2, 4).bool()}, "mask must be"),
        ({"mask": torch.ones(2, 3)}, "mask must be boolean"),
        ({"trust": torch.ones(3, 2)}, "trust must be"),
        ({"rows": torch.zeros(3, 2)}, "rows must be"),
        ({"asked": torch.zeros(1)}, "asked must be"),
        ({"parties": torch.tensor([1, 0])}, "must ascend"),
        ({"parties": torch.tensor([1, 1])}, "must ascend"),
        ({"space": "odds"}, "space must be one of"),
        ({"classes": torch.zeros(2, 2, 4)}, "classes must be"),
    ],
)
def test_predictions_check_their_shapes(wrong: dict[str, torch.Tensor], says: str) -> None:
    good = predictions(torch.zeros(2, 3, 4), "logits")
    with pytest.raises(ValueError, match=says):
        replace(good, **wrong)
