"""Links over real sockets: who links with whom, what travels, and what is said when it ends."""

from __future__ import annotations

import socket

import msgspec
import pytest

from meshnn.errors import PeerError
from meshnn.net.stream import FramedStream
from meshnn.net.transport import Limits
from meshnn.wire.codec import MESSAGE_LIMIT_BYTES
from tests.net.recorder import LOCAL, NEWER_CODEC, Later, Note, Peer, StartPeer, eventually, link, new_boot


def kill(peer: Peer) -> None:
    """Ends a peer's links as `kill -9` does: the system closes the sockets and nobody says goodbye."""
    for held in peer.transport._links.values():
        held.stream.abort()


async def test_a_dial_links_both_ends_and_tells_who_is_there(peers: StartPeer) -> None:
    """Each end learns the other's id, life, name, and where it listens."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    _, device, boot, hello, address = a.recorder.of("linked")[0]
    assert (device, boot, address) == (b.id, b.hello.boot_id, (LOCAL, b.transport.port))
    assert hello.name == "b"  # type: ignore[attr-defined]
    assert b.recorder.of("linked")[0][4] == (LOCAL, a.transport.port)
    assert a.transport.neighbours() == (b.id,)
    assert b.transport.connected(a.id)


async def test_messages_arrive_in_order_and_unchanged(peers: StartPeer) -> None:
    """Small and large control messages, both ways, in the order sent."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    notes = [Note(str(number), bytes(number * 3000)) for number in range(40)]
    assert all(a.transport.send(b.id, note) for note in notes)
    assert b.transport.send(a.id, Note("back"))
    await b.recorder.until("message", times=len(notes))
    assert [event[3] for event in b.recorder.of("message")] == notes
    assert await a.recorder.until("message") == ("message", b.id, b.hello.boot_id, Note("back"))


async def test_simultaneous_dials_leave_one_link(peers: StartPeer) -> None:
    """Two devices that dial each other at the same moment end with one link each, and it carries messages."""
    for turn in range(5):
        a, b = await peers(f"a{turn}"), await peers(f"b{turn}")
        a.dial(b)
        b.dial(a)
        await a.recorder.until("linked", b.id)
        await b.recorder.until("linked", a.id)
        await eventually(lambda a=a, b=b: not a.transport._dialling and not b.transport._dialling)  # type: ignore[misc]
        assert a.transport.send(b.id, Note("a"))
        assert b.transport.send(a.id, Note("b"))
        await a.recorder.until("message")
        await b.recorder.until("message")
        assert len(a.recorder.of("linked")) == len(b.recorder.of("linked")) == 1
        assert not a.recorder.of("unlinked") + b.recorder.of("unlinked")
        assert not a.recorder.of("unreachable") + b.recorder.of("unreachable")


async def test_a_dial_to_a_linked_neighbour_changes_nothing(peers: StartPeer) -> None:
    """Dialling again, by the same or another address of the same device, is silent and harmless."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    await eventually(lambda: not a.transport._dialling)
    a.dial(b)
    assert not a.transport._dialling
    b.transport.dial("localhost", a.transport.port)
    await eventually(lambda: not b.transport._dialling)
    assert len(a.recorder.of("linked")) == len(b.recorder.of("linked")) == 1
    assert not b.recorder.of("unreachable")


async def test_another_mesh_is_refused_by_name_at_both_ends(peers: StartPeer) -> None:
    """The dialling end is told wrong_mesh, the other counts it; nobody links."""
    a, b = (
        await peers(
            "a",
        ),
        await peers("b", mesh="home"),
    )
    a.dial(b)
    await a.recorder.until("unreachable", (LOCAL, b.transport.port), "wrong_mesh")
    await eventually(lambda: b.transport.refusals.counts["wrong_mesh"] == 1)
    assert not a.recorder.of("linked") + b.recorder.of("linked")


async def test_another_protocol_version_is_refused_by_name(peers: StartPeer) -> None:
    """A peer of another version gets a named refusal that says both versions."""
    a, b = await peers("a"), await peers("b")
    a.transport._hello = msgspec.structs.replace(a.transport.hello, version=9)
    a.dial(b)
    await a.recorder.until("unreachable", (LOCAL, b.transport.port), "wrong_version")
    await eventually(lambda: b.transport.refusals.counts["wrong_version"] == 1)


async def test_a_device_that_lies_about_its_id_is_refused(peers: StartPeer) -> None:
    """The id in the HELLO must be the hash of the certificate's key."""
    a, b, victim = await peers("a"), await peers("b"), await peers("victim")
    a.transport._hello = msgspec.structs.replace(a.transport.hello, device_id=victim.id)
    a.dial(b)
    await a.recorder.until("unreachable", (LOCAL, b.transport.port), "wrong_key")
    assert not b.recorder.of("linked")


async def test_dialling_oneself_is_told_apart(peers: StartPeer) -> None:
    """One's own address is no neighbour and no evidence of anything."""
    a = await peers("a")
    a.dial(a)
    await a.recorder.until("unreachable", (LOCAL, a.transport.port), "self")
    assert not a.recorder.of("linked")


