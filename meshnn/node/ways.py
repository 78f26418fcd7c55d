"""What every node derives alike of an attempt's way: routes, shipments, what each shard must have. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import UsageError
from meshnn.graph.card import Card
from meshnn.node.inputs import Target
from meshnn.node.slices import Passage
from meshnn.plan.boxes import Box
from meshnn.plan.outline import Outline, outline
from meshnn.plan.plan import Epoch, Group, Plan, Recipe, Stage
from meshnn.plan.routes import ORIGIN, Need, Routes, derive
from meshnn.plan.shipments import At, Shipment, Traffic

ROUTES_LIMIT = 128
# Answers are no part of the plan's memory: superseded attempts may bring theirs beside the live ones.
ANSWERS = 2


class Ways:
    """One choice of lane and groups: its routes and shipments, and what each (stage, part) must have."""

    def __init__(self, model: Outline, plan: Plan, lane: int, groups: tuple[int, ...]) -> None:
        """UsageError or NoPlanError where the choice does not fit the plan."""
        self.model = model
        self.stages: tuple[Stage, ...] = plan.lanes[lane].stages
        self.routes: Routes = derive(model, plan.lanes[lane], groups)
        self.groups: tuple[Group, ...] = tuple(
            stage.groups[group] for stage, group in zip(self.stages, groups, strict=True)
        )
        self.traffic = Traffic(self.routes)
        self._window = plan.window
        self._digest = plan.digest
        self._targets: dict[tuple[At, DeviceId], Target] = {}

    @property
    def end(self) -> At:
        """The origin as the destination of the outputs."""
        return (self.routes.stages, 0)

    def recipe(self, stage: int, part: int) -> Recipe:
        """What a shard of this way is cut from."""
        group, run = self.groups[stage], self.stages[stage]
        return Recipe(self._digest, run.first, run.last, group.split, part, group.shares)

    def shipment(self, source: At, address: At, origin: DeviceId) -> Shipment | None:
        """What `source` sends to this address for a request of `origin`; None where it sends it nothing."""
        if source not in self.routes.gives:
            return None
        sent = self.traffic.sent(source, origin)
        return next((shipment for shipment in sent if shipment.address == address), None)

    def target(self, at: At, origin: DeviceId) -> Target:
        """What a shard (or the origin's end) must have for a request of `origin`."""
        seat = self.traffic.seat(origin)
        if (at, seat) not in self._targets:
            owed = {(one.source, one.address): _taken(one, at) for one in self.traffic.received(at, origin)}
            recipe = None if at == self.end else self.recipe(*at)
            window = self._window * ANSWERS if recipe is None else self._window
            self._targets[at, seat] = target_of(self.model, self.routes.needs[at], owed, window, recipe)
        return self._targets[at, seat]


def target_of(
    model: Outline,
    needs: tuple[Need, ...],
    owed: Mapping[tuple[At, At], tuple[tuple[int, Box], ...]],
    window: int = 1,
    slot: Recipe | None = None,
) -> Target:
    """A target with the dtypes of the model's tensors."""
    return Target(needs, {need.tensor: model.tensor(need.tensor).dtype for need in needs}, owed, window, slot)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a slice belongs: the ways of its attempt, the shard's recipe and handle, and what it must have."""

    ways: Ways
    recipe: Recipe
    handle: int
    target: Target


class RouteBook:
    """The ways of lately used attempts, so that they are derived once per choice of lane and groups."""

    def __init__(self) -> None:
        """Empty."""
        self._known: OrderedDict[tuple[str, Epoch, int, tuple[int, ...]], Ways] = OrderedDict()

    def ways(self, plan: Plan, card: Card, lane: int, groups: tuple[int, ...]) -> Ways:
        """The ways of a choice. UsageError or NoPlanError where the choice does not fit the plan."""
        if not 0 <= lane < len(plan.lanes):
            raise UsageError(f"lane {lane} chosen where the plan has {len(plan.lanes)}")
        key = (plan.model, plan.epoch, lane, groups)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Ways(outline(card), plan, lane, groups)
            if len(self._known) > ROUTES_LIMIT:
                self._known.popitem(last=False)
        return found


def is_sender(ways: Ways, passage: Passage, source: At, device: DeviceId, boot: BootId) -> bool:
    """Whether this device in this life is the shard (or origin) that a slice says it comes from."""
    stage, part = source
    if stage == ORIGIN:
        return (device, boot) == (passage.origin, passage.origin_boot)
    if not (0 <= stage < len(ways.groups) and 0 <= part < len(ways.groups[stage].shards)):
        return False
    shard = ways.groups[stage].shards[part]
    return (shard.device, shard.boot) == (device, boot)


def _taken(shipment: Shipment, at: At) -> tuple[tuple[int, Box], ...]:
    """The boxes that one reader takes of a shipment."""
    return tuple(
        (shipment.boxes[place][0], box) for reader in shipment.readers if reader.at == at for place, box in reader.takes
    )
