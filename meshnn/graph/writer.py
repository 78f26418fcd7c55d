"""Graph to TFLite bytes: the ordinary form for small models, weights behind a small header for large ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from meshnn.graph import schema
from meshnn.graph.ir import Bytes, Graph, Operator, Tensor
from meshnn.graph.schema import Table

WRITER_VERSION = 1
"""Part of every recipe: two writers of one version make the same bytes of the same recipe."""

LARGE_BYTES = 4 << 20
"""Weights beyond this are written behind the header (offset/size form), as views, without copies."""

_HEADER_STEP = 1024
_WEIGHT_STEP = 64
_ALIGN = 16
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A model ready to be stored: header bytes, then views of weights at their offsets, gaps filled with zeros."""

    header: bytes
    views: tuple[tuple[int, Bytes], ...]
    size_bytes: int

    def chunks(self) -> Iterator[memoryview]:
        """The file from its first byte to its last, in pieces, without copying weights."""
        yield memoryview(self.header)
        position = len(self.header)
        for offset, view in self.views:
            if offset > position:
                yield memoryview(bytes(offset - position))
            yield from _pieces(view)
            position = offset + view.size

    def to_bytes(self) -> bytes:
        """The whole file in one piece; for small models and tests."""
        return b"".join(self.chunks())


