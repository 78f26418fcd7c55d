"""What the data plane must know of the served plans: the door that the node's plan book opens for it."""

from __future__ import annotations

from typing import Protocol

from meshnn.cluster.member import DeviceId
from meshnn.graph.card import Card
from meshnn.plan.plan import Epoch, Plan, Recipe


class Served(Protocol):
    """The plans this node may use and serve; every method answers at once and from memory."""

    def plan(self, model: str, epoch: Epoch) -> Plan | None:
        """The plan of this epoch while this node serves it (prepared, active or draining); else None."""

    def card(self, digest: str) -> Card | None:
        """The card of a model, where it is here."""

    def handle(self, recipe: Recipe) -> int | None:
        """The engine's handle of a loaded shard; None while it is not loaded."""

    def on_asked(self, model: str, epoch: Epoch) -> None:
        """A request came for a shard of this plan that is not loaded here, or is a contingency's."""

    def choose(self, model: str, avoid: frozenset[DeviceId], *, on_disk: bool = True) -> Plan | None:
        """The active plan if it needs none of `avoid`, else a contingency that needs none, loaded or `on_disk`."""

    def crowded(self, model: str) -> bool:
        """Whether a contingency waits on the disks for its death: to use another meanwhile keeps the room from it."""

    def newest(self, model: str) -> Epoch | None:
        """The newest epoch known for a model."""

    def exact(self, plan: Plan) -> bool:
        """Whether answers of this plan equal the whole model's on one of its devices, byte for byte."""

    def predicted_s(self, plan: Plan) -> float:
        """What the planner expects one request to take, seconds; 0 where it does not know."""
