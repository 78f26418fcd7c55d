"""The solver: the best plan of one model for the devices that are here, and the plan for each of them dying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError
from meshnn.plan.devices import DeviceInfo, Links, asking_weights
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage
from meshnn.plan.predict import Prediction, predict
from meshnn.plan.ranges import Table, candidate_cuts, extra_memory, memory_of
from meshnn.plan.search import Ground, Objective, Pipeline, pipelines
from meshnn.plan.shortage import shortage

WINDOW_MAX = 64
# A plan with more stages must be this much better than one with fewer: what a prediction cannot tell apart is a tie.
STAGE_GAIN = 0.03
# A running plan is left only for a gain of this much.
SWITCH_GAIN = 0.15
# Cuts considered at first, and when nothing fits.
CUTS, CUTS_MORE = 40, 160


@dataclass(frozen=True)
class Problem:
    """What a plan is wanted for. `used` is memory in bytes that other models take of a device.

    `origins` is how many devices may ask at once; `asking` their relative rates (none: all alike). Devices in `avoid`
    serve only where no plan without them fits. `exact` keeps the plan to devices of one numeric class. `risk` says how
    likely each device is to die, beside the others (1 where nothing is said).
    """

    model: str
    card: Outline
    devices: tuple[DeviceInfo, ...]
    links: Links = field(default_factory=Links)
    origins: int = 1
    used: Mapping[DeviceId, int] = field(default_factory=dict)
    asking: Mapping[DeviceId, float] = field(default_factory=dict)
    avoid: frozenset[DeviceId] = frozenset()
    exact: bool = False
    objective: Objective = "latency"
    risk: Mapping[DeviceId, float] = field(default_factory=dict)
    tables: dict[tuple[int, ...], Table] = field(default_factory=dict, compare=False, repr=False)

    def budget(self, info: DeviceInfo) -> int:
        """The bytes that shards of this model may take of a device."""
        return max(0, info.memory_bytes - self.used.get(info.device, 0))

    def without(self, device: DeviceId) -> Problem:
        """The same problem after the death of `device`."""
        return replace(self, devices=tuple(info for info in self.devices if info.device != device))


@dataclass(frozen=True)
class Solution:
    """A plan with what it is predicted to cost."""

    plan: Plan
    prediction: Prediction


def window_of(stages: int, origins: int) -> int:
    """The requests a plan holds at once by default: twice its depth, and two for each origin; at most 64."""
    return max(1, min(WINDOW_MAX, max(2 * stages, 2 * origins)))


def share_of(window: int, origins: int) -> int:
    """The requests of one origin in the window: an equal part, at least 1."""
    return max(1, window // max(1, origins))


def solve(problem: Problem, epoch: Epoch, loaded: Sequence[Plan] = ()) -> Solution:
    """The best plan for the problem, beside the plans that are `loaded` already (their recipes cost nothing more).

    Devices to avoid are left out first. Raises NoPlanError, naming what is missing, when none fits.
    """
    found = choose(problem, solutions(problem, epoch, loaded))
    if found is None:
        raise NoPlanError(shortage(problem.card, problem.devices, problem.budget, window_of(1, problem.origins)))
    return found


def solutions(
    problem: Problem, epoch: Epoch, loaded: Sequence[Plan] = (), *, every_depth: bool = False
) -> list[Solution]:
    """The best plan found of each number of stages, fewest first; none where nothing fits.

    Numbers of stages that are known to be worse are left out, unless `every_depth`. Beside `loaded` plans the search is
    content with few cuts: where nothing fits there, it is because memory is scarce.
    """
    for tier in _tiers(problem):
        found: dict[int, Solution] = {}
        for devices in tier:
            for solution in _search(problem, devices, epoch, loaded, every_depth):
                depth = _depth(solution.plan)
                if depth not in found or _cost(problem, solution) < _cost(problem, found[depth]):
                    found[depth] = solution
        if found:
            return [found[depth] for depth in sorted(found)]
    return []


def choose(problem: Problem, found: Sequence[Solution]) -> Solution | None:
    """The solution to take: the best, where fewer stages win what a prediction cannot tell apart."""
    best: Solution | None = None
    for solution in sorted(found, key=lambda entry: _depth(entry.plan)):
        if best is None or _cost(problem, solution) < (1 - STAGE_GAIN) * _cost(problem, best):
            best = solution
    return best


def worth_switching(old: Prediction | None, new: Prediction, objective: Objective = "latency") -> bool:
    """Whether to leave a running plan for a new one: a gain of 15 % or more; always, where the old cannot run."""
    if old is None:
        return True
    if objective == "throughput":
        return new.throughput_per_s >= (1 + SWITCH_GAIN) * old.throughput_per_s
    return new.latency_ms <= (1 - SWITCH_GAIN) * old.latency_ms


def prediction_of(problem: Problem, plan: Plan) -> Prediction:
    """What a plan costs in the terms of the problem."""
    return predict(plan, problem.card, problem.devices, problem.links, problem.asking)


def fits(problem: Problem, plan: Plan, loaded: Sequence[Plan] = ()) -> bool:
    """Whether every device of the plan is here, in the same life, and has the memory beside what is `loaded`."""
    known = {info.device: info for info in problem.devices}
    if any(device not in known or known[device].boot != boot for device, boot in plan.lives().items()):
        return False
    taken = memory_of(problem.card, loaded)
    extra = extra_memory(problem.card, plan, loaded)
    return all(size == 0 or taken.get(name, 0) + size <= problem.budget(known[name]) for name, size in extra.items())


def _cost(problem: Problem, solution: Solution) -> float:
    """What the objective wants small."""
    if problem.objective == "throughput":
        return 1000.0 / max(solution.prediction.throughput_per_s, 1e-9)
    return solution.prediction.latency_ms


def _depth(plan: Plan) -> int:
    """The number of stages of a plan's deepest lane."""
    return max(len(lane.stages) for lane in plan.lanes)


