"""A classifier's outputs as predictions: dequantised, sorted, labelled. No softmax is added: scores are the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from meshnn.graph.card import Card, CardTensor

# Label files write these where a number stands for nothing.
_GAPS = frozenset(["", "???", "n/a"])
_BACKGROUND = frozenset(["background", "__background__", "_background_", "dummy"])


class Prediction(msgspec.Struct, frozen=True):
    """One class of an answer: its index in the output, its label (None where the model has none), its score."""

    index: int
    label: str | None
    score: float


def predictions(outputs: Mapping[str, npt.NDArray[np.generic]], card: Card, top: int) -> list[Prediction]:
    """The `top` best classes, best first, equals by index; empty for a model that is no classifier.

    `outputs` are raw tensors by their names in the file, quantised as the model left them.
    """
    head = classifier_output(card)
    if head is None or head.name not in outputs or top < 1:
        return []
    scores = real_values(outputs[head.name], head).reshape(-1)
    # Descending, equals in the order of their index, and never a NaN: JSON has none.
    order = np.argsort(-scores, kind="stable")
    best = [int(index) for index in order if np.isfinite(scores[index])][:top]
    return [Prediction(index, label_of(index, scores.size, card.labels), float(scores[index])) for index in best]


def classifier_output(card: Card) -> CardTensor | None:
    """The output with one score per class: a vector, the only output or the only one that the labels fit."""
    vectors = [tensor for tensor in card.outputs if _is_vector(tensor)]
    if len(card.outputs) > 1:
        vectors = [tensor for tensor in vectors if card.labels and abs(tensor.shape[-1] - len(card.labels)) <= 1]
    return vectors[0] if len(vectors) == 1 else None


def _is_vector(tensor: CardTensor) -> bool:
    """Whether a tensor is one row of numbers: every dimension but one is 1 (or all are)."""
    long = [size for size in tensor.shape if size != 1]
    return len(tensor.shape) > 0 and len(long) <= 1 and tensor.dtype != "bool"


def real_values(values: npt.NDArray[np.generic], tensor: CardTensor) -> npt.NDArray[np.float64]:
    """A tensor's real values in float64: scale * (stored - zero_point) where it is quantised."""
    real = np.asarray(values, dtype=np.float64)
    if tensor.quantization is not None and tensor.quantization.scale:
        real = (real - tensor.quantization.zero_point) * tensor.quantization.scale
    return real


def label_of(index: int, classes: int, labels: Sequence[str]) -> str | None:
    """The label of class `index` of `classes`; None where there is none, or where the list fits some other model.

    A list one longer than the outputs that begins with a background class belongs to outputs without it; one that is
    shorter by one, without a background class, leaves output 0 to the background.
    """
    starts_with_background = bool(labels) and labels[0].strip().lower() in _BACKGROUND
    place = index
    if len(labels) == classes + 1 and starts_with_background:
        place = index + 1
    elif len(labels) == classes - 1 and not starts_with_background:
        place = index - 1
    elif len(labels) != classes:
        return None
    if not 0 <= place < len(labels):
        return None
    label = labels[place].strip()
    return None if label.lower() in _GAPS else label
