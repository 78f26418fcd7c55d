"""Scenarios of whole nodes: partitions, sleepers, and a death at every step of a switch or a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from meshnn.cluster.member import DeviceId
from meshnn.plan.messages import Activate, Cut, CutDone, Prepare, Ready, Receipt, Retire
from tools.simulate.figure import NO_BOUND, Figure
from tools.simulate.mesh import Mesh, card
from tools.simulate.parcels import Carried

SMALL_BYTES = 700_000
WHOLE_BYTES = 2_200_000
"""Enough for the whole model on one device, so that any part of the mesh can serve."""
TINY_BYTES = 500_000
"""So little that the model needs four devices."""
SWITCH = (Cut, CutDone, Prepare, Ready, Activate, Retire)
FRAMES = (Carried, Receipt)
LEASE_S = 6.0


@dataclass
class Finger:
    """Counts messages of some kinds; at the one numbered `at` its victim is killed, and nothing leaves it any more."""

    mesh: Mesh
    kinds: tuple[type, ...]
    victim: Callable[[DeviceId, DeviceId], DeviceId | None]
    at: int = -1
    count: int = 0
    doomed: set[DeviceId] = field(default_factory=set)

    def __call__(self, near: DeviceId, far: DeviceId, message: object) -> bool:
        """Whether the message is taken away."""
        if isinstance(message, self.kinds):
            if self.count == self.at and (device := self.victim(near, far)) is not None:
                self.doomed.add(device)
                self.mesh.world.later(0.0, self.mesh.peers[device].kill)
            self.count += 1
        return near in self.doomed


def serving(seed: int, size: int, memory_bytes: int, *, held_by: int = 0) -> Mesh:
    """A mesh that serves the usual model."""
    mesh = Mesh(seed, size)
    for host in mesh.hosts:
        host.memory_bytes = memory_bytes
    mesh.start(*range(size))
    mesh.until(lambda: mesh.one_leader() and mesh.views_equal(), 30.0, "the mesh forms")
    mesh.add(held_by, card("m"))
    mesh.until(lambda: mesh.planned("m"), 30.0, "the first plan")
    mesh.run(10.0)
    return mesh


# -- partitions --


def partitions(
    seeds: Iterable[int], sizes: Sequence[int] = (4, 8, 16, 32), durations_s: Sequence[float] = (30.0, 120.0, 600.0)
) -> list[Figure]:
    """Scenario 9: halves and a minority of one are cut off for a while; then the mesh heals."""
    serve_s = leader_s = plan_s = views_s = 0.0
    count = 0
    for seed in seeds:
        for size in sizes:
            for duration_s in durations_s if size <= 16 else durations_s[:1]:
                for left in ({i for i in range(size) if i % 2 == 0}, {0}):
                    found = _partition(seed, size, left, duration_s)
                    count += 1
                    serve_s, leader_s = max(serve_s, found[0]), max(leader_s, found[1])
                    plan_s, views_s = max(plan_s, found[2]), max(views_s, found[3])
    what = f"{count} partitions, N={min(sizes)}..{max(sizes)}, {min(durations_s):g}..{max(durations_s):g} s"
    return [
        Figure(f"{what}: both sides answer", serve_s, 15.0, "s after the cut, the slowest"),
        Figure(f"{what}: one leader", leader_s, 10.0, "s after the heal, the slowest"),
        Figure(f"{what}: one plan", plan_s, 20.0, "s after the heal, the slowest"),
        Figure(f"{what}: equal views", views_s, 30.0, "s after the heal, the slowest"),
    ]


def _partition(seed: int, size: int, left: set[int], duration_s: float) -> tuple[float, float, float, float]:
    """When both sides answered; when there was one leader, one plan, one view again."""
    mesh = serving(seed, size, WHOLE_BYTES)
    sides = (sorted(left), [index for index in range(size) if index not in left])
    pairs = [(mesh.hosts[a].id, mesh.hosts[b].id) for a in sides[0] for b in sides[1]]
    begun = mesh.now
    mesh.watch.cut_off = True
    mesh.network.part([*pairs, *((b, a) for a, b in pairs)], duration_s)
    served = [_side_serves(mesh, side, begun) for side in sides]
    mesh.run(begun + duration_s - mesh.now + 0.01)
    healed = mesh.now
    mesh.until(mesh.one_leader, 60.0, "one leader")
    leader_s = mesh.now - healed
    mesh.until(lambda: mesh.planned("m"), 60.0, "one plan")
    plan_s = mesh.now - healed
    mesh.until(mesh.views_equal, 60.0, "equal views")
    views_s = mesh.now - healed
    mesh.run(20.0)
    whole = mesh.one_leader() and mesh.views_equal() and mesh.planned("m")
    assert whole, f"it fell apart again\n{mesh.describe()}"
    mesh.check_requests()
    return max(served), leader_s, plan_s, views_s


def _side_serves(mesh: Mesh, side: Sequence[int], begun: float) -> float:
    """How long after the cut the first request of every device of this side that began after it is answered."""
    asked = [request for index in side if (request := mesh.ask(index, "m")) is not None]
    known = mesh.watch.asked
    mesh.until(lambda: all(known[one].ended_at is not None for one in asked), 25.0, "this side answers")
    assert all(known[one].answers for one in asked), "a side lost a request"
    return max(known[one].ended_at or 0.0 for one in asked) - begun


# -- sleepers --


def sleepers(seeds: Iterable[int], size: int = 5) -> list[Figure]:
    """Scenario 16: a follower, then the leader, is stopped for 1, 5, 30 and 120 s."""
    rejoin_s = 0.0
    accused = 0
    for seed in seeds:
        for duration_s in (1.0, 5.0, 30.0, 120.0):
            for leading in (False, True):
                mesh = serving(seed, size, SMALL_BYTES)
                mesh.watch.cut_off = True
                host = next(one for one in mesh.hosts if (one.cluster.leader == one.id) == leading)
                host.stall(duration_s)
                mesh.run(duration_s)
                before = len(mesh.watch.false_deaths)
                rejoin_s = max(rejoin_s, mesh.until(lambda m=mesh: m.views_equal() and m.one_leader(), 60.0, "back"))  # type: ignore[misc]
                mesh.run(30.0)
                accused += sum(by == host.id for _, by, _ in mesh.watch.false_deaths[before:])
    return [
        Figure(f"stopped for 1 to 120 s, N={size}: back with one leader", rejoin_s, 3.0, "s after it goes on"),
        Figure(f"stopped for 1 to 120 s, N={size}: living devices buried by the sleeper", accused, 0, "burials"),
    ]


# -- a death at every step --


def switch_deaths(seeds: Iterable[int], size: int = 5) -> list[Figure]:
    """Scenario 12: the leader is killed before each message of the first plan, and of the plan after a death."""
    worst, points = 0.0, 0
    for seed in seeds:
        for again in (False, True):
            at = 0
            while (took_s := _switch(seed, size, at, again=again)) is not None:
                worst = max(worst, took_s)
                points += 1
                at += 1
    return [Figure(f"leader killed at each of {points} steps of a switch: a plan for all", worst, LEASE_S + 10.0, "s")]


def _switch(seed: int, size: int, at: int, *, again: bool) -> float | None:
    """How long after the leader's death all that live serve one plan; None where the switch has fewer steps."""
    mesh = Mesh(seed, size)
    mesh.start(*range(size))
    mesh.until(lambda: mesh.one_leader() and mesh.views_equal(), 30.0, "the mesh forms")
    leader = mesh.hosts[0].cluster.leader
    assert leader is not None
    followers = [host for host in mesh.hosts if host.id != leader]
    finger = Finger(mesh, SWITCH, lambda near, far: leader, at)
    if not again:
        mesh.network.tap = finger
    mesh.add(followers[0].index, card("m"))
    if again:
        mesh.until(lambda: mesh.planned("m"), 30.0, "the first plan")
        mesh.run(10.0)
        plans = followers[0].core.book.active("m")
        assert plans is not None
        # Not one of the two that hold the file: with the leader, which is the other, the model would be lost.
        victim = next(one for one in followers if one.id in plans.main.devices() and not one.disk.models)
        mesh.network.tap = finger
        victim.kill()
    mesh.run_until_killed(leader, 12.0)
    if not finger.doomed:
        return None
    begun = mesh.now
    mesh.until(lambda: mesh.one_leader() and mesh.planned("m"), 60.0, f"a plan after the death at step {at}")
    return mesh.now - begun


