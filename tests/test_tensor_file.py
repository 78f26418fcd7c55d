"""Raw tensors from .npz files: found by name or place, judged before they are unpacked, refused in one line."""

from __future__ import annotations

import io
import random
import struct
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from meshnn import vision
from meshnn.errors import InputError
from meshnn.graph.card import CARD_VERSION, Card, CardTensor


def tensor(shape: tuple[int, ...], dtype: str, name: str = "in") -> CardTensor:
    """One input of a card."""
    return CardTensor(0, name, shape, dtype, 0)


def card(*inputs: CardTensor) -> Card:
    """A card with these inputs."""
    return Card(CARD_VERSION, "d", "model", 1, inputs, (), (), ())


def npz(**arrays: object) -> bytes:
    """An .npz file."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


PAIR = card(tensor((1, 2), "float32", "a/x:0"), tensor((3,), "int8", "b"))
A = np.array([[1.5, 2.5]], np.float32)
B = np.array([1, 2, 3], np.int8)


@pytest.mark.parametrize("names", [("input:a/x:0", "input:b"), ("a/x:0", "b"), ("arr_0", "arr_1"), ("0", "1")])
def test_tensors_are_found_by_name_or_place(names: tuple[str, str]) -> None:
    """As `ask --tensors` wrote them, by their bare names, or in order; outputs beside them do not matter."""
    made = vision.read_inputs(npz(**{names[0]: A, names[1]: B, "output:y": np.zeros(9)}), "t.npz", PAIR)
    np.testing.assert_array_equal(made["a/x:0"], A)
    np.testing.assert_array_equal(made["b"], B)
    assert [value.dtype for value in made.values()] == [np.float32, np.int8]


def test_order_in_memory_and_of_bytes_does_not_matter() -> None:
    """Fortran order and big-endian numbers arrive as plain ones."""
    wanted = card(tensor((2, 3), "float32"))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given in (np.asfortranarray(values), values.astype(">f4")):
        made = vision.read_inputs(npz(arr_0=given), "t.npz", wanted)["in"]
        np.testing.assert_array_equal(made, values)
        assert made.dtype == np.dtype("float32")
        assert made.flags.c_contiguous


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (npz(b=B), r"has no input:a/x:0 \(float32\[1, 2\]\); it holds b"),
        (npz(**{"a/x:0": A.astype(np.float64), "b": B}), r"a/x:0 must be float32\[1, 2\], not float64\[1, 2\]"),
        (npz(**{"a/x:0": A, "b": B[:2]}), r"b must be int8\[3\], not int8\[2\]"),
        (npz(**{"a/x:0": A, "b": np.array([None, 1, 2])}), "b must be int8"),
        (npz(**{"a/x:0": A, "b": np.zeros(50_000_000, np.int8)}), "unpacks to"),
        (b"PK\x03\x04 not really", "cannot be read as an .npz file"),
        (npz(**{"a/x:0": A, "b": B})[:-30], "cannot be read as an .npz file"),
    ],
    ids=["missing", "dtype", "shape", "pickle", "bomb", "garbage", "truncated"],
)
def test_a_tensor_file_that_does_not_fit_is_one_line(data: bytes, line: str) -> None:
    """Each fault names the tensor, what it must be and what it is; nothing is unpickled or unpacked beyond its size."""
    with pytest.raises(InputError, match=line) as error:
        vision.read_inputs(data, "t.npz", PAIR)
    assert "\n" not in str(error.value)


def test_a_header_that_lies_takes_no_memory() -> None:
    """A header claiming a terabyte is judged before anything is allocated."""
    header = b"{'descr': '|i1', 'fortran_order': False, 'shape': (1000000000000,), }"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("arr_0.npy", body)
    with pytest.raises(InputError, match=r"must be int8\[3\]"):
        vision.read_inputs(out.getvalue(), "t.npz", card(tensor((3,), "int8")))


def test_no_spoilt_tensor_file_escapes_as_another_error() -> None:
    """Flipped bytes in an .npz: tensors or an InputError, never anything else."""
    chance = random.Random(6)
    whole = npz(**{"a/x:0": A, "b": B})
    lines: list[str] = []
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[chance.randrange(4, len(spoilt))] = chance.randrange(256)
        try:
            vision.read_inputs(bytes(spoilt), "t.npz", PAIR)
        except InputError as error:
            lines.append(str(error))
    assert lines
    assert not [line for line in lines if "\n" in line]


def test_headers_are_read_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy reads them as Python source, which threads of Python 3.11 may not do together: a request was lost by it."""
    read: Callable[..., object] = np.lib.format.read_array_header_1_0
    inside, together = threading.Semaphore(1), threading.Event()

    def watched(file: io.BytesIO) -> object:
        if not inside.acquire(blocking=False):
            together.set()
            return read(file)
        try:
            # Whoever comes while this one waits is seen.
            together.wait(0.05)
            return read(file)
        finally:
            inside.release()

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", watched)
    data = npz(arr_0=A, arr_1=B)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: vision.read_inputs(data, "in.npz", PAIR), range(4)))
    assert not together.is_set()
    assert all(np.array_equal(inputs["b"], B) for inputs in found)
