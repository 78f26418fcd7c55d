"""The state folder of a node: who has it, small records that survive a power cut, the note for the command line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from meshnn.errors import NodeError

if sys.platform != "win32":
    import fcntl

NOTE = "node.json"
_LOCK = "lock"
_RECORD_BYTES_MAX = 32 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
# What msgspec raises on damaged JSON: a text that is no UTF-8 and one nested too deep are not its DecodeError.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class NodeNote(msgspec.Struct, frozen=True):
    """How a command on this machine reaches its running node; readable by its user alone, for the token's sake."""

    port: _Port
    http_port: _Port
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    device_id: str
    token: str


def make_folder(folder: Path) -> None:
    """A folder for this user alone, with its parents; NodeError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from None


def refused(path: Path, error: OSError) -> NodeError:
    """The line for a disk that says no."""
    return NodeError(f"the disk refuses {path}: {error.strerror or error}")


def write_atomically(path: Path, chunks: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a whole file or nothing: a temporary beside it, on disk, then renamed; NodeError where the disk refuses."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            settle(file.fileno())
        Path(temporary).replace(path)
        settle_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise refused(path, error) from None
        raise


def settle(descriptor: int) -> None:
    """Wait until an open file is on the disk itself."""
    os.fsync(descriptor)


def settle_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk itself, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        settle(descriptor)
    finally:
        os.close(descriptor)


def load_record(folder: Path, name: str) -> dict[str, object]:
    """A small record by name, empty where none was saved; NodeError where the file cannot be read."""
    path = _record_path(folder, name)
    try:
        if path.stat().st_size > _RECORD_BYTES_MAX:
            raise NodeError(f"{path} is too large to be ours: remove it")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise refused(path, error) from None
    except _UNREADABLE:
        raise NodeError(f"{path} is damaged: remove it to start without it") from None


def save_record(folder: Path, name: str, record: dict[str, object]) -> None:
    """Save a small record; when this returns it is on the disk. NodeError where the disk refuses."""
    write_atomically(_record_path(folder, name), [msgspec.json.encode(record)])


def _record_path(folder: Path, name: str) -> Path:
    assert _NAME.fullmatch(name), name
    return folder / f"{name}.json"


def save_note(folder: Path, note: NodeNote) -> None:
    """Tell the commands of this machine how to reach the node; NodeError."""
    write_atomically(folder / NOTE, [msgspec.json.encode(note)])


def drop_note(folder: Path) -> None:
    """The node is going: commands find none any more."""
    with contextlib.suppress(OSError):
        (folder / NOTE).unlink()


def running_node(folder: Path) -> NodeNote | None:
    """The note of the node that runs on a state folder; None where there is none, or where its process is gone.

    A note may outlive its node for as long as another process has taken its number: a refused connection tells.
    """
    try:
        note = msgspec.json.decode((folder / NOTE).read_bytes(), type=NodeNote)
    except (OSError, *_UNREADABLE):
        return None
    return note if _alive(note.pid) else None


def _alive(pid: int) -> bool:
    """Whether a process of that number is there."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class FolderLock:
    """The one node of a state folder: held until released or until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Nothing is taken yet."""
        self._path = folder / _LOCK
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the folder."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the folder; NodeError naming the process that has it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise refused(self._path, error) from None
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f" (process {holder})" if holder else ""
            raise NodeError(
                f"the state folder {self._path.parent} is in use by another node{who}: use --state-dir for a second one"
            ) from None
        # The number is for people; a full disk must not keep the node from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the folder back. Twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
