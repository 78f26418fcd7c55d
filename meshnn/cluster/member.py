"""The members of a mesh: identities, addresses, states, and the rows every device publishes about itself."""

from __future__ import annotations

import enum
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

DeviceId = NewType("DeviceId", str)
"""26 base32 characters: the hash of the device's public key; it outlives every start of the device."""

BootId = NewType("BootId", str)
"""16 hexadecimal digits drawn at each start: one life of a device."""

WireDeviceId = Annotated[DeviceId, Meta(pattern="^[A-Za-z2-7]{26}$")]
WireBootId = Annotated[BootId, Meta(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
INCARNATION_MAX = 2**62 - 1
"""No honest incarnation comes near; what claims this or more is not believed, or its subject could never answer."""
Amount = Annotated[float, Meta(ge=0.0)]


class MemberState(enum.StrEnum):
    """What the mesh believes of a member; ALIVE and SUSPECT members are usable."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


SEVERITY = {MemberState.ALIVE: 0, MemberState.SUSPECT: 1, MemberState.DEAD: 2, MemberState.LEFT: 3}
"""Among claims about one incarnation the severer holds."""


class Address(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where a device listens: its streams (TCP) and datagrams (UDP) share the port."""

    host: Annotated[str, Meta(min_length=1, max_length=64)]
    port: Port


class Capability(msgspec.Struct, frozen=True, array_like=True):
    """What a device can do; changes rarely. `speed` is work units (`Card.work`) per ms, 0 until measured."""

    memory_bytes: Count = 0
    disk_bytes: Count = 0
    speed: Amount = 0.0
    cores: Count = 1
    numeric_class: Annotated[str, Meta(max_length=64)] = ""
    can_cut: bool = False
    on_mains: bool = True
    wired: bool = True
    degraded: bool = False  # it says itself that something is wrong with it: see its own status


class Load(msgspec.Struct, frozen=True, array_like=True):
    """What a device is doing now; `version` is set by the cluster and rises with every publication."""

    queue_depth: Count = 0
    stage_ms: Amount = 0.0
    free_bytes: Count = 0
    cpu_percent: Amount = 0.0
    battery_percent: Annotated[float, Meta(ge=0.0, le=100.0)] = 100.0
    version: Count = 0


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One device as the mesh knows it: one life (`boot_id`), one incarnation, its static row and its load row."""

    device_id: WireDeviceId
    boot_id: WireBootId
    name: Annotated[str, Meta(max_length=63)]
    address: Address
    http_port: Port
    incarnation: Count
    state: MemberState = MemberState.ALIVE
    capability: Capability = Capability()
    version: Count = 0
    load: Load = Load()

    @property
    def usable(self) -> bool:
        """Whether the member still counts: it is alive, or only suspected."""
        return self.state in (MemberState.ALIVE, MemberState.SUSPECT)
