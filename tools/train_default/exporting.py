"""From trained weights to the two files: the float32 twin and the integer model that ships."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tools.train_default.evaluation import Verdict, measured_ranges
from tools.train_default.layers import Floats, layers_of
from tools.train_default.metadata import Description, metadata_buffer, with_labels
from tools.train_default.photos import SIDE, PhotoSet
from tools.train_default.quantise import activation_scales
from tools.train_default.writer import float_model, integer_model

CALIBRATION_PHOTOS = 256
"""Training photos over which the ranges of the activations are measured."""

_TEXT = (
    "Twenty everyday classes. Trained on photos of Tiny ImageNet, which are not part of this file; "
    "how, and how well it does, is in models/README.md of the project."
)
_LICENCE = "Apache-2.0 (the weights; the training photos were ImageNet photos, for research use)"


@dataclass(frozen=True, slots=True)
class Export:
    """The float32 twin and the integer model, as the bytes of two files."""

    twin: bytes
    integer: bytes


def described(version: str) -> Description:
    """What the file's own metadata says; bytes are read as (x - 128) / 128."""
    return Description("meshnn default", _TEXT, version, "The meshnn authors", _LICENCE, 128.0, 128.0, SIDE)


def export(
    weights: Mapping[str, Floats],
    stages: tuple[tuple[int, int, int], ...],
    photos: PhotoSet,
    seed: int,
    advance: Callable[[int], None],
) -> Export:
    """Write both files; the integer one is calibrated on `CALIBRATION_PHOTOS` of the training `photos`."""
    layers = layers_of(weights, stages)
    metadata = metadata_buffer(described("1"))
    twin = with_labels(float_model(layers, SIDE, metadata), photos.labels)
    chosen = np.random.default_rng(seed).permutation(len(photos))[:CALIBRATION_PHOTOS]
    ranges = measured_ranges(twin, photos.pixels[chosen], 0.0, advance)
    integer = integer_model(layers, SIDE, activation_scales(layers, ranges), metadata)
    return Export(twin, with_labels(integer, photos.labels))


def summary(name: str, model: bytes, judgement: Verdict) -> str:
    """One line on a file and what it gets right."""
    return f"{name}: {len(model):,} bytes, top-1 {judgement.top_1:.2%}, top-5 {judgement.top_5:.2%}"


def weakest(judgement: Verdict, labels: tuple[str, ...], count: int) -> list[str]:
    """The `count` classes with the lowest accuracy, each with what it is most often taken for, as Markdown rows."""
    right = np.diag(judgement.confusion) / judgement.confusion.sum(axis=1)
    rows = []
    for index in np.argsort(right, kind="stable")[:count]:
        row = judgement.confusion[index].copy()
        total, row[index] = row.sum(), 0
        rivals = [f"{labels[rival]} {row[rival]}" for rival in np.argsort(-row, kind="stable")[:4] if row[rival]]
        rows.append(f"| {labels[index]} | {right[index]:.2f} | {total} | {', '.join(rivals)} |")
    return rows
