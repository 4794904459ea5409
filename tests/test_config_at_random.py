"""Whatever stands in a file: a plan or one readable error, never a traceback or a long wait."""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import at_random
import pytest
import small
import yaml
from at_random import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.config import Config, ConfigError, load_config
from fedkd.explain import explain
from fedkd.offers import PLACES
from fedkd.runs import run

VALID = 0.3  # of the cases at least, or the schema is not what is tried
PATIENCE = 60  # seconds for one case, on a busy machine
MEMORY = 2 << 30  # bytes that all cases together may take beside what the libraries do
_ROOTS = "|".join(["config", "override", *Config.model_fields])
PLACE = re.compile(rf"({_ROOTS})\b.*?: \S|.+: there is no such key")
FINDING = ("neither", "found", "was not given", "there is no", "has no such", "hidden here")


class Hung(BaseException):
    """Not an `Exception`: nothing between the case and the test may take it for a fault."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def unreadable(text: str) -> str | None:
    """What is wrong with an error: each line names a place, what was found and the way out."""
    for line in text.split("\n"):
        if not PLACE.match(line):
            return f"no parameter: {line!r}"
        if not any(word in line for word in FINDING):
            return f"nothing found: {line!r}"
        if "; " not in line:
            return f"no way out: {line!r}"
        if not line.isprintable() or len(line) > 1200:
            return f"not to be read: {line!r}"
    return None if text.count("\n") <= 20 else f"too much: {text!r}"


def outcome(case: Case) -> str | None:
    """None for a valid plan, else the error. Fails for all else, with the case to try again."""
    Path("case.yaml").write_bytes(case.content)
    try:
        with within(PATIENCE):
            explain(load_config("case.yaml", case.overrides), small.Silent())
        return None
    except ConfigError as error:
        said = str(error)
        fault = unreadable(said)
    except (Exception, SystemExit, Hung):
        fault = traceback.format_exc()
    if fault is not None:
        pytest.fail(f"{fault}\n{case}")
    return said


def tried(numbers: Sequence[int]) -> list[Case]:
    """The valid ones of these cases."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    valid = [case for case in map(at_random.case, numbers) if outcome(case) is None]
    unit = 1 if sys.platform == "darwin" else 1024
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert taken < MEMORY, f"{taken >> 20} MiB"
    assert len(valid) >= VALID * len(numbers), f"{len(valid)} of {len(numbers)} are valid"
    return valid


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_at_random_is_a_plan_or_one_readable_error() -> None:
    tried(range(100))


