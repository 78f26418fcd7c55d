"""What travels between simulated data planes, and where it belongs."""

from __future__ import annotations

from dataclasses import dataclass

from meshnn.node.inputs import Target
from meshnn.node.slices import Array, Parcel, Passage
from meshnn.node.ways import Ways
from meshnn.plan import boxes
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Recipe

Made = tuple[dict[int, Array], dict[int, boxes.Box]]
Times = tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """A parcel on a link: what a Slice frame and its payload say."""

    passage: Passage
    source: tuple[int, int]
    parcel: Parcel
    left_s: float
    times: Times = ()


@dataclass(frozen=True, slots=True)
class Site:
    """Where a slice belongs."""

    ways: Ways
    recipe: Recipe
    target: Target
