"""The borders of the wire: frames, messages, datagrams, greetings and the headers of tensors."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.net.hello import Hello, Refusal, decode_hello, decode_refusal, encode_hello
from meshnn.node.slices import pieces_of
from meshnn.node.switchboard import codec
from meshnn.plan.messages import Slice, TensorPart
from meshnn.wire.codec import Codec, builtins, pack
from meshnn.wire.datagram import DatagramHeader, ReplayWindow, decode_datagram, encode_datagram
from meshnn.wire.frame import META_LIMIT_BYTES, FrameParser, Kind, head
from meshnn.wire.tensor import DTYPES
from tools.fuzz.border import Border
from tools.fuzz.mutate import edge, mutated, spoilt
from tools.fuzz.values import BOOTS, DEVICES, message, message_types

PAYLOAD_LIMIT_BYTES = 1 << 20
EACH = 8
# Ids that 16 bytes make: 130 bits do not.
IDS = tuple(letter * 26 for letter in "aeim")


class Frames:
    """Streams of frames, spoilt, read in pieces of any size. What the parser holds stays within its limits."""

    def __init__(self, rng: random.Random) -> None:
        """A few good frames to spoil."""
        kinds = [*Kind, 0, 99, 255]
        self._good = [
            head(rng.choice(kinds), rng.randbytes(rng.choice((0, 3, 40))), size) + bytes(size)
            for size in (0, 0, 1, 64, 300)
            for _ in range(EACH)
        ]

    def draw(self, rng: random.Random) -> tuple[bytes, list[int]]:
        """One to four frames and the sizes they arrive in."""
        stream = b"".join(rng.choice(self._good) for _ in range(rng.randint(1, 4)))
        return mutated(rng, stream, self._good), [rng.choice((1, 2, 15, 16, 17, 100, 10_000)) for _ in range(4)]

    def take(self, given: object) -> None:
        """Feed it; payloads are admitted by the parity of their size."""
        assert isinstance(given, tuple)
        data, sizes = given
        parser = FrameParser(PAYLOAD_LIMIT_BYTES, lambda kind, meta, size: size % 2 == 0)
        at = turn = 0
        while at < len(data):
            room = parser.get_buffer()
            assert len(room), "no room to read into"
            size = min(len(room), sizes[turn % len(sizes)], len(data) - at)
            room[:size] = data[at : at + size]
            room.release()
            at, turn = at + size, turn + 1
            for frame in parser.feed(size):
                assert len(frame.meta) <= META_LIMIT_BYTES
                assert frame.payload is None or len(frame.payload) <= PAYLOAD_LIMIT_BYTES
            assert parser.held_bytes <= PAYLOAD_LIMIT_BYTES + 2 * META_LIMIT_BYTES

    def close(self) -> None:
        """Nothing is left."""


class Messages:
    """Every message type: valid ones spoilt as bytes and as values. What is taken can be sent on."""

    def __init__(self, rng: random.Random) -> None:
        """Some valid messages of every type."""
        self.codec: Codec = codec()
        self.good: list[bytes] = []
        self._values: list[list[object]] = []
        for kind in message_types():
            for _ in range(EACH):
                drawn = message(rng, kind)
                self.good.append(self.codec.encode(drawn))
                self._values.append([kind.__name__, builtins(drawn)])

    def draw(self, rng: random.Random) -> bytes:
        """A message's bytes."""
        if rng.random() < 0.3:
            try:
                return pack(spoilt(rng, rng.choice(self._values)))
            except (ValueError, OverflowError):
                return b""
        return mutated(rng, rng.choice(self.good), self.good)

    def take(self, given: object) -> None:
        """Decode it; the same message encoded and decoded again is equal."""
        assert isinstance(given, bytes)
        taken = self.codec.decode(given)
        if isinstance(taken, tuple(message_types())):
            assert self.codec.decode(self.codec.encode(taken)) == taken

    def close(self) -> None:
        """Nothing is left."""


class DatagramBytes:
    """Datagrams, spoilt in header and body, with a replay window behind."""

    def __init__(self, rng: random.Random) -> None:
        """Some good datagrams."""
        self._codec = codec()
        self._window = ReplayWindow()
        self._good: list[bytes] = []
        for body in (body for body in Messages(rng).good if len(body) <= 1200):
            sender, target = rng.choice(IDS), rng.choice((*IDS, ""))
            header = DatagramHeader(rng.randbytes(8), sender, rng.choice(BOOTS), edge(rng) % 2**64, target)
            self._good.append(encode_datagram(header, body))

    def draw(self, rng: random.Random) -> bytes:
        """A datagram's bytes."""
        return mutated(rng, rng.choice(self._good), self._good)

    def take(self, given: object) -> None:
        """Decode header and body, and ask the window twice."""
        assert isinstance(given, bytes)
        header, body = decode_datagram(given)
        self._window.accept(header.counter)
        assert not self._window.accept(header.counter), "a counter was accepted twice"
        self._codec.decode(body)

    def close(self) -> None:
        """Nothing is left."""


