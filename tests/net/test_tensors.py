"""Tensors between neighbours: whole, in order, admitted first, and never half a frame."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from meshnn.errors import PeerError
from meshnn.net.transport import Limits
from tests.net.recorder import Note, StartPeer, eventually, link


async def test_tensors_go_both_ways_at_once_byte_for_byte(peers: StartPeer) -> None:
    """Two neighbours that send at the same moment share one tensors link; every byte arrives, in order."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    draw = random.Random(1)
    parts = [[draw.randbytes(size) for size in sizes] for sizes in ([3, 300_000], [], [0], [1_000_000, 64])]

    async def send(sender: object, receiver: object) -> None:
        for number, part in enumerate(parts):
            buffers = [memoryview(piece) for piece in part]
            await sender.transport.send_tensors(receiver.id, Note(str(number)), buffers)  # type: ignore[attr-defined]

    await asyncio.gather(send(a, b), send(b, a))
    for peer in (a, b):
        await peer.recorder.until("tensors", times=len(parts))
        assert peer.recorder.payloads == [b"".join(part) for part in parts]
        assert [event[3] for event in peer.recorder.of("tensors")] == [Note(str(number)) for number in range(4)]
        assert len(peer.recorder.of("linked")) == 1
        assert not peer.recorder.of("unlinked")


async def test_who_is_not_admitted_is_thrown_away_and_the_link_goes_on(peers: StartPeer) -> None:
    """Without the node's yes no payload is kept; the next one, admitted, arrives."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    b.recorder.admits = False
    await a.transport.send_tensors(b.id, Note("no"), [memoryview(bytes(500_000))])
    await a.transport.send_tensors(b.id, Note("no"), [])
    await b.recorder.until("admit", times=2)
    b.recorder.admits = True
    await a.transport.send_tensors(b.id, Note("yes"), [memoryview(b"abc")])
    await b.recorder.until("tensors")
    assert b.recorder.payloads == [b"abc"]
    assert [event[2:] for event in b.recorder.of("admit")] == [
        (Note("no"), 500_000),
        (Note("no"), 0),
        (Note("yes"), 3),
    ]


async def test_buffers_of_any_type_are_sent_as_their_bytes(peers: StartPeer) -> None:
    """A memoryview of wider items is its bytes, not its items."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    await a.transport.send_tensors(b.id, Note("wide"), [memoryview(bytes(range(8))).cast("I")])
    await b.recorder.until("tensors")
    assert b.recorder.payloads == [bytes(range(8))]


async def test_a_cancelled_sender_never_cuts_a_frame_in_two(peers: StartPeer) -> None:
    """Senders that give up in the middle leave a link on which the next frame is whole."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    big = bytes(3_000_000)
    for round_number in range(5):
        sending = [
            asyncio.get_running_loop().create_task(
                a.transport.send_tensors(b.id, Note(f"{round_number}"), [memoryview(big)])
            )
            for _ in range(3)
        ]
        await b.recorder.until("admit", times=len(b.recorder.of("admit")) + 1)
        for task in sending:
            task.cancel()
        for task in sending:
            with contextlib.suppress(asyncio.CancelledError):
                await task
    await a.transport.send_tensors(b.id, Note("last"), [memoryview(b"whole")])
    await eventually(lambda: b"whole" in b.recorder.payloads)
    assert {len(payload) for payload in b.recorder.payloads} == {len(big), 5}
    assert not b.recorder.of("unlinked")


async def test_a_lost_link_is_an_error_for_every_sender(peers: StartPeer) -> None:
    """Who is sending, and who waits to, gets PeerError when the link breaks; both channels end together."""
    a, b = await peers("a", limits=Limits(tensor_queue=2)), await peers("b")
    await link(a, b)
    big = bytes(50_000_000)
    sending = [
        asyncio.get_running_loop().create_task(a.transport.send_tensors(b.id, Note("big"), [memoryview(big)]))
        for _ in range(6)
    ]
    await b.recorder.until("admit")
    for held in b.transport._links.values():
        if held.channel == "tensors":
            held.stream.abort()
    results = await asyncio.gather(*sending, return_exceptions=True)
    assert all(isinstance(result, PeerError) for result in results)
    await a.recorder.until("unlinked", b.id)
    assert not a.transport.connected(b.id)


async def test_tensors_over_the_limit_are_refused_at_the_sender(peers: StartPeer) -> None:
    """What no peer takes is not sent: too great a payload, too long a header."""
    a, b = await peers("a", limits=Limits(payload_bytes=1000)), await peers("b")
    await link(a, b)
    with pytest.raises(PeerError, match="exceed"):
        await a.transport.send_tensors(b.id, Note("x"), [memoryview(bytes(1001))])
    with pytest.raises(PeerError, match="exceed"):
        await a.transport.send_tensors(b.id, Note("", bytes(70_000)), [])
    assert a.transport.connected(b.id)


async def test_a_peer_over_our_limit_is_cut_off_before_memory_is_taken(peers: StartPeer) -> None:
    """A frame over the receiver's limit ends the link as the protocol error it is."""
    a, b = await peers("a"), await peers("b", limits=Limits(payload_bytes=1000))
    await link(a, b)
    with contextlib.suppress(PeerError):  # whether the sender hears of it while sending is chance
        await a.transport.send_tensors(b.id, Note("x"), [memoryview(bytes(1001))])
    await b.recorder.until("unlinked", a.id, "closed")
    assert b.transport.refusals.counts["garbage"] == 1
    assert not b.recorder.of("admit")
