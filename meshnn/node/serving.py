"""What the data plane sees of the plans: the plan book, the cards and the loaded shards behind one door. Pure."""

from __future__ import annotations

from collections.abc import Callable

from meshnn.cluster.member import DeviceId
from meshnn.graph.card import Card
from meshnn.node.core import Core
from meshnn.node.problem import info_of
from meshnn.plan.devices import Links
from meshnn.plan.plan import Epoch, Plan, Recipe
from meshnn.plan.predict import predict

# Splits whose parts are summed: their answers keep within a bound, not to the byte.
INEXACT_SPLITS = frozenset({"input"})
PREDICTED_MAX = 64


class Serving:
    """`node.served.Served`, answered from the core."""

    def __init__(self, core: Core, ask: Callable[[str, Epoch], None]) -> None:
        """The core whose plans are served; `ask` tells it of requests for contingencies."""
        self._core = core
        self._ask = ask
        self._predicted: dict[Epoch, float] = {}

    def plan(self, model: str, epoch: Epoch) -> Plan | None:
        """The plan of this epoch while this node serves it."""
        return self._core.book.plan(model, epoch)

    def card(self, digest: str) -> Card | None:
        """The card of a model, where it is here."""
        return self._core.catalogue.card(digest)

    def handle(self, recipe: Recipe) -> int | None:
        """The engine's handle of a loaded shard."""
        return self._core.shards.handle(recipe)

    def on_asked(self, model: str, epoch: Epoch) -> None:
        """A request came for a shard of this plan that is not loaded here, or is a contingency's."""
        self._ask(model, epoch)

    def choose(self, model: str, avoid: frozenset[DeviceId], *, on_disk: bool = True) -> Plan | None:
        """The plan to use without the devices in `avoid`; the cards of its model must be here too."""
        plan = self._core.book.choose(model, avoid, on_disk=on_disk)
        # While a replaced model's old plan is still active, requests of the new one wait.
        if plan is None or self.card(plan.digest) is None or plan.digest != self._core.catalogue.current(model):
            return None
        return plan

    def crowded(self, model: str) -> bool:
        """Whether a contingency waits on the disks for its death."""
        return self._core.book.crowded(model)

    def newest(self, model: str) -> Epoch | None:
        """The newest epoch known for a model."""
        return self._core.book.newest(model)

    def exact(self, plan: Plan) -> bool:
        """Whether answers of this plan equal the whole model's on one of its devices, byte for byte."""
        members = self._core.cluster.members
        classes = {members[d].capability.numeric_class for d in plan.devices() if d in members}
        splits = {recipe.split for recipe, _ in plan.placements()}
        return len(classes) <= 1 and splits.isdisjoint(INEXACT_SPLITS)

    def predicted_s(self, plan: Plan) -> float:
        """What the planner expects one request to take, in seconds; 0 where it does not know the devices."""
        known = self._predicted.get(plan.epoch) or self._predict(plan)
        if known and plan.epoch not in self._predicted:
            if len(self._predicted) >= PREDICTED_MAX:
                self._predicted.clear()
            self._predicted[plan.epoch] = known
        return known

    def _predict(self, plan: Plan) -> float:
        members = self._core.cluster.members
        card = self.card(plan.digest)
        if card is None or any(device not in members for device in plan.devices()):
            return 0.0
        infos = [info_of(members[device]) for device in plan.devices()]
        return predict(plan, card, infos, Links()).latency_ms / 1000
