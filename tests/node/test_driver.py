"""Whole nodes in one process: they share a model, lose one another, come back, and answer the same bytes throughout."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from meshnn.cluster.member import Address, DeviceId, MemberState
from meshnn.config import Config
from meshnn.device.interpreter import Ran
from meshnn.device.store import Store
from meshnn.errors import MeshError, NodeError
from meshnn.net.memory import MemoryNetwork
from meshnn.node import driver, problem
from meshnn.node.answer import Answer
from meshnn.node.effects import Effect
from meshnn.node.messages import Pin, Unpin
from meshnn.node.past import remember
from meshnn.plan.ranges import memory_bytes
from meshnn.telemetry import captured
from tests.node.nodes import (
    DISK_BYTES,
    NAME,
    PART_BYTES,
    WHOLE_BYTES,
    Device,
    check,
    mesh,
    new_node,
    until,
    workers,
)

pytestmark = pytest.mark.timeout(240)
KEEN = 4


class Askers:
    """Callers that ask without a pause until told to stop; every answer is kept."""

    def __init__(self, tasks: asyncio.TaskGroup, device: Device) -> None:
        """Begin."""
        self.answers: list[Answer] = []
        self._over = False
        for _ in range(KEEN):
            tasks.create_task(self._ask(device))

    async def _ask(self, device: Device) -> None:
        while not self._over:
            self.answers.append(await device.ask())

    async def more(self, count: int = 8) -> None:
        """Wait for so many further answers."""
        wanted = len(self.answers) + count
        await until(lambda: len(self.answers) >= wanted)

    def stop(self) -> None:
        """No further questions."""
        self._over = True


async def test_a_worker_dies_under_load_and_comes_back(tmp_path: Path, stock: Path) -> None:
    """No ask fails and no byte is wrong while a device that works is killed and started again."""
    async with mesh(tmp_path) as home:
        await home.start("a", "b", "c", stock=stock)
        asked = home.devices["c"]
        victim = sorted(workers(await asked.ask()) - {"c"})[0]
        async with asyncio.TaskGroup() as tasks:
            askers = Askers(tasks, asked)
            await askers.more()
            gone = await home.kill(victim)
            await askers.more()
            await until(lambda: asked.state_of(gone.id) is MemberState.DEAD)
            await home.start(victim)
            await askers.more()
            askers.stop()
        for answer in askers.answers:
            check(answer)
        assert home.devices[victim].id == gone.id
        check(await home.devices[victim].ask())


async def test_the_leader_dies_and_another_plans(tmp_path: Path, stock: Path) -> None:
    """Asks are answered without a leader; the rest elect one, which plans without the dead one."""
    async with mesh(tmp_path) as home:
        await home.start("a", "b", "c", "d", stock=stock)
        await home.devices["d"].ask()
        old = home.devices["a"].leader
        name = next(name for name, device in home.devices.items() if device.id == old)
        asked = next(device for device in home.devices.values() if device.id != old)
        async with asyncio.TaskGroup() as tasks:
            askers = Askers(tasks, asked)
            await askers.more()
            await home.kill(name)
            await askers.more()
            await until(lambda: asked.leader not in {None, old})
            await askers.more()
            askers.stop()
        for answer in askers.answers:
            check(answer)
        await until(lambda: len({device.leader for device in home.devices.values()}) == 1)
        await until(lambda: _planned_without(asked, old))


def _planned_without(device: Device, gone: object) -> bool:
    plans = device.node.core.book.active(NAME)
    return plans is not None and gone not in plans.main.devices()


async def test_two_plans_that_do_not_fit_at_once_are_swapped_without_a_failed_ask(tmp_path: Path, stock: Path) -> None:
    """Two devices change places under load, and back: neither has memory for both of its parts."""
    async with mesh(tmp_path) as home:
        await home.start("a", "b", stock=stock)
        (asked,) = await home.start("c", memory_bytes=100_000)
        await asked.ask()
        core = asked.node.core
        plans, card = core.book.active(NAME), core.catalogue.card(core.catalogue.record(NAME).digest)
        assert plans is not None
        assert card is not None
        first, second = plans.main.lanes[0].stages
        near, far = (stage.groups[0].shards[0].device for stage in (first, second))
        both = sum(memory_bytes(card, recipe, plans.main.window) for recipe, _ in plans.main.placements())
        assert both > PART_BYTES
        async with asyncio.TaskGroup() as tasks:
            askers = Askers(tasks, asked)
            await askers.more()
            for one, other in ((far, near), (near, far)):
                await asked.node.service.pin(NAME, _written((first.last, one), (second.last, other)))
                await until(lambda: core.book.active(NAME) is not None)
                now = core.book.active(NAME)
                assert now is not None
                assert [shard.device for _, shard in now.main.placements()] == [one, other]
                await askers.more()
            askers.stop()
        for answer in askers.answers:
            check(answer)


async def test_a_wish_is_asked_again_of_who_leads_next(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader loses its office with the wish in hand and forgets it; the plan is applied all the same."""
    async with mesh(tmp_path) as home:
        await home.start("a", "b", stock=stock)
        (asked,) = await home.start("c", memory_bytes=100_000)
        await asked.ask()
        leading = next(device for device in home.devices.values() if device.id == asked.leader).node.core
        term, pins = leading.cluster.term, leading.leader._pins
        ask, lost = pins.ask, list[Pin | Unpin]()

        def loses(source: DeviceId, message: Pin | Unpin) -> list[Effect]:
            if lost:
                return ask(source, message)
            lost.append(message)
            return list(leading.cluster.outbid(term, asyncio.get_running_loop().time()))

        monkeypatch.setattr(pins, "ask", loses)
        plans = asked.node.core.book.active(NAME)
        assert plans is not None
        first, second = plans.main.lanes[0].stages
        near, far = (stage.groups[0].shards[0].device for stage in (first, second))
        await asked.node.service.pin(NAME, _written((first.last, far), (second.last, near)))
        assert lost
        assert asked.node.core.cluster.term > term
        now = asked.node.core.book.active(NAME)
        assert now is not None
        assert [shard.device for _, shard in now.main.placements()] == [far, near]


