"""Parts put together again: boxes laid side by side, or addends summed in shard order, then the activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from meshnn.graph.card import Card
from meshnn.graph.splits.boxes import Box

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]


def exact(split: str) -> bool:
    """Whether a split's merged tensors equal the whole's in every byte; float partial sums are within 1e-5 instead."""
    return split != "input"


def activation_of(card: Card, last: int) -> str:
    """The activation to apply once, after the sum, where operators up to `last` ran under an input split."""
    return card.operators[last].geometry.activation


def lay(shape: Sequence[int], dtype: str, parts: Sequence[tuple[Box, Array]]) -> Array:
    """A whole tensor from the boxes its parts gave."""
    made = np.empty(shape, np.dtype(dtype))
    for box, values in parts:
        made[tuple(slice(start, stop) for start, stop in box)] = values
    return made


def total(addends: Sequence[Floats], activation: str) -> Floats:
    """Addends (float32) summed in shard order, then the activation, once."""
    made = np.array(addends[0], np.float32)
    for addend in addends[1:]:
        np.add(made, addend, out=made)
    return activate(made, activation)


def activate(values: Floats, activation: str) -> Floats:
    """A fused activation applied by hand, in place; ValueError for one that no split leaves to the sum."""
    limits: Mapping[str, tuple[float | None, float | None]] = {
        "NONE": (None, None),
        "RELU": (0.0, None),
        "RELU6": (0.0, 6.0),
        "RELU_N1_TO_1": (-1.0, 1.0),
    }
    if activation not in limits:
        raise ValueError(f"{activation} is never applied after a sum")
    low, high = limits[activation]
    if low is not None or high is not None:
        np.clip(values, low, high, out=values)
    return values
