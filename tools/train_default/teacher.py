"""What public networks answer for the training photos: the soft targets that the small network learns from.

Two networks are asked, each only for its outputs: MobileNet v2 for its probabilities, and MobileNet v1 without its
last layer for its embedding. A linear layer fitted on both gives the 20 classes. It is fitted in folds, so that no
photo's soft target comes from a layer that saw the photo's own class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.train_default.photos import PhotoSet

Floats = NDArray[np.float32]

TEACHERS = ("coral__mobilenet_v1_1.0_224_quant_embedding_extractor", "coral__mobilenet_v2_1.0_224_quant")
"""File names, without `.tflite`, of the networks that are asked."""


def ask_network(model: Path, photos: PhotoSet, advance: Callable[[int], None]) -> Floats:
    """The network's dequantised output for each photo, float32 [n, outputs]; `advance(1)` is called after each."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    entry, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    _, height, width, _ = entry["shape"]
    scale, zero_point = answer["quantization"]
    outputs = np.empty((len(photos), int(np.prod(answer["shape"]))), np.float32)
    for index, pixels in enumerate(photos.pixels):
        enlarged = Image.fromarray(pixels).resize((int(width), int(height)), Image.Resampling.BILINEAR)
        interpreter.set_tensor(entry["index"], np.asarray(enlarged, np.uint8)[None])
        interpreter.invoke()
        outputs[index] = (interpreter.get_tensor(answer["index"]).reshape(-1).astype(np.float32) - zero_point) * scale
        advance(1)
    return outputs


def describe(outputs: dict[str, Floats]) -> Floats:
    """The teachers' outputs as one table of features, float32 [n, features]; probabilities become logarithms."""
    embedding, probabilities = (outputs[name] for name in TEACHERS)
    return np.hstack([embedding, np.log(probabilities + np.float32(1 / 512))]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A softmax layer on standardised features: `weights` float32 [features + 1, classes], the last row the bias."""

    mean: Floats
    deviation: Floats
    weights: Floats

    def logits(self, features: Floats) -> Floats:
        """Unscaled class scores, float32 [n, classes]."""
        return _standardised(features, self.mean, self.deviation) @ self.weights


def fit_head(
    features: Floats, classes: NDArray[np.int64], count: int, steps: int = 120, decay: float = 1e-3
) -> LinearHead:
    """Fit the layer by Nesterov descent on the whole table; `decay` is the weights' L2 penalty."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + np.float32(1e-3)
    table = _standardised(features, mean, deviation)
    truth = np.eye(count, dtype=np.float32)[classes]
    weights: Floats = np.zeros((table.shape[1], count), np.float32)
    velocity: Floats = np.zeros_like(weights)
    rate = np.float32(4.0 / float(np.square(table).sum(axis=1).mean()) ** 0.5 / 10)
    for _ in range(steps):
        ahead = weights + np.float32(0.9) * velocity
        gradient = table.T @ (softmax(table @ ahead) - truth) / np.float32(len(table)) + np.float32(decay) * ahead
        velocity = (np.float32(0.9) * velocity - rate * gradient).astype(np.float32)
        weights = weights + velocity
    return LinearHead(mean, deviation, weights)


def cross_fit(features: Floats, classes: NDArray[np.int64], count: int, folds: int, seed: int) -> Floats:
    """Logits for every photo from a head that was fitted without that photo's fold, float32 [n, classes]."""
    fold = np.random.default_rng(seed).permutation(len(features)) % folds
    logits = np.empty((len(features), count), np.float32)
    for index in range(folds):
        inside = fold == index
        logits[inside] = fit_head(features[~inside], classes[~inside], count).logits(features[inside])
    return logits


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis, float32."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    made: Floats = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return made


def _standardised(features: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Features with mean 0 and deviation 1, and a column of ones for the bias."""
    scaled = (features - mean) / deviation
    return np.hstack([scaled, np.ones((len(features), 1), np.float32)]).astype(np.float32)
