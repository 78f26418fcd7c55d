"""A link: one handshaken connection to one life of one device, for control messages or for tensors."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Protocol

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.net.hello import Channel, Hello
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Address, Evidence, Limits
from meshnn.wire.codec import MESSAGE_LIMIT_BYTES, Codec, Unknown
from meshnn.wire.frame import META_LIMIT_BYTES, Frame, Kind, head

_PING = struct.Struct(">Q")
# How much one new measurement moves the smoothed round trip.
_ROUND_TRIP_GAIN = 0.125


class LinkOwner(Protocol):
    """Who keeps the links of a node."""

    def message_received(self, link: Link, message: msgspec.Struct) -> None:
        """A control message came."""

    def tensors_offered(self, link: Link, meta: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether a payload is admitted."""

    def tensors_received(self, link: Link, meta: msgspec.Struct, payload: memoryview) -> None:
        """An admitted payload is whole."""

    def link_refused(self, link: Link, reason: str, line: str) -> None:
        """The peer sent what is ignored or what breaks the link; to be counted."""

    def link_lost(self, link: Link, evidence: Evidence) -> None:
        """The link has ended."""


class Link:
    """The stream's owner once both ends said HELLO. `address` is where the peer listens."""

    def __init__(
        self, stream: FramedStream, owner: LinkOwner, peer: Hello, address: Address, limits: Limits, codec: Codec
    ) -> None:
        self.peer = peer
        self.address = address
        self.stream = stream
        self.round_trip_s: float | None = None
        self.orderly = False  # the peer said goodbye
        self._owner = owner
        self._limits = limits
        self._codec = codec
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._offered: msgspec.Struct | None = None
        self._ping_number = 0
        self._pinged_at = 0.0
        self._unanswered = 0
        self._excused_until = 0.0
        self._pulse: asyncio.TimerHandle | None = None
        stream.owner = self
        stream.allow_payloads(MESSAGE_LIMIT_BYTES if self.channel == "control" else limits.payload_bytes)

    @property
    def device_id(self) -> DeviceId:
        """The device at the other end, proven by its key."""
        return self.peer.device_id

    @property
    def boot_id(self) -> BootId:
        """Which life of it."""
        return self.peer.boot_id

    @property
    def channel(self) -> Channel:
        """What the link carries."""
        return self.peer.channel

    # -- sending

    def send(self, data: bytes) -> bool:
        """Queues an encoded control message; False where the outbox is full or the link has ended."""
        if not self.stream.live or self.stream.outbox_bytes + len(data) > self._limits.outbox_bytes:
            return False
        if len(data) <= META_LIMIT_BYTES:
            self.stream.write(head(Kind.MESSAGE, data))
        else:
            self.stream.write(head(Kind.MESSAGE, b"", len(data)) + data)
        return True

    async def send_frame(self, meta: bytes, buffers: Sequence[memoryview]) -> None:
        """Writes one whole frame of tensors in slices, waiting for room between them. Raises PeerError."""
        flat = [buffer.cast("B") for buffer in buffers if buffer.nbytes]
        await self.stream.drained()
        self.stream.write(head(Kind.TENSORS, meta, sum(buffer.nbytes for buffer in flat)))
        for buffer in flat:
            for begin in range(0, buffer.nbytes, self._limits.slice_bytes):
                self.stream.write(buffer[begin : begin + self._limits.slice_bytes])
                await self.stream.drained()

    def say_goodbye(self) -> None:
        """Tells the peer that this end is no accident, then closes."""
        self.stream.write(head(Kind.GOODBYE, b""))
        self.stop_pulse()
        self.stream.close()

    # -- liveness

    def start_pulse(self) -> None:
        """Pings from now on, every 250 ms, until `stop_pulse`; three unanswered pings end the link as silent."""
        if self._pulse is None and self.stream.live:
            self._unanswered = 0
            self._beat()

    def stop_pulse(self) -> None:
        """No more pings."""
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None

    def excuse(self, for_s: float) -> None:
        """The peer said that it cannot answer for so long."""
        self._excused_until = self._loop.time() + for_s

    def _beat(self) -> None:
        if self.stream.heard_at > self._pinged_at:
            self._unanswered = 0
        if self._unanswered >= self._limits.pings_unanswered and self._loop.time() >= self._excused_until:
            self._pulse = None
            self.stream.abort(Evidence.SILENT)
            return
        self._ping_number += 1
        self._pinged_at = self._loop.time()
        self._unanswered += 1
        self.stream.write(head(Kind.PING, _PING.pack(self._ping_number)))
        self._pulse = self._loop.call_later(self._limits.ping_every_s, self._beat)

    def _ponged(self, meta: bytes) -> None:
        if meta != _PING.pack(self._ping_number):
            return  # an answer to an earlier ping: the peer lives, but it measures nothing
        sample_s = self._loop.time() - self._pinged_at
        before_s = sample_s if self.round_trip_s is None else self.round_trip_s
        self.round_trip_s = before_s + _ROUND_TRIP_GAIN * (sample_s - before_s)

    # -- what the stream calls

    def opened(self) -> None:
        """Never called: a link begins on an open stream."""

    def admit(self, kind: int, meta: bytes, payload_bytes: int) -> bool:
        """Large control messages within their limit, and tensors that the node has room for."""
        if kind == Kind.MESSAGE and self.channel == "control":
            return True
        if kind == Kind.TENSORS and self.channel == "tensors":
            self._offered = self._codec.decode(meta)
            return self._admitted(self._offered, payload_bytes)
        return False

    def _admitted(self, message: msgspec.Struct, payload_bytes: int) -> bool:
        if isinstance(message, Unknown):
            self._owner.link_refused(self, "unknown_message", message.tag)
            return False
        return self._owner.tensors_offered(self, message, payload_bytes)

    def received(self, frame: Frame) -> None:
        """One frame; a kind of a newer version is ignored."""
        if frame.kind == Kind.MESSAGE and self.channel == "control":
            self._message(frame.meta if frame.payload is None else bytes(frame.payload))
        elif frame.kind == Kind.TENSORS and self.channel == "tensors":
            self._tensors(frame)
        elif frame.kind == Kind.PING and len(frame.meta) == _PING.size:
            self._answer_ping(frame.meta)
        elif frame.kind == Kind.PONG:
            self._ponged(frame.meta)
        elif frame.kind == Kind.GOODBYE:
            self.orderly = True
            self.stop_pulse()
            self.stream.close()
        elif frame.kind in set(Kind):
            raise PeerError(f"a {Kind(frame.kind).name} frame on a {self.channel} link")

    def _answer_ping(self, meta: bytes) -> None:
        # A peer that pings and does not read the answers gets no more of them.
        if self.stream.outbox_bytes <= self._limits.outbox_bytes:
            self.stream.write(head(Kind.PONG, meta))

    def _message(self, data: bytes) -> None:
        message = self._codec.decode(data)
        if isinstance(message, Unknown):
            self._owner.link_refused(self, "unknown_message", message.tag)
        else:
            self._owner.message_received(self, message)

    def _tensors(self, frame: Frame) -> None:
        if frame.dropped:
            return
        if frame.payload is None:  # an empty payload was never offered
            message = self._codec.decode(frame.meta)
            if self._admitted(message, 0):
                self._owner.tensors_received(self, message, memoryview(b""))
            return
        offered, self._offered = self._offered, None
        assert offered is not None
        self._owner.tensors_received(self, offered, memoryview(frame.payload))

    def broke_protocol(self, error: PeerError) -> None:
        """The peer sent garbage."""
        self._owner.link_refused(self, "garbage", str(error))

    def lost(self, evidence: Evidence) -> None:
        """The stream has ended."""
        self.stop_pulse()
        self._owner.link_lost(self, Evidence.CLOSED if self.orderly else evidence)
