"""Files on this disk: whole or absent, within a budget, resumable, one node to a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from meshnn.device import records
from meshnn.device.records import NodeNote
from meshnn.device.store import Store, digest_of_file
from meshnn.errors import ModelError, NodeError, PeerError
from meshnn.graph.builder import Builder
from meshnn.graph.card import CARD_VERSION, Card
from meshnn.graph.describe import card_of

KB = 1000


def sha256(data: bytes) -> str:
    """A digest in hex."""
    return hashlib.sha256(data).hexdigest()


def card(digest: str, version: int = CARD_VERSION) -> Card:
    """The card of a model of one operator, as if its file had this digest."""
    builder = Builder(np.random.default_rng(0))
    graph = builder.graph(builder.softmax(builder.input(1, 4)))
    return msgspec.structs.replace(card_of(graph, digest, 1000, "m"), version=version)


def resumed_at(store: Store, key: str, size_bytes: int) -> int:
    """Where a transfer of this shard would go on."""
    part = store.open_part("shard", key, size_bytes)
    part.close()
    return part.offset


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of at most 100 kB."""
    return Store(tmp_path / "state", 100 * KB)


def test_a_model_is_copied_in_by_its_digest(store: Store, tmp_path: Path) -> None:
    """The copy lies under its digest and stays when the source goes; adding it again changes nothing."""
    source = tmp_path / "m.tflite"
    source.write_bytes(b"model" * 1000)
    digest, place = store.add_model(source)
    assert digest == sha256(b"model" * 1000) == digest_of_file(source)
    assert store.add_model(source) == (digest, place)
    source.unlink()
    assert store.path("model", digest) == place
    assert place.read_bytes() == b"model" * 1000
    assert store.digest_of("model", digest) == digest
    assert store.used_bytes() == 5 * KB


def test_what_is_no_model_file_is_refused(store: Store, tmp_path: Path) -> None:
    """A folder and a missing file are the caller's fault: ModelError."""
    with pytest.raises(ModelError, match="is no file"):
        store.add_model(tmp_path)
    with pytest.raises(ModelError, match="No such file"):
        store.add_model(tmp_path / "none")
    with pytest.raises(ModelError, match="No such file"):
        digest_of_file(tmp_path / "none")


def test_a_shard_is_written_and_found_by_a_later_life(store: Store) -> None:
    """Shards outlive the process, with the digest that was computed or is computed again."""
    place = store.write_shard("ab12", [b"head", memoryview(b"tail"), bytearray(b"!")])
    assert place.read_bytes() == b"headtail!"
    later = Store(store.folder, 100 * KB)
    assert later.path("shard", "ab12") == place
    assert later.digest_of("shard", "ab12") == sha256(b"headtail!") == store.digest_of("shard", "ab12")
    assert later.used_bytes() == 9


def test_keys_of_peers_are_no_paths(store: Store) -> None:
    """A key that climbs out of the folder names nothing, whatever is done with it."""
    for key in ("../../etc/passwd", "", ".hidden", "a/b", "a\0b", "x" * 300):
        assert store.path("shard", key) is None
        store.drop("shard", key)
        with pytest.raises(ModelError):
            store.open_part("shard", key, 10)


def test_cards_are_kept_with_their_models(store: Store, tmp_path: Path) -> None:
    """A held model comes back with its card; without one, or with a spoilt one, it comes back alone."""
    digests = []
    for number in range(3):
        (tmp_path / "m").write_bytes(bytes([number]) * 10)
        digests.append(store.add_model(tmp_path / "m")[0])
    store.save_card(card(digests[0]))
    spoilt = store.save_card(card(digests[1]))
    spoilt.write_bytes(b"\xff\x00nonsense")
    held = Store(store.folder).held_models()
    assert held == {digests[0]: card(digests[0]), digests[1]: None, digests[2]: None}


def test_a_card_of_another_version_is_not_read(store: Store) -> None:
    """It is dropped, so that it is fetched or made again."""
    path = store.save_card(card("aa", CARD_VERSION + 1))
    with pytest.raises(ModelError, match="version"):
        store.load_card(path)
    assert store.path("card", "aa") is None


def test_a_part_is_resumed_and_checked(store: Store) -> None:
    """What came before a break is kept; the finished file is whole, counted once, and no part is left."""
    data = os.urandom(30 * KB)
    part = store.open_part("shard", "k1", len(data))
    part.write(memoryview(data)[:10_000])
    part.close()
    later = Store(store.folder, 100 * KB)
    part = later.open_part("shard", "k1", len(data))
    assert part.offset == 10_000
    part.write(data[10_000:])
    place = part.finish(sha256(data))
    part.close()
    assert place.read_bytes() == data
    assert later.path("shard", "k1") == place
    assert later.used_bytes() == len(data)
    assert not list(place.parent.glob("*.part"))


