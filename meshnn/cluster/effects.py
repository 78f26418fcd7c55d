"""What the cluster wants done: plain values that the node's driver performs, in the order given."""

from __future__ import annotations

from typing import Literal

import msgspec

from meshnn.cluster.member import Address, BootId, DeviceId, Member
from meshnn.cluster.messages import Datagram, Message

Evidence = Literal["refused", "reset", "closed", "silent"]
"""What the net layer saw of a device: its host refused a connection, reset or closed a link, or nothing came."""


class SendDatagram(msgspec.Struct, frozen=True):
    """Send a message, best effort, as one datagram."""

    to: DeviceId
    address: Address
    message: Datagram


class SendStream(msgspec.Struct, frozen=True):
    """Send a message over the control link to a device, dialling `address` where there is none."""

    to: DeviceId
    message: Message
    address: Address


class Dial(msgspec.Struct, frozen=True):
    """Open a link to an address; `device_id` where it is known who should be there (report refusal as evidence)."""

    address: Address
    device_id: DeviceId | None = None


class PersistTerm(msgspec.Struct, frozen=True):
    """Store term and vote with fsync, then call `on_persisted(term)`; where storing failed `on_unpersisted(term)`."""

    term: int
    voted_for: DeviceId | None


class PersistIncarnation(msgspec.Struct, frozen=True):
    """Store this device's incarnation; the next start must exceed it."""

    incarnation: int


class MemberChanged(msgspec.Struct, frozen=True):
    """A member's row changed in anything but its load; another `boot_id` is another life; None is not known."""

    before: Member | None
    after: Member | None


class LeaderChanged(msgspec.Struct, frozen=True):
    """The leader this device follows (itself included), or None, and the term."""

    leader: DeviceId | None
    term: int


class IdentityClash(msgspec.Struct, frozen=True):
    """Another running process seems to hold this device's key (a cloned disk): call it, the older of the two stays."""

    boot_id: BootId
    address: Address


Effect = (
    SendDatagram | SendStream | Dial | PersistTerm | PersistIncarnation | MemberChanged | LeaderChanged | IdentityClash
)
