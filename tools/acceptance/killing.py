"""Scenarios in which a device is killed or cut off while another one keeps asking: nothing lost, nothing wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.acceptance.field import Field, Station, pause, until, workers
from tools.acceptance.load import Load
from tools.acceptance.probe import Probe, probe
from tools.acceptance.verdict import Setting, Verdict

KILLS = 5
GAP_S = (5.0, 10.0)
PULLS = 3
# A device without its cable: long enough to be given up, and then to be taken back.
AWAY_S = (12.0, 18.0)
UNPLUGGED_REQUESTS = 500
REQUESTS = 2000
ELECTION_LIMIT_S = 15.0
# How long a restarted device may take to be worth killing again; counted apart from the gap.
BACK_S = 60.0
AGREE_S = 60.0
# The usual model takes 9 MB alone and more with a window of requests: two devices share it, with memory for every
# contingency, and nobody holds it alone.
MEMORY = "7MB"
# A device that can take no part of the work: it asks, so that of two who work one neither asks nor leads.
LITTLE = "1MB"
SEGMENT_S = 60.0
ASK_DEADLINE_S = 30.0


@dataclass(slots=True)
class Course:
    """One run: who asks, who dies, and what was measured on the way."""

    mesh: Field
    verdict: Verdict
    load: Load
    rng: random.Random
    given: Station
    probe: Probe
    gaps_s: list[float] = field(default_factory=list)
    elections_s: list[float] = field(default_factory=list)
    meanwhile_ms: list[float] = field(default_factory=list)
    victims: list[str] = field(default_factory=list)
    at_work: int = 0
    killed_at: float | None = None

    @property
    def origin(self) -> Station:
        """The device that asks."""
        return self.load.origin

    def kill(self, victim: Station) -> None:
        """Pull the victim's plug and start it again at once."""
        own = victim.look().get("self")
        self.at_work += own in workers(self.origin.look(), self.mesh.setting.name)
        now = time.monotonic()
        if self.killed_at is not None:
            self.gaps_s.append(round(now - self.killed_at, 1))
        self.killed_at = now
        self.victims.append(victim.name)
        self.verdict.check(self.load.running, f"nobody asked when {victim.name} was killed")
        victim.kill()
        victim.start()

    def await_back(self, victim: Station) -> None:
        """Wait until a restarted device has joined, so that killing it again means something."""
        until(lambda: self._going() and victim.joined, BACK_S, f"{victim.name} joins again", self.mesh)

    def rest(self, seconds: float) -> None:
        """Let the mesh work under load for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._going()
            pause(min(left, 0.5))

    def leader(self) -> tuple[Station, int]:
        """The leader all agree on, which is not the one who asks."""
        found: list[tuple[Station, int]] = []

        def agreed() -> bool:
            self._going()
            said = self.mesh.leader()
            stations = self.mesh.by_id()
            if said is not None and said[0] in stations and stations[said[0]] is not self.origin:
                found.append((stations[said[0]], said[1]))
            elif said is not None and said[0] in stations and self.load.may_move:
                self.load.move(next(s for s in stations.values() if s is not stations[said[0]]))
            return bool(found)

        until(agreed, AGREE_S + SEGMENT_S, "a leader who is not the origin", self.mesh)
        return found[0]

    def await_election(self, before: int, began: float) -> None:
        """Wait for a leader of a later term, and have another device ask meanwhile."""
        asker = next(s for s in self.mesh.stations if s is not self.origin and s.joined)
        self._ask_meanwhile(asker)
        until(lambda: self._later(before), AGREE_S, "a new leader", self.mesh)
        self.elections_s.append(round(time.monotonic() - began, 1))

    def _later(self, before: int) -> bool:
        self._going()
        said = self.mesh.leader()
        return said is not None and said[1] > before

    def _going(self) -> bool:
        """Keep the load up: when one `bench` has ended, the next begins."""
        self.load.keep_up()
        return True

    def _ask_meanwhile(self, asker: Station) -> None:
        began = time.monotonic()
        reply = asker.speak(
            "POST", "/api/v1/ask", self.probe.body, model=self.mesh.setting.name, tensors=1, deadline=ASK_DEADLINE_S
        )
        if reply is None:
            self.verdict.check(False, f"{asker.name} got no answer without a leader")
            return
        self.meanwhile_ms.append(round((time.monotonic() - began) * 1000))
        right = self.probe.answered_by(reply.rest)
        self.verdict.check(right, f"{asker.name} got a wrong answer without a leader")


def kill_worker(setting: Setting) -> Verdict:
    """The victim works in the active plan and neither asks nor leads; the origin is not the leader."""
    return _run(setting, "kill-worker", _bystander, _kill_workers)


def unplug_worker(setting: Setting) -> Verdict:
    """The victim's cable is pulled instead: nothing tells its peers but its silence. Then it is put back."""
    return _run(setting, "unplug-worker", _bystander, _unplug_workers, UNPLUGGED_REQUESTS)


def kill_worker_from_leader(setting: Setting) -> Verdict:
    """The same with the leader as the origin."""
    return _run(setting, "kill-worker-from-leader", _leader, _kill_workers)


def kill_leader(setting: Setting) -> Verdict:
    """The victim is the leader, five to ten seconds after it became known."""
    return _run(setting, "kill-leader", _youngest, _kill_leaders)


def kill_holder(setting: Setting) -> Verdict:
    """The victim is the only device that was given the file."""
    return _run(setting, "kill-holder", _other_than_leader, _kill_holder)


