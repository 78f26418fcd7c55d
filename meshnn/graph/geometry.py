"""How each operator's output lies over its input, and which splits that allows: what a card knows without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from meshnn.graph.card import Form, Geometry
from meshnn.graph.ir import Graph, Operator, Tensor
from meshnn.graph.schema import Table

UNARY = {
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "RELU_0_TO_1",
    "LEAKY_RELU",
    "HARD_SWISH",
    "LOGISTIC",
    "TANH",
    "ELU",
    "GELU",
    "ABS",
    "NEG",
    "SQUARE",
    "SQRT",
    "RSQRT",
    "EXP",
    "FLOOR",
    "CEIL",
    "ROUND",
    "QUANTIZE",
    "DEQUANTIZE",
    "CAST",
}
BINARY = {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "PRELU"}
INEXACT_FLOAT = {"LOGISTIC", "TANH", "ELU", "GELU", "EXP", "RSQRT"}
"""Float functions whose vector and remainder code paths may differ in the last bit, so that a slice is not exact."""

_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
_SUMMED = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
_INTEGERS = {"int8", "uint8", "int16"}
_WIDE_POOL = 64
_LEAST_SUMMED = 4


class Facts(NamedTuple):
    """An operator's geometry and why each split is refused (empty where allowed)."""

    geometry: Geometry
    no_output: str = ""
    no_input: str = ""
    no_spatial: str = ""


def opaque(reason: str) -> Facts:
    """An operator that no split can go through."""
    return Facts(Geometry(form=""), reason, reason, reason)


