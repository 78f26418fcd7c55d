"""Boxes of tensors, ((start, stop) per axis), and the seam to the split rules: what a shard has, wants and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from meshnn.errors import ModelError, NoPlanError
from meshnn.graph.card import Card
from meshnn.graph.splits import balance
from meshnn.graph.splits.layout import Layout, layout
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Group, Split, Stage

Box = tuple[tuple[int, int], ...]
T = TypeVar("T")


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return tuple((0, size) for size in shape)


def volume(box: Box) -> int:
    """The number of elements in a box (1 for a scalar's)."""
    count = 1
    for start, stop in box:
        count *= stop - start
    return count


def intersect(one: Box, other: Box) -> Box | None:
    """What two boxes of one tensor share; None where they share no element."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return shared if all(start < stop for start, stop in shared) else None


def subtract(box: Box, hole: Box) -> tuple[Box, ...]:
    """`box` without `hole`, as boxes that do not overlap; at most two per axis, in axis order."""
    shared = intersect(box, hole)
    if shared is None:
        return (box,)
    rest: list[Box] = []
    for axis, ((start, stop), (low, high)) in enumerate(zip(box, shared, strict=True)):
        pieces = [piece for piece in ((start, low), (high, stop)) if piece[0] < piece[1]]
        rest.extend((*shared[:axis], piece, *box[axis + 1 :]) for piece in pieces)
    return tuple(rest)


def size_bytes(model: Outline, index: int, box: Box) -> int:
    """The bytes of a box of tensor `index`."""
    entry = model.tensor(index)
    elements = volume(whole(entry.shape))
    return entry.size_bytes * volume(box) // elements if elements else 0


def held_bytes(model: Outline, index: int, box: Box, copies: int = 1) -> int:
    """What an assembly may hold of tensor `index` for one request: the one formula of planner and node.

    `copies` is the number of addends where the tensor comes as such: any of them may have to wait for its turn.
    """
    return copies * size_bytes(model, index, box)


def have(model: Outline, stage: Stage, group: Group, part: int, index: int) -> Box | None:
    """The box of tensor `index` that this shard makes; None where it makes none of it. NoPlanError where refused."""
    if _unsplit(group, part):
        return whole(model.tensor(index).shape)
    return _layout(model, stage, group, part).gives.get(index)


def want(model: Outline, stage: Stage, group: Group, part: int, index: int) -> Box | None:
    """The box of tensor `index` that this shard reads; None where it reads none of it. NoPlanError where refused."""
    if _unsplit(group, part):
        return whole(model.tensor(index).shape)
    return _layout(model, stage, group, part).needs.get(index)


def sums(group: Group) -> bool:
    """Whether what the group's shards give are addends of the whole, to be added in shard order."""
    return group.split == "input"


def activation(model: Outline, stage: Stage, group: Group) -> str:
    """The fused activation that is left to whoever adds the addends of this group; NONE where there are none."""
    if not sums(group):
        return "NONE"
    last = _layout(model, stage, group, 0).steps[-1].operator
    return model.operators[last].geometry.activation


def refusal(model: Outline, stage: Stage, group: Group) -> str | None:
    """Why this group cannot serve this stage, in the compiler's words; None where it can."""
    try:
        for part in range(len(group.shards)):
            if not _unsplit(group, part):
                _layout(model, stage, group, part)
    except NoPlanError as error:
        return str(error)
    return None


def work(model: Outline, stage: Stage, group: Group, part: int) -> float:
    """The work units of one shard for one request, halos that several compute counted with each."""
    return _cost(model.work, balance.work, model, stage, group, part)


def weight_bytes(model: Outline, stage: Stage, group: Group, part: int) -> int:
    """The bytes of the constants in one shard's file."""
    return _cost(model.weight_bytes, balance.weight_bytes, model, stage, group, part)


def arena_bytes(model: Outline, stage: Stage, group: Group, part: int) -> int:
    """The bytes of activations that one shard's interpreter holds at once."""
    return _cost(model.arena_bytes, balance.arena_bytes, model, stage, group, part)


def _cost(
    of_whole: Callable[[int, int], T],
    of_part: Callable[[Card, int, int, Split, tuple[int, ...], int], T],
    model: Outline,
    stage: Stage,
    group: Group,
    part: int,
) -> T:
    """A cost of one shard, worked out once for each."""
    if _unsplit(group, part):
        return of_whole(stage.first, stage.last)

    def found() -> T:
        try:
            return of_part(model.card, stage.first, stage.last, group.split, group.shares, part)
        except ModelError as error:
            raise NoPlanError(str(error)) from None

    return model.recall((of_part.__name__, stage.first, stage.last, group.split, group.shares, part), found)


def _layout(model: Outline, stage: Stage, group: Group, part: int) -> Layout:
    """What one part of a split reads and makes, worked out once for each; NoPlanError with the compiler's reason."""

    def found() -> Layout:
        try:
            return layout(model.card, stage.first, stage.last, group.split, group.shares, part)
        except ModelError as error:
            raise NoPlanError(str(error)) from None

    return model.recall(("layout", stage.first, stage.last, group.split, group.shares, part), found)


def _unsplit(group: Group, part: int) -> bool:
    """Whether the group has no split; NoPlanError for a part that such a group does not have."""
    if group.split == "none" and (len(group.shards) != 1 or part != 0):
        raise NoPlanError(f"a group without a split has one shard, this one has {len(group.shards)}")
    return group.split == "none"
