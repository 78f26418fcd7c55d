"""What the planner answers to: a death that nothing loaded covers, a device that slows down, a pair cut apart."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tools.acceptance.field import Station, Status, alive, pause, until, workers
from tools.acceptance.verdict import Verdict
from tools.chaos.rig import GLANCE_S, Options, Request, Rig, percentile

SETTLED_S = 90.0
REPEATS = 4
# Status states how long an uncovered death leaves without answers; it keeps to that within a quarter.
TOLERANCE = 0.25
UNCOVERED = frozenset({"on disk", "fetch"})
WATCH_S = 20.0
# Scenario 15: ten times slower, found within half a minute; scenario 10: planned apart within twenty seconds.
SLOWER, SLOW_LIMIT_S, SLOW_FACTOR_LIMIT = 10.0, 30.0, 3.0
BASELINE_S, AFTER_S = 30.0, 60.0
PAIR_LIMIT_S, PAIR_WATCH_S = 20.0, 30.0


def uncovered(options: Options, verdict: Verdict, *, leader: bool = False) -> None:
    """The cable of a device is pulled whose death no loaded contingency covers: the time against what status stated.

    With `leader` it is the leader's, whose office must be filled first.
    """
    with Rig(options, verdict.scenario) as rig:
        rig.serve()
        stated: list[float] = []
        took: list[float] = []
        for _ in range(options.repeat or REPEATS):
            victim, row, leads = _uncovered(rig, leader=leader)
            assert victim.rack is not None
            began = time.monotonic()
            victim.rack.unplug()
            pause(WATCH_S)
            silence_s = _silence(rig.requests(), began)
            victim.rack.plug()
            stated.append(row["reroute_ms"] / 1000)
            took.append(round(silence_s, 2))
            role = ", which leads," if leads else ""
            print(f"  {victim.name}{role} {row['state']}: stated {stated[-1]:.1f} s, took {took[-1]} s", flush=True)
        counts = rig.end()
    verdict.figures |= {**counts, "stated_s": [f"{one:.1f}" for one in stated], "took_s_each": [f"{t}" for t in took]}
    for key in ("lost", "doubled", "wrong"):
        verdict.check(counts[key] == 0, f"{counts[key]} {key}")
    for one, other in zip(stated, took, strict=True):
        verdict.check(abs(other - one) <= TOLERANCE * one, f"stated {one:.1f} s, took {other} s")


def uncovered_leader(options: Options, verdict: Verdict) -> None:
    """The same, of a device that leads."""
    uncovered(options, verdict, leader=True)


def _uncovered(rig: Rig, *, leader: bool) -> tuple[Station, dict[str, Any], bool]:
    """A device that works, its row of `deaths` in the status, and whether it leads; with `leader` it must."""
    found: list[tuple[Station, dict[str, Any], bool]] = []

    def ready() -> bool:
        if not rig.converged():
            return False
        status, stations = rig.origins[0].look(), rig.by_id()
        rows = [row for plan in status["plans"] for row in plan["deaths"] if row["state"] in UNCOVERED]
        rows.sort(key=lambda row: row["device"] == status["leader"])
        for row in rows:
            station = stations.get(row["device"])
            leads = row["device"] == status["leader"]
            if station in rig.mortals and row["reroute_ms"] and leads >= leader:
                found.append((station, row, leads))
        return bool(found)

    until(ready, SETTLED_S, "a device works whose death is not covered", rig)
    # What was stated is to stand for a while: measures come in, contingencies are fetched.
    pause(5.0)
    found.clear()
    until(ready, SETTLED_S, "a device works whose death is not covered", rig)
    return found[0]


def _silence(requests: list[Request], began_s: float) -> float:
    """From `began_s` until the end of the longest time without an answer that began about then."""
    ends = sorted(request.ended_s for request in requests if request.ended_s > began_s - 1.0)
    gaps = [(after - before, after) for before, after in pairwise(ends) if after > began_s]
    return max(gaps)[1] - began_s if gaps else 0.0


def slow(options: Options, verdict: Verdict) -> None:
    """A device that works becomes ten times slower, and stays so: scenario 15, eight devices."""
    with Rig(replace(options, devices=8), verdict.scenario) as rig:
        rig.serve()
        pause(15.0)
        began = time.monotonic()
        pause(BASELINE_S)
        baseline = [r.ended_s - r.began_s for r in rig.requests() if r.began_s > began]
        victim, own = _worker(rig, leads=False)
        assert victim.rack is not None
        slowed = time.monotonic()
        victim.rack.limit_cpu(options.cpu / SLOWER)
        left_s = _until_left(rig, {own}, slowed, AFTER_S)
        print(f"  {victim.name} is slow: the plan did without it after {left_s} s", flush=True)
        pause(max(0.0, slowed + AFTER_S - time.monotonic()))
        since = [r for r in rig.requests() if r.ended_s > slowed]
        victim.rack.limit_cpu(options.cpu)
        counts = rig.end()
    usual_s = percentile(baseline, 0.99)
    all_s = percentile([r.ended_s - r.began_s for r in since], 0.99)
    later_s = percentile([r.ended_s - r.began_s for r in since if r.began_s > slowed + left_s], 0.99)
    figures = {"baseline_p99_s": usual_s, "p99_s": all_s, "p99_after_the_change_s": later_s}
    verdict.figures |= {**counts, "plan_left_it_s": left_s, **{key: round(s, 3) for key, s in figures.items()}}
    verdict.figures["slowest_s"] = round(max((r.ended_s - r.began_s for r in since), default=0.0), 2)
    for key in ("lost", "doubled", "wrong"):
        verdict.check(counts[key] == 0, f"{counts[key]} {key}")
    verdict.check(left_s <= SLOW_LIMIT_S, f"planned without it after {left_s} s")
    verdict.check(all_s <= SLOW_FACTOR_LIMIT * usual_s, f"p99 {all_s:.2f} s where {usual_s:.2f} s is usual")


def pair(options: Options, verdict: Verdict) -> None:
    """Two devices that work, and hand on to each other, cannot reach each other any more: scenario 10."""
    with Rig(options, verdict.scenario) as rig:
        rig.serve()
        pause(10.0)
        until(lambda: rig.converged() and len(rig.plan()) > 1, SETTLED_S, "a plan of two devices or more", rig)
        terms = {status["term"] for station in rig.stations if (status := station.look())}
        one, other = rig.plan()[:2]
        stations = rig.by_id()
        near, far = stations[one].rack, stations[other].rack
        assert near is not None
        assert far is not None
        began = time.monotonic()
        near.part_from(far)
        left_s = _until_left(rig, {one, other}, began, PAIR_WATCH_S)
        print(f"  {near.name} and {far.name} cannot talk: planned apart after {left_s} s", flush=True)
        pause(max(0.0, began + PAIR_WATCH_S - time.monotonic()))
        seen = [status for station in rig.stations if (status := station.look())]
        apart = [status for status in seen if not {one, other} <= set(workers(status, rig.setting.name))]
        gone = [status["self"] for status in seen if not {one, other} <= alive(status)]
        terms |= {status["term"] for status in seen}
        near.meet_again(far)
        counts = rig.end()
        longest = max((r.ended_s - r.began_s for r in rig.requests() if r.ended_s > began), default=0.0)
    verdict.figures |= {**counts, "planned_apart_s": left_s, "terms": len(terms), "longest_answer_s": round(longest, 2)}
    for key in ("lost", "doubled", "wrong"):
        verdict.check(counts[key] == 0, f"{counts[key]} {key}")
    verdict.check(left_s <= PAIR_LIMIT_S, f"planned apart after {left_s} s")
    verdict.check(
        len(apart) == len(seen), f"after {PAIR_WATCH_S:.0f} s {len(seen) - len(apart)} views plan them together"
    )
    verdict.check(len(terms) <= 2, f"{len(terms) - 1} changes of term")
    verdict.check(not gone, f"{len(gone)} views buried one of the two")


def _worker(rig: Rig, *, leads: bool) -> tuple[Station, str]:
    """A device that works, does not ask, and leads or does not."""
    found: list[tuple[Station, str]] = []

    def ready() -> bool:
        status, stations = rig.origins[0].look(), rig.by_id()
        working = [own for own in workers(status, rig.setting.name) if (own == status["leader"]) == leads]
        found.extend((stations[own], own) for own in working if stations.get(own) in rig.mortals)
        return bool(found) and rig.converged()

    until(ready, SETTLED_S, "a device that works", rig)
    return found[-1]


def _until_left(rig: Rig, devices: set[str], began: float, most_s: float) -> float:
    """The seconds until the plan of an origin holds not all of these devices any more; `most_s` where it keeps them."""
    while time.monotonic() - began < most_s:
        status: Status = rig.origins[0].look()
        if status and not devices <= set(workers(status, rig.setting.name)):
            return round(time.monotonic() - began, 1)
        pause(GLANCE_S)
    return most_s
