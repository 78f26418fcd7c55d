"""HELLO and its answer: two ends of a TLS connection say who they are before it counts as a link."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnn.cluster.member import Count, DeviceId, Port, WireBootId, WireDeviceId
from meshnn.errors import PeerError
from meshnn.wire.codec import builtins, convert, load, pack

PROTOCOL_VERSION = 1
"""What this meshnn speaks. Peers that speak another say so in one line and do not link.

It rises only with what an older node cannot ignore: unknown fields, messages and kinds of frames are no such thing.
"""

SAME_AGE_MS = 1000
"""Two lives that began within so long of each other count as equally old: what they say took time to arrive."""

Channel = Literal["control", "tensors"]
Text = Annotated[str, Meta(max_length=64)]


class Hello(msgspec.Struct, frozen=True):
    """What one end of a connection says of itself.

    The node gives `mesh`, `name`, `boot_id` and the ports (`port` 0: 7766 or the next free one); the transport fills
    in the rest. `port` takes streams and datagrams, `http_port` 0 means none. A `visitor` asks and is no member.
    `up_ms` is how long this life has lasted; 0 where an older version says nothing of it.
    """

    mesh: Text
    name: Annotated[str, Meta(max_length=63)]
    boot_id: WireBootId
    port: Port = 0
    http_port: Port = 0
    visitor: bool = False
    device_id: WireDeviceId = DeviceId("a" * 26)
    channel: Channel = "control"
    up_ms: Count = 0
    version: Annotated[int, Meta(ge=0, lt=2**16)] = PROTOCOL_VERSION


class Refusal(msgspec.Struct, frozen=True):
    """Why the accepting end does not link: a word for programs, a line for people.

    `elder` is where the other holder of the caller's key listens, where a third device saw both.
    """

    reason: Annotated[str, Meta(max_length=32, pattern="^[a-z_]*$")]
    line: Annotated[str, Meta(max_length=200)]
    elder: tuple[Annotated[str, Meta(max_length=64)], Port] | None = None


class _Version(msgspec.Struct, frozen=True):
    """The one part of a HELLO that every version understands."""

    version: Annotated[int, Meta(ge=0, lt=2**16)]


def encode_hello(hello: Hello | Refusal) -> bytes:
    """The meta part of a HELLO, HELLO_ACK or REFUSED frame."""
    return pack(builtins(hello))


def decode_hello(meta: bytes) -> Hello:
    """The HELLO in a meta part. Raises PeerError for garbage, and for another protocol version, naming it."""
    value = load(meta)
    version = convert(value, _Version).version
    if version != PROTOCOL_VERSION:
        # The same line is read at both ends.
        raise SkewError(
            f"protocol version {version} meets version {PROTOCOL_VERSION}: install the same meshnn on both devices"
        )
    return convert(value, Hello)


def decode_refusal(meta: bytes) -> Refusal:
    """The reason in a REFUSED frame. Raises PeerError for garbage."""
    return convert(load(meta), Refusal)


class SkewError(PeerError):
    """The peer speaks another version of the protocol."""


def judge(mine: Hello, theirs: Hello, certified: DeviceId, expected: DeviceId | None = None) -> Refusal | None:
    """Why `mine` must not link with the peer that says `theirs` and whose key proves `certified`; None to link."""
    if theirs.device_id != certified:
        return Refusal("wrong_key", "the device id is not the hash of the certificate's key")
    if certified == mine.device_id:
        return _same_device(mine, theirs)
    if theirs.mesh != mine.mesh:
        return Refusal("wrong_mesh", f"this device is in mesh {mine.mesh}, not in {theirs.mesh}"[:200])
    if expected is not None and certified != expected:
        return Refusal("wrong_device", f"another device than {expected} answers here")
    return None


def is_elder(one: Hello, other: Hello) -> bool:
    """Of two lives of one device, whether `one` began first; the boot id decides between lives of about one age."""
    if abs(one.up_ms - other.up_ms) > SAME_AGE_MS:
        return one.up_ms > other.up_ms
    return one.boot_id < other.boot_id


def cloned(elder: tuple[str, int] | None = None) -> Refusal:
    """The refusal of a caller whose key another running process had before it: it must take a new one."""
    return Refusal("cloned", "another running device has this device's key, and had it first: take a new one", elder)


def _same_device(mine: Hello, theirs: Hello) -> Refusal:
    if mine.boot_id == theirs.boot_id:
        return Refusal("self", "this address is this device's own")
    if is_elder(mine, theirs):
        return cloned()
    return Refusal("cloned_here", "the device that answered has the caller's key, and takes a new one")
