"""Workers and nodes that are lost, stuck or slow, for real, under every runtime that has some.

The reference is what `local` gives, or the same failure done in process: see test_failures.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import small
from test_failures import BESIDE, CLIENT, CLIENTS, asked_in

from fedkd import asking, load_config, run, wire
from fedkd.asking import ClientFailure, Lost
from fedkd.config import Config
from fedkd.runs import resume
from fedkd.runtime import ray as rays
from fedkd.runtime.ray import session

TESTS = Path(__file__).parent
LIMIT_S = 240  # for a test as a whole: an error, not a hang


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whatever hangs is an error."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"the test took longer than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray session for all runs here that need none of their own."""
    with session(load_config("digits", ["execution.workers=2"]).execution):
        yield
    assert not ray.is_initialized()


def experiment(
    folder: Path, runtime: str, *overrides: str, how: str = "raises", **params: object
) -> Config:
    """Three rounds of the default method, in the second of which a client fails, if asked."""
    method = {"name": "odd_methods:misbehaving", "how": how, "client": CLIENT, **params}
    where = (f"execution.runtime={runtime}", f"execution.out={folder}", "execution.workers=2")
    found = (f"execution.search=[{TESTS}]", "rounds=3", "evaluation.teachers=false")
    return small.config(method, *where, *found, *overrides, clients=CLIENTS)


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    """What events say of clients; that a run was resumed is no matter here."""
    of_clients = [e for e in small.events(folder) if "clients" in e]
    return [(e["kind"], e["round"], e["clients"], e["outcome"]) for e in of_clients]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local") / "run"
    return small.bits(run(experiment(folder, "local", at=99)).folder)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The client was dropped from round 2."""
    folder = tmp_path_factory.mktemp("without") / "run"
    return small.bits(run(experiment(folder, "local", "execution.on_failure=drop")).folder)


@pytest.fixture(scope="module")
def without_both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """So was who is trained together with it."""
    folder = tmp_path_factory.mktemp("both") / "run"
    small.plan(experiment(folder, "local", at=99), folder)

    class Both(small.InProcess):
        def fetch(self, ticket: str) -> bytes:
            kind, message = self._waiting.get(ticket, ("observe", b""))
            head = wire.unpack(message)[0] if kind == "work" else {"round": 0}
            if head["round"] == 2 and CLIENT in asked_in(head) and "answer" in head["steps"]:
                del self._waiting[ticket]
                raise Lost("its worker is gone")
            return super().fetch(ticket)

    small.run(experiment(folder, "local", "execution.on_failure=drop", at=99), folder, Both())
    return small.bits(folder)


# Ray


def workers() -> list[psutil.Process]:
    """The processes of our workers, whether they are at work or not."""
    inside = psutil.Process().children(recursive=True)
    return [p for p in inside if any("ray::_Worker" in part for part in p.cmdline())]


class Striking(small.Silent):
    """Does something when a round is over."""

    def __init__(self, what: Callable[[int], object]) -> None:
        self._what = what

    def round(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        self._what(record["round"])


@pytest.mark.slow
def test_a_worker_that_is_killed_from_outside_costs_one_try(
    reference: dict[str, bytes], cluster: None, tmp_path: Path
) -> None:
    """By its pid, while it may be at work or idle; whoever is left does the rest meanwhile."""

    def strike(round_: int) -> None:
        if round_ == 1:
            os.kill(workers()[0].pid, signal.SIGKILL)

    found = run(experiment(tmp_path / "run", "ray", at=99), Striking(strike))
    assert [o[0::3] for o in outcomes(found.folder)] == [("lost", "retried")]
    assert small.bits(found.folder) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "policy"), [("dies", "fail"), ("greedy", "retry"), ("sleeps", "retry")]
)
def test_what_happens_once_in_a_worker_changes_no_bit(
    reference: dict[str, bytes], cluster: None, tmp_path: Path, how: str, policy: str
) -> None:
    """It ends itself, has no memory left, or hangs."""
    overrides = [f"execution.on_failure={policy}"]
    if how == "sleeps":
        overrides.append("execution.deadline_s=3")
    marker = str(tmp_path / "happened")
    done = run(experiment(tmp_path / "run", "ray", *overrides, how=how, marker=marker))
    (event,) = small.events(done.folder)
    assert CLIENT in event["clients"] and (event["round"], event["outcome"]) == (2, "retried")
    assert event["kind"] == ("lost" if how == "dies" else "failure")
    cause = {"dies": "Actor", "greedy": "memory", "sleeps": "TooSlow: longer than 3 s"}[how]
    assert cause in event["cause"]
    assert small.bits(done.folder) == reference


def test_who_hangs_in_a_worker_is_dropped(
    without: dict[str, bytes], cluster: None, tmp_path: Path
) -> None:
    overrides = ("execution.on_failure=drop", "execution.deadline_s=3")
    done = run(experiment(tmp_path / "run", "ray", *overrides, how="stubborn"))
    assert outcomes(done.folder) == [("failure", 2, [CLIENT], "dropped")]
    assert small.bits(done.folder) == without


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fail", "retry", "drop"])
def test_a_client_that_kills_every_worker_ends_as_the_policy_says(
    without_both: dict[str, bytes], cluster: None, tmp_path: Path, policy: str
) -> None:
    """Work that was lost is done again twice, alone; then who was in it is dropped, or all ends.

    A run that has ended goes on with another policy where it was."""
    config = experiment(tmp_path / "run", "ray", f"execution.on_failure={policy}", how="dies")
    if policy == "drop":
        run(config)
    else:
        with pytest.raises(ClientFailure, match="round 2: client 2 was lost: Actor") as error:
            run(config)
        assert any("--resume" in note for note in error.value.__notes__)
        *tried, last = outcomes(tmp_path / "run")
        assert [t[0::3] for t in tried] == [("lost", "retried")] * 2
        assert last == ("lost", 2, [CLIENT], "stopped")

        def content(stored: Config) -> Config:
            tree = stored.model_dump(mode="json")
            return load_config(tree, ["execution.on_failure=drop"])

        resume(tmp_path / "run", content)
    said = outcomes(tmp_path / "run")
    assert said[-2:] == [("lost", 2, [c], "dropped") for c in (CLIENT, BESIDE)]
    assert small.bits(tmp_path / "run") == without_both


@pytest.mark.slow
def test_whoever_hears_no_alarm_is_ended_with_its_worker(
    reference: dict[str, bytes],
    without_both: dict[str, bytes],
    cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stuck with the signal blocked, as in foreign code: the server waits as long as a worker that
    looks to the time itself could take, and ends it then."""
    monkeypatch.setattr(asking, "_START_S", 12.0)
    patience = "execution.deadline_s=1"
    began = time.monotonic()
    marker = str(tmp_path / "happened")
    once = run(experiment(tmp_path / "once", "ray", patience, how="stuck", marker=marker))
    assert time.monotonic() - began < 80  # and not the 90 s that it would have taken
    (event,) = small.events(once.folder)
    assert (event["kind"], event["outcome"]) == ("lost", "retried")
    assert "it took longer than" in event["cause"] and CLIENT in event["clients"]
    assert small.bits(once.folder) == reference

    overrides = (patience, "execution.on_failure=drop", "execution.retries=0")
    always = run(experiment(tmp_path / "always", "ray", *overrides, how="stuck"))
    assert outcomes(always.folder) == [("lost", 2, [c], "dropped") for c in (CLIENT, BESIDE)]
    assert small.bits(always.folder) == without_both


