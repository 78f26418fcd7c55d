"""Accepting connections: some at a time, and at rest where the system has no descriptor left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

# How long accepting rests where the system has no descriptor left.
EXHAUSTED_S = 0.1
# How many connections are accepted before the loop gets to do something else.
ACCEPTS_AT_ONCE = 16


class Acceptor:
    """Accepts on listening, non-blocking sockets and hands each connection on with its host.

    asyncio's own tries a hundred times in a row where there are no descriptors, and tells of each at length.
    """

    def __init__(self, let_in: Callable[[socket.socket, str], None], failed: Callable[[str], None]) -> None:
        """`let_in` owns what it is given; `failed` hears why none could be accepted."""
        self._let_in = let_in
        self._failed = failed
        self._listeners: list[socket.socket] = []
        self._rests: dict[int, asyncio.TimerHandle] = {}

    def open(self, listeners: Sequence[socket.socket]) -> None:
        """Accepts from now on; the sockets stay their owner's."""
        self._listeners = list(listeners)
        for listener in self._listeners:
            self._resume(listener)

    def close(self) -> None:
        """Accepts no more."""
        for timer in self._rests.values():
            timer.cancel()
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        self._listeners = []

    def _resume(self, listener: socket.socket) -> None:
        self._rests.pop(listener.fileno(), None)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, (host, _) = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or memory: accepting at once again would spin
                self._failed(str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                self._rests[listener.fileno()] = loop.call_later(EXHAUSTED_S, self._resume, listener)
                return
            connection.setblocking(False)
            self._let_in(connection, host)
