"""What the leader plans with: the devices as the planner shall see them, and what is known against some. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from meshnn.cluster.member import BootId, DeviceId, Member, MemberState
from meshnn.graph.card import Card
from meshnn.plan.devices import Link, Links
from meshnn.plan.outline import outline
from meshnn.plan.plan import Plan
from meshnn.plan.routes import ORIGIN, derive, ways

Pair = tuple[DeviceId, DeviceId]
# Likelier to go than a device on mains and on a cable: on a battery, on the air, and for every departure of late.
BATTERY_RISK, WIRELESS_RISK, DEPARTURE_RISK = 1.0, 0.5, 1.0


@dataclass(frozen=True, slots=True)
class View:
    """The members that plans may use, those to be used last, pairs that cannot reach each other, recent departures."""

    alive: Mapping[DeviceId, Member] = field(default_factory=dict)
    held: frozenset[DeviceId] = frozenset()
    severed: frozenset[Pair] = frozenset()
    departures: Mapping[DeviceId, int] = field(default_factory=dict)

    @property
    def lives(self) -> dict[DeviceId, BootId]:
        """The boot id of every device."""
        return {device: member.boot_id for device, member in self.alive.items()}

    def links(self) -> Links:
        """The links as the planner sees them: alike, but for the pairs that cannot reach each other."""
        return Links(pairs={pair: Link(0.0, 0.0) for pair in sorted(self.severed)})

    def risk(self) -> dict[DeviceId, float]:
        """How likely each device is to go, beside the others."""
        return {
            device: 1.0
            + DEPARTURE_RISK * self.departures.get(device, 0)
            + (0.0 if member.capability.on_mains else BATTERY_RISK)
            + (0.0 if member.capability.wired else WIRELESS_RISK)
            for device, member in sorted(self.alive.items())
        }

    @property
    def firm(self) -> frozenset[Pair]:
        """The severed pairs of which nobody is suspected."""
        return firm(self.severed, self.alive)

    def runs(self, plan: Plan, card: Card | None) -> bool:
        """Whether every device of a plan lives the life it was made for, and none is cut off from who it hands on to.

        Without the model's card the latter is not known, and assumed.
        """
        lives = self.lives
        if any(lives.get(device) != boot for device, boot in plan.lives().items()):
            return False
        return not self.severed or card is None or self.severed.isdisjoint(crossings(card, plan))


def firm(pairs: Iterable[Pair], members: Mapping[DeviceId, Member]) -> frozenset[Pair]:
    """The pairs of which nobody is suspected.

    Whoever cannot be reached may be dead, and is about to be left out for good: nothing is moved for that first.
    """
    return frozenset(pair for pair in pairs if all(members[device].state is MemberState.ALIVE for device in pair))


def crossings(card: Card, plan: Plan) -> frozenset[Pair]:
    """The pairs of devices (the lesser id first) between which a plan moves tensors."""
    found: set[Pair] = set()
    model = outline(card)
    for number, groups, _ in ways(plan):
        stages = plan.lanes[number].stages
        routes = derive(model, plan.lanes[number], groups)
        holders = [stage.groups[group].shards for stage, group in zip(stages, groups, strict=True)]
        for (stage, part), needs in routes.needs.items():
            for source in (source for need in needs for source in need.sources):
                if stage < len(stages) and source.stage != ORIGIN:
                    one, other = holders[source.stage][source.part].device, holders[stage][part].device
                    found.add((min(one, other), max(one, other)))
    return frozenset(pair for pair in found if pair[0] != pair[1])


def slowed(member: Member, factor: float) -> Member:
    """A member that is so many times slower than it says."""
    if factor <= 1.0:
        return member
    speed = max(member.capability.speed, 1e-9) / factor if member.capability.speed > 0 else 1.0 / factor
    return msgspec.structs.replace(member, capability=msgspec.structs.replace(member.capability, speed=speed))
