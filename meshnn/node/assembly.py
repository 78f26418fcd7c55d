"""Collects the slices of a shard's inputs until they are whole: by attempt, bounded in bytes and in number. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from meshnn.cluster.member import DeviceId
from meshnn.errors import BusyError, PeerError
from meshnn.graph.splits.merge import activate
from meshnn.node.slices import Array, Passage, Piece
from meshnn.plan.boxes import Box
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch
from meshnn.plan.routes import ORIGIN, Need

# How long what is over is remembered, so that what comes late is known as such.
REMEMBER_S = 60.0
REMEMBER_LIMIT = 8192


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
class Target:
    """What the shard of a key must have: its needs, the dtype of each tensor, how many attempts may be inside."""

    needs: tuple[Need, ...]
    dtypes: Mapping[int, str]
    limit: int

    @property
    def sources(self) -> frozenset[tuple[int, int]]:
        """The shards that send something; where there is none, the origin says when."""
        found = {(source.stage, source.part) for need in self.needs for source in need.sources}
        return frozenset(found or {(ORIGIN, 0)})


@dataclass(frozen=True, slots=True)
class Arrival:
    """One slice: from which shard, its pieces, the bytes that came over the network, and the times so far."""

    source: tuple[int, int]
    pieces: tuple[Piece, ...]
    received_bytes: int = 0
    times: tuple[StageTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """The whole inputs of a shard by tensor index, ready to run; they count as inside until `finish`."""

    key: Key
    tensors: Mapping[int, Array]
    received_bytes: int
    times: tuple[StageTime, ...]
    deadline: float


@dataclass(slots=True)
class Total:
    """Addends of one tensor: those whose turn came are in `value` (`count` of them), the others wait by source."""

    value: Array | None = None
    count: int = 0
    waiting: dict[tuple[int, int], Array] = field(default_factory=dict)

    def add(self, need: Need, source: tuple[int, int], addend: Array) -> int:
        """Take an addend; what its turn allows is added in the order of the need's sources. Returns the bytes freed."""
        self.waiting[source] = addend
        freed = 0
        for following in need.sources[self.count :]:
            due = self.waiting.pop((following.stage, following.part), None)
            if due is None:
                break
            if self.value is None:
                self.value = np.array(due)
            else:
                np.add(self.value, due, out=self.value)
                freed += due.nbytes
            self.count += 1
        return freed


@dataclass(slots=True)
class _Entry:
    """What of a key's inputs is here."""

    target: Target
    deadline: float
    arrays: dict[int, Array] = field(default_factory=dict)
    totals: dict[int, Total] = field(default_factory=dict)
    arrived: set[tuple[int, int]] = field(default_factory=set)
    times: dict[tuple[int, int], StageTime] = field(default_factory=dict)
    received_bytes: int = 0
    size_bytes: int = 0


