"""Boxes of tensors and the shares that divide them: pure interval arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Interval = tuple[int, int]
Box = tuple[Interval, ...]

SEPARATOR = -1
"""Stands in a spatial split's shares between the boundaries of rows and those of columns, where tiles are meant."""


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return tuple((0, size) for size in shape)


def sizes(box: Box) -> tuple[int, ...]:
    """The shape of what lies in a box."""
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    """The number of elements in a box; 1 for a scalar's."""
    return math.prod(sizes(box))


def hull(one: Box, other: Box) -> Box:
    """The smallest box around two boxes of one tensor."""
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def with_axis(box: Box, axis: int, interval: Interval) -> Box:
    """A box with another interval on one axis (negative axes count from the end)."""
    place = axis % len(box)
    return (*box[:place], interval, *box[place + 1 :])


def within(inner: Box, outer: Box) -> Box:
    """`inner` counted from the corner of `outer`."""
    return tuple((a - c, b - c) for (a, b), (c, _) in zip(inner, outer, strict=True))


def even_shares(size: int, parts: int) -> tuple[int, ...]:
    """Boundaries that divide `size` elements into `parts` shares as equal as they can be."""
    return tuple(round(size * i / parts) for i in range(parts + 1))


def axes_of(shares: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The boundaries of each divided axis: one axis, or rows and columns where a -1 separates them."""
    if SEPARATOR not in shares:
        return (shares,)
    place = shares.index(SEPARATOR)
    return shares[:place], shares[place + 1 :]


def parts_of(shares: tuple[int, ...]) -> int:
    """How many parts shares make; tiles are counted row by row."""
    return math.prod(len(boundaries) - 1 for boundaries in axes_of(shares))


def interval_of(shares: tuple[int, ...], part: int) -> tuple[Interval, ...]:
    """The interval of one part on each divided axis."""
    axes = axes_of(shares)
    columns = len(axes[1]) - 1 if len(axes) > 1 else 1
    places = (part // columns, part % columns)
    return tuple((axis[place], axis[place + 1]) for axis, place in zip(axes, places, strict=False))


def shares_problem(shares: tuple[int, ...], lengths: tuple[int, ...]) -> str | None:
    """Why boundaries do not divide axes of these lengths into parts that all get something; None where they do."""
    axes = axes_of(shares)
    if len(axes) > len(lengths):
        return f"shares divide {len(axes)} axes, the split divides {len(lengths)}"
    for boundaries, length in zip(axes, lengths, strict=False):
        if len(boundaries) < 2 or boundaries[0] != 0 or boundaries[-1] != length:
            return f"shares {list(boundaries)} do not run from 0 to {length}"
        if any(a >= b for a, b in itertools.pairwise(boundaries)):
            return f"shares {list(boundaries)} leave a part empty"
    return None
