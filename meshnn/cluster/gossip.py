"""The rumours waiting to be told: urgent first, least told first, each a bounded number of times."""

from __future__ import annotations

import dataclasses

from meshnn.cluster.member import DeviceId
from meshnn.cluster.messages import Alive, Beat, Estimate, LoadRow, Rumour, Suspect, subject_of

RUMOURS_MAX = 64
"""The most rumours in one message; the schema refuses more."""

SIZE_MIN = 48
"""No rumour takes fewer bytes."""

MISSES_MAX = 16
"""After so many rumours that do not fit in what is left of a message it leaves as it is: there may be thousands."""

BACKLOG_TRANSMITS = 4
"""While more rows wait than a message holds, each is told less often: a thousand that restart together would fill
their links for minutes with what all know by then; anti-entropy brings what somebody missed."""

LOAD_TRANSMITS = 4
"""Load is stale soon and anti-entropy repairs what is missed, so it is told less often than the rest."""

BEAT_TRANSMITS = 6
"""The next beat comes within a second and takes this one's place: of a thousand devices one in four hundred misses one,
and nobody the six in a row that end a lease. Told sixteen times, beats were half of a quiet mesh's traffic."""

URGENT, LEADER, ROW, LOADS = range(4)
"""Priorities: life and death, the leader's beat, rows, load."""

TRANSMITS_MAX = {LEADER: BEAT_TRANSMITS, ROW: BACKLOG_TRANSMITS, LOADS: LOAD_TRANSMITS}
"""How often at most a rumour of a priority is told; rows only while too many wait."""

_Key = tuple[DeviceId, int]


@dataclasses.dataclass(slots=True)
class _Entry:
    rumour: Rumour
    size: int
    transmits: int
    place: tuple[int, int]


def priority_of(rumour: Rumour) -> int:
    """The priority of a rumour; what has none of its own is urgent."""
    match rumour:
        case LoadRow():
            return LOADS
        case Alive():
            return ROW
        case Beat():
            return LEADER
        case _:
            return URGENT


STATE, LOAD, BEAT, REFUSAL = range(4)


def _slot_of(rumour: Rumour) -> int:
    # What is newer about the same device and the same matter replaces the older; a host's own word (R7) is a matter
    # of its own, for a plain suspicion must not replace it.
    match rumour:
        case LoadRow():
            return LOAD
        case Beat():
            return BEAT
        case Suspect(refused=True):
            return REFUSAL
        case _:
            return STATE


class RumourQueue:
    """A transmit-limited queue; entries lie in buckets by (priority, times told), so taking needs no sort."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._entries: dict[_Key, _Entry] = {}
        self._buckets: dict[tuple[int, int], dict[_Key, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def pressing(self) -> bool:
        """Whether anything but load waits: load only rides along."""
        return any(priority < LOADS for priority, _ in self._buckets)

    @property
    def crowded(self) -> bool:
        """Whether more waits than a message may hold."""
        return len(self._entries) > RUMOURS_MAX

    def add(self, rumour: Rumour, first: bool = False) -> None:
        """Queue a rumour in place of an older one about the same matter; `first` puts it among the most urgent."""
        key = (subject_of(rumour), _slot_of(rumour))
        self._drop(key)
        if not isinstance(rumour, Suspect | LoadRow | Beat):
            self._drop((key[0], REFUSAL))
        entry = _Entry(rumour, self._estimate(rumour), 0, (URGENT if first else priority_of(rumour), 0))
        self._entries[key] = entry
        self._buckets.setdefault(entry.place, {})[key] = None

    def forget(self, device: DeviceId) -> None:
        """Drop whatever waits about a device's state."""
        self._drop((device, STATE))
        self._drop((device, REFUSAL))

    def take(self, budget_bytes: int, transmits: int, count_max: int = RUMOURS_MAX) -> tuple[Rumour, ...]:
        """The rumours for one message of at most `budget_bytes`; each counts as told once more."""
        taken: list[_Key] = []
        misses = 0
        for key in (key for place in sorted(self._buckets) for key in self._buckets[place]):
            if budget_bytes < SIZE_MIN or len(taken) >= count_max or misses > MISSES_MAX:
                break
            size = self._entries[key].size
            if size <= budget_bytes:
                budget_bytes -= size
                taken.append(key)
            else:
                misses += 1
        rumours = tuple(self._entries[key].rumour for key in taken)
        for key in taken:
            self._told(key, transmits)
        return rumours

    def _told(self, key: _Key, transmits: int) -> None:
        entry = self._entries[key]
        self._drop(key)
        entry.transmits += 1
        if entry.transmits < self._transmits(entry, transmits):
            entry.place = (entry.place[0], entry.transmits)
            self._entries[key] = entry
            self._buckets.setdefault(entry.place, {})[key] = None

    def _transmits(self, entry: _Entry, transmits: int) -> int:
        """How often a rumour is told."""
        priority = entry.place[0]
        if priority == ROW and not self.crowded:
            return transmits
        return min(transmits, TRANSMITS_MAX.get(priority, transmits))

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            bucket = self._buckets[entry.place]
            del bucket[key]
            if not bucket:
                del self._buckets[entry.place]
