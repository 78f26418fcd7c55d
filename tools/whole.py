"""The whole model on bare LiteRT, one thread: what every answer is held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meshnn.device import runtime

Array = npt.NDArray[np.generic]


def outputs_of(model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name for inputs by name."""
    interpreter = runtime.find().interpreter(model)
    interpreter.allocate_tensors()
    for row in interpreter.get_input_details():
        interpreter.set_tensor(row["index"], inputs[row["name"]])
    interpreter.invoke()
    return {row["name"]: np.array(interpreter.get_tensor(row["index"])) for row in interpreter.get_output_details()}