class Assembly:
    """Slices in, whole input sets out, each once; `cancel`, `finish` and time free what they held."""

    def __init__(self, limit_bytes: int) -> None:
        """An empty assembly that holds at most `limit_bytes` of tensors, running ones included."""
        self._limit_bytes = limit_bytes
        self._collecting: dict[Key, _Entry] = {}
        self._running: dict[Key, int] = {}
        self._inside: dict[tuple[Epoch, int, int], int] = {}
        self._over: dict[tuple[DeviceId, str], tuple[int, float]] = {}
        self._fired: dict[Key, float] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """The bytes of all tensors here."""
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

    def wants(self, key: Key, source: tuple[int, int]) -> bool:
        """Whether a slice from `source` is still missing for this key."""
        if self.superseded(key) or key in self._fired or key in self._running:
            return False
        entry = self._collecting.get(key)
        return entry is None or source not in entry.arrived

    def has_room(self, key: Key, limit: int, size_bytes: int) -> bool:
        """Whether another slice of `size_bytes` may come in, and its attempt with it."""
        known = key in self._collecting
        crowded = not known and self._inside.get((key.passage.epoch, key.stage, key.part), 0) >= limit
        return not crowded and self._held_bytes + size_bytes <= self._limit_bytes

    def add(self, key: Key, target: Target, arrival: Arrival, deadline: float, now: float) -> Complete | None:
        """Place a slice; the complete inputs when it was the last one, None while some are missing.

        Late, superseded and duplicate slices are dropped. PeerError when the pieces are not what the source owes;
        BusyError when there is no room.
        """
        if not self.wants(key, arrival.source) or deadline <= now:
            return None
        _check(target, arrival)
        size_bytes = self._cost(key, target, arrival)
        if not self.has_room(key, target.limit, size_bytes):
            raise BusyError("this device has no room for more work of this plan")
        entry = self._collecting.get(key)
        if entry is None:
            entry = self._collecting[key] = _Entry(target, deadline)
            slot = (key.passage.epoch, key.stage, key.part)
            self._inside[slot] = self._inside.get(slot, 0) + 1
        self._held_bytes += size_bytes
        entry.size_bytes += size_bytes
        entry.arrived.add(arrival.source)
        entry.received_bytes += arrival.received_bytes
        entry.times.update({(time.stage, time.part): time for time in arrival.times})
        freed = sum(_place(entry, need, arrival) for need in target.needs)
        self._held_bytes -= freed
        entry.size_bytes -= freed
        return self._fire(key, entry, now) if entry.arrived == target.sources else None

    def finish(self, key: Key) -> None:
        """What was complete has run and been handed on (or dropped): its place is free."""
        size_bytes = self._running.pop(key, None)
        if size_bytes is not None:
            self._release(key, size_bytes)

    def cancel(self, origin: DeviceId, request: str, attempt: int, now: float) -> None:
        """Attempts of this request up to this one are over; running ones keep their place until `finish`."""
        known = self._over.pop((origin, request), (-1, 0.0))[0]
        self._over[origin, request] = (max(known, attempt), now + REMEMBER_S)
        for key in [key for key in self._collecting if (key.origin, key.passage.request) == (origin, request)]:
            if key.passage.attempt <= attempt:
                self.drop(key)
        self._forget(now)

    def drop(self, key: Key) -> None:
        """Free what was collected for a key."""
        entry = self._collecting.pop(key, None)
        if entry is not None:
            self._release(key, entry.size_bytes)

    def drop_origin(self, origin: DeviceId) -> None:
        """The origin lives another life: nothing that it began is wanted."""
        for key in [key for key in self._collecting if key.origin == origin]:
            self.drop(key)

    def expire(self, now: float) -> tuple[Key, ...]:
        """Free the entries whose deadline passed; returns their keys."""
        late = tuple(key for key, entry in self._collecting.items() if entry.deadline <= now)
        for key in late:
            self.drop(key)
        self._forget(now)
        return late

    def in_flight(self, epoch: Epoch) -> int:
        """How many input sets of this plan are inside."""
        return sum(count for (other, _, _), count in self._inside.items() if other == epoch)

    def _cost(self, key: Key, target: Target, arrival: Arrival) -> int:
        """The bytes that placing this arrival adds: its own where it is kept, the whole box where that is made."""
        entry = self._collecting.get(key)
        total = 0
        for need in target.needs:
            mine = [source for source in need.sources if (source.stage, source.part) == arrival.source]
            size_bytes = _shape_bytes(need.box, target.dtypes[need.tensor])
            if need.sums:
                total += size_bytes * len(mine)
            elif mine and (entry is None or need.tensor not in entry.arrays):
                total += size_bytes
        return total

    def _fire(self, key: Key, entry: _Entry, now: float) -> Complete:
        """Everything is here: the entry becomes a running one."""
        del self._collecting[key]
        self._running[key] = entry.size_bytes
        self._fired[key] = now + REMEMBER_S
        self._forget(now)
        tensors = {need.tensor: _whole(entry, need) for need in entry.target.needs}
        times = tuple(entry.times[at] for at in sorted(entry.times))
        return Complete(key, tensors, entry.received_bytes, times, entry.deadline)

    def _release(self, key: Key, size_bytes: int) -> None:
        """A key's place and bytes are free."""
        self._held_bytes -= size_bytes
        slot = (key.passage.epoch, key.stage, key.part)
        left = self._inside[slot] - 1
        if left:
            self._inside[slot] = left
        else:
            del self._inside[slot]

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


def _check(target: Target, arrival: Arrival) -> None:
    """PeerError unless the pieces are exactly what this source owes, in type and place."""
    if arrival.source not in target.sources:
        raise PeerError(f"a slice from shard {arrival.source}, which sends nothing here")
    owed = sorted(
        (need.tensor, source.box)
        for need in target.needs
        for source in need.sources
        if (source.stage, source.part) == arrival.source
    )
    if sorted((piece.tensor, piece.box) for piece in arrival.pieces) != owed:
        raise PeerError(f"shard {arrival.source} sent other slices than the plan says")
    for piece in arrival.pieces:
        if piece.array.dtype.name != target.dtypes[piece.tensor]:
            raise PeerError(f"tensor {piece.tensor} came as {piece.array.dtype.name}")
        if piece.array.shape != _shape(piece.box):
            raise PeerError(f"tensor {piece.tensor} came with the shape {piece.array.shape}")


def _place(entry: _Entry, need: Need, arrival: Arrival) -> int:
    """Put the arrival's pieces of one tensor where they belong; the bytes of addends that are now in their total."""
    pieces: Sequence[Piece] = [piece for piece in arrival.pieces if piece.tensor == need.tensor]
    freed = 0
    for piece in pieces:
        if need.sums:
            total = entry.totals.setdefault(need.tensor, Total())
            freed += total.add(need, arrival.source, piece.array)
        elif piece.box == need.box:
            # One slice is all of it: the bytes stay where they were received.
            entry.arrays[need.tensor] = piece.array
        else:
            if need.tensor not in entry.arrays:
                entry.arrays[need.tensor] = np.empty(_shape(need.box), entry.target.dtypes[need.tensor])
            at = tuple(slice(b[0] - n[0], b[1] - n[0]) for b, n in zip(piece.box, need.box, strict=True))
            entry.arrays[need.tensor][at] = piece.array
    return freed


def _whole(entry: _Entry, need: Need) -> Array:
    """One whole input; addends were added in the order of the need's sources, never in order of arrival."""
    if need.sums:
        total = entry.totals[need.tensor].value
        assert total is not None
        return activate(np.asarray(total, np.float32), need.activation)
    found = entry.arrays.get(need.tensor)
    return np.zeros(_shape(need.box), entry.target.dtypes[need.tensor]) if found is None else found


def _shape(box: Box) -> tuple[int, ...]:
    """The extents of a box."""
    return tuple(stop - start for start, stop in box)


def _shape_bytes(box: Box, dtype: str) -> int:
    """The bytes of a box of this dtype."""
    count = np.dtype(dtype).itemsize
    for extent in _shape(box):
        count *= extent
    return int(count)
