"""Which way an attempt takes: plan, lane and groups, without the devices that are doubted. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from meshnn.cluster.member import DeviceId
from meshnn.node.doubts import Doubts, LedgerLimits
from meshnn.node.lags import Lags
from meshnn.node.request import Request
from meshnn.node.served import Served
from meshnn.plan.plan import Epoch, Plan
from meshnn.plan.routes import deal

Way = tuple[Plan, int, tuple[int, ...], tuple[DeviceId, ...]]


class Chooser:
    """Looks through the served plans; lanes and groups take turns by weight."""

    def __init__(self, served: Served, doubts: Doubts, lags: Lags, limits: LedgerLimits) -> None:
        """Every plan's turns begin anew."""
        self._served = served
        self._doubts = doubts
        self._lags = lags
        self._limits = limits
        self._tickets: dict[tuple[str, Epoch], int] = {}

    def took(self, plan: Plan) -> None:
        """An attempt took the way of this plan that was chosen last."""
        self._tickets[plan.model, plan.epoch] += 1

    def prune(self) -> None:
        """Forget plans that are no longer served."""
        self._tickets = {key: turn for key, turn in self._tickets.items() if self._served.plan(*key) is not None}

    def ways(self, entry: Request, now: float, *, patient: bool) -> list[Way]:
        """The ways a request may take, the best first: around whoever is slow, else without doubted devices.

        While it is `patient` it waits for room on the former, and goes around what was only reported. One that was
        refused takes the ordinary ways: the way around may be what refuses it.
        """
        main = self._served.choose(entry.model, frozenset(), on_disk=False)
        slow = self._lags.suspected(main, now) if main is not None else set()
        around = self.around(entry, slow, now) if slow and not entry.failures else None
        if patient:
            way = around if around is not None else self._patient(entry, now)
            return [] if way is None else [way]
        found = (around, self._search(entry, now, lambda plan: set()))
        return [way for way in found if way is not None]

    def _patient(self, entry: Request, now: float) -> Way | None:
        """A way without doubted devices, and without reported ones.

        Where none goes without the devices that stages reported, one without those stages may. While one of the former
        is being loaded that comes later, at first only by what need not be loaded too: it may want the same room, and
        go through a device that is dead.
        """
        way = self._search(entry, now, self._doubted(entry, 0, now))
        if way is not None:
            return way
        waits, first = any(until > now for until in entry.refused.values()), self._limits.asked_first
        if waits and entry.failures < first:
            return None
        on_disk = not waits or entry.failures >= 2 * first
        return self._search(entry, now, self._doubted(entry, 1, now), on_disk=on_disk)

    def others(self, entry: Request, now: float) -> bool:
        """Whether there is a way without the devices that stages reported, or without those stages."""
        return any(self._search(entry, now, self._doubted(entry, end, now)) for end in (0, 1))

    def around(self, entry: Request, slow: set[DeviceId], now: float) -> Way | None:
        """A way in memory around these devices; None where there is none.

        A contingency is one for a device that is dead, or for one of these where that keeps no room from any other:
        whoever is asked for it takes its death for true, and keeps it loaded.
        """
        doubted = self._doubted(entry, 0, now)
        way = self._search(entry, now, lambda plan: doubted(plan) | slow, on_disk=False)
        absent = way[0].epoch.absent if way is not None else ""
        if not absent or self._doubts.accuses(DeviceId(absent), now):
            return way
        return way if absent in slow and not self._served.crowded(entry.model) else None

    def _doubted(self, entry: Request, end: int, now: float) -> Callable[[Plan], set[DeviceId]]:
        """What `_reported` says of any plan, for one end."""
        return lambda plan: self._reported(entry, plan, end, now)

    def _reported(self, entry: Request, plan: Plan, end: int, now: float) -> set[DeviceId]:
        """The plan's devices at one end (0: the blamed one, 1: who blames it) of paths that carry nothing."""
        pairs = self._doubts.soft(plan, now)
        pairs += [(device, other) for device, (until, other) in entry.avoid.items() if until > now]
        devices = plan.devices()
        return {pair[end] for pair in pairs if pair[0] in devices and pair[end] in devices}

    def _search(
        self, entry: Request, now: float, doubted: Callable[[Plan], set[DeviceId]], *, on_disk: bool = True
    ) -> Way | None:
        """The first plan in order of preference with a way free of hard and of these doubts."""
        avoid: set[DeviceId] = set()
        while True:
            plan = self._served.choose(entry.model, frozenset(avoid), on_disk=on_disk)
            if plan is None or entry.refused.get(plan.epoch, 0.0) > now:
                return None
            bad = self._doubts.hard(plan, now) | doubted(plan)
            way = self._deal(plan, bad)
            if way is not None:
                return way
            if bad <= avoid:
                return None
            avoid |= bad

    def _deal(self, plan: Plan, bad: set[DeviceId]) -> Way | None:
        """The next lane and groups by weight that are free of `bad`; None where there are none."""
        ticket = self._tickets.get((plan.model, plan.epoch), 0)
        for step in range(_period(plan)):
            lane, groups = deal(plan, ticket + step)
            stages = plan.lanes[lane].stages
            chosen = [stage.groups[group] for stage, group in zip(stages, groups, strict=True)]
            devices = tuple(sorted({shard.device for group in chosen for shard in group.shards}))
            if not bad.intersection(devices):
                self._tickets[plan.model, plan.epoch] = ticket + step
                return plan, lane, groups, devices
        return None


def _period(plan: Plan) -> int:
    """How many tickets `deal` takes until every way of a plan has had its turn (bounded, for plans of many ways)."""
    rounds = [math.prod(sum(group.weight for group in stage.groups) for stage in lane.stages) for lane in plan.lanes]
    return min(4096, sum(lane.weight for lane in plan.lanes) * max(rounds))
