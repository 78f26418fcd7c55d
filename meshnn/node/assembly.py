"""Collects the slices of a shard's inputs until they are whole: by attempt, bounded in bytes and in number. Pure.

Memory is set aside for a whole input set when its first slice comes, so that what has begun can complete: what the
planner counts for the shard, for as many requests as the plan's window says.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meshnn.cluster.member import DeviceId
from meshnn.errors import BusyError
from meshnn.node.inputs import Arrival, Inputs, Target, check
from meshnn.node.slices import Array, Passage
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch
from meshnn.plan.shipments import At

# A cancelled attempt may still run, or hand on what it made, when its successor comes: places for both.
PLACES = 2
# How long what is over is remembered, so that what comes late is known as such.
REMEMBER_S = 60.0
REMEMBER_LIMIT = 8192

_SlotId = tuple[Epoch, Hashable]


@dataclass(frozen=True, slots=True)
class Key:
    """What slices have in common that meet: one attempt's inputs of one shard (or of the origin)."""

    passage: Passage
    stage: int
    part: int

    @property
    def origin(self) -> DeviceId:
        """Whose request it is."""
        return self.passage.origin


@dataclass(frozen=True, slots=True)
class Complete:
    """The whole inputs of a shard by tensor index, ready to run, until `begin`; its place is free after `finish`."""

    key: Key
    tensors: Mapping[int, Array]
    received_bytes: int
    times: tuple[StageTime, ...]
    deadline: float


@dataclass(slots=True)
class _Entry:
    """What of a key's inputs is here, and the bytes that are set aside for them."""

    target: Target
    slot: _SlotId
    deadline: float
    size_bytes: int
    inputs: Inputs = field(default_factory=Inputs)
    arrived: set[tuple[At, At]] = field(default_factory=set)
    times: dict[At, StageTime] = field(default_factory=dict)
    received_bytes: int = 0


@dataclass(slots=True)
class _Running:
    """A whole input set: it waits for its run until it has `begun`, and holds its bytes until they are spent."""

    slot: _SlotId
    size_bytes: int
    tensors: dict[int, Array]
    begun: bool = False
    spent: bool = False


@dataclass(slots=True)
class _Slot:
    """What of one shard is inside: input sets, and how many of them hold memory."""

    places: int = 0
    holding: int = 0


