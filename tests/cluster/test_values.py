"""Tests of the values the cluster is made of: messages, sizes, timers, rumours, load."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from meshnn.cluster.effects import Effect
from meshnn.cluster.gossip import BACKLOG_TRANSMITS, BEAT_TRANSMITS, RUMOURS_MAX, RumourQueue
from meshnn.cluster.load_gate import LoadGate
from meshnn.cluster.member import Capability, Load
from meshnn.cluster.messages import (
    Alive,
    Beat,
    Dead,
    LoadRow,
    Message,
    Ping,
    Rumour,
    Suspect,
    Sync,
    estimate_bytes,
    subject_of,
)
from meshnn.cluster.suspicion import suspicion_timeout_s
from meshnn.cluster.timing import timing_for
from tests.cluster.stage import advanced
from tests.cluster.virtual_mesh import busy_load, device_id, member


def test_messages_survive_the_wire() -> None:
    """A nested message comes back equal from plain values, as the codec will carry it."""
    row = advanced(member(3), capability=Capability(numeric_class="x86-avx2", speed=1e9), load=busy_load(4))
    message = Ping(7, member(1).boot_id, (Alive(row), Suspect(device_id(2), 9, device_id(3), True)))
    assert msgspec.convert(msgspec.to_builtins(message), Message) == message


@pytest.mark.parametrize(
    "plain",
    [
        ["ping", -1, "0" * 16, []],
        ["ping", 1, "0" * 15, []],
        ["leave", 2**64, []],
        ["gossip", [["suspect", "short", 1, device_id(1), False]]],
        ["gossip", [["load", device_id(1), 1, [0, -1.0]]]],
        ["gossip", [["load", device_id(1), 1, [0, float("nan")]]]],
        ["digest", [0] * 31],
        ["shutdown"],
    ],
)
def test_what_the_schema_does_not_know_is_refused(plain: list[object]) -> None:
    """Numbers out of range, malformed ids, wrong lengths, NaN and unknown tags never become messages."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(plain, Message)


def test_static_and_load_rows_keep_their_size() -> None:
    """A capability row takes at most 256 bytes and a load row at most 48, with every field at its widest."""
    widest = Capability(2**40, 2**40, 1e12 / 3, 256, "x" * 64, True, False, True)
    assert len(msgspec.msgpack.encode(widest)) <= 256
    assert len(msgspec.msgpack.encode(Load(65535, 1e6 / 3, 2**40, 33.3, 66.6, 2**31))) <= 48


def test_an_effect_is_one_of_a_closed_union() -> None:
    """Every effect is a frozen struct, so a driver can match them exhaustively."""
    assert all(issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen for kind in Effect.__args__)


@pytest.mark.parametrize(("confirmers", "expected"), [(0, 18.0), (1, 10.43), (2, 6.0), (5, 6.0)])
def test_suspicion_shrinks_with_confirmers(confirmers: int, expected: float) -> None:
    """The time left falls by the logarithm of the confirmers from the longest to the shortest."""
    assert suspicion_timeout_s(confirmers, 2, 6.0, 18.0) == pytest.approx(expected, abs=0.01)


def test_without_confirmers_to_be_had_the_shortest_time_holds() -> None:
    """In a tiny mesh nobody can confirm, so nobody is waited for."""
    assert suspicion_timeout_s(0, 0, 8.0, 24.0) == 8.0


def test_timing_grows_with_the_mesh() -> None:
    """Small meshes forgive longer; large ones tell more often and exchange tables more rarely."""
    tiny, small, large, huge = (timing_for(size) for size in (2, 16, 100, 1000))
    assert tiny.suspicion_min_s > small.suspicion_min_s
    assert small.transmits < large.transmits < huge.transmits
    assert tiny.sync_interval_s < small.sync_interval_s < large.sync_interval_s < huge.sync_interval_s


def _queue(*rumours: Rumour) -> RumourQueue:
    queue = RumourQueue(estimate_bytes)
    for rumour in rumours:
        queue.add(rumour)
    return queue


def test_life_and_death_travel_before_rows_and_load() -> None:
    """Urgent rumours come first however late they were queued."""
    load, alive, dead = LoadRow(device_id(1), 1, Load()), Alive(member(2)), Dead(device_id(3), 1, device_id(4))
    assert _queue(load, alive, dead).take(1200, 8) == (dead, alive, load)


