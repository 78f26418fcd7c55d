"""Reading: real files and both buffer forms become graphs, everything else a ModelError."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import ModelError
from meshnn.graph import cut, schema
from meshnn.graph.builder import Precision
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.writer import write
from tests.graph.networks import PRECISIONS, residual, two_ends
from tests.shared_data import models

_SMALL = write(residual("int8")).to_bytes()
_HALF = write(residual("float16")).to_bytes()


def _same(a: Graph, b: Graph) -> bool:
    """Whether two graphs are equal, weights included."""
    data = [
        (x.data is None and y.data is None)
        or (x.data is not None and y.data is not None and bytes(x.data) == bytes(y.data))
        for x, y in zip(a.tensors, b.tensors, strict=True)
    ]
    return a.operators == b.operators and a.tensors == b.tensors and all(data) and a.outputs == b.outputs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_read_again(precision: Precision) -> None:
    """Writing and reading gives back the same operators, tensors and weights in every precision."""
    graph = residual(precision)
    assert _same(read(write(graph).to_bytes()), graph)


def test_weights_of_a_mapped_file_stay_views_of_it(tmp_path: Path) -> None:
    """A memory-mapped model is not copied: every constant points into the mapping."""
    path = tmp_path / "m.tflite"
    path.write_bytes(_SMALL)
    mapped = np.memmap(path, np.uint8, "r")
    begin = mapped.__array_interface__["data"][0]
    for tensor in read(mapped).tensors:
        if tensor.data is not None and tensor.data.size:
            assert begin <= tensor.data.__array_interface__["data"][0] < begin + mapped.size


def test_both_buffer_forms_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights inside the flatbuffer and weights behind it give equal graphs."""
    graph = two_ends()
    inside = read(write(graph).to_bytes())
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    behind = write(graph)
    assert behind.views
    assert _same(read(behind.to_bytes()), inside)


def test_an_open_batch_becomes_one() -> None:
    """A shape of -1 in the file is read as 1."""
    tables = schema.tables()
    model = tables.ModelT.InitFromPackedBuf(_SMALL, 0)
    shape = model.subgraphs[0].tensors[0].shape
    model.subgraphs[0].tensors[0].shape = np.array([-1, *shape[1:]], np.int32)
    builder = schema.builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    assert read(bytes(builder.Output())).tensors[0].shape == tuple(shape)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_tflite"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_tflite"),
        (bytes(100), "not_tflite"),
        (_SMALL[: len(_SMALL) // 2], ""),
        (_SMALL[:40], "damaged_file"),
        (b"\xff" * 4 + b"TFL3" + bytes(100), "damaged_file"),
    ],
)
def test_what_is_no_model_is_refused_with_a_code(data: bytes, code: str) -> None:
    """Garbage and truncated files are refused by name, code and reason."""
    with pytest.raises(ModelError, match=rf"^photo: .*\({code}|^photo, .*\(") as error:
        read(data, name="photo")
    assert "\n" not in str(error.value)


def test_several_subgraphs_are_refused() -> None:
    """A model with two subgraphs is refused by that reason."""
    model = schema.tables().ModelT.InitFromPackedBuf(_SMALL, 0)
    model.subgraphs *= 2
    builder = schema.builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(ModelError, match="several_subgraphs"):
        read(bytes(builder.Output()))


def test_weights_behind_the_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the large form cut short is refused when it is read, not when it is run."""
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    data = write(two_ends()).to_bytes()
    with pytest.raises(ModelError, match="behind the end"):
        read(data[:-1])


def test_a_damaged_vector_cannot_make_it_unpack_for_ever() -> None:
    """A length of two thousand million items is refused at once."""
    data = bytearray(_SMALL)
    for place in range(8, 400, 4):
        changed = data.copy()
        changed[place : place + 4] = (0x7FFFFFF0).to_bytes(4, "little")
        _read_or_refuse(bytes(changed))


@settings(max_examples=300)
@given(st.data())
def test_any_damage_gives_a_graph_or_a_model_error(data: st.DataObject) -> None:
    """Mutated real headers never raise anything but ModelError, nor does what follows reading."""
    raw = bytearray(data.draw(st.sampled_from((_SMALL, _HALF))))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.sampled_from((0, 1, 2, 127, 128, 255)) | st.integers(0, 255))
    _read_or_refuse(bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]))


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_any_bytes_behind_the_mark_give_a_model_error(tail: bytes) -> None:
    """Random bytes with the file's mark are refused."""
    _read_or_refuse(b"\x10\x00\x00\x00TFL3" + tail)


def _read_or_refuse(raw: bytes) -> None:
    """Read, describe, cut and write; only ModelError may come out."""
    try:
        graph = read(raw)
        card = card_of(graph, "0" * 64, len(raw), "damaged")
        middle = len(graph.operators) // 2
        if middle and card.refusal(0, middle - 1) is None:
            write(cut.fragment(graph, 0, middle - 1))
        write(graph)
    except ModelError:
        pass


@pytest.mark.parametrize("path", models(), ids=lambda path: path.stem[:40])
def test_every_shared_model_is_read_and_written_again(path: Path) -> None:
    """Real files are read whole: what is written from them reads as the same graph."""
    graph = read(np.memmap(path, np.uint8, "r"), name=path.name)
    again = read(write(graph).to_bytes())
    assert again.operators == graph.operators
    assert again.outputs == graph.outputs
    assert [dataclasses.replace(t, shape_known=True) for t in again.tensors] == [
        dataclasses.replace(t, shape_known=True) for t in graph.tensors
    ]
