"""The whole model in the caller's own process: what the mesh's answers are held against."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from meshnn.device.interpreter import Engine
from meshnn.graph.card import Card
from meshnn.node.compare import seeded_inputs

Arrays = dict[str, np.ndarray]


def seeded(card: Card, seed: int) -> Arrays:
    """Raw input tensors by name, the same for the same seed."""
    inputs = seeded_inputs(card, seed)
    return {tensor.name: inputs[tensor.index] for tensor in card.inputs}


class Reference:
    """A model's bytes, loaded whole with one thread; a context manager."""

    def __init__(self, data: bytes) -> None:
        """`data`: the model's file."""
        self._data = data
        self._loop = asyncio.new_event_loop()
        self._engine = Engine(1)
        self._folder = tempfile.TemporaryDirectory(prefix="meshnn-bench-")

    def __enter__(self) -> Self:
        path = Path(self._folder.name) / "model.tflite"
        try:
            path.write_bytes(self._data)
            self._handle = self._loop.run_until_complete(self._engine.load(path)).handle
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._engine.close())
        self._loop.close()
        self._folder.cleanup()

    def run(self, card: Card, inputs: Arrays) -> Arrays:
        """The whole model's outputs by name."""
        given = [inputs[tensor.name] for tensor in card.inputs]
        ran = self._loop.run_until_complete(self._engine.run(self._handle, given))
        return {tensor.name: array for tensor, array in zip(card.outputs, ran.outputs, strict=True)}
