"""What the leader asks for: the plan set of one model, stable while nothing much better is to be had."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.plan.contingency import contingencies, protected, worth
from meshnn.plan.devices import DeviceInfo, Links
from meshnn.plan.outline import Model, outline
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.ranges import plan_memory
from meshnn.plan.search import Objective
from meshnn.plan.solver import Problem, fits, prediction_of, worth_switching
from meshnn.plan.splitting import best_plan


def solve_set(
    model: str,
    card: Model,
    devices: Sequence[DeviceInfo],
    links: Links,
    epoch: Epoch,
    *,
    memory_used_elsewhere: Mapping[DeviceId, int] | None = None,
    memory_spared_elsewhere: Mapping[DeviceId, int] | None = None,
    origins: int = 1,
    avoid: Collection[DeviceId] = (),
    asking: Mapping[DeviceId, float] | None = None,
    exact: bool = False,
    objective: Objective = "latency",
    risk: Mapping[DeviceId, float] | None = None,
    prefer: Plan | None = None,
    keep: bool = False,
) -> PlanSet:
    """The plan of one model, with a contingency for the death of each of its devices where one is possible.

    `prefer` is the plan that runs: it stays (under the new epoch) unless it can no longer run or the best plan gains
    15 %, or with `keep` whatever that one would gain. What contingencies of other models take
    (`memory_spared_elsewhere`) the plan itself may take from them, its own contingencies only where they fit nowhere
    else. NoPlanError when no plan fits. See `Problem` for the other arguments.
    """
    problem = Problem(
        model,
        outline(card),
        tuple(sorted(devices, key=lambda info: info.device)),
        links,
        origins,
        memory_used_elsewhere or {},
        asking or {},
        frozenset(avoid),
        exact,
        objective,
        risk or {},
    )
    main = _main(problem, epoch, prefer, keep=keep)
    return PlanSet(main, _contingencies(problem, main, memory_spared_elsewhere or {}))


def _main(problem: Problem, epoch: Epoch, running: Plan | None, *, keep: bool) -> Plan:
    """The plan that shall serve: the one that runs, unless it must or should give way to the best."""
    if keep and running is not None and _can_stay(problem, running):
        return msgspec.structs.replace(running, epoch=epoch, pinned=False)
    best = best_plan(problem, epoch)
    if running is None or _leave(problem, running, best):
        return best
    return msgspec.structs.replace(best, lanes=running.lanes, window=running.window, share=running.share)


def _contingencies(problem: Problem, main: Plan, spared: Mapping[DeviceId, int]) -> tuple[Plan, ...]:
    """The contingencies beside those of other models; where these leave too little room, as if they were not there."""
    if not any(spared.values()):
        return contingencies(problem, main)
    taken = plan_memory(problem.card, main)
    used: dict[DeviceId, int] = {}
    for info in problem.devices:
        before = problem.used.get(info.device, 0)
        room = info.memory_bytes - taken.get(info.device, 0)
        used[info.device] = max(before, min(room, before + spared.get(info.device, 0)))
    crowded = replace(problem, used=used)
    beside = contingencies(crowded, main)
    if protected(crowded, PlanSet(main, beside)) >= sum(worth(problem, main, device) for device in main.devices()):
        return beside
    alone = contingencies(problem, main)
    return max(beside, alone, key=lambda plans: protected(problem, PlanSet(main, plans)))


def _leave(problem: Problem, running: Plan, best: Plan) -> bool:
    """Whether the running plan must or should give way to the best one."""
    if not _can_stay(problem, running) or problem.avoid.intersection(running.devices()):
        return True
    return worth_switching(prediction_of(problem, running), prediction_of(problem, best), problem.objective)


def _can_stay(problem: Problem, running: Plan) -> bool:
    """Whether a plan that runs can go on: its model and devices are still there, with room for every origin."""
    return running.digest == problem.card.digest and fits(problem, running) and running.window >= problem.origins
