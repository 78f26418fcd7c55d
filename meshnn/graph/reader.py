"""TFLite bytes to a Graph: weights stay views of the file, every other exception becomes a ModelError."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np

from meshnn.graph import schema
from meshnn.graph.ir import BITS, Bytes, Graph, Operator, Quantization, Tensor
from meshnn.graph.schema import Table
from meshnn.graph.shapes import mark_unknown
from meshnn.graph.verify import refuse, verify

_BROKEN = (
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_MOST_ITEMS = 1 << 22
"""Bounds what a hostile file may make us unpack; the largest public networks need a hundredth of it."""


def read(data: Bytes | bytes, *, name: str = "model") -> Graph:
    """Read a single-subgraph TFLite file; `data` may be an `np.memmap` (uint8), whose weights stay on disk.

    A dynamic batch is fixed at 1. Raises ModelError with the place and the reason for whatever cannot be handled.
    """
    try:
        raw = np.frombuffer(data, np.uint8)
    except (ValueError, TypeError, BufferError) as broken:
        raise refuse("damaged_file", name, "these are not the bytes of a file") from broken
    if raw.size < 32 or raw[4:8].tobytes() != b"TFL3":
        raise refuse("not_tflite", name, f"not a TFLite file ({raw.size} bytes, without the mark TFL3)")
    try:
        graph = _File(raw, name).graph()
    except _BROKEN as broken:
        raise refuse("damaged_file", name, f"the file is damaged or cut short ({type(broken).__name__})") from broken
    verify(graph, name=name)
    return mark_unknown(graph)


class _File:
    """One file being read: the root table, the bytes, and a budget of items to unpack."""

    def __init__(self, raw: Bytes, name: str) -> None:
        self.raw = raw
        self.name = name
        self.tables = schema.tables()
        self.root = self.tables.Model.GetRootAs(raw, 0)
        self.budget = _MOST_ITEMS

    def count(self, length: int, what: str) -> int:
        """A vector's length, taken from the budget."""
        self.budget -= length
        if length < 0 or self.budget < 0 or length > self.raw.size:
            raise refuse("damaged_file", self.name, f"it claims {length} {what}, more than any real file")
        return length

    def graph(self) -> Graph:
        """The whole file as a Graph."""
        if self.count(self.root.SubgraphsLength(), "subgraphs") != 1:
            found = self.root.SubgraphsLength()
            raise refuse("several_subgraphs", self.name, f"has {found} subgraphs; only models of one can be cut")
        if self.root.ExternalBuffersLength() or self.root.ExternalBufferGroupsLength():
            raise refuse("external_buffers", self.name, "keeps its weights in other files")
        sub = self.root.Subgraphs(0)
        self.count(self.root.BuffersLength(), "buffers")
        tensors = [self.tensor(sub.Tensors(i), i) for i in range(self.count(sub.TensorsLength(), "tensors"))]
        codes = [self.code(i) for i in range(self.count(self.root.OperatorCodesLength(), "operator codes"))]
        operators = tuple(
            self.operator(sub.Operators(i), i, codes) for i in range(self.count(sub.OperatorsLength(), "operators"))
        )
        inputs, outputs = self.integers(sub, "Inputs"), self.integers(sub, "Outputs")
        made = {t for operator in operators for t in operator.outputs} | set(inputs)
        return Graph(
            operators=operators,
            tensors=tuple(_empty_constant(t) if i not in made else t for i, t in enumerate(tensors)),
            inputs=inputs,
            outputs=outputs,
            description=_text(self.root.Description()),
            metadata=tuple(self.metadata()),
            file=self.raw,
        )

    def integers(self, table: Table, field: str) -> tuple[int, ...]:
        """A vector of integers of a table as a tuple; empty where the field is absent."""
        length = self.count(getattr(table, f"{field}Length")(), field.lower())
        if not length:
            return ()
        values = getattr(table, f"{field}AsNumpy")()
        if len(values) != length:
            raise ValueError(field)
        return tuple(int(value) for value in values)

    def buffer(self, index: int, place: str) -> Bytes | None:
        """The bytes of a buffer as a view of the file, both forms; None where it has none."""
        if not 0 <= index < self.root.BuffersLength():
            raise refuse("bad_index", self.name, f"{place} names buffer {index} of {self.root.BuffersLength()}")
        table = self.root.Buffers(index)
        offset, size = table.Offset(), table.Size()
        if offset > 1:
            if offset + size > self.raw.size:
                raise refuse("damaged_file", self.name, f"{place} lies at {offset}, behind the end of the file")
            return self.raw[offset : offset + size]
        if table.DataIsNone() or table.DataLength() == 0:
            return None
        view: Bytes = table.DataAsNumpy()
        if view.size != table.DataLength():
            raise ValueError(place)
        return view

    def tensor(self, table: Table, index: int) -> Tensor:
        """One tensor; a -1 in its shape (a batch left open) becomes 1."""
        place = f"tensor {index}"
        dtype = schema.dtypes().get(table.Type())
        if dtype is None:
            raise refuse("unknown_dtype", self.name, f"{place} has the unknown type {table.Type()}")
        shape = tuple(1 if size == -1 else size for size in self.integers(table, "Shape"))
        data = self.buffer(table.Buffer(), place) if table.Buffer() else None
        source = None
        if table.Sparsity() is not None or table.VariantTensorsLength() or _odd_quantization(table):
            self.count(_sparse_items(table), "sparse dimensions")
            source = self.tables.TensorT.InitFromObj(table)
        return Tensor(
            name=_text(table.Name()),
            shape=shape,
            dtype=dtype,
            quantization=self.quantization(table.Quantization()),
            data=data,
            shape_known=bool(shape) or data is not None or bool(table.HasRank()),
            variable=bool(table.IsVariable()),
            source=source,
        )

    def quantization(self, table: Table) -> Quantization | None:
        """Scales and zero points; None where there are none."""
        if table is None or not table.ScaleLength():
            return None
        self.count(table.ScaleLength() + table.ZeroPointLength(), "scales")
        scale = tuple(float(value) for value in table.ScaleAsNumpy())
        zero_point = self.integers(table, "ZeroPoint") or (0,) * len(scale)
        return Quantization(scale, zero_point, int(table.QuantizedDimension()))

    def code(self, index: int) -> tuple[str, int]:
        """(kind, version) of an operator code."""
        table = self.root.OperatorCodes(index)
        code = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
        kind = schema.kinds().get(code)
        if kind is None:
            raise refuse("unknown_operator", self.name, f"operator code {code} is not known to this runtime's schema")
        if kind == "CUSTOM":
            kind = f"CUSTOM:{_text(table.CustomCode())}"
        return kind, table.Version()

    def operator(self, table: Table, index: int, codes: list[tuple[str, int]]) -> Operator:
        """One operator with its options as the schema's own object."""
        if not 0 <= table.OpcodeIndex() < len(codes):
            raise refuse("bad_index", self.name, f"operator {index} names operator code {table.OpcodeIndex()}")
        kind, version = codes[table.OpcodeIndex()]
        return Operator(
            kind=kind,
            inputs=self.integers(table, "Inputs"),
            outputs=self.integers(table, "Outputs"),
            version=version,
            options=self.options(table),
            custom_options=self.custom(table),
            intermediates=self.integers(table, "Intermediates"),
            mutating=tuple(bool(flag) for flag in self.integers(table, "MutatingVariableInputs")),
        )

    def options(self, table: Table) -> Table:
        """The option table of either union, unpacked; None where the operator has none."""
        first, second = table.BuiltinOptions(), table.BuiltinOptions2()
        if first is not None and table.BuiltinOptionsType():
            return self.tables.BuiltinOptionsCreator(table.BuiltinOptionsType(), first)
        if second is not None and table.BuiltinOptions2Type():
            return self.tables.BuiltinOptions2Creator(table.BuiltinOptions2Type(), second)
        return None

    def custom(self, table: Table) -> bytes:
        """The bytes a custom operator is configured with."""
        offset, size = table.LargeCustomOptionsOffset(), table.LargeCustomOptionsSize()
        if offset > 1:
            if offset + size > self.raw.size:
                raise ValueError("custom options")
            return self.raw[offset : offset + size].tobytes()
        length = self.count(table.CustomOptionsLength(), "bytes of custom options")
        return table.CustomOptionsAsNumpy().tobytes() if length else b""

    def metadata(self) -> Iterator[tuple[str, Bytes]]:
        """Named metadata buffers of the model."""
        for index in range(self.count(self.root.MetadataLength(), "metadata")):
            entry = self.root.Metadata(index)
            data = self.buffer(entry.Buffer(), f"metadata {index}")
            if data is not None:
                yield _text(entry.Name()), data


def _odd_quantization(table: Table) -> bool:
    """Whether the quantisation is of a form the IR has no words for."""
    quantization = table.Quantization()
    return quantization is not None and quantization.DetailsType() != 0


def _sparse_items(table: Table) -> int:
    """How many items unpacking the whole tensor table would make."""
    sparsity = table.Sparsity()
    return int(table.VariantTensorsLength()) + (int(sparsity.DimMetadataLength()) if sparsity is not None else 0)


def _empty_constant(tensor: Tensor) -> Tensor:
    """A tensor that nothing makes and that has no elements is a constant of no bytes."""
    if tensor.constant or tensor.variable or not tensor.shape or tensor.elements or tensor.dtype not in BITS:
        return tensor
    return dataclasses.replace(tensor, data=np.zeros(0, np.uint8))


def _text(value: bytes | str | None) -> str:
    """A name of the file as text; bytes that are no UTF-8 are shown escaped."""
    if value is None:
        return ""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