def request_deaths(seeds: Iterable[int], size: int = 9) -> list[Figure]:
    """Scenario 13: whoever sends, or should receive, is killed at each frame of a request; the origin lives."""
    points = most_attempts = unanswered = stages = 0
    slowest = 0.0
    for seed in seeds:
        for receiver in (False, True):
            at = 0
            while (found := _request(seed, size, at, receiver=receiver)) is not None:
                at += 1
                if found[0]:
                    points += 1
                    most_attempts, slowest = max(most_attempts, found[1]), max(slowest, found[2])
                    unanswered += not found[1]
                    stages = max(stages, found[3])
    what = f"a device killed at each of {points} frames of a request, {stages} devices in the plan"
    return [
        Figure(f"{what}: requests without an answer", unanswered, 0, "requests"),
        Figure(f"{what}: retries", most_attempts - 1, 2, "at most"),
        Figure(f"{what}: latency", slowest, NO_BOUND, "s, the slowest"),
    ]


def _request(seed: int, size: int, at: int, *, receiver: bool) -> tuple[bool, int, float, int] | None:
    """Whether anybody died, attempts (0: no answer), latency, devices; None where the request has fewer frames."""
    mesh = serving(seed, size, TINY_BYTES)
    plans = mesh.hosts[0].core.book.active("m")
    assert plans is not None
    devices = plans.main.devices()
    origin = next(host for host in mesh.hosts if host.id not in devices)

    def victim(near: DeviceId, far: DeviceId) -> DeviceId | None:
        chosen = far if receiver else near
        return None if chosen == origin.id else chosen

    mesh.network.tap = finger = Finger(mesh, FRAMES, victim, at)
    request = mesh.ask(origin.index, "m")
    assert request is not None
    asked = mesh.watch.asked[request]
    mesh.until(lambda: asked.ended_at is not None, 30.0, f"the request ends after a death at frame {at}")
    mesh.run(5.0)
    if finger.count <= at:
        return None
    assert asked.ended_at is not None
    return bool(finger.doomed), asked.attempts if asked.answers else 0, asked.ended_at - asked.at, len(devices)