async def test_a_device_that_computes_wrongly_serves_nothing(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its golden vectors do not come out: it is planned without, and every answer is right."""
    async with mesh(tmp_path) as home:
        await home.start("a", stock=stock)
        # Without the disk for the whole model it cuts nothing for others.
        (broken,) = await home.start("b", disk_bytes=1_900_000)
        run = broken.node.engine.run

        async def wrong(handle: int, inputs: Sequence[npt.NDArray[np.generic]]) -> Ran:
            ran = await run(handle, inputs)
            return ran._replace(outputs=[ran.outputs[0] + np.ones(1, ran.outputs[0].dtype), *ran.outputs[1:]])

        monkeypatch.setattr(broken.node.engine, "run", wrong)
        await home.start("c")
        answer = await home.devices["c"].ask()
        check(answer)
        assert "b" not in workers(answer)


def _written(*stages: tuple[int, DeviceId]) -> bytes:
    """A plan of one lane as JSON: of each stage its last operator and its device."""
    rows, following = [], 0
    for last, device in stages:
        rows.append({"first": following, "last": last, "groups": [{"shards": [{"device": device}]}]})
        following = last + 1
    return msgspec.json.encode({"lanes": [{"stages": rows}]})


async def test_both_halves_of_a_partition_serve_and_become_one_again(tmp_path: Path, stock: Path) -> None:
    """Each half answers with what it has; after the heal there is one leader and one plan."""
    async with mesh(tmp_path) as home:
        a, b, c, d = await home.start("a", "b", "c", "d", memory_bytes=WHOLE_BYTES, stock=stock)
        await until(lambda: len(a.node.core.catalogue.holders(a.node.core.catalogue.record(NAME).digest)) >= 2)
        holder = next(x for x in (b, c, d) if x.id in a.node.core.catalogue.holders(_digest(a)))
        other = [x for x in (b, c, d) if x is not holder]
        home.network.partition([a.id, other[0].id], [holder.id, other[1].id])
        check(await a.ask())
        check(await holder.ask())
        await until(lambda: a.leader != holder.leader and None not in {a.leader, holder.leader})
        check(await other[0].ask())
        check(await other[1].ask())
        home.network.heal()
        await home.together()
        await until(lambda: len({str(_epoch(device)) for device in (a, b, c, d)}) == 1)
        for device in (a, b, c, d):
            check(await device.ask())


def _digest(device: Device) -> str:
    return device.node.core.catalogue.record(NAME).digest


def _epoch(device: Device) -> object:
    plans = device.node.core.book.active(NAME)
    return None if plans is None else plans.main.epoch


async def test_the_only_device_that_was_given_the_file_dies(tmp_path: Path, stock: Path) -> None:
    """The second holder serves the file on: a device that was never there before gets its part and works."""
    async with mesh(tmp_path) as home:
        a, b, c = await home.start("a", "b", "c", stock=stock)
        await until(lambda: len(b.node.core.catalogue.holders(_digest(a))) >= 2)
        await home.kill("a")
        (d,) = await home.start("d")
        check(await d.ask())
        await until(lambda: len(d.node.core.catalogue.holders(_digest(d))) >= 2)
        check(await c.ask())


async def test_leaving_ends_at_once_whatever_is_under_way(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that never ends, asks that wait for a plan, an add that waits: all are told, and the node is gone."""
    over = threading.Event()
    began = threading.Event()

    def endless(problem: object) -> str:
        del problem
        began.set()
        over.wait()
        return "too late"

    monkeypatch.setattr(problem, "solve", endless)
    try:
        async with mesh(tmp_path) as home:
            (a,) = await home.start("a", stock=stock)
            await until(began.is_set)
            asks: list[asyncio.Task[object]] = [asyncio.create_task(a.ask()) for _ in range(3)]
            model = a.node.store.path("model", _digest(a))
            assert model is not None
            asks.append(asyncio.create_task(a.node.service.add(model, "second", replace=False)))
            await until(lambda: a.node.plane.stats().open == 3)
            await until(lambda: len(a.node.core.catalogue.records) == 2)
            await home.leave("a")
            for outcome in await asyncio.gather(*asks, return_exceptions=True):
                assert isinstance(outcome, NodeError), outcome
                assert "stopping" in str(outcome)
    finally:
        over.set()


async def test_a_node_that_leaves_is_left_and_one_that_returns_is_new(tmp_path: Path, stock: Path) -> None:
    """A goodbye is heard at once, and a later life of the same device counts again."""
    async with mesh(tmp_path) as home:
        a, b = await home.start("a", "b", memory_bytes=WHOLE_BYTES, stock=stock)
        boot = b.node.boot
        await home.leave("b")
        await until(lambda: a.state_of(b.id) is MemberState.LEFT)
        (again,) = await home.start("b", memory_bytes=WHOLE_BYTES)
        assert (again.id, again.node.boot != boot) == (b.id, True)
        check(await again.ask())


async def test_another_address_is_told_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interfaces say now is in everybody's row of the device, and a device without any keeps what it had."""
    monkeypatch.setattr(driver, "NETWORK_EVERY_S", 0.01)
    async with mesh(tmp_path) as home:
        a, b = await home.start("a", "b")
        before = b.node.core.cluster.members[a.id].address
        seen: list[tuple[str, ...]] = []
        monkeypatch.setattr(a.node.transport, "on_network", seen.append)
        monkeypatch.setattr(a.node, "_addresses", lambda: ("127.0.0.1", "10.9.9.9"))
        await until(lambda: b.node.core.cluster.members[a.id].address == Address("10.9.9.9", before.port))
        monkeypatch.setattr(a.node, "_addresses", lambda: ("127.0.0.1",))
        await until(lambda: len(seen) > 1)
        assert seen == [("127.0.0.1", "10.9.9.9"), ("127.0.0.1",)]
        assert a.node.core.cluster.me.address.host == "10.9.9.9"
        assert b.state_of(a.id) is MemberState.ALIVE


async def test_a_fault_in_one_event_costs_that_event(tmp_path: Path, stock: Path) -> None:
    """What one message breaks is logged, and the node serves on."""
    async with mesh(tmp_path) as home:
        (a,) = await home.start("a", memory_bytes=WHOLE_BYTES, stock=stock)
        with captured() as lines:
            a.node.post(_fails)
            a.node.spawn(_breaks(), "breaks")
            check(await a.ask())
        assert {"event_failed", "task failed"} <= {str(line["event"]) for line in lines}


def _fails(now: float) -> list[Effect]:
    raise LookupError(f"a bug of ours at {now}")


async def _breaks() -> None:
    raise LookupError("a bug of ours")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("term", "{ broken"),
        ("term", '{"term": "many", "voted_for": 3}'),
        ("term", '{"term": -4}'),
        ("incarnation", '{"incarnation": []}'),
        ("names", '{"records": 7}'),
        ("names", "[]"),
        ("peers", '{"peers": [["host"], 5]}'),
        ("peers", ""),
    ],
)
def test_a_damaged_record_is_told_and_left_out(tmp_path: Path, name: str, text: str) -> None:
    """A start survives whatever a power cut or an older version left in a record."""
    store = Store(tmp_path, DISK_BYTES)
    (tmp_path / f"{name}.json").write_text(text)
    with captured() as lines:
        past = remember(store)
    assert [line["record"] for line in lines if line["event"] == "record_left_out"] == [name]
    assert (past.term, past.voted_for, past.incarnation, past.records, past.peers) == (0, None, 0, (), ())


