"""The photos of the training set, out of their tar archive, as arrays."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Rows and columns of a photo of the set, and of the model's input."""


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """Photos with their classes: `pixels` uint8 [n, 64, 64, 3], `classes` int64 [n], `labels` the classes' names."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        """How many photos there are."""
        return len(self.classes)


def read_photos(archive: Path, part: str) -> PhotoSet:
    """Decode one part (`train` or `val`) of the archive, ordered by file name so that an index always means one photo.

    Raises FileNotFoundError where the archive is absent and ValueError where the part holds no photo or one that is
    not 64x64.
    """
    with tarfile.open(archive) as tar:
        found = {
            tuple(member.name.split("/")[-2:]): tar.extractfile(member)
            for member in tar
            if member.isfile() and member.name.split("/")[-3] == part
        }
        if not found:
            raise ValueError(f"{archive} holds no photo of the part {part!r}")
        names = sorted(found)
        pixels = np.empty((len(names), SIDE, SIDE, 3), np.uint8)
        for index, name in enumerate(names):
            stream = found[name]
            assert stream is not None
            pixels[index] = _decode(stream.read(), "/".join(name))
    labels = tuple(sorted({label for label, _ in names}))
    classes = np.array([labels.index(label) for label, _ in names], np.int64)
    return PhotoSet(pixels, classes, labels)


def _decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """The RGB bytes [64, 64, 3] of one photo; grey ones become RGB."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"), np.uint8)
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{name} is {pixels.shape}, not {SIDE}x{SIDE}")
    return pixels
