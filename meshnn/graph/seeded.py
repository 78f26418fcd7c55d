"""Values for an input that nobody gave: what is tried on a model where only the model matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Integers that are no quantised values are mostly places in a table: small ones lie inside every table.
PLACES = 2


def drawn(shape: Sequence[int], dtype: str, random: np.random.Generator, *, quantised: bool) -> NDArray[Any]:
    """A tensor of this shape and dtype: floats are normal, quantised integers use their whole range, others 0 or 1."""
    kind = np.dtype(dtype)
    if kind.kind in "fc":
        return random.standard_normal(tuple(shape)).astype(kind)
    if kind.kind == "b" or not quantised:
        return random.integers(0, PLACES, tuple(shape)).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, tuple(shape), dtype=kind, endpoint=True)
