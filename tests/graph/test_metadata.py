"""Model Metadata: what a file says about itself, read without its schema, refused when it is broken."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import ModelError
from meshnn.graph import metadata, schema
from meshnn.graph.card import Normalisation
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.schema import Table
from meshnn.graph.writer import write
from tests.graph.networks import residual
from tests.shared_data import model

LABELS = ("cat", "dog, hound", "", "bird")


def _table(builder: Table, *fields: tuple[int, int | None, str]) -> int:
    """A flatbuffer table of (slot, offset or byte, kind)."""
    builder.StartObject(10)
    for slot, value, kind in fields:
        if kind == "byte":
            builder.PrependUint8Slot(slot, value, 0)
        elif value is not None:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    return int(builder.EndObject())


def _vector(builder: Table, *items: int) -> int:
    """A vector of offsets."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def _described(mean: float = 127.5, std: float = 64.0) -> bytes:
    """The metadata buffer of a classifier: a normalised input, an output `probability` with labels in `classes.txt`."""
    b = schema.builder(1024)
    means, stds = b.CreateNumpyVector(np.array([mean], np.float32)), b.CreateNumpyVector(np.array([std], np.float32))
    unit = _table(b, (0, 1, "byte"), (1, _table(b, (0, means, ""), (1, stds, "")), ""))
    source = _table(b, (4, _vector(b, unit), ""))
    name, label_file = b.CreateString("probability"), b.CreateString("classes.txt")
    answer = _table(b, (0, name, ""), (6, _vector(b, _table(b, (0, label_file, ""), (2, 2, "byte"))), ""))
    sub = _table(b, (2, _vector(b, source), ""), (3, _vector(b, answer), ""))
    b.Finish(_table(b, (3, _vector(b, sub), "")), b"M001")
    return bytes(b.Output())


def _file(described: bytes, *, labels: bytes | None = "\n".join(LABELS).encode()) -> bytes:
    """A model with this metadata buffer, and the label file in an archive behind it."""
    tables = schema.tables()
    raw = tables.ModelT.InitFromPackedBuf(write(residual()).to_bytes(), 0)
    raw.buffers.append(tables.BufferT(data=np.frombuffer(described, np.uint8)))
    raw.metadata = [tables.MetadataT(name="TFLITE_METADATA", buffer=len(raw.buffers) - 1)]
    builder = schema.builder(1 << 16)
    builder.Finish(raw.Pack(builder), b"TFL3")
    if labels is None:
        return bytes(builder.Output())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("classes.txt", labels)
    return bytes(builder.Output()) + archive.getvalue()


def test_labels_and_normalisation_are_read() -> None:
    """Labels keep commas and gaps; mean and deviation are the file's."""
    graph = read(_file(_described()))
    assert metadata.labels_of(graph) == LABELS
    assert metadata.normalisation_of(graph) == Normalisation((127.5,), (64.0,))
    assert metadata.output_names_of(graph) == ("probability",)


def test_a_model_without_metadata_has_neither() -> None:
    """Nothing is made up where the file says nothing."""
    graph = residual()
    assert metadata.labels_of(graph) == ()
    assert metadata.normalisation_of(graph) is None
    assert metadata.output_names_of(graph) == ()


def test_labels_named_but_absent_are_none() -> None:
    """A label file that is named, in an archive that does not hold it, gives no labels."""
    data = _file(_described(), labels=b"x").replace(b"classes.txt", b"clauses.txt", 1)
    assert metadata.labels_of(read(data)) == ()


@pytest.mark.parametrize("labels", [None, b""])
def test_no_archive_is_refused_and_an_empty_file_is_one_empty_label(labels: bytes | None) -> None:
    """Labels promised without an archive are a ModelError; the card notes it and the model stays usable."""
    graph = read(_file(_described(), labels=labels))
    if labels is None:
        with pytest.raises(ModelError, match="bad_metadata"):
            metadata.labels_of(graph)
        assert card_of(graph, "0" * 64, 1, "net").notes
    else:
        assert metadata.labels_of(graph) == ("",)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_normalisation_that_cannot_be_meant_is_refused(mean: float, std: float) -> None:
    """Division by zero and numbers that are none never reach an image."""
    with pytest.raises(ModelError, match="normalisation"):
        metadata.normalisation_of(read(_file(_described(mean, std))))


_WHOLE = _file(_described())
_WHERE = _WHOLE.index(_described())


@settings(max_examples=150)
@given(st.data())
def test_damaged_metadata_is_a_model_error(data: st.DataObject) -> None:
    """No damage to the metadata or to the archive behind the model raises anything but ModelError."""
    raw = bytearray(_WHOLE)
    archive = (raw.index(b"PK\x03\x04"), len(raw) - 1)
    for begin, end in ((_WHERE, _WHERE + len(_described()) - 1), archive):
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(begin, end))] = data.draw(st.integers(0, 255))
    graph = read(bytes(raw))
    for ask in (metadata.labels_of, metadata.normalisation_of, metadata.output_names_of):
        try:
            ask(graph)
        except ModelError:
            continue


@pytest.mark.parametrize(
    ("name", "count", "first", "mean"),
    [
        ("coral__mobilenet_v2_1.0_224_quant", 1001, "background", 127.5),
        ("tflite_support__automl_labeler_model", 5, "daisy", 0.0),
        ("tflite_support__mobilenet_v1_0.25_224_1_metadata_1", 1001, "background", 127.5),
    ],
)
def test_real_models_tell_their_labels(name: str, count: int, first: str, mean: float) -> None:
    """Public models with metadata: the right number of labels, in order, and the normalisation."""
    graph: Graph = read(np.memmap(model(name), np.uint8, "r"))
    labels, normalisation = metadata.labels_of(graph), metadata.normalisation_of(graph)
    assert (len(labels), labels[0]) == (count, first)
    assert normalisation is not None
    assert normalisation.mean == (mean,)
