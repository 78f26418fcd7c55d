"""TFLite Model Metadata: what to feed the model and what its answers mean, inside the file itself."""

import io
import zipfile
from dataclasses import dataclass

import flatbuffers

LABEL_FILE = "labels.txt"
"""Name of the label file in the zip at the model's end."""

_RGB, _IMAGE, _FEATURE, _NORMALISATION, _AXIS_LABELS = 1, 2, 1, 1, 2


@dataclass(frozen=True, slots=True)
class Description:
    """What the metadata says of a classifier of RGB photos; `mean` and `deviation` apply to bytes 0..255."""

    name: str
    text: str
    version: str
    author: str
    licence: str
    mean: float
    deviation: float
    side: int


def metadata_buffer(about: Description) -> bytes:
    """The metadata as its own flatbuffer, identifier M001."""
    builder = flatbuffers.Builder(1024)
    entry = _tensor(builder, "image", "The photo, RGB, stretched to the model's size.", _image(builder, about))
    labels = _table(builder, {0: builder.CreateString(LABEL_FILE)}, {2: _AXIS_LABELS})
    answer = _tensor(builder, "probability", "Per class, 0 to 1.", (_FEATURE, _table(builder, {}, {})), labels)
    part = _table(builder, {2: _vector(builder, entry), 3: _vector(builder, answer)}, {})
    texts = {0: about.name, 1: about.text, 2: about.version, 4: about.author, 5: about.licence, 7: "1.0.0"}
    tables = {slot: builder.CreateString(text) for slot, text in texts.items()}
    tables[3] = _vector(builder, part)
    builder.Finish(_table(builder, tables, {}), file_identifier=b"M001")
    return bytes(builder.Output())


def with_labels(model: bytes, labels: tuple[str, ...]) -> bytes:
    """The model with a zip behind it that holds the label file; the same bytes for the same labels."""
    stream = io.BytesIO()
    stream.write(model)
    with zipfile.ZipFile(stream, "a") as archive:
        entry = zipfile.ZipInfo(LABEL_FILE, date_time=(1980, 1, 1, 0, 0, 0))
        archive.writestr(entry, "\n".join(labels) + "\n")
    return stream.getvalue()


def _image(builder: flatbuffers.Builder, about: Description) -> tuple[int, int, int]:
    """The content of an image tensor and how it is normalised: type, properties, process units."""
    builder.StartObject(2)
    builder.PrependUint32Slot(0, about.side, 0)
    builder.PrependUint32Slot(1, about.side, 0)
    size = builder.EndObject()
    properties = _table(builder, {1: size}, {0: _RGB})
    mean, deviation = _floats(builder, about.mean), _floats(builder, about.deviation)
    options = _table(builder, {0: mean, 1: deviation}, {})
    unit = _table(builder, {1: options}, {0: _NORMALISATION})
    return _IMAGE, properties, _vector(builder, unit)


def _tensor(
    builder: flatbuffers.Builder, name: str, text: str, content: tuple[int, ...], labels: int | None = None
) -> int:
    """A TensorMetadata table; `content` is (type, properties) and, where there are any, the process units."""
    described = _table(builder, {1: content[1]}, {0: content[0]})
    tables = {0: builder.CreateString(name), 1: builder.CreateString(text), 3: described}
    if len(content) == 3:
        tables[4] = content[2]
    if labels is not None:
        tables[6] = _vector(builder, labels)
    return _table(builder, tables, {})


def _table(builder: flatbuffers.Builder, tables: dict[int, int], small: dict[int, int]) -> int:
    """A table with offsets in the slots of `tables` and one-byte numbers in those of `small`."""
    builder.StartObject(max([*tables, *small], default=-1) + 1)
    for slot, offset in tables.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, value in small.items():
        builder.PrependInt8Slot(slot, value, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offset: int) -> int:
    """A vector of one table."""
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: flatbuffers.Builder, value: float) -> int:
    """A vector of one float32."""
    builder.StartVector(4, 1, 4)
    builder.PrependFloat32(value)
    return int(builder.EndVector())
