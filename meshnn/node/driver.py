"""The node: one task that owns the core, a task group for all the rest, and the edges it joins together."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import msgspec

from meshnn.cluster.cluster import Cluster
from meshnn.cluster.member import Address, BootId, Capability, DeviceId, Load, Member
from meshnn.config import Config
from meshnn.device import probe, runtime
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store
from meshnn.errors import NodeError
from meshnn.graph import schema
from meshnn.net.hello import Hello
from meshnn.net.interfaces import addresses_of
from meshnn.net.security import Identity
from meshnn.net.transport import Transport
from meshnn.node.catalogue import Catalogue
from meshnn.node.core import Core
from meshnn.node.dataplane import DataPlane
from meshnn.node.effects import Effect, Fetch
from meshnn.node.library import Library
from meshnn.node.messages import NameRecord
from meshnn.node.performer import Performer
from meshnn.node.service import Service
from meshnn.node.serving import Serving
from meshnn.node.shards import Shards
from meshnn.node.solo import Shipped, Whole
from meshnn.node.switchboard import Switchboard
from meshnn.node.transfer import Transfers
from meshnn.node.visitors import Visitors
from meshnn.telemetry import logger

EVENTS_MAX = 100_000
LOAD_EVERY_S = 5.0
PEERS_EVERY_S = 5.0
PEERS_MAX = 64

_log = logger(__name__)

TransportMaker = Callable[[Identity, Hello, Switchboard], Transport]


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier life of this device wrote down."""

    term: int
    voted_for: DeviceId | None
    incarnation: int
    records: tuple[NameRecord, ...]
    peers: tuple[tuple[str, int], ...]


