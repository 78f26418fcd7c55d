"""Float layers to integers: the ranges of the activations, and weights as int8."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train_default.layers import ENTRY, Layer

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scale:
    """real = scale * (integer - zero_point); `scale` has one value, or one per output channel (axis 0)."""

    scale: Floats
    zero_point: int = 0


INPUT = Scale(np.array([1 / 128], np.float32), 0)
"""Of the int8 input, (byte - 128) / 128: the bytes of a photo, moved down by 128, are the exact input."""

PROBABILITY = Scale(np.array([1 / 256], np.float32), -128)
"""Of an int8 softmax; the runtimes accept no other."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a tensor took over the calibration photos, outliers left out."""

    low: float
    high: float


def range_of(samples: Floats, tail: float) -> Range:
    """The range that holds all samples but a part `tail` at each end; zero always lies inside."""
    low, high = np.quantile(samples, [tail, 1 - tail]) if tail > 0 else (samples.min(), samples.max())
    return Range(min(float(low), 0.0), max(float(high), 0.0))


def activation_scale(span: Range) -> Scale:
    """The int8 scale that covers the range, with zero exactly on an integer."""
    width = max(span.high - span.low, 1e-6)
    scale = np.float32(width / 255)
    zero_point = int(np.clip(round(-128 - span.low / float(scale)), -128, 127))
    return Scale(np.array([scale], np.float32), zero_point)


def activation_scales(layers: tuple[Layer, ...], ranges: Mapping[str, Range]) -> dict[str, Scale]:
    """A scale per tensor; a pool keeps its input's, softmax and input have fixed ones."""
    scales = {ENTRY: INPUT}
    for layer in layers:
        if layer.kind == "pool":
            scales[layer.name] = scales[layer.entries[0]]
        elif layer.kind == "softmax":
            scales[layer.name] = PROBABILITY
        else:
            scales[layer.name] = activation_scale(ranges[layer.name])
    return scales


def quantised_weights(weights: Floats, per_channel: bool) -> tuple[NDArray[np.int8], Scale]:
    """Symmetric int8 weights in -127..127 and their scale, one per output channel or one in all."""
    flat = np.abs(weights.reshape(len(weights), -1))
    top = flat.max(axis=1) if per_channel else flat.max(keepdims=True).reshape(1)
    scale = np.maximum(top / np.float32(127), np.float32(1e-8)).astype(np.float32)
    spread = scale.reshape((-1,) + (1,) * (weights.ndim - 1))
    return np.clip(np.round(weights / spread), -127, 127).astype(np.int8), Scale(scale)


def quantised_bias(bias: Floats, entry: Scale, weights: Scale) -> tuple[NDArray[np.int32], Scale]:
    """The bias in units of the accumulator: int32 with scale entry * weights."""
    scale = (entry.scale.astype(np.float64) * weights.scale.astype(np.float64)).astype(np.float32)
    limit = float(2**31 - 1)
    return np.clip(np.round(bias / scale.astype(np.float64)), -limit, limit).astype(np.int32), Scale(scale)
