"""What the simulated operators compute: one value fills every tensor, so that whatever met by mistake shows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from meshnn.node.slices import Array


def answer_of(value: int, digest: str, first: int, last: int) -> int:
    """The value after these operators of a model: no two runs, models or inputs look alike for long."""
    for operator in range(first, last + 1):
        value = zlib.crc32(f"{value}/{digest}/{operator}".encode()) % 127
    return value


def value_of(tensors: Mapping[int, Array]) -> int:
    """The one value that fills every tensor: slices of different requests or stages that met would show here."""
    first = next(iter(tensors.values())).flat[0]
    met = [array for array in tensors.values() if (array != first).any()]
    assert not met, f"slices of different requests met: {first} and {met[0]}"
    return int(first)