def test_of_very_many_rows_each_is_told_less_often() -> None:
    """More rows than a message holds leave after four tellings each, deaths after all of theirs; few rows as usual."""
    rows = [Alive(member(number)) for number in range(2 * RUMOURS_MAX)]
    queue = _queue(*rows, Dead(device_id(900), 1, device_id(4)))
    assert queue.crowded
    told = [rumour for _ in range(2000) for rumour in queue.take(1200, 16)]
    counts = Counter(subject_of(rumour) for rumour in told)
    assert counts[device_id(900)] == 16
    assert min(counts.values()) >= BACKLOG_TRANSMITS
    assert sum(count == BACKLOG_TRANSMITS for count in counts.values()) >= RUMOURS_MAX // 2
    assert len(queue) == 0
    few = _queue(*rows[:3])
    assert len([rumour for _ in range(100) for rumour in few.take(1200, 16)]) == 3 * 16


def test_a_beat_is_told_only_until_the_next_one_comes() -> None:
    """Six times, whatever a death needs in a mesh of that size; never more often than a small mesh tells anything."""
    beat, dead = Beat(device_id(1), member(1).boot_id, 3, 4), Dead(device_id(2), 1, device_id(4))
    for transmits, wanted in ((16, BEAT_TRANSMITS), (3, 3)):
        queue = _queue(beat, dead)
        told = Counter(subject_of(rumour) for _ in range(40) for rumour in queue.take(1200, transmits))
        assert told == {device_id(1): wanted, device_id(2): transmits}


def test_the_least_told_rumour_comes_first() -> None:
    """Within a class a fresh rumour goes before one told already."""
    queue = _queue(Dead(device_id(1), 1, device_id(4)))
    queue.take(1200, 8)
    fresh = Dead(device_id(2), 1, device_id(4))
    queue.add(fresh)
    assert queue.take(1200, 8)[0] == fresh


def test_a_rumour_is_told_a_bounded_number_of_times() -> None:
    """After its transmissions a rumour is forgotten."""
    queue = _queue(Dead(device_id(1), 1, device_id(4)))
    assert [len(queue.take(1200, 3)) for _ in range(4)] == [1, 1, 1, 0]
    assert len(queue) == 0


def test_news_replaces_older_news_of_the_same_device() -> None:
    """Only the latest word about a device's state waits."""
    alive = Alive(member(1))
    assert _queue(Suspect(device_id(1), 1, device_id(2)), alive).take(1200, 8) == (alive,)


def test_a_plain_suspicion_does_not_replace_a_hosts_refusal() -> None:
    """R7 needs the refusal to travel even when plain accusations of the same device pass by."""
    refusal = Suspect(device_id(1), 1, device_id(2), True)
    assert refusal in _queue(refusal, Suspect(device_id(1), 1, device_id(3))).take(1200, 8)


def test_a_death_replaces_the_refusal_before_it() -> None:
    """Once buried, nothing older about the device is told."""
    dead = Dead(device_id(1), 1, device_id(3))
    assert _queue(Suspect(device_id(1), 1, device_id(2), True), dead).take(1200, 8) == (dead,)


def test_taken_rumours_fit_the_budget() -> None:
    """However many wait, the estimate of those taken stays within the bytes given."""
    queue = _queue(*(Alive(member(index)) for index in range(50)))
    taken = queue.take(1000, 8)
    assert 3 <= len(taken) <= 64
    assert sum(estimate_bytes(rumour) for rumour in taken) <= 1000


def test_load_alone_does_not_press() -> None:
    """Load rides on probes and never starts a round of gossip."""
    assert not _queue(LoadRow(device_id(1), 1, Load())).pressing


def test_an_unchanged_load_is_never_published() -> None:
    """A quiet device is quiet."""
    gate = LoadGate(Load(), random.Random(1))
    gate.offer(Load(), 0.0)
    assert gate.deadline is None


def test_a_marked_change_of_load_goes_soon_and_a_slight_one_waits() -> None:
    """Twenty percent more is told within a second, one percent within about five."""
    gate = LoadGate(Load(free_bytes=1000), random.Random(1))
    gate.offer(Load(free_bytes=500), 0.0)
    first = gate.due(0.0)
    assert first is not None
    assert first.version == 1
    gate.offer(Load(free_bytes=505), 0.1)
    assert gate.deadline is not None
    assert gate.deadline >= 4.0
    gate.offer(Load(free_bytes=900), 0.2)
    assert gate.deadline == 1.0


def test_a_sync_message_fits_a_control_frame() -> None:
    """A full message of rows stays below 64 KiB."""
    row = advanced(member(1), name="n" * 63, capability=Capability(2**40, 2**40, 1 / 3, 64, "x" * 64))
    assert estimate_bytes(Sync((row,) * 100, tuple(range(32)))) < 65536
