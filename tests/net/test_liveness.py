"""Liveness: a silent neighbour with work outstanding is found out, a busy or slow one is not."""

from __future__ import annotations

import asyncio
import contextlib

from meshnn.net.link import Link
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Limits
from tests.net.recorder import LOCAL, Note, Peer, StartPeer, eventually, link


def deafen(peer: Peer) -> None:
    """The peer's process stops reading, as one that hangs: its sockets stay open."""
    for held in peer.transport._links.values():
        assert held.stream._transport is not None
        held.stream._transport.pause_reading()


def beats(held: Link) -> bool:
    """Whether a link is being pinged."""
    return held._pulse is not None


async def test_three_unanswered_pings_are_evidence(peers: StartPeer) -> None:
    """A neighbour that hangs while work is outstanding is reported silent."""
    a, b = await peers("a", limits=Limits(ping_every_s=0.05)), await peers("b")
    await link(a, b)
    deafen(b)
    a.transport.expecting(b.id, 1)
    await a.recorder.until("unlinked", b.id, "silent")
    assert not a.transport.connected(b.id)


async def test_without_outstanding_work_nobody_is_pinged(peers: StartPeer) -> None:
    """Idle links cost nothing: a hung neighbour without work due is membership's matter, not ours."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    held = a.transport._links[b.id, "control"]
    assert not beats(held)
    a.transport.expecting(b.id, 1)
    a.transport.expecting(b.id, 1)
    assert beats(held)
    a.transport.expecting(b.id, -1)
    assert beats(held)
    a.transport.expecting(b.id, -1)
    assert not beats(held)
    a.transport.expecting(b.id, -1)
    a.transport.expecting(b.id, 1)
    assert beats(held)


async def test_answered_pings_measure_the_round_trip_and_keep_the_link(peers: StartPeer) -> None:
    """A neighbour that answers stays linked however many pings there are, and its distance is known."""
    a, b = await peers("a", limits=Limits(ping_every_s=0.001, pings_unanswered=10_000)), await peers("b")
    await link(a, b)
    a.transport.expecting(b.id, 1)
    await eventually(lambda: a.transport._links[b.id, "control"]._ping_number > 50)
    await eventually(lambda: a.transport.round_trip_s(b.id) is not None)
    assert a.transport.connected(b.id)
    assert a.transport._links[b.id, "control"]._unanswered < 10_000


async def test_outstanding_work_is_watched_on_the_next_link_too(peers: StartPeer) -> None:
    """The count outlives a link: a link made while work is due is pinged from its first moment."""
    a, b = await peers("a"), await peers("b")
    a.transport.expecting(b.id, 1)
    await link(a, b)
    assert a.transport._links[b.id, "control"]._pulse is not None


async def test_a_neighbour_that_does_not_read_is_cut_off(peers: StartPeer) -> None:
    """A full outbox that does not move ends the link as silent, and frees whoever waits to send tensors."""
    a, b = await peers("a", limits=Limits(stall_s=0.3)), await peers("b")
    await link(a, b)
    await a.transport.send_tensors(b.id, Note("opens the tensors link"), [])
    await b.recorder.until("tensors")
    deafen(b)
    payload = bytes(64_000_000)
    result = (
        await asyncio.gather(a.transport.send_tensors(b.id, Note("x"), [memoryview(payload)]), return_exceptions=True)
    )[0]
    assert isinstance(result, Exception)
    await a.recorder.until("unlinked", b.id, "silent")


async def test_half_a_frame_is_not_waited_for_for_ever(peers: StartPeer) -> None:
    """A peer that begins a frame and says no more is cut off."""
    a, b = await peers("a", limits=Limits(stall_s=0.2)), await peers("b")
    await link(a, b)
    b.transport._links[a.id, "control"].stream.write(b"mN\x01")
    await a.recorder.until("unlinked", b.id, "silent")


async def test_a_slow_greeting_is_ended(peers: StartPeer) -> None:
    """TLS without a HELLO holds its place for the handshake time only."""
    a, b = await peers("a", limits=Limits(handshake_s=1.0)), await peers("b")
    stream = FramedStream(Limits())
    with contextlib.suppress(OSError):  # on a very busy machine even TLS takes longer than that
        await asyncio.get_running_loop().create_connection(
            lambda: stream, LOCAL, a.transport.port, ssl=b.identity.client, server_hostname=""
        )
        await stream.ended()
    refused = a.transport.refusals.counts
    await eventually(lambda: refused["timeout"] + refused["garbage"] == 1)
    await eventually(lambda: a.transport._doorway.half_open == 0)
