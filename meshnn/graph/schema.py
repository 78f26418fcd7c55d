"""The TFLite schema of the installed runtime package, imported only when a file is read or written."""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeAlias

from meshnn.errors import ModelError

Table: TypeAlias = Any
"""A table of the generated schema, which has no types."""


@functools.cache
def available() -> bool:
    """Whether this device can read and write models; one with only a runtime runs shards that others cut."""
    try:
        importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        return False
    return True


def tables() -> Table:
    """The generated schema module; ModelError where the package that holds it is not installed."""
    if not available():
        raise ModelError("this device cannot read or cut models: the package ai-edge-litert is not installed")
    return importlib.import_module("ai_edge_litert.schema_py_generated")


def builder(size_bytes: int) -> Table:
    """A flatbuffer builder with room for `size_bytes`; it grows where that is too little."""
    return importlib.import_module("flatbuffers").Builder(size_bytes)


@functools.cache
def kinds() -> dict[int, str]:
    """Builtin operator names by code."""
    return _names(tables().BuiltinOperator)


@functools.cache
def dtypes() -> dict[int, str]:
    """TFLite type names in lower case by code."""
    return {code: name.lower() for code, name in _names(tables().TensorType).items()}


@functools.cache
def kind_codes() -> dict[str, int]:
    """Builtin operator codes by name."""
    return {name: code for code, name in kinds().items()}


@functools.cache
def dtype_codes() -> dict[str, int]:
    """TFLite type codes by lower-case name."""
    return {name: code for code, name in dtypes().items()}


def union_of(options: object) -> tuple[int, int]:
    """(union 1 or 2, code in it) of an option table such as `Conv2DOptionsT`."""
    name = type(options).__name__.removesuffix("T")
    for number, union in ((1, tables().BuiltinOptions), (2, tables().BuiltinOptions2)):
        code = getattr(union, name, None)
        if isinstance(code, int):
            return number, code
    raise ModelError(f"options {name} belong to no operator")


def _names(enumeration: object) -> dict[int, str]:
    """Names by value of a generated enumeration class."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
