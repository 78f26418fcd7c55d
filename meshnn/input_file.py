"""The bytes of an input from its path, with one clear line where there are none. Imports nothing heavy."""

from __future__ import annotations

import stat
from pathlib import Path

from meshnn.errors import InputError

INPUT_BYTES_MAX = 256_000_000
"""The largest input file that is read."""


def read_file(path: Path) -> bytes:
    """All bytes of a photo or tensor file; InputError for a folder, a missing, an empty or an over-large file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a folder: name a photo or an .npz file")
        check_size(status.st_size if stat.S_ISREG(status.st_mode) else None, str(path))
        with path.open("rb") as file:
            data = file.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    check_size(len(data), str(path))
    return data


def check_size(size_bytes: int | None, name: str) -> None:
    """Refuse what is empty or too large; None is a size nobody knows yet."""
    if size_bytes == 0:
        raise InputError(f"{name} is empty")
    if size_bytes is not None and size_bytes > INPUT_BYTES_MAX:
        raise InputError(f"{name} has {size_bytes / 1e6:.0f} MB: at most {INPUT_BYTES_MAX / 1e6:.0f} MB are read")