@pytest.mark.parametrize("elder_calls", [True, False])
async def test_of_two_devices_with_one_key_the_younger_is_told(peers: StartPeer, elder_calls: bool) -> None:
    """Two running devices with one key do not link; whoever calls, the one that began later hears that it must go."""
    elder, clone = await peers("a"), await peers("a")
    elder.transport._born -= 60.0
    (elder if elder_calls else clone).dial(clone if elder_calls else elder)
    await clone.recorder.until("unreachable", (LOCAL, elder.transport.port), "cloned")
    assert not elder.recorder.of("unreachable", (LOCAL, clone.transport.port), "cloned")
    assert not [*elder.recorder.of("linked"), *clone.recorder.of("linked")]


async def test_a_third_device_keeps_to_the_elder_of_two_with_one_key(peers: StartPeer) -> None:
    """The clone looks like a restart until the elder calls again; then it is refused, and told where the elder is."""
    third, elder = await peers("c"), await peers("a")
    elder.transport._born -= 60.0
    await link(elder, third)
    clone = await peers("a", boot=new_boot())
    clone.dial(third)
    await third.recorder.until("linked", clone.id, clone.hello.boot_id)
    await elder.recorder.until("unlinked", third.id)
    elder.dial(third)
    await third.recorder.until("linked", elder.id, elder.hello.boot_id, times=2)
    await clone.recorder.until("unlinked", third.id)
    clone.dial(third)
    await clone.recorder.until("unreachable", (LOCAL, third.transport.port), "cloned_elsewhere")
    await clone.recorder.until("unreachable", (LOCAL, elder.transport.port), "cloned")
    assert third.transport.connected(elder.id)


