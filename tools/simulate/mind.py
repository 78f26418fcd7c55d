"""What decides inside a simulated device: the real core of a node, or the real cluster machine alone."""

from __future__ import annotations

from typing import cast, get_args

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.effects import Evidence
from meshnn.cluster.member import Address, BootId, DeviceId
from meshnn.cluster.messages import Message
from meshnn.node.core import Core
from meshnn.node.effects import Effect


class Bare:
    """The cluster machine behind the doors of `node.core.Core`: membership and election alone, for large worlds."""

    def __init__(self, cluster: Cluster) -> None:
        """A machine that was not started."""
        self.cluster = cluster

    @property
    def deadline(self) -> float | None:
        """When `on_deadline` is due."""
        return self.cluster.deadline

    def start(self, now: float) -> list[Effect]:
        """Begin."""
        return list(self.cluster.start(now))

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye."""
        return list(self.cluster.leave(now))

    def on_datagram(self, source: DeviceId, boot: BootId, message: msgspec.Struct, now: float) -> list[Effect]:
        """A datagram."""
        return list(self.cluster.on_datagram(source, boot, cast("Message", message), now))

    def on_message(self, source: DeviceId, message: msgspec.Struct, now: float) -> list[Effect]:
        """A message over a link."""
        return list(self.cluster.on_stream_message(source, cast("Message", message), now))

    def on_seen(self, address: Address, now: float) -> list[Effect]:
        """An address to try."""
        return list(self.cluster.on_seen(address, now))

    def on_linked(
        self, device: DeviceId, boot: BootId, name: str, address: Address, http_port: int, now: float
    ) -> list[Effect]:
        """A link is up."""
        return list(self.cluster.on_linked(device, boot, name, address, http_port, now))

    def on_unlinked(self, device: DeviceId, evidence: str, now: float) -> list[Effect]:
        """A link is gone."""
        known = cast("Evidence", evidence) if evidence in get_args(Evidence) else "silent"
        return list(self.cluster.on_unlinked(device, known, now))

    def on_unreachable(self, address: Address, evidence: str, now: float) -> list[Effect]:
        """A dial was refused."""
        if evidence != "refused":
            return []
        there = [row.device_id for row in self.cluster.members.values() if row.usable and row.address == address]
        return [effect for device in there for effect in self.cluster.on_unlinked(device, "refused", now)]

    def on_deadline(self, now: float) -> list[Effect]:
        """Time has come."""
        return list(self.cluster.on_deadline(now))

    def on_persisted(self, term: int, now: float) -> list[Effect]:
        """The term is on disk."""
        return list(self.cluster.on_persisted(term, now))


Mind = Core | Bare
