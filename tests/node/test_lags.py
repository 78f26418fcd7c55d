"""Lags: when requests that suddenly take long are ground to go around a device, and around which."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from meshnn.cluster.member import DeviceId
from meshnn.node.lags import AROUND_S, EVIDENCE_S, GENERATIONS, RELAPSES, Lags
from meshnn.node.request import Attempt
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Plan, PlanSet
from tests.node.shelf import A, B, C, D, Shelf, pipeline

MAIN = pipeline([B, C, D])
WITHOUT_B = pipeline([C, D], epoch=MAIN.epoch.without(B))
WITHOUT_C = pipeline([B, D], epoch=MAIN.epoch.without(C))
SET = PlanSet(MAIN, (WITHOUT_B, WITHOUT_C))


@pytest.fixture
def shelf() -> Shelf:
    """One plan with two contingencies."""
    return Shelf(SET)


@pytest.fixture
def lags(shelf: Shelf) -> Lags:
    """Nobody lags."""
    return Lags(shelf)


def attempt(sent_at: float, plan: Plan = MAIN, *, late: bool = False) -> Attempt:
    """An attempt through all devices of a plan."""
    stages = plan.lanes[0].stages
    groups = tuple(0 for _ in stages)
    return Attempt(1, plan, 0, groups, tuple(sorted(plan.devices())), sent_at, sent_at + 1.0, sent_at + 0.5, late=late)


def times(**taken_ms: float) -> list[StageTime]:
    """What the shards of B, C and D took."""
    devices = {"b": B, "c": C, "d": D}
    return [StageTime(stage, 0, devices[name], ms, 0) for stage, (name, ms) in enumerate(taken_ms.items())]


def late(lags: Lags, one: Attempt, now: float) -> list[DeviceId] | None:
    """What an attempt says that is late."""
    return lags.on_late(one, now, stuck=False)


def lag(lags: Lags, plan: Plan = MAIN, since: float = 0.0) -> list[DeviceId]:
    """Attempts are late one after the other until somebody is to be suspected: whom."""
    for number in range(GENERATIONS):
        suspects = late(lags, attempt(since + number, plan), since + number + 0.5)
    assert suspects is not None
    return suspects


def test_attempts_late_one_after_the_other_are_ground(lags: Lags) -> None:
    """The first says nothing; the next, begun when that was known to be late, does."""
    assert late(lags, attempt(0.0), 0.5) is None
    assert late(lags, attempt(0.5), EVIDENCE_S) is not None


def test_nobody_is_suspected_before_a_dead_device_would_be_known_to_be_dead(lags: Lags) -> None:
    """However many are late in a row: three pings come first, and a wrong guess stands in the way of the right one."""
    for number in range(3):
        assert late(lags, attempt(number / 5), number / 5 + 0.2) is None
    assert late(lags, attempt(1.0), EVIDENCE_S) is not None


def test_what_one_hiccup_holds_up_is_no_ground(lags: Lags) -> None:
    """Attempts that were under way together are late together."""
    assert [late(lags, attempt(sent_at), 2.0) for sent_at in (0.0, 0.1, 0.2, 0.3)] == [None] * 4


def test_an_answer_in_time_says_that_nobody_lags(lags: Lags) -> None:
    """Only late attempts in a row count; an answer that came late is none in time."""
    late(lags, attempt(0.0), 0.5)
    lags.on_answer(attempt(0.6), times(b=1, c=1, d=1))
    assert late(lags, attempt(1.0), 1.5) is None
    lags.on_answer(attempt(1.0, late=True), times(b=1, c=1, d=1))
    assert late(lags, attempt(2.0), 2.5) is not None


def test_the_likeliest_is_whose_shard_took_longest_beside_its_usual_time(lags: Lags) -> None:
    """Not whose shard takes longest always."""
    for _ in range(5):
        lags.on_answer(attempt(0.0), times(b=500, c=2, d=50))
    lags.on_answer(attempt(0.0), times(b=510, c=9, d=70))
    assert lag(lags) == [C, D, B]


def test_times_of_shards_that_are_not_on_the_way_are_not_believed(lags: Lags) -> None:
    """A stage may say what it likes of others, and of shards that do not exist."""
    for where in ((1, 0, D), (3, 0, C), (-1, 0, C), (1, 1, C), (1, -1, C)):
        for took_ms in (1.0, 1.0, 99.0):
            lags.on_answer(attempt(0.0), [StageTime(*where, took_ms, 0)])
    lags.on_answer(attempt(0.0), [StageTime(1, 0, C, math.nan, 0)])
    assert lag(lags) == [B, C, D]


def test_only_who_is_on_the_way_of_a_late_attempt_is_suspected(lags: Lags) -> None:
    """Neither the dead device that a contingency stands for, nor one that has part in contingencies alone."""
    spare = pipeline([A, D], epoch=MAIN.epoch.without(B))
    assert lag(lags, spare) == [D]


def test_a_suspect_is_gone_around_for_a_while(lags: Lags) -> None:
    """In every plan of the set, and in no other."""
    lags.go_around(MAIN, C, 1.0)
    assert lags.suspected(MAIN, 1.0) == lags.suspected(WITHOUT_B, 1.0 + AROUND_S - 0.1) == {C}
    assert lags.suspected(pipeline([B, C], model="dog"), 1.0) == set()
    assert lags.suspected(MAIN, 1.0 + AROUND_S) == set()


def test_where_the_way_around_is_late_too_the_next_is_suspected(lags: Lags) -> None:
    """Until all were; then nobody is for a while, and afterwards all may be again."""
    lags.go_around(MAIN, lag(lags)[0], 2.0)
    assert lag(lags, WITHOUT_B, 3.0) == [C, D]
    lags.go_around(MAIN, C, 4.6)
    assert lag(lags, WITHOUT_C, 5.0) == [D]
    lags.go_around(MAIN, D, 6.6)
    assert lag(lags, MAIN, 7.0) == []
    lags.go_around(MAIN, None, 8.5)
    assert [late(lags, attempt(9.0 + number), 9.5 + number) for number in range(3)] == [None] * 3
    assert lag(lags, MAIN, 9.0 + AROUND_S) == [B, C, D]


def test_who_was_slow_a_moment_ago_is_gone_around_at_the_first_late_attempt(lags: Lags) -> None:
    """The time of going around is over, and it is as slow as it was; long after, it must show anew."""
    lags.go_around(MAIN, C, 0.0)
    assert late(lags, attempt(AROUND_S), AROUND_S + 0.5) == [C, B, D]
    lags.go_around(MAIN, C, AROUND_S + 0.5)
    assert late(lags, attempt(50.0), 50.5) is None
    assert late(lags, attempt(51.0), 51.5) == [B, C, D]


def test_one_that_went_around_the_suspect_says_nothing_of_it(lags: Lags) -> None:
    """It was begun while the suspect was gone around, and found late afterwards."""
    lags.go_around(MAIN, C, 0.0)
    assert late(lags, attempt(AROUND_S - 0.1, WITHOUT_C), AROUND_S + 0.2) is None


def test_what_lasts_is_not_gone_around_for_ever(lags: Lags) -> None:
    """After so many relapses nobody is for a while, and what the plan takes can become usual."""
    now = 0.0
    lags.go_around(MAIN, C, now)
    for _ in range(RELAPSES):
        now += AROUND_S + 1.0
        assert late(lags, attempt(now - 0.5), now) == [C, B, D]
        lags.go_around(MAIN, C, now)
    now += AROUND_S + 1.0
    assert late(lags, attempt(now - 0.5), now) == []
    lags.go_around(MAIN, None, now)
    assert late(lags, attempt(now + 1.0), now + 2.0) is None
    assert lag(lags, MAIN, now + AROUND_S) == [B, C, D]


def test_one_that_is_stuck_is_ground_by_itself(lags: Lags) -> None:
    """With all of a program's requests in it none is begun that could be late next."""
    assert late(lags, attempt(0.0), 0.3) is None
    assert lags.on_late(attempt(0.0), 1.0, stuck=True) == [B, C, D]


