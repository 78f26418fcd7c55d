"""The frame parser: whole frames out of any cutting of bytes, nothing allocated unchecked, garbage refused."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnn.errors import PeerError
from meshnn.wire.frame import HEADER, MAGIC, META_LIMIT_BYTES, VERSION, Frame, FrameParser, Kind, head

Told = tuple[int, bytes, bytes | None]


def feed(parser: FrameParser, data: bytes, steps: list[int]) -> list[Frame]:
    """What comes out when `data` arrives in pieces of these sizes, over and over."""
    frames: list[Frame] = []
    turn = 0
    while data:
        room = parser.get_buffer()
        assert len(room) > 0
        size_bytes = min(len(room), len(data), steps[turn % len(steps)])
        room[:size_bytes] = data[:size_bytes]
        data = data[size_bytes:]
        turn += 1
        frames += parser.buffer_updated(size_bytes)
    return frames


def told(frame: Frame) -> Told:
    """A frame as a comparable value."""
    return frame.kind, frame.meta, None if frame.payload is None else bytes(frame.payload)


frame_values = st.tuples(st.integers(0, 255), st.binary(max_size=100), st.binary(max_size=300))


@given(frames=st.lists(frame_values, max_size=8), steps=st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_any_cutting_of_the_bytes_gives_the_same_frames(frames: list[Told], steps: list[int]) -> None:
    """What is sent comes out, however the network cuts it."""
    data = b"".join(head(kind, meta, len(payload or b"")) + (payload or b"") for kind, meta, payload in frames)
    parser = FrameParser(300, lambda kind, meta, size: True)
    assert [told(frame) for frame in feed(parser, data, steps)] == [(k, m, p or None) for k, m, p in frames]
    assert not parser.midway


@given(data=st.binary(max_size=400), steps=st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_garbage_only_ever_raises_peer_error(data: bytes, steps: list[int]) -> None:
    """No bytes whatever bring out another exception than PeerError."""
    try:
        feed(FrameParser(1000, lambda kind, meta, size: True), data, steps)
    except PeerError:
        return


@given(position=st.integers(0, HEADER.size - 1), value=st.integers(0, 255))
def test_a_damaged_header_is_a_frame_or_a_peer_error(position: int, value: int) -> None:
    """One changed byte of a header never does worse than PeerError."""
    data = bytearray(head(Kind.MESSAGE, b"meta", 4) + b"load")
    data[position] = value
    try:
        feed(FrameParser(1000, lambda kind, meta, size: True), bytes(data), [7])
    except PeerError:
        return


def test_a_large_payload_is_read_into_its_own_buffer() -> None:
    """After the first read the parser offers the payload's own memory, all that is missing of it."""
    parser = FrameParser(10**6, lambda kind, meta, size: True)
    payload = bytes(range(256)) * 2000
    assert feed(parser, head(Kind.TENSORS, b"m", len(payload)) + payload[:100], [1000]) == []
    assert len(parser.get_buffer()) == len(payload) - 100
    assert parser.midway
    frames = feed(parser, payload[100:], [65536])
    assert [told(frame) for frame in frames] == [(Kind.TENSORS, b"m", payload)]


@pytest.mark.parametrize("payload_bytes", [1001, 2**32, 2**64 - 1])
def test_a_payload_over_the_limit_is_refused_before_memory_is_taken(payload_bytes: int) -> None:
    """A length that is too great is refused at the header; the parser's memory stays as it was."""
    parser = FrameParser(1000, lambda kind, meta, size: True)
    held_bytes = parser.held_bytes
    with pytest.raises(PeerError, match="payload"):
        feed(parser, HEADER.pack(MAGIC, VERSION, Kind.TENSORS, 0, payload_bytes), [64])
    assert parser.held_bytes == held_bytes


