"""The greeting: from an open TLS connection to a link, or to a refusal in one line. The same for both ends."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.errors import PeerError
from meshnn.net.hello import Channel, Hello, Refusal, SkewError, decode_hello, decode_refusal, encode_hello, judge
from meshnn.net.security import peer_device_id
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Address, Evidence
from meshnn.wire.frame import Frame, Kind, head

KNOWN = Refusal("known", "this device is linked already")


class Greeter(Protocol):
    """Who decides about links."""

    @property
    def hello(self) -> Hello:
        """What this end says of itself."""

    def may_call(self, device_id: DeviceId, channel: Channel) -> bool:
        """Our connection reached this device: whether to say HELLO (no link yet); if so we are calling it from now."""

    def call_ended(self, device_id: DeviceId, channel: Channel) -> None:
        """The call that `may_call` allowed is over, one way or the other."""

    def cloned(self, address: Address) -> None:
        """Who calls from there has this device's own key, and had it first."""

    def may_answer(self, theirs: Hello) -> Refusal | None:
        """Why not to link with a caller whose HELLO is in order; None to link."""

    def linked(self, stream: FramedStream, theirs: Hello, dialled: bool) -> None:
        """Both ends said HELLO: the stream needs its link as owner before this returns."""


class Greeting:
    """The owner of a stream until it is a link. `done` becomes None for a link, else the refusal; or a PeerError.

    The dialling end says HELLO first and may demand that a certain device answers; the other end answers HELLO_ACK
    or REFUSED with the reason.
    """

    def __init__(
        self,
        stream: FramedStream,
        greeter: Greeter,
        channel: Channel = "control",
        expected: DeviceId | None = None,
        *,
        dialled: bool,
    ) -> None:
        self.done: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self._stream = stream
        self._greeter = greeter
        self._channel: Channel = channel
        self._expected = expected
        self._dialled = dialled
        self._certified: DeviceId | None = None
        self._calling = False
        stream.owner = self

    def opened(self) -> None:
        """TLS is up: the peer's key says who it is; the dialling end speaks first."""
        self._certified = peer_device_id(self._stream.tls)
        if not self._dialled:
            return
        if not self._greeter.may_call(self._certified, self._channel):
            self._end(KNOWN)
            return
        self._calling = True
        self._stream.write(head(Kind.HELLO, encode_hello(self._mine(self._channel))))

    def admit(self, kind: int, meta: bytes, payload_bytes: int) -> bool:
        """A greeting has no payloads."""
        raise PeerError("a payload before the greeting")

    def received(self, frame: Frame) -> None:
        """The one frame that each end has to say."""
        if self._dialled:
            self._answered(frame)
        elif frame.kind == Kind.HELLO:
            self._called(frame.meta)
        else:
            raise PeerError("not a greeting")

    def broke_protocol(self, error: PeerError) -> None:
        """The peer sent garbage."""
        self._hang_up()
        if not self.done.done():
            self.done.set_exception(error)

    def lost(self, evidence: Evidence) -> None:
        """The connection ended before the greeting did."""
        self._hang_up()
        if not self.done.done():
            self.done.set_exception(PeerError("the peer hung up during the greeting"))

    def dismiss(self) -> None:
        """Nobody awaits `done` any more."""
        if not self.done.cancel() and not self.done.cancelled():
            error = self.done.exception()  # seen, so that asyncio does not report it
            if error is not None:
                error.__traceback__ = None  # its frames hold this greeting and its stream, which hold it

    def _mine(self, channel: Channel) -> Hello:
        return msgspec.structs.replace(self._greeter.hello, channel=channel)

    def _called(self, meta: bytes) -> None:
        assert self._certified is not None
        try:
            theirs = decode_hello(meta)
        except SkewError as error:
            self._refuse(Refusal("wrong_version", str(error)))
            return
        refusal = judge(self._greeter.hello, theirs, self._certified) or self._greeter.may_answer(theirs)
        if refusal is not None:
            self._refuse(refusal)
            if refusal.reason == "cloned_here":
                self._greeter.cloned((self._stream.peer_host, theirs.port))
            return
        self._stream.write(head(Kind.HELLO_ACK, encode_hello(self._mine(theirs.channel))))
        self._link(theirs)

    def _answered(self, frame: Frame) -> None:
        assert self._certified is not None
        if frame.kind == Kind.REFUSED:
            told = decode_refusal(frame.meta)
            if told.reason == "cloned" and self._certified != self._greeter.hello.device_id:
                # Only who has the key itself proves that there are two of them; a third device's word is a hint.
                told = msgspec.structs.replace(told, reason="cloned_elsewhere")
            self._end(told)
            return
        if frame.kind != Kind.HELLO_ACK:
            raise PeerError("not an answer to a greeting")
        try:
            theirs = decode_hello(frame.meta)
        except SkewError as error:
            self._end(Refusal("wrong_version", str(error)))
            return
        if theirs.channel != self._channel:
            raise PeerError("an answer for another channel")
        refusal = judge(self._greeter.hello, theirs, self._certified, self._expected)
        if refusal is not None:
            self._end(refusal)
            return
        self._link(theirs)

    def _link(self, theirs: Hello) -> None:
        self._hang_up()
        self._greeter.linked(self._stream, theirs, self._dialled)
        if not self.done.done():
            self.done.set_result(None)

    def _refuse(self, refusal: Refusal) -> None:
        self._stream.write(head(Kind.REFUSED, encode_hello(refusal)))
        self._end(refusal)

    def _end(self, refusal: Refusal) -> None:
        self._hang_up()
        self._stream.close()
        if not self.done.done():
            self.done.set_result(refusal)

    def _hang_up(self) -> None:
        if self._calling and self._certified is not None:
            self._calling = False
            self._greeter.call_ended(self._certified, self._channel)
