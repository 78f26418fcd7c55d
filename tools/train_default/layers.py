"""The trained network as a list of plain layers: batch normalisation folded, weights in TFLite's order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Kind = Literal["conv", "pool", "add", "mean", "dense", "softmax"]

EPSILON = 1e-5
"""What PyTorch's batch normalisation adds to the variance."""

ENTRY = "photo"
"""Name of the network's input, normalised floats [1, side, side, 3]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator: reads `entries` and makes `name`, whose shape is `shape` (with the batch of 1).

    `weights` is [out, rows, columns, in] for a convolution and [out, in] for a dense layer; `bias` is [out].
    """

    kind: Kind
    name: str
    entries: tuple[str, ...]
    shape: tuple[int, ...]
    stride: int = 1
    relu: bool = False
    weights: Floats | None = None
    bias: Floats | None = None


def fold(weights: Mapping[str, Floats], prefix: str) -> tuple[Floats, Floats]:
    """The convolution under `prefix` with its normalisation folded in: weights [out, rows, columns, in], bias [out]."""
    gain = weights[f"{prefix}.norm.weight"] / np.sqrt(weights[f"{prefix}.norm.running_var"] + EPSILON)
    kernel = weights[f"{prefix}.conv.weight"] * gain[:, None, None, None]
    bias = weights[f"{prefix}.norm.bias"] - weights[f"{prefix}.norm.running_mean"] * gain
    return np.ascontiguousarray(kernel.transpose(0, 2, 3, 1), np.float32), bias.astype(np.float32)


def layers_of(
    weights: Mapping[str, Floats], stages: tuple[tuple[int, int, int], ...], side: int = 64
) -> tuple[Layer, ...]:
    """The network's layers in running order, from its named weights and its stages (channels, blocks, stride)."""
    made = [_conv(weights, "stem", ENTRY, side // 2, stride=2, relu=True)]
    side, index = side // 2, 0
    for _, count, first_stride in stages:
        for position in range(count):
            stride = first_stride if position == 0 else 1
            side //= stride
            made += _block(weights, index, made[-1], side, stride)
            index += 1
    dense, bias = weights["dense.weight"].astype(np.float32), weights["dense.bias"].astype(np.float32)
    count, channels = dense.shape
    made.append(Layer("mean", "mean", (made[-1].name,), (1, channels)))
    made.append(Layer("dense", "logits", ("mean",), (1, count), weights=dense, bias=bias))
    made.append(Layer("softmax", "probability", ("logits",), (1, count)))
    return tuple(made)


def _conv(weights: Mapping[str, Floats], prefix: str, entry: str, side: int, stride: int, relu: bool) -> Layer:
    """One folded convolution whose output is `side` rows and columns."""
    kernel, bias = fold(weights, prefix)
    return Layer("conv", prefix, (entry,), (1, side, side, len(bias)), stride, relu, kernel, bias)


def _block(weights: Mapping[str, Floats], index: int, before: Layer, side: int, stride: int) -> list[Layer]:
    """The layers of one residual block; the last one is its addition."""
    prefix = f"blocks.{index}"
    first = _conv(weights, f"{prefix}.first", before.name, side, stride, relu=True)
    second = _conv(weights, f"{prefix}.second", first.name, side, 1, relu=False)
    made = [first, second]
    beside = before.name
    if stride == 2:
        made.append(Layer("pool", f"{prefix}.pool", (beside,), (1, side, side, before.shape[-1]), stride=2))
        beside = made[-1].name
    if f"{prefix}.shortcut.conv.weight" in weights:
        made.append(_conv(weights, f"{prefix}.shortcut", beside, side, 1, relu=False))
        beside = made[-1].name
    made.append(Layer("add", f"{prefix}.sum", (second.name, beside), second.shape, relu=True))
    return made
