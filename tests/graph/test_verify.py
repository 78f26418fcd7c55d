"""What must hold of a graph: each rule refuses by its own code, naming the place."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from meshnn.errors import ModelError
from meshnn.graph.ir import Graph, Quantization
from meshnn.graph.verify import problems, verify
from tests.graph.networks import chain


def _with(graph: Graph, operator: int = 0, tensor: int = 0, **changes: Any) -> Graph:  # noqa: ANN401 (fields of either class)
    """The graph with one operator (fields of Operator) or tensor (fields of Tensor) changed."""
    if set(changes) & {"kind", "inputs", "outputs"}:
        operators = list(graph.operators)
        operators[operator] = dataclasses.replace(operators[operator], **changes)
        return dataclasses.replace(graph, operators=tuple(operators))
    tensors = list(graph.tensors)
    tensors[tensor] = dataclasses.replace(tensors[tensor], **changes)
    return dataclasses.replace(graph, tensors=tuple(tensors))


GRAPH = chain(length=2)
READ, MADE = GRAPH.operators[1].inputs, GRAPH.operators[0].outputs


def test_a_good_graph_has_no_problems() -> None:
    """What the builder makes holds."""
    assert not list(problems(GRAPH))


@pytest.mark.parametrize(
    ("graph", "code"),
    [
        (dataclasses.replace(GRAPH, operators=()), "no_operators"),
        (dataclasses.replace(GRAPH, inputs=()), "no_tensors"),
        (dataclasses.replace(GRAPH, outputs=(99,)), "bad_index"),
        (_with(GRAPH, 1, inputs=(99, *READ[1:])), "bad_index"),
        (_with(GRAPH, 1, inputs=(-2, *READ[1:])), "bad_index"),
        (_with(GRAPH, 1, outputs=(-1,)), "bad_index"),
        (_with(GRAPH, 0, inputs=(GRAPH.outputs[0], *GRAPH.operators[0].inputs[1:])), "missing_tensor"),
        (_with(GRAPH, 1, outputs=MADE), "made_twice"),
        (_with(GRAPH, 1, outputs=()), "no_tensors"),
        (_with(GRAPH, 1, kind="WHILE"), "refused_operator"),
        (_with(GRAPH, 1, kind="VAR_HANDLE"), "refused_operator"),
        (_with(GRAPH, 1, kind="CUSTOM:edgetpu-custom-op"), "Edge TPU"),
        (_with(GRAPH, tensor=0, shape=(1, -3, 2, 2)), "bad_shape"),
        (_with(GRAPH, tensor=0, shape=(1 << 20,) * 3), "bad_shape"),
        (_with(GRAPH, tensor=0, dtype="string"), "dtype"),
        (_with(GRAPH, tensor=1, shape=(8, 3, 3, 5)), "bad_constant"),
        (_with(GRAPH, tensor=0, quantization=Quantization((1.0, 1.0), (0, 0), 7)), "bad_quantization"),
        (_with(GRAPH, tensor=0, quantization=Quantization((1.0, 1.0, 1.0), (0, 0), 3)), "bad_quantization"),
    ],
)
def test_each_rule_refuses_by_its_code(graph: Graph, code: str) -> None:
    """The error names the model, the place and the code."""
    with pytest.raises(ModelError, match=code) as error:
        verify(graph, name="net")
    assert str(error.value).startswith("net")


def test_custom_operators_pass_whole() -> None:
    """A custom operator is the runtime's matter, not the compiler's."""
    verify(_with(GRAPH, 1, kind="CUSTOM:TFLite_Detection_PostProcess"))


def test_an_absent_optional_input_is_fine() -> None:
    """-1 stands for an input that is not there."""
    verify(_with(GRAPH, 1, inputs=(*READ[:2], -1)))


def test_a_sparse_constant_may_be_shorter_than_its_shape() -> None:
    """Bytes are counted only where they follow from the shape."""
    verify(_with(GRAPH, tensor=1, data=np.zeros(3, np.uint8), source=object()))