class Node:
    """One device of the mesh; `run` lives until it is cancelled or told to leave."""

    def __init__(self, config: Config, make_transport: TransportMaker, *, http_port: int = 0) -> None:
        """`make_transport` gives the network: real, or in memory for tests. NodeError: the state folder is in use."""
        self._config = config
        self.store = Store(config.state_dir, config.disk_bytes)
        self.store.lock()
        self._identity = Identity.load(config.state_dir)
        self.me: DeviceId = self._identity.device_id
        self.boot = BootId(secrets.token_hex(8))
        self._events: deque[Callable[[float], list[Effect]]] = deque()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._leaving = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._stack = AsyncExitStack()
        hello = Hello(config.mesh, config.name, self.boot, config.port or 0, http_port)
        self._switchboard = Switchboard(self)
        self.transport = make_transport(self._identity, hello, self._switchboard)
        self._http_port = http_port
        self.engine = Engine(config.threads)

    async def start(self) -> None:
        """Bind, read what an earlier life wrote, and put the parts together; NodeError."""
        await self.transport.start()
        past = self._past = await asyncio.to_thread(self._remember)
        held = await asyncio.to_thread(self.store.held_models)
        me = self._member(past)
        cluster = Cluster(me, (), past.term, past.voted_for, random.Random(secrets.randbits(64)), self._now())
        shards = Shards(self._config.memory_bytes, lambda recipe: self.store.path("shard", recipe.key) is not None)
        self.core = Core(cluster, Catalogue(self.me, past.records, held), shards, self.me, self.boot)
        self.plane = DataPlane(self.me, self.boot, self.transport, self.engine, Serving(self.core), self._now)
        self.library = Library(self.me, self.store, self.core.catalogue.card, self._fetch)
        self.transfers = Transfers(self.transport, self.store, self.spawn, self.library.obtain)
        whole = Whole(self.me, self.boot, self.engine)
        identity = (self.me, self._config.name, self._config.mesh)
        self.service = Service(self, self.plane, self.library, Shipped(), whole, identity)
        self.visitors = Visitors(self.service, self.transport, self.spawn)
        self._performer = Performer(self, self.transport, self.store, self.engine, self.library, self.transfers)

    async def run(self, ready: Callable[[], None]) -> None:
        """Live: until cancelled, or until `leave`; the mesh hears a goodbye in both cases."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                keepers = [
                    group.create_task(work)
                    for work in (self._own_core(), self.plane.run(), self._measure(), self._remember_peers())
                ]
                self.post(self.core.start)
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
            self._group = None

    async def stop(self) -> None:
        """Give everything back: links, threads, the state folder."""
        await self.transport.stop()
        await self.engine.close()
        self.store.unlock()

    def leave(self) -> None:
        """Ask the node to end."""
        self._leaving.set()

    def post(self, event: Callable[[float], list[Effect]]) -> None:
        """Queue an event for the core; beyond the bound the node is broken and says so."""
        if len(self._events) >= EVENTS_MAX:
            raise NodeError(f"{EVENTS_MAX} events wait for this node: it is too slow to live")
        self._events.append(event)
        self._wake.set()

    def spawn(self, work: Coroutine[None, None, object]) -> None:
        """Run work in the node's group; after its end nothing starts any more."""
        if self._group is None:
            work.close()
            return
        self._group.create_task(work)

    def perform(self, effects: list[Effect]) -> None:
        """Do what the core said."""
        self._performer.perform(effects)
        self._wake.set()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until something a person can see has changed."""
        await self._changed.wait()

    def plans_changed(self) -> None:
        """The served plans are other ones."""
        self.plane.on_plans_changed()
        self.notify()

    def clashed(self, boot: BootId) -> None:
        """Another process holds this device's key: one line, and go on; a person must delete one of the two keys."""
        _log.error("device_key_duplicated", other_boot=boot, do="delete device.key in one of the two state folders")

    def seen(self, host: str, port: int) -> None:
        """An address that may be a peer: --peer, mDNS, or remembered."""
        self.post(lambda now: self.core.on_seen(Address(host, port), now))

    async def _own_core(self) -> None:
        """The one task that touches the core: events in order, deadlines when due."""
        while True:
            now = self._now()
            while self._events:
                self.perform(self._events.popleft()(now))
            deadline = self.core.deadline
            if deadline is not None and deadline <= now:
                self.perform(self.core.on_deadline(now))
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            if self._events:
                continue
            try:
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _measure(self) -> None:
        """Measure this device once it is in the mesh, then its load every few seconds."""
        measured = await asyncio.to_thread(probe.capability, self._config.memory_bytes, self._config.disk_bytes)
        self.post(lambda now: self.core.set_capability(_capability(measured, self.store), now))
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            busy = await asyncio.to_thread(probe.load)
            stats = self.plane.stats()
            load = Load(stats.queued, stats.slowest_ms, busy.free_bytes, busy.cpu_percent)
            self.post(partial(self.core.set_load, load))

    async def _remember_peers(self) -> None:
        """Write down where the others are, so that a start without multicast finds them again."""
        written: list[tuple[str, int]] = []
        while True:
            await asyncio.sleep(PEERS_EVERY_S)
            members = (self.core.cluster.members[device] for device in self.core.cluster.alive)
            peers = [(m.address.host, m.address.port) for m in members if m.device_id != self.me][:PEERS_MAX]
            if peers and peers != written:
                written = peers
                try:
                    await asyncio.to_thread(self.store.save_record, "peers", {"peers": peers})
                except NodeError as error:
                    _log.warning("peers_not_saved", reason=str(error))

    async def _fetch(self, wanted: Fetch) -> Path:
        return await self.transfers.fetch(wanted)

    def _goodbye(self) -> None:
        self.perform(self.core.leave(self._now()))

    def _remember(self) -> Past:
        term = self.store.load_record("term")
        incarnation = self.store.load_record("incarnation")
        names = self.store.load_record("names")
        records = msgspec.convert(names.get("records", []), tuple[NameRecord, ...])
        peers = msgspec.convert(self.store.load_record("peers").get("peers", []), tuple[tuple[str, int], ...])
        voted = term.get("voted_for")
        return Past(
            int(str(term.get("term", 0))),
            DeviceId(voted) if isinstance(voted, str) else None,
            int(str(incarnation.get("incarnation", 0))),
            records,
            peers,
        )

    def _member(self, past: Past) -> Member:
        """This life of this device; its incarnation beats every record of an earlier one."""
        incarnation = max(past.incarnation + 1, int(time.time() * 1000))  # noqa: TID251 - a number that grows, not a clock
        capability = Capability(
            self._config.memory_bytes,
            self.store.free_bytes(),
            probe.SPEED_UNMEASURED,
            probe.cores(),
            runtime.numeric_class(),
            schema.available(),
        )
        address = Address(reachable_address(self._config.interface), self.transport.port)
        return Member(
            self.me, self.boot, self._config.name, address, self._http_port, incarnation, capability=capability
        )

    def _now(self) -> float:
        return time.monotonic()


def reachable_address(interface: str | None) -> str:
    """The address to tell the others: one that is not loopback, where there is one."""
    hosts = addresses_of(interface)
    return next((host for host in hosts if not ip_address(host).is_loopback), hosts[0])


def _capability(measured: probe.Measured, store: Store) -> Capability:
    """What was measured, as membership tells it."""
    return Capability(
        measured.memory_bytes,
        store.free_bytes(),
        measured.speed,
        measured.cores,
        measured.numeric_class,
        schema.available(),
    )
