"""Boxes of tensors, ((start, stop) per axis), and the seam to the split rules: what a shard has, wants and costs."""

from __future__ import annotations

from collections.abc import Sequence

from meshnn.errors import NoPlanError
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Group, Stage

Box = tuple[tuple[int, int], ...]


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


def have(model: Outline, stage: Stage, group: Group, part: int, index: int) -> Box | None:
    """The box of tensor `index` that this shard makes; None where it makes none of it."""
    _known(group, part)
    return whole(model.tensor(index).shape)


def want(model: Outline, stage: Stage, group: Group, part: int, index: int) -> Box | None:
    """The box of tensor `index` that this shard reads; None where it reads none of it."""
    _known(group, part)
    return whole(model.tensor(index).shape)


def sums(model: Outline, stage: Stage, group: Group, index: int) -> bool:
    """Whether the shards' boxes of tensor `index` are addends of it, to be added in shard order."""
    _known(group, 0)
    return False


def work(model: Outline, stage: Stage, group: Group, part: int) -> float:
    """The work units of one shard for one request."""
    _known(group, part)
    return model.work(stage.first, stage.last)


def weight_bytes(model: Outline, stage: Stage, group: Group, part: int) -> int:
    """The bytes of the constants in one shard's file."""
    _known(group, part)
    return model.weight_bytes(stage.first, stage.last)


def arena_bytes(model: Outline, stage: Stage, group: Group, part: int) -> int:
    """The bytes of activations that one shard's interpreter holds at once."""
    _known(group, part)
    return model.arena_bytes(stage.first, stage.last)


def _known(group: Group, part: int) -> None:
    """Refuse the splits that the compiler has no geometry for."""
    if group.split != "none":
        raise NoPlanError(f"the {group.split} split is not known to this version")
    if len(group.shards) != 1 or part != 0:
        raise NoPlanError(f"a group without a split has one shard, this one has {len(group.shards)}")