def _tiers(problem: Problem) -> list[list[tuple[DeviceInfo, ...]]]:
    """The sets of devices to search, in tiers: a later tier only where an earlier one has no plan."""
    if not problem.devices:
        return []
    wanted = tuple(info for info in problem.devices if info.device not in problem.avoid)
    tiers = []
    for devices in dict.fromkeys((wanted, problem.devices)):
        kinds = sorted({info.numeric_class for info in devices}) if problem.exact else [None]
        tiers.append([tuple(i for i in devices if kind is None or i.numeric_class == kind) for kind in kinds])
    return [[devices for devices in tier if devices] for tier in tiers]


def _search(
    problem: Problem, devices: tuple[DeviceInfo, ...], epoch: Epoch, loaded: Sequence[Plan], every_depth: bool
) -> list[Solution]:
    """The best solutions over these devices: over few cuts, and over many where nothing fits."""
    for limit in (CUTS, CUTS_MORE):
        found = _windows(problem, devices, epoch, loaded, limit, every_depth)
        if found or loaded or len(problem.card.legal_cuts) <= limit:
            return found
    return []


def _windows(
    problem: Problem,
    devices: tuple[DeviceInfo, ...],
    epoch: Epoch,
    loaded: Sequence[Plan],
    limit: int,
    every_depth: bool,
) -> list[Solution]:
    """The best solutions over these devices at the default windows, else at the smallest that serves every origin."""
    always = {cut for plan in loaded for recipe, _ in plan.placements() for cut in (recipe.first, recipe.last + 1)}
    cuts = candidate_cuts(problem.card, limit, always)
    table = problem.tables.setdefault(cuts, Table(problem.card, cuts))
    deepest = min(len(devices), table.count - 1)
    windows: dict[int, set[int]] = {}
    for count in range(1, deepest + 1):
        windows.setdefault(window_of(count, problem.origins), set()).add(count)
    least = max(1, min(WINDOW_MAX, problem.origins))
    for option in (windows, {least: set(range(1, deepest + 1))}):
        found: list[Solution] = []
        for window, counts in option.items():
            ground = replace(_ground(problem, devices, table, window, loaded), every_depth=every_depth)
            found += _best_of_each(problem, ground, epoch, counts)
        if found:
            return found
    return []


def _best_of_each(problem: Problem, ground: Ground, epoch: Epoch, counts: set[int]) -> list[Solution]:
    """The best solution of each wanted number of stages, by exact prediction among the search's finalists."""
    found: list[Solution] = []
    for count, ends in enumerate(pipelines(ground, max(counts)), start=1):
        if count in counts and ends:
            plans = [_plan(problem, ground, epoch, pipeline) for pipeline in ends]
            found.append(
                min((Solution(plan, prediction_of(problem, plan)) for plan in plans), key=lambda s: _cost(problem, s))
            )
    return found


def _ground(
    problem: Problem, devices: tuple[DeviceInfo, ...], table: Table, window: int, loaded: Sequence[Plan]
) -> Ground:
    """The ground of one search: budgets beside what is loaded, and the segments that are loaded already."""
    taken = memory_of(problem.card, loaded)
    budgets = tuple(max(0, problem.budget(info) - taken.get(info.device, 0)) for info in devices)
    place = {cut: index for index, cut in enumerate(table.cuts)}
    index_of = {info.device: index for index, info in enumerate(devices)}
    held: dict[tuple[int, int, int], int] = {}
    for plan in loaded:
        for recipe, shard in plan.placements():
            if shard.device in index_of and recipe.split == "none" and recipe.first in place:
                key = (index_of[shard.device], place[recipe.first], place.get(recipe.last + 1, -1))
                held[key] = max(held.get(key, 0), plan.window)
    held = {key: value for key, value in held.items() if key[2] >= 0}
    asking = asking_weights(problem.devices, problem.asking)
    return Ground(table, devices, budgets, problem.links, window, problem.objective, asking, held)


def _plan(problem: Problem, ground: Ground, epoch: Epoch, pipeline: Pipeline) -> Plan:
    """The plan that a pipeline stands for."""
    stages = tuple(
        Stage(first, last, (Group((Shard(ground.devices[at].device, ground.devices[at].boot),)),))
        for first, last, at in pipeline.stages
    )
    share = share_of(ground.window, problem.origins)
    return Plan(epoch, problem.model, problem.card.digest, (Lane(stages),), ground.window, share)