class Assembly:
    """Slices in, whole input sets out, each once; `cancel`, `spend`, `finish` and time free what they held."""

    def __init__(self, limit_bytes: int) -> None:
        """An empty assembly that holds at most `limit_bytes` of tensors, those of runs that have begun included."""
        self._limit_bytes = limit_bytes
        self._collecting: dict[Key, _Entry] = {}
        self._running: dict[Key, _Running] = {}
        self._slots: dict[_SlotId, _Slot] = {}
        self._over: dict[tuple[DeviceId, str], tuple[int, float]] = {}
        self._fired: dict[Key, float] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """The bytes of all tensors here, and those set aside for what is still to come."""
        return self._held_bytes

    @property
    def deadline(self) -> float:
        """When the next entry that is still collecting expires; infinite without one."""
        return min((entry.deadline for entry in self._collecting.values()), default=float("inf"))

    @property
    def keys(self) -> tuple[Key, ...]:
        """Everything that is inside: collecting first, then running."""
        return (*self._collecting, *self._running)

    @property
    def collecting(self) -> tuple[Key, ...]:
        """What is not whole yet."""
        return tuple(self._collecting)

    def superseded(self, key: Key) -> bool:
        """Whether the key's attempt is known to be over."""
        return self._over.get((key.origin, key.passage.request), (-1, 0.0))[0] >= key.passage.attempt

    def wants(self, key: Key, source: At, address: At) -> bool:
        """Whether what `source` sends to `address` is still missing for this key."""
        if self.superseded(key) or key in self._fired or key in self._running:
            return False
        entry = self._collecting.get(key)
        return entry is None or (source, address) not in entry.arrived

    def has_room(self, key: Key, target: Target) -> bool:
        """Whether the inputs of this key may come in; earlier attempts of its request are about to make room."""
        return self._fits(key, target, self._ousted(key))

    def add(self, key: Key, target: Target, arrival: Arrival, deadline: float, now: float) -> Complete | None:
        """Place a slice; the complete inputs when it was the last one, None while some are missing.

        Late, superseded and duplicate slices are dropped. PeerError when the pieces are not what the source owes;
        BusyError when there is no room.
        """
        if not self.wants(key, arrival.source, arrival.address) or deadline <= now:
            return None
        check(target, arrival)
        if not self._fits(key, target, []):
            raise BusyError("this device has no room for more work of this plan")
        entry = self._collecting.get(key)
        if entry is None:
            entry = self._enter(key, target, deadline)
        entry.arrived.add((arrival.source, arrival.address))
        entry.received_bytes += arrival.received_bytes
        entry.times.update({(time.stage, time.part): time for time in arrival.times})
        entry.inputs.place(target, arrival)
        return self._fire(key, entry, now) if entry.arrived == set(target.owed) else None

    def begin(self, key: Key) -> bool:
        """What was complete is about to run: from now on it keeps its memory, cancelled or not. False if it is over."""
        running = self._running.get(key)
        if running is not None:
            running.begun = True
        return running is not None

    def spend(self, key: Key) -> None:
        """What was complete has run: its inputs are of no use any more, its place stays taken."""
        running = self._running.get(key)
        if running is not None and not running.spent:
            running.spent = True
            running.tensors.clear()
            self._give_back(running.slot, running.size_bytes)

    def finish(self, key: Key) -> None:
        """What was complete has been handed on (or dropped): its place is free."""
        running = self._running.pop(key, None)
        if running is not None:
            if not running.spent:
                self._give_back(running.slot, running.size_bytes)
            self._vacate(running.slot)

    def cancel(self, origin: DeviceId, request: str, attempt: int, now: float) -> None:
        """Attempts of this request up to this one are over; those that run keep their place until `finish`."""
        known = self._over.pop((origin, request), (-1, 0.0))[0]
        self._over[origin, request] = (max(known, attempt), now + REMEMBER_S)
        self._drop_all(
            key for key in self.keys if (key.origin, key.passage.request) == (origin, request) and _upto(key, attempt)
        )
        self._forget(now)

    def drop(self, key: Key) -> None:
        """Free what was collected for a key, unless its run has begun."""
        entry = self._collecting.pop(key, None)
        if entry is not None:
            self._give_back(entry.slot, entry.size_bytes)
            self._vacate(entry.slot)
        running = self._running.get(key)
        if running is not None and not running.begun:
            self.spend(key)
            self.finish(key)

    def drop_origin(self, origin: DeviceId) -> None:
        """The origin lives another life: nothing that it began is wanted."""
        self._drop_all(key for key in self.keys if key.origin == origin)

    def expire(self, now: float) -> tuple[Key, ...]:
        """Free the entries whose deadline passed; returns their keys."""
        late = tuple(key for key, entry in self._collecting.items() if entry.deadline <= now)
        self._drop_all(late)
        self._forget(now)
        return late

    def in_flight(self, epoch: Epoch) -> int:
        """How many input sets of this plan are inside."""
        return sum(slot.places for (other, _), slot in self._slots.items() if other == epoch)

    def _ousted(self, key: Key) -> list[_Entry | _Running]:
        """The earlier attempts of a key's request that go when its own slices come: those that have not begun."""
        if key.passage.attempt <= 1:
            return []
        earlier = [
            other
            for other in self.keys
            if (other.origin, other.passage.request) == (key.origin, key.passage.request)
            and _upto(other, key.passage.attempt - 1)
        ]
        found: list[_Entry | _Running] = [self._collecting[other] for other in earlier if other in self._collecting]
        waiting = [self._running[other] for other in earlier if other in self._running]
        return [*found, *(running for running in waiting if not running.begun)]

    def _fits(self, key: Key, target: Target, ousted: Sequence[_Entry | _Running]) -> bool:
        """Whether a key is inside, or may come in when `ousted` has gone."""
        if key in self._collecting:
            return True
        name = (key.passage.epoch, target.slot)
        slot = self._slots.get(name, _Slot())
        leaving = sum(one.slot == name for one in ousted)
        if slot.places - leaving >= PLACES * target.window or slot.holding - leaving >= target.window:
            return False
        freed = sum(one.size_bytes for one in ousted)
        return self._held_bytes - freed + target.reserve_bytes <= self._limit_bytes

    def _enter(self, key: Key, target: Target, deadline: float) -> _Entry:
        """Take a place, and set aside what the whole input set may need."""
        name = (key.passage.epoch, target.slot)
        entry = self._collecting[key] = _Entry(target, name, deadline, target.reserve_bytes)
        slot = self._slots.setdefault(name, _Slot())
        slot.places += 1
        slot.holding += 1
        self._held_bytes += entry.size_bytes
        return entry

    def _fire(self, key: Key, entry: _Entry, now: float) -> Complete:
        """Everything is here: the entry becomes a running one, and addends that were added take no room any more."""
        del self._collecting[key]
        tensors = entry.inputs.whole(entry.target)
        size_bytes = entry.target.whole_bytes
        self._held_bytes -= entry.size_bytes - size_bytes
        self._running[key] = _Running(entry.slot, size_bytes, tensors)
        self._fired[key] = now + REMEMBER_S
        self._forget(now)
        times = tuple(entry.times[at] for at in sorted(entry.times))
        return Complete(key, tensors, entry.received_bytes, times, entry.deadline)

    def _drop_all(self, keys: Iterable[Key]) -> None:
        for key in tuple(keys):
            self.drop(key)

    def _give_back(self, name: _SlotId, size_bytes: int) -> None:
        """The memory of one input set is free."""
        self._held_bytes -= size_bytes
        self._slots[name].holding -= 1

    def _vacate(self, name: _SlotId) -> None:
        """The place of one input set is free."""
        self._slots[name].places -= 1
        if not self._slots[name].places:
            del self._slots[name]

    def _forget(self, now: float) -> None:
        """Keep the memory of what is over short."""
        while self._over:
            oldest = next(iter(self._over))
            if self._over[oldest][1] > now and len(self._over) <= REMEMBER_LIMIT:
                break
            del self._over[oldest]
        while self._fired:
            first = next(iter(self._fired))
            if self._fired[first] > now and len(self._fired) <= REMEMBER_LIMIT:
                break
            del self._fired[first]


def _upto(key: Key, attempt: int) -> bool:
    """Whether a key is of this attempt or an earlier one."""
    return key.passage.attempt <= attempt
