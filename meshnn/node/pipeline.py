"""The stages of other people's requests (and our own) on this device: assemble, run, hand on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import BusyError, MeshError, PeerError, StaleEpochError, UsageError
from meshnn.graph.card import Card
from meshnn.net.tasks import TaskSet
from meshnn.node.assembly import Arrival, Assembly, Complete, Key, Target
from meshnn.node.carrier import Ground, Load
from meshnn.node.slices import Array, Parcel, Passage, parcels
from meshnn.plan import boxes
from meshnn.plan.messages import Failed, StageTime
from meshnn.plan.outline import Outline, outline
from meshnn.plan.plan import Epoch, Group, Plan, Recipe, Stage
from meshnn.plan.routes import ORIGIN, Routes, derive
from meshnn.telemetry import logger

# How much a new stage time weighs in the running mean.
EWMA_WEIGHT = 0.2
ROUTES_LIMIT = 128
# A cancelled attempt may still be inside when its successor comes: room for both.
WINDOWS = 2
# Characters of a reason: a runtime may tell long stories.
MESSAGE_LIMIT = 1000

_log = logger(__name__)


class Runner(Protocol):
    """What runs a loaded shard: the device's engine."""

    async def run(self, handle: int, inputs: Sequence[NDArray[np.generic]]) -> tuple[list[NDArray[np.generic]], float]:
        """The shard's outputs in its own order, and the seconds the run took. ModelError when the run fails."""


class Home(Protocol):
    """The origin on this same device: what a stage hands to it without the network."""

    def on_arrival(self, passage: Passage, arrival: Arrival) -> None:
        """A slice of an answer for a request of this device."""

    def on_failed(self, reporter: DeviceId, message: Failed) -> None:
        """An attempt of a request of this device ended."""


@dataclass(frozen=True, slots=True)
class Ways:
    """One choice of lane and groups: its routes, and what each (stage, part) must have; the origin's stands last."""

    model: Outline
    routes: Routes
    targets: dict[tuple[int, int], Target]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a slice belongs: the ways of its attempt, the stages and groups chosen, the shard's recipe and handle."""

    ways: Ways
    stages: tuple[Stage, ...]
    groups: tuple[Group, ...]
    recipe: Recipe
    handle: int
    target: Target


