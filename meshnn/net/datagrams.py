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
from meshnn.wire.datagram import (
    DATAGRAM_LIMIT_BYTES,
    DatagramHeader,
    ReplayWindow,
    Sieve,
    counter_of,
    decode_datagram,
    encode_datagram,
    life_of,
)

# Lives whose counters are remembered; strangers can only push out the longest silent.
WINDOWS_LIMIT = 4096
# How many datagrams are read before the loop gets to do something else.
READS_AT_ONCE = 256
# Where one was turned away the next look is so much later: a flood is read in gulps and not one by one, which costs a
# tenth, and the system's buffer holds what comes meanwhile.
REST_S = 0.005

Receive = Callable[[DeviceId, BootId, msgspec.Struct, Address], None]


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
        self._sieve = Sieve(mesh_tag, hello.device_id, hello.boot_id)
        self._counter = 0
        self._windows: OrderedDict[bytes, ReplayWindow] = OrderedDict()
        self._ports: list[socket.socket] = []
        self._rests: dict[socket.socket, asyncio.TimerHandle] = {}

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Receives on the bound, non-blocking sockets from now on; they stay their owner's."""
        self._ports = list(sockets)
        for port in self._ports:
            self._listen(port)

    def close(self) -> None:
        """Sends and receives no more."""
        for timer in self._rests.values():
            timer.cancel()
        for port in self._ports:
            asyncio.get_running_loop().remove_reader(port)
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
            try:
                self._ports[0].sendto(data, address)
            except OSError as error:  # no room or no way just now: best effort, so it is only counted
                self._refusals.note("datagram_unsent", address[0], str(error))

    def _listen(self, port: socket.socket) -> None:
        self._rests.pop(port, None)
        asyncio.get_running_loop().add_reader(port, self._read, port)

    def _read(self, port: socket.socket) -> None:
        """Takes what has come, and rests where it was not for us."""
        refused = False
        for _ in range(READS_AT_ONCE):
            try:
                data, address = port.recvfrom(DATAGRAM_LIMIT_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:  # an earlier one could not be delivered
                self._refusals.note("datagram_unsent", "", str(error))
                continue
            reason = self._arrived(data, address)
            if reason:
                refused = True
                self._refusals.note(reason, address[0])
        if refused and self._ports:
            loop = asyncio.get_running_loop()
            loop.remove_reader(port)
            self._rests[port] = loop.call_later(REST_S, self._listen, port)

    def _arrived(self, data: bytes, address: Address) -> str:
        """Hands a datagram on; else why not, in a word."""
        reason = self._sieve.reason_against(data)
        if reason:
            return reason
        life, counter = life_of(data), counter_of(data)
        window = self._windows.get(life)
        if window is not None and window.seen(counter):
            return "replayed_datagram"
        if not self._vicinity.includes(address[0]):
            return "foreign"
        self._window(life).accept(counter)
        try:
            header, body = decode_datagram(data)
            message = self._codec.decode(body)
        except PeerError:
            return "garbage_datagram"
        if isinstance(message, Unknown):
            return "unknown_message"
        self._receive(DeviceId(header.sender), BootId(header.boot_id), message, address)
        return ""

    def _window(self, life: bytes) -> ReplayWindow:
        window = self._windows.get(life)
        if window is None:
            window = self._windows[life] = ReplayWindow()
            if len(self._windows) > WINDOWS_LIMIT:
                self._windows.popitem(last=False)
        self._windows.move_to_end(life)
        return window
