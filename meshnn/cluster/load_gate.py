"""When a load row is worth telling: soon after a marked change, else every few seconds, never when nothing changed."""

from __future__ import annotations

import random

import msgspec

from meshnn.cluster.member import Load
from meshnn.cluster.timing import LOAD_INTERVAL_S

MARKED = 0.2
MARKED_INTERVAL_S = 1.0


class LoadGate:
    """Holds back load rows; `due` gives the one to publish, with its version set."""

    def __init__(self, published: Load, rng: random.Random) -> None:
        self.deadline: float | None = None
        self._published = published
        self._published_at = -LOAD_INTERVAL_S
        self._wanted = published
        self._rng = rng

    def offer(self, load: Load, now: float) -> None:
        """Note what the load is now."""
        self._wanted = msgspec.structs.replace(load, version=self._published.version)
        if self._wanted == self._published:
            self.deadline = None
            return
        usual_s = LOAD_INTERVAL_S * self._rng.uniform(0.8, 1.2)
        wait_s = MARKED_INTERVAL_S if _marked(self._published, self._wanted) else usual_s
        due_at = max(now, self._published_at + wait_s)
        self.deadline = due_at if self.deadline is None else min(self.deadline, due_at)

    def due(self, now: float) -> Load | None:
        """The load to publish now, or None."""
        if self.deadline is None or now < self.deadline:
            return None
        self.deadline = None
        self._published = msgspec.structs.replace(self._wanted, version=self._published.version + 1)
        self._published_at = now
        return self._published


def _marked(before: Load, after: Load) -> bool:
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(after), strict=True)
    return any(abs(new - old) > MARKED * max(abs(old), abs(new)) for old, new in pairs)