def facts_of(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> Facts:
    """Geometry and refusals of one operator; `makers` are the operators that make its computed constants, by tensor."""
    blocked = _blocked(graph, operator, makers)
    if blocked:
        return opaque(blocked)
    if operator.kind in UNARY or operator.kind in BINARY:
        return _map(graph, operator, makers)
    rule, _, table = _RULES[operator.kind]
    if table and type(operator.options).__name__ != table:
        return opaque(f"{operator.kind} comes without its options")
    return rule(graph, operator)


def _blocked(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> str:
    """Why nothing about an operator can be split at all; empty where something may."""
    least = 1 if operator.kind in UNARY else 2 if operator.kind in BINARY else _RULES.get(operator.kind, _NO_RULE)[1]
    if not least:
        return f"{operator.kind} has no rule for splitting"
    if len(operator.inputs) < least or min(operator.inputs[:least]) < 0:
        return f"{operator.kind} comes without its inputs"
    if operator.kind in _WEIGHTED and not all(t < 0 or _stored(graph, t, makers) for t in operator.inputs[1:]):
        return "its weights are computed from the input"
    if len(operator.outputs) != 1:
        return f"{operator.kind} makes {len(operator.outputs)} tensors"
    for t in (*operator.inputs, *operator.outputs):
        if t in makers and makers[t].kind != "DEQUANTIZE":
            return f"{graph.tensors[t].name} is computed by {makers[t].kind}, not stored"
        if t >= 0 and (reason := _odd(graph.tensors[t])):
            return reason
        if t >= 0 and not _stored(graph, t, makers) and not (graph.tensors[t].shape and graph.tensors[t].elements):
            return f"{graph.tensors[t].name} has nothing to divide"
    return ""


def _odd(tensor: Tensor) -> str:
    """Why a tensor cannot be sliced; empty where it can."""
    if not tensor.shape_known:
        return f"only the run determines the shape of {tensor.name}"
    if tensor.variable or tensor.source is not None:
        return f"{tensor.name} is state, sparse or quantised in a form that cannot be sliced"
    if tensor.dtype in ("int4", "uint4", "int2"):
        return f"{tensor.name} is packed ({tensor.dtype})"
    return ""


def _hybrid(graph: Graph, operator: Operator) -> bool:
    """Whether float activations meet integer weights (dynamic-range quantisation)."""
    source, weights = graph.tensors[operator.inputs[0]], graph.tensors[operator.inputs[1]]
    return source.dtype == "float32" and weights.dtype in ("int8", "uint8")


def _activation(options: Table) -> str:
    """The name of the fused activation of an option table; `?` for one this code does not know."""
    code = int(getattr(options, "fusedActivationFunction", 0) or 0)
    return _ACTIVATIONS[code] if 0 <= code < len(_ACTIVATIONS) else "?"


def padding_of(size: int, out: int, window: int, stride: int, dilation: int, *, same: bool) -> tuple[int, int]:
    """(before, after) zero padding of one axis as the runtime pads it."""
    if not same:
        return 0, 0
    total = max((out - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _windowed(form: Form, source: Tensor, made: Tensor, window: tuple[int, int], options: Table) -> Geometry:
    """The geometry of a window that slides over rows and columns."""
    stride = (int(options.strideH), int(options.strideW))
    dilation = (int(getattr(options, "dilationHFactor", 1)), int(getattr(options, "dilationWFactor", 1)))
    same = int(options.padding) == 0
    sides = [
        padding_of(source.shape[1 + i], made.shape[1 + i], window[i], stride[i], dilation[i], same=same) for i in (0, 1)
    ]
    return Geometry(
        form=form,
        window=window,
        stride=stride,
        dilation=dilation,
        before=(sides[0][0], sides[1][0]),
        after=(sides[0][1], sides[1][1]),
        activation=_activation(options),
    )


def _fits(size: int, out: int, geometry: Geometry, axis: int) -> bool:
    """Whether the output size of one axis is what the window makes of the input size."""
    extent = (geometry.window[axis] - 1) * geometry.dilation[axis] + 1
    padded = size + geometry.before[axis] + geometry.after[axis]
    return geometry.stride[axis] > 0 and padded >= extent and (padded - extent) // geometry.stride[axis] + 1 == out


def _convolution(graph: Graph, operator: Operator) -> Facts:
    """CONV_2D and DEPTHWISE_CONV_2D."""
    source, weights = (graph.tensors[t] for t in operator.inputs[:2])
    made = graph.tensors[operator.outputs[0]]
    if any(len(t.shape) != 4 or not t.elements for t in (source, weights, made)):
        return opaque("is no ordinary two-dimensional convolution")
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    window = (weights.shape[1], weights.shape[2])
    geometry = _windowed("depthwise" if depthwise else "dense", source, made, window, operator.options)
    if not all(_fits(source.shape[1 + i], made.shape[1 + i], geometry, i) for i in (0, 1)):
        return opaque("its shapes do not follow from its window")
    hybrid = _hybrid(graph, operator)
    spatial = "dynamic-range: a strip of the input has another range than the whole" if hybrid else ""
    if depthwise:
        multiplier = made.shape[3] // max(1, source.shape[3])
        if multiplier < 1 or multiplier * source.shape[3] != made.shape[3]:
            return opaque("its channels are no multiple of its input's")
        geometry = msgspec.structs.replace(geometry, multiplier=multiplier)
        output = "dynamic-range: the range of the input is taken from all channels" if hybrid else ""
        return Facts(geometry, output, output, spatial)
    grouped = weights.shape[3] != source.shape[3]
    output = f"has {source.shape[3] // max(1, weights.shape[3])} groups of channels" if grouped else ""
    return Facts(geometry, output, output or _no_sum(graph, operator, geometry), spatial)


def _no_sum(graph: Graph, operator: Operator, geometry: Geometry) -> str:
    """Why a dense operator's partial results cannot be summed; empty where they can."""
    made = graph.tensors[operator.outputs[0]]
    if _hybrid(graph, operator):
        return "dynamic-range: the range of the input is taken from all channels"
    if made.dtype in _INTEGERS:
        return "integer partial sums are rounded and saturate: not exact"
    if made.dtype != "float32":
        return f"partial sums of {made.dtype} are not exact"
    if made.elements < _LEAST_SUMMED:
        return "has so few outputs that rounding may outweigh all of them"
    if geometry.activation not in _SUMMED:
        return f"its activation {geometry.activation} cannot be applied after the sum"
    return ""


def _fully_connected(graph: Graph, operator: Operator) -> Facts:
    """FULLY_CONNECTED with ordinary weights [outputs, inputs]."""
    source, weights = (graph.tensors[t] for t in operator.inputs[:2])
    made, options = graph.tensors[operator.outputs[0]], operator.options
    if len(weights.shape) != 2 or int(options.weightsFormat) != 0:
        return opaque("its weights are not stored row by row")
    if not made.shape or made.shape[-1] != weights.shape[0] or not source.shape:
        return opaque("its output does not end in its outputs")
    geometry = Geometry(form="fc", activation=_activation(options))
    no_input = _no_sum(graph, operator, geometry)
    if source.shape[-1] != weights.shape[1]:
        no_input = no_input or "its inputs lie over several axes of the tensor it reads"
    return Facts(geometry, "", no_input, "reads every place of its input")


def _stored(graph: Graph, t: int, makers: dict[int, Operator]) -> bool:
    """Whether an operand is a constant, stored or dequantised from one."""
    return graph.tensors[t].constant or t in makers


def _pool(graph: Graph, operator: Operator) -> Facts:
    """MAX_POOL_2D, AVERAGE_POOL_2D and L2_POOL_2D."""
    source, made = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    options = operator.options
    if len(source.shape) != 4 or len(made.shape) != 4 or not source.elements or source.shape[3] != made.shape[3]:
        return opaque("is no ordinary two-dimensional pool")
    window = (int(options.filterHeight), int(options.filterWidth))
    geometry = _windowed("pool", source, made, window, options)
    if not all(_fits(source.shape[1 + i], made.shape[1 + i], geometry, i) for i in (0, 1)):
        return opaque("its shapes do not follow from its window")
    padded = any((*geometry.before, *geometry.after))
    spatial = ""
    if operator.kind != "MAX_POOL_2D" and padded:
        spatial = "leaves its padding out of the mean, so a strip cannot be padded by hand"
    elif operator.kind != "MAX_POOL_2D" and window[0] * window[1] > _WIDE_POOL:
        spatial = "sums so many places that the order of the sum may change"
    return Facts(geometry, "", "", spatial)


def _map(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> Facts:
    """Operators on each element alone: activations must have the output's shape, constants may be broadcast."""
    made = graph.tensors[operator.outputs[0]]
    used = operator.inputs[:1] if operator.kind in UNARY else operator.inputs[:2]
    for t in used:
        tensor = graph.tensors[t]
        stored = _stored(graph, t, makers)
        if not stored and tensor.shape != made.shape:
            return opaque("broadcasts one activation over another")
        if stored and len(tensor.shape) > len(made.shape):
            return opaque("broadcasts an activation over a constant")
    inexact = ""
    if operator.kind in INEXACT_FLOAT and graph.tensors[operator.inputs[0]].dtype == "float32":
        inexact = f"float {operator.kind} may differ in the last bit at another place in a tensor"
    return Facts(Geometry(form="map", activation=_activation(operator.options)), inexact, inexact, inexact)


def _pad(graph: Graph, operator: Operator) -> Facts:
    """PAD and PADV2 with amounts that stand in the file."""
    table = graph.tensors[operator.inputs[1]]
    made = graph.tensors[operator.outputs[0]]
    source = graph.tensors[operator.inputs[0]]
    numbers = _integers(table)
    pads = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    sizes = zip(source.shape, pads, strict=False)
    if not pads or tuple(n + sum(pair) for n, pair in sizes) != made.shape or any(min(pair) < 0 for pair in pads):
        return opaque("its padding does not fit its output")
    channels = "pads channels" if pads[-1] != (0, 0) else ""
    spatial = "" if len(pads) == 4 else "is not over rows and columns"
    return Facts(Geometry(form="pad", pads=pads), channels, channels, spatial)


def _concatenation(graph: Graph, operator: Operator) -> Facts:
    """CONCATENATION of activations."""
    made = graph.tensors[operator.outputs[0]]
    axis = int(operator.options.axis)
    axis += len(made.shape) if axis < 0 else 0
    if not 0 <= axis < len(made.shape) or any(t < 0 or graph.tensors[t].constant for t in operator.inputs):
        return opaque("joins constants to activations")
    channels = "joins channels of several tensors" if axis == len(made.shape) - 1 else ""
    spatial = ""
    if len(made.shape) != 4 or axis in (1, 2):
        spatial = "joins rows or columns"
    geometry = Geometry(form="concat", axis=axis, activation=_activation(operator.options))
    return Facts(geometry, channels, channels, spatial)


def _channelwise(graph: Graph, operator: Operator) -> Facts:
    """Operators that read all places of a channel but no other channel: means over rows and columns, resizes."""
    source, made = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    axes = graph.tensors[operator.inputs[1]]
    numbers = _integers(axes)
    if len(source.shape) != 4 or not numbers or made.shape[-1:] != source.shape[-1:]:
        return opaque("does not keep its channels apart")
    if operator.kind == "MEAN" and 3 in {axis % 4 for axis in numbers}:
        return opaque("takes the mean over channels")
    return Facts(Geometry(form="channelwise"), "", "", "reads every place of its input")


def _reshape(graph: Graph, operator: Operator) -> Facts:
    """RESHAPE: channels survive where the last axis does."""
    if len(operator.inputs) > 1 and operator.inputs[1] >= 0 and not graph.tensors[operator.inputs[1]].constant:
        return opaque("its shape is computed")
    source, made = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    same = source.shape[-1:] == made.shape[-1:] and source.elements == made.elements
    reason = "" if same and made.shape else "does not keep its last axis"
    return Facts(Geometry(form="reshape"), reason, reason, "moves places")


def _blocks(graph: Graph, operator: Operator) -> Facts:
    """DEPTH_TO_SPACE: each place becomes a block of places."""
    reason = "moves channels into places"
    block = int(operator.options.blockSize)
    source, made = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    if block < 1 or len(source.shape) != 4 or made.shape[1:3] != (source.shape[1] * block, source.shape[2] * block):
        return opaque("its shapes do not follow from its block")
    return Facts(Geometry(form="blocks", block=block), reason, reason)


def _integers(tensor: Tensor) -> tuple[int, ...]:
    """The values of a small constant of integers; empty where it is none."""
    if tensor.data is None or tensor.dtype not in ("int32", "int64"):
        return ()
    return tuple(int(value) for value in np.frombuffer(tensor.data.tobytes(), tensor.dtype))


_Rule = tuple[Callable[[Graph, Operator], Facts], int, str]
_NO_RULE: _Rule = (_reshape, 0, "")
_RULES: dict[str, _Rule] = {
    "CONV_2D": (_convolution, 2, "Conv2DOptionsT"),
    "DEPTHWISE_CONV_2D": (_convolution, 2, "DepthwiseConv2DOptionsT"),
    "FULLY_CONNECTED": (_fully_connected, 2, "FullyConnectedOptionsT"),
    "MAX_POOL_2D": (_pool, 1, "Pool2DOptionsT"),
    "AVERAGE_POOL_2D": (_pool, 1, "Pool2DOptionsT"),
    "L2_POOL_2D": (_pool, 1, "Pool2DOptionsT"),
    "PAD": (_pad, 2, ""),
    "PADV2": (_pad, 2, ""),
    "CONCATENATION": (_concatenation, 1, "ConcatenationOptionsT"),
    "MEAN": (_channelwise, 2, ""),
    "RESIZE_BILINEAR": (_channelwise, 2, ""),
    "RESIZE_NEAREST_NEIGHBOR": (_channelwise, 2, ""),
    "RESHAPE": (_reshape, 1, ""),
    "SQUEEZE": (_reshape, 1, ""),
    "DEPTH_TO_SPACE": (_blocks, 1, "DepthToSpaceOptionsT"),
}
"""Rule, inputs it must have, and the option table it reads, by operator kind."""
