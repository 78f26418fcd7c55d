"""What a plan would cost: one request followed along its critical path, from every device that may ask."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError
from meshnn.plan import boxes
from meshnn.plan.devices import DeviceInfo, Links, asking_weights, by_id
from meshnn.plan.outline import Model, Outline, outline
from meshnn.plan.plan import Group, Lane, Plan, Recipe, Stage
from meshnn.plan.ranges import plan_memory, shard_memory
from meshnn.plan.routes import ORIGIN, derive, ways
from meshnn.plan.shipments import At, Shipment, Traffic

# The most ways through a plan (lanes x groups) that one prediction follows.
WAYS_MAX = 64


class ShardCost(msgspec.Struct, frozen=True):
    """One shard's part of a request: its own computing, and the wait between its sources' end and its start."""

    lane: int
    stage: int
    group: int
    part: int
    device: DeviceId
    compute_ms: float
    transfer_ms: float
    bytes_in: int
    memory_bytes: int = 0


class Prediction(msgspec.Struct, frozen=True):
    """The cost of a plan: means over the devices that ask and over its lanes and groups, by weight.

    `air_bytes` cross between devices for one request; `memory` is per device, in bytes, for this plan alone.
    """

    latency_ms: float
    throughput_per_s: float
    memory: dict[DeviceId, int]
    air_bytes: float
    stages: tuple[ShardCost, ...]


@dataclass
class _Run:
    """One request on its way through one lane, asked by `origin`: when each device and each link is free."""

    links: Links
    origin: DeviceId
    done: dict[tuple[int, int], float] = field(default_factory=lambda: {(ORIGIN, 0): 0.0})
    busy: dict[DeviceId, float] = field(default_factory=dict)
    up: dict[DeviceId, float] = field(default_factory=dict)
    down: dict[DeviceId, float] = field(default_factory=dict)
    load: dict[tuple[str, DeviceId], float] = field(default_factory=dict)
    arrived: dict[tuple[At, At], float] = field(default_factory=dict)
    air_bytes: int = 0

    def carry(self, sender: DeviceId, receiver: DeviceId, source: At, size_bytes: int) -> float:
        """When `size_bytes` made by shard `source` have arrived; a device sends, and receives, one thing at a time."""
        if sender == receiver:
            return self.done[source]
        start = max(self.done[source], self.up.get(sender, 0.0), self.down.get(receiver, 0.0))
        spent = size_bytes * self.links.byte_ms(sender, receiver)
        self.up[sender] = self.down[receiver] = start + spent
        self._spend("up", sender, spent)
        self._spend("down", receiver, spent)
        self.air_bytes += size_bytes
        return start + spent + self.links.hop_ms(sender, receiver)

    def compute(self, device: DeviceId, ready: float, spent: float) -> float:
        """When `device` ends work of `spent` ms that may start at `ready`; it does one thing at a time."""
        self.busy[device] = max(ready, self.busy.get(device, 0.0)) + spent
        self._spend("compute", device, spent)
        return self.busy[device]

    def _spend(self, what: str, device: DeviceId, spent: float) -> None:
        self.load[what, device] = self.load.get((what, device), 0.0) + spent


def predict(
    plan: Plan,
    card: Model,
    devices: Sequence[DeviceInfo],
    links: Links,
    asking: Mapping[DeviceId, float] | None = None,
) -> Prediction:
    """The cost of `plan` when requests come from `asking` (device -> relative rate; none: from every device alike).

    Raises NoPlanError when a device of the plan is not among `devices`.
    """
    model = outline(card)
    known = by_id(devices)
    missing = [device for device in plan.devices() if device not in known]
    if missing:
        raise NoPlanError(f"the plan names devices that are not here: {', '.join(missing)}")
    origins = _origins(plan, asking_weights(devices, asking or {}), links)
    totals = _Totals()
    # Where there are too many ways through a plan, its heaviest stand for all.
    heaviest = heapq.nlargest(WAYS_MAX, ways(plan), key=lambda way: way[2])
    counted = sum(share for _, _, share in heaviest)
    for lane, groups, share in heaviest:
        traffic = Traffic(derive(model, plan.lanes[lane], groups))
        way = _Way(model, plan.lanes[lane], lane, groups, traffic, known)
        for origin, weight in origins.items():
            totals.add(_Run(links, origin), way, weight * share / counted)
    busiest = max(max(totals.load.values(), default=0.0), totals.latency_ms / plan.window, 1e-9)
    return Prediction(
        totals.latency_ms, 1000.0 / busiest, plan_memory(model, plan), totals.air_bytes, totals.shards(model, plan)
    )


@dataclass(frozen=True)
class _Way:
    """One way through a plan: a lane with a choice of groups, and what travels."""

    model: Outline
    lane: Lane
    number: int
    groups: tuple[int, ...]
    traffic: Traffic
    known: dict[DeviceId, DeviceInfo]
    sizes: dict[int, int] = field(default_factory=dict)

    def device(self, stage: int, part: int, origin: DeviceId) -> DeviceId:
        """The device of a shard; the origin before the first stage and after the last."""
        if stage in (ORIGIN, len(self.groups)):
            return origin
        return self.lane.stages[stage].groups[self.groups[stage]].shards[part].device

    def size_bytes(self, shipment: Shipment) -> int:
        """The bytes of a shipment, worked out once for each: the traffic keeps them."""
        if id(shipment) not in self.sizes:
            found = (boxes.size_bytes(self.model, tensor, box) for tensor, box in shipment.boxes)
            self.sizes[id(shipment)] = sum(found)
        return self.sizes[id(shipment)]

    def input_bytes(self, stage: int, part: int) -> int:
        """The bytes that a shard reads, addends each counted."""
        needs = self.traffic.routes.needs[stage, part]
        return sum(boxes.held_bytes(self.model, need.tensor, need.box, need.copies) for need in needs)

    def compute_ms(self, stage: int, part: int) -> float:
        """The computing time of a shard on its device; 0 for the origin's end."""
        if stage == len(self.groups):
            return 0.0
        entry = self.lane.stages[stage]
        group = entry.groups[self.groups[stage]]
        units = boxes.work(self.model, entry, group, part)
        return units / max(self.known[group.shards[part].device].speed, 1e-9)


