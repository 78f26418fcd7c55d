"""One input set: what a shard must have, what arrives for it, and how pieces become whole tensors. Pure.

Arrays that were received are used where they lie only if that keeps no more memory alive than is counted for them:
what several shards read came in one payload, and a view of a corner would hold all of it. Else they are copied.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from meshnn.errors import PeerError
from meshnn.graph.splits.merge import activate
from meshnn.node.slices import Array, Piece
from meshnn.plan.boxes import Box
from meshnn.plan.messages import StageTime
from meshnn.plan.routes import Need
from meshnn.plan.shipments import At
from meshnn.wire.tensor import ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True)
class Target:
    """What the shard of a key must have.

    `owed` says which boxes come with the parcel of which source and address; `window` how many input sets may be held
    at once for all keys of one `slot`.
    """

    needs: tuple[Need, ...]
    dtypes: Mapping[int, str]
    owed: Mapping[tuple[At, At], tuple[tuple[int, Box], ...]]
    window: int
    slot: Hashable = None

    @property
    def reserve_bytes(self) -> int:
        """The most that one input set takes while it is collected: every addend may have to wait."""
        return sum(need.copies * _shape_bytes(need.box, self.dtypes[need.tensor]) for need in self.needs)

    @property
    def whole_bytes(self) -> int:
        """What a whole input set takes."""
        return sum(_shape_bytes(need.box, self.dtypes[need.tensor]) for need in self.needs)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What one parcel brings to one shard: from which shard, addressed to which, its pieces, and the times so far.

    `received_bytes` came over the network for it; what a neighbour's parcel brought counts there.
    """

    source: At
    address: At
    pieces: tuple[Piece, ...]
    received_bytes: int = 0
    times: tuple[StageTime, ...] = ()


@dataclass(slots=True)
class Total:
    """Addends of one box: those whose turn came are in `value` (`count` of them), the others wait by source."""

    value: Array | None = None
    count: int = 0
    waiting: dict[At, Array] = field(default_factory=dict)

    def add(self, order: Sequence[At], source: At, addend: Array, *, kept: bool) -> None:
        """Take an addend; what its turn allows is added, in `order`. One that must wait is copied unless `kept`."""
        if order[self.count] != source:
            self.waiting[source] = addend if kept else np.array(addend)
            return
        due: Array | None = addend
        while due is not None:
            if self.value is None:
                self.value = np.array(due)
            else:
                np.add(self.value, due, out=self.value)
            self.count += 1
            due = self.waiting.pop(order[self.count], None) if self.count < len(order) else None


class Inputs:
    """What of one input set is here."""

    def __init__(self) -> None:
        """Nothing."""
        self._arrays: dict[int, Array] = {}
        self._totals: dict[tuple[int, Box], Total] = {}

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Every array that is held, sums and waiting addends included."""
        sums = [total.value for total in self._totals.values() if total.value is not None]
        waiting = [addend for total in self._totals.values() for addend in total.waiting.values()]
        return (*self._arrays.values(), *sums, *waiting)

    def place(self, target: Target, arrival: Arrival) -> None:
        """Put the pieces of an arrival, which `check` let through, where they belong."""
        kept = _kept(target, arrival)
        needs = {need.tensor: need for need in target.needs}
        for piece in arrival.pieces:
            need = needs[piece.tensor]
            if need.sums:
                order = [(source.stage, source.part) for source in need.sources]
                total = self._totals.setdefault((need.tensor, piece.box), Total())
                total.add(order, arrival.source, piece.array, kept=kept)
            elif kept:
                self._arrays[need.tensor] = piece.array
            else:
                if need.tensor not in self._arrays:
                    self._arrays[need.tensor] = np.empty(_shape(need.box), piece.array.dtype)
                self._arrays[need.tensor][_within(piece.box, need.box)] = piece.array

    def whole(self, target: Target) -> dict[int, Array]:
        """The whole tensors, once everything is here; addends were added in the order of the need's sources."""
        return {need.tensor: self._whole(need, target.dtypes[need.tensor]) for need in target.needs}

    def _whole(self, need: Need, dtype: str) -> Array:
        if need.sums:
            return activate(np.asarray(self._summed(need), np.float32), need.activation)
        found = self._arrays.get(need.tensor)
        return np.zeros(_shape(need.box), dtype) if found is None else found

    def _summed(self, need: Need) -> Array:
        """The sum of a need's addends, which came in one box or, where a neighbour reads of them too, in several."""
        sums = {box: total.value for (tensor, box), total in self._totals.items() if tensor == need.tensor}
        whole = sums.get(need.box)
        if whole is None:
            whole = np.empty(_shape(need.box), np.float32)
            for box, value in sums.items():
                assert value is not None
                whole[_within(box, need.box)] = value
        return whole


def check(target: Target, arrival: Arrival) -> None:
    """PeerError unless the pieces are exactly what this source owes, in type and place."""
    owed = target.owed.get((arrival.source, arrival.address))
    if owed is None:
        raise PeerError(f"a slice from shard {arrival.source} for {arrival.address}, of which nothing is due here")
    if sorted((piece.tensor, piece.box) for piece in arrival.pieces) != sorted(owed):
        raise PeerError(f"shard {arrival.source} sent other slices than the plan says")
    for piece in arrival.pieces:
        if piece.array.dtype.name != target.dtypes[piece.tensor]:
            raise PeerError(f"tensor {piece.tensor} came as {piece.array.dtype.name}")
        if piece.array.shape != _shape(piece.box):
            raise PeerError(f"tensor {piece.tensor} came with the shape {piece.array.shape}")


def _kept(target: Target, arrival: Arrival) -> bool:
    """Whether arrays may stay where they lie: each is all of a need, and the memory they keep alive is their own."""
    needed = {need.tensor: need.box for need in target.needs}
    if any(needed[piece.tensor] != piece.box for piece in arrival.pieces):
        return False
    roots = dict(_root(piece.array) for piece in arrival.pieces)
    own_bytes = sum(piece.array.nbytes + ALIGNMENT_BYTES for piece in arrival.pieces)
    return sum(roots.values()) <= own_bytes


def _root(array: Array) -> tuple[int, int]:
    """The memory that a view keeps alive: its identity and its bytes."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        return id(owner.obj), memoryview(owner.obj).nbytes
    return id(owner), owner.nbytes if isinstance(owner, np.ndarray) else array.nbytes


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
    """Where a box lies in an array that is the box around it."""
    return tuple(slice(start - corner, stop - corner) for (start, stop), (corner, _) in zip(box, outer, strict=True))


def _shape(box: Box) -> tuple[int, ...]:
    """The extents of a box."""
    return tuple(stop - start for start, stop in box)


def _shape_bytes(box: Box, dtype: str) -> int:
    """The bytes of a box of this dtype."""
    count = np.dtype(dtype).itemsize
    for extent in _shape(box):
        count *= extent
    return int(count)
