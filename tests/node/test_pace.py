"""Overload: what a new request must expect is known from how fast answers leave."""

from __future__ import annotations

from meshnn.node.pace import BACKLOG, FRESH_S, SAMPLES, Pace


def busy(count: int, gap_s: float, answers: int, now: float = 100.0) -> tuple[Pace, float]:
    """A device with `count` requests open after `answers` answers, one every `gap_s`; and what time it is."""
    pace = Pace()
    for _ in range(count + answers):
        pace.begin()
    for _ in range(answers):
        now += gap_s
        pace.end(answered=True, now=now)
    return pace, now


def test_who_knows_nothing_refuses_nothing() -> None:
    """No request, few answers, or none for long: no estimate."""
    assert Pace().wait_s(0.0) == 0.0
    pace, now = busy(100, 0.1, SAMPLES)  # the first answer has none before it
    assert pace.wait_s(now) == 0.0
    pace, now = busy(100, 0.1, SAMPLES + 1)
    assert pace.wait_s(now + FRESH_S) > 0.0
    assert pace.wait_s(now + FRESH_S + 0.1) == 0.0


def test_a_backlog_takes_its_number_times_the_gap() -> None:
    """A hundred open requests at ten answers a second are ten seconds, and the next one comes after them."""
    pace, now = busy(100, 0.1, 40)
    assert abs(pace.wait_s(now) - 10.1) < 1e-6
    pace.begin()
    assert abs(pace.wait_s(now) - 10.2) < 1e-6


def test_an_idle_mesh_tells_nothing_of_its_speed() -> None:
    """One request every ten seconds, answered at once, does not make a burst look hopeless."""
    pace, now = Pace(), 0.0
    for _ in range(50):
        now += 10.0
        pace.begin()
        pace.end(answered=True, now=now)
    for _ in range(1000):
        pace.begin()
    assert pace.wait_s(now) == 0.0


def test_failures_are_no_answers() -> None:
    """Requests that fail fast leave the estimate alone, and make room."""
    pace, now = busy(100, 0.1, 40)
    for _ in range(50):
        pace.end(answered=False, now=now)
    assert abs(pace.wait_s(now) - 5.1) < 1e-6


def test_the_estimate_follows_the_mesh() -> None:
    """After a device more the answers come twice as fast, and soon so does the estimate."""
    pace, now = busy(1000, 0.2, 40)
    for _ in range(80):
        now += 0.1
        pace.end(answered=True, now=now)
    assert abs(pace.wait_s(now) / (pace.open + 1) - 0.1) < 0.002


def test_a_pause_between_two_backlogs_is_no_gap() -> None:
    """The time in which nobody asked is not taken for the time that an answer takes."""
    pace, now = busy(0, 0.1, 40)
    for _ in range(BACKLOG + 12):
        pace.begin()
    now += 5.0
    for _ in range(2):
        pace.end(answered=True, now=now)
        now += 0.1
    assert abs(pace.wait_s(now) / (pace.open + 1) - 0.1) < 0.01
