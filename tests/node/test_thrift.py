"""The budget follows the real memory: down at once where it is short, slowly otherwise, never beyond what was given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.node.thrift import (
    PLENTY_S,
    RESERVE_BYTES_MAX,
    RESERVE_BYTES_MIN,
    SCARCE_S,
    Memory,
    Thrift,
)

MB = 1_000_000
LIMIT = 256 * MB
RESERVE = Memory(0, LIMIT).reserve_bytes


def looks(thrift: Thrift, room_bytes: int, used_bytes: int, begin_s: float, for_s: float) -> list[float]:
    """The times at which the budget changed under a memory that stays as it is, looked at every second."""
    times = [begin_s + second for second in range(int(for_s) + 1)]
    return [now for now in times if thrift.on_look(Memory(room_bytes, LIMIT), used_bytes, now)]


@pytest.mark.parametrize(
    ("limit", "reserve"), [(10 * MB, RESERVE_BYTES_MIN), (1000 * MB, 100 * MB), (64_000 * MB, RESERVE_BYTES_MAX)]
)
def test_a_tenth_is_kept_free_within_bounds(limit: int, reserve: int) -> None:
    """A small device keeps 16 MiB, a large one no more than half a GiB."""
    assert Memory(0, limit).reserve_bytes == reserve
    assert Memory(reserve - 1, limit).short
    assert not Memory(reserve, limit).short


def test_with_plenty_the_budget_is_what_was_allowed() -> None:
    """Nothing changes, however long it is looked at."""
    thrift = Thrift(100 * MB)
    assert looks(thrift, 200 * MB, 0, 0.0, 300.0) == []
    assert thrift.budget_bytes == 100 * MB


def test_where_memory_is_short_shards_are_shed_at_once() -> None:
    """At the first look the budget falls below what is loaded, by what is missing to the reserve."""
    thrift = Thrift(100 * MB)
    assert thrift.on_look(Memory(RESERVE - 5 * MB, LIMIT), 80 * MB, 0.0)
    assert thrift.budget_bytes == 75 * MB
    # Too little came back: the next look sheds more.
    assert thrift.on_look(Memory(RESERVE - 2 * MB, LIMIT), 75 * MB, 1.0)
    assert thrift.budget_bytes == 73 * MB
    assert not thrift.on_look(Memory(RESERVE, LIMIT), 73 * MB, 2.0)


def test_a_breath_of_another_program_changes_nothing() -> None:
    """Scarce for less than ten seconds, or plenty for less than a minute, is no news."""
    thrift = Thrift(100 * MB)
    assert looks(thrift, RESERVE + 40 * MB, 0, 0.0, SCARCE_S - 1) == []
    assert looks(thrift, 200 * MB, 0, 20.0, 1.0) == []
    assert looks(thrift, RESERVE + 40 * MB, 0, 30.0, SCARCE_S) == [30.0 + SCARCE_S]
    assert thrift.budget_bytes == 40 * MB
    assert looks(thrift, 200 * MB, 0, 50.0, PLENTY_S - 1) == []
    assert looks(thrift, RESERVE + 40 * MB, 0, 115.0, 1.0) == []
    assert looks(thrift, 200 * MB, 0, 120.0, PLENTY_S) == [120.0 + PLENTY_S]
    assert thrift.budget_bytes == 100 * MB


def test_it_grows_to_the_least_that_was_there_all_the_while() -> None:
    """A minute with a dip promises only what the dip left."""
    thrift = Thrift(100 * MB)
    thrift.on_look(Memory(0, LIMIT), 50 * MB, 0.0)
    shed = thrift.budget_bytes
    assert shed < 50 * MB
    assert looks(thrift, RESERVE + 90 * MB, 0, 10.0, 30.0) == []
    assert looks(thrift, RESERVE + 60 * MB, 0, 41.0, 1.0) == []
    assert looks(thrift, RESERVE + 90 * MB, 0, 43.0, 40.0) == [10.0 + PLENTY_S]
    assert thrift.budget_bytes == 60 * MB


@given(rooms=st.lists(st.integers(0, 300 * MB), max_size=60), used=st.integers(0, 120 * MB))
def test_the_budget_stays_between_nothing_and_what_was_allowed(rooms: list[int], used: int) -> None:
    """Whatever the memory does; and while it is short no more is allowed than is loaded."""
    thrift = Thrift(100 * MB)
    for second, room in enumerate(rooms):
        before = thrift.budget_bytes
        changed = thrift.on_look(Memory(room, LIMIT), used, float(second))
        assert 0 <= thrift.budget_bytes <= 100 * MB
        assert changed == (before != thrift.budget_bytes)
        if Memory(room, LIMIT).short and changed and thrift.budget_bytes > before:
            raise AssertionError("it grew while memory was short")
