"""Effects become deeds: with the real disk, engine and transfers, and with files that vanish, rot or never come."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from meshnn.cluster.effects import PersistTerm, SendDatagram
from meshnn.cluster.member import Address, BootId, DeviceId
from meshnn.device import records
from meshnn.device.golden import facts_of, inputs_for
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store
from meshnn.errors import NodeError
from meshnn.graph.builder import Builder
from meshnn.graph.writer import write
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Limits
from meshnn.node import keeper, performer
from meshnn.node.core import Core
from meshnn.node.effects import CutShards, DropFile, Effect, Fetch, Load, SaveNames, Solve, Unload
from meshnn.node.library import Library
from meshnn.node.messages import Busy, Chunk, Missing, Want
from meshnn.node.performer import Performer
from meshnn.node.switchboard import codec
from meshnn.node.transfer import Transfers
from meshnn.plan.messages import CutFailed
from meshnn.plan.plan import Epoch, Recipe
from meshnn.telemetry import captured
from tests.node.nodes import PATIENCE_S, until
from tests.node.shelf import A, B, life

RECIPE = Recipe("d" * 64, 0, 0)
BUDGET_BYTES = 50_000_000


class Edge:
    """The node around a performer: it keeps the tasks and hands the events to the core that writes them down."""

    def __init__(self, network: MemoryNetwork, me: DeviceId, folder: Path) -> None:
        """Not listening yet."""
        self.tasks = TaskSet("test")
        self.events: list[tuple[object, ...]] = []
        self.core: Core = _Recorder(self.events)  # type: ignore[assignment]
        self.store = Store(folder, BUDGET_BYTES)
        self.engine = Engine()
        self.linked: set[DeviceId] = set()
        self.heard: list[msgspec.Struct] = []
        hello = Hello(mesh="test", name=me[:1], boot_id=life(me))
        self.transport: MemoryTransport = network.transport(me, hello, self, Limits(), codec())
        self.library = Library(me, self.store, lambda digest: None, self._fetch)
        self.transfers = Transfers(self.transport, self.store, self.tasks.spawn, self.library.obtain)
        self.performer = Performer(self, self.transport, self.store, self.engine, self.library, self.transfers)

    async def _fetch(self, wanted: Fetch) -> Path:
        return await self.transfers.fetch(wanted)

    def post(self, event: Callable[[float], list[Effect]]) -> None:
        """At once."""
        event(0.0)

    def spawn(self, work: Awaitable[None], name: str) -> None:
        """Under the test's care."""
        self.tasks.spawn(work, name)  # type: ignore[arg-type]

    def notify(self) -> None:
        """Nobody waits."""

    def plans_changed(self) -> None:
        """Nobody asks."""

    def clashed(self, boot: BootId) -> None:
        """Never."""

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: object) -> None:
        """Count it."""
        self.linked.add(device_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """Count it."""
        self.linked.discard(device_id)

    def on_unreachable(self, address: object, evidence: str) -> None:
        """Nobody asks."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Transfers, and what is written down."""
        self.heard.append(message)
        if isinstance(message, Want):
            self.transfers.on_want(device_id, message)
        elif isinstance(message, Missing):
            self.transfers.on_missing(device_id, message)

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: object) -> None:
        """None are sent."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Chunks alone."""
        assert isinstance(meta_message, Chunk)
        return self.transfers.admit(device_id, meta_message, payload_bytes)

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """A chunk."""
        assert isinstance(meta_message, Chunk)
        self.transfers.on_chunk(device_id, meta_message, payload)

    async def does(self, *effects: Effect) -> list[tuple[object, ...]]:
        """Perform, wait until all is done, and return the events it made."""
        self.events.clear()
        self.performer.perform(list(effects))
        await until(lambda: len(self.tasks) == 0)
        return list(self.events)

    async def stop(self) -> None:
        """End everything."""
        await self.tasks.stop()
        await self.transport.stop()
        await self.engine.close()


class _Recorder:
    """Stands where the core is: every event is written down with its facts, without the time and what was measured."""

    def __init__(self, events: list[tuple[object, ...]]) -> None:
        """Into this list."""
        self._events = events

    def __getattr__(self, name: str) -> Callable[..., list[Effect]]:
        def event(*facts: object, **measured: object) -> list[Effect]:
            self._events.append((name, *facts[:-1]))
            return []

        return event


