"""Pairs of living devices that cannot reach each other: each tells the leader whom it cannot. A pure machine."""

from __future__ import annotations

from collections.abc import Collection

from meshnn.cluster.member import DeviceId
from meshnn.node.effects import Effect, Send
from meshnn.node.messages import CutOff
from meshnn.node.view import Pair

# A device that claims to be cut off from more than this is itself the one without a network.
TOLD_MAX = 64


class Severed:
    """What this device told its leader last, and what the others told this one, should it lead."""

    def __init__(self, me: DeviceId) -> None:
        """Everybody reaches everybody."""
        self._me = me
        self._rows: dict[DeviceId, tuple[DeviceId, ...]] = {}
        self._told: tuple[DeviceId | None, tuple[DeviceId, ...]] = (None, ())

    def pairs(self, alive: Collection[DeviceId]) -> frozenset[Pair]:
        """The pairs (the lesser id first) of living devices of which one says that it cannot reach the other."""
        found = ((one, other) for one, others in self._rows.items() if one in alive for other in others)
        return frozenset((min(pair), max(pair)) for pair in found if pair[1] in alive and pair[0] != pair[1])

    def on_linked(self, device: DeviceId) -> None:
        """A link is new: what was told over an earlier one may be lost, or be of an earlier life."""
        self._rows.pop(device, None)
        if self._told[0] == device:
            self._told = (None, ())

    def on_cut_off(self, source: DeviceId, message: CutOff) -> None:
        """A device says whom it cannot reach."""
        self._rows.pop(source, None)
        if message.devices:
            self._rows[source] = message.devices[:TOLD_MAX]

    def review(self, leader: DeviceId | None, unreached: Collection[DeviceId]) -> list[Effect]:
        """Tell the leader what has changed; with nothing to tell, nothing is said."""
        news = (leader, tuple(sorted(unreached))[:TOLD_MAX])
        if leader is None or news == self._told or (not news[1] and self._told[0] != leader):
            return []
        self._told = news
        return [Send(leader, CutOff(news[1]))]
