"""Devices that come and go: when one is held down, for how long, and when it is forgiven."""

from __future__ import annotations

from meshnn.cluster.member import BootId, DeviceId
from meshnn.node.flaps import FLAPS, FORGIVEN_S, HOLD_MAX_S, HOLD_S, WITHIN_S, Flaps

A, B = DeviceId("a"), DeviceId("b")
HERE = {A: BootId("0"), B: BootId("0")}
ALONE = {A: BootId("0")}


def flap(flaps: Flaps, times: int, at: float, every_s: float = 2.0) -> float:
    """B goes and comes so often; the time of the last departure."""
    for number in range(times):
        flaps.on_members(HERE, at + number * every_s)
        flaps.on_members(ALONE, at + number * every_s + 1)
    return at + (times - 1) * every_s + 1


def test_three_departures_within_five_minutes_hold_a_device_down_for_five() -> None:
    """Two are bad luck; the third makes a flapper, until five minutes after it."""
    flaps = Flaps()
    flap(flaps, FLAPS - 1, 0.0)
    assert flaps.held(10.0) == frozenset()
    last = flap(flaps, 1, 10.0)
    assert flaps.held(last) == {B}
    assert flaps.deadline == last + HOLD_S
    assert flaps.held(last + HOLD_S - 0.1) == {B}
    assert flaps.held(last + HOLD_S) == frozenset()
    assert (FLAPS, WITHIN_S, HOLD_S) == (3, 300.0, 300.0)


def test_departures_far_apart_are_no_flapping() -> None:
    """Three in more than five minutes count for nothing."""
    flaps = Flaps()
    flap(flaps, 5, 0.0, every_s=WITHIN_S / 2 + 1)
    assert flaps.held(1000.0) == frozenset()


def test_a_restart_that_nobody_saw_the_gap_of_is_a_departure() -> None:
    """Another boot id is another life: the one before is gone."""
    flaps = Flaps()
    for life in range(FLAPS + 1):
        flaps.on_members({A: BootId("0"), B: BootId(str(life))}, float(life))
    assert flaps.held(4.0) == {B}
    assert flaps.departures(B, 4.0) == FLAPS
    assert flaps.departures(A, 4.0) == 0


def test_each_hold_is_twice_as_long_up_to_an_hour() -> None:
    """Whoever flaps again after its hold is held longer."""
    flaps, at, lengths = Flaps(), 0.0, []
    for _ in range(6):
        last = flap(flaps, FLAPS, at)
        assert flaps.deadline is not None
        lengths.append(flaps.deadline - last)
        at = flaps.deadline + 1
    assert lengths == [300.0, 600.0, 1200.0, 2400.0, HOLD_MAX_S, HOLD_MAX_S]


def test_flapping_during_a_hold_restarts_it_without_doubling() -> None:
    """A device that is 1 s up and 1 s down for minutes is one offender, held until five minutes after it stopped."""
    flaps = Flaps()
    last = flap(flaps, 100, 0.0)
    assert flaps.deadline == last + HOLD_S


def test_an_hour_of_steadiness_after_a_hold_forgives() -> None:
    """Then the doubling begins anew, and nothing is remembered."""
    flaps = Flaps()
    last = flap(flaps, FLAPS, 0.0)
    flaps.on_members(HERE, last + 1)
    flaps.on_members(HERE, last + HOLD_S + FORGIVEN_S)
    last = flap(flaps, FLAPS, last + HOLD_S + FORGIVEN_S + 1)
    assert flaps.deadline == last + HOLD_S


def test_whoever_never_left_is_never_held() -> None:
    """Being here, or coming for the first time, is no departure."""
    flaps = Flaps()
    for now in range(100):
        flaps.on_members(HERE, float(now))
    assert (flaps.held(100.0), flaps.deadline) == (frozenset(), None)
