"""Contingencies: for each device of a plan, the plan without it, made to be prepared beside the one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.plan import Group, Lane, Plan, Shard, Stage
from meshnn.plan.solver import Problem, Solution, choose, fits, prediction_of, solutions
from meshnn.plan.splitting import forced

# A contingency that keeps the survivors' shards is taken unless a new plan is this much faster.
KEEP_LOSS = 0.25


def contingencies(problem: Problem, main: Plan) -> tuple[Plan, ...]:
    """One plan for each single death among the devices of `main` that leaves the model servable, in stage order.

    Each is looked for beside `main` and the contingencies before it in every survivor's budget, then beside `main`
    alone, then by itself, so that it can be loaded beforehand wherever memory allows.
    """
    found: list[Plan] = []
    loaded = [main]
    running_ms = prediction_of(problem, main).latency_ms
    for device in dict.fromkeys(shard.device for _, shard in main.placements()):
        survivors = problem.without(device)
        for beside in (loaded, [main], []):
            plan = _without(survivors, main, device, beside, running_ms)
            if plan is not None:
                found.append(plan)
                if beside is loaded:
                    loaded.append(plan)
                break
    return tuple(found)


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
    """The plan with all shards of the dead device on one survivor, for each survivor that has the memory."""
    running = {info.numeric_class for info in problem.devices if info.device in main.lives()}
    wanted = [info for info in problem.devices if not problem.exact or info.numeric_class in running]
    for tier in ([i for i in wanted if i.device not in problem.avoid], wanted):
        plans = [plan for info in tier if fits(problem, plan := _handed(main, dead, info), beside)]
        if plans:
            yield from (Solution(plan, prediction_of(problem, plan)) for plan in plans)
            return


def _handed(main: Plan, dead: DeviceId, heir: DeviceInfo) -> Plan:
    """The plan with `heir` in the place of the dead device."""
    shard = Shard(heir.device, heir.boot)
    lanes = tuple(
        Lane(
            tuple(
                Stage(
                    stage.first,
                    stage.last,
                    tuple(
                        Group(
                            tuple(shard if held.device == dead else held for held in group.shards),
                            group.split,
                            group.shares,
                            group.weight,
                        )
                        for group in stage.groups
                    ),
                )
                for stage in lane.stages
            ),
            lane.weight,
        )
        for lane in main.lanes
    )
    return msgspec.structs.replace(main, epoch=main.epoch.without(dead), lanes=lanes, pinned=False)


def _best(found: Iterator[Solution]) -> Solution | None:
    """The cheapest of some solutions; the first of equals."""
    return min(found, key=lambda solution: solution.prediction.latency_ms, default=None)
