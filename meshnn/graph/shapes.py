"""Which shapes a file really fixes: some it leaves empty, some only the run determines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from meshnn.graph.ir import BITS, Graph, Operator

_DECIDING: dict[str, tuple[int, ...]] = {
    "RESHAPE": (1,),
    "PAD": (1,),
    "PADV2": (1,),
    "MIRROR_PAD": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "SPACE_TO_BATCH_ND": (1, 2),
    "BATCH_TO_SPACE_ND": (1, 2),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "TRANSPOSE": (1,),
    "TRANSPOSE_CONV": (0,),
    "CONV_3D_TRANSPOSE": (0,),
    "FILL": (0,),
    "RANGE": (0, 1, 2),
    "TILE": (1,),
    "BROADCAST_TO": (1,),
    "EXPAND_DIMS": (1,),
    "MEAN": (1,),
    "SUM": (1,),
    "REDUCE_MAX": (1,),
    "REDUCE_MIN": (1,),
    "REDUCE_PROD": (1,),
    "REDUCE_ANY": (1,),
    "REDUCE_ALL": (1,),
    "ARG_MAX": (1,),
    "ARG_MIN": (1,),
    "ONE_HOT": (1,),
    "TOPK_V2": (1,),
    "SPLIT": (0,),
    "SPLIT_V": (1, 2),
    "SPARSE_TO_DENSE": (1,),
    "SCATTER_ND": (2,),
    "NON_MAX_SUPPRESSION_V4": (2,),
    "NON_MAX_SUPPRESSION_V5": (2,),
    "RANDOM_UNIFORM": (0,),
    "RANDOM_STANDARD_NORMAL": (0,),
    "MULTINOMIAL": (1,),
    "DYNAMIC_UPDATE_SLICE": (),
}
"""Inputs whose values, not shapes, decide the shape of what an operator makes."""

_BY_DATA = {"WHERE", "UNIQUE", "SEGMENT_SUM", "UNSORTED_SEGMENT_SUM", "UNSORTED_SEGMENT_MAX", "UNSORTED_SEGMENT_MIN"}


def run_determined(graph: Graph) -> tuple[frozenset[int], frozenset[int]]:
    """Tensors whose shape no constant of the file fixes: (by shapes of other tensors, by the data itself).

    The first are the same in every run and can be confirmed by one; the second may differ from request to request.
    """
    fixed = {index for index, tensor in enumerate(graph.tensors) if tensor.constant}
    by_shape: set[int] = set()
    by_data: set[int] = set()
    for operator in graph.operators:
        read = [t for t in operator.inputs if t >= 0]
        if operator.kind in ("SHAPE", "RANK"):
            if not any(t in by_data for t in read):
                fixed.update(operator.outputs)
            continue
        if all(t in fixed for t in read):
            fixed.update(operator.outputs)
        deciding = [operator.inputs[i] for i in _DECIDING.get(operator.kind, ()) if i < len(operator.inputs)]
        open_ones = [t for t in deciding if t >= 0 and not graph.tensors[t].constant]
        if operator.kind in _BY_DATA or any(t not in fixed for t in open_ones) or any(t in by_data for t in read):
            by_data.update(operator.outputs)
        elif (open_ones and not _same_count(graph, operator)) or any(t in by_shape for t in read):
            by_shape.update(operator.outputs)
    return frozenset(by_shape), frozenset(by_data)


def mark_unknown(graph: Graph) -> Graph:
    """The graph with `shape_known` false wherever the file does not fix a shape.

    An empty shape is a scalar's where the file states its other shapes, and unknown where it leaves them all empty.
    """
    by_shape, by_data = run_determined(graph)
    made = [t for operator in graph.operators for t in operator.outputs]
    states = any(graph.tensors[t].shape for t in made if t not in graph.outputs)
    tensors = list(graph.tensors)
    for index in (*made, *graph.inputs):
        tensor = tensors[index]
        known = (tensor.shape_known or states or bool(tensor.shape)) and index not in by_shape | by_data
        tensors[index] = dataclasses.replace(tensor, shape_known=known and tensor.dtype in BITS)
    return dataclasses.replace(graph, tensors=tuple(tensors))


def with_shapes(graph: Graph, reported: Mapping[int, tuple[int, ...]]) -> Graph:
    """The graph with the shapes a runtime reports **after one run** of the whole model, by tensor index.

    The runtime must have no delegates: what one has taken over keeps the shape the file had.
    They fill what the file leaves empty and confirm what shape arithmetic decides. Where they contradict the file
    the tensor's shape counts as known only to the run, and no cut may cross it.
    """
    _, by_data = run_determined(graph)
    tensors = list(graph.tensors)
    for index, found in reported.items():
        if not 0 <= index < len(tensors) or tensors[index].constant or tensors[index].dtype not in BITS:
            continue
        tensor, shape = tensors[index], tuple(int(size) for size in found)
        agrees = not tensor.shape or tensor.shape == shape
        known = agrees and index not in by_data
        tensors[index] = dataclasses.replace(tensor, shape=shape if agrees else tensor.shape, shape_known=known)
    return dataclasses.replace(graph, tensors=tuple(tensors))


def _same_count(graph: Graph, operator: Operator) -> bool:
    """Whether a RESHAPE's stated shape holds exactly what its input does, so that it can be believed."""
    if operator.kind != "RESHAPE" or not operator.inputs or not operator.outputs:
        return False
    source, result = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    return bool(result.shape) and bool(source.shape) and source.elements == result.elements
