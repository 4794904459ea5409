"""What a sweep varies, as written, and the grid that comes of it."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedkd import axes, points
from fedkd.axes import Axis
from fedkd.config import ConfigError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab ,:[{'\"#", max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("kl", min_size=1), v, max_size=2),
    max_leaves=5,
)


@given(st.lists(VALUES, min_size=2, max_size=4, unique_by=repr))
def test_whatever_is_written_is_read_again(values: list[Any]) -> None:
    text = ",".join(axes.text_of(value) for value in values)
    found = axes.values_of("k", text)
    assert [yaml.safe_load(f) for f in found] == values


@given(st.integers(-50, 50), st.integers(0, 30), st.integers(1, 7), st.booleans())
def test_a_range_has_both_ends(first: int, more: int, step: int, down: bool) -> None:
    sign = -1 if down else 1
    last = first + sign * more * step
    text = f"{first}..{last}" + ("" if step == 1 and not down else f"..{sign * step}")
    if more == 0 and not down and step == 1:
        text = f"{first}..{last}"
    expected = [first + sign * step * i for i in range(more + 1)]
    assert [int(v) for v in axes.values_of("seed", text)] == expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0..4", ["0", "1", "2", "3", "4"]),
        ("5..5", ["5"]),
        ("0.1,0.5", ["0.1", "0.5"]),
        ("{name: a, x: 1},b", ["{name: a, x: 1}", "b"]),
        ("[64],[64, 32]", ["[64]", "[64, 32]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("it's,b", ["it's", "b"]),
        ("", [""]),
    ],
)
def test_values_are_parted_at_commas_outside_of_brackets_and_quotes(
    text: str, values: list[str]
) -> None:
    assert list(axes.values_of("k", text)) == values


def test_one_value_is_an_override_and_a_range_of_one_is_an_axis() -> None:
    overrides, varied = axes.read(["rounds=3", "seed=0..0", "student=mlp,cnn"])
    assert overrides == ["rounds=3"]
    assert varied == [Axis("seed", ("0",)), Axis("student", ("mlp", "cnn"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=4..0"], "seed should be a range with something in it, found 4..0, which is empty"),
        (["seed=0..4..0"], "found 0..4..0, which is empty"),
        (["seed=0..99999999"], "seed should have at most 10,000 values"),
        (["seed=1,,2"], "seed should have a value between any two commas, found '1,,2'"),
        (["seed=1,1"], "seed should have each value once, found 1 twice"),
        (["seed=0..1", "seed=2,3"], "seed should be said once, found it twice"),
        (["seed=0..1", "seed=5"], "seed should be said once, found it twice"),
        (["strategy=a,b", "strategy.x=1,2"], "strategy.x should be said once, found it beside"),
        (["execution.workers=1,2"], "execution.workers should not be varied"),
        (["name=a,b"], "name should not be varied"),
        (["seed=[1,2"], "seed should close what they open, found '[1,2' without ]"),
        (["seed"], "should be given as key=value, key=a,b or key=a..b, found 'seed'"),
        (["seed=0..999", "rounds=1..99"], "should be of at most 10,000 runs, found 99,000"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        axes.read(words)
    assert message in str(caught.value)


def test_axes_from_python() -> None:
    found = axes.given({"seed": range(2), "student": [{"name": "mlp", "hidden": [8]}, "cnn"]})
    assert [yaml.safe_load(v) for v in found[1].values] == [{"name": "mlp", "hidden": [8]}, "cnn"]
    for wrong in ({"seed": 3}, {"seed": "0..4"}, {"seed": []}):
        with pytest.raises(ConfigError, match="sweep: seed should"):
            axes.given(wrong)


def grid(*words: str, **more: Any) -> points.Grid:
    overrides, varied = axes.read(words)
    return points.grid("digits", overrides, varied, **more)


def texts(found: points.Grid) -> list[str]:
    return [point.text for point in found.points]


def test_every_combination_is_a_run_and_the_last_axis_is_the_fastest() -> None:
    found = grid("rounds=2", "seed=0..1", "strategy=fedmd,dsfl")
    assert texts(found) == [
        "seed=0 strategy=fedmd",
        "seed=0 strategy=dsfl",
        "seed=1 strategy=fedmd",
        "seed=1 strategy=dsfl",
    ]
    assert [p.config.rounds for p in found.points] == [2] * 4
    assert [p.config.seed for p in found.points] == [0, 0, 1, 1]
    assert {p.config.strategy.name for p in found.points} == {"fedmd", "dsfl"}


def test_a_parameter_goes_to_the_methods_that_take_it() -> None:
    """And each method begins with its own defaults, not with what the base had for another."""
    found = grid("strategy.name=fedmd,dsfl,entropy", "strategy.temperature=0.1,0.5")
    assert texts(found) == [
        "strategy.name=fedmd",
        "strategy.name=dsfl strategy.temperature=0.1",
        "strategy.name=dsfl strategy.temperature=0.5",
        "strategy.name=entropy strategy.temperature=0.1",
        "strategy.name=entropy strategy.temperature=0.5",
    ]
    assert found.left_out == {"strategy.temperature": ["fedmd"]}
    assert found.points[0].config.strategy.params == {}
    fixed = grid("strategy.name=fedmd,dsfl", "strategy.temperature=0.3")
    assert [p.config.strategy.params for p in fixed.points] == [{}, {"temperature": 0.3}]


def test_a_parameter_that_no_method_takes_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        grid("strategy.name=fedmd,dsfl", "strategy.temprature=0.1,0.5")
    said = str(caught.value)
    assert said.startswith("strategy.temprature: none of dsfl, fedmd has such a parameter (did you")
    assert "temperature" in said


def test_an_axis_that_does_not_exist_is_refused_with_the_point() -> None:
    with pytest.raises(ConfigError) as caught:
        grid("sed=0..1")
    assert "sed: there is no such key (did you mean seed?)" in str(caught.value)
    assert "this is at sed=0" in str(caught.value)


def test_what_is_nothing_without_what_varies_is_said_of_each_run() -> None:
    found = grid(
        "privacy.training.delta=0.001", "privacy.training.epsilon=1,4",
        "privacy.budget.epsilon=1,4", "privacy.budget.delta=0.0001", "rounds=2",
    )  # fmt: skip
    told = [(p.config.privacy.training, p.config.privacy.budget) for p in found.points]
    assert [(t.epsilon, t.delta, b.epsilon, b.delta) for t, b in told if t and b] == [
        (t, 0.001, b, 0.0001) for t in (1, 4) for b in (1, 4)
    ]
    assert found.points[0].text == "privacy.training.epsilon=1 privacy.budget.epsilon=1"


def test_a_list_of_settings_goes_with_the_grid() -> None:
    found = grid("seed=0..1", sets=[{"strategy": "dsfl"}, {"strategy": "fedmd", "rounds": 3}])
    assert texts(found) == [
        "strategy=dsfl seed=0",
        "strategy=dsfl seed=1",
        "strategy=fedmd rounds=3 seed=0",
        "strategy=fedmd rounds=3 seed=1",
    ]
    with pytest.raises(ConfigError, match="seed should be said once"):
        grid("seed=0..1", sets=[{"seed": 3}])
    with pytest.raises(ConfigError, match="the same; leave one of them out"):
        grid(sets=[{"rounds": 3}, {"rounds": 3, "seed": 0}])


def test_names_of_folders_are_plain_and_end_in_the_fingerprint() -> None:
    found = grid("student={name: mlp, hidden: [64]},{name: cnn}", "seed=0..1")
    names = [points.folder_name(p, p.config) for p in found.points]
    assert len(set(names)) == 4
    for name, point in zip(names, found.points, strict=True):
        assert name.endswith(f"-{point.config.fingerprint()[:12]}") and len(name) < 100
        assert all(c.isalnum() or c in "._=+-" for c in name) and name[0].isalnum()
    assert points.folder_name(grid().points[0], grid().points[0].config).startswith("run-")
