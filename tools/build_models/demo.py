"""The seeded integer classifier: residuals and depthwise convolutions, about 4 MB, so that small devices must share it.

Its weights are random: it answers always the same for the same photo, and means nothing by it.
"""

from __future__ import annotations

import numpy as np

from meshnn.graph.builder import Builder
from meshnn.graph.ir import Graph, Quantization
from meshnn.graph.writer import write

SEED = 20_261_123
CLASSES = 1000

# (output channels, stride) of each block; a block that keeps both adds its input.
_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (320, 2), (320, 1), (320, 1))
_EXPANSION = 4


def demo_graph(seed: int = SEED) -> Graph:
    """The classifier: int8 photo [1, 96, 96, 3] in, probabilities of 1000 classes out."""
    b = Builder(np.random.default_rng(seed), "int8")
    photo = b.input(1, 96, 96, 3, name="photo", quantization=Quantization((1 / 128,), (0,)))
    x = b.conv(photo, 32, stride=(2, 2), activation="RELU6")
    for channels, stride in _BLOCKS:
        x = _block(b, x, channels, stride)
    x = b.conv(x, 1280, (1, 1), activation="RELU6")
    x = b.pool(x, (6, 6), stride=(1, 1), average=True)
    b.gain = 0.8  # logits that fill the range without leaving it
    return b.graph(b.softmax(b.fully_connected(b.reshape(x, 1, 1280), CLASSES)))


def demo_model(seed: int = SEED) -> bytes:
    """The classifier's TFLite file; the same bytes for the same seed."""
    return write(demo_graph(seed)).to_bytes()


def _block(b: Builder, x: int, channels: int, stride: int) -> int:
    """Expand, look around in each channel, project; add the input where the shapes allow."""
    before = b.shape(x)[3]
    y = b.conv(x, before * _EXPANSION, (1, 1), activation="RELU6")
    y = b.conv(b.depthwise(y, stride=(stride, stride), activation="RELU6"), channels, (1, 1))
    return b.add(x, y) if b.shape(x) == b.shape(y) else y
