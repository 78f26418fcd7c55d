"""The stages of other people's requests (and our own) on this device: assemble, run, hand on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshnn.cluster.member import DeviceId
from meshnn.device.interpreter import Ran
from meshnn.errors import BusyError, MeshError, PeerError, StaleEpochError
from meshnn.net.tasks import TaskSet
from meshnn.node.assembly import Assembly, Complete, Key
from meshnn.node.carrier import Ground, Load
from meshnn.node.inputs import Arrival
from meshnn.node.slices import Array, Parcel, Passage, dealt, parcel_of
from meshnn.node.ways import RouteBook, Site, Ways
from meshnn.plan import boxes
from meshnn.plan.messages import Failed, StageTime
from meshnn.plan.plan import Recipe
from meshnn.plan.shipments import At
from meshnn.telemetry import logger

# How much a new stage time weighs in the running mean.
EWMA_WEIGHT = 0.2
# Characters of a reason: a runtime may tell long stories.
MESSAGE_LIMIT = 1000

_log = logger(__name__)


class Runner(Protocol):
    """What runs a loaded shard: the device's engine."""

    async def run(self, handle: int, inputs: Sequence[NDArray[np.generic]]) -> Ran:
        """The shard's outputs in its own order, and the time the run took. ModelError when the run fails."""


class Home(Protocol):
    """The origin on this same device: what a stage hands to it without the network."""

    def on_arrival(self, passage: Passage, arrival: Arrival) -> None:
        """A slice of an answer for a request of this device."""

    def admits(self, passage: Passage, source: At, address: At) -> bool:
        """Whether a slice of an answer, in a parcel with this address, may come in."""

    def on_failed(self, reporter: DeviceId, message: Failed) -> None:
        """An attempt of a request of this device ended."""


