"""What the leader asks the solver: a snapshot of the mesh for one model, searched off the event loop. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshnn.cluster.member import DeviceId, Member
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan.contingency import loadable
from meshnn.plan.devices import DeviceInfo, Links, speed_of
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.planner import solve_set
from meshnn.plan.solver import Problem as Asked


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, the devices it may use, what other models take of their memory, how many ask, what is loaded now."""

    model: str
    card: Card
    members: tuple[Member, ...]
    epoch: Epoch
    used: Mapping[DeviceId, int]
    origins: int
    current: Plan | None = None

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
            Links(),
            problem.epoch,
            memory_used_elsewhere=problem.used,
            origins=problem.origins,
            prefer=problem.current,
        )
    except NoPlanError as error:
        return str(error)


def better(new: PlanSet, old: PlanSet, problem: Problem) -> bool:
    """Whether a working plan is worth replacing: the search left it, or more deaths would be covered, or by memory."""
    if (new.main.lanes, new.main.window) != (old.main.lanes, old.main.window):
        return True
    here = {member.device_id: member.boot_id for member in problem.members}
    covered = {
        plan.epoch.absent for plan in old.contingencies if all(here.get(d) == b for d, b in plan.lives().items())
    }
    if not covered.issuperset(plan.epoch.absent for plan in new.contingencies):
        return True
    asked = Asked(problem.model, outline(problem.card), problem.devices(), used=problem.used)
    return not loadable(asked, old).issuperset(loadable(asked, new))
