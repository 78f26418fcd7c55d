"""Does what the core says: the one place where effects meet the network, the disk, the runtime and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store
from meshnn.errors import MeshError, ModelError
from meshnn.graph.card import Card
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
from meshnn.node.library import Library
from meshnn.node.transfer import Transfers
from meshnn.plan.messages import CutDone, CutFailed
from meshnn.plan.plan import Recipe
from meshnn.telemetry import logger

_log = logger(__name__)


class Edge(Protocol):
    """What the performer needs of the node around it."""

    core: Core

    def post(self, event: Callable[[float], list[Effect]]) -> None:
        """Queue an event for the core; it is called with the time."""

    def spawn(self, work: Coroutine[None, None, object]) -> None:
        """Run work under the node's care."""

    def notify(self) -> None:
        """Wake whoever waits for a change."""

    def plans_changed(self) -> None:
        """The served plans are other ones."""

    def clashed(self, boot: BootId) -> None:
        """Another process holds this device's key."""


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
        self._disk = asyncio.Lock()

    def perform(self, effects: list[Effect]) -> None:
        """Do all effects in order; slow ones go on in tasks of their own."""
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case SendStream(to, message):
                self._send(to, message)
            case SendDatagram(to, address, message):
                self._transport.send_datagram(to, None, address.host, address.port, message)
            case Dial(address):
                self._transport.dial(address.host, address.port)
            case PlansChanged():
                self._edge.plans_changed()
            case Changed() | MemberChanged() | LeaderChanged():
                self._edge.notify()
            case Note():
                self._note(effect)
            case IdentityClash(boot):
                self._edge.clashed(boot)
            case _:
                self._start(effect)

    def _start(self, effect: Effect) -> None:
        """Begin the deeds that take time."""
        match effect:
            case PersistTerm(term, voted_for):
                self._edge.spawn(self._persist_term(term, voted_for))
            case PersistIncarnation(incarnation):
                self._edge.spawn(self._saved("incarnation", {"incarnation": incarnation}))
            case SaveNames(records):
                self._edge.spawn(self._saved("names", {"records": msgspec.to_builtins(records)}))
            case Fetch():
                self._edge.spawn(self._fetch(effect))
            case Load(recipe):
                self._edge.spawn(self._load(recipe))
            case Unload(_, handle):
                self._engine.unload(handle)
            case CutShards():
                self._edge.spawn(self._cut(effect))
            case Solve():
                self._edge.spawn(self._solve(effect))
            case DropFile(kind, key):
                self._edge.spawn(self._in_thread(lambda: self._store.drop(kind, key)))
            case _:
                raise AssertionError(f"nobody performs {effect!r}")

    def _send(self, to: DeviceId, message: msgspec.Struct) -> None:
        """A control message; without a link it is lost, and the machines' deadlines see to it."""
        try:
            if not self._transport.send(to, message):
                _log.debug("message_not_sent", to=to, message=type(message).__name__)
        except MeshError as error:
            _log.warning("message_too_large", to=to, message=type(message).__name__, reason=str(error))

    def _note(self, line: Note) -> None:
        say = _log.warning if line.warning else _log.info
        say(line.event, **dict(line.facts))

    async def _persist_term(self, term: int, voted_for: DeviceId | None) -> None:
        """The vote leaves only once it is on disk; where the disk refuses, this node follows and never leads."""
        if await self._saved("term", {"term": term, "voted_for": voted_for}):
            self._edge.post(lambda now: self._edge.core.on_persisted(term, now))

    async def _saved(self, name: str, record: dict[str, object]) -> bool:
        async with self._disk:
            return await self._in_thread(lambda: self._store.save_record(name, record))

    async def _in_thread(self, deed: Callable[[], object]) -> bool:
        try:
            await asyncio.to_thread(deed)
        except MeshError as error:
            _log.error("disk_refused", reason=str(error))
            return False
        return True

    async def _fetch(self, effect: Fetch) -> None:
        reason, card = "", None
        try:
            path = await self._transfers.fetch(effect)
            if effect.kind == "card":
                card = await asyncio.to_thread(self._store.load_card, path)
        except MeshError as error:
            reason = str(error)
            _log.info("not_fetched", kind=effect.kind, file=effect.key[:12], reason=reason)
        self._edge.post(self._fetched(effect, reason, card))

    def _fetched(self, effect: Fetch, reason: str, card: Card | None) -> Callable[[float], list[Effect]]:
        """The event a finished transfer makes."""
        core, recipe = self._edge.core, effect.recipe
        if effect.kind == "shard" and recipe is not None:
            return lambda now: core.on_shard_fetched(recipe, reason, now)
        if effect.kind == "card":
            return lambda now: core.on_card_fetched(effect.key, card, now)
        return lambda now: core.on_model_fetched(effect.key, reason, now)

    async def _load(self, recipe: Recipe) -> None:
        core = self._edge.core
        try:
            path = await asyncio.to_thread(self._store.path, "shard", recipe.key)
            if path is None:
                raise ModelError("its file is gone from the disk")
            handle = (await self._engine.load(path)).handle
        except MeshError as error:
            reason = str(error)
            self._edge.post(lambda now: core.on_load_failed(recipe, reason, now))
            return
        self._edge.post(lambda now: core.on_loaded(recipe, handle, now))

    async def _cut(self, effect: CutShards) -> None:
        answer: CutDone | CutFailed
        try:
            answer = CutDone(effect.epoch, await self._library.cut(effect.recipes))
        except MeshError as error:
            answer = CutFailed(effect.epoch, str(error))
        self._edge.post(lambda now: self._edge.core.answer(effect.to, answer, now))

    async def _solve(self, effect: Solve) -> None:
        result = await asyncio.to_thread(problems.solve, effect.problem)
        core = self._edge.core
        self._edge.post(lambda now: core.on_solved(effect.model, effect.problem, result, now))
