"""Client state between messages, and the commit that makes a round final."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedkd.store import (
    Carried,
    Commit,
    Folder,
    commit,
    last_commit,
    prefixed,
    ref,
    shard_of,
    to_bytes,
    under,
    write_atomically,
)
from fedkd.types import State


def state(seed: int) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {
        "weights": torch.randn(7, generator=rng),
        "buffer/norm.num_batches_tracked": torch.tensor(seed),
        "up/seen": torch.rand(2, 3, generator=rng) > 0.5,
        "moments/adam/steps": torch.tensor([float(seed)], dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def in_folder(tmp_path: Path, shard: str, states: dict[int, State]) -> Callable[[str], State]:
    Folder(tmp_path / "clients").put(shard, states)
    return Folder(tmp_path / "clients").get  # as another process would


def in_messages(tmp_path: Path, shard: str, states: dict[int, State]) -> Callable[[str], State]:
    """A worker puts, the reply carries, the next message carries back."""
    worker = Carried({})
    worker.put(shard, states)
    return Carried(worker.written).get


BOTH = pytest.mark.parametrize("keep", [in_folder, in_messages])


@BOTH
def test_what_is_put_is_what_comes_back(
    tmp_path: Path, keep: Callable[..., Callable[[str], State]]
) -> None:
    """Also of clients whose ids begin alike, and of scalars, flags and empty tensors."""
    states = {1: state(1), 11: state(2), 111: state(3)}
    get = keep(tmp_path, "000001-000001-000001", states)
    for client, expected in states.items():
        same(get(ref("000001-000001-000001", client)), expected)


def test_both_back_ends_keep_the_same_bytes(tmp_path: Path) -> None:
    states = {3: state(1), 4: state(2)}
    folder, carried = Folder(tmp_path), Carried({})
    folder.put("a", states)
    carried.put("a", states)
    assert folder.bytes_of("a") == carried.written["a"] == to_bytes(states)
    folder.put_bytes("b", carried.written["a"])
    assert folder.bytes_of("b") == folder.bytes_of("a")


def test_bytes_do_not_depend_on_where_tensors_lay() -> None:
    wide = torch.arange(12.0).view(3, 4)
    one = to_bytes({0: {"weights": wide.t()}})
    assert one == to_bytes({0: {"weights": wide.t().contiguous()}})
    assert one != to_bytes({0: {"weights": wide.t() + 1}})


def test_a_later_shard_leaves_the_earlier_one_as_it_is(tmp_path: Path) -> None:
    """A late writer of an abandoned round writes a shard that nobody names."""
    folder = Folder(tmp_path)
    folder.put("000001-000001-000000", {0: state(1)})
    before = folder.bytes_of("000001-000001-000000")
    folder.put("000002-000002-000000", {0: state(2)})
    assert folder.bytes_of("000001-000001-000000") == before
    same(folder.get(ref("000001-000001-000000", 0)), state(1))
    # the same task once more, as after a worker's death: the same name, the same bytes
    folder.put("000001-000001-000000", {0: state(1)})
    assert folder.bytes_of("000001-000001-000000") == before


def test_a_state_read_is_ones_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a", {0: state(1)})
    folder.get(ref("a", 0))["weights"].zero_()
    same(folder.get(ref("a", 0)), state(1))


def test_no_half_written_file_is_left_or_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, b"old")

    def fails(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fedkd.store.os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pruning_keeps_the_shards_that_are_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for shard in ("old", "half", "new"):
        folder.put(shard, {0: state(1), 1: state(2)})
    folder.prune([ref("new", 0), ref("half", 1)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "new.safetensors"]
    same(folder.get(ref("half", 1)), state(2))


def test_a_commit_is_read_back_whole(tmp_path: Path) -> None:
    clients = Folder(tmp_path / "clients")
    clients.put("a", {0: state(1), 1: state(2)})
    clients.put("b", {1: state(3)})
    server = {"student/weights": torch.randn(5), "round_rows": torch.arange(6).view(2, 3)}
    refs = {10: ref("a", 10), 0: ref("a", 0), 1: ref("b", 1)}
    made = Commit(4, server, refs, {"tasks": 7})
    commit(tmp_path / "commits", made, clients)
    found = last_commit(tmp_path / "commits")
    assert found is not None and found.round == 4 and found.counters == {"tasks": 7}
    assert found.refs == refs
    same(found.server, server)


def test_before_the_first_commit_there_is_none(tmp_path: Path) -> None:
    assert last_commit(tmp_path) is None


def test_a_commit_replaces_the_one_before_and_clears_what_nobody_needs(tmp_path: Path) -> None:
    clients, folder = Folder(tmp_path / "clients"), tmp_path / "commits"
    for round_ in (1, 2, 3):
        clients.put(f"r{round_}", {0: state(round_)})
        commit(
            folder, Commit(round_, {"x": torch.tensor(round_)}, {0: ref(f"r{round_}", 0)}), clients
        )
    found = last_commit(folder)
    assert found is not None and found.round == 3
    same(clients.get(found.refs[0]), state(3))
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "server-000003.safetensors",
    ]
    assert [p.name for p in clients.root.iterdir()] == ["r3.safetensors"]


def test_until_the_manifest_is_renamed_the_round_before_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the server's shard and the manifest: nothing of round 1 is lost."""
    clients, folder = Folder(tmp_path / "clients"), tmp_path / "commits"
    clients.put("r1", {0: state(1)})
    commit(folder, Commit(1, {"x": torch.tensor(1)}, {0: ref("r1", 0)}), clients)
    clients.put("r2", {0: state(2)})

    def killed(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr("fedkd.store.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(folder, Commit(2, {"x": torch.tensor(2)}, {0: ref("r2", 0)}), clients)
    found = last_commit(folder)
    assert found is not None and found.round == 1
    same(found.server, {"x": torch.tensor(1)})
    same(clients.get(found.refs[0]), state(1))


@pytest.mark.parametrize("damage", ["a bit", "the end"])
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "commits"
    commit(folder, Commit(1, {"x": torch.randn(9)}, {}), Folder(tmp_path / "clients"))
    shard = folder / "server-000001.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "a bit":
        content[-3] ^= 1
    shard.write_bytes(content[:-4] if damage == "the end" else content)
    with pytest.raises(ValueError, match=r"commit: .*server-000001.*does not match its manifest"):
        last_commit(folder)


def test_the_manifest_is_plain_and_sorted(tmp_path: Path) -> None:
    made = Commit(2, {"x": torch.zeros(1)}, {10: ref("b", 10), 9: ref("a", 9)}, {"tasks": 3})
    commit(tmp_path / "one", made, Folder(tmp_path / "clients"))
    commit(tmp_path / "two", made, Folder(tmp_path / "clients"))
    text = (tmp_path / "one" / "manifest.json").read_text()
    assert text == (tmp_path / "two" / "manifest.json").read_text()
    assert json.loads(text)["refs"] == {"9": "a#9", "10": "b#10"}


def test_refs_and_prefixes() -> None:
    assert shard_of(ref("000001-000002-000003", 4)) == "000001-000002-000003"
    named = {"a/b": torch.tensor(1), "ab": torch.tensor(2)}
    assert prefixed("p/", named).keys() == {"p/a/b", "p/ab"}
    assert under("a/", named).keys() == {"b"}
    same(under("p/", prefixed("p/", named)), named)
