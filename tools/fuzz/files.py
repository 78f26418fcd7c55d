"""The borders of files: models, their metadata and cards, photos, tensors, records, notes and settings."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from meshnn.client import find
from meshnn.config import compose, from_toml
from meshnn.device.records import NodeNote, load_record, running_node
from meshnn.device.store import Store
from meshnn.errors import InputError, MeshError, ModelError, NodeError, UsageError
from meshnn.graph.builder import Builder
from meshnn.graph.card import Card, CardTensor, Normalisation
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.metadata import METADATA_NAME, labels_of, normalisation_of, output_names_of
from meshnn.graph.reader import read
from meshnn.graph.schema import Table, builder
from meshnn.graph.writer import write
from meshnn.node.past import remember
from meshnn.tensor_file import read_npz
from meshnn.vision import read_photo, to_tensor
from tools.fuzz.border import Border
from tools.fuzz.mutate import mutated, spoilt

DIGEST = "d" * 64
SIDE = 24


@dataclass
class Spoilt:
    """A border that takes bytes: good ones are spoilt, one after the other."""

    good: Sequence[bytes]
    reader: Callable[[bytes], None]

    def draw(self, rng: random.Random) -> bytes:
        """A good input, spoilt."""
        return mutated(rng, rng.choice(self.good), self.good)

    def take(self, given: object) -> None:
        """Read it."""
        assert isinstance(given, bytes)
        self.reader(given)

    def close(self) -> None:
        """Nothing is left."""


# -- models


def small_graph(precision: str = "float32") -> Graph:
    """A small network with most forms of operator."""
    b = Builder(np.random.default_rng(1), "int8" if precision == "int8" else "float32")
    x = b.input(1, 9, 8, 3, name="image")
    y = b.conv(x, 4, activation="RELU6", stride=(2, 2))
    z = b.depthwise(b.conv(y, 6, (1, 1)), activation="RELU6")
    y = b.concat(b.add(y, b.conv(z, 4, (1, 1))), b.pool(y, same=True, stride=(1, 1)))
    return b.graph(b.softmax(b.fully_connected(b.reshape(b.conv(y, 4), 1, 80), 5)))


def _table(b: Table, *fields: tuple[int, int, bool]) -> int:
    """A flatbuffer table of (slot, offset or byte, whether it is a byte)."""
    b.StartObject(10)
    for slot, value, is_byte in fields:
        if is_byte:
            b.PrependUint8Slot(slot, value, 0)
        else:
            b.PrependUOffsetTRelativeSlot(slot, value, 0)
    return int(b.EndObject())


def _vector(b: Table, *items: int) -> int:
    b.StartVector(4, len(items), 4)
    for item in reversed(items):
        b.PrependUOffsetTRelative(item)
    return int(b.EndVector())


def metadata_bytes() -> bytes:
    """The metadata buffer of a classifier: a normalised input, an output whose labels are in `classes.txt`."""
    b = builder(1024)
    means, stds = b.CreateNumpyVector(np.array([127.5], np.float32)), b.CreateNumpyVector(np.array([64], np.float32))
    unit = _table(b, (0, 1, True), (1, _table(b, (0, means, False), (1, stds, False)), False))
    source = _table(b, (4, _vector(b, unit), False))
    name, labels = b.CreateString("probability"), b.CreateString("classes.txt")
    answer = _table(b, (0, name, False), (6, _vector(b, _table(b, (0, labels, False), (2, 2, True))), False))
    sub = _table(b, (2, _vector(b, source), False), (3, _vector(b, answer), False))
    b.Finish(_table(b, (3, _vector(b, sub), False)), b"M001")
    return bytes(b.Output())


def label_archive(compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip file that lies behind such a model."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as made:
        made.writestr("classes.txt", "cat\ndog, hound\n\nbird\n")
        made.writestr("other.txt", "x" * 300)
    return archive.getvalue()


def _read_model(data: bytes) -> None:
    """What adding a model does with its file before anything runs: read, describe, look at its metadata."""
    graph = read(data)
    card_of(graph, DIGEST, len(data), "fuzzed")


def tiny_graphs(precision: str) -> list[Graph]:
    """Networks of one to three operators: together the forms of `small_graph`, each quick to read."""
    forms: tuple[Callable[[Builder, int], int], ...] = (
        lambda b, x: b.conv(x, 2, activation="RELU6", stride=(2, 2)),
        lambda b, x: b.depthwise(b.conv(x, 3, (1, 1)), activation="RELU6"),
        lambda b, x: b.concat(b.add(x, x), b.pool(x, same=True, stride=(1, 1))),
        lambda b, x: b.softmax(b.fully_connected(b.reshape(x, 1, 36), 5)),
    )
    made: list[Graph] = []
    for form in forms:
        b = Builder(np.random.default_rng(1), "int8" if precision == "int8" else "float32")
        made.append(b.graph(form(b, b.input(1, 4, 3, 3, name="image"))))
    return made


def _model(rng: random.Random, folder: Path) -> Spoilt:
    graphs = [small_graph(), *tiny_graphs("float32"), *tiny_graphs("int8")]
    return Spoilt([write(graph).to_bytes() for graph in graphs], _read_model)


class MetadataTarget:
    """A model's metadata buffer and the archive at its end, spoilt each for itself."""

    def __init__(self) -> None:
        """Good ones, stored and deflated."""
        self._graph = small_graph()
        self._described = metadata_bytes()
        self._archives = [label_archive(), label_archive(zipfile.ZIP_DEFLATED)]

    def draw(self, rng: random.Random) -> tuple[bytes, bytes]:
        """A metadata buffer and an archive."""
        described = mutated(rng, self._described) if rng.random() < 0.6 else self._described
        archive = rng.choice(self._archives)
        return described, mutated(rng, archive, self._archives) if rng.random() < 0.7 else archive

    def take(self, given: object) -> None:
        """Read all that it may say, each whatever became of the others."""
        assert isinstance(given, tuple)
        described, archive = (np.frombuffer(part, np.uint8) for part in given)
        whole = Graph(
            operators=self._graph.operators,
            tensors=self._graph.tensors,
            inputs=self._graph.inputs,
            outputs=self._graph.outputs,
            metadata=((METADATA_NAME, described),),
            file=archive,
        )
        refused: ModelError | None = None
        for ask in (labels_of, normalisation_of, output_names_of):
            try:
                ask(whole)
            except ModelError as error:
                refused = error
        if refused is not None:
            raise refused

    def close(self) -> None:
        """Nothing is left."""


