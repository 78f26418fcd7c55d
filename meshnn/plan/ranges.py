"""What a run of operators costs: memory of a shard by the one formula, and tables over the cuts a search considers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import UsageError
from meshnn.graph.cost import arena_bytes
from meshnn.plan import boxes
from meshnn.plan.outline import Model, Outline, outline
from meshnn.plan.plan import Group, Plan, Recipe, Shard, Stage

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# The runtime repacks weights, so they are there twice.
WEIGHT_COPIES = 2
NO_ADDENDS: Mapping[int, int] = MappingProxyType({})


def memory_bytes(card: Model, recipe: Recipe, window: int, addends: Mapping[int, int] = NO_ADDENDS) -> int:
    """What a device must have for one shard: 2 x weight bytes + activation arena + assembly for `window` requests.

    Nodes count with this before and after loading. NoPlanError for a split that is refused.
    """
    model = outline(card)
    return base_bytes(model, recipe) + window * assembly_bytes(model, recipe, addends)


def base_bytes(card: Model, recipe: Recipe) -> int:
    """What a shard takes beside its assembly: 2 x weight bytes + activation arena."""
    model = outline(card)
    stage, group = _alone(recipe)
    weights = WEIGHT_COPIES * boxes.weight_bytes(model, stage, group, recipe.part)
    return weights + boxes.arena_bytes(model, stage, group, recipe.part)


def assembly_bytes(card: Model, recipe: Recipe, addends: Mapping[int, int] = NO_ADDENDS) -> int:
    """The most bytes that a node sets aside for one request's inputs of a shard.

    `addends` says of each tensor that comes as partial sums in how many: all but one may have to wait.
    """
    model = outline(card)
    copies = {t: addends[t] for t in model.fragment_inputs(recipe.first, recipe.last) if t in addends}
    shape = (recipe.first, recipe.last, recipe.split, recipe.shares, recipe.part)
    return model.recall(("assembly", *shape, *copies.items()), lambda: _assembly_bytes(model, recipe, copies))


def _assembly_bytes(model: Outline, recipe: Recipe, addends: Mapping[int, int]) -> int:
    """The answer of `assembly_bytes`."""
    stage, group = _alone(recipe)
    total = 0
    for index in dict.fromkeys(model.fragment_inputs(recipe.first, recipe.last)):
        box = boxes.want(model, stage, group, recipe.part, index)
        total += boxes.held_bytes(model, index, box, addends.get(index, 1)) if box is not None else 0
    return total


def addends_before(card: Model, stages: Iterable[Stage]) -> dict[int, int]:
    """Of each tensor that these stages give as partial sums: in how many addends, where groups differ the most."""
    model = outline(card)
    found: dict[int, int] = {}
    for stage in stages:
        count = max((len(group.shards) for group in stage.groups if boxes.sums(group)), default=0)
        if count:
            found.update(dict.fromkeys(model.fragment_outputs(stage.first, stage.last), count))
    return found


def shard_memory(card: Model, plan: Plan, device: DeviceId) -> dict[Recipe, int]:
    """The memory in bytes of each shard that a plan gives a device, by the one formula."""
    model = outline(card)
    rooms = _rooms(model, plan)
    return {r: base_bytes(model, r) + plan.window * rooms[device, r] for r in plan.recipes_of(device)}


def _rooms(model: Outline, plan: Plan) -> dict[tuple[DeviceId, Recipe], int]:
    """`assembly_bytes` of every shard of a plan; where it stands in several lanes the most of them."""
    found: dict[tuple[DeviceId, Recipe], int] = {}
    for lane in plan.lanes:
        addends = addends_before(model, lane.stages)
        alone = Plan(plan.epoch, plan.model, plan.digest, (lane,))
        for recipe, shard in dict.fromkeys(alone.placements()):
            key = (shard.device, recipe)
            found[key] = max(found.get(key, 0), assembly_bytes(model, recipe, addends))
    return found


def plan_memory(card: Model, plan: Plan) -> dict[DeviceId, int]:
    """The memory in bytes that a plan takes of each of its devices; a recipe counts once on a device."""
    return extra_memory(card, plan, ())


def extra_memory(card: Model, plan: Plan, loaded: Iterable[Plan]) -> dict[DeviceId, int]:
    """The memory in bytes that `plan` takes of each of its devices beside the plans that are `loaded` already.

    A recipe that the device holds for one of them costs only the assembly of a wider window.
    """
    model = outline(card)
    held: dict[tuple[DeviceId, Recipe], int] = {}
    for other in loaded:
        for key, room in _rooms(model, other).items():
            held[key] = max(held.get(key, 0), other.window * room)
    extra = dict.fromkeys(plan.devices(), 0)
    for (device, recipe), room in _rooms(model, plan).items():
        known = held.get((device, recipe))
        if known is None:
            extra[device] += base_bytes(model, recipe) + plan.window * room
        else:
            extra[device] += max(0, plan.window * room - known)
    return extra


def memory_of(card: Model, plans: Sequence[Plan]) -> dict[DeviceId, int]:
    """The memory in bytes that several plans of one model take of each device together."""
    model = outline(card)
    taken: dict[DeviceId, int] = {}
    for number, plan in enumerate(plans):
        for device, size in extra_memory(model, plan, plans[:number]).items():
            taken[device] = taken.get(device, 0) + size
    return taken


def _alone(recipe: Recipe) -> tuple[Stage, Group]:
    """A stage and a group that this recipe could stand in; which devices serve it does not matter to its cost."""
    if recipe.split == "none" and recipe.part != 0:
        raise UsageError(f"a shard without a split is part 0, not {recipe.part}")
    group = Group((Shard(DeviceId(""), BootId("")),), recipe.split, recipe.shares)
    return Stage(recipe.first, recipe.last, (group,)), group


class Table:
    """The costs of every segment between two of `cuts` (operator positions, 0 and the number of operators included).

    Square arrays by (index of the first cut, index of the last cut); where last <= first, and where a segment cannot
    be a stage, `legal` is false and the other entries mean nothing.
    """

    def __init__(self, model: Outline, cuts: tuple[int, ...]) -> None:
        self.model = model
        self.cuts = cuts
        self.count = len(cuts)
        self._life = _Life(model)

    @cached_property
    def work(self) -> Floats:
        """Work units of the segment."""
        operators = self.model.operators
        sums = _sums(0.0 if operator.constant else operator.work for operator in operators)[list(self.cuts)]
        return np.asarray(sums[None, :] - sums[:, None])

    @cached_property
    def inputs(self) -> Floats:
        """Bytes that the segment reads from outside, for one request."""
        table = np.zeros((self.count, self.count))
        total = len(self.model.operators)
        for row, cut in enumerate(self.cuts):
            following = self._life.next_reader(cut)
            crosses = (self._life.made < cut) & (following <= total)
            # What only the answer reads is an input of the last segment.
            place = np.minimum(following[crosses], total - 1) + 1
            read = np.bincount(place, weights=self._life.size[crosses], minlength=total + 1)
            table[row] = np.cumsum(read)[list(self.cuts)]
        return table

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of the model's outputs for one request."""
        return sum(self.model.tensor(index).size_bytes for index in self.model.outputs)

    @cached_property
    def legal(self) -> npt.NDArray[np.bool_]:
        """Whether the segment can start as a stage: it is not empty, and something comes in."""
        after = np.triu(np.ones((self.count, self.count), dtype=bool), 1)
        return after & (self.inputs > 0)

    @cached_property
    def shard(self) -> Floats:
        """2 x weight bytes + arena: what a segment takes beside assembly; infinite where nothing comes in or out."""
        table = np.full((self.count, self.count), np.inf)
        for row, first in enumerate(self.cuts[:-1]):
            weights, scratch = _constants(self.model, first)
            readers = self._life.next_reader(first)
            for column in np.flatnonzero(self.legal[row]):
                last = self.cuts[column] - 1
                if self._life.gives(first, last):
                    arena = self._life.arena_bytes(first, last, readers)
                    table[row, column] = WEIGHT_COPIES * weights[last - first] + scratch[last - first] + arena
        return table

    def memory(self, window: int) -> Floats:
        """Memory in bytes of the segment as a shard, for this window."""
        return self.shard + window * self.inputs


