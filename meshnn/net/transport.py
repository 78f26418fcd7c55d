"""What a node sees of its network: `Transport` to speak, `Handler` to be spoken to.

Two implementations stand behind it: `net.neighbours` (TCP, TLS, UDP) and `net.memory` (in one process, for tests).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.hello import Hello

Address = tuple[str, int]
"""Host (an IP address or a name) and port."""


class Evidence(enum.StrEnum):
    """What ended a link, or kept one from coming to be. A person and the cluster read the same words."""

    REFUSED = "refused"  # the host is there, the process is not
    RESET = "reset"  # the link broke without a word: the process or the host is gone, or it lives a new life
    CLOSED = "closed"  # the peer (or we) ended it in order
    SILENT = "silent"  # three pings unanswered, or nothing moved for too long
    TIMEOUT = "timeout"  # nobody answered in time
    UNREACHABLE = "unreachable"  # no way there from here, which may be our own fault
    HANDSHAKE = "handshake"  # somebody is there, but TLS or HELLO came to nothing
    FOREIGN = "foreign"  # an open mesh stays on the networks it is attached to


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a transport; the defaults are for a home network."""

    payload_bytes: int = 256 * 1024 * 1024
    outbox_bytes: int = 2 * 1024 * 1024  # of control messages not yet sent, per link
    tensor_queue: int = 16  # frames of tensors waiting, per link; further senders wait
    slice_bytes: int = 256 * 1024
    handshake_s: float = 5.0
    ping_every_s: float = 0.25
    pings_unanswered: int = 3
    stall_s: float = 10.0  # a link that moves no byte for so long though there are some to move is cut
    close_s: float = 1.0
    half_open: int = 64
    half_open_per_host: int = 8  # loopback excepted
    links: int = 1024
    dials: int = 16  # at once
    dials_waiting: int = 256


class Handler(Protocol):
    """What a transport calls: on the event loop, synchronously; none of it may block."""

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """A neighbour said HELLO; `address` is where it listens."""

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """The link to a neighbour ended: reset, closed or silent."""

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """A dial came to nothing: an `Evidence`, or a refusal's word (wrong_mesh, wrong_version, self, cloned...).

        `cloned`: who is there, called or calling, proved to have this device's own key, and to have had it first.
        """

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """A control message came over the link."""

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """A datagram came from `address`."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether memory may be spent on a payload; if not it is thrown away as it comes, and nothing else happens."""

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """An admitted payload is here whole; its memory is the handler's."""


class Transport(Protocol):
    """Links to neighbours: control messages, tensors, datagrams."""

    @property
    def port(self) -> int:
        """Where this node listens, for streams and datagrams alike; known after `start`."""

    async def start(self) -> None:
        """Binds and serves. Raises NodeError where the port or the interface cannot be had."""

    async def stop(self) -> None:
        """Says goodbye to every neighbour and ends every task; no handler is called afterwards."""

    def dial(self, host: str, port: int) -> None:
        """Tries to link with whoever listens there; what comes of it arrives as handler events.

        Nothing happens where that link exists or is under way, or where too many dials wait.
        """

    def connected(self, device_id: DeviceId) -> bool:
        """Whether the control link to a device is up."""

    def neighbours(self) -> tuple[DeviceId, ...]:
        """The devices linked now, sorted."""

    def send(self, device_id: DeviceId, message: msgspec.Struct) -> bool:
        """Queues a control message; False without a link, or where its outbox is full.

        Raises PeerError for a message over 512 KiB, ValueError for one that cannot travel.
        """

    def send_datagram(
        self, device_id: DeviceId | None, boot_id: BootId | None, host: str, port: int, message: msgspec.Struct
    ) -> None:
        """Sends one datagram, best effort, for this device and life only (None: whoever is there).

        Raises PeerError for a body over 1200 bytes, ValueError for one that cannot travel.
        """

    async def send_tensors(
        self, device_id: DeviceId, meta_message: msgspec.Struct, buffers: Sequence[memoryview]
    ) -> None:
        """Sends one frame of raw bytes with its header message; returns when the last byte is on its way.

        The buffers must not change before. Raises PeerError where the link is not there or breaks.
        """

    def expecting(self, device_id: DeviceId, delta: int) -> None:
        """Counts work outstanding at a device up or down; while there is some, the link is pinged every 250 ms."""

    def on_network(self, hosts: Sequence[str]) -> None:
        """This device's addresses are other ones now; links from an address that is gone end as silent."""

    def excuse(self, device_id: DeviceId, for_s: float) -> None:
        """The device said that it cannot answer pings for so long: until then its silence is no evidence."""