def _metadata(rng: random.Random, folder: Path) -> MetadataTarget:
    return MetadataTarget()


class CardTarget:
    """Cards as a peer sends them, spoilt as values and as bytes; what is vetted is computed with."""

    def __init__(self, folder: Path) -> None:
        """A store to read them with."""
        data = write(small_graph()).to_bytes()
        self._card = card_of(small_graph(), DIGEST, len(data), "fuzzed")
        self._builtins = msgspec.to_builtins(self._card)
        self._packed = msgspec.msgpack.encode(self._card)
        self._store = Store(folder / "cards", 10**9)
        self._path = folder / "card.bin"

    def draw(self, rng: random.Random) -> bytes:
        """A card's file."""
        if rng.random() < 0.3:
            return mutated(rng, self._packed)
        value: object = self._builtins
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = spoilt(rng, value)
        try:
            return msgspec.msgpack.encode(value)
        except (OverflowError, ValueError):
            return b""

    def take(self, given: object) -> None:
        """Load it, and ask it what a planner asks."""
        assert isinstance(given, bytes)
        self._path.write_bytes(given)
        card = self._store.load_card(self._path)
        _ask(card)

    def close(self) -> None:
        """Nothing is left."""


def _ask(card: Card) -> None:
    total = len(card.operators)
    for position in range(min(total, 40) + 1):
        card.cuttable(position)
        card.crossing(position)
        card.refusal(0, position - 1)
        if position < total:
            card.fragment_inputs(position, position)
            card.fragment_outputs(0, position)


def _card(rng: random.Random, folder: Path) -> CardTarget:
    return CardTarget(folder)


# -- inputs


def _image_card() -> Card:
    tensor = CardTensor(0, "image", (1, SIDE, SIDE, 3), "float32", SIDE * SIDE * 12)
    return Card(1, DIGEST, "m", 1, (tensor,), (tensor,), (), (tensor,), normalisation=Normalisation((127.5,), (127.5,)))


