"""Devices that became slower than planned: told apart from load, from wrong predictions, and from one bad reading."""

from __future__ import annotations

from meshnn.cluster.member import BootId, DeviceId
from meshnn.node.paces import CHANCE_MAX_S, CHANCE_S, READINGS, RECOVERED_READINGS, STRAYS, Paces, Reading

A, B, C = (DeviceId(letter) for letter in "abc")
BOOT = BootId("0")


class Bench:
    """Readings of devices whose stages are predicted to take 10 ms."""

    def __init__(self, **first: float) -> None:
        """The devices' first readings."""
        self.paces, self.now = Paces(), 0.0
        self.tell(**first)

    def tell(self, **ratios: float) -> None:
        """One more reading of each: by how much slower than predicted."""
        self.now += 5
        wobble = 1 + self.now * 1e-6
        rows = {DeviceId(name): Reading(BOOT, 10 * ratio * wobble, 10.0) for name, ratio in ratios.items()}
        self.paces.on_readings(rows, self.now)

    def factor(self, device: DeviceId, boot: BootId = BOOT) -> float:
        """How slow it is taken to be, rounded."""
        return round(self.paces.factor(device, boot), 2)


def test_a_device_that_became_ten_times_slower_is_found_after_two_readings() -> None:
    """One reading may be an accident."""
    bench = Bench(a=1.0, b=1.0)
    bench.tell(a=1.0, b=10.0)
    assert bench.factor(B) == 1.0
    bench.tell(a=1.0, b=10.0)
    assert (bench.factor(A), bench.factor(B), READINGS) == (1.0, 10.0, 2)
    assert bench.factor(B, BootId("1")) == 1.0


def test_a_reading_that_was_told_before_is_no_news() -> None:
    """The same row of gossip counts once, however often it is looked at."""
    paces = Paces()
    rows = [{A: Reading(BOOT, 10.0, 10.0), B: Reading(BOOT, ms, 10.0)} for ms in (10.0, 100.0, 100.0, 100.0)]
    for now, row in enumerate(rows):
        paces.on_readings(row, float(now))
    assert paces.factor(B, BOOT) == 1.0


def test_what_was_told_of_an_earlier_shard_says_nothing_of_the_next() -> None:
    """The plan changed and a reading is still of the one before: it is neither the best of the new one nor slow."""
    paces = Paces()
    heavy, light = 40.0, 4.0
    rows = [
        Reading(BOOT, 40.0, heavy),
        Reading(BOOT, 40.0, light),
        Reading(BOOT, 4.1, light),
        Reading(BOOT, 4.1, heavy),
    ]
    rows += [Reading(BOOT, 40.0 + step, heavy) for step in range(4)]
    for now, row in enumerate(rows):
        paces.on_readings({A: Reading(BOOT, 10.0 + now, 10.0), B: row}, float(now))
    assert paces.factor(B, BOOT) == 1.0


def test_another_shard_has_another_best() -> None:
    """A small one takes many times its prediction, a large one keeps to it: a change of shard is no change of pace."""
    paces, now = Paces(), 0.0
    for observed_ms, predicted_ms in [(10.0, 10.0), (10.1, 10.0), (4.0, 1.0), (4.1, 1.0), (4.2, 1.0)]:
        now += 5.0
        paces.on_readings({A: Reading(BOOT, 10.0 + now / 1e6, 10.0), B: Reading(BOOT, observed_ms, predicted_ms)}, now)
    assert paces.factor(B, BOOT) == 1.0
    for observed_ms in (40.0, 41.0):
        now += 5.0
        paces.on_readings({A: Reading(BOOT, 10.0 + now / 1e6, 10.0), B: Reading(BOOT, observed_ms, 1.0)}, now)
    assert paces.factor(B, BOOT) > STRAYS


def test_a_prediction_that_errs_alike_for_all_is_nobodys_fault() -> None:
    """Everything four times slower than predicted from the start: no device is slow."""
    bench = Bench(a=4.0, b=4.0, c=4.4)
    for _ in range(5):
        bench.tell(a=4.1, b=4.0, c=4.5)
    assert {bench.factor(device) for device in (A, B, C)} == {1.0}


def test_load_that_slows_all_is_nobodys_fault() -> None:
    """All five times slower than before: that is how busy the mesh is."""
    bench = Bench(a=1.0, b=1.0, c=1.0)
    for _ in range(5):
        bench.tell(a=5.0, b=5.2, c=4.8)
    assert {bench.factor(device) for device in (A, B, C)} == {1.0}


def test_a_device_that_was_slow_from_the_start_is_found_beside_the_others() -> None:
    """It has no better past, but the others keep to their predictions."""
    bench = Bench(a=1.0, b=8.0, c=1.2)
    for _ in range(READINGS):
        bench.tell(a=1.0, b=8.0, c=1.2)
    assert bench.factor(B) > 5
    assert bench.factor(A) == bench.factor(C) == 1.0


def test_a_plan_of_one_device_has_its_own_past_alone() -> None:
    """With nobody beside it, straying from its best is all there is to go by."""
    bench = Bench(a=1.0)
    for _ in range(READINGS):
        bench.tell(a=STRAYS + 1)
    assert bench.factor(A) == STRAYS + 1


def test_what_is_known_to_be_slow_is_not_found_again() -> None:
    """Its factor stays what it is while it is as slow as that; where it slows more, it grows."""
    bench = Bench(a=1.0, b=1.0)
    for _ in range(9):
        bench.tell(a=1.0, b=6.0)
    assert bench.factor(B) == 6.0
    for _ in range(3):
        bench.tell(a=1.0, b=30.0)
    assert bench.factor(B) == 30.0


def test_a_device_that_recovers_in_its_plan_is_believed_after_a_while() -> None:
    """Some readings in a row as fast as ever: no sooner."""
    bench = Bench(a=1.0, b=1.0)
    for _ in range(READINGS):
        bench.tell(a=1.0, b=10.0)
    for _ in range(RECOVERED_READINGS - 1):
        bench.tell(a=1.0, b=1.1)
    assert bench.factor(B) == 10.0
    bench.tell(a=1.0, b=1.1)
    assert bench.factor(B) == 1.0


def test_a_slow_device_outside_every_plan_gets_another_chance_later_each_time() -> None:
    """Nothing is observed of it there: after two minutes it counts as it says again, then after four, up to an hour."""
    bench = Bench(a=1.0, b=1.0)
    waits = []
    for _ in range(7):
        while bench.factor(B) == 1.0:
            bench.tell(a=1.0, b=10.0)
        found_at = bench.now
        bench.tell(a=1.0)
        assert bench.paces.deadline is not None
        waits.append(bench.paces.deadline - found_at)
        bench.now = bench.paces.deadline
        bench.tell(a=1.0)
        assert bench.factor(B) == 1.0
    assert waits == [CHANCE_S, 240.0, 480.0, 960.0, 1920.0, CHANCE_MAX_S, CHANCE_MAX_S]
