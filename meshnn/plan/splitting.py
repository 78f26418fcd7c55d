"""Groups that divide one stage over several devices: where that answers sooner, and where memory leaves no other way.

A layer-wise pipeline never lowers the latency of one request; rows or channels over several devices may. Stages are
found by dynamic programming over few cuts with an estimate (one host that gathers between stages), then made into real
plans with balanced shares and judged by the exact prediction. Only exact splits are chosen for speed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from meshnn.errors import MeshError, ModelError, NoPlanError
from meshnn.graph.splits.balance import ALIGN, balanced, proportional, work
from meshnn.graph.splits.layout import DENSE, refusal, share_lengths
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Split, Stage
from meshnn.plan.predict import Prediction
from meshnn.plan.ranges import Table, addends_before, candidate_cuts, memory_bytes
from meshnn.plan.solver import Problem, Solution, fits, prediction_of, share_of, solve, window_of
from meshnn.plan.verify import check

# A plan that divides stages must be predicted to gain so much, in part and in milliseconds: predictions err.
GAIN, GAIN_MS = 0.25, 5.0
# Devices that share one stage, cuts considered, and plans predicted exactly.
PARTS_MAX, CUTS, FINALISTS = 5, 20, 2
# An operator with this part of all work is worth a stage of its own.
HEAVY = 0.02
# What is chosen where memory forces a split: exact ones first.
FORCED: tuple[Split, ...] = ("output", "spatial", "input")


def best_plan(problem: Problem, epoch: Epoch) -> Plan:
    """The best plan for the problem: a pipeline, else stages that are split where that pays or memory forces it.

    Raises NoPlanError, naming what is missing, when none fits.
    """
    found: Solution | None
    try:
        found = solve(problem, epoch)
    except NoPlanError:
        found = forced(problem, epoch)
        if found is None:
            raise
    better = faster(problem, epoch, found.prediction) if problem.objective == "latency" else None
    return (better or found).plan


def faster(problem: Problem, epoch: Epoch, standing: Prediction) -> Solution | None:
    """A plan with split stages that answers one request much sooner than the one that stands; None without one."""
    devices = _able(problem)
    if len(devices) < 2:
        return None
    best = problem.card.work(0, len(problem.card.operators) - 1) / sum(info.speed for info in devices)
    if best > _wanted(standing):
        return None
    drafts: list[tuple[float, int, _Draft]] = []
    for count in sorted({2, min(3, len(devices)), len(devices)}):
        draft = _Draft(problem, devices[:count])
        drafts.append((draft.cost, count, draft))
    solutions = []
    for cost, _, draft in heapq.nsmallest(FINALISTS, drafts):
        plan = draft.plan(epoch) if cost <= _wanted(standing) else None
        if plan is not None and _legal(problem, plan):
            solutions.append(Solution(plan, prediction_of(problem, plan)))
    chosen = min(solutions, key=lambda solution: solution.prediction.latency_ms, default=None)
    return chosen if chosen is not None and chosen.prediction.latency_ms <= _wanted(standing) else None


def _wanted(standing: Prediction) -> float:
    """The latency in milliseconds that is worth a split."""
    return min((1 - GAIN) * standing.latency_ms, standing.latency_ms - GAIN_MS)


def _able(problem: Problem) -> tuple[DeviceInfo, ...]:
    """The devices that may share a stage, fastest first: of one numeric class where the plan must be exact."""
    wanted = [info for info in problem.devices if info.device not in problem.avoid]
    wanted.sort(key=lambda info: (-info.speed, info.device))
    if problem.exact and wanted:
        wanted = [info for info in wanted if info.numeric_class == wanted[0].numeric_class]
    return tuple(wanted[:PARTS_MAX])


@dataclass(frozen=True, slots=True)
class _Run:
    """A stage of a draft: between which cuts (by index), and how it is split."""

    row: int
    column: int
    split: Split


class _Draft:
    """The best stages for some devices, the first of which hosts all that is not split."""

    def __init__(self, problem: Problem, devices: Sequence[DeviceInfo]) -> None:
        self._problem = problem
        self._devices = devices
        self._model: Outline = problem.card
        cuts = candidate_cuts(problem.card, CUTS, _around_heavy(problem.card))
        self._table = problem.tables.setdefault(cuts, Table(problem.card, cuts))
        self._host = devices[0]
        self._sum = sum(info.speed for info in devices)
        pairs = [(self._host.device, info.device) for info in devices[1:]]
        self._byte_ms = max(problem.links.byte_ms(*pair) for pair in pairs)
        self._hop_ms = max(problem.links.hop_ms(*pair) for pair in pairs)
        self.cost, self._runs = self._search()

    def _search(self) -> tuple[float, tuple[_Run, ...]]:
        """The cheapest way from the first cut to the last."""
        count = self._table.count
        best: list[tuple[float, tuple[_Run, ...]]] = [(0.0, ()), *[(float("inf"), ())] * (count - 1)]
        for row in range(count - 1):
            spatial, output = self._reach(row)
            for column in range(row + 1, count):
                for split, cost in self._costs(row, column, spatial, output):
                    if best[row][0] + cost < best[column][0]:
                        best[column] = (best[row][0] + cost, (*best[row][1], _Run(row, column, split)))
        return best[-1]

    def _reach(self, row: int) -> tuple[int, int]:
        """How far a spatial and an output run from this cut go: the operator that ends each."""
        operators = self._model.operators
        first = spatial = output = self._table.cuts[row]
        while spatial < len(operators) and (operators[spatial].constant or not operators[spatial].no_spatial):
            spatial += 1
        head = True
        while output < len(operators):
            operator = operators[output]
            dense = operator.geometry.form in DENSE
            if not operator.constant:
                if operator.no_output or dense != head:
                    break
                head = False
            output += 1
        return max(spatial, first), max(output, first)

    def _costs(self, row: int, column: int, spatial: int, output: int) -> Iterator[tuple[Split, float]]:
        """Every way to run the operators between two cuts, with its estimated milliseconds."""
        if not self._table.legal[row, column]:
            return
        first, after = self._table.cuts[row], self._table.cuts[column]
        units = float(self._table.work[row, column])
        yield "none", units / self._host.speed
        if after > max(spatial, output):
            return
        away = 1 - self._host.speed / self._sum
        moved_in = float(self._table.inputs[row, column])
        given = self._model.fragment_outputs(first, after - 1)
        moved_out = sum(self._model.tensor(t).size_bytes for t in given) * away
        hops = 2 * self._hop_ms
        if after <= output:
            carried = moved_in * (len(self._devices) - 1) + moved_out
            yield "output", units / self._sum + carried * self._byte_ms + hops
        if after <= spatial:
            more, halo = self._halo(first, after - 1, given)
            carried = moved_in * min(1.0, away * halo) + moved_out
            yield "spatial", units * more / self._sum + carried * self._byte_ms + hops

    def _halo(self, first: int, last: int, given: Sequence[int]) -> tuple[float, float]:
        """How much more work an even part of a spatial run does than its share, and how much more input it reads."""
        parts, model = len(self._devices), self._model
        rows: dict[int, float] = {}
        for t in given:
            rows[t] = model.tensor(t).shape[1] / parts
        whole = made = 0.0
        for index in range(last, first - 1, -1):
            operator = model.operators[index]
            if operator.constant or operator.outputs[0] not in rows:
                continue
            height = model.tensor(operator.outputs[0]).shape[1]
            mine = min(float(height), rows[operator.outputs[0]])
            whole, made = whole + operator.work, made + operator.work * mine / height
            shape = operator.geometry
            extent = (shape.window[0] - 1) * shape.dilation[0] + 1
            needed = (mine - 1) * shape.stride[0] + extent if mine > 0 else 0.0
            for t in operator.inputs:
                scale = model.tensor(t).shape[1] / height if shape.form in ("blocks", "pad") else 0.0
                rows[t] = max(rows.get(t, 0.0), mine * scale if scale else needed)
        read = [min(1.0, rows[t] / model.tensor(t).shape[1]) for t in model.fragment_inputs(first, last) if t in rows]
        return max(1.0, made * parts / max(whole, 1e-9)), max([1.0, *(share * parts for share in read)])

    def plan(self, epoch: Epoch) -> Plan | None:
        """The plan of these stages with balanced shares; None where the compiler refuses one after all."""
        stages: list[Stage] = []
        host = Shard(self._host.device, self._host.boot)
        for run in self._merged():
            first, last = self._table.cuts[run.row], self._table.cuts[run.column] - 1
            group = Group((host,))
            if run.split != "none":
                shares = self._shares(first, last, run.split)
                if shares is None:
                    return None
                group = Group(tuple(Shard(info.device, info.boot) for info in self._devices), run.split, shares)
            stages.append(Stage(first, last, (group,)))
        if all(stage.groups[0].split == "none" for stage in stages):
            return None
        return _plan(self._problem, epoch, stages)

    def _shares(self, first: int, last: int, split: Split) -> tuple[int, ...] | None:
        """Shares by the devices' speeds; None where the compiler refuses them. Strips count the rows they repeat."""
        card, speeds = self._model.card, [info.speed for info in self._devices]
        try:
            if split != "spatial":
                return balanced(card, first, last, split, speeds)
            length = share_lengths(card, first, last, split)[0]
            if length < 2 * len(speeds):
                return balanced(card, first, last, split, speeds)
            row = self._model.work(first, last) / length
            strip = max(1, length // max(3, len(speeds)))
            begin = (length - strip) // 2
            inner = work(card, first, last, split, (0, begin, begin + strip, length), 1)
        except ModelError:
            return None
        sides = [1, *[2] * (len(speeds) - 2), 1]
        seam = max(0.0, inner / row - strip) / 2
        room = length + seam * sum(sides)
        rows = [max(1.0, room * speed / self._sum - seam * side) for speed, side in zip(speeds, sides, strict=True)]
        return proportional(length, rows, 1)

    def _merged(self) -> list[_Run]:
        """The stages, with neighbours that the host runs whole made one."""
        found: list[_Run] = []
        for run in self._runs:
            if found and run.split == found[-1].split == "none":
                found[-1] = _Run(found[-1].row, run.column, "none")
            else:
                found.append(run)
        return found


def _around_heavy(model: Outline) -> set[int]:
    """The positions before and behind fully connected layers that matter: an output split begins at its layer."""
    least = HEAVY * model.work(0, len(model.operators) - 1)
    heavy = [index for index, op in enumerate(model.operators) if op.geometry.form == "fc" and op.work >= least]
    return {position for index in heavy for position in (index, index + 1)}


def _legal(problem: Problem, plan: Plan) -> bool:
    """Whether a plan is one that everybody would accept, on devices that have the memory."""
    try:
        check(plan, problem.card)
    except MeshError:
        return False
    return fits(problem, plan)


def _plan(problem: Problem, epoch: Epoch, stages: Sequence[Stage], window: int = 0) -> Plan:
    """A plan of one lane; with the usual window unless one is given."""
    window = window or window_of(len(stages), problem.origins)
    share = share_of(window, problem.origins)
    return Plan(epoch, problem.model, problem.card.digest, (Lane(tuple(stages)),), window, share)


@dataclass
class _Packing:
    """Stages placed so far, and the bytes that each device has left."""

    problem: Problem
    window: int
    left: dict[int, int]
    stages: list[Stage] = field(default_factory=list)

    def shard(self, at: int) -> Shard:
        """A shard on a device."""
        info = self.problem.devices[at]
        return Shard(info.device, info.boot)

    def need(self, stage: Stage, part: int = 0) -> int:
        """The bytes of one shard of a stage."""
        group = stage.groups[0]
        plan = Plan(Epoch(0, self.problem.devices[0].device, 0), "", self.problem.card.digest, (Lane((stage,)),))
        recipe = plan.placements()[part][0]
        assert recipe.split == group.split
        return memory_bytes(self.problem.card, recipe, self.window, addends_before(self.problem.card, self.stages))


def forced(problem: Problem, epoch: Epoch) -> Solution | None:
    """A plan for models of which one operator is too large for any device: that one is divided among several.

    Pieces between cuts are packed in order, as many as fit, device by device; what fits nowhere whole is split over as
    few devices as hold it, in shares by the memory they have left: exactly where the compiler allows that.
    """
    usable = [info for info in problem.devices if info.device not in problem.avoid]
    for devices in dict.fromkeys((tuple(usable), problem.devices)):
        for window in dict.fromkeys((window_of(len(devices), problem.origins), max(1, problem.origins))):
            stages = _packed(problem, devices, window)
            if stages is None:
                continue
            plan = _plan(problem, epoch, stages, window)
            if _legal(problem, plan):
                return Solution(plan, prediction_of(problem, plan))
    return None


def _packed(problem: Problem, devices: Sequence[DeviceInfo], window: int) -> list[Stage] | None:
    """Stages for these devices that should fit; None where something fits nowhere."""
    if not devices:
        return None
    left = {at: problem.budget(info) for at, info in enumerate(problem.devices) if info in devices}
    packing = _Packing(problem, window, left)
    cuts = (0, *problem.card.legal_cuts, len(problem.card.operators))
    row = 0
    while row < len(cuts) - 1:
        taken = _longest(packing, cuts, row)
        if taken is None:
            taken = _divided(packing, cuts[row], cuts[row + 1] - 1)
            column = row + 1
        else:
            column = taken[1]
        if taken is None:
            return None
        packing.stages.append(taken[0])
        row = column
    return packing.stages


def _longest(packing: _Packing, cuts: Sequence[int], row: int) -> tuple[Stage, int] | None:
    """The longest run from a cut that some device has room for, on the device with the most room; None without one."""
    at = max(packing.left, key=lambda index: (packing.left[index], -index))
    low, high = row, len(cuts) - 1
    while low < high:
        middle = (low + high + 1) // 2
        stage = Stage(cuts[row], cuts[middle] - 1, (Group((packing.shard(at),)),))
        if packing.need(stage) <= packing.left[at]:
            low = middle
        else:
            high = middle - 1
    if low == row:
        return None
    stage = Stage(cuts[row], cuts[low] - 1, (Group((packing.shard(at),)),))
    packing.left[at] -= packing.need(stage)
    return stage, low


def _divided(packing: _Packing, first: int, last: int) -> tuple[Stage, int] | None:
    """Operators that fit no device, over as few devices as hold them, those with the most room first."""
    order = sorted(packing.left, key=lambda index: (-packing.left[index], index))
    card = packing.problem.card.card
    for split in FORCED:
        if refusal(card, first, last, split) is not None:
            continue
        length = share_lengths(card, first, last, split)[0]
        for count in range(2, min(len(order), length) + 1):
            # Channels in the blocks that kernels work in, where there are enough of them and memory lets them be.
            blocks = split != "spatial" and length // ALIGN >= 2 * count
            for align in (ALIGN, 1) if blocks else (1,):
                stage = _placed(packing, Stage(first, last, ()), split, order[:count], length, align)
                if stage is not None:
                    return stage, last + 1
    return None


def _placed(
    packing: _Packing, run: Stage, split: Split, chosen: Sequence[int], length: int, align: int
) -> Stage | None:
    """A run divided in shares by the memory that its devices have left; None where one has too little."""
    shares = proportional(length, [max(1, packing.left[at]) for at in chosen], align)
    group = Group(tuple(packing.shard(at) for at in chosen), split, shares)
    stage = Stage(run.first, run.last, (group,))
    try:
        needs = [packing.need(stage, part) for part in range(len(chosen))]
    except NoPlanError:
        return None
    if any(need > packing.left[at] for need, at in zip(needs, chosen, strict=True)):
        return None
    for need, at in zip(needs, chosen, strict=True):
        packing.left[at] -= need
    return stage
