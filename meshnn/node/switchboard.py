"""Where the network's calls go: membership and plans to the core, slices to the data plane, files to the transfers."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import msgspec

from meshnn.cluster import messages as cluster_messages
from meshnn.cluster.cluster import Cluster
from meshnn.cluster.member import Address as MemberAddress
from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.hello import Hello
from meshnn.net.transport import Address
from meshnn.node import messages
from meshnn.node.messages import BUSY_MS_MAX, Busy, Chunk, Missing, Others, RemoteAsk, Want
from meshnn.plan import messages as plan_messages
from meshnn.plan.messages import Cancel, Failed, Receipt, Slice
from meshnn.wire.codec import Codec

if TYPE_CHECKING:
    from meshnn.node.driver import Node


# Callers of different nodes hear of different others.
OTHERS_MAX = 16


def codec() -> Codec:
    """Every message that may travel: a closed union."""
    return Codec((*get_args(cluster_messages.Message), *_structs(plan_messages), *_structs(messages)))


def _structs(module: object) -> tuple[type[msgspec.Struct], ...]:
    """The tagged message types a module defines."""
    found = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, msgspec.Struct))
    return tuple(kind for kind in found if kind.__struct_config__.tag is not None)


class Switchboard:
    """`net.transport.Handler` for a node: quick, synchronous, never blocking."""

    def __init__(self, node: Node) -> None:
        """The node whose parts take the calls."""
        self._node = node
        self._visitors: set[DeviceId] = set()

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """A neighbour said HELLO; a visitor is no member and stays outside the core."""
        if hello.visitor:
            self._visitors.add(device_id)
            self._node.transport.send(device_id, Others(others(self._node.core.cluster)))
            return
        self._visitors.discard(device_id)
        node, where = self._node, MemberAddress(*address)
        node.post(lambda now: node.core.on_linked(device_id, boot_id, hello.name, where, hello.http_port, now))
        node.plane.on_linked(device_id, boot_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """A link ended: the data plane hears it at once, membership in turn."""
        node = self._node
        if device_id in self._visitors:
            self._visitors.discard(device_id)
            node.visitors.on_unlinked(device_id)
            return
        node.plane.on_evidence(device_id, evidence)
        node.transfers.on_unlinked(device_id)
        node.post(lambda now: node.core.on_unlinked(device_id, evidence, now))

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """A dial came to nothing: evidence about whoever lives there."""
        node = self._node
        if evidence == "cloned":
            node.change_key(address)
            return
        node.post(lambda now: node.core.on_unreachable(MemberAddress(*address), evidence, now))

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """A control message; a visitor has no say in the mesh."""
        node = self._node
        if device_id in self._visitors:
            return
        match message:
            case Receipt() | Failed() | Cancel():
                node.plane.on_message(device_id, boot_id, message)
            case Want():
                node.transfers.on_want(device_id, message)
            case Missing():
                node.transfers.on_missing(device_id, message)
            case Busy(for_ms):
                node.transport.excuse(device_id, min(max(for_ms, 0), BUSY_MS_MAX) / 1000)
            case _:
                node.post(lambda now: node.core.on_message(device_id, message, now))

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """A datagram of membership or election."""
        node = self._node
        node.post(lambda now: node.core.on_datagram(device_id, boot_id, message, now))

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether memory may be spent on a payload."""
        node = self._node
        match meta_message:
            case Slice():
                return node.plane.admit(device_id, meta_message, payload_bytes)
            case Chunk():
                return node.transfers.admit(device_id, meta_message, payload_bytes)
            case RemoteAsk():
                return node.visitors.admit(device_id, meta_message, payload_bytes)
            case _:
                return False

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """An admitted payload."""
        node = self._node
        match meta_message:
            case Slice():
                node.plane.on_tensors(device_id, boot_id, meta_message, payload)
            case Chunk():
                node.transfers.on_chunk(device_id, meta_message, payload)
            case RemoteAsk():
                node.visitors.on_ask(device_id, meta_message, payload)
            case _:
                return


def others(cluster: Cluster) -> tuple[MemberAddress, ...]:
    """Where a caller finds other nodes than this one: some of those alive, this device's neighbours by id first."""
    alive = [device for device in cluster.alive if device != cluster.me.device_id]
    ring = sorted(alive, key=lambda device: (device < cluster.me.device_id, device))
    return tuple(cluster.members[device].address for device in ring[:OTHERS_MAX])
