"""Keras to TFLite in the precisions that the tests compare. Needs TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

PRECISIONS = ("float32", "int8", "float16", "dynamic")
SAMPLES = 4
# Their calibration runs hold gigabytes and minutes.
FEW_SAMPLES = {"vgg16": 2, "c3d": 2}


def convert(model: keras.Model, name: str, precision: str, seed: int) -> bytes:
    """The TFLite file of a model in one precision; int8 inputs and outputs where everything is integer."""
    converter: Any = tf.lite.TFLiteConverter.from_keras_model(model)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = _samples(model, FEW_SAMPLES.get(name, SAMPLES), seed)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def _samples(model: keras.Model, count: int, seed: int) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Noise to calibrate on, the same for the same seed."""
    shape = tuple(model.inputs[0].shape)

    def give() -> Iterator[list[np.ndarray]]:
        chance = np.random.default_rng(seed)
        for _ in range(count):
            yield [chance.uniform(-1, 1, shape).astype(np.float32)]

    return give
