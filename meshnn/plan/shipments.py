"""What travels: the routes of one attempt by device, so that bytes which several shards of a device read go there once.

A shard sends one parcel for every reader that still lacks something, addressed to that reader, with the boxes that no
earlier parcel to the same device brings; who else there reads of a box takes its part where it arrives. The first
reader waits for no byte that only a later one needs. Both ends derive the same shipments; frames carry the address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshnn.cluster.member import DeviceId
from meshnn.plan import boxes
from meshnn.plan.boxes import Box
from meshnn.plan.routes import ORIGIN, Give, Routes

At = tuple[int, int]
"""A shard by (stage, part); the origin as a source is (-1, 0), as a destination (number of stages, 0)."""

# Stands for an origin that holds no shard of the way: no device is called so.
ELSEWHERE = DeviceId("")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who takes something of a shipment: (place among its boxes, the box that is taken of it), in order."""

    at: At
    takes: tuple[tuple[int, Box], ...]


@dataclass(frozen=True, slots=True)
class Shipment:
    """What `source` sends to one device in one parcel: (tensor, box) each, and who there reads of it.

    It is addressed to the first of its readers. A shard that reads nothing gets an empty one from the origin.
    """

    source: At
    address: At
    boxes: tuple[tuple[int, Box], ...]
    readers: tuple[Reader, ...]


class Traffic:
    """The shipments of one way through a plan, by source, for any origin; worked out when they are asked for."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self._made: dict[tuple[At, DeviceId], tuple[Shipment, ...]] = {}
        self._due: dict[tuple[At, DeviceId], tuple[Shipment, ...]] = {}
        self._idle = tuple(key for key in routes.needs if not routes.sources_of(*key))
        self._beside = {source: self._neighbours(gives) for source, gives in routes.gives.items()}

    def seat(self, origin: DeviceId) -> DeviceId:
        """The origin as far as it matters to shipments: itself where its end shares a parcel with a shard beside it."""
        return origin if any(origin in devices for devices in self._beside.values()) else ELSEWHERE

    def device(self, at: At, origin: DeviceId) -> DeviceId:
        """Where a shard is, or the origin's end."""
        return self.routes.devices.get(at, origin)

    def sent(self, source: At, origin: DeviceId) -> tuple[Shipment, ...]:
        """All that a shard (or the origin) sends for a request of `origin`, in the order of the addresses."""
        key = (source, origin if origin in self._beside[source] else ELSEWHERE)
        if key not in self._made:
            self._made[key] = tuple(sorted(self._shipped(*key), key=lambda one: one.address))
        return self._made[key]

    def received(self, at: At, origin: DeviceId) -> tuple[Shipment, ...]:
        """All that a shard (or the origin's end) reads something of, its own and those addressed to a neighbour."""
        sources = ((ORIGIN, 0),) if at in self._idle else self.routes.sources_of(*at)
        beside = any(origin in self._beside[source] for source in sources)
        key = (at, origin if beside else ELSEWHERE)
        if key not in self._due:
            self._due[key] = tuple(
                shipment
                for source in sources
                for shipment in self.sent(source, key[1])
                if any(reader.at == at for reader in shipment.readers)
            )
        return self._due[key]

    def _neighbours(self, gives: Sequence[Give]) -> frozenset[DeviceId]:
        """The devices whose shards read of a source that the origin's end reads of, too."""
        at_end = any(give.stage == self.routes.stages for give in gives)
        return frozenset(
            self.routes.devices[give.stage, give.part] for give in gives if at_end and give.stage < self.routes.stages
        )

    def _shipped(self, source: At, seat: DeviceId) -> Iterator[Shipment]:
        wanted: dict[DeviceId, list[Give]] = {}
        for give in sorted(self.routes.gives[source], key=lambda give: (give.stage, give.part)):
            wanted.setdefault(self.device((give.stage, give.part), seat), []).append(give)
        for gives in wanted.values():
            yield from _parted(source, gives)
        if source[0] == ORIGIN:
            yield from (Shipment(source, at, (), (Reader(at, ()),)) for at in self._idle)


def _parted(source: At, gives: Sequence[Give]) -> Iterator[Shipment]:
    """The shipments to one device: every reader's boxes without what an earlier reader's bring."""
    only = (gives[0].stage, gives[0].part)
    if all((give.stage, give.part) == only for give in gives):
        takes = tuple((place, give.box) for place, give in enumerate(gives))
        yield Shipment(source, only, tuple((give.tensor, give.box) for give in gives), (Reader(only, takes),))
        return
    sent: dict[int, list[Box]] = {}
    fresh: dict[At, list[tuple[int, Box]]] = {}
    for give in gives:
        missing: tuple[Box, ...] = (give.box,)
        for hole in sent.setdefault(give.tensor, []):
            missing = tuple(rest for box in missing for rest in boxes.subtract(box, hole))
        sent[give.tensor] += missing
        fresh.setdefault((give.stage, give.part), []).extend((give.tensor, box) for box in missing)
    for address, travelling in fresh.items():
        if travelling:
            yield Shipment(source, address, tuple(travelling), tuple(_readers(travelling, gives)))


def _readers(travelling: Sequence[tuple[int, Box]], gives: Sequence[Give]) -> Iterator[Reader]:
    """Who reads of these boxes, and what."""
    takes: dict[At, list[tuple[int, Box]]] = {}
    for give in gives:
        for place, (tensor, box) in enumerate(travelling):
            taken = boxes.intersect(box, give.box) if tensor == give.tensor else None
            if taken is not None:
                takes.setdefault((give.stage, give.part), []).append((place, taken))
    for at, taken_boxes in takes.items():
        yield Reader(at, tuple(taken_boxes))
