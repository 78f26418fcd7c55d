"""The model that ships: its identity, its size, its shape as a test bed, its answers."""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests import shared_data
from tools.train_default import evaluation
from tools.train_default.photos import read_photos

_ROOT = Path(__file__).resolve().parents[1]
_MODELS = _ROOT / "models"
_FLOOR_TOP_1, _FLOOR_TOP_5 = 0.72, 0.93
_CLASSES = 20


def _catalogue() -> list[dict[str, Any]]:
    """The entries of the catalogue, the default model's first."""
    entries: list[dict[str, Any]] = tomllib.loads((_MODELS / "catalogue.toml").read_text())["model"]
    return entries


@pytest.fixture(scope="module")
def model() -> bytes:
    """The shipped file."""
    return (_MODELS / "default.tflite").read_bytes()


@pytest.fixture(scope="module")
def labels(model: bytes) -> list[str]:
    """The classes by number, out of the file itself."""
    return zipfile.ZipFile(io.BytesIO(model)).read("labels.txt").decode().splitlines()


def _answer(model: bytes, labels: list[str], photo: Path) -> str:
    """What the model takes a photo of any size for."""
    side = evaluation.interpreter_of(model).get_input_details()[0]["shape"][1]
    probabilities = evaluation.answers(model, evaluation.stretched(photo, int(side))[None])
    return labels[int(probabilities[0].argmax())]


def test_shipped_file_is_the_one_in_the_catalogue(model: bytes) -> None:
    """The file's sha256 and size are those that the catalogue states, and it is small enough for the wheel."""
    entry = _catalogue()[0]
    assert (entry["name"], entry["file"]) == ("default", "default.tflite")
    assert hashlib.sha256(model).hexdigest() == entry["sha256"]
    assert len(model) == entry["size_bytes"] <= 3_000_000


def test_readme_states_the_shipped_sha256() -> None:
    """What a person reads beside the model is about this file."""
    assert _catalogue()[0]["sha256"] in (_MODELS / "README.md").read_text()


def test_catalogue_entries_are_complete() -> None:
    """Every entry says where the file is, what it must hash to, and how it is fed; tried ones say their size."""
    entries = _catalogue()
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names) >= 6
    for entry in entries:
        assert len(entry["sha256"]) == 64
        assert int(entry["sha256"], 16) >= 0
        assert ("file" in entry) != entry["url"].startswith("https://")
        assert entry["task"] in {"classification", "detection", "segmentation"}
        assert len(entry["input"]["shape"]) == 4
        assert entry["input"]["dtype"] in {"uint8", "float32"}
        assert entry["input"]["std"] > 0
        assert "size_bytes" in entry or not entry["tried"]


def test_shared_files_are_what_the_catalogue_says() -> None:
    """The entries marked as tried name files whose sha256 and size we have seen."""
    if shared_data.SHARED is None:
        pytest.skip(shared_data.ABSENT)
    seen = {hashlib.sha256(path.read_bytes()).hexdigest(): path.stat().st_size for path in shared_data.models()}
    fetched = [entry for entry in _catalogue() if entry["tried"] and "file" not in entry]
    assert len(fetched) >= 4
    for entry in fetched:
        assert seen[entry["sha256"]] == entry["size_bytes"], entry["name"]


def test_takes_bytes_and_gives_probabilities(model: bytes, labels: list[str]) -> None:
    """Bytes of a photo go in unchanged; a probability in 1/256 per label comes out."""
    interpreter = evaluation.interpreter_of(model)
    entry, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (entry["dtype"], list(entry["shape"])) == (np.uint8, [1, 64, 64, 3])
    assert entry["quantization"] == (1 / 128, 128)
    assert (answer["dtype"], list(answer["shape"])) == (np.uint8, [1, _CLASSES])
    assert answer["quantization"] == (1 / 256, 0)
    assert len(labels) == len(set(labels)) == _CLASSES
    assert labels == sorted(labels)


def test_is_a_test_bed_for_splitting(model: bytes) -> None:
    """At least 20 operators, residual additions among them, integer inside, and activations larger than the input."""
    graph = schema.ModelT.InitFromPackedBuf(model, 0)
    codes = [code.builtinCode for code in graph.operatorCodes]
    part = graph.subgraphs[0]
    kinds = [codes[operator.opcodeIndex] for operator in part.operators]
    made = {operator.outputs[0] for operator in part.operators}
    sizes = [int(np.prod(part.tensors[number].shape)) for number in made]
    assert len(kinds) >= 20
    assert kinds.count(schema.BuiltinOperator.ADD) >= 4
    assert max(sizes) > 64 * 64 * 3
    assert {part.tensors[number].type for number in made} == {schema.TensorType.INT8, schema.TensorType.UINT8}


def test_reaches_its_accuracy_on_the_validation_photos(model: bytes, labels: list[str]) -> None:
    """All 2,550 validation photos, through the plain interpreter: not below the floor."""
    if shared_data.SHARED is None:
        pytest.skip(shared_data.ABSENT)
    photos = read_photos(shared_data.SHARED / "datasets" / "tiny20.tar", "val")
    assert len(photos) == 2550
    assert list(photos.labels) == labels
    verdict = evaluation.judged(model, photos)
    assert verdict.confusion.sum() == len(photos)
    assert verdict.top_1 >= _FLOOR_TOP_1
    assert verdict.top_5 >= _FLOOR_TOP_5


@pytest.mark.parametrize("photo", ["cat.png", "sleeping_cat.jpg"])
def test_answers_the_example_photos(photo: str, model: bytes, labels: list[str]) -> None:
    """The first thing that a newcomer asks is answered right."""
    assert _answer(model, labels, _ROOT / "examples" / photo) == "cat"


@pytest.mark.parametrize(
    ("photo", "answer"),
    [("coral_cat.bmp", "cat"), ("nnstreamer_orange.png", "fruit")],
)
def test_answers_photos_at_camera_size(photo: str, answer: str, model: bytes, labels: list[str]) -> None:
    """Photos of any size and shape, stretched to 64x64, are still known."""
    assert _answer(model, labels, shared_data.photo(photo)) == answer
