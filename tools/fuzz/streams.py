"""The border of links: what comes inside TLS, from the first HELLO to the last frame, to the parts that take it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from pathlib import Path

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.greeting import Greeting
from meshnn.net.hello import Channel, Hello, Refusal, encode_hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Limits
from meshnn.node.switchboard import codec
from meshnn.plan.messages import Slice
from meshnn.wire.frame import Kind, head
from tools.fuzz.border import Border
from tools.fuzz.mutate import mutated
from tools.fuzz.stranger import Stranger
from tools.fuzz.values import BOOTS, message, message_types

MESH = "home"
# What one connection may make of this end: a bound for payloads that is quick to fill.
LIMITS = Limits(payload_bytes=1 << 20)
EACH = 4


class Wire(asyncio.Transport):
    """A TLS connection whose other end is a known device and takes everything."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        """Open."""
        super().__init__({"ssl_object": tls, "peername": ("127.0.0.1", 5)})
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is always room."""

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Taken."""

    def is_closing(self) -> bool:
        """Whether this end has closed it."""
        return self.closed

    def close(self) -> None:
        """The end is told by whoever plays the network."""
        self.closed = True

    def abort(self) -> None:
        """At once."""
        self.closed = True


def shaken(server: Identity, client: Identity) -> ssl.SSLObject:
    """The server's end of a TLS connection that is up."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.client.wrap_bio(to_client, to_server, server_hostname=None)
    for _ in range(6):
        for end in (theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ours.getpeercert(binary_form=True), "no handshake"
    return ours


class Streams:
    """One connection after the other, each greeted and then fed frames; nothing of them stays."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        """Two devices, and what they may say."""
        me, other = Identity.load(folder / "me"), Identity.load(folder / "other")
        self._tls = shaken(me, other)
        self._loop = asyncio.new_event_loop()
        self._neighbours = self._loop.run_until_complete(self._made(me))
        made = codec()
        self._hellos = {channel: self._hello(channel, other.device_id) for channel in ("control", "tensors")}
        control = [made.encode(message(rng, kind)) for kind in message_types() for _ in range(EACH)]
        slices = [made.encode(message(rng, Slice)) for _ in range(8 * EACH)]
        self._frames = [
            *(head(Kind.MESSAGE, body) for body in control),
            *(head(Kind.MESSAGE, b"", len(body)) + body for body in control[:: 8 * EACH]),
            *(head(Kind.TENSORS, body, 64) + bytes(64) for body in slices),
            *(head(Kind.TENSORS, body) for body in slices),
            head(Kind.PING, bytes(8)),
            head(Kind.PONG, bytes(8)),
            head(Kind.GOODBYE, b""),
            head(99, b"later", 10) + bytes(10),
            head(Kind.REFUSED, encode_hello(Refusal("full", "no room"))),
        ]

    async def _made(self, me: Identity) -> Neighbours:
        hello = Hello(MESH, "me", BootId(BOOTS[1]), 7766, 7767)
        return Neighbours(me, hello, Stranger(), LIMITS, codec(), "127.0.0.1")

    def _hello(self, channel: Channel, device: DeviceId) -> bytes:
        return encode_hello(Hello(MESH, "other", BootId(BOOTS[0]), 7768, 0, device_id=device, channel=channel))

    def draw(self, rng: random.Random) -> tuple[bool, bytes, list[int]]:
        """Who dialled, the stream, and the sizes it arrives in."""
        dialled = rng.random() < 0.2
        hello = self._hellos[rng.choice(("control", "control", "tensors"))]
        first = head(Kind.HELLO_ACK if dialled else Kind.HELLO, hello)
        if rng.random() < 0.25:
            first = mutated(rng, first, self._frames)
        rest = b"".join(rng.choice(self._frames) for _ in range(rng.randint(0, 4)))
        if rng.random() < 0.8:
            rest = mutated(rng, rest, self._frames)
        return dialled, first + rest, [rng.choice((1, 16, 100, 20_000, 20_000)) for _ in range(4)]

    def take(self, given: object) -> None:
        """A whole connection."""
        assert isinstance(given, tuple)
        self._loop.run_until_complete(self._connection(*given))

    async def _connection(self, dialled: bool, data: bytes, sizes: list[int]) -> None:
        stream, wire = FramedStream(LIMITS), Wire(self._tls)
        greeting = Greeting(stream, self._neighbours, dialled=dialled)
        stream.connection_made(wire)
        at = turn = 0
        while at < len(data) and not wire.closed:
            room = stream.get_buffer(-1)
            size = min(len(room), sizes[turn % len(sizes)], len(data) - at)
            room[:size] = data[at : at + size]
            room.release()
            stream.buffer_updated(size)
            at, turn = at + size, turn + 1
        stream.connection_lost(None)
        greeting.dismiss()
        assert not self._neighbours.neighbours(), "a link outlived its connection"
        await asyncio.sleep(0)

    def close(self) -> None:
        """Nobody is linked, nothing is under way."""
        self._loop.run_until_complete(self._neighbours.stop())
        left = asyncio.all_tasks(self._loop)
        self._loop.close()
        assert not left, f"{len(left)} tasks are left: {next(iter(left))}"


def _streams(rng: random.Random, folder: Path) -> Streams:
    return Streams(rng, folder / f"stream-{rng.getrandbits(32):x}")


BORDERS = (Border("stream", _streams, (), episode=20_000, share=0.3, suspicious_s=0.02),)
