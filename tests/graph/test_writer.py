"""Writing: equal bytes for equal graphs, aligned weights, the large form without copies, both forms run alike."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from meshnn.graph import cut
from meshnn.graph.builder import random_inputs
from meshnn.graph.reader import read
from meshnn.graph.writer import write
from tests.graph.networks import chain, residual
from tools.run_graph import run_bytes


def test_equal_graphs_give_equal_bytes() -> None:
    """Two writings of one network, built twice from one seed, are the same file."""
    assert write(residual("int8")).to_bytes() == write(residual("int8")).to_bytes()


def test_chunks_are_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming the chunks gives exactly `size_bytes` bytes, whose hash is the file's."""
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    written = write(residual())
    digest, size = hashlib.sha256(), 0
    for chunk in written.chunks():
        digest.update(chunk)
        size += len(chunk)
    assert size == written.size_bytes
    assert digest.hexdigest() == hashlib.sha256(written.to_bytes()).hexdigest()


@pytest.mark.parametrize(("large", "step"), [(4 << 20, 16), (16, 64)])
def test_weights_are_aligned(large: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every constant begins at a multiple of 16 in the ordinary form, of 64 in the large one."""
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", large)
    graph = read(np.frombuffer(write(residual("float16")).to_bytes(), np.uint8))
    assert graph.file is not None
    begin = graph.file.__array_interface__["data"][0]
    places = [
        t.data.__array_interface__["data"][0] - begin for t in graph.tensors if t.data is not None and t.data.size
    ]
    assert places
    assert all(place % step == 0 for place in places)


def test_the_large_form_holds_views_not_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces behind the header are the graph's own arrays."""
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    graph = chain()
    mine = {t.data.__array_interface__["data"][0] for t in graph.tensors if t.data is not None}
    assert {view.__array_interface__["data"][0] for _, view in write(graph).views} == mine


def test_both_forms_run_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime gives equal bytes for the ordinary and the large form."""
    graph = residual("int8")
    inputs = list(random_inputs(graph, np.random.default_rng(0)).values())
    inside = run_bytes(write(graph).to_bytes(), inputs)
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    behind = run_bytes(write(graph).to_bytes(), inputs)
    assert [a.tobytes() for a in inside] == [a.tobytes() for a in behind]


def test_shared_weights_are_written_once() -> None:
    """A constant that two tensors share is one buffer in the file."""
    graph = chain(length=2)
    whole = write(graph).size_bytes
    twin = cut.compact(graph)
    tensors = list(twin.tensors)
    constants = [i for i, t in enumerate(tensors) if t.data is not None and len(t.shape) == 4]
    sizes = {tensors[i].size_bytes for i in constants}
    assert len(constants) == 2
    assert len(sizes) == 2  # the two kernels differ in size: nothing was shared before
    biases = [i for i, t in enumerate(tensors) if t.data is not None and len(t.shape) == 1]
    tensors[biases[1]] = dataclasses.replace(tensors[biases[1]], data=tensors[biases[0]].data)
    assert write(dataclasses.replace(twin, tensors=tuple(tensors))).size_bytes < whole
