"""What the devices of the active plans tell of their stages, beside what was predicted: the ground of paces. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshnn.cluster.member import DeviceId, Member
from meshnn.graph.card import Card
from meshnn.node.paces import Reading
from meshnn.node.plans import PlanBook
from meshnn.plan import boxes
from meshnn.plan.devices import speed_of
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Plan

# Plans whose heaviest shards are remembered.
PLANS_MAX = 64


class Readings:
    """Of each device its heaviest shard, in work units; counted once for every plan."""

    def __init__(self, book: PlanBook, card: Callable[[str], Card | None]) -> None:
        """The plans of `book`; `card` finds a model's card by its digest."""
        self._book = book
        self._card = card
        self._heaviest: dict[Epoch, dict[DeviceId, float]] = {}

    def of(self, members: Mapping[DeviceId, Member]) -> dict[DeviceId, Reading]:
        """The readings of the devices that have run something of late."""
        units: dict[DeviceId, float] = {}
        for model in self._book.models:
            plans = self._book.active(model)
            for device, work in (self._work(plans.main) if plans is not None else {}).items():
                units[device] = max(units.get(device, 0.0), work)
        found = {}
        for device, work in sorted(units.items()):
            member = members.get(device)
            if member is not None and member.load.stage_ms > 0:
                predicted_ms = work / speed_of(member.capability.speed)
                found[device] = Reading(member.boot_id, member.load.stage_ms, predicted_ms)
        return found

    def _work(self, plan: Plan) -> dict[DeviceId, float]:
        known = self._heaviest.get(plan.epoch)
        card = self._card(plan.digest)
        if known is not None or card is None:
            return known or {}
        if len(self._heaviest) >= PLANS_MAX:
            self._heaviest.clear()
        most = self._heaviest[plan.epoch] = {}
        model = outline(card)
        for lane in plan.lanes:
            for stage in lane.stages:
                for group in stage.groups:
                    for part, shard in enumerate(group.shards):
                        work = boxes.work(model, stage, group, part)
                        most[shard.device] = max(most.get(shard.device, 0.0), work)
        return most
