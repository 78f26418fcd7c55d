"""Files between devices over the network in memory: resumed, shared, checked; holders that die, lie, are busy."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.store import Store
from meshnn.errors import ModelError, NodeError, PeerError
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.memory_wire import Weather
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Address, Limits
from meshnn.node import transfer
from meshnn.node.effects import Fetch
from meshnn.node.messages import Chunk, Missing, Want
from meshnn.node.switchboard import codec
from meshnn.node.transfer import Transfers
from tests.node.nodes import PATIENCE_S, until
from tests.node.shelf import A, B, C, life

DATA = random.Random(5).randbytes(5_000_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
BUDGET_BYTES = 50_000_000
KEY = "wanted"


class Device:
    """One device with nothing but a disk and its transfers; a test may spoil what it sends."""

    def __init__(self, network: MemoryNetwork, me: DeviceId, folder: Path, budget_bytes: int) -> None:
        """Not listening yet."""
        self.me = me
        self.store = Store(folder, budget_bytes)
        self.tasks = TaskSet("test")
        hello = Hello(mesh="test", name=me[:1], boot_id=life(me))
        self.transport: MemoryTransport = network.transport(me, hello, self, Limits(), codec())
        self.transfers = Transfers(self.transport, self.store, self.tasks.spawn, self._obtain)
        self.linked: set[DeviceId] = set()
        self.wants: list[Want] = []
        self.chunks = 0
        self.on_chunk: Callable[[Chunk], None] = lambda chunk: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def _obtain(self, want: Want) -> Path:
        await self.gate.wait()
        path = self.store.path(want.kind, want.key)
        if path is None:
            raise ModelError(f"no {want.kind} here")
        return path

    def holds(self, data: bytes = DATA) -> None:
        """Have the file (or what it says is the file)."""
        self.store.write_shard(KEY, [data])

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """Count it."""
        del boot_id, hello, address
        self.linked.add(device_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """Tell the transfers."""
        del evidence
        self.linked.discard(device_id)
        self.transfers.on_unlinked(device_id)

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """Nobody asks."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Wants and words that there is nothing."""
        del boot_id
        if isinstance(message, Want):
            self.wants.append(message)
            self.transfers.on_want(device_id, message)
        elif isinstance(message, Missing):
            self.transfers.on_missing(device_id, message)

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """None are sent."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Ask the transfers."""
        assert isinstance(meta_message, Chunk)
        return self.transfers.admit(device_id, meta_message, payload_bytes)

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """A chunk; then what the test wants to happen."""
        del boot_id
        assert isinstance(meta_message, Chunk)
        self.chunks += 1
        self.transfers.on_chunk(device_id, meta_message, payload)
        self.on_chunk(meta_message)

    async def fetch(self, *holders: Device, sha256: str = DIGEST, size_bytes: int = len(DATA)) -> Path:
        """Fetch the file from these."""
        return await self.transfers.fetch(Fetch("shard", KEY, size_bytes, sha256, tuple(one.me for one in holders)))


class Devices:
    """All of them, and the air between."""

    def __init__(self, folder: Path) -> None:
        """None yet."""
        self.network = MemoryNetwork(seed=2)
        self.all: list[Device] = []
        self._folder = folder

    async def start(self, me: DeviceId, budget_bytes: int = BUDGET_BYTES) -> Device:
        """A device that is linked with all others."""
        device = Device(self.network, me, self._folder / me[:1], budget_bytes)
        await device.transport.start()
        for other in self.all:
            device.transport.dial(self.network.host_of(other.me), other.transport.port)
        self.all.append(device)
        await until(lambda: all(len(one.linked) == len(self.all) - 1 for one in self.all))
        return device


@asynccontextmanager
async def devices(folder: Path) -> AsyncIterator[Devices]:
    """Devices that end with the test."""
    async with asyncio.timeout(PATIENCE_S):
        made = Devices(folder)
        try:
            yield made
        finally:
            for device in made.all:
                await device.tasks.stop()
                await device.transport.stop()


async def test_a_file_comes_in_pieces_and_is_the_same(tmp_path: Path) -> None:
    """Several pieces, one digest; nothing half is left behind."""
    async with devices(tmp_path) as air:
        a, b = await air.start(A), await air.start(B)
        b.holds()
        path = await a.fetch(b)
        assert path.read_bytes() == DATA
        assert [want.offset_bytes for want in b.wants] == [0, 2 << 20, 4 << 20]
        assert a.store.verify("shard", KEY, DIGEST)
        assert not list(path.parent.glob("*.part"))


async def test_a_holder_dies_in_the_middle_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """What has arrived is kept: the second holder is asked for the rest alone."""
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds()
        c.holds()
        air.network.weather = Weather(bytes_per_s=50e6)
        a.on_chunk = lambda chunk: air.network.crash(B) if chunk.offset_bytes >= 3 << 20 else None
        assert (await a.fetch(b, c)).read_bytes() == DATA
        assert b.wants[-1].offset_bytes == 2 << 20
        assert [want.offset_bytes for want in c.wants] == [2 << 20, 4 << 20]


