"""Does what the core says: the one place where effects meet the network, the disk, the runtime and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from meshnn.cluster.effects import (
    Dial,
    IdentityClash,
    LeaderChanged,
    MemberChanged,
    PersistIncarnation,
    PersistTerm,
    SendDatagram,
    SendStream,
)
from meshnn.cluster.member import Address, DeviceId
from meshnn.device import golden, probe
from meshnn.device.interpreter import Engine, Loaded
from meshnn.device.store import Store
from meshnn.errors import MeshError, ModelError
from meshnn.graph.card import Card
from meshnn.net.tasks import contained
from meshnn.net.transport import Transport
from meshnn.node import problem as problems
from meshnn.node.core import Core
from meshnn.node.effects import (
    Changed,
    CutShards,
    DropFile,
    Effect,
    Fetch,
    Load,
    Note,
    PlansChanged,
    SaveNames,
    Send,
    Solve,
    Unload,
)
from meshnn.node.keeper import Keeper, Record
from meshnn.node.library import Library
from meshnn.node.messages import BUSY_MS_MAX, Busy
from meshnn.node.transfer import Transfers
from meshnn.plan.messages import GOLDEN_FAULT, CutDone, CutFailed, Golden
from meshnn.plan.messages import Fetch as ShardFile
from meshnn.plan.plan import PlanSet, Recipe
from meshnn.plan.ranges import memory_bytes
from meshnn.telemetry import logger

# While the runtime repacks weights nothing else of this process runs: measured 0.65 ms per MB of processor time, which
# a busy machine stretches about threefold.
HELD_MS_PER_BYTE = 2e-6
HELD_MS_MIN = 200
# Golden vectors that are remembered, so that a shard cut again is not run again.
GOLDENS_MAX = 4096

_log = logger(__name__)


class Edge(Protocol):
    """What the performer needs of the node around it."""

    core: Core

    def post(self, event: Callable[[float], list[Effect]]) -> None:
        """Queue an event for the core; it is called with the time."""

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run work under the node's care."""

    def notify(self) -> None:
        """Wake whoever waits for a change."""

    def plans_changed(self) -> None:
        """The served plans are other ones."""