class RouteBook:
    """The ways of lately used attempts, so that they are derived once per choice of lane and groups."""

    def __init__(self) -> None:
        """Empty."""
        self._known: OrderedDict[tuple[str, Epoch, int, tuple[int, ...]], Ways] = OrderedDict()

    def ways(self, plan: Plan, card: Card, lane: int, groups: tuple[int, ...]) -> Ways:
        """The ways of a choice. UsageError or NoPlanError where the choice does not fit the plan."""
        if not 0 <= lane < len(plan.lanes):
            raise UsageError(f"lane {lane} chosen where the plan has {len(plan.lanes)}")
        key = (plan.model, plan.epoch, lane, groups)
        found = self._known.get(key)
        if found is None:
            model = outline(card)
            routes = derive(model, plan.lanes[lane], groups)
            targets = {
                at: Target(
                    needs, {need.tensor: model.tensor(need.tensor).dtype for need in needs}, WINDOWS * plan.window
                )
                for at, needs in routes.needs.items()
            }
            found = self._known[key] = Ways(model, routes, targets)
            if len(self._known) > ROUTES_LIMIT:
                self._known.popitem(last=False)
        return found


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

    def on_arrival(self, passage: Passage, key: tuple[int, int], arrival: Arrival, deadline: float) -> None:
        """A slice for shard `key` (stage, part) of this device; what cannot be taken is told to the origin."""
        now = self._clock()
        slot = Key(passage, *key)
        if self._assembly.superseded(slot):
            return
        try:
            site = self.site(passage, *key)
            if passage.attempt > 1:
                # One attempt of a request at a time: the origin has given up the earlier ones.
                self.cancel(passage.origin, passage.request, passage.attempt - 1)
            complete = self._assembly.add(slot, site.target, arrival, deadline, now)
        except PeerError as error:
            _log.warning("slice refused", request=passage.request, source=arrival.source, reason=str(error))
        except MeshError as error:
            self.report(passage, key[0], error)
        else:
            if complete is not None:
                self._tasks.spawn(self._fire(site, complete), f"{passage.request}.{key[0]}")

    def site(self, passage: Passage, stage: int, part: int) -> Site:
        """Where a slice belongs. StaleEpochError for what this node does not serve, PeerError for nonsense."""
        plan = self._served.plan(passage.model, passage.epoch)
        card = self._served.card(plan.digest) if plan else None
        if plan is None or card is None:
            raise StaleEpochError(f"plan {passage.epoch} is not served here")
        try:
            ways = self._routes.ways(plan, card, passage.lane, passage.groups)
        except MeshError as error:
            raise PeerError(f"a slice of plan {passage.epoch} makes no sense: {error}") from error
        stages = plan.lanes[passage.lane].stages
        groups = tuple(one.groups[index] for one, index in zip(stages, passage.groups, strict=True))
        if not (0 <= stage < len(stages) and 0 <= part < len(groups[stage].shards)):
            raise PeerError(f"a slice for shard {stage}.{part}, which the plan does not have")
        group = groups[stage]
        if group.shards[part].device != self._me:
            raise PeerError(f"a slice for shard {stage}.{part}, which is another device's")
        if group.shards[part].boot != self._boot:
            raise StaleEpochError(f"plan {passage.epoch} means an earlier life of this device")
        recipe = Recipe(plan.digest, stages[stage].first, stages[stage].last, group.split, part, group.shares)
        handle = self._served.handle(recipe)
        if handle is None:
            raise StaleEpochError(f"the shard of plan {passage.epoch} is not loaded here")
        return Site(ways, stages, groups, recipe, handle, ways.targets[stage, part])

    def admits(self, passage: Passage, key: tuple[int, int], source: tuple[int, int], size_bytes: int) -> bool:
        """Whether a payload may be read for shard `key`; the origin hears why not."""
        slot = Key(passage, *key)
        if not self._assembly.wants(slot, source):
            return False
        try:
            site = self.site(passage, *key)
            if not self._assembly.has_room(slot, site.target.limit, size_bytes):
                raise BusyError("this device has no room for more work of this plan")
        except PeerError as error:
            _log.warning("slice refused", request=passage.request, source=source, reason=str(error))
            return False
        except MeshError as error:
            self.report(passage, key[0], error)
            return False
        return True

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
                if self._assembly.superseded(key) or self._clock() >= complete.deadline:
                    return
                # The fragment's own order: what the file's inputs are, by tensor index of the whole model.
                order = site.ways.model.fragment_inputs(site.recipe.first, site.recipe.last)
                inputs = [complete.tensors[tensor] for tensor in order if tensor in complete.tensors]
                arrays, compute_s = await self._engine.run(site.handle, inputs)
            self._observe(site.recipe, compute_s * 1000)
            if not self._assembly.superseded(key):
                time = StageTime(key.stage, key.part, self._me, compute_s * 1000, complete.received_bytes)
                await self._hand_on(site, complete, arrays, (*complete.times, time))
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
        key = complete.key
        source = (key.stage, key.part)
        order = site.ways.model.fragment_outputs(site.recipe.first, site.recipe.last)
        have = partial(boxes.have, site.ways.model, site.stages[key.stage], site.groups[key.stage], key.part)
        bases = {tensor: base for tensor in order if (base := have(tensor)) is not None}
        outputs = dict(zip(bases, arrays, strict=True))
        loads = []
        for parcel in parcels(site.ways.routes, source, outputs, bases):
            device = self._receiver(site, key.passage, parcel)
            if device == self._me:
                self._deliver(key.passage, parcel, Arrival(source, parcel.pieces, 0, times), complete.deadline)
            else:
                loads.append(Load(key.passage, parcel, source, device, complete.deadline, times))
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

    def _receiver(self, site: Site, passage: Passage, parcel: Parcel) -> DeviceId:
        """The device that a parcel is for."""
        if parcel.stage == site.ways.routes.stages:
            return passage.origin
        return site.groups[parcel.stage].shards[parcel.part].device

    def _deliver(self, passage: Passage, parcel: Parcel, arrival: Arrival, deadline: float) -> None:
        """Hand a parcel over within this device."""
        if parcel.stage < len(passage.groups):
            self.on_arrival(passage, (parcel.stage, parcel.part), arrival, deadline)
        elif self.home is not None and passage.origin_boot == self._boot:
            self.home.on_arrival(passage, arrival)

    def _observe(self, recipe: Recipe, compute_ms: float) -> None:
        """Keep the running mean of a shard's time; shards that are gone are forgotten."""
        known = self._stage_ms.get(recipe, compute_ms)
        self._stage_ms[recipe] = known + EWMA_WEIGHT * (compute_ms - known)
        for other in [one for one in self._stage_ms if one != recipe and self._served.handle(one) is None]:
            del self._stage_ms[other]


def is_sender(site: Site, passage: Passage, source: tuple[int, int], device: DeviceId, boot: BootId) -> bool:
    """Whether this device in this life is the shard (or origin) that a slice says it comes from."""
    stage, part = source
    if stage == ORIGIN:
        return (device, boot) == (passage.origin, passage.origin_boot)
    if not (0 <= stage < len(site.groups) and 0 <= part < len(site.groups[stage].shards)):
        return False
    shard = site.groups[stage].shards[part]
    return (shard.device, shard.boot) == (device, boot)
