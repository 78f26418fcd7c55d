"""One question with a known answer: seeded raw tensors, and what the whole model says of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnn.device import runtime
from tools.whole import Array, outputs_of


@dataclass(frozen=True, slots=True)
class Probe:
    """The npz to ask with, and the right outputs by name."""

    body: bytes
    expected: dict[str, Array]

    def answered_by(self, tensors: bytes) -> bool:
        """Whether the npz that follows an answer holds, byte for byte, the right outputs."""
        with np.load(io.BytesIO(tensors), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key.startswith("output:")}
        return set(found) == {f"output:{name}" for name in self.expected} and all(
            found[f"output:{name}"].tobytes() == array.tobytes() for name, array in self.expected.items()
        )


def probe(model: Path, seed: int) -> Probe:
    """The same question for the same model and seed."""
    inputs = seeded_inputs(runtime.find().interpreter(model), np.random.default_rng(seed))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"input:{name}": array for name, array in inputs.items()})
    return Probe(buffer.getvalue(), outputs_of(model, inputs))


def seeded_inputs(interpreter: runtime.TensorInterpreter, rng: np.random.Generator) -> dict[str, Array]:
    """Raw input tensors of a loaded model by name: every value of an integer type, or a standard normal."""
    rows = interpreter.get_input_details()
    return {row["name"]: _values(rng, row["shape"], np.dtype(row["dtype"])) for row in rows}


def _values(rng: np.random.Generator, shape: object, dtype: np.dtype[np.generic]) -> Array:
    size = tuple(int(n) for n in np.asarray(shape))
    if dtype.kind == "f":
        return rng.standard_normal(size).astype(dtype)
    limits = np.iinfo(dtype.name)
    return rng.integers(limits.min, limits.max, size, dtype=dtype, endpoint=True)
