"""What the leader asks the solver: a snapshot of the mesh for one model, searched off the event loop. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshnn.cluster.member import DeviceId, Member
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan.devices import DeviceInfo, Links, speed_of
from meshnn.plan.plan import Epoch, PlanSet
from meshnn.plan.planner import solve_set
from meshnn.plan.predict import predict
from meshnn.plan.solver import worth_switching


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, the devices it may use, what other models take of their memory, who asks."""

    model: str
    card: Card
    members: tuple[Member, ...]
    epoch: Epoch
    used: Mapping[DeviceId, int]
    origins: int
    current: PlanSet | None = None

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The members as the planner sees them."""
        return tuple(
            DeviceInfo(
                member.device_id,
                member.boot_id,
                member.capability.memory_bytes,
                speed_of(member.capability.speed),
                member.capability.cores,
                member.capability.numeric_class,
                member.name,
            )
            for member in self.members
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
            prefer=problem.current.main if problem.current is not None else None,
        )
    except NoPlanError as error:
        return str(error)


def better(new: PlanSet, old: PlanSet, problem: Problem) -> bool:
    """Whether a working plan is worth replacing: it covers more deaths, or is faster by the margin of the planner."""
    here = {member.device_id: member.boot_id for member in problem.members}
    covered = {
        plan.epoch.absent for plan in old.contingencies if all(here.get(d) == b for d, b in plan.lives().items())
    }
    if {plan.epoch.absent for plan in new.contingencies} - covered:
        return True
    devices, links = problem.devices(), Links()
    predicted = [predict(plans.main, problem.card, devices, links) for plans in (old, new)]
    return worth_switching(*predicted)