def test_wrong_bytes_never_become_a_file(store: Store) -> None:
    """A digest that differs is the peer's fault; the part is gone, so the next attempt begins at the beginning."""
    part = store.open_part("shard", "k1", 10)
    part.write(b"0123456789")
    with pytest.raises(PeerError, match="digest"):
        part.finish(sha256(b"other"))
    part.close()
    assert store.path("shard", "k1") is None
    assert resumed_at(store, "k1", 10) == 0


def test_a_model_is_checked_by_its_own_key(store: Store) -> None:
    """A model's name is its digest: nobody can say otherwise."""
    part = store.open_part("model", sha256(b"right"), 5)
    part.write(b"wrong")
    with pytest.raises(PeerError):
        part.finish(sha256(b"wrong"))


def test_a_card_may_come_without_a_digest(store: Store) -> None:
    """Its length and digest are not known beforehand; it may be shorter than its bound."""
    part = store.open_part("card", "aa", 4_000_000)
    part.write(msgspec.msgpack.encode(card("aa")))
    assert store.load_card(part.finish("")) == card("aa")


def test_a_part_cannot_outgrow_its_size(store: Store) -> None:
    """A peer that sends more than it announced is refused before the disk is."""
    part = store.open_part("shard", "k1", 10)
    with pytest.raises(PeerError, match="longer"):
        part.write(b"x" * 11)
    part.close()


def test_a_part_longer_than_the_file_begins_again(store: Store) -> None:
    """What is no beginning of this file is thrown away."""
    part = store.open_part("shard", "k1", 100)
    part.write(b"x" * 60)
    part.close()
    assert resumed_at(store, "k1", 50) == 0


def test_one_writer_per_part(store: Store) -> None:
    """Two transfers of one file at once would tear it: the second is refused until the first has closed."""
    part = store.open_part("shard", "k1", 10)
    with pytest.raises(NodeError, match="already"):
        store.open_part("shard", "k1", 10)
    part.close()
    part.close()
    store.open_part("shard", "k1", 10).close()


def test_the_shard_wanted_least_recently_goes_first(store: Store) -> None:
    """Room is made by dropping shards, in the order of their last use; a use counts."""
    for key in ("a", "b", "c"):
        store.write_shard(key, [bytes(30 * KB)])
    assert store.path("shard", "a") is not None
    store.write_shard("d", [bytes(30 * KB)])
    assert store.path("shard", "b") is None
    assert all(store.path("shard", key) is not None for key in ("a", "c", "d"))
    assert store.used_bytes() == 90 * KB


def test_what_is_pinned_models_and_cards_stay(store: Store, tmp_path: Path) -> None:
    """A new file that would cost a pinned shard or a model is refused, and nothing is dropped for it."""
    (tmp_path / "m").write_bytes(bytes(40 * KB))
    digest, _ = store.add_model(tmp_path / "m")
    store.write_shard("pinned", [bytes(20 * KB)])
    store.write_shard("loose", [bytes(20 * KB)])
    store.pin("shard", "pinned")
    assert store.free_bytes() == 40 * KB
    with pytest.raises(NodeError, match=r"no room for .* raise --disk"):
        store.write_shard("big", [bytes(41 * KB)])
    assert all(store.path("shard", key) is not None for key in ("pinned", "loose"))
    store.unpin("shard", "pinned")
    store.write_shard("big", [bytes(41 * KB)])
    assert store.path("model", digest) is not None
    assert store.path("shard", "pinned") is None


def test_old_parts_go_before_shards(store: Store) -> None:
    """A part that nobody writes any more makes room before any shard does."""
    part = store.open_part("shard", "half", 60 * KB)
    part.write(bytes(50 * KB))
    part.close()
    store.write_shard("a", [bytes(40 * KB)])
    store.write_shard("b", [bytes(40 * KB)])
    assert store.path("shard", "a") is not None
    assert resumed_at(store, "half", 10 * KB) == 0


def test_a_model_too_large_is_refused_before_it_is_copied(store: Store, tmp_path: Path) -> None:
    """One line naming the budget, nothing left behind, and the store goes on."""
    (tmp_path / "m").write_bytes(bytes(101 * KB))
    with pytest.raises(NodeError, match=r"disk budget of 0\.1 MB"):
        store.add_model(tmp_path / "m")
    with pytest.raises(NodeError):
        store.open_part("model", "ff", 101 * KB)
    assert store.used_bytes() == 0
    assert [path for path in store.folder.rglob("*") if path.is_file()] in ([], [store.folder / "models" / "ff.part"])
    store.write_shard("a", [b"x"])


