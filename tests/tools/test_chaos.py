"""The schedule of chaos is fair and repeatable, and no report passes with anything lost, doubled, wrong or grown."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tools.chaos.rig import agreed, percentile
from tools.chaos.schedule import Fault, Kind, Terms, schedule, servable
from tools.chaos.storm import SOAK_S, Report, Sample, grown, steps

TERMS = Terms(devices=5, origins=(3, 4), hold=2)
COUNTS = {"requests": 10, "lost": 0, "ok": 10, "doubled": 0, "wrong": 0}


def samples(**last: float) -> list[Sample]:
    """Forty samples of a quiet node; the last quarter holds what is said instead."""
    quiet = [Sample(float(at), 100.0, 20, 5, 30) for at in range(40)]
    return quiet[:30] + [replace(one, **last) for one in quiet[30:]]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_keeps_to_its_terms(seed: int) -> None:
    """Equal for equal seeds; origins live; everything is healed in time; the model can be served at every moment."""
    faults = schedule(seed, 300.0, TERMS)
    assert faults == schedule(seed, 300.0, TERMS)
    assert {fault.kind for fault in faults} == set(Kind)
    for fault in faults:
        assert fault.at_s < fault.healed_s <= 300.0
        assert servable(fault, TERMS)
        if fault.kind in {Kind.KILL, Kind.RESTART, Kind.STOP, Kind.UNPLUG}:
            assert not set(fault.devices) & set(TERMS.origins)
    lasting = [fault for fault in faults if fault.kind not in {Kind.KILL, Kind.RESTART}]
    for one, other in itertools.pairwise(lasting):
        assert one.healed_s <= other.at_s


def test_kills_alone_come_at_their_interval() -> None:
    """One every 20 s, as the long run wants it."""
    faults = schedule(1, 200.0, replace(TERMS, kinds=(Kind.KILL,), every_s=20.0))
    assert [round(other.at_s - one.at_s) for one, other in itertools.pairwise(faults)] == [20] * (len(faults) - 1)
    assert len(faults) >= 9


def test_a_partition_that_leaves_an_origin_too_few_devices_is_not_servable() -> None:
    """Two hold the model together: an origin alone on its side cannot be answered."""
    assert not servable(Fault(0.0, Kind.PARTITION, (3,), 9.0), TERMS)
    assert servable(Fault(0.0, Kind.PARTITION, (0, 1, 2), 9.0), TERMS)
    assert not servable(Fault(0.0, Kind.PARTITION, (0, 1, 2), 9.0), TERMS, away=frozenset({3}))


@pytest.mark.parametrize("seed", range(5))
def test_in_a_long_run_every_fault_ends_after_it_began(seed: int) -> None:
    """A kill healed at its own instant would start a second node beside the first: the run of an hour once did."""
    faults = schedule(seed, 3600.0, replace(TERMS, kinds=(Kind.KILL, Kind.RESTART), every_s=20.0))
    assert len(faults) > 150
    assert min(fault.lasts_s for fault in faults) > 0
    with pytest.raises(AssertionError, match="healed before"):
        steps((Fault(1.0, Kind.KILL, (0,), 0.0),))


def test_what_is_healed_goes_before_what_begins() -> None:
    """At one instant the old fault ends first."""
    first, second = Fault(1.0, Kind.KILL, (0,), 2.0), Fault(3.0, Kind.STOP, (1,), 1.0)
    rows = [(at_s, fault.kind, heals) for at_s, fault, heals in steps((first, second))]
    assert rows == [
        (1.0, Kind.KILL, False),
        (3.0, Kind.KILL, True),
        (3.0, Kind.STOP, False),
        (4.0, Kind.STOP, True),
    ]


@pytest.mark.parametrize("key", ["lost", "doubled", "wrong"])
def test_one_bad_request_fails_the_run(key: str) -> None:
    """And so do no requests at all, no convergence, and anything broken."""
    good = Report(1, 60.0, (), counts=dict(COUNTS), converged_s=1.0)
    assert good.passed
    assert not replace(good, counts={**COUNTS, key: 1}).passed
    assert not replace(good, counts={**COUNTS, "requests": 0}).passed
    assert not replace(good, converged_s=None).passed
    assert not replace(good, broken=["the node of d03 ended"]).passed
    assert "FAIL" in replace(good, counts={**COUNTS, key: 1}).line


@pytest.mark.parametrize(
    ("last", "what"),
    [
        ({"rss_mb": 115.0}, "memory"),
        ({"descriptors": 30}, "descriptors"),
        ({"threads": 9}, "threads"),
        ({"tasks": 40}, "tasks"),
    ],
)
def test_growth_is_named(last: dict[str, float], what: str) -> None:
    """The last quarter against the second; a little more is no growth."""
    assert grown("d03", samples()) == []
    assert grown("d03", samples(rss_mb=105.0, descriptors=22)) == []
    (line,) = grown("d03", samples(**last))
    assert line.startswith(f"{what} of d03 grew")
    assert SOAK_S <= 1800.0


def test_what_an_office_takes_is_no_growth() -> None:
    """Whoever leads from some time on holds more from then on: judged is the longest time under one leader."""
    before = [Sample(float(at), 100.0, 20, 5, 30, term=1) for at in range(15)]
    after = [Sample(float(at), 115.0, 20, 6, 31, term=2) for at in range(15, 40)]
    assert grown("d03", [*before, *after]) == []
    late = [replace(one, rss_mb=130.0) if one.at_s > 33 else one for one in after]
    assert [line.split()[0] for line in grown("d03", [*before, *late])] == ["memory"]


def test_a_mesh_agrees_only_with_one_leader_term_and_plan_of_the_living() -> None:
    """Views that differ in any of it, or wait for a device, are not one mesh yet."""
    members = [{"id": "a", "state": "alive"}, {"id": "b", "state": "alive"}]
    one = {"self": "a", "leader": "a", "term": 1, "epoch": "1.a.1", "members": members, "plans": [{"waits_for": []}]}
    other = {**one, "self": "b"}
    assert agreed([one, other])
    assert not agreed([one, {}])
    assert not agreed([one, {**other, "term": 2}])
    assert not agreed([one, {**other, "epoch": "1.a.2"}])
    assert not agreed([one, {**other, "members": members[:1]}])
    assert not agreed([one, {**other, "plans": [{"waits_for": ["a"]}]}])


def test_percentiles_are_ranks() -> None:
    """The nearest rank, and nothing of nothing."""
    assert percentile([], 0.99) == 0.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99


def test_origins_without_memory_hold_nothing() -> None:
    """Where those who ask are idle, two others must be on every side that asks."""
    idle = Terms(devices=6, origins=(4, 5), hold=2, idle=True)
    assert not servable(Fault(0.0, Kind.PARTITION, (0, 4), 9.0), idle)
    assert servable(Fault(0.0, Kind.PARTITION, (0, 1, 4), 9.0), idle)
    assert all(servable(fault, idle) for fault in schedule(3, 300.0, idle))
