"""Garbage on every port: refused, counted, and nothing leaks, while the good link goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from meshnn.net.refusals import QUIET_S, Refusals
from meshnn.net.security import Authority, Identity, mesh_tag
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Limits
from meshnn.telemetry import captured
from meshnn.wire.datagram import DatagramHeader, encode_datagram
from meshnn.wire.frame import HEADER, MAGIC, VERSION, FrameParser, Kind, head
from tests.net.recorder import LOCAL, MESH, Note, Peer, StartPeer, eventually, link

CONNECTIONS = 200


async def say_plain(peer: Peer, data: bytes) -> None:
    """Connects without TLS, says something, and waits until it is hung up on."""
    reader, writer = await asyncio.open_connection(LOCAL, peer.transport.port)
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def say_inside_tls(peer: Peer, identity: Identity, data: bytes) -> None:
    """Connects as a device of the open mesh, says something, and waits until it is hung up on."""
    reader, writer = await asyncio.open_connection(LOCAL, peer.transport.port, ssl=identity.client, server_hostname="")
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        await reader.read()
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def garbage(draw: random.Random) -> tuple[bool, bytes]:
    """Something that is no HELLO: whether it is said inside TLS, and what."""
    oversize = HEADER.pack(MAGIC, VERSION, Kind.HELLO, 10, 2**60)
    inside = [
        head(Kind.HELLO, draw.randbytes(50)),
        head(Kind.TENSORS, b"x", 10) + bytes(10),
        head(Kind.MESSAGE, b"x"),
        head(Kind.HELLO_ACK, b"\xa0"),
        oversize,
        draw.randbytes(40),
    ]
    plain = [draw.randbytes(draw.randrange(1, 2000)), b"GET / HTTP/1.1\r\n\r\n", oversize, b"\x16\x03\x01" + bytes(200)]
    return (True, draw.choice(inside)) if draw.random() < 0.5 else (False, draw.choice(plain))


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Without the garbage collector: what holds itself stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_a_connection_that_ends_gives_its_memory_back_at_once(peers: StartPeer, tmp_path: Path) -> None:
    """Neither a stranger's nor a neighbour's stream waits for the garbage collector, with 300 kB of buffers each."""
    a, b = await peers("a"), await peers("b")
    stranger = Identity.load(tmp_path / "stranger")
    for _ in range(5):
        await say_inside_tls(a, stranger, head(Kind.MESSAGE, b"x"))
        await say_inside_tls(a, stranger, b"no frame at all")
    await link(a, b)
    await b.transport.stop()
    await a.recorder.until("unlinked", b.id)
    await eventually(lambda: not any(isinstance(one, FramedStream | FrameParser) for one in gc.get_objects()))


async def test_garbage_connections_leave_nothing_behind(peers: StartPeer, tmp_path: Path) -> None:
    """After 200 of them: no more descriptors, threads or tasks than before, all counted, and the link still works."""
    a, b = await peers("a", limits=Limits(handshake_s=30.0)), await peers("b")
    await link(a, b)
    stranger = Identity.load(tmp_path / "stranger")
    await say_inside_tls(a, stranger, b"warms up what is made once")
    await eventually(lambda: a.transport._doorway.half_open == 0)
    before = (psutil.Process().num_fds(), threading.active_count(), len(asyncio.all_tasks()))
    counted = a.transport.refusals.counts["garbage"]
    draw = random.Random(7)
    for _ in range(CONNECTIONS // 20):
        said = [garbage(draw) for _ in range(20)]
        await asyncio.gather(
            *(say_inside_tls(a, stranger, data) if inside else say_plain(a, data) for inside, data in said)
        )
    await eventually(lambda: a.transport._doorway.half_open == 0)
    await eventually(lambda: (psutil.Process().num_fds(), threading.active_count(), len(asyncio.all_tasks())) <= before)
    assert a.transport.refusals.counts["garbage"] - counted == CONNECTIONS
    assert a.transport.send(b.id, Note("still here"))
    await b.recorder.until("message")
    assert not a.recorder.of("unlinked")


async def test_garbage_datagrams_are_counted_and_dropped(peers: StartPeer) -> None:
    """Random datagrams call no handler; a good one after them arrives."""
    a, b = await peers("a"), await peers("b")
    draw = random.Random(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for number in range(100):
            prefix = b"mD\x01\x00" if number % 2 else b""
            stranger.sendto(prefix + draw.randbytes(draw.randrange(1, 1400)), (LOCAL, a.transport.port))
            await eventually(lambda number=number: a.transport.refusals.counts.total() > number)  # type: ignore[misc]
    b.transport.send_datagram(a.id, None, LOCAL, a.transport.port, Note("good"))
    await a.recorder.until("datagram")
    assert len(a.recorder.events) == 1


async def test_a_flood_of_what_is_not_ours_changes_nothing(peers: StartPeer) -> None:
    """Replays, another mesh's, one's own: thousands of them call no handler, leave no row, and do not hold up the good.

    `python -m tools.borders stranger` has the figures.
    """
    a, b = await peers("a"), await peers("b")
    datagrams = a.transport._datagrams
    assert datagrams is not None
    b.transport.send_datagram(a.id, None, LOCAL, a.transport.port, Note("first"))
    await a.recorder.until("datagram")
    tag, life = mesh_tag(MESH), b.hello.boot_id
    replayed = encode_datagram(DatagramHeader(tag, b.id, life, 1), b"x")
    others = [
        encode_datagram(DatagramHeader(b"another!", b.id, life, 7), b"x"),
        encode_datagram(DatagramHeader(tag, a.id, life, 7), b"x"),
        encode_datagram(DatagramHeader(tag, b.id, life, 7, target=b.id), b"x"),
        encode_datagram(DatagramHeader(tag, b.id, life, 7, key_id=1), b"x"),
    ]
    windows = dict(datagrams._windows)
    counts, told = a.transport.refusals.counts, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(40):
            for data in (replayed, *others):
                for _ in range(10):
                    stranger.sendto(data, (LOCAL, a.transport.port))
            told += 50
            await eventually(lambda told=told: counts.total() == told)  # type: ignore[misc]
    assert counts == dict.fromkeys(
        ("replayed_datagram", "wrong_mesh_datagram", "own_datagram", "datagram_for_another", "unknown_key"), 400
    )
    assert datagrams._windows == windows
    b.transport.send_datagram(a.id, None, LOCAL, a.transport.port, Note("good"))
    await a.recorder.until("datagram", times=2)
    assert [event[3] for event in a.recorder.of("datagram")] == [Note("first"), Note("good")]


async def test_garbage_on_a_link_ends_that_link_only(peers: StartPeer) -> None:
    """A linked peer that breaks the protocol loses its link, orderly; others keep theirs."""
    a, b, c = await peers("a"), await peers("b"), await peers("c")
    await link(a, b)
    await link(a, c)
    b.transport._links[a.id, "control"].stream.write(head(Kind.TENSORS, b"on the wrong channel"))
    await a.recorder.until("unlinked", b.id, "closed")
    assert a.transport.refusals.counts["garbage"] == 1
    assert a.transport.neighbours() == (c.id,)


async def test_a_message_of_the_wrong_shape_ends_the_link(peers: StartPeer) -> None:
    """What is no message of the schema is a broken protocol."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    b.transport._links[a.id, "control"].send(b"\x82dNote\xa1dtext\x05")
    await a.recorder.until("unlinked", b.id)
    assert not a.recorder.of("message")


