"""One intermediate representation for every pass: a graph of operators over tensors, frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

BITS: dict[str, int] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float64": 64,
    "complex64": 64,
    "complex128": 128,
    "int64": 64,
    "uint64": 64,
    "int32": 32,
    "uint32": 32,
    "int16": 16,
    "uint16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
}
"""Bits of one element by dtype; what is not here (`string`, `resource`, `variant`) has no size of its own."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """Affine quantisation of a tensor: real = scale * (stored - zero_point), per tensor or along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph: constant when `data` is there (uint8, a view of the file), else an activation.

    `data` is flat; a slice along the last axis may be (rows, bytes), not contiguous, to spare a copy.
    `shape` is in elements, int32 dimensions; `dtype` is the TFLite type name in lower case (`float32`, `int8`).
    `shape_known` is false where the file leaves the shape to the run. `variable` marks state that outlives a run.
    `source` is the reader's own table where something in it has no place here (sparsity, other quantisations).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    data: Bytes | None = field(default=None, compare=False, repr=False)
    shape_known: bool = True
    variable: bool = False
    source: Any = field(default=None, compare=False, repr=False)

    @property
    def constant(self) -> bool:
        """Whether the tensor's bytes stand in the file."""
        return self.data is not None

    @property
    def elements(self) -> int:
        """The number of elements of `shape`; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes of a dense tensor of this shape and dtype; 0 for dtypes without a size of their own."""
        return (self.elements * BITS.get(self.dtype, 0) + 7) // 8


@dataclass(frozen=True, slots=True)
class Operator:
    """One step: `inputs` and `outputs` are tensor indices, -1 for an optional input that is absent.

    `kind` is the builtin's name (`CONV_2D`) or `CUSTOM:name`; `options` is the reader's own option object, carried
    through untouched; passes that must change it copy it first.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    version: int = 1
    options: Any = field(default=None, compare=False, repr=False)
    custom_options: bytes = b""
    intermediates: tuple[int, ...] = ()
    mutating: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """A single-subgraph model: operators in execution order, tensors by index, inputs and outputs by index.

    `file` is the whole file as it was read (uint8, flat), for what is appended behind the model; passes drop it.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str = ""
    metadata: tuple[tuple[str, Bytes], ...] = field(default=(), compare=False, repr=False)
    file: Bytes | None = field(default=None, compare=False, repr=False)