def test_answers_in_time_by_other_lanes_clear_those_alone(lags: Lags) -> None:
    """What late attempts have in common, and no answer in time has, is suspected."""
    plan = Plan(MAIN.epoch, "cat", "d" * 64, (pipeline([B, C]).lanes[0], pipeline([B, D]).lanes[0]), 4, 4)
    by_c = Attempt(1, plan, 0, (0, 0), (B, C), 0.0, 1.0, 0.5)
    by_d = Attempt(1, plan, 1, (0, 0), (B, D), 0.0, 1.0, 0.5)
    lanes = Lags(Shelf(PlanSet(plan)))
    assert late(lanes, by_c, 0.5) is None
    lanes.on_answer(by_d, [])
    assert late(lanes, replace(by_c, sent_at=0.6), 1.3) == [C]

    lanes = Lags(Shelf(PlanSet(plan)))
    late(lanes, by_c, 0.5)
    assert late(lanes, replace(by_d, sent_at=0.6), 1.3) == [B]

    lanes = Lags(Shelf(PlanSet(plan)))
    late(lanes, by_c, 0.5)
    lanes.on_answer(by_c, [])
    assert late(lanes, replace(by_c, sent_at=0.6), 1.3) is None


@pytest.mark.parametrize("unknown", [replace(attempt(0.6), late_at=math.inf), replace(attempt(0.6), live=False)])
def test_an_answer_of_which_it_is_not_known_is_none_in_time(lags: Lags, unknown: Attempt) -> None:
    """Neither where nobody knew what is usual, nor of an attempt that was given up."""
    late(lags, attempt(0.0), 0.5)
    lags.on_answer(unknown, [])
    assert late(lags, attempt(1.0), 1.5) is not None


def test_what_was_sent_before_the_suspicion_says_nothing_of_the_way_around(lags: Lags) -> None:
    """It was under way when the others were found to be late."""
    lags.go_around(MAIN, C, 1.0)
    assert lags.on_late(attempt(0.9, WITHOUT_C), 2.0, stuck=True) is None
    assert lags.on_late(attempt(1.1, WITHOUT_C), 2.0, stuck=True) == [B, D]


def test_a_relapse_is_of_the_suspect_whatever_was_late_before(lags: Lags) -> None:
    """One late attempt on the way around does not clear it."""
    lags.go_around(MAIN, C, 0.0)
    assert late(lags, attempt(9.0, WITHOUT_C), 9.5) is None
    assert late(lags, attempt(AROUND_S), AROUND_S + 0.5) == [C, B, D]


def test_plans_that_are_gone_are_forgotten(lags: Lags, shelf: Shelf) -> None:
    """With a new plan nobody lags."""
    lags.on_answer(attempt(0.0), times(b=1, c=1, d=1))
    lags.go_around(MAIN, C, 0.0)
    shelf.active = {}
    lags.prune()
    assert lags.suspected(MAIN, 0.0) == set()
    assert lag(lags, pipeline([A, D])) == [A, D]