@pytest.mark.slow
def test_thousands_of_configs_at_random_and_a_sample_of_them_runs(here: Path) -> None:
    valid = tried(range(100, 2300))
    sample = valid[:: len(valid) // 12][:12]
    for case in sample:
        Path("case.yaml").write_bytes(case.content)
        out = here / str(case.number)
        usual = ["rounds=1", "execution.runtime=local", "execution.deadline_s=null"]
        usual.append("execution.trackers=[]")  # they would ask servers
        config = load_config("case.yaml", [*case.overrides, *usual, f"execution.out={out}"])
        try:
            done = run(config)
        except Exception:
            pytest.fail(f"{traceback.format_exc()}\n{case}")
        assert [record["round"] for record in done.records] == [1], str(case)
        assert load_config(str(out / "config.yaml")).execution.out == str(out), str(case)


def test_what_is_drawn_reaches_every_key_and_every_plug_in() -> None:
    """Or a new one would go untried without anybody noticing."""
    text = "\n".join(str(at_random.case(number)) for number in range(1500))
    names = {n for kind in PLACES for n in at_random.names(kind)}
    sections = [s for s in at_random.config_schema()["$defs"].values() if "properties" in s]
    keys = {
        key for section in [at_random.config_schema(), *sections] for key in section["properties"]
    }
    untried = {word for word in names | keys if not re.search(rf"\b{word}\b", text)}
    assert untried <= {"out"}  # which the test above gives


# what a YAML file is made of, where hypothesis looks for the combination that nobody thought of
_YAML = st.text(
    st.sampled_from("ab01 \n\t:-?,[]{}#&*!|>'\"%@`.<=~_eE+\\/\ufeff\x00\x85é"), max_size=60
)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def loaded(act: Callable[[], object]) -> None:
    try:
        with within(PATIENCE):
            act()
    except ConfigError as error:
        assert (fault := unreadable(str(error))) is None, fault


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_YAML)
def test_any_text_is_read_or_refused(text: str) -> None:
    Path("any.yaml").write_text(text, encoding="utf-8")
    loaded(lambda: load_config("any.yaml"))
    loaded(lambda: load_config(small.EXPERIMENT, [f"data={text}"]))
    loaded(lambda: load_config(small.EXPERIMENT, [text]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_tree_is_read_or_refused(data: st.DataObject) -> None:
    tree = json.loads(json.dumps(small.EXPERIMENT))
    path = data.draw(st.sampled_from(sorted(at_random.places(tree), key=str)))
    at_random.put(tree, path, data.draw(_TREES))
    loaded(lambda: load_config(tree))


LAUGHS = "data: &a0 [1, 1]\n" + "".join(
    f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
HOSTILE = {
    "laughs": (LAUGHS, "at most 10,000 values"),
    "merges": (at_random.LINES[-1], "more than 10,000 keys"),
    "itself": ("data: &a [*a]\n", "30 levels deep"),
    "deep": ("[" * 100_000, "30 levels"),
    "many": ("".join(f"k{i}: 1\n" for i in range(50_000)), "more than 10,000 values"),
    "long": ("x: " + "y" * 2_000_000, "at most 1,048,576 bytes"),
    "python": ("data: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    "digits": (f"seed: {'9' * 5000}\n", "is no int"),
    "hexadecimal": (f"seed: 0x{'f' * 5000}\n", "at most 100 digits"),
    "tag": ("seed: !!int abc\n", "'abc' is no int"),
    "half a character": ('name: "\\ud800"\n', "Unicode"),
    "nul": ('execution: {out: "a\\0b"}\n', "without NUL"),
    "key": ("data: {true: 1}\n", "keys that are text"),
    "newline": ('"a\\nb": 1\n', "'a\\nb': there is no such key"),
    "twice": ("seed: 1\nseed: 2\n", "is given twice"),
    "many faults": ("".join(f"k{i}: 1\n" for i in range(500)), "more faults"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_refused_before_it_takes_time_or_memory(kind: str) -> None:
    text, said = HOSTILE[kind]
    assert said in refused(text)


def refused(text: str, *overrides: str) -> str:
    found = outcome(Case(0, text.encode(), overrides, False))
    assert found is not None
    return found


TOO_MUCH = {
    "rounds=1000000000000": "rounds: should be at most 1,000,000",
    "clients.0.count=1000000000": "clients.0.count: should be at most 1,000,000",
    "clients=[{count: 900000, model: mlp}, {count: 900000, model: mlp}]": "clients in all, found",
    "clients.0.count=1000000": "1000000 clients with at least 8 private samples each",
    "compute.task_threads=100000": "compute.task_threads: should be at most 1,024",
    "learning.private.epochs=1000000000": "learning.private.epochs: should be at most 100,000",
    "data.public.size=1000000": "data.public.size: should be at most",
    "student.hidden=[1000000000]": "student.hidden.0: should be less than or equal to 65536",
    f"student.hidden={[1] * 300}": "student.hidden: ",
    f"student.hidden={[65536] * 30}": "student: mlp should fit into the",
    "student={name: resnet_gn, blocks: 1000000}": "student.blocks: should be less than",
    "strategy={name: dsfl, rows: 1000000000000000000000}": "strategy.rows: should be less than",
    "strategy.temperature=.inf": "strategy.temperature: should be a finite number",
    "learning.client.loss={name: kl, temperature: 1e-320}": "losses.client: should be finite",
    "learning.client.loss={name: kl, temperature: 1e308}": "OverflowError",
    "student=sys:exit": "student: ",
    "world=sys:exit": "world: sys:exit should work with its parameters, found SystemExit",
    "student=torch.nn:Flatten": "student: torch.nn:Flatten should take samples of shape [1, 8, 8]",
    "execution.search=['~nowhere']": "execution.search: should name folders",
    "learning.client.schedule={name: StepLR, step_size: 0}": "StepLR in epoch 1 should take",
    "learning.client.schedule={name: ExponentialLR, gamma: -1}": "finite factors of at least 0",
    "learning.private.optimizer=torch.optim:LBFGS": "torch.optim.LBFGS should take its parameters",
    "learning.private.loss=kl": "learning.private.loss: should work on made-up samples",
    "data.test=1": "data.test: should hold a sample of some class of client",
    "clients.0.weights=/dev/zero": "found no file '/dev/zero'",
    f"clients.0.weights={'x' * 5000}": "found no file 'xxx",
    f"execution.search=[{'x' * 5000}]": "",
}


@pytest.mark.parametrize("override", TOO_MUCH, ids=lambda o: o[:60])
def test_what_cannot_work_is_refused_before_it_takes_time_or_memory(override: str) -> None:
    experiment = yaml.safe_dump(json.loads(json.dumps(small.EXPERIMENT)))
    with within(10):
        found = outcome(Case(0, experiment.encode(), (override, "learning.client.epochs=2"), False))
    if TOO_MUCH[override]:
        assert found is not None and TOO_MUCH[override] in found


def test_a_large_batch_is_no_more_than_there_are_samples(here: Path) -> None:
    """Batches are tables of rows, which a batch of 10^9 would make too large for any memory."""
    for name, batch in (("usual", 300), ("large", 10**9)):
        same = ("rounds=1", "compute.stack=4", f"execution.out={name}")  # large ones stack less
        run(small.config("entropy", *same, f"learning.private.batch={batch}"))
    assert small.bits(here / "usual") == small.bits(here / "large")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "a\nb", "", "x" * 300, "-x", "~"])
def test_the_name_of_a_run_is_the_name_of_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: should be made of letters"):
        load_config({**small.EXPERIMENT, "name": name})


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "\ud800", "/", "no/such/file"])
def test_the_name_of_a_config_may_be_anything(name: str) -> None:
    loaded(lambda: load_config(name))
    with pytest.raises(ConfigError):
        load_config(name)
