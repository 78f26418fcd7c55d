"""The doorway: accepts connections, bounds how many strangers stand in it, and greets them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from meshnn.errors import PeerError
from meshnn.net.acceptor import Acceptor
from meshnn.net.greeting import Greeter, Greeting
from meshnn.net.interfaces import Vicinity
from meshnn.net.refusals import Refusals
from meshnn.net.sockets import tune
from meshnn.net.stream import FramedStream
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Limits


@dataclass(slots=True)
class _Guest:
    """A connection that was let in; `taken` once asyncio owns its socket."""

    connection: socket.socket
    host: str
    taken: bool = False


class Doorway:
    """Accepts on listening sockets. At most `half_open` connections may be unfinished, few of them per host."""

    def __init__(
        self,
        context: ssl.SSLContext,
        greeter: Greeter,
        limits: Limits,
        vicinity: Vicinity,
        refusals: Refusals,
        tasks: TaskSet,
    ) -> None:
        self._context = context
        self._greeter = greeter
        self._limits = limits
        self._vicinity = vicinity
        self._refusals = refusals
        self._tasks = tasks
        self._inside: Counter[str] = Counter()
        self._acceptor = Acceptor(self._arrived, partial(refusals.note, "accept", ""))

    @property
    def half_open(self) -> int:
        """Connections accepted and neither linked nor refused yet."""
        return self._inside.total()

    def open(self, listeners: Sequence[socket.socket]) -> None:
        """Accepts from now on; the sockets stay their owner's."""
        self._acceptor.open(listeners)

    def close(self) -> None:
        """Accepts no more."""
        self._acceptor.close()

    def _arrived(self, connection: socket.socket, host: str) -> None:
        self._let_in(_Guest(connection, host))

    def _let_in(self, guest: _Guest) -> None:
        reason = self._reason_against(guest.host)
        if reason:
            guest.connection.close()
            self._refusals.note(reason, guest.host)
            return
        self._inside[guest.host] += 1
        self._tasks.spawn(self._greet(guest), f"greet {guest.host}", partial(self._gone, guest))

    def _reason_against(self, host: str) -> str:
        """Why a connection from `host` is closed unread; empty to let it in."""
        if not self._vicinity.includes(host):
            return "foreign"
        if self._inside.total() >= self._limits.half_open:
            return "crowded"
        if not ipaddress.ip_address(host).is_loopback and self._inside[host] >= self._limits.half_open_per_host:
            return "crowded_host"
        return ""

    async def _greet(self, guest: _Guest) -> None:
        stream = FramedStream(self._limits)
        greeting = Greeting(stream, self._greeter, dialled=False)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                tune(guest.connection)
                guest.taken = True
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: stream,
                    guest.connection,
                    ssl=self._context,
                    ssl_handshake_timeout=self._limits.handshake_s,
                    ssl_shutdown_timeout=self._limits.close_s,
                )
                refusal = await greeting.done
            if refusal is not None and refusal.reason != "duplicate":
                self._refusals.note(refusal.reason, guest.host, refusal.line)
        except (OSError, PeerError) as error:  # TimeoutError and ssl.SSLError are OSErrors
            self._refusals.note("timeout" if isinstance(error, TimeoutError) else "garbage", guest.host, str(error))
            stream.abort()
        except asyncio.CancelledError:
            stream.abort()
            raise
        finally:
            greeting.dismiss()

    def _gone(self, guest: _Guest) -> None:
        if not guest.taken:
            guest.connection.close()
        self._inside[guest.host] -= 1
        if not self._inside[guest.host]:
            del self._inside[guest.host]