async def test_a_holder_that_says_the_file_is_longer_is_left(tmp_path: Path) -> None:
    """More bytes than were announced are not taken; another holder gives the file."""
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds(DATA + b"more")
        c.holds()
        assert (await a.fetch(b, c)).read_bytes() == DATA
        assert [want.offset_bytes for want in b.wants] == [0]


@pytest.mark.parametrize("lie", [DATA[:-1] + b"!", DATA[:3_000_000], b""], ids=["a wrong byte", "too short", "empty"])
async def test_a_holder_with_wrong_bytes_is_asked_once(tmp_path: Path, lie: bytes) -> None:
    """Its digest betrays it; it is not asked again, the part is thrown away, the true holder gives the file."""
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds(lie)
        c.holds()
        assert (await a.fetch(b, c)).read_bytes() == DATA
        assert [want.offset_bytes for want in b.wants].count(0) == 1


async def test_liars_alone_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    """Where nobody has the right file the error says what was wrong."""
    async with devices(tmp_path) as air:
        a, b = await air.start(A), await air.start(B)
        b.holds(DATA[:-1] + b"!")
        with pytest.raises(PeerError, match="arrived with the digest"):
            await a.fetch(b)
        assert a.store.path("shard", KEY) is None
        assert a.store.used_bytes() == 0


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A budget that is too small refuses before a byte is asked for, and the line says what to do."""
    async with devices(tmp_path) as air:
        a, b = await air.start(A, budget_bytes=1_000_000), await air.start(B)
        b.holds()
        with pytest.raises(NodeError, match="raise --disk"):
            await a.fetch(b)
        assert b.wants == []


async def test_nobody_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without holders the error comes at once; a holder that has not got it, or is gone, after some rounds."""
    monkeypatch.setattr(transfer, "PAUSE_S", 0.001)
    async with devices(tmp_path) as air:
        a, b = await air.start(A), await air.start(B)
        with pytest.raises(PeerError, match="nobody holds it"):
            await a.fetch()
        with pytest.raises(PeerError, match="no shard here"):
            await a.fetch(b)
        assert len(b.wants) == transfer.ROUNDS_MAX
        air.network.crash(B)
        await until(lambda: not a.linked)
        with pytest.raises(PeerError, match="no link"):
            await a.fetch(b)


async def test_a_holder_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being busy is no failure: many devices fetch from one at the same moment, and each gets the file."""
    monkeypatch.setattr(transfer, "WAITING_MAX", 1)
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds()
        b.gate.clear()
        first = asyncio.create_task(a.fetch(b))
        await until(lambda: len(b.wants) == 1)
        second = asyncio.create_task(c.fetch(b))
        await until(lambda: len(b.wants) > 1)
        b.gate.set()
        assert [path.read_bytes() == DATA for path in await asyncio.gather(first, second)] == [True, True]


async def test_a_silent_holder_is_left_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that sends nothing ends its turn, not the transfer."""
    monkeypatch.setattr(transfer, "SILENCE_S", 0.2)
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds()
        c.holds()
        b.gate.clear()
        assert (await a.fetch(b, c)).read_bytes() == DATA


async def test_two_who_want_one_file_share_it(tmp_path: Path) -> None:
    """The second waits for the first; each piece crosses the network once."""
    async with devices(tmp_path) as air:
        a, b = await air.start(A), await air.start(B)
        b.holds()
        paths = await asyncio.gather(*(a.fetch(b) for _ in range(3)))
        assert {path.read_bytes() == DATA for path in paths} == {True}
        assert len(b.wants) == 3


@pytest.mark.parametrize(
    "want",
    [
        Want(1, "shard", KEY, 2**63, 10),
        Want(1, "shard", KEY, 2**64 - 1, 2**64 - 1),
        Want(1, "shard", KEY, -1, 10),
        Want(1, "shard", KEY, 0, -1),
        Want(1, "shard", "../../etc/passwd", 0, 10),
        Want(1, "model", "", 0, 10),
    ],
    ids=str,
)
async def test_a_want_of_nonsense_is_answered_and_costs_nothing(tmp_path: Path, want: Want) -> None:
    """Whatever a peer wants, the node serves on: a true want is answered afterwards."""
    async with devices(tmp_path) as air:
        a, b = await air.start(A), await air.start(B)
        b.holds()
        assert a.transport.send(B, want)
        await until(lambda: bool(b.wants))
        assert (await a.fetch(b)).read_bytes() == DATA
        assert len(b.tasks) == 0


async def test_chunks_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    """Of an unknown transfer, from another device, or out of place: no memory is spent."""
    async with devices(tmp_path) as air:
        a, b, c = await air.start(A), await air.start(B), await air.start(C)
        b.holds()
        b.gate.clear()
        fetching = asyncio.create_task(a.fetch(b))
        await until(lambda: bool(b.wants))
        number = b.wants[0].transfer
        assert not a.transfers.admit(B, Chunk(number + 1, 0, 10), 10)
        assert not a.transfers.admit(C, Chunk(number, 0, 10), 10)
        assert not a.transfers.admit(B, Chunk(number, 5, 10), 5)
        assert not a.transfers.admit(B, Chunk(number, 0, len(DATA)), transfer.PIECE_BYTES + 1)
        assert a.transfers.admit(B, Chunk(number, 0, len(DATA)), 10)
        b.gate.set()
        assert (await fetching).read_bytes() == DATA
        assert c.chunks == 0
