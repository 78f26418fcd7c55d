"""Devices that became slower than planned: observed stage times against predicted ones. A pure machine of the leader.

All predictions err by some factor, alike for all devices of a plan, and load slows all of them: a device is slow when
it strays from its own best, or from the prediction, far more than the others of its plan do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from meshnn.cluster.member import BootId, DeviceId

# Times slower than its own best, beside the others; than predicted, beside the others.
STRAYS, ASTRAY = 3.0, 5.0
# So many different readings in a row must say so; and that it recovered.
READINGS = 2
RECOVERED, RECOVERED_READINGS = 1.5, 6
# A slow device outside every plan shows nothing: it is given another chance after so long, twice as long each time.
CHANCE_S, CHANCE_MAX_S = 120.0, 3600.0
# Devices remembered; beyond it those that are in no plan are forgotten, the oldest first.
ROWS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """What a device of a plan last told: its life, its slowest stage's observed time, and the predicted one (ms)."""

    boot: BootId
    observed_ms: float
    predicted_ms: float

    @property
    def ratio(self) -> float:
        """Observed over predicted."""
        return self.observed_ms / max(self.predicted_ms, 1e-9)


@dataclass(slots=True)
class _Row:
    """One life of a device: its last reading, its best ratio, by how much it was found to be slower, and when."""

    reading: Reading
    best: float
    factor: float = 1.0
    strayed: int = 0
    steady: int = 0
    slow_at: float = 0.0
    times: int = 0


class Paces:
    """How many times slower than it says each device is."""

    def __init__(self) -> None:
        """All as they say."""
        self._rows: dict[DeviceId, _Row] = {}
        self._planned: frozenset[DeviceId] = frozenset()

    def factor(self, device: DeviceId, boot: BootId) -> float:
        """By what to divide the speed that a device tells of itself; 1 where it keeps to it."""
        row = self._rows.get(device)
        return row.factor if row is not None and row.reading.boot == boot else 1.0

    @property
    def deadline(self) -> float | None:
        """When a slow device outside every plan gets its next chance."""
        waiting = [row for device, row in self._rows.items() if row.factor > 1.0 and device not in self._planned]
        return min((row.slow_at + _chance_s(row.times) for row in waiting), default=None)

    def on_readings(self, readings: Mapping[DeviceId, Reading], now: float) -> None:
        """What the devices of the active plans told last; one that is in none of them has no reading."""
        self._planned = frozenset(readings)
        fresh = {device for device, reading in readings.items() if self._take(device, reading)}
        for device in sorted(fresh):
            self._judge(device, now)
        for device, row in self._rows.items():
            if device not in readings and row.factor > 1.0 and row.slow_at + _chance_s(row.times) <= now:
                row.factor, row.strayed = 1.0, 0
        for device in [device for device in self._rows if device not in readings][: max(0, len(self._rows) - ROWS_MAX)]:
            del self._rows[device]

    def _take(self, device: DeviceId, reading: Reading) -> bool:
        """Note a reading; whether it is news."""
        row = self._rows.get(device)
        if row is None or row.reading.boot != reading.boot:
            self._rows[device] = _Row(reading, reading.ratio)
            return False
        if row.reading.observed_ms == reading.observed_ms:
            # Told before: of a shard of an earlier plan perhaps, which says nothing beside what is predicted now.
            return False
        if row.reading.predicted_ms != reading.predicted_ms and row.factor == 1.0:
            # Another shard: predictions err by other factors for other shards.
            row.best, row.strayed = reading.ratio, 0
        row.reading = reading
        row.best = min(row.best, reading.ratio)
        return True

    def _judge(self, device: DeviceId, now: float) -> None:
        """Call a device slow once it strayed in a row of readings, and no longer when it kept up in as many more."""
        row = self._rows[device]
        others = [self._rows[other] for other in sorted(self._planned) if other != device]
        usual = max(1.0, median([o.reading.ratio / o.best / o.factor for o in others] or [1.0]))
        strays = row.reading.ratio / row.best / usual
        # One that was slow and has recovered is no measure of how fast the others ought to be.
        beside = row.reading.ratio / median([max(o.reading.ratio / o.factor, o.best) for o in others] or [1e9])
        # What it is known to be slower by is in the prediction already.
        row.strayed = row.strayed + 1 if max(strays / STRAYS, beside / ASTRAY) >= row.factor else 0
        row.steady = row.steady + 1 if strays <= RECOVERED and beside < ASTRAY else 0
        if row.strayed >= READINGS:
            row.factor = strays if strays >= STRAYS * row.factor else beside
            row.slow_at, row.times, row.strayed = now, row.times + 1, 0
        elif row.factor > 1.0 and row.steady >= RECOVERED_READINGS:
            row.factor, row.steady = 1.0, 0


def _chance_s(times: int) -> float:
    """How long a device that was slow so often waits for its next chance."""
    return min(CHANCE_MAX_S, CHANCE_S * 2.0 ** min(times - 1, 10))
