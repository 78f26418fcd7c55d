"""A working device dies under load, loudly (kill -9) or silently (its cable is pulled), again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.acceptance.field import Station, Status, alive, pause, until, workers
from tools.acceptance.verdict import Verdict
from tools.chaos.rig import Options, Rig, first_times, percentile, state_of

REPEATS = 20
SETTLED_S = 90.0
DEAD_S = 40.0
AFTER_S = 3.0
KILL_LIMIT_S, UNPLUG_LIMIT_S = 1.0, 2.0
KILLED_DEAD_LIMIT_S = 3.0
UNPLUGGED_DEAD_LIMIT_S = 14.0
GONE = frozenset({"dead", "left", ""})


def kill(options: Options, verdict: Verdict) -> None:
    """A device that works is ended by kill -9: scenario 1."""
    _deaths(options, verdict, _killed, KILL_LIMIT_S, KILLED_DEAD_LIMIT_S)


def unplug(options: Options, verdict: Verdict) -> None:
    """The cable of one is pulled, and nothing tells of it but silence: scenario 2."""
    _deaths(options, verdict, _unplugged, UNPLUG_LIMIT_S, UNPLUGGED_DEAD_LIMIT_S)


@dataclass(slots=True)
class Course:
    """What was measured of deaths so far, in seconds: re-routed requests, and when every view had buried the dead."""

    rig: Rig
    rerouted: list[float] = field(default_factory=list)
    buried: list[float] = field(default_factory=list)

    def death(self, die: Callable[[Station], Callable[[], None]]) -> None:
        """One device dies, everything is measured, and it comes back."""
        victim, own = _victim(self.rig)
        began = time.monotonic()
        revive = die(victim)
        others = [station for station in self.rig.stations if station is not victim]
        times = first_times(others, lambda seen: state_of(seen, own) in GONE, began, DEAD_S)
        self.buried.append(max(times.values()) if len(times) == len(others) else DEAD_S)
        pause(max(0.0, began + AFTER_S - time.monotonic()))
        hit = self.rig.rerouted_s(began)
        print(f"  {victim.name}: dead in every view after {self.buried[-1]} s, re-routed in {sorted(hit)}", flush=True)
        self.rerouted += hit
        revive()

    @property
    def figures(self) -> dict[str, int | float]:
        """The sums of it."""
        return {
            "deaths": len(self.buried),
            "rerouted": len(self.rerouted),
            "rerouted_p50_s": percentile(self.rerouted, 0.5),
            "rerouted_p99_s": percentile(self.rerouted, 0.99),
            "rerouted_max_s": max(self.rerouted, default=0.0),
            "dead_in_every_view_p50_s": percentile(self.buried, 0.5),
            "dead_in_every_view_max_s": max(self.buried, default=0.0),
        }


def _deaths(
    options: Options,
    verdict: Verdict,
    die: Callable[[Station], Callable[[], None]],
    limit_s: float,
    dead_limit_s: float,
) -> None:
    with Rig(options, verdict.scenario) as rig:
        rig.serve()
        course = Course(rig)
        for _ in range(options.repeat or REPEATS):
            course.death(die)
        counts = rig.end()
        longest = max((r.ended_s - r.began_s for r in rig.requests()), default=0.0)
    verdict.figures |= {**counts, **course.figures, "longest_answer_s": round(longest, 2)}
    for key in ("lost", "doubled", "wrong"):
        verdict.check(counts[key] == 0, f"{counts[key]} {key}")
    p99_s, buried_s = percentile(course.rerouted, 0.99), max(course.buried)
    verdict.check(bool(course.rerouted), "no request was hit: nothing was measured")
    verdict.check(p99_s <= limit_s, f"re-routed in {p99_s} s at p99")
    # Requests that came later, or went round twice, are no re-routes; they must not wait either.
    verdict.check(longest <= 2 * limit_s, f"an answer took {longest:.1f} s")
    verdict.check(buried_s <= dead_limit_s, f"dead in every view after {buried_s} s")


def _victim(rig: Rig) -> tuple[Station, str]:
    """A device that works in a plan which covers its death with a prepared contingency, and neither asks nor leads."""
    found: list[tuple[Station, str]] = []

    def ready() -> bool:
        if not rig.converged():
            return False
        status = rig.origins[0].look()
        stations = rig.by_id()
        dying = [own for own in workers(status, rig.setting.name) if covered(status, own) and own != status["leader"]]
        found.extend((stations[own], own) for own in dying if stations.get(own) in rig.mortals)
        return bool(found)

    try:
        until(ready, SETTLED_S, "a device works whose death is covered", rig)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; {_seen(rig)}") from None
    return found[0]


def _seen(rig: Rig) -> str:
    """Leader, workers and covered deaths as each device has them."""
    rows = []
    for station in rig.stations:
        status = station.look()
        plans = [(plan["epoch"], workers(status, plan["model"]), plan["covered"]) for plan in status.get("plans", ())]
        rows.append(f"{station.name} is {status.get('self')}, follows {status.get('leader')}: {plans}")
    return "; ".join(rows)


def covered(status: Status, device: str) -> bool:
    """Whether a view says that the death of a device is covered by prepared contingencies."""
    return all(plan["covered"].get(device) == "prepared" for plan in status["plans"]) and device in alive(status)


def _killed(victim: Station) -> Callable[[], None]:
    victim.kill()
    return victim.start


def _unplugged(victim: Station) -> Callable[[], None]:
    assert victim.rack is not None
    victim.rack.unplug()
    return victim.rack.plug
