"""What the leader asks for: the plan set of one model, stable while nothing much better is to be had."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.plan.contingency import contingencies
from meshnn.plan.devices import DeviceInfo, Links
from meshnn.plan.outline import Model, outline
from meshnn.plan.plan import Epoch, Plan, PlanSet
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
    origins: int = 1,
    avoid: Collection[DeviceId] = (),
    asking: Mapping[DeviceId, float] | None = None,
    exact: bool = False,
    objective: Objective = "latency",
    prefer: Plan | None = None,
) -> PlanSet:
    """The plan of one model, with a contingency for the death of each of its devices where one is possible.

    `prefer` is the plan that runs: it stays (under the new epoch) unless it can no longer run or the best plan gains
    15 %. NoPlanError when no plan fits. See `Problem` for the other arguments.
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
    )
    main = best_plan(problem, epoch)
    if prefer is not None and not _leave(problem, prefer, main):
        main = msgspec.structs.replace(main, lanes=prefer.lanes, window=prefer.window, share=prefer.share)
    return PlanSet(main, contingencies(problem, main))


def _leave(problem: Problem, running: Plan, best: Plan) -> bool:
    """Whether the running plan must or should give way to the best one."""
    if running.digest != best.digest or not fits(problem, running):
        return True
    if running.window < problem.origins or problem.avoid.intersection(running.devices()):
        return True
    return worth_switching(prediction_of(problem, running), prediction_of(problem, best), problem.objective)