class Performer:
    """Effects in, deeds out; what a deed brings comes back as an event."""

    def __init__(
        self, edge: Edge, transport: Transport, store: Store, engine: Engine, library: Library, transfers: Transfers
    ) -> None:
        """The edges of this node."""
        self._edge = edge
        self._transport = transport
        self._store = store
        self._engine = engine
        self._library = library
        self._transfers = transfers
        self._numeric_class = engine.numeric_class
        self._goldens: dict[Recipe, Golden] = {}
        self._keeper = Keeper(store, edge.spawn, self._written)
        self._unwritten: set[str] = set()
        self._share = min(1.0, probe.cpu_quota_cores())

    def perform(self, effects: list[Effect]) -> None:
        """Do all effects in order; slow ones go on in tasks of their own."""
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case SendStream(to, message, address):
                if not self._send(to, message):
                    self._transport.dial(address.host, address.port)
            case SendDatagram(to, address, message):
                self._send_datagram(to, address, message)
            case Dial(address):
                self._transport.dial(address.host, address.port)
            case PlansChanged():
                self._edge.plans_changed()
            case Changed() | MemberChanged() | LeaderChanged():
                self._edge.notify()
            case Note():
                self._note(effect)
            case IdentityClash(boot, address):
                # Its HELLO proves or refutes it, and says which of the two must take a new key.
                _log.warning("key_seen_elsewhere", other_boot=boot, at=f"{address.host}:{address.port}")
                self._transport.dial(address.host, address.port)
            case _:
                self._start(effect)

    def _start(self, effect: Effect) -> None:
        """Begin the deeds that take time."""
        match effect:
            case PersistTerm(term, voted_for):
                self._edge.spawn(self.keep("term", {"term": term, "voted_for": voted_for}), "term")
            case PersistIncarnation(incarnation):
                self._edge.spawn(self.keep("incarnation", {"incarnation": incarnation}), "incarnation")
            case SaveNames(records):
                self._edge.spawn(self.keep("names", {"records": msgspec.to_builtins(records)}), "names")
            case Fetch():
                self._edge.spawn(self._fetch(effect), "fetch")
            case Load():
                self._edge.spawn(self._load(effect), "load")
            case Unload(recipe, handle):
                self._engine.unload(handle)
                self._edge.spawn(self._on_disk(partial(self._store.unpin, "shard", recipe.key)), "unpin")
            case CutShards():
                self._edge.spawn(self._cut(effect), "cut")
            case Solve():
                self._edge.spawn(self._solve(effect), "solve")
            case DropFile(kind, key):
                self._edge.spawn(self._on_disk(partial(self._store.drop, kind, key)), "drop")
            case _:
                raise AssertionError(f"nobody performs {effect!r}")

    def _send(self, to: DeviceId, message: msgspec.Struct) -> bool:
        """A control message; without a link it is lost (False), and the machines' deadlines see to it."""
        try:
            sent = self._transport.send(to, message)
        except (MeshError, ValueError) as error:
            _log.warning("message_cannot_travel", to=to, message=type(message).__name__, reason=str(error))
            return True
        if not sent:
            _log.debug("message_not_sent", to=to, message=type(message).__name__)
        return sent

    def _send_datagram(self, to: DeviceId | None, address: Address, message: msgspec.Struct) -> None:
        try:
            self._transport.send_datagram(to, None, address.host, address.port, message)
        except (MeshError, ValueError) as error:
            _log.warning("datagram_cannot_travel", to=to, message=type(message).__name__, reason=str(error))

    def _note(self, line: Note) -> None:
        say = _log.warning if line.warning else _log.info
        say(line.event, **dict(line.facts))

    def _written(self, name: str, record: Record, reason: str) -> None:
        """The vote leaves only once it is on disk; while the disk refuses, this node follows, and says so loudly."""
        core = self._edge.core
        if reason or name in self._unwritten:
            subject = f"disk ({name}.json)"
            word = f"{reason}; this device follows and never leads" if reason and name == "term" else reason
            self._edge.post(lambda now: core.on_trouble(subject, word, now))
        (self._unwritten.add if reason else self._unwritten.discard)(name)
        term = record.get("term")
        if name == "term" and isinstance(term, int):
            ended = core.on_unpersisted if reason else core.on_persisted
            self._edge.post(lambda now: ended(term, now))

    async def keep(self, name: str, record: Record) -> None:
        """Write a record down, in turn with the core's own."""
        await self._keeper.keep(name, record)

    async def _on_disk(self, deed: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(deed)
        except MeshError as error:
            _log.warning("disk_refused", reason=str(error))

    async def _fetch(self, effect: Fetch) -> None:
        reason, card = "", None
        began = time.monotonic()
        try:
            path = await contained(self._transfers.fetch(effect), "the transfer of a file")
            if effect.kind == "card":
                card = await contained(asyncio.to_thread(self._store.load_card, path), "reading a card")
        except MeshError as error:
            reason = str(error)
            _log.info("not_fetched", kind=effect.kind, file=effect.key[:12], reason=reason)
        self._edge.post(self._fetched(effect, reason, card, (time.monotonic() - began) * 1000))

    def _fetched(
        self, effect: Fetch, reason: str, card: Card | None, took_ms: float
    ) -> Callable[[float], list[Effect]]:
        """The event a finished transfer makes."""
        core, recipe = self._edge.core, effect.recipe
        if effect.kind == "shard" and recipe is not None:
            return lambda now: core.on_shard_fetched(recipe, reason, now, took_ms=took_ms)
        if effect.kind == "card":
            return lambda now: core.on_card_fetched(effect.key, card, now)
        return lambda now: core.on_model_fetched(effect.key, reason, now)

    async def _load(self, effect: Load) -> None:
        core, recipe = self._edge.core, effect.recipe
        began = time.monotonic()
        try:
            handle = await contained(self._loaded(effect), "loading a shard")
        except MeshError as error:
            reason = str(error)
            self._edge.post(lambda now: core.on_load_failed(recipe, reason, now))
            return
        took_ms = (time.monotonic() - began) * 1000
        self._edge.post(lambda now: core.on_loaded(recipe, handle, now, took_ms=took_ms))

    async def _loaded(self, effect: Load) -> int:
        """The handle of a shard whose file was checked and stays on the disk while it is loaded."""
        path = await asyncio.to_thread(self._checked, effect.file)
        if path is None:
            _log.warning("shard_file_lost", shard=effect.recipe.key, do="it is fetched again")
            await self._transfers.fetch(effect.file)
            path = await asyncio.to_thread(self._checked, effect.file)
        if path is None:
            raise ModelError("its file is gone from the disk")
        try:
            self._announce_load(effect.file.size_bytes)
            loaded = await self._engine.load(path)
            await self._prove(loaded, effect.file)
        except MeshError:
            await asyncio.to_thread(self._store.unpin, "shard", effect.file.key)
            raise
        return loaded.handle

    async def _prove(self, loaded: Loaded, file: Fetch) -> None:
        """Run the golden vector; ModelError, with the shard dropped, where something else comes out than should."""
        if file.golden is None:
            return
        try:
            outputs = (await self._engine.run(loaded.handle, golden.inputs_for(loaded.inputs, file.key))).outputs
            facts = await asyncio.to_thread(golden.facts_of, outputs, self._numeric_class)
            fault = golden.difference(facts, file.golden, outputs)
            if fault is not None:
                raise ModelError(f"{GOLDEN_FAULT}: {fault}")
        except MeshError:
            self._engine.unload(loaded.handle)
            raise

    def _announce_load(self, size_bytes: int) -> None:
        """Tell the neighbours where a load will hold this process up for longer than a ping or two."""
        held_ms = int(size_bytes * HELD_MS_PER_BYTE / self._share)
        if held_ms >= HELD_MS_MIN:
            for device in self._transport.neighbours():
                self._send(device, Busy(min(held_ms, BUSY_MS_MAX)))

    def _checked(self, file: Fetch) -> Path | None:
        """A shard's file, pinned and read whole (so that it is in memory for the load); None where it is not right."""
        self._store.pin("shard", file.key)
        try:
            right = self._store.verify("shard", file.key, file.sha256)
        except MeshError:
            self._store.unpin("shard", file.key)
            raise
        return self._store.path("shard", file.key) if right else None

    async def _cut(self, effect: CutShards) -> None:
        answer: CutDone | CutFailed
        try:
            files = await contained(self._library.cut(effect.recipes), "cutting a model")
            answer = CutDone(effect.epoch, await contained(self._with_golden(files), "running the golden vectors"))
        except MeshError as error:
            answer = CutFailed(effect.epoch, str(error))
        self._edge.post(lambda now: self._edge.core.answer(effect.to, answer, now))

    async def _with_golden(self, files: tuple[ShardFile, ...]) -> tuple[ShardFile, ...]:
        """The files with what each shard must compute, as far as there is memory beside what is loaded to run it."""
        found = []
        for file in files:
            known = self._goldens.get(file.recipe) or await self._golden(file)
            if known is not None:
                self._goldens[file.recipe] = known
            found.append(msgspec.structs.replace(file, golden=known))
        for recipe in list(self._goldens)[: max(0, len(self._goldens) - GOLDENS_MAX)]:
            del self._goldens[recipe]
        return tuple(found)

    async def _golden(self, file: ShardFile) -> Golden | None:
        """What a shard just cut makes of its golden input; None where it cannot be run here."""
        card, path = self._edge.core.catalogue.card(file.recipe.digest), self._store.path("shard", file.recipe.key)
        if card is None or path is None:
            return None
        if memory_bytes(card, file.recipe, 1) > self._edge.core.shards.free_bytes:
            _log.info("golden_vector_left_out", shard=file.recipe.key, reason="no memory to run the shard here")
            return None
        self._announce_load(file.size_bytes)
        try:
            loaded = await self._engine.load(path)
            try:
                ran = await self._engine.run(loaded.handle, golden.inputs_for(loaded.inputs, file.recipe.key))
            finally:
                self._engine.unload(loaded.handle)
        except MeshError as error:
            _log.warning("golden_vector_left_out", shard=file.recipe.key, reason=str(error))
            return None
        return await asyncio.to_thread(golden.facts_of, ran.outputs, self._numeric_class)

    async def _solve(self, effect: Solve) -> None:
        """Search off the loop; a search that breaks is no plan, else each leader in turn would die of it."""
        result: PlanSet | str
        try:
            result = await contained(asyncio.to_thread(problems.solve, effect.problem), "the search for a plan")
        except MeshError as error:
            result = str(error)
        core = self._edge.core
        self._edge.post(lambda now: core.on_solved(effect.model, effect.problem, result, now))
