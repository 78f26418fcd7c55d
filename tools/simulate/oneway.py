"""Scenario 10: paths that carry nothing in one direction, and a leader that is deaf or mute while it lives."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from meshnn.cluster.member import DeviceId
from meshnn.plan.plan import Plan
from tools.simulate.figure import NO_BOUND, Figure
from tools.simulate.lives import SMALL_BYTES, serving
from tools.simulate.mesh import Mesh

CUT_S = 40.0
AFTER_S = 30.0
AVOID_S = 20.0
ASK_EVERY_S = 1.0


def neighbours(plan: Plan) -> set[frozenset[DeviceId]]:
    """The pairs of devices that a plan of the usual model has hand on to each other: it is a chain."""
    pairs: set[frozenset[DeviceId]] = set()
    for lane in plan.lanes:
        sides = [{shard.device for group in stage.groups for shard in group.shards} for stage in lane.stages]
        for before, after in itertools.pairwise(sides):
            pairs |= {frozenset((one, other)) for one in before for other in after if one != other}
    return pairs


def pairs(seeds: Iterable[int], size: int = 5) -> list[Figure]:
    """Every path in turn carries nothing in one direction for 40 s, under load."""
    terms, asked, lost, cut_off, waits = 0, 0, 0, 0, []
    for seed in seeds:
        for near in range(size):
            for far in range(size):
                if near != far:
                    mesh = serving(seed, size, SMALL_BYTES)
                    before = _terms(mesh)
                    waits.append(_cut_pair(mesh, near, far))
                    terms = max(terms, _terms(mesh) - before)
                    asked += len(mesh.watch.asked)
                    failed = [one.host for one in mesh.watch.asked.values() if not one.answers]
                    lost += sum(host not in (near, far) for host in failed)
                    cut_off += sum(host in (near, far) for host in failed)
    what = f"one-way cut of every pair, N={size}, {len(waits)} times"
    return [
        Figure(f"{what}: changes of term", terms, 1, "at most"),
        Figure(f"{what}: the plan avoids the pair", max(waits), AVOID_S, "s after the cut, the slowest"),
        Figure(f"{what}: requests of the others without an answer, of {asked}", lost, 0, "requests"),
        Figure(f"{what}: requests of the two without an answer", cut_off, NO_BOUND, "requests"),
    ]


def _cut_pair(mesh: Mesh, near: int, far: int) -> float:
    """How long after the cut the plan that all serve has no use for the path; the mesh is whole again at the end."""
    one, other = mesh.hosts[near].id, mesh.hosts[far].id
    mesh.watch.cut_off = True
    mesh.ask_all("m", ASK_EVERY_S, mesh.now + CUT_S + 5.0)
    mesh.network.part([(one, other)], CUT_S)

    def avoided() -> bool:
        plans = [host.core.book.active("m") for host in mesh.running]
        return all(active is not None and {one, other} not in neighbours(active.main) for active in plans)

    took_s = mesh.world.run_until(avoided, CUT_S - 1.0)
    mesh.run((0.0 if took_s is None else CUT_S - took_s) + AFTER_S)
    assert mesh.views_equal(), f"not whole {AFTER_S:.0f} s after the cut {near} to {far}\n{mesh.describe()}"
    mesh.check_requests()
    return CUT_S if took_s is None else took_s


def leaders(seeds: Iterable[int], size: int = 5) -> list[Figure]:
    """The leader hears nobody, or nobody hears it, for 40 s, under load; then it is whole again."""
    during = healing = asked = lost = 0
    for seed in seeds:
        for deaf in (False, True):
            mesh = serving(seed, size, SMALL_BYTES)
            leader = next(host.index for host in mesh.hosts if host.cluster.leader == host.id)
            before = _terms(mesh)
            _cut_off(mesh, leader, deaf=deaf)
            between = _terms(mesh, leader)
            mesh.until(lambda m=mesh: m.views_equal() and m.one_leader(), AFTER_S, "whole again")  # type: ignore[misc]
            mesh.run(AFTER_S)
            during, healing = max(during, between - before), max(healing, _terms(mesh) - between)
            others = [one for one in mesh.watch.asked.values() if one.host != leader]
            asked += len(others)
            lost += sum(not one.answers for one in others)
            mesh.check_requests()
    what = f"leader deaf or mute for {CUT_S:.0f} s, N={size}"
    return [
        Figure(f"{what}: changes of term meanwhile", during, 1, "at most"),
        Figure(f"{what}: changes of term after it", healing, 1, "at most"),
        Figure(f"{what}: requests of the others without an answer, of {asked}", lost, 0, "requests"),
    ]


def _cut_off(mesh: Mesh, index: int, *, deaf: bool) -> None:
    """Let a device hear nobody, or be heard by nobody, for a while."""
    device = mesh.hosts[index].id
    paths = [(other.id, device) if deaf else (device, other.id) for other in mesh.hosts if other.id != device]
    mesh.watch.cut_off = True
    mesh.ask_all("m", ASK_EVERY_S, mesh.now + CUT_S + 5.0)
    mesh.network.part(paths, CUT_S)
    mesh.run(CUT_S)


def _terms(mesh: Mesh, without: int = -1) -> int:
    """The highest term that any device follows."""
    return max(host.cluster.term for host in mesh.running if host.index != without)
