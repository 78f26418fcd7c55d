"""Runs graphs on LiteRT with one thread, for tools and tests that compare a network with its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from meshnn.graph.ir import Graph
from meshnn.graph.writer import write

Array = npt.NDArray[np.generic]


def run_bytes(model: bytes, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a TFLite file for these inputs, in the file's order; arrays are copies."""
    interpreter = _loaded(model, inputs)
    return [np.array(interpreter.get_tensor(row["index"])) for row in interpreter.get_output_details()]


def run_graph(graph: Graph, inputs: Mapping[int, Array]) -> dict[int, Array]:
    """The outputs of a graph by tensor index, for inputs by tensor index."""
    outputs = run_bytes(write(graph).to_bytes(), [inputs[t] for t in graph.inputs])
    return dict(zip(graph.outputs, outputs, strict=True))


def shapes_after_run(model: bytes, inputs: Sequence[Array]) -> dict[int, tuple[int, ...]]:
    """The shape of every tensor as the runtime reports it after one run, by tensor index.

    Without delegates: what a delegate has taken over keeps the shape the file had.
    """
    interpreter = _loaded(model, inputs, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    return {row["index"]: tuple(int(n) for n in row["shape"]) for row in interpreter.get_tensor_details()}


def _loaded(model: bytes, inputs: Sequence[Array], resolver: OpResolverType = OpResolverType.AUTO) -> Interpreter:
    """An interpreter that has run once."""
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for row, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(row["index"], value)
    interpreter.invoke()
    return interpreter