def photos() -> list[bytes]:
    """Small photos in every format people have, in several modes."""
    rng = np.random.default_rng(1)
    colour = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE + 3, 3), dtype=np.uint8))
    forms: list[tuple[str, dict[str, object]]] = [
        ("PNG", {}),
        ("JPEG", {"quality": 60}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("WEBP", {"quality": 50}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ]
    made = []
    for form, options in forms:
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            colour.convert(mode).save(file, form, **options)
            made.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    colour.save(file, "JPEG", exif=exif)
    return [*made, file.getvalue(), *(_odd_png(colour, mode) for mode in ("P", "I;16", "1", "RGBA"))]


def _odd_png(colour: Image.Image, mode: str) -> bytes:
    file = io.BytesIO()
    (colour.convert("L").convert("I;16") if mode == "I;16" else colour.convert(mode)).save(file, "PNG")
    return file.getvalue()


def _photo(rng: random.Random, folder: Path) -> Spoilt:
    card = _image_card()

    def take(data: bytes) -> None:
        to_tensor(read_photo(data, "photo"), card)

    return Spoilt(photos(), take)


def _npz(rng: random.Random, folder: Path) -> Spoilt:
    tensor = CardTensor(0, "x", (1, 4, 3), "float32", 48)
    second = CardTensor(1, "y", (2,), "int8", 2)
    card = Card(1, DIGEST, "m", 1, (tensor, second), (tensor,), (), (tensor, second))
    arrays: dict[str, Any] = {"input:x": np.zeros((1, 4, 3), np.float32), "y": np.ones(2, np.int8)}
    good = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        good.append(file.getvalue())

    def take(data: bytes) -> None:
        read_npz(data, card, "tensors")

    return Spoilt(good, take)


# -- what a device keeps, and what a person wrote


class Records:
    """The small files of a state folder, spoilt as bytes and as values; a device on a shelf must start with them."""

    def __init__(self, folder: Path) -> None:
        """A store whose records are there to be spoilt."""
        self._folder = folder / "records"
        self._store = Store(self._folder, 10**9)
        name = {"name": "cat", "digest": DIGEST, "size_bytes": 5, "stamp": 1, "device": "a" * 26}
        self._good: dict[str, object] = {
            "term": {"term": 4, "voted_for": "a" * 26},
            "incarnation": {"incarnation": 1_700_000_000_000},
            "names": {"records": [name, {**name, "removed": True}]},
            "peers": {"peers": [["127.0.0.1", 7766], ["10.0.0.2", 7766]]},
        }

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        """A record and its bytes."""
        key = rng.choice(list(self._good))
        good = json.dumps(self._good[key]).encode()
        if rng.random() < 0.5:
            return key, mutated(rng, good, [b"[" * 3000, b'{"a":' * 3000])
        return key, json.dumps(spoilt(rng, self._good[key]), default=repr).encode()

    def take(self, given: object) -> None:
        """Read it as a start does (which never fails), then as itself."""
        assert isinstance(given, tuple)
        name, data = given
        path = self._folder / f"{name}.json"
        path.write_bytes(data)
        past = remember(self._store)
        assert 0 <= past.term < 2**62
        assert 0 <= past.incarnation < 2**62
        load_record(self._folder, name)

    def close(self) -> None:
        """Nothing is left."""


def _records(rng: random.Random, folder: Path) -> Records:
    return Records(folder)


class Notes:
    """`node.json` as a command finds it, spoilt as bytes and as values."""

    def __init__(self, folder: Path) -> None:
        """A folder with a note."""
        self._folder = folder
        self._good = msgspec.to_builtins(NodeNote(7766, 7767, 1, "a" * 26, ""))

    def draw(self, rng: random.Random) -> bytes:
        """The note's bytes."""
        if rng.random() < 0.5:
            return mutated(rng, json.dumps(self._good).encode())
        return json.dumps(spoilt(rng, self._good), default=repr).encode()

    def take(self, given: object) -> None:
        """Look for the running node; what is found can be called."""
        assert isinstance(given, bytes)
        (self._folder / "node.json").write_bytes(given)
        note = running_node(self._folder)
        if note is None:
            find(self._folder)
        assert note is None or (1 <= note.http_port <= 65535 and note.pid > 0), "a note nobody can use"

    def close(self) -> None:
        """Nothing is left."""


def _note(rng: random.Random, folder: Path) -> Notes:
    return Notes(folder)


SETTINGS_TEXT = """name = "kitchen"
mesh = "home"
memory = "256MB"
disk = 2_000_000_000
threads = 2
peers = ["pi.local:7766", "[fe80::1]:7766"]
state_dir = "~/state"
interface = "127.0.0.1"
port = 7766
http_port = 0x1e57
log = "info"
"""


def _read_settings(text: bytes) -> None:
    compose([from_toml(text.decode("utf-8", "replace"), "config.toml")])


def _config(rng: random.Random, folder: Path) -> Spoilt:
    odd = [
        'memory = "' + "9" * 400 + 'GB"\n',
        "disk = " + "9" * 5000 + "\n",
        "port = 0x" + "f" * 5000 + "\n",
        'state_dir = "~nobody-here/x"\n',
        "name = " + "[" * 2000 + "\n",
        "a" + ".a" * 2000 + " = 1\n",
        "threads = inf\nlog = nan\nname = 1979-05-27T07:32:00Z\n",
    ]
    lines = SETTINGS_TEXT.splitlines(keepends=True)
    good = [SETTINGS_TEXT, *lines, *odd, *(line + other for line in lines for other in odd)]
    return Spoilt([one.encode() for one in good], _read_settings)


BORDERS = (
    Border("model", _model, (ModelError,), share=0.1, suspicious_s=0.02),
    Border("metadata", _metadata, (ModelError,)),
    Border("card", _card, (ModelError,), share=0.5),
    # The pixels that a header claims are memory that Pillow takes: bounded by PIXELS_MAX, not by the input.
    Border("photo", _photo, (InputError,), share=0.2, measures_memory=False),
    Border("npz", _npz, (InputError,)),
    Border("record", _records, (NodeError,), share=0.3),
    Border("note", _note, (MeshError,), share=0.5),
    Border("config", _config, (UsageError,)),
)
