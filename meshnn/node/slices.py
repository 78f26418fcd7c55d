"""Slices of tensors: cut from what a shard made, one parcel per destination, and read back from a payload. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.plan.boxes import Box
from meshnn.plan.messages import Slice, StageTime, TensorPart
from meshnn.plan.plan import Epoch
from meshnn.plan.routes import ORIGIN, Routes
from meshnn.wire.tensor import payload_buffers, tensor_views

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor; `array` has the box's extents as its shape."""

    tensor: int
    box: Box
    array: Array


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that one shard (or the origin, stage -1) sends to shard (stage, part) for one attempt."""

    stage: int
    part: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """What every slice of one attempt has in its header."""

    request: str
    attempt: int
    model: str
    epoch: Epoch
    origin: DeviceId
    origin_boot: BootId
    lane: int
    groups: tuple[int, ...]


def passage_of(header: Slice) -> Passage:
    """The part of a slice's header that all slices of its attempt share."""
    return Passage(
        header.request,
        header.attempt,
        header.model,
        header.epoch,
        header.origin,
        header.origin_boot,
        header.lane,
        header.groups,
    )


def parcels(
    routes: Routes, source: tuple[int, int], arrays: Mapping[int, Array], bases: Mapping[int, Box]
) -> tuple[Parcel, ...]:
    """What (stage, part) `source` sends, one parcel per destination in (stage, part) order.

    `arrays` are its outputs by tensor index, `bases` the boxes they are of the whole tensors; a tensor without a base
    is whole. From the origin a shard that reads nothing gets an empty parcel, so that it fires.
    """
    found: dict[tuple[int, int], list[Piece]] = {}
    for give in routes.gives[source]:
        array = cut(arrays[give.tensor], bases.get(give.tensor), give.box)
        found.setdefault((give.stage, give.part), []).append(Piece(give.tensor, give.box, array))
    if source[0] == ORIGIN:
        for key in routes.needs:
            if not routes.sources_of(*key):
                found.setdefault(key, [])
    return tuple(Parcel(stage, part, tuple(found[stage, part])) for stage, part in sorted(found))


def cut(array: Array, base: Box | None, box: Box) -> Array:
    """The box of a tensor out of an array that is its box `base` (the whole where None): a view, not a copy."""
    offsets = [start for start, _ in base] if base else [0] * len(box)
    window = tuple(slice(start - offset, stop - offset) for (start, stop), offset in zip(box, offsets, strict=True))
    return array[window]


def header_of(
    passage: Passage, parcel: Parcel, source: tuple[int, int], left_ms: int, times: Sequence[StageTime]
) -> Slice:
    """The header of a parcel from (stage, part) `source`."""
    fields = {name: getattr(passage, name) for name in Passage.__slots__}
    return Slice(
        **fields,
        stage=parcel.stage,
        part=parcel.part,
        source_stage=source[0],
        source_part=source[1],
        left_ms=max(0, left_ms),
        tensors=tuple(
            TensorPart(piece.tensor, piece.array.dtype.name, piece.array.shape, piece.box, piece.array.nbytes)
            for piece in parcel.pieces
        ),
        times=tuple(times),
    )


def buffers_of(parcel: Parcel) -> list[memoryview]:
    """The payload of a parcel; contiguous pieces are not copied."""
    return payload_buffers([piece.array for piece in parcel.pieces])


def pieces_of(header: Slice, payload: memoryview) -> tuple[Piece, ...]:
    """The pieces in a payload, as views of it. PeerError where header and payload do not fit each other."""
    for part in header.tensors:
        if tuple(stop - start for start, stop in part.box) != part.shape:
            raise PeerError(f"a slice of tensor {part.index} has another shape than its box")
    arrays = tensor_views(header.tensors, payload)
    return tuple(Piece(part.index, part.box, array) for part, array in zip(header.tensors, arrays, strict=True))
