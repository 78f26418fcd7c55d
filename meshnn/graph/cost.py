"""What operators cost: multiplications, bytes, a first guess of time, and the memory of activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshnn.graph.ir import Graph, Operator

_ARENA_STEP = 64
_ARENA_MARGIN = 8
_ARENA_FLOOR_BYTES = 16 << 10

DENSE = {"CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE", "BATCH_MATMUL"}
_VIEWS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}


@dataclass(frozen=True, slots=True)
class Cost:
    """One operator: multiply-accumulates, bytes of its constants, bytes of activations in and out, `work` in ms.

    `work` is an estimate on a reference machine of about 80 GFLOP/s; only ratios between operators mean anything.
    """

    macs: int
    weight_bytes: int
    activation_bytes: int
    work: float


def cost_of(graph: Graph, operator: Operator) -> Cost:
    """The cost of one operator of a graph whose shapes are known; unknown shapes count as they are stated."""
    read = [graph.tensors[t] for t in operator.inputs if t >= 0]
    made = [graph.tensors[t] for t in operator.outputs]
    weights = sum(t.data.size for t in read if t.data is not None)
    activations = sum(t.size_bytes for t in (*read, *made) if not t.constant)
    macs = macs_of(graph, operator)
    integer = any(t.dtype in ("int8", "uint8", "int16") for t in made)
    return Cost(macs, weights, activations, work_ms(operator.kind, macs, weights, activations, integer=integer))


def macs_of(graph: Graph, operator: Operator) -> int:
    """Multiply-accumulates of the operators that have a kernel; 0 for all others."""
    if not operator.outputs or len(operator.inputs) < 2 or operator.inputs[1] < 0:
        return 0
    made, second = graph.tensors[operator.outputs[0]], graph.tensors[operator.inputs[1]]
    if operator.kind in ("CONV_2D", "FULLY_CONNECTED"):
        channels = max(1, second.shape[0] if second.shape else 1)
        return made.elements * (second.elements // channels)
    if operator.kind == "DEPTHWISE_CONV_2D" and len(second.shape) == 4:
        return made.elements * second.shape[1] * second.shape[2]
    if operator.kind == "CONV_3D" and len(second.shape) == 5:
        return made.elements * (second.elements // max(1, second.shape[4]))
    if operator.kind == "TRANSPOSE_CONV" and len(operator.inputs) > 2:
        source = graph.tensors[operator.inputs[2]]
        channels = max(1, source.shape[-1] if source.shape else 1)
        return source.elements // channels * second.elements
    if operator.kind == "BATCH_MATMUL":
        first = graph.tensors[operator.inputs[0]]
        return made.elements * (first.shape[-1] if first.shape else 1)
    return 0


def work_ms(kind: str, macs: int, weight_bytes: int, activation_bytes: int, *, integer: bool) -> float:
    """Estimated milliseconds on the reference machine, one thread, from measured coefficients by operator kind."""
    gflop, weights, activations = 2 * macs / 1e9, weight_bytes / 1e6, activation_bytes / 1e6
    if kind in _VIEWS:
        return 0.001 + 0.05 * activations
    if kind in DENSE:
        if integer:
            return 0.010 + 2.3 * gflop + 0.147 * activations + 0.079 * weights
        return 0.026 + 10.2 * gflop + 0.024 * activations + 0.11 * weights
    if kind == "DEPTHWISE_CONV_2D":
        return 0.006 + (35 * gflop + 0.084 * activations if integer else 7.9 * gflop + 0.087 * activations)
    if kind == "FULLY_CONNECTED":
        return 0.003 + (0.078 if integer else 0.33) * weights + 0.05 * activations
    if kind in ("RELU", "RELU6") and integer:
        return 0.003 + 2.85 * activations
    return 0.003 + 0.11 * activations


def arena_bytes(spans: Iterable[tuple[int, int, int]]) -> int:
    """Memory for activations alive as (first step, last step, bytes): the peak of what lives at once, with a margin.

    The margin (an eighth and 16 kB) covers a planner that cannot pack perfectly, and scratch space.
    """
    changes: dict[int, int] = {}
    for begin, end, size in spans:
        padded = -(-size // _ARENA_STEP) * _ARENA_STEP
        changes[begin] = changes.get(begin, 0) + padded
        changes[end + 1] = changes.get(end + 1, 0) - padded
    peak = now = 0
    for step in sorted(changes):
        now += changes[step]
        peak = max(peak, now)
    return peak + peak // _ARENA_MARGIN + _ARENA_FLOOR_BYTES


def graph_arena_bytes(graph: Graph) -> int:
    """The activation memory of a standalone graph: inputs and outputs live from its start to its end."""
    total = len(graph.operators)
    begin: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    end: dict[int, int] = {}
    for step, operator in enumerate(graph.operators):
        for t in operator.outputs:
            begin.setdefault(t, step)
        for t in (*operator.inputs, *operator.outputs):
            if t >= 0:
                end[t] = step
    kept: Sequence[int] = (*graph.inputs, *graph.outputs)
    end.update(dict.fromkeys(kept, total))
    return arena_bytes(
        (start, end[t], graph.tensors[t].size_bytes)
        for t, start in begin.items()
        if t in end and not graph.tensors[t].constant
    )
