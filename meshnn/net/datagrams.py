"""Datagrams of one node: sent, and received from the life they say, once."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.net.hello import Hello
from meshnn.net.interfaces import Vicinity
from meshnn.net.refusals import Refusals
from meshnn.net.transport import Address
from meshnn.wire.codec import Codec, Unknown
from meshnn.wire.datagram import UNSEALED, DatagramHeader, ReplayWindow, decode_datagram, encode_datagram

# Lives whose counters are remembered; strangers can only push out the longest silent.
WINDOWS_LIMIT = 4096

Receive = Callable[[DeviceId, BootId, msgspec.Struct, Address], None]


class _Port(asyncio.DatagramProtocol):
    """asyncio's end of one socket."""

    def __init__(self, received: Callable[[bytes, Address], None], refusals: Refusals) -> None:
        self._received = received
        self._refusals = refusals

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        """One datagram came."""
        self._received(data, (str(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:
        """The system could not send: best effort, so it is only counted."""
        self._refusals.note("datagram_unsent", "", str(exc))


class Datagrams:
    """Sends and receives the datagrams of one life of one device."""

    def __init__(
        self, hello: Hello, mesh_tag: bytes, codec: Codec, vicinity: Vicinity, refusals: Refusals, receive: Receive
    ) -> None:
        self._hello = hello
        self._mesh_tag = mesh_tag
        self._codec = codec
        self._vicinity = vicinity
        self._refusals = refusals
        self._receive = receive
        self._counter = 0
        self._windows: OrderedDict[tuple[str, str], ReplayWindow] = OrderedDict()
        self._ports: list[asyncio.DatagramTransport] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Takes the bound sockets over and receives from now on."""
        loop = asyncio.get_running_loop()
        for held in sockets:
            port, _ = await loop.create_datagram_endpoint(lambda: _Port(self._arrived, self._refusals), sock=held)
            self._ports.append(port)

    def close(self) -> None:
        """Sends and receives no more."""
        for port in self._ports:
            port.abort()
        self._ports = []

    def send(self, target: DeviceId | None, boot: BootId | None, address: Address, message: msgspec.Struct) -> None:
        """One datagram, best effort, to an IP address. Raises PeerError over 1200 bytes of body."""
        body = self._codec.encode(message)
        self._counter += 1
        header = DatagramHeader(
            self._mesh_tag, self._hello.device_id, self._hello.boot_id, self._counter, target or "", boot or ""
        )
        data = encode_datagram(header, body)
        try:
            ipaddress.IPv4Address(address[0])
        except ValueError:  # a name would have to be looked up, which blocks
            self._refusals.note("datagram_unsent", ascii(address[0])[1:65], "not an IPv4 address")
            return
        if self._ports and address[1]:
            self._ports[0].sendto(data, address)

    def _arrived(self, data: bytes, address: Address) -> None:
        try:
            header, body = decode_datagram(data)
            reason = self._reason_against(header, address)
            message = self._codec.decode(body) if not reason else None
        except PeerError as error:
            self._refusals.note("garbage_datagram", address[0], str(error))
            return
        if isinstance(message, Unknown):
            reason = "unknown_message"
        if reason:
            self._refusals.note(reason, address[0])
        elif message is not None:
            self._receive(DeviceId(header.sender), BootId(header.boot_id), message, address)

    def _reason_against(self, header: DatagramHeader, address: Address) -> str:
        """Why a datagram is dropped before its body is looked at; empty to take it."""
        mine = self._hello
        if header.mesh_tag != self._mesh_tag:
            return "wrong_mesh_datagram"
        if header.key_id != UNSEALED:
            return "unknown_key"
        if header.sender == mine.device_id:
            return "own_datagram"
        if header.target not in {"", mine.device_id} or header.target_boot not in {"", mine.boot_id}:
            return "datagram_for_another"
        if not self._vicinity.includes(address[0]):
            return "foreign"
        return "" if self._window(header).accept(header.counter) else "replayed_datagram"

    def _window(self, header: DatagramHeader) -> ReplayWindow:
        life = (header.sender, header.boot_id)
        window = self._windows.get(life)
        if window is None:
            window = self._windows[life] = ReplayWindow()
            if len(self._windows) > WINDOWS_LIMIT:
                self._windows.popitem(last=False)
        self._windows.move_to_end(life)
        return window
