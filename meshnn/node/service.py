"""What a node does for a person: ask, status, models. HTTP, the peer protocol and the library stand on it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from meshnn import vision
from meshnn.cluster.member import DeviceId, MemberState
from meshnn.device.store import Store
from meshnn.errors import BusyError, DeadlineError, MeshError, ModelConflictError, NoPlanError, UnknownModelError
from meshnn.graph.card import Card
from meshnn.node import reports
from meshnn.node.answer import Answer, Arrays, Question, answer_of
from meshnn.node.core import Core
from meshnn.node.dataplane import DataPlane, Outcome
from meshnn.node.effects import Effect
from meshnn.node.library import Library
from meshnn.node.messages import NameRecord, Pin, Unpin
from meshnn.node.pace import Pace
from meshnn.node.solo import Shipped, Whole
from meshnn.plan.explain import explain
from meshnn.plan.explicit import decode

ASK_DEADLINE_S = 30.0
ADD_DEADLINE_S = 60.0
# Photos decoded at once: each may take tens of MB.
DECODING_MAX = 4
WAITING_MAX = 1024
# An estimate is no promise: a request is taken where it should be answered within this share of its deadline.
SAFE_SHARE = 0.8


class Host(Protocol):
    """The node, as its service sees it."""

    core: Core
    store: Store

    def perform(self, effects: list[Effect]) -> None:
        """Do what the core said."""

    async def changed(self) -> None:
        """Wait until something a person can see has changed; NodeError where the node is ending."""


class Service:
    """The node's verbs; every one ends within its deadline with a result or a MeshError."""

    def __init__(
        self,
        host: Host,
        plane: DataPlane,
        library: Library,
        shipped: Shipped,
        whole: Whole,
        identity: tuple[DeviceId, str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`identity`: device id, device name, mesh name."""
        self._host = host
        self._plane = plane
        self._library = library
        self._shipped = shipped
        self._whole = whole
        self._me, self._name, self._mesh = identity
        self._clock = clock
        self._decoding = asyncio.Semaphore(DECODING_MAX)
        self._pace = Pace()

    async def ask(
        self, data: bytes, source: str, *, model: str | None = None, top: int = 5, deadline_s: float = ASK_DEADLINE_S
    ) -> Answer:
        """Answer one photo or npz: InputError, UnknownModelError, DeadlineError, NoPlanError, BusyError, ModelError."""
        started = self._clock()
        async with self._counted(deadline_s):
            name, card, inputs, outcome = await self._once_known(data, source, model, started + deadline_s)
        question = Question(source, name, top)
        return await answer_of(question, card, inputs, outcome, self._clock() - started, self._names())

    @asynccontextmanager
    async def _counted(self, deadline_s: float) -> AsyncIterator[None]:
        """A request is under way inside; BusyError at once where it could not be answered within its deadline."""
        self.refuse_overload(deadline_s)
        self._pace.begin()
        answered = False
        try:
            yield
            answered = True
        finally:
            self._pace.end(answered, self._clock())

    def refuse_overload(self, deadline_s: float) -> None:
        """Raise BusyError where one more request could not be answered within its deadline: before its body is read."""
        if self._pace.open >= WAITING_MAX:
            raise BusyError(f"{WAITING_MAX} requests are waiting on this device already; try again later")
        wait_s = self._pace.wait_s(self._clock())
        if wait_s > SAFE_SHARE * deadline_s > 0:
            raise BusyError(
                f"{self._pace.open} requests wait on this device, some {wait_s:.1f} s of work, and this one has "
                f"{deadline_s:.1f} s; try again later"
            )

    async def _once_known(
        self, data: bytes, source: str, model: str | None, until: float
    ) -> tuple[str, Card, Arrays, Outcome]:
        """Resolve, read, run; anew where the name came to mean another file on the way."""
        while True:
            async with _within(until - self._clock(), f"{source} was not read in time"):
                name, card = await self._resolve(model, until)
                async with self._decoding:
                    inputs = await asyncio.to_thread(vision.read_inputs, data, source, card)
            try:
                return name, card, inputs, await self._run(name, card, inputs, until)
            except ModelConflictError:
                continue

    async def tensors(self, model: str, inputs: Arrays, deadline_s: float = ASK_DEADLINE_S) -> Outcome:
        """Run a model on raw input tensors by name; the errors of `ask`."""
        until = self._clock() + deadline_s
        async with self._counted(deadline_s):
            name, card = await self._resolve(model, until)
            return await self._run(name, card, inputs, until)

    async def card(self, model: str | None, deadline_s: float = ASK_DEADLINE_S) -> Card:
        """The card of a model, waiting for it to arrive; UnknownModelError, DeadlineError."""
        async with _within(deadline_s, "the card was not read in time"):
            return (await self._resolve(model, self._clock() + deadline_s))[1]

    async def add(
        self, path: Path, name: str, *, replace: bool, wait: bool = True, deadline_s: float = ADD_DEADLINE_S
    ) -> dict[str, object]:
        """Give the mesh a model: stored, known to all, held twice, planned; ModelError, NoPlanError, DeadlineError."""
        until = self._clock() + deadline_s
        async with _within(deadline_s, f"{name} could not be tried in time"):
            card = await self._library.take(path, name)
        try:
            self._host.perform(self._host.core.add_model(name, card, self._clock(), replace=replace))
        except MeshError:
            if all(record.digest != card.digest for record in self._host.core.catalogue.records):
                await asyncio.to_thread(self._library.forget, card.digest)
            raise
        record = self._host.core.catalogue.record(name)
        if wait:
            await self._until(lambda: self._added(record), until, f"{name} is not served by the mesh yet")
        return {"name": name, "digest": record.digest, "bytes": record.size_bytes, "holders": self._holders(record)}

    def remove(self, name: str) -> None:
        """Forget a model in the whole mesh; UnknownModelError."""
        self._host.perform(self._host.core.remove_model(name, self._clock()))

    async def model_file(self, name: str, deadline_s: float = ADD_DEADLINE_S) -> Path:
        """The whole file of a model on this disk, fetched where it is not here; PeerError, NodeError, DeadlineError."""
        if name == self._shipped.name and not any(r.name == name for r in self._host.core.catalogue.records):
            return self._shipped.path
        record = self._host.core.catalogue.record(name)
        async with _within(deadline_s, f"the file of {name} did not arrive in time"):
            return await self._library.whole(record, self._host.core.catalogue.holders(record.digest))

    async def explain(self, model: str) -> list[dict[str, object]]:
        """What the planner weighed for a model: UnknownModelError, NoPlanError."""
        problem, plan = reports.question(self._host.core, model, self._clock())
        return reports.alternatives(await asyncio.to_thread(explain, problem, plan))

    async def pin(self, model: str, plan: bytes, deadline_s: float = ADD_DEADLINE_S) -> None:
        """Have the mesh run exactly this plan (JSON): UnknownModelError, UsageError, NoPlanError, DeadlineError."""
        self._host.core.catalogue.record(model)
        written = msgspec.json.encode(decode(plan, model))
        await self._wished(model, lambda ask: Pin(ask, model, written), deadline_s)

    async def unpin(self, model: str, deadline_s: float = ADD_DEADLINE_S) -> None:
        """Give a model back to the planner: NoPlanError where it finds none, DeadlineError."""
        await self._wished(model, lambda ask: Unpin(ask, model), deadline_s)

    async def _wished(self, model: str, wish: Callable[[str], Pin | Unpin], deadline_s: float) -> None:
        """Ask the leader, and wait for its word; who leads next, or anew, has not heard it and is asked again."""
        core = self._host.core
        core.catalogue.record(model)
        if core.cluster.leader is None:
            raise BusyError("the mesh elects its leader just now; try again in a moment")
        ask, until = f"{self._me}.{secrets.token_hex(8)}", self._clock() + deadline_s
        while ask not in core.pinned:
            reign = (core.cluster.leader, core.cluster.term)
            if reign[0] is not None:
                self._host.perform(core.answer(reign[0], wish(ask), self._clock()))
            news = partial(self._answered_or_over, ask, reign)
            await self._until(news, until, "the leader has not answered")
        reason = core.pinned.pop(ask)
        if reason:
            raise NoPlanError(reason)

    def _answered_or_over(self, ask: str, reign: tuple[DeviceId | None, int]) -> bool:
        """Whether the word on an ask is here, or who was asked leads no longer."""
        core = self._host.core
        return ask in core.pinned or (core.cluster.leader, core.cluster.term) != reign

    def status(self) -> dict[str, object]:
        """What `meshnn status --json` prints."""
        return reports.status(self._host.core, self._me, self._mesh)

    def plans(self) -> list[dict[str, object]]:
        """The active plans with their contingencies, for `meshnn plan show --json`."""
        return reports.plans(self._host.core)

    async def _resolve(self, model: str | None, until: float) -> tuple[str, Card]:
        """The model that is meant and its card; without a name the one that was added, else the default."""
        if model is None:
            records = self._host.core.catalogue.records
            if len(records) == 1:
                model = records[0].name
            elif self._shipped.name:
                return self._shipped.name, await self._shipped.card()
            else:
                choices = ", ".join(record.name for record in records) or "none were added"
                raise UnknownModelError(f"name a model with --model; known: {choices}")
        known = {record.name for record in self._host.core.catalogue.records}
        if model == self._shipped.name and model not in known:
            return self._shipped.name, await self._shipped.card()
        digest = self._host.core.catalogue.record(model).digest
        await self._until(
            lambda: self._host.core.catalogue.card(digest) is not None,
            until,
            f"the card of {model} has not arrived yet",
        )
        card = self._host.core.catalogue.card(digest)
        assert card is not None
        return model, card

    async def _run(self, name: str, card: Card, inputs: Arrays, until: float) -> Outcome:
        left_s = until - self._clock()
        if left_s <= 0:
            raise DeadlineError("the deadline passed before the input was read")
        known = {record.name for record in self._host.core.catalogue.records}
        if name == self._shipped.name and name not in known:
            async with _within(left_s, f"{name} did not answer in time"):
                return await self._whole.run(self._shipped.path, card, inputs)
        indexed = {tensor.index: inputs[tensor.name] for tensor in card.inputs}
        try:
            return await self._plane.ask(name, indexed, left_s, card.digest)
        except DeadlineError:
            word = self._host.core.book.unplanned(name)
            if word is not None:
                raise NoPlanError(f"no plan for {name}: {word.reason}") from None
            raise

    def _added(self, record: NameRecord) -> bool:
        """Whether every live member knows the name, two hold the file (where they can) and a plan serves it."""
        core = self._host.core
        now = self._clock()
        word = core.book.unplanned(record.name)
        if word is not None and word.hopeless and word.digest == record.digest:
            raise NoPlanError(f"no plan for {record.name}: {word.reason}")
        alive = core.planned(now)
        if not all(core.catalogue.knows(device, record) for device in alive):
            return False
        active = core.book.active(record.name)
        if active is None or active.main.digest != record.digest:
            return False
        holders = tuple(device for device in core.catalogue.holders(record.digest) if device in alive)
        disks = {device: member.capability.disk_bytes for device, member in alive.items()}
        return len(holders) >= 2 or not core.copies.possible(record.digest, record.size_bytes, holders, disks)

    async def _until(self, true: Callable[[], bool], until: float, what: str) -> None:
        """Wait for a condition of the node's state; DeadlineError says what has not come."""
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())):
                while not true():
                    await self._host.changed()
        except TimeoutError:
            raise DeadlineError(f"{what}; the deadline has passed") from None

    def _holders(self, record: NameRecord) -> list[str]:
        return list(self._host.core.catalogue.holders(record.digest))

    def _names(self) -> dict[DeviceId, str]:
        members = self._host.core.cluster.members.values()
        return {m.device_id: m.name for m in members if m.state is not MemberState.LEFT} | {self._me: self._name}


@asynccontextmanager
async def _within(deadline_s: float, what: str) -> AsyncIterator[None]:
    """Bound everything inside by a deadline; DeadlineError says what has not happened."""
    try:
        async with asyncio.timeout(max(0.0, deadline_s)):
            yield
    except TimeoutError:
        raise DeadlineError(what) from None
