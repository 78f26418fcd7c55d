"""A graph written to a file, run once, and forgotten: for whoever compares parts of a model with the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from meshnn.device import runtime
from meshnn.device.runtime import Array
from meshnn.errors import ModelError, NodeError
from meshnn.graph.ir import Graph
from meshnn.graph.writer import write


def run_once(graph: Graph, inputs: Sequence[Array], *, threads: int = 1) -> list[Array]:
    """The outputs of a graph in its order, for inputs in its order; ModelError where the runtime refuses.

    The graph goes through a file in the temporary folder, so that its weights are mapped and not copied; NodeError
    where there is no room for it. Blocks for as long as the run takes.
    """
    try:
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            for chunk in write(graph).chunks():
                file.write(chunk)
            file.flush()
            return _run(Path(file.name), inputs, threads)
    except OSError as error:
        raise NodeError(f"a part cannot be written: {error.strerror}") from None


def _run(path: Path, inputs: Sequence[Array], threads: int) -> list[Array]:
    """One run of a file; all arrays are copies."""
    try:
        with runtime.hushed():
            interpreter = runtime.find().interpreter(path, threads)
            interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(int(detail["index"]), value)
        interpreter.invoke()
        return [interpreter.get_tensor(int(detail["index"])) for detail in interpreter.get_output_details()]
    except runtime.ERRORS as error:
        raise ModelError(f"the runtime refuses it: {runtime.reason(error)}") from None
