"""What a leader works on and what it knows of the plans that serve: the rows behind node.leader. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from meshnn.cluster.member import BootId, DeviceId, Member
from meshnn.graph.card import Card
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.ranges import plan_memory

# A device as a plan was made for it: its life, its memory budget, its speed.
Mark = tuple[DeviceId, BootId, int, float]


class Phase(enum.Enum):
    """What a job waits for."""

    SOLVING = "solving"
    CUTTING = "cutting"
    PREPARING = "preparing"


@dataclass(slots=True)
class Job:
    """A plan in the making; a voluntary one replaces a plan that works."""

    phase: Phase
    epoch: Epoch
    digest: str
    members: tuple[Member, ...]
    voluntary: bool
    deadline: float
    holder: DeviceId | None = None
    plans: PlanSet | None = None
    loaded: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)

    @property
    def marks(self) -> frozenset[Mark]:
        """The devices it was solved for."""
        return frozenset(mark_of(member) for member in self.members)

    def lives(self) -> dict[DeviceId, BootId]:
        """The devices that must stay alive for it: those of its plan, before that all it may use."""
        if self.plans is not None:
            return self.plans.main.lives()
        return {member.device_id: member.boot_id for member in self.members}

    def complete(self) -> bool:
        """Whether every device of the plan has loaded its shards."""
        return self.plans is not None and loaded_everywhere(self.plans.main, self.loaded)


@dataclass(slots=True)
class ActivePlan:
    """An active plan as its leader knows it: who has loaded what, who was told what, for which devices it was made.

    `broken` is set where one of its devices says that it cannot serve it.
    """

    plans: PlanSet
    loaded: dict[DeviceId, frozenset[Epoch]]
    considered: frozenset[Mark] = frozenset()
    told: dict[DeviceId, tuple[BootId, tuple[Epoch, ...]]] = field(default_factory=dict)
    broken: bool = False

    def ready(self) -> tuple[Epoch, ...]:
        """The epochs of which every shard is loaded."""
        return tuple(plan.epoch for plan in self.plans.plans if loaded_everywhere(plan, self.loaded))

    def usable(self, lives: Mapping[DeviceId, BootId]) -> Plan | None:
        """The plan itself, else a loaded contingency, that these devices can run as they live now."""
        ready = self.ready()
        plans = [plan for plan in self.plans.contingencies if plan.epoch in ready]
        plans = plans if self.broken else [self.plans.main, *plans]
        return next((plan for plan in plans if runs_on(plan, lives)), None)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no plan, and what must change before it is worth another try at once."""

    signature: tuple[object, ...]
    until: float
    tries: int


def adopted(plans: PlanSet, ready: frozenset[Epoch]) -> ActivePlan:
    """The row of a plan that an earlier leader activated, by what that leader said last of the loaded epochs."""
    devices = {device for plan in plans.plans for device in plan.devices()}
    loaded = {
        device: frozenset(plan.epoch for plan in plans.plans if plan.epoch in ready and device in plan.devices())
        for device in devices
    }
    return ActivePlan(plans, loaded)


def mark_of(member: Member) -> Mark:
    """What of a member a plan depends on."""
    return (member.device_id, member.boot_id, member.capability.memory_bytes, member.capability.speed)


def runs_on(plan: Plan, lives: Mapping[DeviceId, BootId]) -> bool:
    """Whether every device of a plan lives in the life it was made for."""
    return all(lives.get(device) == boot for device, boot in plan.lives().items())


def loaded_everywhere(plan: Plan, loaded: Mapping[DeviceId, frozenset[Epoch]]) -> bool:
    """Whether every device of a plan has loaded its shards of it."""
    return all(plan.epoch in loaded.get(device, ()) for device in plan.devices())


def memory_taken(
    models: Iterable[tuple[PlanSet | None, PlanSet | None]], card: Callable[[str], Card | None]
) -> dict[DeviceId, int]:
    """Bytes that some models take on each device: of each the more of its active plan and of the one in the making."""
    taken: dict[DeviceId, int] = {}
    for sets in models:
        most: dict[DeviceId, int] = {}
        for plans in sets:
            found = None if plans is None else card(plans.main.digest)
            if plans is not None and found is not None:
                for device, size in plan_memory(found, plans.main).items():
                    most[device] = max(most.get(device, 0), size)
        for device, size in most.items():
            taken[device] = taken.get(device, 0) + size
    return taken