@dataclass
class _Totals:
    """Weighted sums over the ways and the origins."""

    latency_ms: float = 0.0
    air_bytes: float = 0.0
    load: dict[tuple[str, DeviceId], float] = field(default_factory=dict)
    parts: dict[tuple[int, int, int, int], tuple[float, float, ShardCost]] = field(default_factory=dict)

    def add(self, run: _Run, way: _Way, weight: float) -> None:
        """Follow one request and add what it costs, `weight` times."""
        routes = way.traffic.routes
        for stage, part in sorted(routes.needs):
            ready = self._ready(run, way, (stage, part))
            device = way.device(stage, part, run.origin)
            spent = way.compute_ms(stage, part)
            run.done[stage, part] = run.compute(device, ready, spent)
            if stage < routes.stages:
                made = max((run.done[source] for source in routes.sources_of(stage, part)), default=0.0)
                key = (way.number, stage, way.groups[stage], part)
                cost = ShardCost(*key, device, spent, 0.0, way.input_bytes(stage, part))
                before = self.parts.get(key, (0.0, 0.0, cost))
                self.parts[key] = (before[0] + weight, before[1] + weight * (ready - made), cost)
        self.latency_ms += weight * run.done[routes.stages, 0]
        self.air_bytes += weight * run.air_bytes
        for what, spent in run.load.items():
            self.load[what] = self.load.get(what, 0.0) + weight * spent

    def _ready(self, run: _Run, way: _Way, at: At) -> float:
        """When all that a shard needs is there. Sources that end first send first, to each device what it lacks."""
        receiver = way.device(*at, run.origin)
        ready = 0.0
        due = sorted(way.traffic.received(at, run.origin), key=lambda one: (run.done[one.source], one.source))
        for shipment in due:
            key = (shipment.source, shipment.address)
            if shipment.address == at:
                sender = way.device(*shipment.source, run.origin)
                run.arrived[key] = run.carry(sender, receiver, shipment.source, way.size_bytes(shipment))
            # What a neighbour on the device reads too has come with its parcel: neighbours are followed in order.
            ready = max(ready, run.arrived[key])
        return ready

    def shards(self, model: Outline, plan: Plan) -> tuple[ShardCost, ...]:
        """The cost of every shard, in lane, stage, group and part order."""
        found = []
        sizes = {device: shard_memory(model, plan, device) for device in plan.devices()}
        for key, (weight, waited, cost) in sorted(self.parts.items()):
            lane, stage, group, part = key
            entry = plan.lanes[lane].stages[stage]
            recipe = _recipe(plan, entry, entry.groups[group], part)
            memory = sizes[cost.device][recipe]
            found.append(msgspec.structs.replace(cost, transfer_ms=waited / weight, memory_bytes=memory))
        return tuple(found)


def _origins(plan: Plan, weights: Mapping[DeviceId, float], links: Links) -> dict[DeviceId, float]:
    """The devices to ask from, with weights; one stands for all outside the plan that are on default links."""
    inside = set(plan.devices())
    found: dict[DeviceId, float] = {}
    outsider: DeviceId | None = None
    for device in sorted(weights):
        if weights[device] <= 0:
            continue
        if device in inside or links.singular(device):
            found[device] = weights[device]
        else:
            outsider = outsider or device
            found[outsider] = found.get(outsider, 0.0) + weights[device]
    return found


def _recipe(plan: Plan, stage: Stage, group: Group, part: int) -> Recipe:
    """The recipe of one shard of a plan."""
    return Recipe(plan.digest, stage.first, stage.last, group.split, part, group.shares)
