"""How long the HTTP server waits for its callers, and how many may keep it waiting.

Between the socket and aiohttp: a request's head must be whole within some seconds, a body must keep coming, an answer
must be taken. Whoever is slower is cut off, and of too many that wait the longest waiting goes first, so that slow
callers cost the others nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from meshnn.http.guard import Handler
from meshnn.telemetry import logger

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"
_CROWDED = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"

_log = logger(__name__)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds; the defaults are for programs on this machine."""

    head_s: float = 8.0  # from a request's first byte, or from the connection's beginning, to the end of its head
    head_bytes: int = 65536  # of a request's head; aiohttp bounds each line, and keeps what it refuses
    idle_s: float = 75.0  # between two requests of one connection
    body_s: float = 6.0  # in every so many seconds at least `body_bytes` of an unfinished body come
    body_bytes: int = 4096
    linger_s: float = 1.0  # what comes of a body nobody wants is read for so long before the connection ends
    stall_s: float = 8.0  # an answer of which nothing is taken for so long is given up
    connections: int = 128


async def pieces(request: web.Request, patience: Patience | None = None) -> AsyncIterator[bytes]:
    """A request's body as it comes; HTTPRequestTimeout (408) where it hardly does, while it is waited for."""
    patience = patience or Patience()
    loop = asyncio.get_running_loop()
    until, window_bytes = loop.time() + patience.body_s, 0
    while True:
        try:
            async with asyncio.timeout_at(until):
                piece = await request.content.readany()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the request's body comes too slowly") from None
        if not piece:
            return
        yield piece
        window_bytes += len(piece)
        if window_bytes >= patience.body_bytes:
            until, window_bytes = loop.time() + patience.body_s, 0


class Reception:
    """A protocol factory around aiohttp's own, and the middleware that tells it when a request is served."""

    def __init__(self, patience: Patience | None = None) -> None:
        """No connection yet; `serve` says who serves them."""
        self.patience = patience or Patience()
        self._serve: Callable[[], asyncio.Protocol] | None = None
        # In the order in which they began to wait.
        self._guests: dict[asyncio.Protocol, _Guest] = {}

    def serve(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Every connection gets a protocol of this factory."""
        self._serve = factory

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        assert self._serve is not None
        return _Guest(self, self._serve())

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._guests)

    @property
    def middleware(self) -> Middleware:
        """To be the outermost of the application."""

        @web.middleware
        async def attend(request: web.Request, handler: Handler) -> web.StreamResponse:
            guest = self._guests.get(cast("asyncio.Protocol", request.protocol))
            if guest is None:
                return await handler(request)
            guest.serving(request)
            try:
                return await handler(request)
            finally:
                guest.served()

        return attend

    def enter(self, inner: asyncio.Protocol, guest: _Guest) -> bool:
        """Count a connection; where there are too many the longest waiting goes; False where nobody waits."""
        if len(self._guests) >= self.patience.connections:
            # Who was served before is a caller who works with this node: strangers go first.
            waiting = [one for one in self._guests.values() if one.waiting]
            slowest = next((one for one in waiting if not one.idle), waiting[0] if waiting else None)
            if slowest is None:
                return False
            slowest.dismiss(b"" if slowest.idle else _CROWDED)
            self.gone(slowest.inner)  # at once: more may come before its end is told
            _log.debug("http_crowded", connections=len(self._guests))
        self._guests[inner] = guest
        return True

    def waits(self, inner: asyncio.Protocol) -> None:
        """A connection begins to wait anew: it goes to the end of the line."""
        guest = self._guests.pop(inner, None)
        if guest is not None:
            self._guests[inner] = guest

    def gone(self, inner: asyncio.Protocol) -> None:
        """A connection has ended."""
        self._guests.pop(inner, None)


class _Guest(asyncio.Protocol):
    """One connection: everything goes on to aiohttp's protocol, under a clock."""

    def __init__(self, reception: Reception, inner: asyncio.Protocol) -> None:
        self._reception = reception
        self._patience = reception.patience
        self.inner = inner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._request: web.Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._idle = False
        self._head: bytes | None = b""  # what came of a head that is not whole; None in a body

    @property
    def idle(self) -> bool:
        """Whether a request was answered and the next has not begun: a word now would be taken for its answer."""
        return self._idle

    @property
    def waiting(self) -> bool:
        """Whether the node waits for this caller, and is not at work for it."""
        return self._request is None

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller is here; where all places are taken by callers at work it is told so."""
        self._transport = cast("asyncio.Transport", transport)
        held = transport.get_extra_info("socket")
        if held is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # A file goes out past the loop's buffers: the kernel gives up what nobody takes.
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.stall_s * 1000))
        entered = self._reception.enter(self.inner, self)
        self.inner.connection_made(transport)
        if not entered:
            self.dismiss(_CROWDED)
            return
        self._wait(self._patience.head_s)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body."""
        if self._idle:
            self._idle = False
            self._wait(self._patience.head_s)
        if self._head is not None and self._overlong(data):
            self.dismiss(_TOO_LONG)
            return
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The caller says no more; it may still listen."""
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        """The caller takes its answer slower than we write it."""
        self._stall_timer = self._loop.call_later(self._patience.stall_s, self._abort)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """It has taken some."""
        self._stop(self._stall_timer)
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._stop(self._timer, self._stall_timer)
        self._reception.gone(self.inner)
        self.inner.connection_lost(exc)

    # -- what the reception calls

    def serving(self, request: web.Request) -> None:
        """A head is whole: the node is at work, and `pieces` sees to the body."""
        self._request = request
        self._head = None
        self._stop(self._timer)

    def served(self) -> None:
        """The answer is made: the next request may take its time to begin."""
        self._request = None
        self._idle = True
        self._head = b""
        self._reception.waits(self.inner)
        self._wait(self._patience.idle_s)

    def dismiss(self, word: bytes) -> None:
        """Say why, and close; nothing of an answer is under way."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(word)
            self._transport.close()
            self._stop(self._timer)
            self._timer = self._loop.call_later(self._patience.stall_s, self._abort)

    # -- inside

    def _overlong(self, data: bytes) -> bool:
        """Whether a head that is not whole is longer than one can be."""
        assert self._head is not None
        head = self._head + data[: self._patience.head_bytes]
        self._head = None if _HEAD_END in head else head
        return self._head is not None and len(self._head) >= self._patience.head_bytes

    def _wait(self, for_s: float) -> None:
        self._stop(self._timer)
        self._timer = self._loop.call_later(for_s, self._give_up)

    def _give_up(self) -> None:
        """The head did not come in time; between two requests nothing needs to be said."""
        if self._request is None:
            self.dismiss(b"" if self._idle else _TIMEOUT)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _stop(self, *timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