async def test_frames_of_a_newer_version_are_skipped(peers: StartPeer) -> None:
    """A frame kind we do not know, with a payload, is read past."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    b.transport._links[a.id, "control"].stream.write(head(99, b"later", 70_000) + bytes(70_000))
    assert b.transport.send(a.id, Note("after it"))
    await a.recorder.until("message", b.id, b.hello.boot_id, Note("after it"))


async def test_another_authority_is_refused_at_tls(peers: StartPeer, tmp_path: Path) -> None:
    """A device certified by another mesh's authority gets no further than the handshake, either way round."""
    a = await peers("a")
    stranger = Identity.load(tmp_path / "stranger", Authority(b"another secret"))
    with pytest.raises(OSError, match=r"(?i)certificate.verify.failed"):
        await say_inside_tls(a, stranger, b"")
    await eventually(lambda: a.transport.refusals.counts["garbage"] == 1)


async def test_the_doorway_holds_only_so_many_strangers(peers: StartPeer) -> None:
    """Connections over the limit are closed unread; when the others are done there is room again."""
    a, b = await peers("a", limits=Limits(half_open=4)), await peers("b")
    held = [socket.create_connection((LOCAL, a.transport.port)) for _ in range(6)]
    await eventually(lambda: a.transport.refusals.counts["crowded"] == 2)
    assert a.transport._doorway.half_open == 4
    b.dial(a)
    await b.recorder.until("unreachable", (LOCAL, a.transport.port), "handshake")
    for connection in held:
        connection.close()
    await eventually(lambda: a.transport._doorway.half_open == 0)
    await link(b, a)