def test_names_are_read_one_by_one(tmp_path: Path) -> None:
    """A name of a version that says more or less does not take the others with it."""
    store = Store(tmp_path, DISK_BYTES)
    good = {"name": "good", "digest": "d" * 64, "size_bytes": 5, "stamp": 1, "device": "a" * 26, "novelty": 1}
    store.save_record("names", {"records": [{"name": "old"}, good, None]})
    assert [record.name for record in remember(store).records] == ["good"]


async def test_a_card_of_another_version_is_made_anew(tmp_path: Path, stock: Path) -> None:
    """The only holder of a model comes up with a newer meshnn, and serves it."""
    folder = tmp_path / "stock"
    shutil.copytree(stock, folder)
    (card,) = (folder / "cards").iterdir()
    card.write_bytes(msgspec.msgpack.encode({"version": 0, "digest": card.stem}))
    async with mesh(tmp_path) as home:
        (a,) = await home.start("a", memory_bytes=WHOLE_BYTES, stock=folder)
        check(await a.ask())


async def test_what_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    """A state folder in use, and a key that is damaged; the folder is free again afterwards."""
    config = Config(name="a", memory_bytes=PART_BYTES, disk_bytes=DISK_BYTES, state_dir=tmp_path / "a")
    first = new_node(config, MemoryNetwork())
    with pytest.raises(NodeError, match="in use by another node"):
        new_node(config, MemoryNetwork())
    await first.stop()
    (config.state_dir / "device.key").write_text("no key")
    for _ in range(2):
        with pytest.raises(MeshError, match="damaged: remove it"):
            new_node(config, MemoryNetwork())
