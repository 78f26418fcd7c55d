"""What members say to each other: closed, tagged, array-shaped structs, and how large each is on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from meshnn.cluster.member import Count, DeviceId, Load, Member, WireBootId, WireDeviceId

PAYLOAD_BYTES_MAX = 1200
"""The most bytes of payload in a datagram: safe for IPv6's least MTU and for VPNs."""

BUCKETS = 32
"""How many parts the table is divided into for anti-entropy."""


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive"):
    """The subject's own word: it lives, in this incarnation, with these rows (the row's `state` is ignored)."""

    member: Member


class Suspect(msgspec.Struct, frozen=True, array_like=True, tag="suspect"):
    """`accuser` had no answer from the device; `refused` where the device's own host said the process is gone."""

    device_id: WireDeviceId
    incarnation: Count
    accuser: WireDeviceId
    refused: bool = False


class Dead(msgspec.Struct, frozen=True, array_like=True, tag="dead"):
    """`accuser` buried the device after the suspicion ran out."""

    device_id: WireDeviceId
    incarnation: Count
    accuser: WireDeviceId


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """The device went of its own will."""

    device_id: WireDeviceId
    incarnation: Count


class LoadRow(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """The newest load of a device; the greater (incarnation, version) holds."""

    device_id: WireDeviceId
    incarnation: Count
    load: Load


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The leader's heartbeat as gossip, for meshes too large for direct heartbeats to all."""

    leader: WireDeviceId
    boot_id: WireBootId
    term: Count
    number: Count


Rumour = Alive | Suspect | Dead | Left | LoadRow | Beat
Rumours = Annotated[tuple[Rumour, ...], Meta(max_length=64)]
Rows = Annotated[tuple[Member, ...], Meta(max_length=128)]
Buckets = Annotated[tuple[Annotated[int, Meta(ge=0, lt=BUCKETS)], ...], Meta(max_length=BUCKETS)]
Hashes = Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**32)], ...], Meta(min_length=BUCKETS, max_length=BUCKETS)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Are you there, you of this life?"""

    number: Count
    boot_id: WireBootId
    rumours: Rumours = ()


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """The answer to Ping, and a relay's good news to PingRequest: `number` is the asker's own."""

    number: Count
    subject: WireDeviceId
    rumours: Rumours = ()


class PingRequest(msgspec.Struct, frozen=True, array_like=True, tag="ping_request"):
    """Please ping `target` for me."""

    number: Count
    target: WireDeviceId
    rumours: Rumours = ()


class Nack(msgspec.Struct, frozen=True, array_like=True, tag="nack"):
    """A relay's bad news: it lives, but the target did not answer it in time."""

    number: Count
    rumours: Rumours = ()


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag="gossip"):
    """Rumours alone."""

    rumours: Rumours = ()


class Leave(msgspec.Struct, frozen=True, array_like=True, tag="leave"):
    """The sender goes, of its own will."""

    incarnation: Count
    rumours: Rumours = ()


class Digest(msgspec.Struct, frozen=True, array_like=True, tag="digest"):
    """Opens a push/pull exchange: one hash per bucket of the sender's live rows."""

    hashes: Hashes


class Sync(msgspec.Struct, frozen=True, array_like=True, tag="sync"):
    """Rows of a push/pull exchange; the receiver answers with its own rows of the buckets in `wants`."""

    rows: Rows
    wants: Buckets = ()


class Lead(msgspec.Struct, frozen=True, array_like=True, tag="lead"):
    """The leader's heartbeat; `age` is the bit length of its uptime in seconds."""

    term: Count
    number: Count
    view_size: Count
    age: Count
    rumours: Rumours = ()


class LeadAck(msgspec.Struct, frozen=True, array_like=True, tag="lead_ack"):
    """A follower's answer to Lead: whether it follows, and the highest term it knows."""

    number: Count
    follows: bool
    term: Count
    rumours: Rumours = ()


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag="pre_vote"):
    """Would you vote for me in this term? Changes nothing at the voter."""

    term: Count
    rumours: Rumours = ()


class PreVoteReply(msgspec.Struct, frozen=True, array_like=True, tag="pre_vote_reply"):
    """The answer to PreVote: `asked` is the term asked for, `term` the voter's own.

    Who does not `vote` at all, since its disk keeps no promise, is not counted on either.
    """

    asked: Count
    granted: bool
    term: Count
    rumours: Rumours = ()
    votes: bool = True


class Vote(msgspec.Struct, frozen=True, array_like=True, tag="vote"):
    """Vote for me in this term; the sender has persisted the term."""

    term: Count
    rumours: Rumours = ()


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag="vote_reply"):
    """The answer to Vote; a granted one leaves only after the voter persisted it."""

    asked: Count
    granted: bool
    term: Count
    rumours: Rumours = ()


class Yield(msgspec.Struct, frozen=True, array_like=True, tag="yield"):
    """A leader steps down for a better one: its followers owe it no lease any more."""

    term: Count
    rumours: Rumours = ()


Datagram = (
    Ping
    | Ack
    | PingRequest
    | Nack
    | Gossip
    | Leave
    | Lead
    | LeadAck
    | PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Yield
)
Message = Datagram | Digest | Sync
Estimate = Callable[[Message | Rumour], int]


def estimate_bytes(message: Message | Rumour) -> int:
    """An upper bound of the encoded size in bytes of a message or rumour, for MessagePack and for CBOR."""
    # CBOR needs one byte more than MessagePack for strings of 24 to 31 characters, as device ids are.
    size = len(_ENCODER.encode(message))
    return size + size // 16 + 4


def subject_of(rumour: Rumour) -> DeviceId:
    """The device a rumour is about."""
    match rumour:
        case Alive(member):
            return member.device_id
        case Beat(leader):
            return leader
        case _:
            return rumour.device_id


_ENCODER = msgspec.msgpack.Encoder()