def _pieces(view: Bytes) -> Iterator[memoryview]:
    """The bytes of a view: itself where it lies in one piece, else some megabytes of its rows after another."""
    if view.flags.c_contiguous:
        yield view.reshape(-1).data
        return
    rows = max(1, _PIECE_BYTES // view.shape[1])
    for first in range(0, view.shape[0], rows):
        yield np.ascontiguousarray(view[first : first + rows]).reshape(-1).data


def write(graph: Graph) -> Written:
    """Write a graph as a standalone TFLite file of one subgraph; equal graphs give equal bytes.

    Signatures and metadata are not written. Raises ModelError where the schema package is not installed.
    """
    buffers, places = _buffers(graph)
    if sum(data.size for data in buffers) <= LARGE_BYTES:
        model = _model(graph, places, [_InlineBuffer(data) for data in buffers])
        header = _pack(model, sum(data.size + 32 for data in buffers))
        return Written(header, (), len(header))
    return _write_behind(graph, buffers, places)


def _write_behind(graph: Graph, buffers: list[Bytes], places: dict[int, int]) -> Written:
    """The offset/size form: pack once to learn the header's length, once more with the true offsets."""
    tables = schema.tables()
    stand_ins = [tables.BufferT(offset=(1 << 20) * bool(data.size), size=data.size) for data in buffers]
    length = len(_pack(_model(graph, places, stand_ins), 0))
    cursor = _up(length, _HEADER_STEP)
    views: list[tuple[int, Bytes]] = []
    for stand_in, data in zip(stand_ins, buffers, strict=True):
        if data.size:
            cursor = _up(cursor, _WEIGHT_STEP)
            stand_in.offset = cursor
            views.append((cursor, data))
            cursor += data.size
    header = _pack(_model(graph, places, stand_ins), 0)
    if len(header) != length:
        raise AssertionError("the header's length depends on its offsets")
    return Written(header, tuple(views), cursor)


def _up(position: int, step: int) -> int:
    """The next multiple of `step` at or above a position."""
    return -(-position // step) * step


def _buffers(graph: Graph) -> tuple[list[Bytes], dict[int, int]]:
    """(distinct constant data in order of tensors, buffer index by tensor); buffer 0 is the schema's empty one."""
    buffers: list[Bytes] = []
    places: dict[int, int] = {}
    seen: dict[tuple[int, int, tuple[int, ...]], int] = {}
    for index, tensor in enumerate(graph.tensors):
        if tensor.data is None:
            continue
        key = (int(tensor.data.__array_interface__["data"][0]), tensor.data.size, tensor.data.strides)
        if key not in seen or not tensor.data.size:
            buffers.append(tensor.data)
            seen[key] = len(buffers)
        places[index] = seen[key]
    return buffers, places


def _model(graph: Graph, places: dict[int, int], buffers: list[Table]) -> Table:
    """The schema's model object of a graph."""
    tables = schema.tables()
    codes: dict[tuple[str, int], int] = {}
    for operator in graph.operators:
        codes.setdefault((operator.kind, operator.version), len(codes))
    subgraph = tables.SubGraphT(
        tensors=[_tensor(tensor, places.get(index, 0)) for index, tensor in enumerate(graph.tensors)],
        inputs=_integers(graph.inputs),
        outputs=_integers(graph.outputs),
        operators=[_operator(operator, codes[operator.kind, operator.version]) for operator in graph.operators],
        name="main",
    )
    return tables.ModelT(
        version=3,
        operatorCodes=[_code(kind, version) for kind, version in codes],
        subgraphs=[subgraph],
        description=graph.description or "meshnn",
        buffers=[tables.BufferT(), *buffers],
    )


def _code(kind: str, version: int) -> Table:
    """An operator code in both of the schema's fields."""
    name, _, custom = kind.partition(":")
    code = schema.kind_codes()[name]
    return schema.tables().OperatorCodeT(
        deprecatedBuiltinCode=min(code, 127), customCode=custom or None, version=version, builtinCode=code
    )


def _tensor(tensor: Tensor, buffer: int) -> Table:
    """The schema's object of a tensor, whose shape is now fixed."""
    tables = schema.tables()
    made = tables.TensorT(
        shape=_integers(tensor.shape),
        type=schema.dtype_codes()[tensor.dtype],
        buffer=buffer,
        name=tensor.name,
        isVariable=tensor.variable,
        hasRank=tensor.shape_known,
    )
    if tensor.source is not None:
        made.sparsity, made.variantTensors = tensor.source.sparsity, tensor.source.variantTensors
        made.quantization = tensor.source.quantization
    elif tensor.quantization is not None:
        made.quantization = tables.QuantizationParametersT(
            scale=np.asarray(tensor.quantization.scale, np.float32),
            zeroPoint=np.asarray(tensor.quantization.zero_point, np.int64),
            quantizedDimension=tensor.quantization.axis,
        )
    return made


def _operator(operator: Operator, code: int) -> Table:
    """The schema's object of an operator, its options as they were read."""
    made = schema.tables().OperatorT(
        opcodeIndex=code, inputs=_integers(operator.inputs), outputs=_integers(operator.outputs)
    )
    if operator.options is not None:
        union, option = schema.union_of(operator.options)
        if union == 1:
            made.builtinOptionsType, made.builtinOptions = option, operator.options
        else:
            made.builtinOptions2Type, made.builtinOptions2 = option, operator.options
    if operator.custom_options:
        made.customOptions = np.frombuffer(operator.custom_options, np.uint8)
    if operator.intermediates:
        made.intermediates = _integers(operator.intermediates)
    if operator.mutating:
        made.mutatingVariableInputs = list(operator.mutating)
    return made


def _integers(values: tuple[int, ...]) -> Table:
    """A vector of int32 for the schema."""
    return np.asarray(values, np.int32)


class _InlineBuffer:
    """A buffer packed in the ordinary form: one aligned copy instead of the schema's own unaligned vector."""

    def __init__(self, data: Bytes) -> None:
        self.data = data

    def Pack(self, builder: Table) -> int:  # noqa: N802 (the schema calls it so)
        """Write the bytes at a multiple of 16 and the table that points at them; called by the schema."""
        tables = schema.tables()
        vector = None
        if self.data.size:
            builder.StartVector(1, self.data.size, _ALIGN)
            builder.head -= self.data.size
            np.frombuffer(builder.Bytes, np.uint8)[builder.head : builder.head + self.data.size] = self.data.reshape(-1)
            builder.vectorNumElems = self.data.size
            vector = builder.EndVector()
        tables.BufferStart(builder)
        if vector is not None:
            tables.BufferAddData(builder, vector)
        return int(tables.BufferEnd(builder))


def _pack(model: Table, weights_size_bytes: int) -> bytes:
    """The flatbuffer of a model object, with the file's mark."""
    builder = schema.builder(weights_size_bytes + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