def _run(
    setting: Setting,
    scenario: str,
    choose: Callable[[Field, Station], Station],
    kills: Callable[[Course], None],
    requests: int = REQUESTS,
) -> Verdict:
    verdict = Verdict(scenario)
    with Field(setting, scenario, "--memory", MEMORY) as mesh:
        if choose is _bystander:
            mesh.stations[-1].options = ("--memory", LITTLE)
        mesh.start()
        given = mesh.stations[3]
        mesh.add(given)
        load = Load(choose(mesh, given), setting.name, SEGMENT_S, mesh.folder)
        course = Course(mesh, verdict, load, random.Random(setting.seed), given, probe(setting.model, setting.seed))
        verdict.figures["devices_in_plan"] = len(mesh.plan())
        verdict.check(len(mesh.plan()) > 1, "one device holds the whole model")
        load.begin()
        try:
            course.rest(course.rng.uniform(*GAP_S))
            kills(course)
            course.rest(course.rng.uniform(*GAP_S))
        except (RuntimeError, TimeoutError) as error:
            verdict.check(False, str(error))
        load.finish(requests if verdict.passed else 0)
    _tell(course, requests)
    return verdict


def _kill_workers(course: Course) -> None:
    for number in range(KILLS):
        if number:
            course.rest(course.rng.uniform(*GAP_S))
        course.kill(_worker(course))


def _unplug_workers(course: Course) -> None:
    for _ in range(PULLS):
        victim = _worker(course)
        assert victim.rack is not None
        course.victims.append(victim.name)
        course.at_work += 1
        victim.rack.unplug()
        course.rest(course.rng.uniform(*AWAY_S))
        victim.rack.plug()
        course.rest(course.rng.uniform(*AWAY_S))


def _worker(course: Course) -> Station:
    """A device that works in the active plan, and neither asks nor leads; the last victim where it may be."""
    found: list[Station] = []

    def works() -> bool:
        status = course.origin.look()
        course.load.keep_up()
        stations = course.mesh.by_id()
        barred = (status.get("self"), status.get("leader"))
        names = [d for d in workers(status, course.mesh.setting.name) if d not in barred and d in stations]
        found.extend(stations[device] for device in names)
        return bool(found)

    until(works, BACK_S, "a device works that neither asks nor leads", course.mesh)
    again = [station for station in found if course.victims and station.name == course.victims[-1]]
    return (again or found)[0]


def _kill_leaders(course: Course) -> None:
    for _ in range(KILLS):
        course.leader()
        course.rest(course.rng.uniform(*GAP_S))
        leader, term = course.leader()
        began = time.monotonic()
        course.kill(leader)
        course.await_election(term, began)


def _kill_holder(course: Course) -> None:
    for number in range(KILLS):
        if number:
            course.rest(course.rng.uniform(*GAP_S))
            course.await_back(course.given)
        course.kill(course.given)


def _leader(mesh: Field, given: Station) -> Station:
    del given
    until(lambda: mesh.leader() is not None, AGREE_S, "a leader", mesh)
    said = mesh.leader()
    assert said is not None
    return mesh.by_id()[said[0]]


def _other_than_leader(mesh: Field, given: Station) -> Station:
    """Neither the leader nor the device that was given the file; one without work in the plan where there is one."""
    leader = _leader(mesh, given)
    idle = [station for device, station in mesh.by_id().items() if device not in mesh.plan()]
    return next(s for s in (*idle, *mesh.stations) if s not in (leader, given))


def _bystander(mesh: Field, given: Station) -> Station:
    """The device that has no memory to work with; where it leads, it is restarted and another one leads."""
    origin = mesh.stations[-1]
    while _leader(mesh, given) is origin:
        _restart(mesh, origin)
    return origin


def _youngest(mesh: Field, given: Station) -> Station:
    """The device that would lead last: members long present lead before others, and lower ids before higher."""
    leader = _leader(mesh, given)
    last = max((device, station.name) for device, station in mesh.by_id().items() if station is not leader)
    origin = next(station for station in mesh.stations if station.name == last[1])
    _restart(mesh, origin)
    return origin


def _restart(mesh: Field, station: Station) -> None:
    """End a node in order and wait until it is back and all is as before."""
    station.stop()
    station.start()
    until(lambda: station.joined and mesh.met() and bool(mesh.plan()), AGREE_S, f"{station.name} is back", mesh)


def _tell(course: Course, requests: int) -> None:
    """Sum up the run."""
    verdict, load = course.verdict, course.load
    verdict.figures |= {
        "origin": ", ".join(load.origins),
        "victims": course.victims,
        "victims_at_work": course.at_work,
        "gaps_s": course.gaps_s,
        "requests": load.ok + load.failed + load.wrong,
        "ok": load.ok,
        "failed": load.failed,
        "wrong": load.wrong,
        "p50_ms": load.p50_ms,
        "longest_ms": load.longest_ms,
        "attempts_max": load.attempts_max,
        "throughput_per_s": load.throughput_per_s,
    }
    if course.elections_s:
        verdict.figures |= {"new_leader_s": course.elections_s, "asked_meanwhile_ms": course.meanwhile_ms}
        worst = max(course.elections_s)
        verdict.check(worst <= ELECTION_LIMIT_S, f"a new leader took {worst} s")
    verdict.check(load.failed == 0, f"{load.failed} failed: {load.errors}")
    verdict.check(load.wrong == 0, f"{load.wrong} wrong")
    verdict.check(load.ok >= requests, f"{load.ok} requests, not {requests}")
    for broken in load.broken:
        verdict.check(False, broken)
