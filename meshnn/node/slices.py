"""Slices of tensors: cut from what a shard made, packed into parcels, read back, dealt out to their readers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.plan.boxes import Box
from meshnn.plan.messages import Slice, StageTime, TensorPart
from meshnn.plan.plan import Epoch
from meshnn.plan.shipments import At, Shipment
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
    """What one shard (or the origin, stage -1) sends in one frame for one attempt, addressed to shard (stage, part).

    Other shards on the same device may read of it too: `plan.shipments` says which.
    """

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


def parcel_of(shipment: Shipment, arrays: Mapping[int, Array], bases: Mapping[int, Box]) -> Parcel:
    """The parcel of a shipment: views of its source's outputs.

    `arrays` are these outputs by tensor index, `bases` the boxes they are of the whole tensors; a tensor without a base
    is whole.
    """
    pieces = tuple(Piece(tensor, box, cut(arrays[tensor], bases.get(tensor), box)) for tensor, box in shipment.boxes)
    return Parcel(*shipment.address, pieces)


def dealt(shipment: Shipment, pieces: Sequence[Piece]) -> Iterator[tuple[At, tuple[Piece, ...]]]:
    """Who reads what of the pieces of a parcel: views of them. PeerError where it is not what the plan says."""
    if tuple((piece.tensor, piece.box) for piece in pieces) != shipment.boxes:
        raise PeerError(f"shard {shipment.source} sent other slices than the plan says")
    for reader in shipment.readers:
        taken = [(pieces[place], box) for place, box in reader.takes]
        yield reader.at, tuple(Piece(piece.tensor, box, cut(piece.array, piece.box, box)) for piece, box in taken)


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
