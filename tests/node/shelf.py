"""A shelf of plans for tests: what `Served` promises, with everything on it set by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshnn.cluster.member import BootId, DeviceId
from meshnn.graph.card import Card
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Recipe, Shard, Stage


def device(letter: str) -> DeviceId:
    """A device id that is easy to read."""
    return DeviceId(letter * 26)


def boot(number: int) -> BootId:
    """A boot id that is easy to read."""
    return BootId(f"{number:016x}")


def life(of: DeviceId) -> BootId:
    """The boot id of the one life that a device has in most tests."""
    return boot(ord(of[0]))


A, B, C, D, E = (device(letter) for letter in "abcde")


def pipeline(
    devices: Sequence[DeviceId],
    cuts: Sequence[tuple[int, int]] = (),
    *,
    epoch: Epoch | None = None,
    model: str = "cat",
    digest: str = "d" * 64,
    share: int = 4,
    lives: Mapping[DeviceId, BootId] | None = None,
) -> Plan:
    """A plan of one lane with one device a stage; `cuts` are the operators (first, last) of each stage."""
    ranges = cuts or [(number, number) for number in range(len(devices))]
    boots = lives or {}
    stages = tuple(
        Stage(first, last, (Group((Shard(one, boots.get(one, life(one))),)),))
        for one, (first, last) in zip(devices, ranges, strict=True)
    )
    return Plan(epoch or Epoch(1, A, 1), model, digest, (Lane(stages),), window=4, share=share)


class Shelf:
    """The served plans of one node, by model; its loaded shards and its cards."""

    def __init__(self, *plans: PlanSet, predicted_s: float = 0.0) -> None:
        """These plan sets are active, and their contingencies loaded."""
        self.active: dict[str, PlanSet] = {plans_of.main.model: plans_of for plans_of in plans}
        self.others: list[Plan] = []
        self.cards: dict[str, Card] = {}
        self.handles: dict[Recipe, int] = {}
        self.predicted = predicted_s
        self.asked: list[tuple[str, Epoch]] = []
        self.unloaded: set[Epoch] = set()

    def plan(self, model: str, epoch: Epoch) -> Plan | None:
        """An active plan, a contingency, or one of the others (prepared, draining)."""
        active = self.active.get(model)
        known = [*(active.plans if active else ()), *self.others]
        return next((plan for plan in known if (plan.model, plan.epoch) == (model, epoch)), None)

    def card(self, digest: str) -> Card | None:
        """A card put here."""
        return self.cards.get(digest)

    def handle(self, recipe: Recipe) -> int | None:
        """A handle put here."""
        return self.handles.get(recipe)

    def on_asked(self, model: str, epoch: Epoch) -> None:
        """Remembered."""
        self.asked.append((model, epoch))

    def choose(self, model: str, avoid: frozenset[DeviceId], *, on_disk: bool = True) -> Plan | None:
        """The first of the active plan set that needs none of `avoid`."""
        active = self.active.get(model)
        usable = [plan for plan in (active.plans if active else ()) if on_disk or plan.epoch not in self.unloaded]
        return next((plan for plan in usable if avoid.isdisjoint(plan.devices())), None)

    def crowded(self, model: str) -> bool:
        """Whether something is not loaded."""
        return model in self.active and any(plan.epoch in self.unloaded for plan in self.active[model].plans)

    def newest(self, model: str) -> Epoch | None:
        """The epoch of the active plan."""
        active = self.active.get(model)
        return active.main.epoch if active else None

    def exact(self, plan: Plan) -> bool:
        """Every device here is of one class."""
        return not any(group.split == "input" for lane in plan.lanes for stage in lane.stages for group in stage.groups)

    def predicted_s(self, plan: Plan) -> float:
        """What was set."""
        del plan
        return self.predicted
