"""What a leader works on and what it knows of the plans that serve: the rows behind node.leader. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from meshnn.cluster.member import BootId, DeviceId, Member, MemberState
from meshnn.graph.card import Card
from meshnn.node.effects import Send
from meshnn.node.outlook import outlooks
from meshnn.node.view import Pair, View
from meshnn.plan.messages import Activate, Lack, Outlook, Ready
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.ranges import memory_of, plan_memory

# So long a plan made by choice, whose files are there, may try to be loaded beside what serves, in seconds.
GENTLE_S = 5.0
# So long where requests suffer meanwhile: a device cannot be reached by another.
HASTE_S = 1.0
# A device as a plan was made for it: its life, its memory budget, its speed, whether it was to be used last.
Mark = tuple[DeviceId, BootId, int, float, bool]


class Why(enum.Enum):
    """Why a plan is made: for want of one that works, or as an heir of one; else what works gives way by choice.

    A plan for `COVER` may only cover more deaths, not move what serves.
    """

    NEED = "need"
    HEIR = "heir"
    PIN = "pin"
    AILING = "ailing"
    SEVERED = "severed"
    GAIN = "gain"
    COVER = "cover"


class Phase(enum.Enum):
    """What a job waits for."""

    SOLVING = "solving"
    CUTTING = "cutting"
    PREPARING = "preparing"


@dataclass(slots=True)
class Job:
    """A plan in the making.

    A heir is a contingency of the plan before; with `held` its devices need no files. `signature` is what it was
    searched for, `beside` what the plans of other models took of each device then, in bytes. While it is `gentle`,
    nothing that serves or covers makes room for it.
    """

    phase: Phase
    epoch: Epoch
    digest: str
    members: tuple[Member, ...]
    why: Why
    deadline: float
    view: View = field(default_factory=View)
    beside: Mapping[DeviceId, int] = field(default_factory=dict)
    held: bool = False
    gentle: bool = False
    settled: bool = False
    signature: tuple[object, ...] = ()
    holder: DeviceId | None = None
    plans: PlanSet | None = None
    loaded: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)
    stored: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)
    lacks: dict[DeviceId, tuple[Lack, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What the planner replaces by choice goes on until there is better."""
        self.gentle = self.by_choice

    @property
    def voluntary(self) -> bool:
        """Whether it replaces a plan that works."""
        return self.why not in {Why.NEED, Why.HEIR}

    @property
    def by_choice(self) -> bool:
        """Whether it does so by the planner's choice; what people ask for they get at once."""
        return self.voluntary and self.why is not Why.PIN

    @property
    def how(self) -> str:
        """Why it is made, and whether gently, in words."""
        return self.why.value + (", gently" if self.gentle else "")

    @property
    def marks(self) -> frozenset[Mark]:
        """The devices it was solved for."""
        return frozenset(mark_of(member, self.view.held) for member in self.members)

    def lives(self) -> dict[DeviceId, BootId]:
        """The devices that must stay alive for it: those of its plan, before that all it may use."""
        if self.plans is not None:
            return self.plans.main.lives()
        return {member.device_id: member.boot_id for member in self.members}

    def doubtful(self, alive: Mapping[DeviceId, Member]) -> bool:
        """Whether what works would give way to a plan that counts on somebody who may be dead."""
        return self.by_choice and any(alive[device].state is MemberState.SUSPECT for device in self.lives())

    def hear(self, source: DeviceId, message: Ready) -> None:
        """What a device has of the plan set now."""
        self.loaded[source] = frozenset(message.loaded)
        self.stored[source] = frozenset((*message.loaded, *message.on_disk))
        self.lacks[source] = message.lacks

    def activated(self) -> ActivePlan:
        """The row of its plan, that serves from now on; an heir is to be looked at at once."""
        assert self.plans is not None
        marks = frozenset() if self.why is Why.HEIR else self.marks
        row = ActivePlan(self.plans, self.loaded, marks, self.view.firm, kept=self.why is Why.COVER)
        row.stored, row.lacks, row.beside = self.stored, self.lacks, self.beside
        return row

    def settle(self, now: float) -> None:
        """Where the files of a gentle plan are all there, what does not fit now will not fit later: wait a little."""
        plans, wait_s = () if self.plans is None else self.plans.plans, GENTLE_S
        if self.why in {Why.AILING, Why.SEVERED}:
            # The files of what covers it are not waited for. Requests go around a slow device, not around a pair.
            plans, wait_s = plans[:1], HASTE_S if self.why is Why.SEVERED else GENTLE_S
        if not self.settled and all(everywhere(plan, self.stored) for plan in plans):
            self.settled, self.deadline = True, min(self.deadline, now + wait_s)

    def complete(self, served: ActivePlan | None, runs: Callable[[Plan], bool]) -> bool:
        """Whether every device has loaded its shards; a gentle plan must also cover all deaths that do no harm now."""
        if self.plans is None or not everywhere(self.plans.main, self.loaded):
            return False
        if served is None or not self.gentle:
            return True
        covered = {plan.epoch.absent for plan in self.plans.contingencies if everywhere(plan, self.loaded)}
        return covered.issuperset(set(self.plans.main.devices()) - served.harmful(runs))


