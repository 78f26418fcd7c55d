"""The routes of one attempt, derived from a lane and its groups: which slice goes from which shard to which.

Stages are numbered from 0; `ORIGIN` (-1) is the origin as the source of the model's inputs, and the number of stages is
the origin again, as the destination of the model's outputs. A tensor goes straight from the stage that makes it to each
stage that reads it, over any stage between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshnn.cluster.member import DeviceId
from meshnn.errors import UsageError
from meshnn.plan import boxes
from meshnn.plan.boxes import Box
from meshnn.plan.outline import Model, Outline, outline
from meshnn.plan.plan import Group, Lane, Plan

ORIGIN = -1


@dataclass(frozen=True, slots=True)
class Source:
    """One piece of a need: the box of the tensor that comes from shard (stage, part); stage -1 is the origin."""

    stage: int
    part: int
    box: Box


@dataclass(frozen=True, slots=True)
class Need:
    """A box of a tensor that a shard (or the origin) must have before it fires, and the pieces that make it up.

    The pieces do not overlap and fill the box, in source order; with `sums` each of them is an addend of the whole box
    instead, to be added in this order, and `activation` is applied to the sum, once.
    """

    tensor: int
    box: Box
    sources: tuple[Source, ...]
    sums: bool = False
    activation: str = "NONE"

    @property
    def copies(self) -> int:
        """How many times the box may have to be held at once: addends wait for their turn, pieces for nothing."""
        return len(self.sources) if self.sums else 1


@dataclass(frozen=True, slots=True)
class Give:
    """A box of a tensor that a shard (or the origin) sends to shard (stage, part)."""

    tensor: int
    box: Box
    stage: int
    part: int


@dataclass(frozen=True)
class Routes:
    """Every need and every give of one lane with one choice of groups, by (stage, part); and where each shard is."""

    stages: int
    needs: dict[tuple[int, int], tuple[Need, ...]]
    gives: dict[tuple[int, int], tuple[Give, ...]]
    devices: dict[tuple[int, int], DeviceId]

    def sources_of(self, stage: int, part: int) -> tuple[tuple[int, int], ...]:
        """The shards that send anything to this one, sorted: one slice message comes from each of them."""
        found = {(source.stage, source.part) for need in self.needs[stage, part] for source in need.sources}
        return tuple(sorted(found))


def derive(card: Model, lane: Lane, groups: Sequence[int]) -> Routes:
    """All routes of `lane` with group `groups[k]` serving stage k. UsageError when the choice does not fit the lane."""
    model = outline(card)
    chosen = _chosen(lane, groups)
    needs = {
        (stage, part): _needs(model, lane, chosen, stage, part)
        for stage in range(len(chosen))
        for part in range(len(chosen[stage].shards))
    }
    needs[len(chosen), 0] = _needs(model, lane, chosen, len(chosen), 0)
    gives: dict[tuple[int, int], list[Give]] = {key: [] for key in ((ORIGIN, 0), *needs) if key[0] < len(chosen)}
    for (stage, part), wanted in needs.items():
        for need in wanted:
            for source in need.sources:
                gives[source.stage, source.part].append(Give(need.tensor, source.box, stage, part))
    devices = {
        (stage, part): shard.device for stage, group in enumerate(chosen) for part, shard in enumerate(group.shards)
    }
    return Routes(len(chosen), needs, {key: tuple(given) for key, given in gives.items()}, devices)


def needs(card: Model, lane: Lane, groups: Sequence[int], stage: int, part: int) -> tuple[Need, ...]:
    """What shard (stage, part) must receive for one request; stage == len(stages) is the origin's own need."""
    return derive(card, lane, groups).needs[stage, part]


def gives(card: Model, lane: Lane, groups: Sequence[int], stage: int, part: int) -> tuple[Give, ...]:
    """What shard (stage, part) sends on, in destination order; stage -1 is the origin with the model's inputs."""
    return derive(card, lane, groups).gives[stage, part]


def deal(plan: Plan, ticket: int) -> tuple[int, tuple[int, ...]]:
    """The lane and the group of each of its stages for the origin's request number `ticket`: by weight, mixed."""
    lane, rest = _turn([lane.weight for lane in plan.lanes], ticket)
    groups = []
    for stage in plan.lanes[lane].stages:
        group, rest = _turn([group.weight for group in stage.groups], rest)
        groups.append(group)
    return lane, tuple(groups)


def ways(plan: Plan) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """Every (lane, groups) that `deal` can choose, with its part of the requests, in lane and group order."""
    total = sum(lane.weight for lane in plan.lanes)
    for number, lane in enumerate(plan.lanes):
        for groups in itertools.product(*(range(len(stage.groups)) for stage in lane.stages)):
            share = lane.weight / total
            for stage, group in zip(lane.stages, groups, strict=True):
                share *= stage.groups[group].weight / sum(other.weight for other in stage.groups)
            yield number, groups, share


