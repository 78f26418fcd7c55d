"""The network in memory keeps the promises of the real one, and breaks on demand, the same way for the same seed."""

from __future__ import annotations

import asyncio

import pytest

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NodeError, PeerError
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.memory_wire import Weather
from meshnn.net.transport import Handler, Limits, Transport
from tests.net.recorder import CODEC, NEWER_CODEC, Later, Note, Recorder, eventually, new_boot

# Three pings of 1 ms: silence is told quickly.
QUICK = Limits(ping_every_s=0.001, handshake_s=0.05)


class Device:
    """One life of one device on the network in memory."""

    def __init__(self, network: MemoryNetwork, letter: str, mesh: str = "lab", codec: object = CODEC) -> None:
        self.id = DeviceId(letter * 26)
        self.boot: BootId = new_boot()
        self.recorder = Recorder()
        hello = Hello(mesh, letter, self.boot)
        self.transport: MemoryTransport = network.transport(self.id, hello, self.recorder, QUICK, codec)  # type: ignore[arg-type]
        self.address = (network.host_of(self.id), self.transport.port)


async def pair(network: MemoryNetwork) -> tuple[Device, Device]:
    """Two linked devices."""
    a, b = Device(network, "a"), Device(network, "b")
    for device in (a, b):
        await device.transport.start()
    a.transport.dial(*b.address)
    await a.recorder.until("linked", b.id, b.boot)
    await b.recorder.until("linked", a.id, a.boot)
    return a, b


def test_it_is_a_transport_and_the_recorder_a_handler() -> None:
    """Both implementations and the tests' handler are what the protocols say, checked by the type checker."""
    transport: Transport = Device(MemoryNetwork(), "a").transport
    recorder = Recorder()
    handler: Handler = recorder
    assert transport.port
    assert handler is recorder


async def test_messages_datagrams_and_tensors_arrive() -> None:
    """Everything the real transport carries, both ways, in order on a stream."""
    a, b = await pair(MemoryNetwork())
    notes = [Note(str(number)) for number in range(20)]
    assert all(a.transport.send(b.id, note) for note in notes)
    b.transport.send_datagram(a.id, a.boot, *a.address, Note("datagram"))
    await b.transport.send_tensors(a.id, Note("tensors"), [memoryview(b"ab"), memoryview(b"c")])
    await b.recorder.until("message", times=20)
    assert [event[3] for event in b.recorder.of("message")] == notes
    await a.recorder.until("datagram", b.id, b.boot, Note("datagram"), b.address)
    await a.recorder.until("tensors", b.id, b.boot, Note("tensors"), 3)
    assert a.recorder.payloads == [b"abc"]
    assert a.transport.neighbours() == (b.id,)


async def test_who_is_not_meant_hears_nothing() -> None:
    """Datagrams for another device or life, unknown messages, and payloads not admitted go nowhere."""
    network = MemoryNetwork()
    a, b = await pair(network)
    c = Device(network, "c", codec=NEWER_CODEC)
    await c.transport.start()
    c.transport.dial(*a.address)
    await c.recorder.until("linked", a.id)
    b.transport.send_datagram(c.id, None, *a.address, Note("another device"))
    b.transport.send_datagram(a.id, new_boot(), *a.address, Note("another life"))
    assert c.transport.send(a.id, Later("newer"))
    a.recorder.admits = False
    await b.transport.send_tensors(a.id, Note("no room"), [memoryview(b"abc")])
    await a.recorder.until("admit")
    b.transport.send_datagram(None, None, *a.address, Note("last"))
    await a.recorder.until("datagram")
    assert [event[3] for event in a.recorder.of("datagram")] == [Note("last")]
    assert not a.recorder.of("message") + a.recorder.of("tensors")


@pytest.mark.parametrize("mesh", ["home", "lab"])
async def test_refusals_have_their_words(mesh: str) -> None:
    """Another mesh, oneself, a process that is gone, a host that is gone."""
    network = MemoryNetwork()
    a, b = Device(network, "a"), Device(network, "b", mesh="home")
    await a.transport.start()
    await b.transport.start()
    a.transport.dial(*b.address)
    await a.recorder.until("unreachable", b.address, "wrong_mesh")
    a.transport.dial(*a.address)
    await a.recorder.until("unreachable", a.address, "self")
    await b.transport.stop()
    a.transport.dial(*b.address)
    await a.recorder.until("unreachable", b.address, "refused")
    a.transport.dial("10.9.9.9", 7766)
    await a.recorder.until("unreachable", ("10.9.9.9", 7766), "timeout")
    with pytest.raises(NodeError, match="in use"):
        await Device(network, "a").transport.start()


