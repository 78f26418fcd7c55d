"""The dialler: connects to an address, greets who answers, and says in one word what came of it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Collection

from meshnn.cluster.member import DeviceId
from meshnn.errors import PeerError
from meshnn.net.greeting import KNOWN, Greeter, Greeting
from meshnn.net.hello import Channel, Refusal
from meshnn.net.interfaces import Vicinity
from meshnn.net.sockets import tune
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Address, Evidence, Limits

_NO_WAY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


class DialError(PeerError):
    """A dial came to nothing; `evidence` is the word for it; `elder` as in `Refusal`."""

    def __init__(self, evidence: str, line: str, elder: Address | None = None) -> None:
        super().__init__(line)
        self.evidence = evidence
        self.elder = elder


class Dialler:
    """Dials for one node. `named` are the hosts a person named: they may be anywhere.

    `source` is the one address to dial from (None: the system chooses): whoever is called takes it for ours.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        greeter: Greeter,
        limits: Limits,
        vicinity: Vicinity,
        named: Collection[str],
        source: str | None = None,
    ) -> None:
        self._source = source
        self._context = context
        self._greeter = greeter
        self._limits = limits
        self._vicinity = vicinity
        self._named = frozenset(named)

    async def call(self, address: Address, channel: Channel = "control", expected: DeviceId | None = None) -> bool:
        """Links with whoever (or only with `expected`, where given) answers at `address`, within 5 s.

        False where that device is linked already. Raises DialError.
        """
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                connection = await self._connected(address)
                refusal = await self._greeted(connection, channel, expected)
        except TimeoutError as error:
            raise DialError(Evidence.TIMEOUT, f"nobody answers at {address[0]} port {address[1]}") from error
        if refusal is None:
            return True
        if refusal.reason in {KNOWN.reason, "duplicate"}:
            return False
        raise DialError(refusal.reason, refusal.line, refusal.elder)

    async def _connected(self, address: Address) -> socket.socket:
        host = await self._resolved(address)
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            tune(connection)
            if self._source is not None:
                connection.bind((self._source, 0))
            await loop.sock_connect(connection, (host, address[1]))
        except ConnectionRefusedError as error:
            connection.close()
            raise DialError(Evidence.REFUSED, f"nobody listens at {host} port {address[1]}") from error
        except ConnectionError as error:
            connection.close()
            raise DialError(Evidence.HANDSHAKE, f"{host} port {address[1]} hung up") from error
        except OSError as error:
            connection.close()
            evidence = Evidence.UNREACHABLE if error.errno in _NO_WAY else Evidence.TIMEOUT
            raise DialError(evidence, f"cannot reach {host}: {error.strerror or error}") from error
        except asyncio.CancelledError:
            connection.close()
            raise
        return connection

    async def _resolved(self, address: Address) -> str:
        """The IP address to dial; a named host is let in wherever it is."""
        host, port = address
        try:
            ip = str(ipaddress.IPv4Address(host))
        except ValueError:
            ip = await self._looked_up(host, port)
        if host in self._named:
            self._vicinity.name(ip)
        if not self._vicinity.includes(ip):
            raise DialError(Evidence.FOREIGN, f"{ip} is on no network of this device: name it with --peer")
        return ip

    async def _looked_up(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise DialError(Evidence.UNREACHABLE, f"no IPv4 address for {host!a}") from error
        return str(found[0][4][0])

    async def _greeted(self, connection: socket.socket, channel: Channel, expected: DeviceId | None) -> Refusal | None:
        stream = FramedStream(self._limits)
        greeting = Greeting(stream, self._greeter, channel, expected, dialled=True)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: stream,
                sock=connection,
                ssl=self._context,
                server_hostname="",
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.close_s,
            )
            return await greeting.done
        except TimeoutError:
            stream.abort()
            raise
        except (OSError, PeerError) as error:
            stream.abort()
            fault = ascii(str(error))[1:121]
            raise DialError(Evidence.HANDSHAKE, f"who answers is no meshnn device: {fault}") from error
        except asyncio.CancelledError:
            stream.abort()
            raise
        finally:
            greeting.dismiss()
