"""Slices of constants: weights, biases, and what is dequantised from them, with their quantisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from meshnn.graph.ir import BITS, Bytes, Quantization, Tensor
from meshnn.graph.splits.boxes import Box, sizes, whole
from meshnn.graph.verify import refuse

_LARGE_BYTES = 1 << 20


def sliced(tensor: Tensor, box: Box) -> Tensor:
    """A tensor cut down to a box: its shape, its quantisation along a divided axis, and its bytes where it has any.

    Slices along the first axis, and large ones along the last, stay views of the file; others are copied.
    """
    if box == whole(tensor.shape):
        return tensor
    if tensor.source is not None or BITS.get(tensor.dtype, 0) % 8:
        raise refuse("no_split", tensor.name, f"{tensor.dtype} in this form cannot be sliced")
    data = tensor.data
    if data is not None:
        data = _cut(np.ascontiguousarray(data).reshape(-1).view(f"V{BITS[tensor.dtype] // 8}"), tensor.shape, box)
    return dataclasses.replace(tensor, shape=sizes(box), data=data, quantization=_quantization(tensor, box))


def _cut(items: npt.NDArray[np.void], shape: tuple[int, ...], box: Box) -> Bytes:
    """The bytes in a box of items: flat, or rows by bytes where a large view of the file spares a copy."""
    if box[:-1] == whole(shape)[:-1] and items.nbytes > _LARGE_BYTES:
        start, stop = box[-1]
        return items.reshape(-1, shape[-1])[:, start:stop].view(np.uint8)
    piece = items.reshape(shape)[tuple(slice(start, stop) for start, stop in box)]
    return np.ascontiguousarray(piece).reshape(-1).view(np.uint8)


def _quantization(tensor: Tensor, box: Box) -> Quantization | None:
    """The quantisation of what lies in a box."""
    quantization = tensor.quantization
    if quantization is None or len(quantization.scale) == 1:
        return quantization
    start, stop = box[quantization.axis]
    points = quantization.zero_point
    return Quantization(
        quantization.scale[start:stop], points[start:stop] if len(points) > 1 else points, quantization.axis
    )


def broadcast_box(shape: tuple[int, ...], out: Box) -> Box:
    """The part of a constant operand that an output box meets: axes of 1 are broadcast and stay whole."""
    tail = out[len(out) - len(shape) :]
    return tuple((0, 1) if size == 1 else interval for size, interval in zip(shape, tail, strict=True))


def lowest(dtype: str) -> bytes:
    """The bytes of the value no maximum ever picks, for padding under a maximum."""
    kind = np.dtype(dtype)
    value = np.finfo(kind).min if kind.kind == "f" else np.iinfo(kind).min
    return np.asarray(value, kind).tobytes()
