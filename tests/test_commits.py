"""Commits: made or not made whatever happens, and read back whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import resuming
import small
import torch
from resuming import Failpoint
from safetensors.torch import save

from fedkd import disk
from fedkd.commits import LOGS, SCHEMA, Commit, Commits
from fedkd.store import Folder, digest, ref
from fedkd.types import State

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="which file is written is looked up in /proc"
)


def tensors(seed: int) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {
        "student/weights": torch.randn(7, generator=rng),
        "moments/adam/steps": torch.tensor([float(seed)], dtype=torch.float64),
        "round_rows": torch.arange(seed % 5),
    }


def commits(run: Path, keep: int = 2) -> tuple[Commits, list[str]]:
    run.mkdir(exist_ok=True)
    told: list[str] = []
    return Commits(run, Folder(run / "clients"), keep, told.append), told


def shard(run: Path, name: str, *clients: int) -> dict[str, str]:
    """A shard on the disk, and its checksum by name."""
    states = {c: {"weights": torch.full((3,), float(c))} for c in clients}
    return {name: Folder(run / "clients").put(name, states)}


def made(run: Path, rounds: int = 3, keep: int = 2) -> list[Commit]:
    """A run of so many rounds in which client 0 always takes part and client 1 in the first."""
    commits_, _ = commits(run, keep)
    assert commits_.last() is None
    found, first = [], shard(run, "000001-0-000001-000001", 1)
    for number in range(1, rounds + 1):
        own = f"{number:06d}-0-000001-000000"
        shards = first | shard(run, own, 0)
        refs = {0: ref(own, 0), 1: ref("000001-0-000001-000001", 1)}
        commit = Commit(number, tensors(number), refs, shards, 1.5 * number)
        for log in LOGS:
            commits_.log(log, {"round": number, "of": log})
        commits_.add(commit)
        found.append(commit)
    return found


def same(run: Path, found: Commit | None, expected: Commit) -> bool:
    """All that a commit says, and the states that it names."""
    if found is None:
        return False
    states = Folder(run / "clients")
    return (
        (found.round, found.refs, found.shards, found.clock)
        == (expected.round, expected.refs, expected.shards, expected.clock)
        and found.server.keys() == expected.server.keys()
        and all(torch.equal(found.server[k], t) for k, t in expected.server.items())
        and all(states.get(r)["weights"].tolist() == [c] * 3 for c, r in found.refs.items())
    )


def lines(run: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (run / LOGS[0]).read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_last_commit_is_read_back_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    *_, last = made(run)
    commits_, told = commits(run)
    assert same(run, commits_.last(), last) and not told
    assert lines(run) == [1, 2, 3]
    # and it goes on from there as if nothing had been
    commits_.log(LOGS[0], {"round": 4})
    commits_.add(Commit(4, tensors(4), last.refs, last.shards))
    assert same(run, commits(run)[0].last(), Commit(4, tensors(4), last.refs, last.shards))


def test_the_last_few_are_kept_and_what_they_name(tmp_path: Path) -> None:
    for keep in (1, 2, 3):
        run = tmp_path / str(keep)
        made(run, rounds=4, keep=keep)
        kept = range(5 - keep, 5)
        ends = ("json", "safetensors")
        assert names(run / "commits") == sorted(f"{r:06d}.{end}" for r in kept for end in ends)
        shards = {"000001-0-000001-000001", *(f"{r:06d}-0-000001-000000" for r in kept)}
        assert names(run / "clients") == sorted(f"{s}.safetensors" for s in shards)


def test_what_came_after_the_last_commit_is_removed(tmp_path: Path) -> None:
    """Records of rounds that were not committed, shards, parts and drafts; nothing else."""
    run = tmp_path / "run"
    *_, last = made(run, rounds=2)
    before = names(run / "clients"), names(run / "commits")
    disk.append(run / LOGS[0], b'{"round": 3}\n{"rou')
    shard(run, "000003-0-000001-000000", 0)
    (run / "clients" / ".000003-0-000001-000001.safetensors.9.draft").write_bytes(b"half")
    (run / "commits" / "000003.safetensors").write_bytes(b"a part without its manifest")
    (run / "commits" / ".000003.json.9.draft").write_bytes(b"half a manifest")
    for place in ("clients", "commits"):
        (run / place / "notes.txt").write_text("the only copy")
    commits_, told = commits(run)
    assert same(run, commits_.last(), last) and not told
    assert (run / LOGS[0]).read_text().count("\n") == 2
    for place, expected in zip(("clients", "commits"), before, strict=True):
        assert names(run / place) == sorted([*expected, "notes.txt"])


def test_between_commits_shards_of_both_are_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    *_, last = made(run, rounds=1)
    commits_, _ = commits(run)
    commits_.last()
    shards = shard(run, "000002-0-000001-000000", 0) | shard(run, "000002-0-000002-000000", 0)
    del shards["000002-0-000001-000000"]
    commits_.forget(Commit(2, tensors(2), {0: ref("000002-0-000002-000000", 0)}, shards))
    assert {p.removesuffix(".safetensors") for p in names(run / "clients")} == {
        *last.shards,
        *shards,
    }


def test_a_commit_is_plain_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(tmp_path / name)
    for path in ("000003.json", "000003.safetensors"):
        one, other = ((tmp_path / n / "commits" / path).read_bytes() for n in ("a", "b"))
        assert one == other
    seal, text = (tmp_path / "a/commits/000003.json").read_text().splitlines()
    assert seal == hashlib.sha256(text.encode()).hexdigest()
    body = json.loads(text)
    assert (body["schema"], body["round"], body["clock"]) == (SCHEMA, 3, 4.5)
    assert body["shards"]["000001-0-000001-000001"]["clients"] == [1]


Damage = Callable[[Path], object]


def sealed(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a manifest and put its checksum right again, as an enemy would."""

    def damage(path: Path) -> None:
        body = json.loads(path.read_bytes().partition(b"\n")[2])
        change(body)
        text = json.dumps(body, separators=(",", ":")).encode()
        path.write_bytes(digest(text).encode() + b"\n" + text + b"\n")

    return damage


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Damage] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flipped,
    "gone": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: disk.append(path, b"\0"),
    "a terabyte": lambda path: os.truncate(path, 1 << 40),
    "a pipe": pipe_instead,
}
PARTS = {
    "manifest": "commits/000003.json",
    "server": "commits/000003.safetensors",
    "clients": "clients/000003-0-000001-000000.safetensors",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_if_a_part_is_damaged_the_commit_before_holds(
    tmp_path: Path, part: str, damage: str
) -> None:
    run = tmp_path / "run"
    _, before, _ = made(run)
    DAMAGE[damage](run / PARTS[part])
    commits_, told = commits(run)
    assert same(run, commits_.last(), before)
    if (part, damage) == ("manifest", "gone"):  # as if it had never been made
        assert not told
    else:
        (said,) = told
        assert said.startswith("commit 000003: ")
    assert lines(run) == [1, 2]
    assert "000003.json" not in names(run / "commits")
    assert same(run, commits(run)[0].last(), before)


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_log_holds_as_far_as_it_is_whole(tmp_path: Path, log: str, damage: str) -> None:
    run = tmp_path / "run"
    one, *_ = made(run, keep=3)
    path = run / log
    end = len(path.read_bytes().splitlines(keepends=True)[0])
    if damage in ("cut", "flipped"):  # within the second line
        content = bytearray(path.read_bytes())
        content[end + 3] ^= 1
        path.write_bytes(content[: end + 3] if damage == "cut" else content)
    else:
        DAMAGE[damage](path)
    commits_, told = commits(run)
    found = commits_.last()
    if damage in ("cut", "flipped"):
        assert same(run, found, one) and len(told) == 2
        assert lines(run) == [1]
    else:
        assert found is None and len(told) == 3
        assert not lines(run) and not names(run / "clients")
    assert all(log in said for said in told)


def test_an_older_commit_may_be_damaged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    *_, last = made(run)
    flipped(run / "commits/000002.json")
    commits_, told = commits(run)
    assert same(run, commits_.last(), last)
    assert len(told) == 1 and told[0].startswith("commit 000002: its manifest does not have the")
    assert "000002.safetensors" not in names(run / "commits")


ABSURD: dict[str, Callable[[dict[str, Any]], object]] = {
    "a round": lambda m: m.update(round=10**30),
    "round 0": lambda m: m.update(round=0),
    "no round": lambda m: m.pop("round"),
    "text": lambda m: m.update(round="3"),
    "yes": lambda m: m.update(round=True),
    "a clock": lambda m: m.update(clock=-1.0),
    "no clock": lambda m: m.update(clock=float("inf")),
    "a key": lambda m: m.update(other=1),
    "a path": lambda m: m["shards"].update({"../../victim": m["shards"].popitem()[1]}),
    "a long name": lambda m: m["shards"].update({"a" * 10**6: m["shards"].popitem()[1]}),
    "a name": lambda m: m["shards"].update({"a\0b": m["shards"].popitem()[1]}),
    "a log": lambda m: m["logs"].update(other=m["logs"]["records.jsonl"]),
    "no log": lambda m: m["logs"].pop("records.jsonl"),
    "a long log": lambda m: m["logs"]["records.jsonl"].update(bytes=1 << 50),
    "a longer log": lambda m: m["logs"]["records.jsonl"].update(bytes=10**30),
    "a long part": lambda m: m["server"].update(bytes=10**30),
    "a long shard": lambda m: next(iter(m["shards"].values())).update(bytes=1 << 62),
    "a client twice": lambda m: [s["clients"].append(0) for s in m["shards"].values()],
    "a client below 0": lambda m: next(iter(m["shards"].values()))["clients"].append(-1),
    "half a client": lambda m: next(iter(m["shards"].values()))["clients"].append(0.5),
    "no checksum": lambda m: m["server"].update(sha256="0" * 63),
    "another checksum": lambda m: m["server"].update(sha256="0" * 64),
    "depth": lambda m: m.update(other=json.loads("[" * 400 + "]" * 400)),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_manifest_that_is_sealed_and_absurd_is_refused(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (tmp_path / "victim.safetensors").write_bytes(b"the only copy")
    _, before, _ = made(run)
    sealed(ABSURD[name])(run / "commits/000003.json")
    commits_, told = commits(run)
    assert same(run, commits_.last(), before) and len(told) == 1, told
    assert (tmp_path / "victim.safetensors").read_bytes() == b"the only copy"
    assert len(told[0]) < 1000 and "\n" not in told[0]


def test_a_commit_of_an_absurd_round_by_its_own_name(tmp_path: Path) -> None:
    """What cannot be seen in a commit alone is the business of whoever knows the experiment."""
    run = tmp_path / "run"
    made(run)
    sealed(lambda m: m.update(round=10**30))(run / "commits/000003.json")
    for end in (".json", ".safetensors"):
        (run / f"commits/000003{end}").rename(run / f"commits/{10**30}{end}")

    def fits(found: Commit) -> None:
        if found.round > 5:
            raise ValueError("there are 5 rounds")

    commits_, told = commits(run)
    found = commits_.last(fits)
    assert found is not None and found.round == 2
    assert told == [f"commit {10**30}: there are 5 rounds"]


def test_an_older_manifest_that_is_sealed_and_absurd_goes(tmp_path: Path) -> None:
    """Its names are read as well, to know what is still needed."""
    run = tmp_path / "run"
    *_, last = made(run)
    sealed(ABSURD["a path"])(run / "commits/000002.json")
    commits_, told = commits(run)
    assert same(run, commits_.last(), last) and len(told) == 1
    assert names(run / "commits") == ["000003.json", "000003.safetensors"]


def test_depth_that_no_parser_stands(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _, before, _ = made(run)
    text = b'{"schema":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (run / "commits/000003.json").write_bytes(digest(text).encode() + b"\n" + text + b"\n")
    commits_, told = commits(run)
    assert same(run, commits_.last(), before) and len(told) == 1


def test_a_manifest_of_another_schema_gives_way_to_one_that_is_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _, before, _ = made(run)
    sealed(lambda m: m.update(schema=SCHEMA + 1, new="?"))(run / "commits/000003.json")
    commits_, told = commits(run)
    assert same(run, commits_.last(), before)
    assert told == [f"commit 000003: schema {SCHEMA} is read here, found {SCHEMA + 1}"]


def test_a_run_of_another_version_is_not_thrown_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made(run)
    for number in (2, 3):
        sealed(lambda m: m.update(schema=SCHEMA + 1))(run / f"commits/{number:06d}.json")
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    with pytest.raises(disk.DiskError, match="should hold commits that this version reads, found"):
        commits(run)[0].last()
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before


def test_a_disk_that_refuses_costs_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what cannot be read just now is damaged, nor what cannot be cut."""
    run = tmp_path / "run"
    *_, last = made(run)
    disk.append(run / LOGS[0], b"more")
    opened = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if str(path).endswith("000003.safetensors"):
            raise OSError(24, "Too many open files")
        return opened(path, *rest)

    for name, does in (("open", refuse), ("ftruncate", lambda *_: _raise(OSError(30, "read")))):
        with monkeypatch.context() as patch:
            commits_, told = commits(run)
            patch.setattr(f"fedkd.disk.os.{name}", does)
            with pytest.raises(disk.DiskError, match=r"could not be (read|written)"):
                commits_.last()
        assert not told
    assert same(run, commits(run)[0].last(), last)


def _raise(error: Exception) -> None:
    raise error


def test_tensors_that_are_sealed_and_none_are_refused(tmp_path: Path) -> None:
    """A header that announces terabytes, kinds that are not known here, no header at all."""
    tera = {"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    small_ = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    odd = {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 4]}}
    for number, header in enumerate((tera, small_, odd, [], {"a": 1}, None, "x" * 10**6)):
        run = tmp_path / str(number)
        _, before, _ = made(run)
        head = json.dumps(header).encode()
        content = len(head).to_bytes(8, "little") + head + bytes(4)
        if header is None:
            content = (1 << 62).to_bytes(8, "little") + bytes(20)
        (run / "commits/000003.safetensors").write_bytes(content)
        told_of = {"bytes": len(content), "sha256": digest(content)}
        sealed(lambda m, t=told_of: m.update(server=t))(run / "commits/000003.json")  # type: ignore[misc]
        commits_, told = commits(run)
        assert same(run, commits_.last(), before), header
        assert len(told) == 1


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Somewhere else: bits flipped, a piece cut out, doubled, zeroed or put elsewhere."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(raw) + 1), rng.choice((1, 2, 8, 64, 1000))
        match rng.randrange(6):
            case 0 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = raw[at : at + length] or b"x"
            case 3:
                raw[at : at + length] = bytes(len(raw[at : at + length]))
            case 4:
                raw[at:at] = rng.randbytes(length)
            case _:
                del raw[at:]
    return bytes(raw)


NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308, 1e-308)
VALUES = (*NUMBERS, None, True, "", "x" * 5000, "../../victim", "..", "/etc/passwd", [], {}, [[]])


def reshaped(rng: random.Random, node: Any) -> Any:  # Any: JSON
    """A tree with an absurd value, a key more or less, or a part of itself somewhere."""
    if isinstance(node, dict) and node and rng.random() < 0.85:
        key = rng.choice(sorted(node))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in node.items() if k != key}
            case 1:
                return {**node, str(rng.choice(VALUES)): node[key]}
            case _:
                return {**node, key: reshaped(rng, node[key])}
    if isinstance(node, list) and node and rng.random() < 0.5:
        at = rng.randrange(len(node))
        return [*node[:at], reshaped(rng, node[at]), *node[at + 1 :]]
    if isinstance(node, list) and rng.random() < 0.5:
        return node * rng.choice((0, 2, 1000)) + [rng.choice(VALUES)]
    if isinstance(node, str) and rng.random() < 0.5:
        return mutated(rng, node.encode()).decode("latin-1")
    return rng.choice(VALUES)


def disturbed(rng: random.Random, run: Path, base: Path) -> bool:
    """Change something about a copy of `base`; whether the checksums were put right again."""
    manifests = [base / f"commits/{number:06d}.json" for number in (2, 3)]
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.stat().st_size < 1 << 20]
    path = rng.choice(files)
    match rng.randrange(12):
        case 0:
            path.unlink()
        case 1:
            rng.choice((folder_instead, pipe_instead))(path)
        case 2:
            path.write_bytes(rng.choice(files).read_bytes())
        case 3:
            os.truncate(path, rng.choice((0, 1, 1 << 40)))
        case 4 | 5 | 6:
            path = rng.choice(manifests)
            body = json.loads(path.read_bytes().partition(b"\n")[2])
            text = json.dumps(reshaped(rng, body)).encode()
            seal = digest(text).encode()
            forge(run / "commits" / path.name, seal + b"\n" + text + b"\n")
            return True
        case 7:
            path = rng.choice(manifests)
            content = mutated(rng, path.with_suffix(".safetensors").read_bytes())
            forge((run / "commits" / path.name).with_suffix(".safetensors"), content)
            forge(run / "commits" / path.name, path.read_bytes())
            about = {"bytes": len(content), "sha256": digest(content)}
            sealed(lambda m: m.update(server=about))(run / "commits" / path.name)
            return True
        case _:
            path.write_bytes(mutated(rng, path.read_bytes()))
    return False


def forge(path: Path, content: bytes) -> None:
    """Put this there, whatever there is."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def fuzzed(tmp_path: Path, seed: int, count: int) -> None:
    """Read so many disturbed run folders, in half a gibibyte more than there is."""
    base = tmp_path / "base"
    expected = {c.round: c for c in made(base)}
    outside = tmp_path / "victim.safetensors"
    outside.write_bytes(b"the only copy")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), resource.RLIM_INFINITY))
    seen: dict[str, int] = dict.fromkeys(("whole", "before", "none", "forged"), 0)
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        run = tmp_path / "runs" / "run"
        shutil.copytree(base, run)
        forged = False
        for _ in range(rng.choice((1, 1, 2, 4))):
            forged |= disturbed(rng, run, base)
        try:
            disk.refuse_strangers(run)
            found = commits(run)[0].last(lambda c: _raise(ValueError()) if c.round > 9 else None)
        except disk.DiskError:
            # another version's, or what is no file stands where one of ours should be
            odd = [p for p in run.rglob("*.*") if not p.is_file()]
            assert forged or odd, (seed, number)
            found = None
        if not forged:
            assert found is None or same(run, found, expected[found.round]), (seed, number)
        kind = "none" if found is None else "whole" if found.round == 3 else "before"
        seen["forged" if forged else kind] += 1
        shutil.rmtree(run)
        assert outside.read_bytes() == b"the only copy"
        assert names(tmp_path / "runs") == [] and len(names(tmp_path)) == 3
    assert all(seen.values()), seen


@needs_proc
def test_disturbed_commits_are_read_equal_or_refused(tmp_path: Path) -> None:
    assert resuming.forked(lambda: fuzzed(tmp_path, 1, 250)) == 0


@needs_proc
@pytest.mark.slow
def test_ten_thousand_disturbed_commits_are_read_equal_or_refused(tmp_path: Path) -> None:
    jobs = {}
    for seed in (2, 3, 4, 5):
        (tmp_path / str(seed)).mkdir()
        jobs[str(seed)] = lambda s=seed: fuzzed(tmp_path / str(s), s, 3000)  # type: ignore[misc]
    resuming.each(jobs)


@pytest.fixture(scope="module", params=resuming.METHODS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[resuming.Call]]:
    """A run that nobody has interrupted, and what it did to the disk."""
    path = tmp_path_factory.mktemp("whole") / request.param
    resuming.prepared(resuming.experiment(request.param), path)
    return path, resuming.calls_of(path, lambda: resuming.carried_out(path))


def survived(whole: Path, path: Path, *ends: Failpoint) -> None:
    """Kill a run, and each attempt to go on with it, at these failpoints; then go on in peace."""
    resuming.prepared(resuming.experiment(whole.name), path, whole)
    assert resuming.killed(path, ends[0], lambda: resuming.carried_out(path))
    for end in ends[1:]:
        resuming.killed(path, end, lambda: resuming.carried_out(path))
    resuming.resumed(path)
    assert small.bits(path) == small.bits(whole)
    last = json.loads((path / "run.json").read_bytes())
    assert last["status"] == "finished"
    drafts = [p for p in path.rglob(".*") if p.name != ".lock"]
    assert not drafts, "what a dead process left behind is cleared away"
    assert len(names(path / "commits")) == 4
    shutil.rmtree(path)


def of_a_commit(calls: list[resuming.Call], number: int) -> Iterator[int]:
    """From the records of a round to the last thing that its commit prunes."""
    lines_ = [i for i, call in enumerate(calls) if str(call) == "write records.jsonl"]
    end = next(i for i, c in enumerate(calls) if i > lines_[number - 1] and c.name == "open")
    while not calls[end].file.startswith("clients"):
        end = next(i for i, c in enumerate(calls) if i > end and c.name == "open")
    return iter(range(lines_[number - 1], end))


@needs_proc
def test_killed_while_a_round_is_committed(
    tmp_path: Path, whole: tuple[Path, list[resuming.Call]]
) -> None:
    """Some of the failpoints; the slow tests go through all."""
    path, calls = whole
    inside = {
        point
        for point in resuming.failpoints(calls)
        if point.at in set(of_a_commit(calls, len(small.records(path)) - 1))
    }
    some = random.Random(path.name).sample(sorted(inside), 8)
    resuming.each({f"{p.how} {calls[p.at]}": _job(path, tmp_path, p) for p in some})


def _job(whole: Path, place: Path, *ends: Failpoint) -> Callable[[], None]:
    name = "+".join(f"{end.at}{end.how}" for end in ends)
    return lambda: survived(whole, place / name, *ends)


@needs_proc
@pytest.mark.slow
def test_killed_at_every_write_sync_and_rename(
    tmp_path: Path, whole: tuple[Path, list[resuming.Call]]
) -> None:
    path, calls = whole
    assert {"open", "write", "fsync", "replace", "unlink", "mkdir"} <= {c.name for c in calls}
    points = list(resuming.failpoints(calls))
    resuming.each({f"{p} {calls[p.at]}": _job(path, tmp_path, p) for p in points})


@needs_proc
@pytest.mark.slow
def test_killed_while_going_on_after_being_killed(
    tmp_path: Path, whole: tuple[Path, list[resuming.Call]]
) -> None:
    """Twice and three times, at failpoints drawn by chance."""
    path, calls = whole
    rng, points = random.Random(f"again {path.name}"), list(resuming.failpoints(calls))
    jobs = {}
    for _ in range(60):
        first = rng.choice(points)
        # what goes on does less, and most of it matters at the beginning
        later = [Failpoint(rng.randrange(60), rng.choice(points).how) for _ in range(2)]
        jobs[str((first, later))] = _job(path, tmp_path, first, *later[: rng.choice((1, 2))])
    resuming.each(jobs)


def test_the_smallest_tensors_that_there_are(tmp_path: Path) -> None:
    """A method without a state and a client that has none: nothing to keep, and yet a commit."""
    run = tmp_path / "run"
    commits_, _ = commits(run)
    commits_.last()
    commits_.add(Commit(1, {}, {}, {}))
    found = commits(run)[0].last()
    assert found == Commit(1, {}, {}, {}, 0.0)
    assert (run / "commits/000001.safetensors").read_bytes() == save({})
