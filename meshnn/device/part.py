"""A file that comes in pieces from elsewhere: kept between attempts, counted while it grows, checked at its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal, Protocol

from meshnn.device import records
from meshnn.device.records import refused
from meshnn.errors import ModelError, PeerError

Kind = Literal["model", "shard", "card"]
Chunk = bytes | bytearray | memoryview

_COPY_BYTES = 1 << 20


class Rooms(Protocol):
    """The store, as a part of it sees it."""

    def room_for_part(self, place: Path, have_bytes: int, more_bytes: int) -> None:
        """Count a part and make room for more of it; NodeError."""

    def release_part(self, place: Path, *, gone: bool = False) -> None:
        """A part is no longer written; `gone` where it is no more."""

    def take_part(self, kind: Kind, key: str, part: Path, sha256: str) -> Path:
        """A part has become whole; its final place. NodeError."""


class Part:
    """A file that comes in pieces, kept as `.part` between attempts; `offset` is where the next piece begins."""

    def __init__(self, store: Rooms, kind: Kind, key: str, place: Path, size_bytes: int) -> None:
        """Made by `Store.open_part`: opens what an earlier attempt left, unless that is too long to be a beginning."""
        self._store = store
        self._kind: Kind = kind
        self._key = key
        self._place = place
        self._size_bytes = size_bytes
        self._hasher = hashlib.sha256()
        self.offset = 0
        """Bytes that are here."""
        try:
            self._file = place.open("r+b" if place.exists() else "w+b")
        except OSError as error:
            raise refused(place, error) from None
        try:
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def _resume(self) -> None:
        try:
            have_bytes = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            if have_bytes > self._size_bytes:
                self._file.truncate()
            for piece in pieces(self._file, self._place):
                self._hasher.update(piece)
                self.offset += len(piece)
        except OSError as error:
            raise refused(self._place, error) from None
        # A card's true size is not known beforehand: its room is found as it comes.
        more_bytes = 0 if self._kind == "card" else self._size_bytes - self.offset
        self._store.room_for_part(self._place, self.offset, more_bytes)

    def write(self, data: Chunk) -> None:
        """Add the next piece; PeerError beyond the size, NodeError where budget or disk refuse."""
        size_bytes = memoryview(data).nbytes
        if self.offset + size_bytes > self._size_bytes:
            raise PeerError(f"{self._kind} {self._key[:12]} is longer than its {self._size_bytes} bytes")
        self._store.room_for_part(self._place, self.offset, size_bytes)
        try:
            self._file.seek(self.offset)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise refused(self._place, error) from None
        self._hasher.update(data)
        self.offset += size_bytes

    def finish(self, sha256: str) -> Path:
        """All is here: the finished file's place. PeerError (and the part is gone) where the digest differs.

        A model's digest is its key; of other kinds an empty `sha256` says that nobody knows it.
        """
        expected = self._key if self._kind == "model" else sha256
        found = self._hasher.hexdigest()
        if expected and found != expected:
            self._throw_away()
            raise PeerError(f"{self._kind} {self._key[:12]} arrived with the digest {found[:12]}, not {expected[:12]}")
        try:
            self._file.truncate(self.offset)
            self._file.flush()
            records.settle(self._file.fileno())
        except OSError as error:
            raise refused(self._place, error) from None
        self._file.close()
        place = self._store.take_part(self._kind, self._key, self._place, found)
        self._store.release_part(self._place, gone=True)
        return place

    def close(self) -> None:
        """Leave the part for a later attempt; after `finish` nothing is left to do. Twice is harmless."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()
            self._store.release_part(self._place)

    def _throw_away(self) -> None:
        self._file.close()
        discard(self._place)
        self._store.release_part(self._place, gone=True)


def digest_of_file(path: Path) -> str:
    """The sha256 of a file, in hex, read in pieces; ModelError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None


def pieces(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """A file from where it stands to its end; ModelError where it cannot be read."""
    while True:
        try:
            piece = file.read(_COPY_BYTES)
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        if not piece:
            return
        yield piece


def hashed(chunks: Iterable[Chunk], hasher: hashlib._Hash) -> Iterator[Chunk]:
    """The chunks as they come, each counted into the digest."""
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def discard(path: Path) -> None:
    """Delete a file; one that is gone, or that the system keeps, is no matter."""
    with contextlib.suppress(OSError):
        path.unlink()