def test_a_full_disk_is_one_line_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal is a NodeError; no half file appears, and the next write works."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(records, "settle", full)
        with pytest.raises(NodeError, match="No space left"):
            store.write_shard("a", [b"x"])
        with pytest.raises(NodeError, match="No space left"):
            store.save_record("term", {"term": 1})
        part = store.open_part("shard", "p", 1)
        part.write(b"x")
        with pytest.raises(NodeError, match="No space left"):
            part.finish("")
        part.close()
    assert store.path("shard", "a") is None
    assert not list((store.folder / "shards").glob(".tmp-*"))
    assert store.load_record("term") == {}
    store.write_shard("a", [b"x"])


def test_an_interrupted_cut_leaves_no_file(store: Store) -> None:
    """Where the chunks stop with an error no shard appears and nothing is counted."""

    def chunks() -> Iterator[bytes]:
        yield b"x" * 10
        raise ModelError("the cut failed")

    with pytest.raises(ModelError, match="the cut failed"):
        store.write_shard("a", chunks())
    assert store.path("shard", "a") is None
    assert store.used_bytes() == 0
    assert not list((store.folder / "shards").iterdir())


def test_rot_is_found_and_dropped(store: Store) -> None:
    """`verify` reads the disk, not the memory: a file that has changed is gone and is fetched again."""
    place = store.write_shard("a", [b"good"])
    assert store.verify("shard", "a", sha256(b"good"))
    place.write_bytes(b"evil")
    assert not store.verify("shard", "a", sha256(b"good"))
    assert store.path("shard", "a") is None
    assert not store.verify("shard", "a", sha256(b"good"))


def test_a_file_deleted_by_hand_is_gone(store: Store) -> None:
    """What somebody removed from the folder is not promised any more."""
    store.write_shard("a", [b"x"]).unlink()
    assert store.path("shard", "a") is None
    assert store.used_bytes() == 0
    with pytest.raises(ModelError):
        store.digest_of("shard", "a")


def test_records_outlive_the_process_and_damage_is_named(store: Store) -> None:
    """A saved record comes back; a damaged one names the file to remove; an absent one is empty."""
    store.save_record("term", {"term": 7, "voted_for": None})
    later = Store(store.folder)
    assert later.load_record("term") == {"term": 7, "voted_for": None}
    assert later.load_record("names") == {}
    (store.folder / "term.json").write_bytes(b'{"term": ')
    with pytest.raises(NodeError, match=r"term\.json is damaged"):
        later.load_record("term")


def test_one_node_to_a_folder(store: Store) -> None:
    """A second node on a folder is told who has it; after the first has let go it may have it."""
    store.lock()
    second = Store(store.folder)
    with pytest.raises(NodeError, match=rf"in use by another node \(process {os.getpid()}\)"):
        second.lock()
    store.unlock()
    store.unlock()
    second.lock()
    second.unlock()


def test_a_dead_nodes_folder_is_free_and_tidied(store: Store) -> None:
    """A node that was killed leaves lock, note and temporaries: the next one takes the folder and clears them."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom meshnn.device.store import Store\n"
        "from meshnn.device.records import NodeNote\n"
        "store = Store(Path(sys.argv[1]))\nstore.lock()\n"
        "store.save_note(NodeNote(1, 2, os.getpid(), 'd', 't'))\n"
        "(store.folder / 'shards' / '.tmp-left').write_bytes(b'x')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store.folder)], check=False, timeout=100)
    assert done.returncode == -9
    assert (store.folder / records.NOTE).exists()
    assert records.running_node(store.folder) is None
    store.lock()
    assert not (store.folder / records.NOTE).exists()
    assert not (store.folder / "shards" / ".tmp-left").exists()
    store.unlock()


def test_the_note_tells_a_command_where_its_node_is(store: Store) -> None:
    """While the node lives its note is found, private to its user; afterwards there is none."""
    assert records.running_node(store.folder) is None
    store.lock()
    note = NodeNote(7766, 7767, os.getpid(), "device", "secret")
    store.save_note(note)
    assert records.running_node(store.folder) == note
    assert (store.folder / records.NOTE).stat().st_mode & 0o077 == 0
    assert store.folder.stat().st_mode & 0o077 == 0
    store.unlock()
    assert records.running_node(store.folder) is None


def test_half_of_the_free_disk_is_the_default_budget(tmp_path: Path) -> None:
    """Without --disk a store takes half of what is free, and never says that more is free than there is."""
    store = Store(tmp_path / "state")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert store.budget_bytes == pytest.approx(free / 2, rel=0.2)
    assert 0 <= store.free_bytes() <= free * 1.2


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A state folder under a file is refused by name."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NodeError, match="file/state"):
        Store(tmp_path / "file" / "state")


def test_the_note_is_light_to_read() -> None:
    """A command finds its node without numpy and without the schema."""
    program = "import sys\nimport meshnn.device.records\nprint('numpy' in sys.modules, 'psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["False", "False"]
