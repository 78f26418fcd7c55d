"""Contingencies: for each device of a plan, the plan without it, made to be prepared beside the one that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.plan.copies import Copy, second_copies
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.plan import Group, Lane, Plan, PlanSet, Recipe, Shard, Stage
from meshnn.plan.ranges import memory_bytes, memory_of
from meshnn.plan.solver import Problem, Solution, choose, fits, prediction_of, solutions
from meshnn.plan.splitting import forced

# A contingency that keeps the survivors' shards is taken unless a new plan is this much faster.
KEEP_LOSS = 0.25
# What a death that nothing loaded covers costs those who ask, in milliseconds: to notice it and to begin anew, to elect
# who does so where the leader died, and to load what the dead device held.
NOTICE_MS, ELECTION_MS, LOAD_MS_PER_BYTE = 2000.0, 7000.0, 2e-6


def contingencies(problem: Problem, main: Plan) -> tuple[Plan, ...]:
    """One plan for each single death among the devices of `main` that leaves the model servable.

    First come those that fit in memory beside `main` and each other, the most valuable first; they are to be loaded
    beforehand. Where second copies of all shards of `main` fit on other devices, that is every death. The others are
    planned beside `main` alone, or by themselves, so that they lie ready on disk.
    """
    deaths = sorted(
        dict.fromkeys(shard.device for _, shard in main.placements()), key=lambda d: -worth(problem, main, d)
    )
    together = _together(problem, main, deaths)
    loaded = [main, *(together[device] for device in deaths if device in together)]
    apart: list[Plan] = []
    running_ms = prediction_of(problem, main).latency_ms
    for device in (device for device in deaths if device not in together):
        for beside in (loaded, [main], []):
            plan = _without(problem.without(device), main, device, beside, running_ms)
            if plan is not None:
                (loaded if beside is loaded else apart).append(plan)
                break
    return (*loaded[1:], *apart)


def loadable(problem: Problem, plans: PlanSet) -> frozenset[str]:
    """The deaths whose contingencies the devices of `problem` can load beside the plan and the contingencies before."""
    loaded = [plans.main]
    for plan in plans.contingencies:
        if fits(problem, plan, loaded):
            loaded.append(plan)
    return frozenset(plan.epoch.absent for plan in loaded[1:])


def _together(problem: Problem, main: Plan, deaths: Sequence[DeviceId]) -> dict[DeviceId, Plan]:
    """Plans for as many deaths as possible, by their worth, that fit in memory beside `main` and each other.

    One by one, in some orders, finds the fastest, and plans cut anew; shard by shard finds what fits tightly.
    """
    best: dict[DeviceId, Plan] = {}
    ways: list[Callable[[], dict[DeviceId, Plan]]] = [
        lambda: _one_by_one(problem, main, deaths),
        lambda: _by_copies(problem, main, deaths),
        lambda: _one_by_one(problem, main, deaths[::-1]),
    ]
    for way in ways:
        found = way()
        best = max(best, found, key=lambda plans: sum(worth(problem, main, device) for device in plans))
        if len(best) == len(deaths):
            break
    return best


def protected(problem: Problem, plans: PlanSet) -> float:
    """The worth of the deaths whose contingencies fit in memory beside the plan and each other, in their order."""
    return sum(worth(problem, plans.main, DeviceId(device)) for device in sorted(loadable(problem, plans)))


def worth(problem: Problem, main: Plan, device: DeviceId) -> float:
    """What a loaded contingency for this death saves: how likely it is, times the milliseconds without an answer."""
    held = sum(memory_bytes(problem.card, recipe, 0) for recipe in main.recipes_of(device))
    lost_ms = NOTICE_MS + held * LOAD_MS_PER_BYTE + (ELECTION_MS if device == main.epoch.leader else 0.0)
    return problem.risk.get(device, 1.0) * lost_ms


def _one_by_one(problem: Problem, main: Plan, deaths: Sequence[DeviceId]) -> dict[DeviceId, Plan]:
    """The fastest plan for each death beside `main` and those before it, where there is one."""
    found: dict[DeviceId, Plan] = {}
    running_ms = prediction_of(problem, main).latency_ms
    for device in deaths:
        plan = _without(problem.without(device), main, device, [main, *found.values()], running_ms)
        if plan is not None:
            found[device] = plan
    return found


def _by_copies(problem: Problem, main: Plan, deaths: Sequence[DeviceId]) -> dict[DeviceId, Plan]:
    """Plans in which other devices take over shard by shard: for every death, else for the most valuable that fit."""
    taken = memory_of(problem.card, [main])
    left = {info.device: problem.budget(info) - taken.get(info.device, 0) for info in problem.devices}
    dropped = {device: plan for device in deaths if (plan := _fitting_rest(problem, main, device)) is not None}
    needed = [device for device in deaths if device not in dropped]
    tiers = list(dict.fromkeys(_heirs(problem, main)))
    placed = next((p for heirs in tiers if (p := second_copies(problem.card, main, needed, heirs, left))), None)
    covered = needed if placed is not None else []
    for device in needed if placed is None else []:
        for heirs in tiers:
            more = second_copies(problem.card, main, [*covered, device], heirs, left)
            if more is not None:
                covered, placed = [*covered, device], more
                break
    copies = placed or {}
    handed = {device: _handed(main, device, _heirs_of(copies, device)) for device in covered}
    return {device: (dropped | handed)[device] for device in deaths if device in dropped or device in handed}


def _fitting_rest(problem: Problem, main: Plan, dead: DeviceId) -> Plan | None:
    """What remains of the plan without the dead device, where that is a whole plan; it costs no memory."""
    rest = _dropped(main, dead)
    return rest if rest is not None and fits(problem.without(dead), rest, [main]) else None


def _heirs_of(copies: Mapping[Copy, DeviceInfo], dead: DeviceId) -> dict[Recipe, DeviceInfo]:
    return {recipe: heir for (device, recipe), heir in copies.items() if device == dead}


def _heirs(problem: Problem, main: Plan) -> Iterator[tuple[DeviceInfo, ...]]:
    """The devices that may take over, fastest first; those to avoid only where the others are not enough."""
    running = {info.numeric_class for info in problem.devices if info.device in main.lives()}
    wanted = [info for info in problem.devices if not problem.exact or info.numeric_class in running]
    wanted.sort(key=lambda info: (-info.speed, info.device))
    yield tuple(info for info in wanted if info.device not in problem.avoid)
    yield tuple(sorted(wanted, key=lambda info: info.device in problem.avoid))


def _without(problem: Problem, main: Plan, dead: DeviceId, beside: Sequence[Plan], running_ms: float) -> Plan | None:
    """The plan without `dead` that fits beside the loaded ones: survivors keep their shards unless that is slow.

    Fewer devices are not faster, so what comes near the running plan's latency needs no search for better.
    """
    dropped = _dropped(main, dead)
    if dropped is not None and fits(problem, dropped, beside):
        return dropped
    kept = _best(_handovers(problem, main, dead, beside))
    if kept is not None and kept.prediction.latency_ms <= (1 + KEEP_LOSS) * running_ms:
        return kept.plan
    fresh = choose(problem, solutions(problem, main.epoch.without(dead), beside)) if problem.devices else None
    if kept is None or fresh is None:
        # By itself, since what is divided for lack of memory has no room for others beside it.
        divided = forced(problem, main.epoch.without(dead)) if problem.devices and not beside else None
        chosen = kept or fresh or divided
        return chosen.plan if chosen is not None else None
    slow = kept.prediction.latency_ms > (1 + KEEP_LOSS) * fresh.prediction.latency_ms
    return fresh.plan if slow else kept.plan


def _dropped(main: Plan, dead: DeviceId) -> Plan | None:
    """The plan with only the groups and lanes that the dead device has no part in; None where a stage has none left."""
    lanes = []
    for lane in main.lanes:
        stages = [
            Stage(stage.first, stage.last, tuple(g for g in stage.groups if all(s.device != dead for s in g.shards)))
            for stage in lane.stages
        ]
        if all(stage.groups for stage in stages):
            lanes.append(Lane(tuple(stages), lane.weight))
    if not lanes:
        return None
    return msgspec.structs.replace(main, epoch=main.epoch.without(dead), lanes=tuple(lanes), pinned=False)


def _handovers(problem: Problem, main: Plan, dead: DeviceId, beside: Sequence[Plan]) -> Iterator[Solution]:
    """The plan with all shards of the dead device on one survivor, for each survivor that has the memory.

    Where none has, the one with them spread over several.
    """
    recipes = main.recipes_of(dead)
    for tier in _heirs(problem, main):
        plans = [_handed(main, dead, dict.fromkeys(recipes, info)) for info in tier]
        plans = [plan for plan in plans if fits(problem, plan, beside)] or _spread(problem, main, dead, tier, beside)
        if plans:
            yield from (Solution(plan, prediction_of(problem, plan)) for plan in plans)
            return


def _spread(
    problem: Problem, main: Plan, dead: DeviceId, heirs: Sequence[DeviceInfo], beside: Sequence[Plan]
) -> list[Plan]:
    """The plan with the shards of the dead device on several survivors; empty where they do not fit."""
    if len(main.recipes_of(dead)) < 2:
        return []
    taken = memory_of(problem.card, beside)
    left = {info.device: problem.budget(info) - taken.get(info.device, 0) for info in heirs}
    copies = second_copies(problem.card, main, [dead], heirs, left)
    plans = [] if copies is None else [_handed(main, dead, _heirs_of(copies, dead))]
    return [plan for plan in plans if fits(problem, plan, beside)]


def _handed(main: Plan, dead: DeviceId, heirs: Mapping[Recipe, DeviceInfo]) -> Plan:
    """The plan with an heir for every shard of the dead device."""

    def group(stage: Stage, old: Group) -> Group:
        shards = []
        for part, held in enumerate(old.shards):
            if held.device == dead:
                heir = heirs[Recipe(main.digest, stage.first, stage.last, old.split, part, old.shares)]
                held = Shard(heir.device, heir.boot)  # noqa: PLW2901 - the same shard, on its heir
            shards.append(held)
        return msgspec.structs.replace(old, shards=tuple(shards))

    lanes = tuple(
        Lane(tuple(Stage(s.first, s.last, tuple(group(s, g) for g in s.groups)) for s in lane.stages), lane.weight)
        for lane in main.lanes
    )
    return msgspec.structs.replace(main, epoch=main.epoch.without(dead), lanes=lanes, pinned=False)


def _best(found: Iterator[Solution]) -> Solution | None:
    """The cheapest of some solutions; the first of equals."""
    return min(found, key=lambda solution: solution.prediction.latency_ms, default=None)