class Greetings:
    """HELLO and REFUSED, spoilt as bytes and as values."""

    def __init__(self, rng: random.Random) -> None:
        """Some good greetings."""
        hellos = [
            Hello("home", "pi", BootId(rng.choice(BOOTS)), 7766, 7767, device_id=DeviceId(rng.choice(DEVICES)))
            for _ in range(EACH)
        ]
        said: list[Hello | Refusal] = [*hellos, Refusal("wrong_mesh", "this device is in mesh home, not in lab")]
        said += [msgspec.structs.replace(hello, version=version) for hello in hellos for version in (0, 2, 65535)]
        self._values = [builtins(one) for one in said]
        self._good = [encode_hello(one) for one in said]

    def draw(self, rng: random.Random) -> bytes:
        """The meta part of a greeting."""
        if rng.random() < 0.4:
            try:
                return pack(spoilt(rng, rng.choice(self._values)))
            except (ValueError, OverflowError):
                return b""
        return mutated(rng, rng.choice(self._good), self._good)

    def take(self, given: object) -> None:
        """Decode it as what either end expects; what is understood of another version is one printable line."""
        assert isinstance(given, bytes)
        try:
            decode_refusal(given)
        except PeerError as error:
            _one_line(error)
        try:
            decode_hello(given)
        except PeerError as error:
            _one_line(error)
            raise

    def close(self) -> None:
        """Nothing is left."""


def _one_line(error: PeerError) -> None:
    line = str(error)
    assert line, "an error without words"
    assert line.isprintable(), "an error of more than one printable line"
    assert len(line) <= 300, "an error too long to show"


class TensorHeaders:
    """Headers of slices with payloads they may or may not describe."""

    def __init__(self, rng: random.Random) -> None:
        """Some valid headers."""
        self._headers = [message(rng, Slice) for _ in range(8 * EACH)]
        self._payloads = [memoryview(bytes(size)) for size in (0, 1, 4, 64, 65, 128, 1024, 65536)]

    def draw(self, rng: random.Random) -> tuple[Slice, memoryview]:
        """A header and a payload."""
        parts = tuple(self._part(rng) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        header = msgspec.structs.replace(rng.choice(self._headers), tensors=parts)
        return header, rng.choice(self._payloads)

    def _part(self, rng: random.Random) -> TensorPart:
        dtype = rng.choice((*sorted(DTYPES), "object", "O", "V8", "float32,int8", "\0"))
        rank = rng.choice((0, 1, 2, 3, 4, 8, 9, 40))
        edges = [rng.randint(0, 4) if rng.random() < 0.8 else rng.choice((1, -1)) * edge(rng) for _ in range(rank)]
        shape = tuple(edges)
        box = tuple((0, size) if rng.random() < 0.9 else (edge(rng), size) for size in shape)
        return TensorPart(rng.randint(-1, 9), dtype, shape, box, edge(rng))

    def take(self, given: object) -> None:
        """Make views of the payload."""
        assert isinstance(given, tuple)
        header, payload = given
        for piece in pieces_of(header, payload):
            assert piece.array.nbytes <= payload.nbytes

    def close(self) -> None:
        """Nothing is left."""


def _frames(rng: random.Random, folder: Path) -> Frames:
    return Frames(rng)


def _messages(rng: random.Random, folder: Path) -> Messages:
    return Messages(rng)


def _datagrams(rng: random.Random, folder: Path) -> DatagramBytes:
    return DatagramBytes(rng)


def _greetings(rng: random.Random, folder: Path) -> Greetings:
    return Greetings(rng)


def _tensors(rng: random.Random, folder: Path) -> TensorHeaders:
    return TensorHeaders(rng)


BORDERS = (
    Border("frame", _frames, (PeerError,), again=True),
    Border("codec", _messages, (PeerError,), episode=20_000),
    Border("datagram", _datagrams, (PeerError,), episode=20_000, again=False),
    Border("hello", _greetings, (PeerError,), episode=20_000),
    Border("tensor", _tensors, (PeerError,), episode=20_000),
)