def test_a_meta_part_over_the_limit_is_refused_both_ways() -> None:
    """64 KiB of meta pass, one byte more does not, sending or receiving."""
    frames = feed(FrameParser(0, lambda kind, meta, size: True), head(Kind.MESSAGE, bytes(META_LIMIT_BYTES)), [5000])
    assert len(frames[0].meta) == META_LIMIT_BYTES
    with pytest.raises(PeerError, match="meta"):
        head(Kind.MESSAGE, bytes(META_LIMIT_BYTES + 1))
    with pytest.raises(PeerError, match="meta"):
        feed(
            FrameParser(0, lambda kind, meta, size: True),
            HEADER.pack(MAGIC, VERSION, Kind.MESSAGE, META_LIMIT_BYTES + 1, 0),
            [64],
        )


def test_a_payload_that_is_not_admitted_is_thrown_away_and_the_stream_goes_on() -> None:
    """Refused memory is never taken; the frame comes out dropped and the next one is whole."""
    asked: list[tuple[int, bytes, int]] = []

    def admit(kind: int, meta: bytes, size: int) -> bool:
        asked.append((kind, meta, size))
        return size < 1000

    parser = FrameParser(10**7, admit)
    data = head(Kind.TENSORS, b"big", 10**6) + bytes(10**6) + head(Kind.TENSORS, b"small", 3) + b"abc"
    held_bytes = parser.held_bytes
    frames = feed(parser, data, [4000])
    assert [(frame.meta, frame.payload, frame.dropped) for frame in frames] == [
        (b"big", None, True),
        (b"small", b"abc", False),
    ]
    assert asked == [(Kind.TENSORS, b"big", 10**6), (Kind.TENSORS, b"small", 3)]
    assert parser.held_bytes == held_bytes


@pytest.mark.parametrize("data", [b"G", b"\x16\x03\x01", b"mX", HEADER.pack(MAGIC, 9, 1, 0, 0)])
def test_a_stranger_is_refused_at_the_first_wrong_byte(data: bytes) -> None:
    """Wrong magic or version ends it at once, even before a whole header came."""
    parser = FrameParser(0, lambda kind, meta, size: True)
    with pytest.raises(PeerError):
        feed(parser, data, [1])


def test_a_broken_parser_stays_broken() -> None:
    """After garbage nothing is read any more, not even good frames."""
    parser = FrameParser(0, lambda kind, meta, size: True)
    with pytest.raises(PeerError):
        feed(parser, b"garbage", [7])
    with pytest.raises(PeerError):
        parser.buffer_updated(0)


def test_a_frame_is_given_out_before_the_next_is_offered() -> None:
    """Two frames in one read: whoever admits the second has the first already, so headers never mix."""
    story: list[str] = []

    def admit(kind: int, meta: bytes, payload_bytes: int) -> bool:
        del kind, payload_bytes
        story.append(f"offered {meta.decode()}")
        return True

    parser = FrameParser(1000, admit)
    data = b"".join(head(Kind.TENSORS, meta, 3) + b"abc" for meta in (b"one", b"two"))
    parser.get_buffer()[: len(data)] = data
    story.extend(f"taken {frame.meta.decode()}" for frame in parser.feed(len(data)))
    assert story == ["offered one", "taken one", "offered two", "taken two"]


def test_a_parser_that_has_ended_is_gone_with_its_last_user() -> None:
    """The error that broke it holds frames that hold the parser: without the garbage collector they would stay."""
    gc.disable()
    try:
        parser = FrameParser(10, lambda kind, meta, payload_bytes: True)
        parser.get_buffer()[:4] = b"garb"
        with pytest.raises(PeerError, match="not a meshnn frame"):
            parser.buffer_updated(4)
        with pytest.raises(PeerError, match="not a meshnn frame"):
            parser.buffer_updated(1)
        parser.end()
        with pytest.raises(PeerError, match="ended"):
            parser.buffer_updated(1)
        parser.end()
        left = weakref.ref(parser)
        del parser
        assert left() is None
    finally:
        gc.enable()