async def test_a_link_from_an_address_that_is_gone_ends(peers: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this device's addresses change, what hangs on the old one is over at once; loopback stays what it is."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    a.transport.on_network(["10.0.0.9"])
    assert a.transport.connected(b.id)
    monkeypatch.setattr(FramedStream, "own_host", "10.0.0.8")  # what Wi-Fi had before it got another address
    a.transport.on_network(["10.0.0.8"])
    assert a.transport.connected(b.id)
    a.transport.on_network(["10.0.0.9"])
    await a.recorder.until("unlinked", b.id, "silent")


async def test_datagrams_go_where_the_link_goes(peers: StartPeer) -> None:
    """A row may name an address of a device that is out of reach from here; the link's other end is not."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    a.transport.send_datagram(b.id, None, "203.0.113.77", 9, Note("hello"))
    await b.recorder.until("datagram", a.id, a.hello.boot_id, Note("hello"))


async def test_nobody_there_is_refused(peers: StartPeer) -> None:
    """A host that is there and a process that is not: evidence of the strongest kind."""
    a = await peers("a")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as held:  # bound, so that nobody else listens there
        held.bind((LOCAL, 0))
        port = held.getsockname()[1]
        a.transport.dial(LOCAL, port)
        await a.recorder.until("unreachable", (LOCAL, port), "refused")


async def test_a_foreign_address_is_not_dialled(peers: StartPeer) -> None:
    """An open mesh keeps to the networks it is attached to."""
    a = await peers("a")
    documentation = ("192.0.2.1", "198.51.100.1", "203.0.113.1")
    foreign = next(host for host in documentation if not a.transport._vicinity.includes(host))
    a.transport.dial(foreign, 7766)
    await a.recorder.until("unreachable", (foreign, 7766), "foreign")


async def test_a_goodbye_is_told_from_a_death(peers: StartPeer) -> None:
    """stop() is `closed` at the peer; sockets that break without a word are `reset`."""
    a, b, c = await peers("a"), await peers("b"), await peers("c")
    await link(a, b)
    await link(a, c)
    await b.transport.stop()
    await a.recorder.until("unlinked", b.id, "closed")
    kill(c)
    await a.recorder.until("unlinked", c.id, "reset")
    assert not a.transport.send(c.id, Note("anybody?"))
    assert a.transport.neighbours() == ()


async def test_a_new_life_replaces_the_old(peers: StartPeer) -> None:
    """A device that comes back with another boot id ends the old link as reset, then links anew."""
    a, old = await peers("a"), await peers("b")
    await link(a, old)
    new = await peers("b", boot=new_boot())
    new.dial(a)
    await a.recorder.until("linked", new.id, new.hello.boot_id)
    names = [(event[0], event[2]) for event in a.recorder.events if event[0] in {"linked", "unlinked"}]
    assert names == [("linked", old.hello.boot_id), ("unlinked", "reset"), ("linked", new.hello.boot_id)]
    assert a.transport.send(new.id, Note("welcome"))
    await new.recorder.until("message", a.id)


async def test_a_full_outbox_says_no_and_what_was_taken_arrives(peers: StartPeer) -> None:
    """Back-pressure is an answer, not a growing queue: whatever `send` took arrives, nothing else does."""
    a, b = await peers("a", limits=Limits(outbox_bytes=300_000)), await peers("b")
    await link(a, b)
    taken = 0
    while a.transport.send(b.id, Note(str(taken), bytes(50_000))):
        taken += 1
        assert taken < 10_000
    await b.recorder.until("message", times=taken)
    assert len(b.recorder.of("message")) == taken
    await eventually(lambda: a.transport.send(b.id, Note("room again")))


async def test_a_message_too_large_is_an_error_and_the_link_stays(peers: StartPeer) -> None:
    """Over 512 KiB is the sender's mistake."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    with pytest.raises(PeerError, match="exceeds"):
        a.transport.send(b.id, Note("", bytes(MESSAGE_LIMIT_BYTES)))
    assert a.transport.send(b.id, Note("", bytes(MESSAGE_LIMIT_BYTES - 100)))
    await b.recorder.until("message")


async def test_messages_of_a_newer_version_are_ignored(peers: StartPeer) -> None:
    """Version skew: an unknown message is counted and the link goes on."""
    a, b = await peers("a", codec=NEWER_CODEC), await peers("b")
    await link(a, b)
    assert a.transport.send(b.id, Later("what?"))
    assert a.transport.send(b.id, Note("this I know"))
    assert (await b.recorder.until("message"))[3] == Note("this I know")
    assert b.transport.refusals.counts["unknown_message"] == 1


async def test_nobody_is_sent_to_who_is_not_linked(peers: StartPeer) -> None:
    """Without a link a message is not taken, and tensors are an error."""
    a, b = await peers("a"), await peers("b")
    assert not a.transport.send(b.id, Note("?"))
    with pytest.raises(PeerError, match="no link"):
        await a.transport.send_tensors(b.id, Note("?"), [])


async def test_datagrams_reach_the_life_they_are_for(peers: StartPeer) -> None:
    """A datagram for another device, another life or another mesh is dropped and counted; ours arrives."""
    a, b, stranger = await peers("a"), await peers("b"), await peers("c", mesh="home")
    where = (LOCAL, b.transport.port)
    a.transport.send_datagram(stranger.id, None, *where, Note("for another device"))
    a.transport.send_datagram(b.id, new_boot(), *where, Note("for another life"))
    stranger.transport.send_datagram(b.id, None, *where, Note("from another mesh"))
    a.transport.send_datagram(b.id, b.hello.boot_id, *where, Note("for you"))
    a.transport.send_datagram(None, None, *where, Note("for anyone"))
    await b.recorder.until("datagram", times=2)
    assert [event[1:4] for event in b.recorder.of("datagram")] == [
        (a.id, a.hello.boot_id, Note("for you")),
        (a.id, a.hello.boot_id, Note("for anyone")),
    ]
    assert b.recorder.of("datagram")[0][4] == (LOCAL, a.transport.port)
    await eventually(lambda: b.transport.refusals.counts["wrong_mesh_datagram"] == 1)
    assert b.transport.refusals.counts["datagram_for_another"] == 2


async def test_a_datagram_counts_once(peers: StartPeer) -> None:
    """A datagram that comes again, byte for byte, is dropped."""
    a, b = await peers("a"), await peers("b")
    datagrams = b.transport._datagrams
    assert datagrams is not None
    take, heard = datagrams._arrived, []

    def twice(data: bytes, address: tuple[str, int]) -> str:
        heard.append(take(data, address))
        return take(data, address)

    datagrams._arrived = twice  # type: ignore[method-assign]
    a.transport.send_datagram(b.id, None, LOCAL, b.transport.port, Note("once"))
    await b.recorder.until("datagram")
    assert heard == [""]
    await eventually(lambda: b.transport.refusals.counts["replayed_datagram"] == 1)
    assert len(b.recorder.of("datagram")) == 1


async def test_a_datagram_too_large_is_an_error(peers: StartPeer) -> None:
    """1200 bytes of body at most, checked at the sender."""
    a, b = await peers("a"), await peers("b")
    with pytest.raises(PeerError, match="1200"):
        a.transport.send_datagram(b.id, None, LOCAL, b.transport.port, Note("", bytes(1200)))


async def test_a_datagram_to_a_name_is_dropped(peers: StartPeer) -> None:
    """Looking a name up would block the loop: datagrams go to addresses."""
    a = await peers("a")
    a.transport.send_datagram(None, None, "localhost", 7766, Note("?"))
    assert a.transport.refusals.counts["datagram_unsent"] == 1


async def test_stop_ends_everything_and_calls_nobody(peers: StartPeer) -> None:
    """After stop no handler is called, no task is left, and dials do nothing."""
    a, b = await peers("a"), await peers("b")
    await link(a, b)
    await a.transport.send_tensors(b.id, Note("t"), [memoryview(b"abc")])
    await a.transport.stop()
    events = list(a.recorder.events)
    a.dial(b)
    await b.recorder.until("unlinked", a.id, "closed")
    assert a.recorder.events == events
    assert len(a.transport._tasks) == 0
    assert not b.recorder.of("unreachable")
