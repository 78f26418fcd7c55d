"""The node: one task that owns the core, a task group for all the rest, and the edges it joins together."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member
from meshnn.config import Config
from meshnn.device import memory, probe, runtime
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store
from meshnn.errors import MeshError, NodeError
from meshnn.graph import schema
from meshnn.net.hello import Hello
from meshnn.net.interfaces import addresses_of, is_wireless, own_address, present, sources
from meshnn.net.security import Identity
from meshnn.net.tasks import TaskSet, contained
from meshnn.net.transport import Transport
from meshnn.node.catalogue import Catalogue
from meshnn.node.contacts import remembered
from meshnn.node.core import Core
from meshnn.node.dataplane import DataPlane, Stats
from meshnn.node.effects import Effect, Fetch
from meshnn.node.library import Library
from meshnn.node.past import PEERS_MAX, Past, remember
from meshnn.node.performer import Performer
from meshnn.node.service import Service
from meshnn.node.serving import Serving
from meshnn.node.shards import Shards
from meshnn.node.solo import Shipped, Whole
from meshnn.node.switchboard import Switchboard
from meshnn.node.thrift import Memory
from meshnn.node.transfer import Transfers
from meshnn.node.visitors import Visitors
from meshnn.plan.plan import Epoch
from meshnn.telemetry import logger

EVENTS_MAX = 100_000
# Events handled before the loop gets its turn.
EVENTS_AT_ONCE = 64
# After a fault of ours at a deadline the machines are left alone for so long, in seconds.
FAULT_PAUSE_S = 1.0
# How long a running inference may hold up the end of the node, in seconds.
ENGINE_STOP_S = 1.0
LOAD_EVERY_S = 5.0
PEERS_EVERY_S = 5.0
MEMORY_EVERY_S = 1.0
NETWORK_EVERY_S = 2.0
ASKED_AGAIN_S = 1.0
# A change of the free disk by this part is worth telling the others.
DISK_NEWS = 0.1

_log = logger(__name__)

TransportMaker = Callable[[Identity, Hello, Switchboard], Transport]


class Node:
    """One device of the mesh; `run` lives until it is cancelled or told to leave."""

    def __init__(
        self,
        config: Config,
        make_transport: TransportMaker,
        *,
        http_port: int = 0,
        host: Callable[[], str] | None = None,
    ) -> None:
        """`make_transport` gives the network: real, or in memory for tests; `host` tells where others reach this node.

        With `host` the address stays as it is; else it is followed as interfaces come and go.

        Raises NodeError where the state folder is in use or cannot be used.
        """
        self._config = config
        self.store = Store(config.state_dir, config.disk_bytes)
        self.store.lock()
        try:
            self._identity = Identity.load(config.state_dir)
        except NodeError:
            self.store.unlock()
            raise
        self.me: DeviceId = self._identity.device_id
        self._host = host or partial(reachable_address, config.interface)
        self._addresses: Callable[[], tuple[str, ...]] = partial(present, config.interface) if host is None else tuple
        self.boot = BootId(secrets.token_hex(8))
        self._events: deque[Callable[[float], list[Effect]]] = deque()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._leaving = asyncio.Event()
        self._asked_last: tuple[Epoch | None, float] = (None, 0.0)
        self._tasks = TaskSet("node")
        hello = Hello(config.mesh, config.name, self.boot, config.port or 0, http_port)
        self.key_taken = False
        self._switchboard = Switchboard(self)
        self.transport = make_transport(self._identity, hello, self._switchboard)
        self._http_port = http_port
        self.engine = Engine(config.threads)

    async def start(self) -> None:
        """Bind, read what an earlier life wrote, and put the parts together; NodeError."""
        # Nothing waits between listening and the parts being there, since a neighbour may call at once.
        past = self._past = await asyncio.to_thread(remember, self.store)
        held = await asyncio.to_thread(self.store.held_models)
        self._bare = tuple(digest for digest, card in held.items() if card is None)
        capability = await asyncio.to_thread(self._unmeasured)
        await self.transport.start()
        me = self._member(past, capability)
        cluster = Cluster(me, (), past.term, past.voted_for, random.Random(secrets.randbits(64)), self._now())
        shards = Shards(self._config.memory_bytes, lambda recipe: self.store.path("shard", recipe.key) is not None)
        self.core = Core(cluster, Catalogue(self.me, past.records, held), shards, self.me, self.boot)
        self.plane = DataPlane(
            self.me, self.boot, self.transport, self.engine, Serving(self.core, self._asked), self._now
        )
        self.library = Library(self.me, self.store, self.core.catalogue.card, self._fetch)
        self.transfers = Transfers(self.transport, self.store, self.spawn, self.library.obtain)
        whole = Whole(self.me, self.boot, self.engine)
        identity = (self.me, self._config.name, self._config.mesh)
        self.service = Service(self, self.plane, self.library, Shipped(), whole, identity)
        self.visitors = Visitors(self.service, self.transport, self.spawn)
        self._performer = Performer(self, self.transport, self.store, self.engine, self.library, self.transfers)
        self._events.appendleft(self.core.start)

    async def run(self, ready: Callable[[], None]) -> None:
        """Live: until cancelled, or until `leave`; the mesh hears a goodbye in both cases."""
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [
                    group.create_task(work)
                    for work in (
                        self._own_core(),
                        self.plane.run(),
                        self._measure(),
                        self._watch_memory(),
                        self._remember_peers(),
                        self._watch_network(),
                    )
                ]
                self.spawn(self._describe_anew(), "describe")
                for host, port in (*self._config.peers, *self._past.peers):
                    self.seen(host, port)
                ready()
                await self._leaving.wait()
                self._goodbye()
                for keeper in keepers:
                    keeper.cancel()
        except asyncio.CancelledError:
            self._goodbye()
            raise
        finally:
            self.leave()
            await self._tasks.stop()

    async def stop(self) -> None:
        """Give everything back: tasks, links, threads, the state folder; within some 3 s, whatever is under way."""
        self.leave()
        await self._tasks.stop()
        await self.transport.stop()
        try:
            async with asyncio.timeout(ENGINE_STOP_S):
                await self.engine.close()
        except TimeoutError:
            _log.info("inference_left_behind")
        self.store.unlock()

    def leave(self) -> None:
        """Ask the node to end; whoever waits for a change of its state hears so."""
        self._leaving.set()
        self.notify()

    def post(self, event: Callable[[float], list[Effect]]) -> None:
        """Queue an event for the core; beyond the bound the node is broken and says so."""
        if len(self._events) >= EVENTS_MAX:
            raise NodeError(f"{EVENTS_MAX} events wait for this node: it is too slow to live")
        self._events.append(event)
        self._wake.set()

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run work until the node ends; work that fails is logged and costs nothing else."""
        self._tasks.spawn(work, name)

    def perform(self, effects: list[Effect]) -> None:
        """Do what the core said."""
        self._performer.perform(effects)
        self._wake.set()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until something a person can see has changed; NodeError where the node is ending."""
        if not self._leaving.is_set():
            await self._changed.wait()
        if self._leaving.is_set():
            raise NodeError("this node is stopping")

    def plans_changed(self) -> None:
        """The served plans are other ones."""
        self.plane.on_plans_changed()
        self.notify()

    def _asked(self, model: str, epoch: Epoch) -> None:
        """Requests come for a contingency here; so many may that saying it once a second is enough."""
        now = self._now()
        if self._asked_last[0] != epoch or now - self._asked_last[1] >= ASKED_AGAIN_S:
            self._asked_last = (epoch, now)
            self.post(partial(self.core.on_asked, model, epoch))

    def change_key(self, address: tuple[str, int]) -> None:
        """Another running device has this one's key, and had it first: this life ends, the next one has another key."""
        if self.key_taken:
            return
        self.key_taken = True
        _log.error(
            "device_key_duplicated",
            device=self.me,
            other=f"{address[0]}:{address[1]}",
            do="this device takes a new key and joins anew; a disk was cloned: clone it without the state folder",
        )
        self.leave()

    def trouble(self, subject: str, reason: str) -> None:
        """Something is wrong with this device: it goes on, and `status` says so while the reason holds."""
        self.post(partial(self.core.on_trouble, subject, reason))

    def seen(self, host: str, port: int) -> None:
        """An address that may be a peer: --peer, mDNS, or remembered."""
        self.post(lambda now: self.core.on_seen(Address(host, port), now))

    async def _own_core(self) -> None:
        """The one task that touches the core: events in order, deadlines when due."""
        while True:
            for _ in range(min(EVENTS_AT_ONCE, len(self._events))):
                self._handle(self._events.popleft())
            now = self._now()
            deadline = self.core.deadline
            if deadline is not None and deadline <= now:
                await asyncio.sleep(0 if self._handle(self.core.on_deadline) else FAULT_PAUSE_S)
                continue
            if self._events:
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _handle(self, event: Callable[[float], list[Effect]]) -> bool:
        """Let the core take one event; a fault of ours in it is logged and costs the event, not the node."""
        try:
            self.perform(event(self._now()))
        except Exception:  # noqa: BLE001 - the border: what one message broke must not end the node
            _log.exception("event_failed")
            return False
        return True

    async def _measure(self) -> None:
        """Measure this device once it is in the mesh, then its load and its free disk every few seconds."""
        config, told = self._config, self._capability
        try:
            measuring = asyncio.to_thread(probe.capability, config.memory_bytes, config.disk_bytes, config.threads)
            measured = await contained(measuring, "measuring this device")
        except MeshError as error:
            _log.warning("not_measured", reason=str(error))
        else:
            told = self._tell(msgspec.structs.replace(told, speed=measured.speed, cores=measured.cores))
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            try:
                busy = await contained(asyncio.to_thread(probe.load), "measuring the load")
                free_bytes = await asyncio.to_thread(self.store.free_bytes)
            except MeshError as error:
                _log.warning("load_not_measured", reason=str(error))
                continue
            self.engine.quota_cores = busy.quota_cores
            if not math.isclose(free_bytes, told.disk_bytes, rel_tol=DISK_NEWS):
                told = self._tell(msgspec.structs.replace(told, disk_bytes=free_bytes))
            stats = self.plane.stats()
            load = Load(stats.queued, self._stage_ms(stats), busy.free_bytes, busy.cpu_percent)
            self.post(partial(self.core.set_load, load))

    def _stage_ms(self, stats: Stats) -> float:
        """The slowest of the stages this device has in the plans that serve: what it is judged by.

        A shard that waits for a death, or ran in an earlier plan, says nothing of today.
        """
        plans = [plans for model in self.core.book.models if (plans := self.core.book.active(model)) is not None]
        mine = {recipe for one in plans for recipe in one.main.recipes_of(self.me)}
        return max((ms for recipe, ms in stats.stage_ms.items() if recipe in mine), default=0.0)

    async def _watch_memory(self) -> None:
        """Look at the real memory every second: shards must go before the system ends this process."""
        while True:
            await asyncio.sleep(MEMORY_EVERY_S)
            try:
                found = Memory(*await asyncio.to_thread(memory.look))
            except NodeError as error:
                self.trouble("memory watch", str(error))
                continue
            self.post(partial(self.core.on_memory, found))
            self.trouble("memory watch", "")

    def _tell(self, capability: Capability) -> Capability:
        self.post(partial(self.core.set_capability, capability))
        return capability

    async def _describe_anew(self) -> None:
        """Make the cards of whole models here whose card is of another version or lost: no peer may have one."""
        for digest in self._bare:
            names = {record.digest: record.name for record in self.core.catalogue.records}
            try:
                card = await contained(self.library.describe(digest, names.get(digest, "")), "describing a model")
            except MeshError as error:
                _log.warning("not_described", model=digest[:12], reason=str(error))
                continue
            self.post(partial(self.core.on_card_fetched, digest, card))

    async def _remember_peers(self) -> None:
        """Write down where the others are, so that a start without multicast finds them again."""
        written = tuple(Address(*peer) for peer in self._past.peers)
        while True:
            await asyncio.sleep(PEERS_EVERY_S)
            members = [self.core.cluster.members[device] for device in self.core.cluster.alive]
            peers = remembered((m.address for m in members if m.device_id != self.me), written, PEERS_MAX)
            if peers != written:
                written = peers
                await self._performer.keep("peers", {"peers": msgspec.to_builtins(peers)})

    async def _watch_network(self) -> None:
        """Notice addresses that come, go and change: tell the others where this device is, and call them at once."""
        before = await self._hosts()
        while True:
            await asyncio.sleep(NETWORK_EVERY_S)
            hosts = await self._hosts()
            if hosts is None or hosts == before:
                continue
            others = [
                member.address.host for member in self.core.cluster.members.values() if member.device_id != self.me
            ]
            try:
                spoken_from = await asyncio.to_thread(sources, others[:PEERS_MAX])
            except OSError as error:
                _log.warning("network_not_seen", reason=str(error))
                continue
            host = own_address(hosts, self.core.cluster.me.address.host, spoken_from)
            _log.info("network_changed", addresses=list(hosts), own=host)
            before = hosts
            self.transport.on_network(hosts)
            self.post(partial(self.core.on_interfaces, Address(host, self.transport.port)))

    async def _hosts(self) -> tuple[str, ...] | None:
        """The addresses of this device that are in use now; None where the system does not tell, which is no change."""
        try:
            return await asyncio.to_thread(self._addresses)
        except OSError as error:
            _log.warning("network_not_seen", reason=str(error))
            return None

    async def _fetch(self, wanted: Fetch) -> Path:
        return await self.transfers.fetch(wanted)

    def _goodbye(self) -> None:
        if self.key_taken:
            return  # It would be said in the name of the other device.
        self.perform(self.core.leave(self._now()))

    def _unmeasured(self) -> Capability:
        """What is known of this device before it was measured; NodeError without a runtime."""
        self.engine.quota_cores = probe.cpu_quota_cores()
        self._capability = Capability(
            self._config.memory_bytes,
            self.store.free_bytes(),
            probe.SPEED_UNMEASURED,
            probe.cores(),
            runtime.numeric_class(self._config.threads),
            schema.available(),
            probe.on_mains(),
            not is_wireless(self._host()),
        )
        return self._capability

    def _member(self, past: Past, capability: Capability) -> Member:
        """This life of this device; its incarnation beats every record of an earlier one."""
        incarnation = max(past.incarnation + 1, int(time.time() * 1000))  # noqa: TID251 - a number that grows, not a clock
        address = Address(self._host(), self.transport.port)
        return Member(
            self.me, self.boot, self._config.name, address, self._http_port, incarnation, capability=capability
        )

    def _now(self) -> float:
        return time.monotonic()


def reachable_address(interface: str | None) -> str:
    """The address to tell the others: one that is not loopback, where there is one."""
    return own_address(present(interface), spoken_from=sources(())) or addresses_of(interface)[0]
