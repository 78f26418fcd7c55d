"""Model files as arrays over their pages: read when touched, dropped when memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from meshnn.errors import ModelError


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """A file's bytes, mapped read-only; ModelError where it is empty or cannot be read."""
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path.name} is empty: no TFLite model")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from error
