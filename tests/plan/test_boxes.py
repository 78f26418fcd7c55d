"""Boxes: intersection, difference, volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import NoPlanError
from meshnn.plan import boxes
from meshnn.plan.outline import outline
from meshnn.plan.plan import Group, Stage
from tests.plan.cards import chain, device, shard

SHAPE = (3, 4, 5)


@st.composite
def box(draw: st.DrawFn) -> boxes.Box:
    """Any box of a tensor of SHAPE that is not empty."""
    spans = []
    for size in SHAPE:
        start = draw(st.integers(0, size - 1))
        spans.append((start, draw(st.integers(start + 1, size))))
    return tuple(spans)


def painted(*parts: boxes.Box) -> np.ndarray:
    """How often each element is covered by the boxes."""
    canvas = np.zeros(SHAPE, dtype=int)
    for part in parts:
        canvas[tuple(slice(start, stop) for start, stop in part)] += 1
    return canvas


@given(box(), box())
@settings(max_examples=80, deadline=None)
def test_difference_and_intersection_cover_the_box_once(one: boxes.Box, other: boxes.Box) -> None:
    """A box is its intersection with another and its difference from it, each element once."""
    shared = boxes.intersect(one, other)
    pieces = [*boxes.subtract(one, other), *([shared] if shared else [])]
    assert (painted(*pieces) == painted(one)).all()
    assert sum(map(boxes.volume, pieces)) == boxes.volume(one)


def test_a_scalar_has_one_element() -> None:
    """The box of a scalar is empty of axes and holds one element."""
    assert boxes.whole(()) == ()
    assert boxes.volume(()) == 1
    assert boxes.intersect((), ()) == ()
    assert boxes.subtract((), ()) == ()


def test_a_group_without_a_split_has_one_shard() -> None:
    """Two shards without a split are refused by name, not served as two wholes."""
    group = Group((shard(device("a")), shard(device("b"))))
    with pytest.raises(NoPlanError, match="without a split has one shard"):
        boxes.have(outline(chain(2)), Stage(0, 0, (group,)), group, 0, 1)
