"""A neighbour who listens to nothing: `net.transport.Handler` of whoever only sends."""

from __future__ import annotations

import asyncio

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.hello import Hello
from meshnn.net.transport import Address


class Stranger:
    """`net.transport.Handler` of a neighbour who listens to nothing."""

    def __init__(self) -> None:
        """Not linked."""
        self.linked = asyncio.Event()
        self.peer = DeviceId("")

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """The node."""
        self.peer = device_id
        self.linked.set()

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """The node hung up."""
        self.linked.clear()

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """Nothing."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Nothing."""

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """Nothing."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """All of it."""
        return True

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """Nothing."""
