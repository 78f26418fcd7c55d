"""Frames of a stream: a fixed header, a small meta part, a raw payload read straight into its own buffer.

Layout, big-endian: magic (2 bytes), version (1), kind (1), meta length (u32), payload length (u64), then meta,
then payload. Every length is checked before anything is allocated.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator

from meshnn.errors import PeerError

MAGIC = b"mN"
VERSION = 1
META_LIMIT_BYTES = 64 * 1024
HEADER = struct.Struct(">2sBBIQ")
# One TLS record: what is read at once where a frame's header or meta is awaited.
READ_AHEAD_BYTES = 16 * 1024


class Kind(enum.IntEnum):
    """What a frame is for. A kind of a newer version is skipped by an older one."""

    HELLO = 1
    HELLO_ACK = 2
    REFUSED = 3
    MESSAGE = 4
    TENSORS = 5
    PING = 6
    PONG = 7
    GOODBYE = 8


class Frame:
    """One whole frame: its kind (a number, perhaps one we do not know), meta bytes and payload.

    `payload` is None where there was none, and where it was `dropped` because nobody admitted it.
    """

    __slots__ = ("dropped", "kind", "meta", "payload")

    def __init__(self, kind: int, meta: bytes, payload: bytearray | None, dropped: bool = False) -> None:
        self.kind = kind
        self.meta = meta
        self.payload = payload
        self.dropped = dropped


def head(kind: int, meta: bytes, payload_bytes: int = 0) -> bytes:
    """The bytes of a frame before its payload. Raises PeerError where `meta` exceeds 64 KiB."""
    if len(meta) > META_LIMIT_BYTES:
        raise PeerError(f"a frame's meta part of {len(meta)} bytes exceeds {META_LIMIT_BYTES}")
    return HEADER.pack(MAGIC, VERSION, kind, len(meta), payload_bytes) + meta


class FrameParser:
    """Bytes in, frames out, with the shape of a `BufferedProtocol`: read into `get_buffer`, then `buffer_updated`.

    `admit(kind, meta, payload_bytes)` is asked before a payload is allocated; where it says no the payload is read
    and thrown away, and the frame comes out `dropped`; it may raise PeerError too. After a PeerError the parser stays
    broken. `payload_limit_bytes` may be raised when the peer is known.
    """

    def __init__(self, payload_limit_bytes: int, admit: Callable[[int, bytes, int], bool]) -> None:
        self.payload_limit_bytes = payload_limit_bytes
        self._admit = admit
        self._scratch = bytearray(READ_AHEAD_BYTES)
        self._start = 0  # of what is unread in the scratch
        self._filled = 0
        self._kind = 0
        self._meta = b""
        self._payload: bytearray | None = None
        self._missing_bytes = 0  # of the payload under way
        self._skipping = False
        self._broken: PeerError | None = None

    @property
    def held_bytes(self) -> int:
        """What this parser has allocated just now."""
        return len(self._scratch) + (len(self._payload) if self._payload is not None else 0)

    @property
    def midway(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return self._payload is not None or self._skipping or self._filled > self._start

    def end(self) -> None:
        """No more bytes come: let go of the buffers, and of whoever admits."""
        self._scratch, self._payload, self._missing_bytes = bytearray(1), None, 0
        self._start = self._filled = 0
        self._admit = _refuse
        self._broken = PeerError("the stream has ended")  # the error of before holds frames that hold this parser

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._payload is not None:
            return memoryview(self._payload)[len(self._payload) - self._missing_bytes :]
        return memoryview(self._scratch)[self._filled :]

    def buffer_updated(self, size_bytes: int) -> list[Frame]:
        """All frames completed by `size_bytes` written into the last `get_buffer`. Raises PeerError on garbage."""
        return list(self.feed(size_bytes))

    def feed(self, size_bytes: int) -> Iterator[Frame]:
        """The frames completed by `size_bytes`, each given out before the next one is offered to `admit`.

        So whoever admits has taken what it admitted before, and its bounds hold. Raises PeerError on garbage.
        """
        if self._broken is not None:
            raise self._broken
        frames: list[Frame] = []
        if self._payload is not None:
            self._missing_bytes -= size_bytes
            if not self._missing_bytes:
                self._finish(frames)
            yield from frames
            return
        self._filled += size_bytes
        more = True
        while more:
            try:
                more = self._step(frames)
            except PeerError as error:
                self._broken = error
                raise
            yield from frames
            frames.clear()
        self._compact()

    def _step(self, frames: list[Frame]) -> bool:
        """Takes one part out of the scratch; False where more bytes are needed."""
        if self._skipping:
            return self._skip(frames)
        unread_bytes = self._filled - self._start
        if unread_bytes < HEADER.size:
            self._check_prefix()
            return False
        kind, meta_bytes, payload_bytes = self._header()
        if unread_bytes < HEADER.size + meta_bytes:
            self._make_room(HEADER.size + meta_bytes)
            return False
        begin = self._start + HEADER.size
        self._kind, self._meta = kind, bytes(memoryview(self._scratch)[begin : begin + meta_bytes])
        self._start = begin + meta_bytes
        if not payload_bytes:
            frames.append(Frame(kind, self._meta, None))
            return self._start < self._filled
        return self._begin_payload(payload_bytes, frames)

    def _header(self) -> tuple[int, int, int]:
        magic, version, kind, meta_bytes, payload_bytes = HEADER.unpack_from(self._scratch, self._start)
        if magic != MAGIC:
            raise PeerError("not a meshnn frame")
        if version != VERSION:
            raise PeerError(f"frame version {version}, this node speaks {VERSION}")
        if meta_bytes > META_LIMIT_BYTES:
            raise PeerError(f"a frame's meta part of {meta_bytes} bytes exceeds {META_LIMIT_BYTES}")
        if payload_bytes > self.payload_limit_bytes:
            raise PeerError(f"a frame's payload of {payload_bytes} bytes exceeds {self.payload_limit_bytes}")
        return kind, meta_bytes, payload_bytes

    def _check_prefix(self) -> None:
        """Refuses a wrong magic as soon as it shows, so that a stranger's half header is not waited for."""
        prefix = bytes(self._scratch[self._start : min(self._filled, self._start + len(MAGIC))])
        if not MAGIC.startswith(prefix):
            raise PeerError("not a meshnn frame")

    def _begin_payload(self, payload_bytes: int, frames: list[Frame]) -> bool:
        self._missing_bytes = payload_bytes
        if not self._admit(self._kind, self._meta, payload_bytes):
            self._skipping = True
            return self._skip(frames)
        payload = bytearray(payload_bytes)
        ready_bytes = min(payload_bytes, self._filled - self._start)
        payload[:ready_bytes] = memoryview(self._scratch)[self._start : self._start + ready_bytes]
        self._start += ready_bytes
        self._missing_bytes -= ready_bytes
        self._payload = payload
        if self._missing_bytes:
            return False
        self._finish(frames)
        return self._start < self._filled

    def _skip(self, frames: list[Frame]) -> bool:
        ready_bytes = min(self._missing_bytes, self._filled - self._start)
        self._start += ready_bytes
        self._missing_bytes -= ready_bytes
        if self._missing_bytes:
            return False
        self._skipping = False
        frames.append(Frame(self._kind, self._meta, None, dropped=True))
        return self._start < self._filled

    def _finish(self, frames: list[Frame]) -> None:
        frames.append(Frame(self._kind, self._meta, self._payload))
        self._payload = None
        self._meta = b""

    def _compact(self) -> None:
        """Moves what is unread to the front, so that there is always room to read into."""
        if self._start:
            unread = self._scratch[self._start : self._filled]
            self._scratch[: len(unread)] = unread
            self._start, self._filled = 0, len(unread)

    def _make_room(self, size_bytes: int) -> None:
        """Grows the scratch for a meta part that does not fit; at most 64 KiB and a header."""
        if size_bytes > len(self._scratch):
            self._scratch = bytearray(self._scratch) + bytearray(size_bytes - len(self._scratch))


def _refuse(kind: int, meta: bytes, payload_bytes: int) -> bool:
    """Admit nothing."""
    del kind, meta, payload_bytes
    return False