async def test_one_host_cannot_fill_the_doorway(peers: StartPeer) -> None:
    """A host may hold eight places, loopback (where every node of a demo lives) all of them."""
    doorway = (await peers("a")).transport._doorway
    doorway._vicinity.name("192.0.2.9")
    doorway._inside["192.0.2.9"] = 8
    assert doorway._reason_against("192.0.2.9") == "crowded_host"
    doorway._inside["192.0.2.9"] = 7
    assert doorway._reason_against("192.0.2.9") == ""
    doorway._inside[LOCAL] = 50
    assert doorway._reason_against(LOCAL) == ""
    doorway._inside.clear()


async def test_a_stranger_from_afar_is_not_let_in(peers: StartPeer) -> None:
    """A host on no attached network is closed unread."""
    a = await peers("a")
    hosts = ("192.0.2.1", "198.51.100.1", "203.0.113.1")
    foreign = next(host for host in hosts if not a.transport._vicinity.includes(host))
    assert a.transport._doorway._reason_against(foreign) == "foreign"


async def test_running_out_of_descriptors_pauses_accepting_and_recovers(
    peers: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE neither spins nor ends the node: accepting rests, then goes on."""
    a, b = await peers("a"), await peers("b")
    doorway = a.transport._doorway._acceptor
    (listener,) = doorway._listeners
    tries = 0

    class Exhausted:
        """A listener whose accept fails once for want of descriptors."""

        def fileno(self) -> int:
            return listener.fileno()

        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            nonlocal tries
            tries += 1
            raise OSError(24, os.strerror(24))

    doorway._accept(Exhausted())  # type: ignore[arg-type]
    assert tries == 1
    assert a.transport.refusals.counts["accept"] == 1
    assert len(doorway._rests) == 1
    doorway._rests.pop(listener.fileno()).cancel()
    doorway._resume(listener)
    await link(b, a)


def test_refusals_are_all_counted_and_seldom_logged() -> None:
    """A flood is one line every ten seconds per reason, saying how often; a peer's text is made harmless."""
    now = 100.0
    refusals = Refusals(lambda: now)
    with captured() as lines:
        for _ in range(50):
            refusals.note("garbage", "192.0.2.1", "\x1b[31m\n" + "x" * 1000)
        now += QUIET_S
        refusals.note("garbage", "192.0.2.1")
        refusals.note("crowded", "192.0.2.1")
    assert refusals.counts == {"garbage": 51, "crowded": 1}
    assert [(line["reason"], line["times"]) for line in lines] == [("garbage", 1), ("garbage", 50), ("crowded", 1)]
    assert lines[0]["line"].isprintable()
    assert len(lines[0]["line"]) <= 200
