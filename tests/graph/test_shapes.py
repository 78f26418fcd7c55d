"""Shapes a file leaves open: told by the run, or refused."""

from __future__ import annotations

import dataclasses

import numpy as np

from meshnn.graph import cut, schema
from meshnn.graph.builder import Builder, random_inputs
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.shapes import run_determined, with_shapes
from meshnn.graph.writer import write
from tests.graph.networks import residual
from tools.run_graph import run_bytes, run_graph, shapes_after_run


def _without_shapes(graph: Graph) -> bytes:
    """The file of a graph with every intermediate shape left empty; such files exist and run."""
    made = {t for operator in graph.operators for t in operator.outputs}
    tensors = [
        dataclasses.replace(t, shape=(), shape_known=False) if i in made else t for i, t in enumerate(graph.tensors)
    ]
    return write(dataclasses.replace(graph, tensors=tuple(tensors))).to_bytes()


def test_a_file_without_shapes_is_cut_with_those_of_a_run() -> None:
    """Left empty, shapes refuse every cut; reported by one run they allow all of them, exactly.

    The whole is written with its shapes too: without them the runtime delegates nothing, and floats differ in the
    last bit.
    """
    whole = residual()
    data = _without_shapes(whole)
    graph = read(data)
    assert "only the run determines" in (cut.refusal(graph, 1) or "")
    inputs = random_inputs(graph, np.random.default_rng(1))
    reported = shapes_after_run(data, list(inputs.values()))
    told = with_shapes(graph, reported)
    assert [t.shape for t in told.tensors] == [t.shape for t in whole.tensors]
    assert all(cut.refusal(told, p) is None for p in range(1, len(graph.operators)))
    head = run_graph(cut.fragment(told, 0, 5), dict(zip(cut.fragment(told, 0, 5).inputs, inputs.values(), strict=True)))
    tail = cut.fragment(told, 6, len(graph.operators) - 1)
    answer = run_graph(tail, dict(zip(tail.inputs, head.values(), strict=True)))
    same = run_bytes(write(cut.fragment(told, 0, len(graph.operators) - 1)).to_bytes(), list(inputs.values()))
    assert next(iter(answer.values())).tobytes() == same[0].tobytes()


def test_a_report_that_contradicts_the_file_forbids_the_cut() -> None:
    """Where the run shows another shape than the file states, no cut may cross the tensor."""
    graph = residual()
    first = graph.operators[0].outputs[0]
    other = with_shapes(graph, {first: (1, 2, 2, 8)})
    assert "only the run determines" in (cut.refusal(other, 1) or "")
    assert other.tensors[first].shape == graph.tensors[first].shape


def _computed_reshape(by_shape: bool) -> Graph:
    """A RESHAPE whose target is computed: from a shape, or from data."""
    b = Builder(np.random.default_rng(0))
    x = b.input(1, 6)
    if by_shape:
        options = schema.tables().ShapeOptionsT(outType=2)
        target = b.operator("SHAPE", [x], (2,), options=options, dtype="int32")
    else:
        target = b.operator("CAST", [b.operator("SLICE", [x, *_bounds(b)], (1, 2))], (2,), dtype="int32")
    y = b.operator("TILE", [x, target], (1, 6))
    return b.graph(b.unary("RELU", y))


def _bounds(b: Builder) -> tuple[int, int]:
    """Begin and size of a slice of the first two values."""
    return b.constant(np.array([0, 0], np.int32)), b.constant(np.array([1, 2], np.int32))


def test_what_shapes_decide_one_run_confirms_what_data_decides_none_does() -> None:
    """A repeat count taken from a shape is the same in every run; one taken from the data is not."""
    by_shape, by_data = run_determined(_computed_reshape(by_shape=True))
    assert len(by_shape) == 2
    assert not by_data
    by_shape, by_data = run_determined(_computed_reshape(by_shape=False))
    assert not by_shape
    assert len(by_data) == 2
    graph = _computed_reshape(by_shape=False)
    confirmed = with_shapes(graph, {t: graph.tensors[t].shape for t in by_data})
    assert "only the run determines" in (cut.refusal(confirmed, 3) or "")
    graph = _computed_reshape(by_shape=True)
    confirmed = with_shapes(graph, {t: graph.tensors[t].shape for t in run_determined(graph)[0]})
    assert cut.refusal(confirmed, 2) is None
