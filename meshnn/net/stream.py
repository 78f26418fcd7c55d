"""One TLS connection as frames both ways: reading into place, bounded writing, a close that ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from meshnn.errors import PeerError
from meshnn.net.transport import Evidence, Limits
from meshnn.wire.frame import Frame, FrameParser


class StreamOwner(Protocol):
    """Who reacts to what a stream brings: first a greeting, then a link."""

    def opened(self) -> None:
        """The TLS handshake is done."""

    def admit(self, kind: int, meta: bytes, payload_bytes: int) -> bool:
        """Whether a payload may be allocated. Raises PeerError where the peer broke the protocol."""

    def received(self, frame: Frame) -> None:
        """A whole frame came. Raises PeerError where the peer broke the protocol."""

    def broke_protocol(self, error: PeerError) -> None:
        """The peer sent garbage; the stream is being closed."""

    def lost(self, evidence: Evidence) -> None:
        """The stream has ended; called once."""


class FramedStream(asyncio.BufferedProtocol):
    """The protocol object of one connection. Payloads are refused until `owner` is a link that raised the limit."""

    def __init__(self, limits: Limits) -> None:
        self.owner: StreamOwner | None = None
        self.heard_at = 0.0
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._parser = FrameParser(0, self._admit)
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._stall_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._evidence: Evidence | None = None  # why we end it, where it is we who do
        self._ended = asyncio.Event()

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up: sets the bounds and tells the owner."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.slice_bytes)
        self.heard_at = self._loop.time()
        if self._evidence is not None:  # given up before it was open
            self._transport.abort()
        elif self.owner is not None:
            self._guarded(self.owner.opened)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes are read to: the parser's own buffer, or the payload itself."""
        return self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Hands every frame that is now whole to the owner of the moment."""
        self.heard_at = self._loop.time()
        try:
            for frame in self._parser.feed(nbytes):
                if self._evidence is not None or self.owner is None:
                    return
                self.owner.received(frame)
        except PeerError as error:
            self._break(error)

    def eof_received(self) -> None:
        """The peer will send no more: asyncio closes the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Wakes whoever waits and tells the owner why it ended."""
        for timer in (self._stall_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._ended.set()
        self._writable.set()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.lost(self._evidence or Evidence.RESET)
        # Stream, parser and transport hold each other, 300 kB with the buffers of TLS: nobody is to wait for the
        # garbage collector to have that back, least of all where strangers come and go.
        self._transport = None
        self._parser.end()

    def pause_writing(self) -> None:
        """The peer reads slower than we write; if nothing moves for long it is cut off."""
        self._writable.clear()
        self._stall_timer = self._loop.call_later(self._limits.stall_s, self.abort, Evidence.SILENT)

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable.set()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    # -- what owners call

    @property
    def live(self) -> bool:
        """Whether the stream is open and nobody has begun to end it."""
        return self._transport is not None and self._evidence is None and not self._ended.is_set()

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS state, for the peer's certificate."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    @property
    def peer_host(self) -> str:
        """The IP address at the other end; empty where it is gone already."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if name else ""

    @property
    def own_host(self) -> str:
        """The IP address at this end; empty where it is gone already."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if name else ""

    @property
    def outbox_bytes(self) -> int:
        """Bytes written and not yet taken by the system."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def midway(self) -> bool:
        """Whether a frame has begun to arrive and is not whole."""
        return self._parser.midway

    def allow_payloads(self, limit_bytes: int) -> None:
        """Raises the limit of a payload, once the peer is known."""
        self._parser.payload_limit_bytes = limit_bytes

    def write(self, data: bytes | memoryview) -> None:
        """Queues bytes; the caller keeps to `outbox_bytes` or `drained`."""
        if self._transport is not None and self.live:
            self._transport.write(data)

    async def drained(self) -> None:
        """Waits until there is room to write. Raises PeerError where the stream has ended instead."""
        try:
            # The stall timer ends the wait first; this bound is for a stream that is closing.
            async with asyncio.timeout(self._limits.stall_s + self._limits.close_s):
                await self._writable.wait()
        except TimeoutError as error:
            raise PeerError("the link moved nothing for too long") from error
        if not self.live:
            raise PeerError(f"the link ended: {self._evidence or Evidence.RESET}")

    def close(self, evidence: Evidence = Evidence.CLOSED) -> None:
        """Sends what is queued, then ends; aborts where that takes longer than a second."""
        if self._evidence is None:
            self._evidence = evidence
        if self._transport is not None and not self._ended.is_set() and self._close_timer is None:
            self._close_timer = self._loop.call_later(self._limits.close_s, self._transport.abort)
            self._transport.close()

    def abort(self, evidence: Evidence = Evidence.CLOSED) -> None:
        """Ends at once; what is queued is lost."""
        if self._evidence is None:
            self._evidence = evidence
        if self._transport is not None and not self._ended.is_set():
            self._transport.abort()

    async def ended(self) -> None:
        """Waits until the connection is gone."""
        await self._ended.wait()

    # -- inside

    def _admit(self, kind: int, meta: bytes, payload_bytes: int) -> bool:
        return self.owner is not None and self.owner.admit(kind, meta, payload_bytes)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except PeerError as error:
            self._break(error)

    def _break(self, error: PeerError) -> None:
        if self.owner is not None:
            self.owner.broke_protocol(error)
        self.abort()
