"""What the planner knows of the devices and of the links between them: measured, told by gossip, passed as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NoPlanError

UNREACHABLE_MS = 60_000.0


class DeviceInfo(msgspec.Struct, frozen=True):
    """One live device: its budget for shards, its measured speed in work units (`Card.work`) per millisecond."""

    device: DeviceId
    boot: BootId
    memory_bytes: int
    speed: float
    cores: int = 1
    numeric_class: str = ""
    name: str = ""


class Link(msgspec.Struct, frozen=True):
    """What one pair of devices has between them. A rate of 0 says that they cannot reach each other."""

    bytes_per_ms: float = 11_000.0
    rtt_ms: float = 1.0


class Links(msgspec.Struct, frozen=True):
    """All links: a default, and what was measured per (sender, receiver); `overhead_ms` is spent on every message."""

    default: Link = Link()
    pairs: Mapping[tuple[DeviceId, DeviceId], Link] = {}
    overhead_ms: float = 0.3

    def between(self, sender: DeviceId, receiver: DeviceId) -> Link:
        """The link from `sender` to `receiver`: measured this way, else the other way, else the default."""
        return self.pairs.get((sender, receiver)) or self.pairs.get((receiver, sender)) or self.default

    def hop_ms(self, sender: DeviceId, receiver: DeviceId) -> float:
        """What a message costs before its first byte counts; 0 within one device.

        A pair that cannot reach each other costs a minute: as good as never, and yet to be added and compared.
        """
        if sender == receiver:
            return 0.0
        link = self.between(sender, receiver)
        return link.rtt_ms / 2 + self.overhead_ms if link.bytes_per_ms > 0 else UNREACHABLE_MS

    def byte_ms(self, sender: DeviceId, receiver: DeviceId) -> float:
        """Milliseconds per byte; 0 within one device."""
        if sender == receiver:
            return 0.0
        rate = self.between(sender, receiver).bytes_per_ms
        return 1.0 / rate if rate > 0 else 0.0

    def singular(self, device: DeviceId) -> bool:
        """Whether any link of this device was measured, so that it is unlike the devices on the default."""
        return any(device in pair for pair in self.pairs)


def by_id(devices: Sequence[DeviceInfo]) -> dict[DeviceId, DeviceInfo]:
    """The devices by their id; NoPlanError when there are none."""
    if not devices:
        raise NoPlanError("no plan: no live device")
    return {info.device: info for info in devices}


def asking_weights(devices: Sequence[DeviceInfo], asking: Mapping[DeviceId, float]) -> dict[DeviceId, float]:
    """What part of the requests comes from each device, summing to 1: as measured, else from each alike."""
    known = {info.device: max(0.0, asking.get(info.device, 0.0)) for info in devices}
    total = sum(known.values())
    if total <= 0:
        return {device: 1.0 / len(known) for device in known}
    return {device: weight / total for device, weight in known.items()}


def speed_of(measured: float) -> float:
    """Work units per ms of a device: as measured, or the reference machine's where it is not measured yet (0)."""
    return measured if measured > 0 else 1.0
