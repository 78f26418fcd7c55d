"""One suspicion: who accuses, since when, and how long the suspect has left."""

from __future__ import annotations

import dataclasses
import math

from meshnn.cluster.member import DeviceId
from meshnn.cluster.timing import SUSPICION_STRETCH, Timing


def suspicion_timeout_s(confirmers: int, wanted: int, min_s: float, max_s: float) -> float:
    """How long a suspect has to refute, in seconds: from `max_s` down to `min_s` as confirmers arrive (Lifeguard)."""
    if wanted < 1:
        return min_s
    share = math.log(confirmers + 1) / math.log(wanted + 1)
    return max(min_s, max_s - share * (max_s - min_s))


@dataclasses.dataclass(slots=True)
class Suspicion:
    """A suspicion of one incarnation of one device; `observers` are those to whom its host said it is gone.

    From the second observer on, `certain_at` is when it is buried without further waiting.
    """

    device_id: DeviceId
    incarnation: int
    started_at: float
    min_s: float
    wanted: int
    accusers: set[DeviceId] = dataclasses.field(default_factory=set)
    observers: set[DeviceId] = dataclasses.field(default_factory=set)
    grace_until: float | None = None
    certain_at: float | None = None

    @property
    def deadline(self) -> float:
        """When the suspicion runs out, or the grace after it."""
        if self.certain_at is not None:
            return self.certain_at
        if self.grace_until is not None:
            return self.grace_until
        if self.observers:
            return self.started_at + self.min_s
        max_s = self.min_s * SUSPICION_STRETCH
        return self.started_at + suspicion_timeout_s(len(self.accusers) - 1, self.wanted, self.min_s, max_s)

    def confirm(self, accuser: DeviceId, refused: bool) -> bool:
        """Note an accusation; True where it is news worth passing on."""
        news = accuser not in self.accusers and len(self.accusers) <= self.wanted
        if news:
            self.accusers.add(accuser)
        if refused and accuser not in self.observers and len(self.observers) < 2:
            self.observers.add(accuser)
            news = True
        return news

    def restart(self, now: float) -> None:
        """Begin again from now, keeping who accuses; what hosts said long ago no longer counts."""
        self.started_at = now
        self.grace_until = None
        self.certain_at = None
        self.observers.clear()


def suspicion_of(device_id: DeviceId, incarnation: int, size: int, timing: Timing, now: float) -> Suspicion:
    """A fresh suspicion in a mesh of `size` usable members."""
    wanted = timing.confirmers if size - 2 >= timing.confirmers else 0
    return Suspicion(device_id, incarnation, now, timing.suspicion_min_s, wanted)