@dataclass(slots=True)
class ActivePlan:
    """An active plan as its leader knows it: who has loaded what, who was told what, for which devices it was made.

    `broken` is set where one of its devices says that it cannot serve it; `kept` where the devices it was made for
    might serve better another way, for which it was too soon.
    """

    plans: PlanSet
    loaded: dict[DeviceId, frozenset[Epoch]]
    considered: frozenset[Mark] = frozenset()
    severed: frozenset[Pair] = frozenset()
    told: dict[DeviceId, tuple[BootId, tuple[Epoch, ...], tuple[Outlook, ...]]] = field(default_factory=dict)
    broken: bool = False
    kept: bool = False
    beside: Mapping[DeviceId, int] = field(default_factory=dict)
    stored: dict[DeviceId, frozenset[Epoch]] = field(default_factory=dict)
    lacks: dict[DeviceId, tuple[Lack, ...]] = field(default_factory=dict)

    def hear(self, source: DeviceId, message: Ready) -> None:
        """What a device has of the plan set now."""
        self.loaded[source] = frozenset(message.loaded)
        self.stored[source] = frozenset((*message.loaded, *message.on_disk))
        self.lacks[source] = message.lacks

    @property
    def uncovered(self) -> frozenset[DeviceId]:
        """The devices whose death no loaded contingency covers."""
        return self.harmful(lambda plan: True)

    def whole(self, runs: Callable[[Plan], bool]) -> bool:
        """Whether it serves as it was made."""
        return not self.broken and runs(self.plans.main)

    def harmful(self, runs: Callable[[Plan], bool]) -> frozenset[DeviceId]:
        """The devices whose death no loaded contingency covers that runs now."""
        ready = self.ready()
        covered = {plan.epoch.absent for plan in self.plans.contingencies if plan.epoch in ready and runs(plan)}
        return frozenset(device for device in self.plans.main.devices() if device not in covered)

    def ready(self) -> tuple[Epoch, ...]:
        """The epochs of which every shard is loaded."""
        return tuple(plan.epoch for plan in self.plans.plans if everywhere(plan, self.loaded))

    def outlooks(self, leader: DeviceId) -> tuple[Outlook, ...]:
        """What the death of each of its devices would mean."""
        return outlooks(self.plans, frozenset(self.ready()), self.loaded, self.lacks, leader)

    def tell(self, lives: Mapping[DeviceId, BootId], leader: DeviceId) -> list[Send[Activate]]:
        """The plan for every living device that has not heard of it in this form."""
        ready, what = self.ready(), self.outlooks(leader)
        self.told = {device: said for device, said in self.told.items() if device in lives}
        news = [device for device, boot in sorted(lives.items()) if self.told.get(device) != (boot, ready, what)]
        self.told |= {device: (lives[device], ready, what) for device in news}
        return [Send(device, Activate(self.plans, ready, what)) for device in news]

    def usable(self, runs: Callable[[Plan], bool]) -> Plan | None:
        """The plan itself, else a loaded contingency, that runs now."""
        ready = self.ready()
        plans = [plan for plan in self.plans.contingencies if plan.epoch in ready]
        plans = plans if self.broken else [self.plans.main, *plans]
        return next((plan for plan in plans if runs(plan)), None)

    def heir(self, runs: Callable[[Plan], bool]) -> tuple[Plan, bool] | None:
        """The contingency to load after a loss, and whether every device has its files; None where one is loaded."""
        if self.usable(runs) is not None:
            return None
        plans = [plan for plan in self.plans.contingencies if runs(plan)]
        plans.sort(key=lambda plan: not everywhere(plan, self.stored))
        return (plans[0], everywhere(plans[0], self.stored)) if plans else None


def adopted(plans: PlanSet, ready: frozenset[Epoch]) -> ActivePlan:
    """The row of a plan that an earlier leader activated, by what that leader said last of the loaded epochs."""
    devices = {device for plan in plans.plans for device in plan.devices()}
    loaded = {
        device: frozenset(plan.epoch for plan in plans.plans if plan.epoch in ready and device in plan.devices())
        for device in devices
    }
    return ActivePlan(plans, loaded)


def mark_of(member: Member, held: Collection[DeviceId]) -> Mark:
    """What of a member a plan depends on."""
    capability = member.capability
    last = member.device_id in held
    return (member.device_id, member.boot_id, capability.memory_bytes, capability.speed, last)


def everywhere(plan: Plan, there: Mapping[DeviceId, frozenset[Epoch]]) -> bool:
    """Whether every device of a plan has its shards, by what each was heard to have."""
    return all(plan.epoch in there.get(device, ()) for device in plan.devices())


def memory_taken(
    models: Iterable[tuple[PlanSet | None, PlanSet | None]], card: Callable[[str], Card | None], *, spares: bool = False
) -> dict[DeviceId, int]:
    """Bytes that some models take on each device: of each the more of its active plan and of the one in the making.

    With `spares`, what their contingencies take beside.
    """
    taken: dict[DeviceId, int] = {}
    for sets in models:
        most: dict[DeviceId, int] = {}
        for plans in sets:
            found = None if plans is None else card(plans.main.digest)
            if plans is not None and found is not None:
                main = plan_memory(found, plans.main)
                sizes = memory_of(found, plans.plans) if spares else main
                for device, size in sizes.items():
                    most[device] = max(most.get(device, 0), size - (main.get(device, 0) if spares else 0))
        for device, size in most.items():
            taken[device] = taken.get(device, 0) + size
    return taken