class _Life:
    """When every activation is made and read, as parallel arrays over the tensors."""

    def __init__(self, model: Outline) -> None:
        tensors = [entry for entry in model.card.tensors if entry.consumers or entry.index in model.outputs]
        answers = set(model.outputs)
        self.model = model
        self.total = len(model.operators)
        self.readers = [sorted(entry.consumers) for entry in tensors]
        self.made = np.array([entry.producer for entry in tensors], dtype=np.int64)
        self.size = np.array([entry.size_bytes for entry in tensors], dtype=np.float64)
        self.answer = np.array([entry.index in answers for entry in tensors], dtype=bool)
        self.last_reader = np.array([reads[-1] if reads else -1 for reads in self.readers], dtype=np.int64)
        self.padded = -(-self.size.astype(np.int64) // 64) * 64

    def next_reader(self, position: int) -> Ints:
        """Of each tensor the first operator from `position` on that reads it; past the answer where there is none."""
        found = np.full(len(self.readers), self.total + 1, dtype=np.int64)
        for index, reads in enumerate(self.readers):
            place = bisect_left(reads, position)
            if place < len(reads):
                found[index] = reads[place]
        return found

    def gives(self, first: int, last: int) -> bool:
        """Whether anything that operators `first` to `last` make is read outside them."""
        inside = (self.made >= first) & (self.made <= last)
        return last == self.total - 1 or bool((inside & (self.answer | (self.last_reader > last))).any())

    def arena_bytes(self, first: int, last: int, following: Ints) -> int:
        """`Card.arena_bytes` of operators `first` to `last` without scratch; `following` is `next_reader(first)`."""
        end = self.total if last == self.total - 1 else last
        inside = (self.made >= first) & (self.made <= last)
        given = inside & (self.answer | (self.last_reader > last))
        kept = given | ((self.made < first) & (following <= end))
        alive = inside | kept
        begin = np.maximum(self.made[alive], first) - first
        until = np.where(kept, last + 1, np.maximum(self.last_reader, self.made))[alive] - first
        size = self.padded[alive].astype(np.float64)
        change = np.bincount(begin, weights=size, minlength=last - first + 4)
        change -= np.bincount(until + 1, weights=size, minlength=last - first + 4)
        peak = int(np.cumsum(change).max(initial=0.0))
        return arena_bytes(((0, 0, peak),))


def crossing_bytes(model: Outline) -> Floats:
    """The bytes of the tensors that are alive at each position (0 to the number of operators) and read after it."""
    life = _Life(model)
    change = np.bincount(life.made + 1, weights=life.size, minlength=life.total + 3)
    change -= np.bincount(np.maximum(life.last_reader, life.made) + 1, weights=life.size, minlength=life.total + 3)
    return np.asarray(np.cumsum(change)[: life.total + 1])


def candidate_cuts(model: Outline, limit: int, always: Iterable[int] = ()) -> tuple[int, ...]:
    """At most about `limit` legal cuts, ends included: the cheapest crossing in each stretch of equal cost.

    Stretches are equal in the mean of work and weight bytes, so that both a balanced and a tight plan find cuts.
    `always` are positions that must be there when they are legal (those of a plan that runs).
    """
    legal = model.legal_cuts
    ends = {0, len(model.operators)}
    if len(legal) <= limit:
        return tuple(sorted(ends.union(legal)))
    crossing = crossing_bytes(model)
    place = _part(_sums(op.work for op in model.operators)) + _part(_sums(op.weight_bytes for op in model.operators))
    chosen: dict[int, int] = {}
    for position in legal:
        stretch = int(place[position] / 2 * limit)
        best = chosen.get(stretch)
        if best is None or crossing[position] < crossing[best]:
            chosen[stretch] = position
    return tuple(sorted(ends.union(chosen.values(), set(always).intersection(legal))))


def _constants(model: Outline, first: int) -> tuple[list[int], list[int]]:
    """`Card.weight_bytes`, and the scratch bytes, from operator `first` to it, to the next, and so on.

    A constant operator counts with the first that reads its result, and once.
    """
    weights, scratch = [0], [0]
    held: set[int] = set()
    for operator in model.operators[first:]:
        new = set(operator.depends) - held if not operator.constant else set()
        held |= new
        own = 0 if operator.constant else operator.weight_bytes
        weights.append(weights[-1] + own + sum(model.operators[index].weight_bytes for index in new))
        scratch.append(scratch[-1] + sum(model.operators[index].scratch_bytes for index in new))
    return weights[1:], scratch[1:]


def _sums(costs: Iterable[float]) -> Floats:
    """The cost that lies before each position."""
    return np.concatenate(([0.0], np.cumsum(np.fromiter(costs, dtype=np.float64))))


def _part(sums: Floats) -> Floats:
    """The part of the whole that lies before each position, in [0, 1]."""
    return np.asarray(sums / max(float(sums[-1]), 1e-12))
