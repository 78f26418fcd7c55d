"""What must hold of every Graph: run on each file from outside and after each pass."""

from __future__ import annotations

from collections.abc import Iterator

from meshnn.errors import ModelError
from meshnn.graph.ir import BITS, Graph, Operator, Tensor

_REFUSED_KINDS = {
    "IF": "branches at run time",
    "WHILE": "loops at run time",
    "CALL": "calls other subgraphs",
    "CALL_ONCE": "calls other subgraphs",
    "VAR_HANDLE": "keeps state between requests",
    "READ_VARIABLE": "keeps state between requests",
    "ASSIGN_VARIABLE": "keeps state between requests",
    "HASHTABLE": "keeps state between requests",
    "CUSTOM:edgetpu-custom-op": "was compiled for the Edge TPU; add the file it was compiled from",
}
_MOST_ELEMENTS = 1 << 40


def refuse(code: str, place: str, reason: str) -> ModelError:
    """The error for something that cannot be handled: `place: reason (code)`."""
    return ModelError(f"{place}: {reason} ({code})")


def verify(graph: Graph, *, name: str = "model") -> None:
    """Check that operators run in order over tensors that exist; ModelError at the first thing that does not hold."""
    for problem in problems(graph, name):
        raise problem


def problems(graph: Graph, name: str = "model") -> Iterator[ModelError]:
    """Everything that does not hold of a graph, the most basic first."""
    if not graph.operators:
        yield refuse("no_operators", name, "has no operators")
    for index, tensor in enumerate(graph.tensors):
        yield from _tensor_problems(tensor, f"{name}, tensor {index}")
    total = len(graph.tensors)
    for what, indices in (("input", graph.inputs), ("output", graph.outputs)):
        if not indices:
            yield refuse("no_tensors", name, f"has no {what}s")
        for index in indices:
            if not 0 <= index < total:
                yield refuse("bad_index", name, f"{what} names tensor {index} of {total}")
                return
            if graph.tensors[index].dtype not in BITS:
                yield refuse("dtype", f"{name}, {what} {index}", f"{graph.tensors[index].dtype} cannot be sent")
    yield from _order_problems(graph, name)


def _tensor_problems(tensor: Tensor, place: str) -> Iterator[ModelError]:
    """Problems of one tensor alone."""
    if any(not 0 <= size < 1 << 31 for size in tensor.shape) or tensor.elements > _MOST_ELEMENTS:
        yield refuse("bad_shape", place, f"has the impossible shape {list(tensor.shape)[:8]}")
    elif tensor.data is not None and tensor.data.size != tensor.size_bytes and _dense(tensor):
        yield refuse("bad_constant", place, f"holds {tensor.data.size} bytes where {tensor.size_bytes} belong")
    quantization = tensor.quantization
    if quantization is not None:
        if len(quantization.zero_point) not in (1, len(quantization.scale)):
            yield refuse("bad_quantization", place, "has fewer zero points than scales")
        if len(quantization.scale) > 1 and not 0 <= quantization.axis < max(1, len(tensor.shape)):
            yield refuse("bad_quantization", place, f"is quantised along axis {quantization.axis}")


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor's bytes follow from its shape: neither sparse nor of a dtype without a size."""
    return tensor.source is None and tensor.dtype in BITS


def _order_problems(graph: Graph, name: str) -> Iterator[ModelError]:
    """Problems of what reads what: every input made before it is read, every output made once."""
    total = len(graph.tensors)
    known = {index for index, tensor in enumerate(graph.tensors) if tensor.constant or tensor.variable}
    known.update(graph.inputs)
    for index, operator in enumerate(graph.operators):
        place = f"{name}, operator {index} ({operator.kind})"
        if operator.kind in _REFUSED_KINDS:
            yield refuse("refused_operator", place, _REFUSED_KINDS[operator.kind])
        if not all(-1 <= t < total for t in (*operator.inputs, *operator.intermediates)) or not all(
            0 <= t < total for t in operator.outputs
        ):
            yield refuse("bad_index", place, f"names a tensor outside the {total} there are")
            return
        yield from _reads_and_writes(operator, place, known)
        known.update(operator.outputs)
    for index in graph.outputs:
        if index not in known:
            yield refuse("missing_tensor", name, f"output tensor {index} is made by nothing")


def _reads_and_writes(operator: Operator, place: str, known: set[int]) -> Iterator[ModelError]:
    """Problems of one operator's tensors, given those known before it runs."""
    if not operator.outputs:
        yield refuse("no_tensors", place, "makes nothing")
    for tensor in operator.inputs:
        if tensor >= 0 and tensor not in known:
            yield refuse("missing_tensor", place, f"reads tensor {tensor}, which nothing makes before it")
    for tensor in operator.outputs:
        if tensor in known:
            yield refuse("made_twice", place, f"makes tensor {tensor}, which is there already")
    if len(set(operator.outputs)) != len(operator.outputs):
        yield refuse("made_twice", place, "makes one tensor twice")
