"""When a plan that works is looked at again: for newcomers once they are steady, for slow devices at once. Pure.

Moving what serves costs everybody a moment, so it is done for gain at most once a minute and for devices that stay.
That the deaths of a plan are covered is no such choice: contingencies are renewed beside the plan as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from meshnn.cluster.member import BootId, DeviceId, Member
from meshnn.node.jobs import ActivePlan, Why, mark_of
from meshnn.node.view import View

# A device must have been here so long before a working plan is looked at for it, in seconds.
STABLE_S = 5.0
# At most one voluntary change of what serves in so many seconds.
VOLUNTARY_S = 60.0
# A device of the plan that has become so many times slower is a loss, not a choice.
AILING = 2.0


def look_again(
    served: ActivePlan,
    usable: tuple[Member, ...],
    beside: Mapping[DeviceId, int],
    view: View,
    since: Mapping[tuple[DeviceId, BootId], float],
    changed_at: float | None,
    now: float,
) -> tuple[float, Why]:
    """When to search again for a plan that works (infinite: not for what is known now), and why.

    `beside` is what the plans of other models take of each device now, in bytes; `since` says how long each life has
    been here, `changed_at` when the plan was last moved by choice.
    """
    devices = {member.device_id for member in usable}
    if not devices.issuperset(served.plans.main.devices()):
        # A device of the plan refused another one: leave well alone until it may be asked again.
        return inf, Why.GAIN
    if _ails(served, usable):
        return now, Why.AILING
    if view.firm - served.severed:
        return now, Why.SEVERED
    free_at = -inf if changed_at is None else changed_at + VOLUNTARY_S
    fresh = {mark_of(member, view.held) for member in usable} - served.considered
    due = [(since[device, boot] + STABLE_S, last) for device, boot, _, _, last in fresh]
    steady = [at for at, last in due if not last]
    gone = {mark[0] for mark in served.considered} - devices or served.severed - view.severed
    renewal = max(steady) if steady else now if gone else inf
    # Nothing is moved for one who is to be used last, but it may be all there is to cover a death.
    late = [at for at, last in due if last and served.uncovered]
    cover = max(late, default=inf)
    if served.uncovered and served.beside != beside:
        # Another model took the room of contingencies, or left some: elsewhere there may be enough.
        cover = now
    choice = (now if served.kept else renewal) if free_at <= now else (free_at if served.kept else inf)
    covering = cover if free_at <= now else min(renewal, cover)
    return (covering, Why.COVER) if covering < choice else (choice, Why.GAIN)


def _ails(served: ActivePlan, usable: tuple[Member, ...]) -> bool:
    """Whether a device of the plan is much slower than the plan was made for."""
    planned = set(served.plans.main.devices())
    speeds = {device: speed for device, _, _, speed, _ in served.considered if device in planned}
    return any(
        member.device_id in speeds and member.capability.speed * AILING < speeds[member.device_id] for member in usable
    )
