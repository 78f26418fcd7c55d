"""Answers held against the whole model's own: seeded inputs, and what equal means for a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from meshnn.graph.card import Card
from meshnn.graph.seeded import drawn
from meshnn.node.slices import Array

# Of the largest absolute value of the tensor, and in steps of the quantised value: what devices of different
# numeric classes, or partial sums, may differ by.
RELATIVE_BOUND = 1e-5
STEPS_BOUND = 2

Name = TypeVar("Name", int, str)


def seeded_inputs(card: Card, seed: int) -> dict[int, Array]:
    """Raw input tensors by tensor index, the same for the same seed, with the card's shapes and dtypes."""
    random = np.random.default_rng(seed)
    return {
        tensor.index: drawn(tensor.shape, tensor.dtype, random, quantised=tensor.quantization is not None)
        for tensor in card.inputs
    }


def difference(got: Mapping[Name, Array], wanted: Mapping[Name, Array], *, exact: bool = True) -> str | None:
    """The first way in which an answer differs from the one wanted, as a line; None where it does not.

    Exact answers must be equal in every byte; others within the bounds of their class: 1e-5 of the largest value
    of a float tensor, two steps of an integer one.
    """
    if set(got) != set(wanted):
        return f"outputs {sorted(got)} where {sorted(wanted)} were wanted"
    for name, right in wanted.items():
        found = got[name]
        if (found.shape, found.dtype) != (right.shape, right.dtype):
            return (
                f"output {name} is {found.dtype.name} {list(found.shape)}, not {right.dtype.name} {list(right.shape)}"
            )
        if found.tobytes() != right.tobytes() and (exact or not _within(found, right)):
            return f"output {name} differs in {_count(found, right)} of {right.size} values"
    return None


def _within(found: Array, right: Array) -> bool:
    """Whether two tensors are as near as devices of different classes come."""
    if right.dtype.kind == "b":
        return False
    wide = np.complex128 if right.dtype.kind == "c" else np.float64
    one, other = found.astype(wide), right.astype(wide)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return False
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return False
    bound = (
        STEPS_BOUND if right.dtype.kind in "iu" else RELATIVE_BOUND * float(np.max(np.abs(other[finite]), initial=0))
    )
    return float(np.max(np.abs(one[finite] - other[finite]), initial=0)) <= bound


def _count(found: Array, right: Array) -> int:
    """How many values differ; bit patterns count, so that -0 and NaN are told apart as bytes are."""
    if not right.size:
        return 0
    one = np.ascontiguousarray(found).reshape(-1).view(np.uint8).reshape(right.size, -1)
    other = np.ascontiguousarray(right).reshape(-1).view(np.uint8).reshape(right.size, -1)
    return int(np.any(one != other, axis=1).sum())