def way_count(plan: Plan) -> int:
    """How many `ways` there are."""
    return sum(math.prod(len(stage.groups) for stage in lane.stages) for lane in plan.lanes)


def _turn(weights: Sequence[int], ticket: int) -> tuple[int, int]:
    """The choice whose turn it is, and the ticket that is left for the next choice."""
    common = math.gcd(*weights)
    order = _order(tuple(weight // common for weight in weights))
    rest, slot = divmod(ticket, len(order))
    choice, rank = order[slot]
    return choice, rest * (weights[choice] // common) + rank


@lru_cache(maxsize=256)
def _order(weights: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """One round of turns as (choice, its how manyth), each choice's turns spread evenly over the round."""
    turns = [((2 * rank + 1) / weight, choice, rank) for choice, weight in enumerate(weights) for rank in range(weight)]
    return tuple((choice, rank) for _, choice, rank in sorted(turns))


def _chosen(lane: Lane, groups: Sequence[int]) -> tuple[Group, ...]:
    """The groups that serve this attempt, one a stage."""
    if len(groups) != len(lane.stages):
        raise UsageError(f"{len(groups)} groups chosen for a lane of {len(lane.stages)} stages")
    for stage, group in zip(lane.stages, groups, strict=True):
        if not 0 <= group < len(stage.groups):
            raise UsageError(
                f"group {group} chosen where operators {stage.first}-{stage.last} have {len(stage.groups)}"
            )
    return tuple(stage.groups[group] for stage, group in zip(lane.stages, groups, strict=True))


def _needs(model: Outline, lane: Lane, chosen: tuple[Group, ...], stage: int, part: int) -> tuple[Need, ...]:
    """The needs of one shard, or of the origin when `stage` is past the last."""
    found: list[Need] = []
    at_end = stage == len(chosen)
    tensors = model.outputs if at_end else model.fragment_inputs(lane.stages[stage].first, lane.stages[stage].last)
    for tensor in dict.fromkeys(tensors):
        if at_end:
            box: Box | None = boxes.whole(model.tensor(tensor).shape)
        else:
            box = boxes.want(model, lane.stages[stage], chosen[stage], part, tensor)
        if box is not None:
            device = None if at_end else chosen[stage].shards[part].device
            found.append(_filled(model, lane, chosen, tensor, box, device))
    return tuple(found)


def _filled(
    model: Outline, lane: Lane, chosen: tuple[Group, ...], tensor: int, box: Box, device: DeviceId | None
) -> Need:
    """The need for `box` of `tensor`, with the pieces that fill it."""
    maker = _maker(model, lane, tensor)
    if maker == ORIGIN:
        return Need(tensor, box, (Source(ORIGIN, 0, box),))
    group = chosen[maker]
    held = [
        (part, made)
        for part in range(len(group.shards))
        if (made := boxes.have(model, lane.stages[maker], group, part, tensor)) is not None
    ]
    if boxes.sums(group):
        addends = tuple(Source(maker, part, box) for part, _ in held)
        return Need(tensor, box, addends, sums=True, activation=boxes.activation(model, lane.stages[maker], group))
    # What is on the device already comes from there; the rest from the lowest part that has it.
    held.sort(key=lambda entry: (group.shards[entry[0]].device != device, entry[0]))
    pieces = sorted(_pieces(maker, held, box), key=lambda source: (source.part, source.box))
    if sum(boxes.volume(piece.box) for piece in pieces) != boxes.volume(box):
        raise UsageError(
            f"no shard of operators {lane.stages[maker].first}-{lane.stages[maker].last} makes all of "
            f"tensor {tensor} that a later stage reads"
        )
    return Need(tensor, box, tuple(pieces))


def _pieces(maker: int, held: Sequence[tuple[int, Box]], box: Box) -> Iterator[Source]:
    """Pieces that fill `box` without overlap, taken from `held` in its order."""
    missing: tuple[Box, ...] = (box,)
    for part, made in held:
        for gap in missing:
            piece = boxes.intersect(gap, made)
            if piece is not None:
                yield Source(maker, part, piece)
        missing = tuple(rest for gap in missing for rest in boxes.subtract(gap, made))


def _maker(model: Outline, lane: Lane, tensor: int) -> int:
    """The stage that makes a tensor; the origin for an input of the model."""
    if tensor in model.inputs:
        return ORIGIN
    producer = model.tensor(tensor).producer
    if producer < 0:  # an output that is a constant of the model: it stands in the last shard's file
        return len(lane.stages) - 1
    for number, stage in enumerate(lane.stages):
        if stage.first <= producer <= stage.last:
            return number
    raise UsageError(f"no stage of the plan makes tensor {tensor}")
