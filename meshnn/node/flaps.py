"""Devices that come and go: one that flaps is used last for a while, longer each time. A pure machine of every node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshnn.cluster.member import BootId, DeviceId

# So many departures within so long make a flapper; it is held down so long, twice as long each time, up to a bound.
FLAPS = 3
WITHIN_S = 300.0
HOLD_S = 300.0
HOLD_MAX_S = 3600.0
# A device that was steady for so long after its hold begins anew.
FORGIVEN_S = 3600.0


@dataclass(slots=True)
class _History:
    """When a device went away of late, how often it was held down, until when it is."""

    left_at: list[float] = field(default_factory=list)
    holds: int = 0
    until: float = 0.0


class Flaps:
    """Whoever leads next has its own count of who came and went: every node keeps one."""

    def __init__(self) -> None:
        """Nobody was ever here."""
        self._here: dict[DeviceId, BootId] = {}
        self._histories: dict[DeviceId, _History] = {}
        self._at = 0.0

    def on_members(self, lives: Mapping[DeviceId, BootId], now: float) -> None:
        """The devices that plans may use now: one that was here and is not, or lives anew, went away once."""
        for device, boot in self._here.items():
            if lives.get(device) != boot:
                self._went(device, now)
        self._here = dict(lives)
        self._at = now
        self._histories = {
            device: history
            for device, history in self._histories.items()
            if max(history.until, history.left_at[-1]) + FORGIVEN_S > now
        }

    def held(self, now: float) -> frozenset[DeviceId]:
        """The devices to be used last."""
        return frozenset(device for device, history in self._histories.items() if history.until > now)

    def departures(self, device: DeviceId, now: float) -> int:
        """How often a device went away within the last minutes: how likely it does again."""
        history = self._histories.get(device)
        return 0 if history is None else sum(now - at < WITHIN_S for at in history.left_at)

    @property
    def deadline(self) -> float | None:
        """When the next hold ends, in the caller's clock."""
        return min((history.until for history in self._histories.values() if history.until > self._at), default=None)

    def _went(self, device: DeviceId, now: float) -> None:
        history = self._histories.setdefault(device, _History())
        lately = [at for at in history.left_at if now - at < WITHIN_S]
        history.left_at = [*lately[1 - FLAPS :], now]
        if history.until > now:
            # It goes on flapping: the same hold, from now.
            history.until = now + _hold_s(history.holds)
        elif len(history.left_at) >= FLAPS:
            history.holds += 1
            history.until = now + _hold_s(history.holds)


def _hold_s(holds: int) -> float:
    """How long the hold of this number lasts."""
    return min(HOLD_MAX_S, HOLD_S * 2.0 ** (holds - 1))
