"""Tiny models written with the runtime's own schema: each does one thing that a test can compute by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from meshnn.graph.schema import Table

flatbuffers = pytest.importorskip("flatbuffers")
schema: Table = pytest.importorskip("ai_edge_litert.schema_py_generated")

FLOAT32 = 0
INT32 = 2
STRING = 5


def tensor(name: str, shape: list[int], kind: int = FLOAT32, buffer: int = 0) -> Table:
    """One tensor of the schema's object form."""
    made = schema.TensorT()
    made.name = name.encode()
    made.shape = np.array(shape, np.int32)
    made.type = kind
    made.buffer = buffer
    return made


def operator(inputs: list[int], outputs: list[int], options: Table = None, opcode: int = 0) -> Table:
    """One operator of the schema's object form."""
    made = schema.OperatorT()
    made.opcodeIndex = opcode
    made.inputs = np.array(inputs, np.int32)
    made.outputs = np.array(outputs, np.int32)
    if options is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        made.builtinOptions = options
    return made


def save(
    path: Path,
    codes: list[int | bytes],
    tensors: list[Table],
    operators: list[Table],
    ports: tuple[list[int], list[int]],
    data: list[npt.NDArray[np.generic]],
) -> Path:
    """Write a model: `codes` are builtin numbers or custom names, `data` the buffers from 1 on."""
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = []
    for code in codes:
        entry = schema.OperatorCodeT()
        number = 32 if isinstance(code, bytes) else code
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(number, 127), 1
        entry.customCode = code if isinstance(code, bytes) else None
        model.operatorCodes.append(entry)
    model.buffers = [schema.BufferT()]
    for array in data:
        buffer = schema.BufferT()
        buffer.data = array.reshape(-1).view(np.uint8)
        model.buffers.append(buffer)
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = tensors, operators
    graph.inputs, graph.outputs = (np.array(places, np.int32) for places in ports)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def add_and_double(path: Path) -> Path:
    """Inputs a, b of [1, 4] float32; outputs a + b and (a + b) + (a + b)."""
    tensors = [tensor(name, [1, 4]) for name in ("a", "b", "sum", "double")]
    operators = [operator([0, 1], [2], schema.AddOptionsT()), operator([2, 2], [3], schema.AddOptionsT())]
    return save(path, [schema.BuiltinOperator.ADD], tensors, operators, ([0, 1], [2, 3]), [])


def dense(path: Path, size: int) -> Path:
    """One fully connected layer of size x size ones in float32: a model whose weight is `4 * size ** 2` bytes."""
    tensors = [tensor("in", [1, size]), tensor("w", [size, size], buffer=1), tensor("out", [1, size])]
    operators = [operator([0, 1, -1], [2], schema.FullyConnectedOptionsT())]
    codes: list[int | bytes] = [schema.BuiltinOperator.FULLY_CONNECTED]
    return save(path, codes, tensors, operators, ([0], [2]), [np.ones((size, size), np.float32)])


def custom(path: Path, name: str) -> Path:
    """One custom operator of that name."""
    tensors = [tensor("in", [1, 4]), tensor("out", [1, 4])]
    return save(path, [name.encode()], tensors, [operator([0], [1])], ([0], [1]), [])


def grown_by_value(path: Path) -> Path:
    """A FILL whose length is the value of its input: a shape that only the run determines."""
    tensors = [tensor("dims", [1], INT32), tensor("value", [], buffer=1), tensor("out", [])]
    operators = [operator([0, 1], [2], schema.FillOptionsT())]
    return save(path, [schema.BuiltinOperator.FILL], tensors, operators, ([0], [2]), [np.array([2.5], np.float32)])


def unstated(path: Path) -> Path:
    """As `add_and_double`, but the file leaves the shapes of what it computes empty."""
    tensors = [tensor("a", [1, 4]), tensor("b", [1, 4]), tensor("sum", []), tensor("double", [])]
    operators = [operator([0, 1], [2], schema.AddOptionsT()), operator([2, 2], [3], schema.AddOptionsT())]
    return save(path, [schema.BuiltinOperator.ADD], tensors, operators, ([0, 1], [3]), [])


def wild(path: Path) -> Path:
    """A file that names a tensor which is not there: what crashes a runtime that believes it."""
    tensors = [tensor("a", [1, 4]), tensor("out", [1, 4])]
    operators = [operator([0, 9_999_999], [1], schema.AddOptionsT())]
    return save(path, [schema.BuiltinOperator.ADD], tensors, operators, ([0], [1]), [])
