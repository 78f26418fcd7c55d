"""TFLite Model Metadata: normalisation and labels that a file carries about itself. Raises nothing but ModelError."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

import numpy as np

from meshnn.graph.card import Normalisation
from meshnn.graph.ir import Bytes, Graph
from meshnn.graph.verify import refuse

METADATA_NAME = "TFLITE_METADATA"

_MOST_LABEL_BYTES = 4 << 20
_MOST_LABELS = 1 << 20
_MOST_ITEMS = 4096
_NORMALISE = 1
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_BROKEN = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def labels_of(graph: Graph) -> tuple[str, ...]:
    """The label of every class of the first output that has labels; empty where the file carries none.

    Raises ModelError where it carries metadata that cannot be read.
    """
    try:
        return _labels(graph)
    except _BROKEN as broken:
        raise refuse("bad_metadata", "metadata", f"the labels cannot be read ({type(broken).__name__})") from broken


def normalisation_of(graph: Graph) -> Normalisation | None:
    """The first input's normalisation; None where the file states none. Raises ModelError on broken metadata.

    Quantised models often carry the float normalisation of their origin: it is not for raw uint8 input.
    """
    try:
        for tensor in _tensors(graph, inputs=True)[:1]:
            for unit in tensor.tables(4):
                if unit.byte(0) == _NORMALISE and (options := unit.table(1)) is not None:
                    return _normalisation(options)
    except _BROKEN as broken:
        place, reason = "metadata", f"the normalisation cannot be read ({type(broken).__name__})"
        raise refuse("bad_metadata", place, reason) from broken
    return None


def output_names_of(graph: Graph) -> tuple[str, ...]:
    """What the metadata calls each output (`location`, `score`), in order; empty where it does not say."""
    try:
        return tuple(tensor.text(0) for tensor in _tensors(graph, inputs=False))
    except _BROKEN as broken:
        raise refuse("bad_metadata", "metadata", f"the outputs cannot be read ({type(broken).__name__})") from broken


def _normalisation(options: _Table) -> Normalisation | None:
    """Mean and standard deviation of a normalisation unit; ModelError where they cannot be meant."""
    mean, std = options.floats(0), options.floats(1)
    if not mean or not std:
        return None
    if not np.isfinite((*mean, *std)).all() or 0.0 in std:
        raise refuse("bad_metadata", "metadata", "its normalisation divides by zero or is not finite")
    return Normalisation(mean, std)


def _labels(graph: Graph) -> tuple[str, ...]:
    """Labels from the first label file that an output names and the file holds."""
    wanted = [
        file.text(0)
        for tensor in _tensors(graph, inputs=False)
        for file in tensor.tables(6)
        if file.byte(2) in (_AXIS_LABELS, _VALUE_LABELS)
    ]
    if not wanted or graph.file is None:
        return ()
    with zipfile.ZipFile(cast(IO[bytes], _View(graph.file))) as archive:
        names = set(archive.namelist())
        for name in wanted:
            if name not in names:
                continue
            with archive.open(name) as member:
                text = member.read(_MOST_LABEL_BYTES + 1)
            if len(text) > _MOST_LABEL_BYTES:
                raise refuse("bad_metadata", "metadata", f"the label file {name} is longer than any real one")
            lines = text.decode("utf-8", "replace").rstrip("\r\n").split("\n")
            return tuple(line.rstrip("\r") for line in lines[:_MOST_LABELS])
    return ()


def _tensors(graph: Graph, *, inputs: bool) -> list[_Table]:
    """The metadata tables of the model's inputs or outputs; empty where there are none."""
    for name, data in graph.metadata:
        if name == METADATA_NAME and data.size >= 8 and data[4:8].tobytes() == b"M001":
            raw = data.tobytes()
            root = _Table(raw, _u32(raw, 0))
            for subgraph in root.tables(3):
                return subgraph.tables(2 if inputs else 3)
    return []


def _u32(raw: bytes, position: int) -> int:
    """An unsigned 32-bit number; struct.error outside the bytes."""
    if position < 0:
        raise ValueError(position)
    value: int = struct.unpack_from("<I", raw, position)[0]
    return value


class _Table:
    """A flatbuffer table, read by slot; the metadata schema is not part of any package we need, and so small."""

    def __init__(self, raw: bytes, position: int) -> None:
        self.raw = raw
        self.position = position
        (back,) = struct.unpack_from("<i", raw, position)
        self.slots = position - back
        if self.slots < 0:
            raise ValueError(position)
        (self.width,) = struct.unpack_from("<H", raw, self.slots)

    def place(self, slot: int) -> int:
        """The position of a field; 0 where it is absent."""
        at = 4 + 2 * slot
        if at + 2 > self.width:
            return 0
        (offset,) = struct.unpack_from("<H", self.raw, self.slots + at)
        return self.position + int(offset) if offset else 0

    def byte(self, slot: int) -> int:
        """A one-byte field, 0 where it is absent."""
        place = self.place(slot)
        return self.raw[place] if place else 0

    def table(self, slot: int) -> _Table | None:
        """A table field."""
        place = self.place(slot)
        return _Table(self.raw, place + _u32(self.raw, place)) if place else None

    def vector(self, slot: int) -> tuple[int, int]:
        """(position of the first item, length) of a vector field; length 0 where it is absent."""
        place = self.place(slot)
        if not place:
            return 0, 0
        at = place + _u32(self.raw, place)
        return at + 4, _u32(self.raw, at)

    def tables(self, slot: int) -> list[_Table]:
        """A vector of tables."""
        return list(self._tables(slot))

    def _tables(self, slot: int) -> Iterator[_Table]:
        """The same, one after another; ValueError for more than any real file has."""
        at, length = self.vector(slot)
        if length > _MOST_ITEMS:
            raise ValueError(length)
        for item in range(at, at + 4 * length, 4):
            yield _Table(self.raw, item + _u32(self.raw, item))

    def floats(self, slot: int) -> tuple[float, ...]:
        """A vector of float32."""
        at, length = self.vector(slot)
        if length > _MOST_ITEMS:
            raise ValueError(length)
        return struct.unpack_from(f"<{length}f", self.raw, at) if length else ()

    def text(self, slot: int) -> str:
        """A string field; empty where it is absent."""
        at, length = self.vector(slot)
        if at + length > len(self.raw):
            raise ValueError(length)
        return self.raw[at : at + length].decode("utf-8", "replace")


class _View(io.RawIOBase):
    """A file-like window on the bytes of a model, so that the archive at its end is read without a copy of the rest."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.at = 0

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def seekable(self) -> bool:
        """True: it can be sought."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; OSError before the beginning."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.data.size}[whence]
        if start + offset < 0:
            raise OSError("before the beginning")
        self.at = start + offset
        return self.at

    def tell(self) -> int:
        """The position."""
        return self.at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes from here; all that is left where it is negative or None."""
        end = self.data.size if size is None or size < 0 else min(self.data.size, self.at + size)
        piece = self.data[self.at : end].tobytes()
        self.at += len(piece)
        return piece
