"""Small networks the compiler's tests share, made with the project's own builder."""

from __future__ import annotations

import numpy as np

from meshnn.graph.builder import Builder, Precision
from meshnn.graph.ir import Graph

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8", "dynamic")


def residual(precision: Precision = "float32", seed: int = 1) -> Graph:
    """Convolutions, depthwise, a residual addition, a pool and a classifier: 13 operators and more."""
    b = Builder(np.random.default_rng(seed), precision)
    x = b.input(1, 13, 12, 3, name="image")
    y = b.conv(x, 8, activation="RELU6", stride=(2, 2))
    z = b.depthwise(b.conv(y, 16, (1, 1), activation="RELU"), activation="RELU6")
    y = b.add(y, b.conv(z, 8, (1, 1)))
    z = b.pool(b.conv(y, 12, activation="RELU"), same=True)
    z = b.concat(z, b.depthwise(z, (5, 5)))
    z = b.conv(z, 16, (3, 3), same=False)
    return b.graph(b.softmax(b.fully_connected(b.reshape(z, 1, 2 * 16), 10)))


def chain(precision: Precision = "float32", length: int = 4, channels: int = 8) -> Graph:
    """Convolutions one behind the other."""
    b = Builder(np.random.default_rng(3), precision)
    x = b.input(1, 10, 9, 4)
    for _ in range(length):
        x = b.conv(x, channels, activation="RELU")
    return b.graph(x)


def two_ends(precision: Precision = "float32") -> Graph:
    """Two inputs, one read late; three outputs, one made early and read on, one an input as it came."""
    b = Builder(np.random.default_rng(5), precision)
    first, late = b.input(1, 6, 6, 4, name="first"), b.input(1, 6, 6, 4, name="late")
    early = b.conv(first, 4)
    middle = b.conv(early, 4, activation="RELU")
    return b.graph(b.add(middle, late), early, late)