@pytest.mark.slow
def test_all_workers_killed_at_once_cost_one_try_each(
    reference: dict[str, bytes], cluster: None, tmp_path: Path
) -> None:
    def strike(round_: int) -> None:
        if round_ == 1:
            for worker in workers():
                worker.kill()

    found = run(experiment(tmp_path / "run", "ray", at=99), Striking(strike))
    said = outcomes(found.folder)
    assert 1 <= len(said) <= 2 and {o[0::3] for o in said} == {("lost", "retried")}
    assert small.bits(found.folder) == reference


@pytest.mark.slow
def test_workers_that_never_come_up_are_an_error(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was lost with them, so others are tried, but not for ever."""

    class Stillborn:
        def __init__(self) -> None:
            raise OSError("nothing works here")

        def up(self) -> None: ...
        def serve(self, message: object) -> None: ...

    monkeypatch.setattr(rays, "_Worker", Stillborn)
    monkeypatch.setattr(rays, "_STILLBORN", 3)
    config = experiment(tmp_path / "run", "ray", "execution.retries=0", at=99)
    with pytest.raises(ClientFailure, match="client 0 was lost: Actor"):
        run(config)


@pytest.mark.slow
def test_where_ray_itself_fails_nobody_is_waited_for(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(grid: object) -> bool:
        raise rays.RayError("the head is gone")

    monkeypatch.setattr(rays.RayGrid, "_tend", fail)
    with pytest.raises(RuntimeError, match="ray: its session has failed: the head is gone"):
        run(experiment(tmp_path / "run", "ray", at=99))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("world", "kind"),
    [({"name": "stragglers", "deadline": 0.04, "jitter": 0.3}, "late"),
     pytest.param({"name": "dropout", "rate": 0.4}, "absent", marks=pytest.mark.slow)],
    ids=["stragglers", "dropout"],
)  # fmt: skip
def test_what_a_world_does_is_the_same_under_any_runtime(
    cluster: None, tmp_path: Path, world: dict[str, object], kind: str
) -> None:
    """Who is late or gone, and the virtual clock; student and teachers are the same bytes."""
    found = []
    for runtime in ("local", "ray"):
        where = (f"execution.runtime={runtime}", f"execution.out={tmp_path / runtime}")
        quiet = ("execution.workers=2", "rounds=3", "evaluation.teachers=false")
        done = run(small.config("entropy", *where, *quiet, world=world))
        assert not small.events(done.folder)  # it is no failure
        found.append(small.bits(done.folder))
    assert found[0] == found[1]
    assert any(r[kind] for r in done.records)
    times = [r["virtual_s"] for r in done.records]
    assert times == [None] * 3 if kind == "absent" else 0 < times[0] < times[1] < times[2]


# Flower's own engine


@pytest.mark.slow
def test_under_flowers_engine_a_client_that_fails_ends_as_the_policy_says(
    without: dict[str, bytes], tmp_path: Path
) -> None:
    """It hangs: workers look to the time themselves."""
    overrides = ("execution.on_failure=drop", "execution.deadline_s=3")
    done = run(experiment(tmp_path / "run", "flower", *overrides, how="sleeps"))
    assert outcomes(done.folder) == [("failure", 2, [CLIENT], "dropped")]
    assert small.bits(done.folder) == without


@pytest.mark.slow
def test_under_flowers_engine_a_dead_worker_takes_later_work_along(
    reference: dict[str, bytes], tmp_path: Path
) -> None:
    """A limit of that engine: it gives a dead worker more work and never replaces it.

    So a dead worker costs tries for as long as the run goes on, or the run; it does not hang, and
    it goes on under another runtime to the bytes that it would have come to.
    """
    marker = str(tmp_path / "happened")
    overrides = ("flower", "execution.retries=0")
    config = experiment(tmp_path / "run", *overrides, how="dies", marker=marker)
    with pytest.raises(ClientFailure, match=r"client \d was lost"):
        run(config)
    said = small.events(tmp_path / "run")
    assert {e["kind"] for e in said} == {"lost"} and said[-1]["outcome"] == "stopped"
    assert "ActorDiedError" in said[-1]["cause"]

    def elsewhere(stored: Config) -> Config:
        return load_config(stored.model_dump(mode="json"), ["execution.runtime=local"])

    resume(tmp_path / "run", elsewhere)
    assert small.bits(tmp_path / "run") == reference


@pytest.mark.slow
def test_under_flowers_engine_who_hears_no_alarm_is_not_waited_for(
    reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is given up and another worker does it. A limit of that engine: it does not end the
    worker that is stuck, and at the end of the run it waits for it."""
    monkeypatch.setattr(asking, "_START_S", 12.0)
    marker = str(tmp_path / "happened")
    patience = "execution.deadline_s=1"
    done = run(experiment(tmp_path / "run", "flower", patience, how="stuck", marker=marker))
    assert {o[0::3] for o in outcomes(done.folder)} == {("lost", "retried")}
    assert small.bits(done.folder) == reference


# Nodes


NODES = """
import json, sys, threading
from pathlib import Path

def main(out, kinds, tests, store):
    sys.path.insert(0, tests)
    import ray
    from ray.cluster_utils import Cluster
    import small
    import test_lost_workers as lost
    from fedkd import run

    small_store = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 0, "include_dashboard": False, **small_store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, **small_store) for _ in range(2)]
    cluster.wait_for_nodes()

    def strike(round_):
        if kinds.get(str(round_)):
            node = nodes.pop()
            graceful = kinds[str(round_)] == "stopped"
            threading.Thread(target=cluster.remove_node, args=(node, graceful)).start()

    where = [f"execution.address={cluster.address}", "execution.workers=4",
             f"execution.store={store}", "compute.stack=1", "learning.private.epochs=20"]
    config = lost.experiment(Path(out), "ray", *where, at=99)
    try:
        run(config, lost.Striking(strike))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    ray.shutdown()
    cluster.shutdown()

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4])
"""


def with_two_nodes(folder: Path, kinds: dict[int, str], store: str = "folder") -> str:
    """A run over a cluster of two nodes, in a process of its own; what it says at the end."""
    script = folder / "nodes.py"
    script.write_text(NODES)
    words = [str(folder / "run"), json.dumps(kinds), str(TESTS), store]
    # nothing of a cluster is to outlive the test, whatever becomes of the run
    with subprocess.Popen(
        [sys.executable, script, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    ) as process:  # fmt: skip
        inside: Sequence[psutil.Process] = []
        try:
            said, errors = process.communicate(timeout=LIMIT_S - 40)
        finally:
            if process.poll() is None:
                inside = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            for child in inside:
                child.kill()
    assert process.returncode == 0, errors[-3000:]
    return said


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one") / "run"
    overrides = ("compute.stack=1", "learning.private.epochs=20")
    return small.bits(run(experiment(folder, "local", *overrides, at=99)).folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "store"), [("stopped", "folder"), ("killed", "folder"), ("killed", "carried")]
)
def test_of_two_nodes_one_is_lost_and_no_bit_changes(
    one_by_one: dict[str, bytes], tmp_path: Path, kind: str, store: str
) -> None:
    """Its raylet ends in an orderly way, or is gone; two of four workers go with it."""
    with_two_nodes(tmp_path, {1: kind}, store)
    said = outcomes(tmp_path / "run")
    assert said and {o[0::3] for o in said} == {("lost", "retried")}
    assert small.bits(tmp_path / "run") == one_by_one


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_with_all_nodes_lost_the_run_ends_and_goes_on_elsewhere(
    one_by_one: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    said = with_two_nodes(tmp_path, {1: kind, 2: kind})
    assert "client 0 was lost: no node is left that has room for a worker" in said
    assert [r["round"] for r in small.records(tmp_path / "run")] == [1, 2]

    def elsewhere(stored: Config) -> Config:
        there = ["execution.runtime=local", "execution.address=null"]
        return load_config(stored.model_dump(mode="json"), there)

    resume(tmp_path / "run", elsewhere)
    assert small.bits(tmp_path / "run") == one_by_one