async def test_endings_have_their_words() -> None:
    """A goodbye is closed, a killed process reset, an unplugged one silent where work is due."""
    network = MemoryNetwork()
    a, b = await pair(network)
    await b.transport.stop()
    await a.recorder.until("unlinked", b.id, "closed")
    c, d = Device(network, "c"), Device(network, "d")
    for device in (c, d):
        await device.transport.start()
        a.transport.dial(*device.address)
        await a.recorder.until("linked", device.id)
    network.crash(c.id)
    await a.recorder.until("unlinked", c.id, "reset")
    a.transport.expecting(d.id, 1)
    network.unplug(d.id)
    await a.recorder.until("unlinked", d.id, "silent")
    with pytest.raises(PeerError, match="no link"):
        await a.transport.send_tensors(d.id, Note("?"), [])
    assert not b.recorder.of("unlinked") + c.recorder.of("unlinked")


async def test_a_partition_holds_streams_back_and_drops_datagrams() -> None:
    """What a stream carries waits for the heal; a datagram does not."""
    network = MemoryNetwork()
    a, b = await pair(network)
    network.partition([a.id], [b.id])
    assert a.transport.send(b.id, Note("held back"))
    a.transport.send_datagram(b.id, None, *b.address, Note("lost"))
    c = Device(network, "c")
    await c.transport.start()
    a.transport.dial(*c.address)
    await a.recorder.until("linked", c.id)
    for _ in range(20):
        assert a.transport.send(c.id, Note("time passes"))
        await c.recorder.until("message", times=len(c.recorder.of("message")) + 1)
    assert not b.recorder.of("message")
    network.heal()
    await b.recorder.until("message", a.id, a.boot, Note("held back"))
    assert not b.recorder.of("datagram")
    assert not a.recorder.of("unlinked")


async def test_a_new_life_replaces_the_old() -> None:
    """A restart behind the same address ends the old link as reset, then links anew."""
    network = MemoryNetwork()
    a, old = await pair(network)
    network.unplug(old.id)
    old.transport._running = False
    network.leave(old.address)
    network.heal()
    new = Device(network, "b")
    await new.transport.start()
    assert new.address == old.address
    new.transport.dial(*a.address)
    await a.recorder.until("linked", new.id, new.boot)
    assert [event[0] for event in a.recorder.events] == ["linked", "unlinked", "linked"]


async def test_a_lost_link_is_an_error_for_who_is_sending() -> None:
    """A sender of tensors that waits for a slow network hears of the loss."""
    network = MemoryNetwork(weather=Weather(bytes_per_s=1000))
    a, b = await pair(network)
    sending = asyncio.get_running_loop().create_task(
        a.transport.send_tensors(b.id, Note("slow"), [memoryview(bytes(10**6))])
    )
    await eventually(lambda: bool(a.transport._sending))
    network.crash(b.id)
    with pytest.raises(PeerError, match="ended"):
        await sending


async def fates(seed: int) -> list[int]:
    """Which of 200 datagrams arrive, with repetitions, in a storm."""
    network = MemoryNetwork(seed, Weather(delay_s=(0.0, 0.0), loss=0.3, duplication=0.3))
    a, b = await pair(network)
    for number in range(200):
        a.transport.send_datagram(b.id, None, *b.address, Note(str(number)))
    network.weather = Weather(delay_s=(0.0, 0.0))
    a.transport.send(b.id, Note("end"))
    await b.recorder.until("message")
    return sorted(int(event[3].text) for event in b.recorder.of("datagram"))  # type: ignore[attr-defined]


async def test_one_seed_one_fate() -> None:
    """Loss and duplication happen, and the same seed repeats them exactly."""
    first = await fates(1)
    assert await fates(1) == first != await fates(2)
    assert len(set(first)) < 180
    assert len(first) > len(set(first))
