"""Why this plan: the alternatives that were there and what each would cost, as data."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from meshnn.plan.plan import Plan
from meshnn.plan.predict import Prediction
from meshnn.plan.shortage import shortage
from meshnn.plan.solver import Problem, prediction_of, solutions, window_of
from meshnn.plan.splitting import faster


class Alternative(msgspec.Struct, frozen=True):
    """One way to run the model: what it is, its plan and its cost, or why it is not possible."""

    title: str
    plan: Plan | None = None
    prediction: Prediction | None = None
    reason: str = ""
    chosen: bool = False


def explain(problem: Problem, chosen: Plan) -> tuple[Alternative, ...]:
    """The chosen plan first, then one device on each, the best pipeline of 2, 3, ... stages, the best with splits.

    Raises NoPlanError when `chosen` names devices that are not here.
    """
    found = [Alternative(_title(problem, chosen), chosen, prediction_of(problem, chosen), chosen=True)]
    for info in problem.devices:
        alone = replace(problem, devices=(info,), avoid=frozenset())
        title = f"one device: {info.name or info.device}"
        single = solutions(alone, chosen.epoch)
        if single:
            prediction = prediction_of(problem, single[0].plan)
            found.append(Alternative(title, single[0].plan, prediction))
        else:
            found.append(
                Alternative(
                    title, reason=shortage(problem.card, alone.devices, problem.budget, window_of(1, problem.origins))
                )
            )
    for solution in solutions(problem, chosen.epoch, every_depth=True):
        depth = len(solution.plan.lanes[0].stages)
        if depth > 1:
            found.append(Alternative(f"best pipeline of {depth} stages", solution.plan, solution.prediction))
    if all(recipe.split == "none" for recipe, _ in chosen.placements()):
        found += _divided(problem, chosen)
    return tuple(found)


def _divided(problem: Problem, chosen: Plan) -> list[Alternative]:
    """The best plan with split stages, although it is not faster by enough to be chosen."""
    anything = msgspec.structs.replace(prediction_of(problem, chosen), latency_ms=float("inf"))
    split = faster(problem, chosen.epoch, anything)
    return [] if split is None else [Alternative(_title(problem, split.plan), split.plan, split.prediction)]


def _title(problem: Problem, plan: Plan) -> str:
    """What a plan is, in words."""
    names = {info.device: info.name or info.device for info in problem.devices}
    if len(plan.devices()) == 1:
        return f"one device: {names.get(plan.devices()[0], plan.devices()[0])}"
    depths = [len(lane.stages) for lane in plan.lanes]
    lanes = f"{len(depths)} lanes" if len(depths) > 1 else f"pipeline of {depths[0]} stages"
    splits = sorted({recipe.split for recipe, _ in plan.placements()} - {"none"})
    divided = f", {' and '.join(splits)} split" if splits else ""
    return f"{lanes} over {len(plan.devices())} devices{divided}"
