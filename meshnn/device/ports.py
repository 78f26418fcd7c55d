"""The inputs and outputs of a loaded file, as the runtime describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meshnn.device.runtime import TensorInterpreter
from meshnn.errors import ModelError


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a loaded shard. `dtype` is numpy's name; scale and zero point are empty where plain."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    index: int


def port_of(detail: dict[str, Any]) -> Port:
    """A port from the dictionary the runtime gives; ModelError for strings and other things that are no numbers."""
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "biufc":
        raise ModelError(f"tensor {detail['name']!r} is of type {dtype.name}, which cannot be passed on")
    quantisation = detail["quantization_parameters"]
    return Port(
        name=str(detail["name"]),
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=dtype.name,
        scale=tuple(float(scale) for scale in quantisation["scales"]),
        zero_point=tuple(int(zero) for zero in quantisation["zero_points"]),
        index=int(detail["index"]),
    )


def fill_zeros(interpreter: TensorInterpreter, inputs: Sequence[Port]) -> None:
    """Set every input to zero: no stale memory reaches a first run."""
    for port in inputs:
        interpreter.set_tensor(port.index, np.zeros(port.shape, np.dtype(port.dtype)))