@asynccontextmanager
async def edges(folder: Path) -> AsyncIterator[tuple[Edge, Edge]]:
    """Two devices that are linked."""
    async with asyncio.timeout(PATIENCE_S):
        network = MemoryNetwork(seed=3)
        a, b = Edge(network, A, folder / "a"), Edge(network, B, folder / "b")
        for edge in (a, b):
            await edge.transport.start()
        a.transport.dial(network.host_of(B), b.transport.port)
        await until(lambda: bool(a.linked and b.linked))
        try:
            yield a, b
        finally:
            await a.stop()
            await b.stop()


def shard_on(edge: Edge) -> tuple[Path, Load]:
    """A shard's file on a disk, and the effect that loads it."""
    builder = Builder(np.random.default_rng(1))
    data = write(builder.graph(builder.operator("RELU", (builder.input(1, 8),), (1, 8)))).to_bytes()
    path = edge.store.write_shard(RECIPE.key, [data])
    digest = edge.store.digest_of("shard", RECIPE.key)
    return path, Load(RECIPE, Fetch("shard", RECIPE.key, len(data), digest, (B,), RECIPE))


async def test_a_loaded_shard_stays_on_the_disk_until_it_is_unloaded(tmp_path: Path) -> None:
    """Its file is pinned for as long as it is loaded: no other file takes its room."""
    async with edges(tmp_path) as (a, _):
        path, load = shard_on(a)
        ((name, recipe, handle),) = await a.does(load)
        assert (name, recipe) == ("on_loaded", RECIPE)
        with pytest.raises(NodeError, match="no room"):
            a.store.write_shard("large", [bytes(BUDGET_BYTES - 10)])
        assert path.exists()
        await a.does(Unload(RECIPE, handle))  # type: ignore[arg-type]
        a.store.write_shard("large", [bytes(BUDGET_BYTES - 10)])
        assert not path.exists()


@pytest.mark.parametrize("harm", ["gone", "rotten", "cut short"])
async def test_a_file_that_is_not_right_is_fetched_again(tmp_path: Path, harm: str) -> None:
    """Between being fetched and being loaded a file vanished or changed: another holder gives it."""
    async with edges(tmp_path) as (a, b):
        shard_on(b)
        path, load = shard_on(a)
        data = path.read_bytes()
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if harm == "cut short" else data[:-1] + bytes([data[-1] ^ 1]))
        ((name, *_),) = await a.does(load)
        assert name == "on_loaded"
        assert path.read_bytes() == data


async def test_a_file_that_nobody_has_any_more_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan hears why; nothing hangs, nothing stays pinned."""
    monkeypatch.setattr("meshnn.node.transfer.PAUSE_S", 0.001)
    async with edges(tmp_path) as (a, _):
        path, load = shard_on(a)
        path.unlink()
        ((name, recipe, reason),) = await a.does(load)
        assert (name, recipe) == ("on_load_failed", RECIPE)
        assert "no holder gave shard" in str(reason)


async def test_a_file_the_runtime_refuses_is_let_go(tmp_path: Path) -> None:
    """The reason goes to the plan, and the file may be evicted."""
    async with edges(tmp_path) as (a, _):
        a.store.write_shard(RECIPE.key, [b"no model at all" * 10])
        digest = a.store.digest_of("shard", RECIPE.key)
        ((name, _, reason),) = await a.does(Load(RECIPE, Fetch("shard", RECIPE.key, 150, digest, ())))
        assert name == "on_load_failed"
        assert reason
        a.store.write_shard("large", [bytes(BUDGET_BYTES - 10)])


async def test_a_long_load_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours hear for how long pings may find no answer; a short load is not worth a word."""
    async with edges(tmp_path) as (a, b):
        _, load = shard_on(a)
        ((_, _, handle),) = await a.does(load)
        await a.does(Unload(RECIPE, handle))  # type: ignore[arg-type]
        assert not [word for word in b.heard if isinstance(word, Busy)]
        monkeypatch.setattr(performer, "HELD_MS_PER_BYTE", 10_000.0)
        await a.does(load)
        await until(lambda: any(isinstance(word, Busy) for word in b.heard))
        assert [word.for_ms for word in b.heard if isinstance(word, Busy)] == [5000]


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, Recipe("d" * 64, 5, 2), Recipe("../../secret", 0, 0), Recipe("d" * 64, 0, 0, "output", 7, (1, 1))],
    ids=lambda recipe: recipe.key[-20:],
)
async def test_a_cut_that_makes_no_sense_is_answered(tmp_path: Path, recipe: Recipe) -> None:
    """The leader hears why there are no files, whatever it asked for."""
    async with edges(tmp_path) as (a, _):
        epoch = Epoch(1, B, 1)
        ((name, to, answer),) = await a.does(CutShards(B, epoch, "cat", (recipe,)))
        assert (name, to) == ("answer", B)
        assert isinstance(answer, CutFailed)
        assert (answer.epoch, bool(answer.reason)) == (epoch, True)


