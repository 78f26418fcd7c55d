"""Tensors in payloads: headers that travel in a frame's meta part, and numpy views of the bytes without a copy.

Several tensors may share one payload; each begins at a multiple of 64 bytes, in the order of their headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from meshnn.errors import PeerError

ALIGNMENT_BYTES = 64
RANK_LIMIT = 8
# What TFLite tensors of a fixed element size hold; text tensors never travel.
DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"bool", "complex64", "complex128"}
)

Extent = Annotated[int, Meta(ge=0, lt=2**31)]
Axes = Annotated[tuple[Extent, ...], Meta(max_length=RANK_LIMIT)]
Array = NDArray[np.generic]
_PADDING = bytes(ALIGNMENT_BYTES)


class TensorHeader(msgspec.Struct, frozen=True):
    """One slice of a tensor: its index in the graph, the slice's shape and dtype, where it begins in the whole.

    `offsets` has one entry per axis; empty means the slice is the whole tensor (or begins at its origin).
    """

    index: Extent
    shape: Axes
    dtype: str
    offsets: Axes = ()


class Described(Protocol):
    """Anything that says the shape and dtype of a slice: a `TensorHeader`, or a header of the plan's own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The slice's own shape."""

    @property
    def dtype(self) -> str:
        """The numpy name of its element type."""


def size_bytes_of(header: Described) -> int:
    """The bytes of a slice, without padding. Raises PeerError for a dtype or shape that does not travel."""
    if header.dtype not in DTYPES:
        raise PeerError("a tensor of a type that does not travel")
    # An empty tensor may have huge extents beside its zero, and numpy wants even those to fit.
    bytes_if_full = math.prod(max(1, extent) for extent in header.shape) * np.dtype(header.dtype).itemsize
    if len(header.shape) > RANK_LIMIT or any(extent < 0 for extent in header.shape) or bytes_if_full >= 2**63:
        raise PeerError("a tensor of a shape that does not travel")
    return math.prod(header.shape) * np.dtype(header.dtype).itemsize


def layout(sizes_bytes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Where slices of these sizes begin in one payload, and the payload's size, in bytes."""
    begins: list[int] = []
    end = 0
    for size_bytes in sizes_bytes:
        begin = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        begins.append(begin)
        end = begin + size_bytes
    return tuple(begins), end


def payload_buffers(arrays: Sequence[Array]) -> list[memoryview]:
    """The buffers, padding included, that are the payload of `arrays`; contiguous arrays are not copied."""
    begins, _ = layout([array.nbytes for array in arrays])
    buffers: list[memoryview] = []
    end = 0
    for array, begin in zip(arrays, begins, strict=True):
        if begin > end:
            buffers.append(memoryview(_PADDING)[: begin - end])
        if array.nbytes:
            buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        end = begin + array.nbytes
    return buffers


def tensor_views(headers: Sequence[Described], payload: memoryview) -> tuple[Array, ...]:
    """The slices in `payload` as arrays that share its memory.

    Raises PeerError where the headers do not describe exactly these bytes.
    """
    sizes_bytes = [size_bytes_of(header) for header in headers]
    begins, total_bytes = layout(sizes_bytes)
    if total_bytes != payload.nbytes:
        raise PeerError(f"tensors of {total_bytes} bytes in a payload of {payload.nbytes}")
    views: list[Array] = []
    for header, begin, size_bytes in zip(headers, begins, sizes_bytes, strict=True):
        part = np.frombuffer(payload[begin : begin + size_bytes], dtype=np.uint8)
        views.append(part.view(header.dtype).reshape(header.shape))
    return tuple(views)
