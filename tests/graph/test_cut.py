"""Cuts: head and tail at every boundary give the whole network's bytes; what crosses is told before it runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import ModelError
from meshnn.graph import cut
from meshnn.graph.builder import Builder, Precision, random_inputs
from meshnn.graph.ir import Graph
from meshnn.graph.writer import write
from tests.graph.networks import PRECISIONS, residual, two_ends
from tests.shared_data import model
from tools.cut_check import check
from tools.run_graph import Array, run_graph


def _run_in_parts(graph: Graph, positions: list[int], inputs: dict[int, Array]) -> dict[int, Array]:
    """The outputs of a graph cut at these boundaries; operators that make nothing for others are left out."""
    values = dict(inputs)
    for first, end in zip([0, *positions], [*positions, len(graph.operators)], strict=True):
        given = cut.fragment_outputs(graph, first, end - 1)
        if not given:
            continue
        part = cut.fragment(graph, first, end - 1)
        needed = cut.fragment_inputs(graph, first, end - 1)
        made = run_graph(part, {mine: values[t] for mine, t in zip(part.inputs, needed, strict=True)})
        values |= {t: made[mine] for mine, t in zip(part.outputs, given, strict=True)}
    return {t: values[t] for t in graph.outputs}


def _assert_equal(graph: Graph, positions: list[int]) -> None:
    """Cut there, the graph gives the same bytes as whole."""
    inputs = random_inputs(graph, np.random.default_rng(9))
    whole, parts = run_graph(graph, inputs), _run_in_parts(graph, positions, inputs)
    for t in graph.outputs:
        assert parts[t].tobytes() == whole[t].tobytes(), (positions, t)
        assert len(np.unique(whole[t])) > 1, "an output of one value proves nothing"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_boundary_of_a_residual_network_is_exact(precision: Precision) -> None:
    """Residuals, depthwise and computed constants: each legal cut gives the whole network's bytes."""
    graph = residual(precision)
    legal = [p for p in range(1, len(graph.operators)) if cut.refusal(graph, p) is None]
    assert len(legal) >= 12
    for position in legal:
        _assert_equal(graph, [position])


def test_several_inputs_and_outputs_are_routed() -> None:
    """An early output, a late input and an input that is an output all arrive, cut everywhere at once."""
    graph = two_ends()
    _assert_equal(graph, [1, 2])
    assert cut.live(graph, 1) == (1, graph.outputs[1])
    assert cut.fragment_outputs(graph, 0, 0) == (graph.outputs[1],)
    assert cut.fragment_outputs(graph, 2, 2) == (graph.outputs[0], 1)


def test_a_skip_crosses_every_boundary_it_spans() -> None:
    """The tensor a residual adds later is live at each boundary between its maker and the addition."""
    b = Builder(np.random.default_rng(0))
    x = b.conv(b.input(1, 4, 4, 2), 2)
    y = b.conv(b.conv(x, 3), 2)
    graph = b.graph(b.add(x, y))
    assert [x in cut.live(graph, p) for p in (1, 2, 3)] == [True, True, True]
    assert [len(cut.live(graph, p)) for p in (1, 2, 3)] == [1, 2, 2]


def test_what_crosses_is_what_the_tail_reads() -> None:
    """`live` is the tail's own input list, in its order."""
    graph = residual()
    for position in range(1, len(graph.operators)):
        tail = cut.fragment(graph, position, len(graph.operators) - 1)
        assert len(cut.live(graph, position)) == len(tail.inputs)


def test_computed_constants_are_cloned_not_sent() -> None:
    """The dequantised weights of a float16 network never cross; each part dequantises what it reads."""
    graph = residual("float16")
    dequantise = sum(operator.kind == "DEQUANTIZE" for operator in graph.operators)
    for position in range(2, len(graph.operators)):
        if cut.refusal(graph, position) is None:
            crossing = cut.live(graph, position)
            assert all(graph.tensors[t].shape[0] == 1 for t in crossing)
    tail = cut.fragment(graph, len(graph.operators) - 2, len(graph.operators) - 1)
    assert 0 < sum(operator.kind == "DEQUANTIZE" for operator in tail.operators) < dequantise


def test_a_head_of_constants_has_nothing_to_run() -> None:
    """Where only constants are made before a boundary, it is refused by that reason and no file is written."""
    graph = residual("float16")
    assert graph.operators[0].kind == "DEQUANTIZE"
    assert "nothing to run" in (cut.refusal(graph, 1) or "")
    with pytest.raises(ModelError, match="nothing to run"):
        cut.fragment(graph, 0, 0)


