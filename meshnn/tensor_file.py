"""Raw input tensors from an .npz file: untrusted, so sizes and types are checked before anything is unpacked."""

from __future__ import annotations

import io
import struct
import threading
import zipfile
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from meshnn.errors import InputError
from meshnn.graph.card import Card, CardTensor
from meshnn.input_file import check_size

Array: TypeAlias = npt.NDArray[np.generic]

# NumPy reads the header of an array as Python source, and Python 3.11 may raise SystemError ("AST constructor recursion
# depth mismatch") where two threads do so at once: whoever reads arrays in threads holds this meanwhile.
HEADERS = threading.Lock()

_HEADER_BYTES_MAX = 16_384
_MEMBERS_MAX = 4096
_FILE_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def is_npz(data: bytes) -> bool:
    """Whether bytes begin as a zip file does: no photo does."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read_npz(data: bytes, card: Card, name: str) -> dict[str, Array]:
    """Every input of the model by its name in the file, from members `input:NAME`, `NAME` or by position; InputError.

    Dtype and shape must be the card's. Members that are no inputs (a file that `ask --tensors` wrote has outputs
    too) are not looked at. Positions are `arr_0`, `arr_1` ..., as numpy numbers what is saved without names.
    """
    check_size(len(data), name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()[:_MEMBERS_MAX]}
            found = {}
            for position, tensor in enumerate(card.inputs):
                info = _member(members, tensor, position, name)
                found[tensor.name] = _read(archive, info, tensor, name)
            return found
    except _FILE_ERRORS as error:
        raise InputError(f"{name} cannot be read as an .npz file ({' '.join(str(error).split())[:120]})") from None


def _member(members: dict[str, zipfile.ZipInfo], tensor: CardTensor, position: int, name: str) -> zipfile.ZipInfo:
    """The member that holds one input."""
    for key in (f"input:{tensor.name}", tensor.name, f"arr_{position}", str(position)):
        if key in members:
            return members[key]
    there = ", ".join(list(members)[:8]) or "nothing"
    raise InputError(f"{name} has no input:{tensor.name} ({tensor.dtype}{list(tensor.shape)}); it holds {there}")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, tensor: CardTensor, name: str) -> Array:
    """One array of exactly the type and shape of the tensor; the header is judged before memory is taken."""
    dtype = np.dtype(tensor.dtype)
    expected_bytes = int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize
    if info.file_size > expected_bytes + _HEADER_BYTES_MAX:
        raise InputError(f"{name}: {info.filename} unpacks to {info.file_size} bytes, {expected_bytes} are wanted")
    with archive.open(info) as member:
        raw = io.BytesIO(member.read(expected_bytes + _HEADER_BYTES_MAX))
    with HEADERS:
        shape, found = _header(raw)
        if found.hasobject or found.newbyteorder("=") != dtype or shape != tensor.shape:
            raise InputError(
                f"{name}: {tensor.name} must be {tensor.dtype}{list(tensor.shape)}, not {found.name}{list(shape)}"
            )
        array: Array = np.lib.format.read_array(raw, allow_pickle=False)
    return np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(tensor.shape)


def _header(raw: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype of a .npy file, which is then at its beginning again."""
    version = np.lib.format.read_magic(raw)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(raw)
    raw.seek(0)
    return shape, dtype
