"""What the leader asks the solver: a snapshot of the mesh for one model, searched off the event loop. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshnn.cluster.member import DeviceId, Member
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan import solver as planning
from meshnn.plan.contingency import protected
from meshnn.plan.devices import DeviceInfo, Links, speed_of
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.planner import solve_set


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, the devices it may use, what other models take of their memory, how many ask, what is loaded now.

    With `keep` the current plan stays, if it can run, and only its contingencies are sought. `spared` is what the
    contingencies of other models take beside `used`; devices in `avoid` are used last.
    """

    model: str
    card: Card
    members: tuple[Member, ...]
    epoch: Epoch
    used: Mapping[DeviceId, int]
    origins: int
    current: Plan | None = None
    keep: bool = False
    links: Links = field(default_factory=Links)
    avoid: frozenset[DeviceId] = frozenset()
    risk: Mapping[DeviceId, float] = field(default_factory=dict)
    spared: Mapping[DeviceId, int] = field(default_factory=dict)

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The members as the planner sees them."""
        return tuple(info_of(member) for member in self.members)


def info_of(member: Member) -> DeviceInfo:
    """A member as the planner sees it; one that has not measured itself counts as the reference machine."""
    capability = member.capability
    return DeviceInfo(
        member.device_id,
        member.boot_id,
        capability.memory_bytes,
        speed_of(capability.speed),
        capability.cores,
        capability.numeric_class,
        member.name,
    )


def solve(problem: Problem) -> PlanSet | str:
    """The best plans, or one line that says why there are none."""
    try:
        return solve_set(
            problem.model,
            problem.card,
            problem.devices(),
            problem.links,
            problem.epoch,
            memory_used_elsewhere=problem.used,
            memory_spared_elsewhere=problem.spared,
            origins=problem.origins,
            avoid=problem.avoid,
            risk=problem.risk,
            prefer=problem.current,
            keep=problem.keep,
        )
    except NoPlanError as error:
        return str(error)


def better(new: PlanSet, old: PlanSet, problem: Problem) -> bool:
    """Whether a working plan is worth replacing: the search left it, or the new one covers dearer deaths, or more."""
    if (new.main.lanes, new.main.window) != (old.main.lanes, old.main.window):
        return True
    here = {member.device_id: member.boot_id for member in problem.members}
    alive = tuple(p for p in old.contingencies if all(here.get(d) == b for d, b in p.lives().items()))
    task = planning.Problem(
        problem.model,
        outline(problem.card),
        problem.devices(),
        problem.links,
        problem.origins,
        problem.used,
        avoid=problem.avoid,
        risk=problem.risk,
    )
    was, will = (protected(task, plans) for plans in (PlanSet(old.main, alive), new))
    if was != will:
        return will > was
    return not {plan.epoch.absent for plan in alive}.issuperset(plan.epoch.absent for plan in new.contingencies)