def test_a_fragment_holds_only_its_own_weights() -> None:
    """The files of two halves together hold each weight once."""
    graph = residual("int8")
    parts = [write(cut.fragment(graph, 0, 5)), write(cut.fragment(graph, 6, len(graph.operators) - 1))]
    weights = sum(t.data.size for t in graph.tensors if t.data is not None)
    held = [sum(t.data.size for t in cut.fragment(graph, *r).tensors if t.data is not None) for r in ((0, 5), (6, 12))]
    assert sum(held) <= weights + 64
    assert all(part.size_bytes < write(graph).size_bytes for part in parts)


def test_a_range_outside_the_model_is_refused() -> None:
    """Operators that do not exist are named in the refusal."""
    graph = residual()
    for first, last in ((-1, 3), (4, 3), (0, len(graph.operators))):
        with pytest.raises(ModelError, match="bad_range"):
            cut.fragment(graph, first, last)


def test_state_may_not_be_torn_apart() -> None:
    """Two operators that share a variable tensor stay together."""
    graph = two_ends()
    state = dataclasses.replace(graph.tensors[0], variable=True, name="state")
    operators = [dataclasses.replace(o, intermediates=(len(graph.tensors),)) for o in graph.operators]
    stateful = dataclasses.replace(graph, tensors=(*graph.tensors, state), operators=tuple(operators))
    assert "share the state" in (cut.refusal(stateful, 1) or "")


@st.composite
def _random_network(draw: st.DrawFn) -> Graph:
    """A network of random operators over random earlier tensors, with one to three outputs."""
    precision = draw(st.sampled_from(PRECISIONS[:3]))
    b = Builder(np.random.default_rng(draw(st.integers(0, 5))), precision)
    made = [b.input(1, 6, 5, 4)]
    if draw(st.booleans()):
        made.append(b.input(1, 6, 5, 4))
    for _ in range(draw(st.integers(2, 8))):
        x, y = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        step = draw(st.sampled_from(("conv", "depthwise", "add", "relu", "constant")))
        if step == "conv":
            made.append(b.conv(x, 4, activation="RELU6"))
        elif step == "depthwise":
            made.append(b.depthwise(x))
        elif step == "add":
            made.append(b.add(x, y))
        elif step == "constant":
            made.append(b.add(x, _constant(b)))
        else:
            made.append(b.unary("RELU", x))
    outputs = draw(st.lists(st.sampled_from(made[1:]), min_size=1, max_size=3, unique=True))
    return b.graph(*outputs)


def _constant(b: Builder) -> int:
    """A constant operand in the network's own dtype."""
    return b.constant(np.arange(4).astype(b.dtype), b.quantization)


@settings(max_examples=25)
@given(_random_network(), st.data())
def test_random_networks_cut_at_random_are_exact(graph: Graph, data: st.DataObject) -> None:
    """Dead operators, inputs as outputs, skips of any length: any set of legal cuts gives the whole's bytes."""
    legal = [p for p in range(1, len(graph.operators)) if cut.refusal(graph, p) is None]
    chosen = data.draw(st.lists(st.sampled_from(legal), unique=True, max_size=4)) if legal else []
    inputs = random_inputs(graph, np.random.default_rng(1))
    whole, parts = run_graph(graph, inputs), _run_in_parts(graph, sorted(chosen), inputs)
    assert all(whole[t].tobytes() == parts[t].tobytes() for t in graph.outputs)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("mlperf_tiny__pretrainedResnet", 1),
        ("mlperf_tiny__ad01_int8", 1),
        ("coral__split_concat", 1),
        ("tinymaix__mbnet128_0.25_q", 3),
        ("tinyengine__mcunet_person_detection", 9),
        ("mediapipe_face__face_detection_short_range", 17),
    ],
)
def test_real_models_cut_exactly(name: str, step: int) -> None:
    """A sample of boundaries of real models; `python -m tools.cut_check` does all of them."""
    tally = check(Path(model(name)), step=step)
    assert tally.clean
    assert not tally.refused
    assert tally.equal > 0


def test_only_run_determined_boundaries_are_refused() -> None:
    """dilated_conv's three boundaries whose tensors the file misstates are refused; the others are exact."""
    tally = check(model("tflite_support__dilated_conv"))
    assert sorted(tally.refused) == [21, 22, 23]
    assert tally.clean
    assert tally.equal == 21
