"""Client state between messages, and what is written to the disk and read from it."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedkd import disk
from fedkd.store import Carried, Folder, digest, prefixed, ref, shard_of, to_bytes, under
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


def test_put_gives_the_checksum_of_the_shard(tmp_path: Path) -> None:
    folder, carried = Folder(tmp_path), Carried({})
    states = {0: state(1)}
    assert folder.put("a", states) == carried.put("a", states) == digest(to_bytes(states))
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".", "a.b", "a" * 100, "a\0", "a\n"])
def test_a_shard_has_no_other_name_than_ours(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "clients")
    for attempt in (
        lambda: folder.put(name, {0: state(1)}),
        lambda: folder.put_bytes(name, b""),
        lambda: folder.get(ref(name, 0)),
        lambda: folder.bytes_of(name),
    ):
        with pytest.raises(ValueError, match=r"shard: letters, digits and '-' expected, found"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["clients"]
    assert not list((tmp_path / "clients").iterdir())


def test_pruning_keeps_the_shards_that_are_named(tmp_path: Path) -> None:
    """And whatever is no shard: somebody's notes, a draft that is being written."""
    folder = Folder(tmp_path)
    for shard in ("old", "half", "new"):
        folder.put(shard, {0: state(1), 1: state(2)})
    others = ("notes.txt", ".half.safetensors.7.draft", ".nfs0001", "a.b.safetensors")
    for name in others:
        (tmp_path / name).touch()
    folder.prune(["new", "half"])
    kept = {"half.safetensors", "new.safetensors", *others}
    assert {p.name for p in tmp_path.iterdir()} == kept
    same(folder.get(ref("half", 1)), state(2))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "clients").symlink_to(tmp_path / "nowhere")
    with pytest.raises(disk.DiskError, match=r"disk: .*clients could not be made: File exists"):
        Folder(tmp_path / "clients")


def test_no_half_written_file_is_left_or_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    disk.write_atomically(path, b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"fedkd.disk.os.{call}", lambda *_: raised(full))
            with pytest.raises(disk.DiskError) as failure:
                disk.write_atomically(path, b"new")
        said = f"disk: {path} could not be written: No space left on device"
        assert str(failure.value) == said
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def raised(error: BaseException) -> None:
    raise error


def test_a_write_in_parts_is_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it is given."""
    write, path = os.write, tmp_path / "log"
    monkeypatch.setattr("fedkd.disk.os.write", lambda handle, rest: write(handle, rest[:3]))
    disk.write_atomically(path, b"0123456789")
    disk.append(path, b"abcdefgh")
    assert path.read_bytes() == b"0123456789abcdefgh"
    disk.cut(path, 4)
    assert path.read_bytes() == b"0123"


def test_drafts_of_the_dead_are_swept(tmp_path: Path) -> None:
    for name in (".run.json.12.draft", ".gitignore", "run.json", "draft"):
        (tmp_path / name).touch()
    disk.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".gitignore", "run.json", "draft"}
    disk.sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_nothing_is_written_through_a_link(tmp_path: Path, target: str) -> None:
    """Not to what it points to, nor is a file made where it dangles."""
    (tmp_path / "victim").write_bytes(b"the only copy")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(disk.DiskError, match="link could not be written: Too many levels of"):
        disk.append(link, b"more")
    with pytest.raises(disk.DiskError, match="link could not be written: Too many levels of"):
        disk.cut(link, 0)
    assert link.is_symlink()
    disk.write_atomically(link, b"mine")  # which takes the link's own place
    assert not link.is_symlink() and link.read_bytes() == b"mine"
    assert (tmp_path / "victim").read_bytes() == b"the only copy"
    assert not (tmp_path / "nowhere").exists()


def test_strangers_in_a_folder_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "data" / "splits").mkdir(parents=True)
    (run / "data" / "x").touch()
    (run / "log").write_text("own")
    disk.refuse_strangers(run)
    (tmp_path / "other").write_text("not ours")
    os.link(tmp_path / "other", run / "data" / "y")  # is never written in place
    disk.refuse_strangers(run)
    for name, make, found in (
        ("log2", lambda p: os.link(tmp_path / "other", p), "a file with a second name"),
        ("data/link", lambda p: p.symlink_to(tmp_path / "other"), "a symbolic link"),
        ("data/splits/gone", lambda p: p.symlink_to(tmp_path / "nowhere"), "a symbolic link"),
        ("folder", lambda p: p.symlink_to(tmp_path), "a symbolic link"),
        ("pipe", os.mkfifo, "a pipe, a socket or a device"),
    ):
        make(run / name)
        with pytest.raises(disk.DiskError, match=f"disk: {run / name} should be .* {found}"):
            disk.refuse_strangers(run)
        (run / name).unlink()
    (tmp_path / "alias").symlink_to(run)
    with pytest.raises(disk.DiskError, match="alias should be"):
        disk.refuse_strangers(tmp_path / "alias")


def test_what_is_read_is_bounded_and_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert (disk.read(path, 3), disk.size(path)) == (b"abc", 3)
    assert disk.hashed(path, 2).hexdigest() == digest(b"ab")
    with pytest.raises(ValueError, match="a: at most 2 bytes, found 3"):
        disk.read(path, 2)
    with pytest.raises(ValueError, match="a: 4 bytes expected, found 3"):
        disk.hashed(path, 4)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << 42)  # costs nothing on the disk
    with pytest.raises(ValueError, match="huge: at most 1,000 bytes, found 4,398,046,511,104"):
        disk.read(huge, 1000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(disk.DiskError, match="pipe could not be written: No such device"):
        disk.append(tmp_path / "pipe", b"does not wait for a reader")
    for name, said in (
        ("nothing", "No such file"),
        (".", "it is no file|Is a directory"),
        ("pipe", "it is no file"),
        ("loop", "Too many levels"),
        ("a/b", "Not a directory"),
    ):
        with pytest.raises(ValueError, match=said):
            disk.read(tmp_path / name, 1000)


def test_a_disk_that_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of handles: whoever took the file for damaged would throw it away."""
    (tmp_path / "a").write_bytes(b"abc")
    none_left = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    monkeypatch.setattr("fedkd.disk.os.open", lambda *_: raised(none_left))
    said = re.escape(f"disk: {tmp_path / 'a'} could not be read: Too many open files")
    with pytest.raises(disk.DiskError, match=said):
        disk.read(tmp_path / "a", 1000)


def test_refs_and_prefixes() -> None:
    assert shard_of(ref("000001-000002-000003", 4)) == "000001-000002-000003"
    named = {"a/b": torch.tensor(1), "ab": torch.tensor(2)}
    assert prefixed("p/", named).keys() == {"p/a/b", "p/ab"}
    assert under("a/", named).keys() == {"b"}
    same(under("p/", prefixed("p/", named)), named)
