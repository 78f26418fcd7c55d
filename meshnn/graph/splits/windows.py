"""Which places of its input an operator reads to make given places of its output. Pure arithmetic on geometry."""

from __future__ import annotations

from typing import NamedTuple

from meshnn.graph.card import Geometry
from meshnn.graph.splits.boxes import Box, Interval, whole, with_axis


class Reach(NamedTuple):
    """What one axis reads: the interval of real input, and how much padding is missing on each side."""

    interval: Interval
    before: int
    after: int


def reach(geometry: Geometry, axis: int, out: Interval, size: int) -> Reach:
    """The input rows (axis 0) or columns (1) that make output rows `out` of an input with `size` of them."""
    extent = (geometry.window[axis] - 1) * geometry.dilation[axis] + 1
    begin = out[0] * geometry.stride[axis] - geometry.before[axis]
    end = (out[1] - 1) * geometry.stride[axis] - geometry.before[axis] + extent
    return _clip(begin, end, size)


def pad_reach(geometry: Geometry, axis: int, out: Interval, size: int) -> Reach:
    """The same for a PAD: what of its output is input, and what is padding."""
    before = geometry.pads[axis][0]
    return _clip(out[0] - before, out[1] - before, size)


def _clip(begin: int, end: int, size: int) -> Reach:
    """An interval that may lie outside [0, size), as its real part and its padding."""
    return Reach((max(begin, 0), min(end, size)), max(-begin, 0), max(end - size, 0))


def read_places(geometry: Geometry, out: Box, shape: tuple[int, ...]) -> Box:
    """The box of an input of this shape that makes the output box `out`, rows and columns divided (spatial split).

    Channels are always read whole. An interval is empty where the output box lies in padding alone.
    """
    form = geometry.form
    box = whole(shape)
    if form == "map":
        return out
    if form == "concat":
        return with_axis(out, geometry.axis, box[geometry.axis])
    for axis in (0, 1):
        place = axis + 1
        if form == "pad":
            box = with_axis(box, place, pad_reach(geometry, place, out[place], shape[place]).interval)
        elif form == "blocks":
            low, high = out[place]
            box = with_axis(box, place, (low // geometry.block, -(-high // geometry.block)))
        else:
            box = with_axis(box, place, reach(geometry, axis, out[place], shape[place]).interval)
    return box


def made_places(geometry: Geometry, wanted: Box) -> Box:
    """The output box an operator makes where `wanted` is wanted: whole blocks where it makes places in blocks."""
    if geometry.form != "blocks":
        return wanted
    block = geometry.block
    for axis in (1, 2):
        low, high = wanted[axis]
        wanted = with_axis(wanted, axis, (low // block * block, -(-high // block) * block))
    return wanted


def read_channels(geometry: Geometry, out: Interval, shape: tuple[int, ...]) -> Interval:
    """The channels of an input of this shape that make output channels `out` (output split, on its channels)."""
    if geometry.form in ("dense", "fc"):
        return 0, shape[-1]
    return out[0] // geometry.multiplier, -(-out[1] // geometry.multiplier)
