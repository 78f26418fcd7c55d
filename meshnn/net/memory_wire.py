"""What carries things in a network in memory: one direction of one stream, in order, as slow as the weather."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How the network treats what it carries. Streams lose nothing, but wait; datagrams fare as they may."""

    delay_s: tuple[float, float] = (0.0002, 0.002)  # uniform, one way
    loss: float = 0.0  # of datagrams, 0 to 1
    duplication: float = 0.0  # of datagrams, 0 to 1
    bytes_per_s: float = 0.0  # of a stream, per direction; 0: no limit


class Air(Protocol):
    """What a wire asks of its network."""

    weather: Weather

    def hears(self, sender: str, receiver: str) -> bool:
        """Whether what one host sends reaches another."""

    def delay_s(self) -> float:
        """One trip's delay."""


class Wire:
    """One direction of one channel: in order, no sooner than its bytes have passed, held back while cut off."""

    def __init__(self, air: Air, hosts: tuple[str, str]) -> None:
        self.alive = True
        self.free_at = 0.0  # when the last byte so far has left
        self._air = air
        self._hosts = hosts
        self._queue: deque[Callable[[], None]] = deque()
        self._due = 0
        self._arrives_at = 0.0

    def put(self, deliver: Callable[[], None], size_bytes: int) -> None:
        """Sends something of a size; `deliver` is called when it has arrived."""
        loop = asyncio.get_running_loop()
        rate = self._air.weather.bytes_per_s
        self.free_at = max(self.free_at, loop.time()) + (size_bytes / rate if rate else 0.0)
        self._arrives_at = max(self._arrives_at, self.free_at + self._air.delay_s())
        self._queue.append(deliver)
        loop.call_at(self._arrives_at, self._arrive)

    def flush(self) -> None:
        """Delivers what is due, if the way is open."""
        while self._due and self.alive and self._air.hears(*self._hosts):
            self._due -= 1
            self._queue.popleft()()

    def _arrive(self) -> None:
        self._due += 1
        self.flush()