class Pipeline:
    """The stage side of the data plane: slices in, shards run, slices out; trouble goes to the request's origin."""

    def __init__(self, ground: Ground, engine: Runner, *, assembly_bytes: int, runs: int) -> None:
        """`runs` is how many shards may be handed to the engine at once."""
        self._me, self._boot = ground.me, ground.boot
        self._transport = ground.transport
        self._engine = engine
        self._served = ground.served
        self._clock = ground.clock
        self._carrier = ground.carrier
        self._routes = RouteBook()
        self._assembly = Assembly(assembly_bytes)
        self._slots = asyncio.Semaphore(runs)
        self._tasks = TaskSet("pipeline")
        self._stage_ms: dict[Recipe, float] = {}
        self.home: Home | None = None

    @property
    def assembly(self) -> Assembly:
        """What is being collected and run here."""
        return self._assembly

    @property
    def routes(self) -> RouteBook:
        """The routes of lately used attempts."""
        return self._routes

    @property
    def stage_ms(self) -> dict[Recipe, float]:
        """The running mean of each shard's run, milliseconds."""
        return dict(self._stage_ms)

    async def stop(self) -> None:
        """End every run and every hand-on."""
        await self._tasks.stop()

    def on_parcel(
        self,
        passage: Passage,
        source: At,
        parcel: Parcel,
        deadline: float,
        received_bytes: int = 0,
        times: tuple[StageTime, ...] = (),
    ) -> None:
        """A parcel is here, whole: everybody on this device who reads of it gets a part; trouble goes to the origin.

        `received_bytes`, what came over the network for it, count with the shard that it is addressed to.
        """
        address = (parcel.stage, parcel.part)
        try:
            ways = self.ways(passage)
            shipment = ways.shipment(source, address, passage.origin)
            if shipment is None:
                raise PeerError(f"shard {source} sends nothing to shard {address}")
            for at, pieces in dealt(shipment, parcel.pieces):
                arrival = Arrival(source, address, pieces, received_bytes if at == address else 0, times)
                if at != ways.end:
                    self._on_arrival(passage, at, arrival, deadline)
                elif self.home is not None:
                    self.home.on_arrival(passage, arrival)
        except PeerError as error:
            _log.warning("slice refused", request=passage.request, source=source, reason=str(error))
        except MeshError as error:
            if not self._assembly.superseded(Key(passage, *address)):
                self.report(passage, address[0], error)

    def _on_arrival(self, passage: Passage, at: At, arrival: Arrival, deadline: float) -> None:
        """A slice for one shard of this device; what cannot be taken is told to the origin."""
        slot = Key(passage, *at)
        if self._assembly.superseded(slot):
            return
        try:
            site = self.site(passage, *at)
            if passage.attempt > 1:
                # One attempt of a request at a time: the origin has given up the earlier ones.
                self.cancel(passage.origin, passage.request, passage.attempt - 1)
            complete = self._assembly.add(slot, site.target, arrival, deadline, self._clock())
        except PeerError as error:
            _log.warning("slice refused", request=passage.request, source=arrival.source, reason=str(error))
        except MeshError as error:
            self.report(passage, at[0], error)
        else:
            if complete is not None:
                self._tasks.spawn(self._fire(site, complete), f"{passage.request}.{at[0]}")

    def ways(self, passage: Passage) -> Ways:
        """The way of an attempt. StaleEpochError for a plan that this node does not serve, PeerError for nonsense."""
        plan = self._served.plan(passage.model, passage.epoch)
        card = self._served.card(plan.digest) if plan else None
        if plan is None or card is None:
            raise StaleEpochError(f"plan {passage.epoch} is not served here")
        try:
            return self._routes.ways(plan, card, passage.lane, passage.groups)
        except MeshError as error:
            raise PeerError(f"a slice of plan {passage.epoch} makes no sense: {error}") from error

    def site(self, passage: Passage, stage: int, part: int) -> Site:
        """Where a slice belongs. StaleEpochError for what this node does not serve, PeerError for nonsense."""
        ways = self.ways(passage)
        if not (0 <= stage < len(ways.groups) and 0 <= part < len(ways.groups[stage].shards)):
            raise PeerError(f"a slice for shard {stage}.{part}, which the plan does not have")
        shard = ways.groups[stage].shards[part]
        if shard.device != self._me:
            raise PeerError(f"a slice for shard {stage}.{part}, which is another device's")
        if shard.boot != self._boot:
            raise StaleEpochError(f"plan {passage.epoch} means an earlier life of this device")
        recipe = ways.recipe(stage, part)
        handle = self._served.handle(recipe)
        if handle is None or passage.epoch.absent:
            self._served.on_asked(passage.model, passage.epoch)
        if handle is None:
            raise StaleEpochError(f"the shard of plan {passage.epoch} is not loaded here")
        return Site(ways, recipe, handle, ways.target((stage, part), passage.origin))

    def admits(self, passage: Passage, source: At, address: At) -> bool:
        """Whether the payload of a parcel may be read: somebody here wants it, and all who do have room."""
        try:
            return self._wanted(passage, source, address)
        except PeerError as error:
            _log.warning("slice refused", request=passage.request, source=source, reason=str(error))
        except MeshError as error:
            self.report(passage, address[0], error)
        return False

    def _wanted(self, passage: Passage, source: At, address: At) -> bool:
        """The answer of `admits`; BusyError, StaleEpochError, PeerError."""
        if self._assembly.superseded(Key(passage, *address)) and passage.origin != self._me:
            return False
        ways = self.ways(passage)
        shipment = ways.shipment(source, address, passage.origin)
        if shipment is None:
            raise PeerError(f"shard {source} sends nothing to shard {address}")
        wanted = False
        for reader in shipment.readers:
            slot = Key(passage, *reader.at)
            if reader.at == ways.end:
                wanted = wanted or (self.home is not None and self.home.admits(passage, source, address))
            elif self._assembly.wants(slot, source, address):
                if not self._assembly.has_room(slot, self.site(passage, *reader.at).target):
                    raise BusyError("this device has no room for more work of this plan")
                wanted = True
        return wanted

    def cancel(self, origin: DeviceId, request: str, attempt: int) -> None:
        """Attempts of this request up to this one are over."""
        self._assembly.cancel(origin, request, attempt, self._clock())
        self._carrier.cancel(origin, request, attempt)

    def report(self, passage: Passage, stage: int, error: MeshError, culprit: str = "") -> None:
        """Tell the origin that an attempt ends here, and why."""
        newest = self._served.newest(passage.model)
        told = str(error)[:MESSAGE_LIMIT]
        failed = Failed(passage.request, passage.attempt, stage, error.code, told, culprit, newest)
        if passage.origin != self._me:
            self._transport.send(passage.origin, failed)
        elif self.home is not None and passage.origin_boot == self._boot:
            self.home.on_failed(self._me, failed)

    def on_plans_changed(self) -> None:
        """What waits for a plan that is no longer served cannot come to anything: its origins hear so."""
        for key in self._assembly.collecting:
            if self._served.plan(key.passage.model, key.passage.epoch) is None:
                self._assembly.drop(key)
                self.report(key.passage, key.stage, StaleEpochError(f"plan {key.passage.epoch} was retired here"))

    async def _fire(self, site: Site, complete: Complete) -> None:
        """Run one shard on its whole inputs and hand its outputs on."""
        key = complete.key
        try:
            async with self._slots:
                if self._clock() >= complete.deadline or not self._assembly.begin(key):
                    return
                if self._served.plan(key.passage.model, key.passage.epoch) is None:
                    raise StaleEpochError(f"plan {key.passage.epoch} was retired here")
                ran = await self._engine.run(site.handle, _inputs(site, complete))
            # The engine has copied the inputs: their memory is free before the outputs have left.
            self._assembly.spend(key)
            self._observe(site.recipe, ran.paced_s * 1000)
            if not self._assembly.superseded(key):
                time = StageTime(key.stage, key.part, self._me, ran.compute_s * 1000, complete.received_bytes)
                await self._hand_on(site, complete, ran.outputs, (*complete.times, time))
        except MeshError as error:
            # Where the shard was unloaded meanwhile the plan is over, and the model not at fault.
            unloaded = self._served.handle(site.recipe) != site.handle
            gone = StaleEpochError(f"plan {key.passage.epoch} was retired here")
            self.report(key.passage, key.stage, gone if unloaded else error)
        finally:
            self._assembly.finish(key)

    async def _hand_on(
        self, site: Site, complete: Complete, arrays: Sequence[Array], times: tuple[StageTime, ...]
    ) -> None:
        """Send a shard's outputs to whoever needs them; what stays on this device stays in memory."""
        key, ways = complete.key, site.ways
        source, passage = (key.stage, key.part), key.passage
        order = ways.model.fragment_outputs(site.recipe.first, site.recipe.last)
        have = partial(boxes.have, ways.model, ways.stages[key.stage], ways.groups[key.stage], key.part)
        bases = {tensor: base for tensor in order if (base := have(tensor)) is not None}
        outputs = dict(zip(bases, arrays, strict=True))
        loads = []
        for shipment in ways.traffic.sent(source, passage.origin):
            parcel = parcel_of(shipment, outputs, bases)
            device = ways.traffic.device(shipment.address, passage.origin)
            if device != self._me:
                loads.append(Load(passage, parcel, source, device, complete.deadline, times))
            elif shipment.address != ways.end:
                self.on_parcel(passage, source, parcel, complete.deadline, 0, times)
            elif self.home is not None:
                self.home.on_arrival(passage, Arrival(source, ways.end, parcel.pieces, 0, times))
        async with asyncio.TaskGroup() as sending:
            for load in loads:
                sending.create_task(self._carry(load))

    async def _carry(self, load: Load) -> None:
        """Send one parcel; a receiver that cannot be reached is named to the origin."""
        try:
            await self._carrier.carry(load)
        except PeerError as error:
            self.report(load.passage, load.source[0], error, culprit=load.device)
        except MeshError as error:
            self.report(load.passage, load.source[0], error)

    def _observe(self, recipe: Recipe, paced_ms: float) -> None:
        """Keep the running mean of a shard's time; shards that are gone are forgotten."""
        known = self._stage_ms.get(recipe, paced_ms)
        self._stage_ms[recipe] = known + EWMA_WEIGHT * (paced_ms - known)
        for other in [one for one in self._stage_ms if one != recipe and self._served.handle(one) is None]:
            del self._stage_ms[other]


def _inputs(site: Site, complete: Complete) -> list[Array]:
    """A shard's inputs in the order of its file: that of the fragment, by tensor index of the whole model."""
    order = site.ways.model.fragment_inputs(site.recipe.first, site.recipe.last)
    return [complete.tensors[tensor] for tensor in order if tensor in complete.tensors]
