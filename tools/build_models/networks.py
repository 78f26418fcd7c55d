"""The paper's four networks, and three more, in Keras: seeded weights with live logits. Needs TensorFlow.

AlexNet (ungrouped, without local response normalisation, 227 x 227), VGG16, Xception and C3D are those of Hadidi et
al. C3D is made of 2-D operators (a convolution over three frames at once), as in the notes of this project's design:
the runtime's own 3-D convolution is slower, and neither quantised nor split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

# The standard deviation of the logits: enough that integer outputs take many values.
LOGIT_SPREAD = 3.0
CLASSES = 1000
C3D_CLASSES = 101
C3D_FRAMES, C3D_SIDE = 16, 112

Tensor = Any  # keras.KerasTensor, which the type checker cannot see without TensorFlow


def alexnet() -> keras.Model:
    """Five convolutions, three fully connected layers; input [1, 227, 227, 3]."""
    x = given = keras.Input(batch_shape=(1, 227, 227, 3))
    x = layers.Conv2D(96, 11, 4, activation="relu")(x)
    x = layers.MaxPooling2D(3, 2)(x)
    x = layers.Conv2D(256, 5, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(3, 2)(x)
    for filters in (384, 384, 256):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(3, 2)(x)
    return keras.Model(given, _dense_head(layers.Flatten()(x), CLASSES))


def vgg16() -> keras.Model:
    """Thirteen convolutions, three fully connected layers; input [1, 224, 224, 3]."""
    x = given = keras.Input(batch_shape=(1, 224, 224, 3))
    for filters, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    return keras.Model(given, _dense_head(layers.Flatten()(x), CLASSES))


def c3d() -> keras.Model:
    """Eight 3-D convolutions as 2-D ones, five 3-D poolings; input [1, 16, 112, 112, 3]."""
    given = keras.Input(batch_shape=(1, C3D_FRAMES, C3D_SIDE, C3D_SIDE, 3))
    x = _frames(given, C3D_FRAMES, C3D_SIDE, 3)
    depth, side, channels = C3D_FRAMES, C3D_SIDE, 3
    plan = (((64,), 1), ((128,), 2), ((256, 256), 2), ((512, 512), 2), ((512, 512), 2))
    for filters, pool_depth in plan:
        for count in filters:
            x = _conv3d(x, depth, side, channels, count)
            channels = count
        if side % 2:
            x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
            side += 1
        x = _pool3d(x, depth, side, channels, pool_depth)
        depth, side = depth // pool_depth, side // 2
    x = _Reshape((1, depth * side * side * channels))(x)
    return keras.Model(given, _dense_head(x, C3D_CLASSES))


def application(make: Callable[..., keras.Model], side: int) -> Callable[[], keras.Model]:
    """A network of keras.applications with a batch fixed at 1."""

    def build() -> keras.Model:
        given = keras.Input(batch_shape=(1, side, side, 3))
        return make(weights=None, input_tensor=given, classes=CLASSES)

    return build


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "xception": application(keras.applications.Xception, 299),
    "c3d": c3d,
    "mobilenet_v2": application(keras.applications.MobileNetV2, 224),
    "resnet50": application(keras.applications.ResNet50, 224),
    "inception_v3": application(keras.applications.InceptionV3, 299),
}


def enliven(model: keras.Model, seed: int) -> None:
    """Weights worth comparing: uneven normalisation, small biases, logits with a spread."""
    chance = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            *_, mean, variance = layer.get_weights()
            gamma = [chance.uniform(0.7, 1.3, mean.shape)] if layer.scale else []
            layer.set_weights([*gamma, chance.normal(0, 0.2, mean.shape), mean, variance])
        elif getattr(layer, "use_bias", False) and len(layer.get_weights()) > 1:
            *kernels, bias = layer.get_weights()
            layer.set_weights([*kernels, chance.normal(0, 0.05, bias.shape)])
    _spread_logits(model, chance)


def _spread_logits(model: keras.Model, chance: np.random.Generator) -> None:
    """Scale the last dense layer so that the logits have the wanted spread on noise."""
    last = model.layers[-1]
    kernel, bias = last.get_weights()
    before = keras.Model(model.inputs, last.input)
    noise = chance.uniform(-1, 1, model.inputs[0].shape).astype(np.float32)
    spread = float(np.std(np.asarray(before(noise)) @ kernel))
    last.set_weights([kernel * (LOGIT_SPREAD / max(spread, 1e-6)), bias])


def _dense_head(x: Tensor, classes: int) -> Tensor:
    for _ in range(2):
        x = layers.Dense(4096, activation="relu")(x)
    return layers.Dense(classes, activation="softmax")(x)


class _Reshape(layers.Layer):  # type: ignore[misc]
    """A reshape of everything, the first axis included."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def call(self, x: Tensor) -> Tensor:
        """The tensor in its new shape."""
        return keras.ops.reshape(x, self._shape)

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The new shape."""
        del input_shape
        return self._shape


class _Neighbours(layers.Layer):  # type: ignore[misc]
    """Every frame beside the one before and the one after it, on the channels; zeros past the ends."""

    def call(self, x: Tensor) -> Tensor:
        """[D, H, W, C] to [D, H, W, 3C]."""
        depth = x.shape[0]
        padded = keras.ops.pad(x, ((1, 1), (0, 0), (0, 0), (0, 0)))
        return keras.ops.concatenate([padded[start : start + depth] for start in range(3)], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Three times the channels."""
        return (*input_shape[:3], input_shape[3] * 3)


def _frames(x: Tensor, depth: int, side: int, channels: int) -> Tensor:
    return _Reshape((depth, side, side, channels))(x)


def _conv3d(x: Tensor, depth: int, side: int, channels: int, filters: int) -> Tensor:
    """A 3 x 3 x 3 convolution, padded, over [D, H, W, C]."""
    del depth, side, channels
    return layers.Conv2D(filters, 3, padding="same", activation="relu")(_Neighbours()(x))


def _pool3d(x: Tensor, depth: int, side: int, channels: int, pool_depth: int) -> Tensor:
    """Max pooling over (pool_depth, 2, 2): within frames, then between them."""
    x = layers.MaxPooling2D(2)(x)
    if pool_depth == 1:
        return x
    half = side // 2
    x = _Reshape((1, depth, half * half, channels))(x)
    x = layers.MaxPooling2D((pool_depth, 1))(x)
    return _frames(x, depth // pool_depth, half, channels)
