"""Models, cards and shards on this disk: found by digest or recipe, written whole or not at all, within a budget."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshnn.device import records
from meshnn.device.part import Chunk, Kind, Part, digest_of_file, discard, hashed, pieces
from meshnn.device.records import refused
from meshnn.errors import ModelError, NodeError
from meshnn.graph.card import Card
from meshnn.graph.vet import vet

__all__ = ["Chunk", "Kind", "Part", "Store", "digest_of_file"]

_FOLDERS: dict[Kind, str] = {"model": "models", "shard": "shards", "card": "cards"}
_ENDINGS: dict[Kind, str] = {"model": ".tflite", "shard": ".tflite", "card": ".card"}
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_COPY_BYTES = 1 << 20
# Kept free whatever the budget says, for logs and records.
_MARGIN_BYTES = 8_000_000


@dataclass(slots=True)
class _File:
    """A finished file: its size, when it was last wanted (a counter), how many need it to stay."""

    size_bytes: int
    used: int
    pins: int = 0


class Store:
    """The state folder's files. All methods block on the disk: call them in a thread; several may at once.

    `disk_bytes` bounds all files together; shards, which can be cut or fetched again, go first when room is needed,
    the one not wanted for longest before the others. A disk or budget that is full is a NodeError and nothing worse.
    """

    def __init__(self, folder: Path, disk_bytes: int | None = None) -> None:
        """`disk_bytes` None is half of what is free. NodeError where the folder cannot be made."""
        self._folder = folder
        self._guard = threading.RLock()
        self._clock = itertools.count(1)
        self._files: dict[tuple[Kind, str], _File] = {}
        self._digests: dict[tuple[Kind, str], str] = {}
        self._parts: dict[Path, int] = {}
        self._writing: set[Path] = set()
        self._lock = records.FolderLock(folder)
        records.make_folder(folder)
        for name in _FOLDERS.values():
            records.make_folder(folder / name)
        try:
            self._scan()
        except OSError as error:
            raise refused(folder, error) from None
        self._budget_bytes = disk_bytes if disk_bytes is not None else (self._disk_free() + self.used_bytes()) // 2

    @property
    def folder(self) -> Path:
        """The state folder."""
        return self._folder

    @property
    def budget_bytes(self) -> int:
        """What all files together may take."""
        return self._budget_bytes

    def lock(self) -> None:
        """Take the state folder for this process and clear what a dead one left; NodeError where a node has it."""
        self._lock.acquire()
        records.drop_note(self._folder)
        for folder in (self._folder, *(self._folder / name for name in _FOLDERS.values())):
            for leftover in folder.glob(".tmp-*"):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def unlock(self) -> None:
        """Give the state folder back and withdraw the note for the command line. Twice is harmless."""
        if self._lock.held:
            records.drop_note(self._folder)
            self._lock.release()

    def load_record(self, name: str) -> dict[str, object]:
        """A small record by name, empty where none was saved; NodeError where it is damaged."""
        return records.load_record(self._folder, name)

    def save_record(self, name: str, record: dict[str, object]) -> None:
        """Save a small record; when this returns it is on the disk. NodeError where the disk refuses."""
        records.save_record(self._folder, name, record)

    def save_note(self, note: records.NodeNote) -> None:
        """Tell the commands of this machine how to reach the node; NodeError."""
        records.save_note(self._folder, note)

    def used_bytes(self) -> int:
        """What finished files and parts take."""
        with self._guard:
            return sum(file.size_bytes for file in self._files.values()) + sum(self._parts.values())

    def free_bytes(self) -> int:
        """What a new file may take: of the budget and of the disk, shards that can go not counted as taken."""
        with self._guard:
            evictable = sum(self._files[key].size_bytes for key in self._evictable())
            budget = self._budget_bytes - self.used_bytes()
            return max(0, min(budget, self._disk_free() - _MARGIN_BYTES) + evictable)

    def path(self, kind: Kind, key: str) -> Path | None:
        """The finished file of a key, None where it is not here. Counts as a use; cheap."""
        with self._guard:
            file = self._files.get((kind, key))
            if file is None:
                return None
            path = self._place(kind, key)
            if not path.exists():
                self._forget(kind, key)
                return None
            file.used = next(self._clock)
            return path

    def pin(self, kind: Kind, key: str) -> None:
        """Keep a file here until it is unpinned as often; a key that is not here is ignored."""
        with self._guard:
            if (kind, key) in self._files:
                self._files[kind, key].pins += 1

    def unpin(self, kind: Kind, key: str) -> None:
        """Undo one `pin`."""
        with self._guard:
            file = self._files.get((kind, key))
            if file is not None:
                file.pins = max(0, file.pins - 1)

    def drop(self, kind: Kind, key: str) -> None:
        """Delete a file, and its part; a key that is not here is ignored. What has it mapped keeps its pages."""
        if not _KEY.fullmatch(key):
            return
        with self._guard:
            self._forget(kind, key)
            part = self._place(kind, key, ".part")
            if part not in self._writing:
                self._parts.pop(part, None)
                discard(part)

    def digest_of(self, kind: Kind, key: str) -> str:
        """The sha256 of a file that is here, in hex, computed when first asked for; ModelError without it."""
        known = self._digests.get((kind, key))
        if known is not None:
            return known
        path = self.path(kind, key)
        if path is None:
            raise ModelError(f"no {kind} {key[:12]} on this device")
        digest = digest_of_file(path)
        with self._guard:
            self._digests[kind, key] = digest
        return digest

    def verify(self, kind: Kind, key: str, sha256: str) -> bool:
        """Whether a file is here and its bytes on the disk are those of the digest; it is dropped where they are not.

        Reads the whole file, which also brings it into memory for a load that follows.
        """
        path = self.path(kind, key)
        if path is None:
            return False
        if digest_of_file(path) == sha256:
            return True
        self.drop(kind, key)
        return False

    def held_models(self) -> dict[str, Card | None]:
        """The digests of the whole models here, each with its card where that is here and readable."""
        held: dict[str, Card | None] = {}
        with self._guard:
            digests = [key for kind, key in self._files if kind == "model"]
        for digest in digests:
            path = self.path("card", digest)
            held[digest] = None
            if path is not None:
                with contextlib.suppress(ModelError):
                    held[digest] = self.load_card(path)
        return held

    def add_model(self, source: Path) -> tuple[str, Path]:
        """Copy a file in as a model; its digest and its place. ModelError for the source, NodeError for the disk."""
        try:
            status = source.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{source} is no file")
            file = source.open("rb")
        except OSError as error:
            raise ModelError(f"{source}: {error.strerror}") from None
        hasher = hashlib.sha256()
        waiting = self._folder / _FOLDERS["model"] / f".tmp-add-{os.getpid()}-{next(self._clock)}"
        with file:
            self._make_room(status.st_size)
            records.write_atomically(waiting, self._counted(hashed(pieces(file, source), hasher)))
        digest = hasher.hexdigest()
        place = self._place("model", digest)
        self._adopt("model", digest, waiting)
        return digest, place

    def write_shard(self, key: str, chunks: Iterable[Chunk]) -> Path:
        """Write a shard that was cut here; NodeError where budget or disk refuse."""
        hasher = hashlib.sha256()
        place = self._place("shard", key)
        records.write_atomically(place, self._counted(hashed(chunks, hasher)))
        self._enter("shard", key, place, hasher.hexdigest())
        return place

    def save_card(self, card: Card) -> Path:
        """Write a card, under its model's digest; NodeError."""
        data = msgspec.msgpack.encode(card)
        place = self._place("card", card.digest)
        records.write_atomically(place, self._counted([data]))
        self._enter("card", card.digest, place, hashlib.sha256(data).hexdigest())
        return place

    def load_card(self, path: Path) -> Card:
        """Read a card file; ModelError where it is none of this version or not coherent, and the file is dropped."""
        try:
            card = msgspec.msgpack.decode(path.read_bytes(), type=Card)
            vet(card)
        except OSError as error:
            raise ModelError(f"no card at {path.name}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.drop("card", path.stem)
            raise ModelError(f"{path.name} is no model card: {error}") from None
        except ModelError:
            self.drop("card", path.stem)
            raise
        return card

    def open_part(self, kind: Kind, key: str, size_bytes: int) -> Part:
        """Begin or resume a file from elsewhere of at most `size_bytes`; NodeError where there is no room for it."""
        place = self._place(kind, key, ".part")
        with self._guard:
            if place in self._writing:
                raise NodeError(f"{kind} {key[:12]} is being written already")
            self._writing.add(place)
        try:
            return Part(self, kind, key, place, size_bytes)
        except BaseException:
            self.release_part(place)
            raise

    def room_for_part(self, place: Path, have_bytes: int, more_bytes: int) -> None:
        """Count a part and make room for more of it; NodeError. For `Part`."""
        with self._guard:
            self._parts[place] = have_bytes
        self._make_room(more_bytes)

    def release_part(self, place: Path, *, gone: bool = False) -> None:
        """A part is no longer written; `gone` where it is no more. For `Part`."""
        with self._guard:
            self._writing.discard(place)
            if gone:
                self._parts.pop(place, None)

    def take_part(self, kind: Kind, key: str, part: Path, sha256: str) -> Path:
        """A part has become whole; its final place. NodeError. For `Part`."""
        self._adopt(kind, key, part, sha256)
        return self._place(kind, key)

    def _scan(self) -> None:
        """Find what earlier lives left; the order of last uses is that of the files' times."""
        found: list[tuple[float, Kind, str, int]] = []
        for kind, name in _FOLDERS.items():
            for path in (self._folder / name).iterdir():
                if path.is_symlink() or not path.is_file() or not _KEY.fullmatch(path.stem):
                    continue
                status = path.stat()
                if path.suffix == ".part":
                    self._parts[path] = status.st_size
                elif path.suffix == _ENDINGS[kind]:
                    found.append((status.st_mtime, kind, path.stem, status.st_size))
        for _, kind, key, size_bytes in sorted(found):
            self._files[kind, key] = _File(size_bytes, next(self._clock))

    def _place(self, kind: Kind, key: str, ending: str = "") -> Path:
        """Where a key's file lies; ModelError for a key that could be a path, since keys come from peers."""
        if not _KEY.fullmatch(key):
            raise ModelError(f"{key[:40]!r} names no {kind}")
        return self._folder / _FOLDERS[kind] / f"{key}{ending or _ENDINGS[kind]}"

    def _adopt(self, kind: Kind, key: str, source: Path, sha256: str = "") -> None:
        """Give a finished temporary its name."""
        place = self._place(kind, key)
        try:
            source.replace(place)
            records.settle_folder(place.parent)
        except OSError as error:
            raise refused(place, error) from None
        self._enter(kind, key, place, sha256 or key)

    def _enter(self, kind: Kind, key: str, place: Path, sha256: str) -> None:
        with self._guard:
            pins = self._files[kind, key].pins if (kind, key) in self._files else 0
            self._files[kind, key] = _File(place.stat().st_size, next(self._clock), pins)
            self._digests[kind, key] = sha256

    def _forget(self, kind: Kind, key: str) -> None:
        """Delete a finished file and all that is known of it."""
        self._files.pop((kind, key), None)
        self._digests.pop((kind, key), None)
        discard(self._place(kind, key))

    def _evictable(self) -> list[tuple[Kind, str]]:
        """Shards that nothing holds, the one not wanted for longest first."""
        shards = [(file.used, key) for (kind, key), file in self._files.items() if kind == "shard" and not file.pins]
        return [("shard", key) for _, key in sorted(shards)]

    def _make_room(self, size_bytes: int) -> None:
        """Evict until `size_bytes` more fit in budget and disk; NodeError, evicting nothing, where they cannot."""
        with self._guard:
            short = self._shortage(size_bytes)
            if short <= 0:
                return
            stale = [part for part in self._parts if part not in self._writing]
            shards = self._evictable()
            reclaimable = sum(self._parts[part] for part in stale) + sum(self._files[key].size_bytes for key in shards)
            if reclaimable < short:
                raise NodeError(self._full(size_bytes))
            for part in stale:
                self._parts.pop(part)
                discard(part)
            for key in shards:
                if self._shortage(size_bytes) <= 0:
                    return
                self._forget(*key)
            # A file that a process has mapped keeps its place on the disk until it lets go.
            if self._shortage(size_bytes) > 0:
                raise NodeError(self._full(size_bytes))

    def _shortage(self, size_bytes: int) -> int:
        """How many bytes are missing before `size_bytes` more fit."""
        budget = self.used_bytes() + size_bytes - self._budget_bytes
        return max(budget, size_bytes + _MARGIN_BYTES - self._disk_free())

    def _full(self, size_bytes: int) -> str:
        return (
            f"no room for {_mb(size_bytes)} of model files: {_mb(self.used_bytes())} of the disk budget of "
            f"{_mb(self._budget_bytes)} are taken and {_mb(self._disk_free())} are free on the disk; "
            "raise --disk or remove a model"
        )

    def _counted(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks of a file that is being written, each once there is room for it and what came before."""
        ticket = self._folder / f".ticket-{next(self._clock)}"
        with self._guard:
            self._writing.add(ticket)
        written = 0
        try:
            for chunk in chunks:
                size_bytes = memoryview(chunk).nbytes
                self.room_for_part(ticket, written, size_bytes)
                written += size_bytes
                yield chunk
        finally:
            self.release_part(ticket, gone=True)

    def _disk_free(self) -> int:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError as error:
            raise refused(self._folder, error) from None


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