async def test_a_search_that_breaks_is_no_plan(tmp_path: Path) -> None:
    """Were it the end of the leader, each next leader would die of the same model."""
    async with edges(tmp_path) as (a, _):
        with captured() as lines:
            ((name, model, problem, result),) = await a.does(Solve("cat", "no problem at all"))
        assert (name, model, problem) == ("on_solved", "cat", "no problem at all")
        assert "AttributeError" in str(result)
        assert [line["event"] for line in lines] == ["contained"]


async def test_a_card_that_is_none_is_an_event(tmp_path: Path) -> None:
    """A holder that sends something else for a card is no card."""
    async with edges(tmp_path) as (a, b):
        (tmp_path / "b" / "cards" / "cat.card").write_bytes(b"nonsense")
        b.store = Store(tmp_path / "b", BUDGET_BYTES)
        b.library = Library(B, b.store, lambda digest: None, b._fetch)
        b.transfers = Transfers(b.transport, b.store, b.tasks.spawn, b.library.obtain)
        events = await a.does(Fetch("card", "cat", 1000, "", (B,)))
        assert events == [("on_card_fetched", "cat", None)]
        assert a.store.path("card", "cat") is None


async def test_a_disk_that_refuses_is_a_line_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that cannot be written: the vote is not given, the node says so, and tries again until they are."""

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(errno.ENOSPC, "No space left on device")

    async with edges(tmp_path) as (a, _):
        monkeypatch.setattr(keeper, "RETRY_S", 0.2)
        assert await a.does(PersistTerm(3, A)) == [("on_persisted", 3)]
        with monkeypatch.context() as disk, captured() as lines:
            disk.setattr(records, "settle", full)
            a.events.clear()
            a.performer.perform([PersistTerm(4, A), SaveNames(()), DropFile("shard", "gone")])
            await until(lambda: len(a.events) >= 3)
            assert [line["event"] for line in lines[:2]] == ["disk_refused"] * 2
            assert [event[:2] for event in a.events[:3]] == [
                ("on_trouble", "disk (term.json)"),
                ("on_unpersisted", 4),
                ("on_trouble", "disk (names.json)"),
            ]
            assert "never leads" in str(a.events[0][2])
            assert a.store.load_record("term") == {"term": 3, "voted_for": A}
        well = [("on_trouble", "disk (term.json)", ""), ("on_persisted", 4), ("on_trouble", "disk (names.json)", "")]
        await until(lambda: a.events[-3:] == well)
        assert a.store.load_record("term") == {"term": 4, "voted_for": A}
        await until(lambda: len(a.tasks) == 0)


async def test_what_cannot_travel_costs_nothing_else(tmp_path: Path) -> None:
    """A message of no type that travels is told in a line; the effects after it are done."""
    async with edges(tmp_path) as (a, b):
        with captured() as lines:
            nonsense = Hello(mesh="test", name="a", boot_id=life(A))
            await a.does(
                SendDatagram(B, Address("10.0.0.1", 7766), nonsense),  # type: ignore[arg-type]
                PersistTerm(1, None),
            )
        assert [line["event"] for line in lines] == ["datagram_cannot_travel"]
        assert a.events == [("on_persisted", 1)]
        assert b.linked


async def test_a_shard_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """The golden vector that its cutter stated does not come out: it is dropped, and the plan hears why."""
    async with edges(tmp_path) as (a, _):
        path, load = shard_on(a)
        ((name, _, handle),) = await a.does(load)
        assert (name, path.exists()) == ("on_loaded", True)
        assert isinstance(handle, int)
        ports = a.engine._shards[handle].loaded.inputs
        ran = await a.engine.run(handle, inputs_for(ports, RECIPE.key))
        facts = facts_of(ran.outputs, a.engine.numeric_class)
        a.events.clear()
        ((name, *_),) = await a.does(replace(load, file=replace(load.file, golden=facts)))
        assert name == "on_loaded"
        a.events.clear()
        lie = msgspec.structs.replace(facts, digest="0" * 64)
        before = len(a.engine._shards)
        ((name, recipe, reason),) = await a.does(replace(load, file=replace(load.file, golden=lie)))
        assert (name, recipe) == ("on_load_failed", RECIPE)
        assert "golden vector" in str(reason)
        assert len(a.engine._shards) == before
