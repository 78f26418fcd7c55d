"""Slices: cut for each destination, packed, read back, and refused where header and bytes disagree."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from meshnn.errors import PeerError
from meshnn.node.slices import (
    Parcel,
    Passage,
    Piece,
    buffers_of,
    cut,
    dealt,
    header_of,
    parcel_of,
    passage_of,
    pieces_of,
)
from meshnn.plan.boxes import whole
from meshnn.plan.messages import Slice, StageTime
from meshnn.plan.plan import Epoch
from meshnn.plan.shipments import Reader, Shipment
from tests.node.shelf import A, B, life

PASSAGE = Passage("r1", 2, "cat", Epoch(3, B, 4, A), A, life(A), 1, (0, 1, 0))
IMAGE = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
SCORES = np.arange(3, dtype=np.float32)


def packed(*pieces: Piece) -> tuple[Slice, memoryview]:
    """A header and a payload as they travel."""
    parcel = Parcel(2, 0, pieces)
    header = header_of(PASSAGE, parcel, (1, 0), 1500, (StageTime(0, 0, B, 1.5, 24),))
    return header, memoryview(b"".join(buffers_of(parcel)))


BAND = ((0, 1), (1, 3), (0, 6))
SHARED = Shipment(
    (0, 0),
    (1, 0),
    ((5, whole((1, 4, 6))), (6, ((0, 3),))),
    (
        Reader((1, 0), ((0, whole((1, 4, 6))), (1, ((0, 3),)))),
        Reader((2, 1), ((0, BAND),)),
    ),
)


def test_a_parcel_has_the_boxes_of_its_shipment() -> None:
    """Views of what the source made, in the order of the shipment, under the address of its first reader."""
    parcel = parcel_of(SHARED, {5: IMAGE, 6: SCORES, 7: SCORES}, {})
    assert (parcel.stage, parcel.part) == (1, 0)
    assert [(piece.tensor, piece.box) for piece in parcel.pieces] == list(SHARED.boxes)
    assert all(
        np.shares_memory(piece.array, array) for piece, array in zip(parcel.pieces, (IMAGE, SCORES), strict=True)
    )


def test_everybody_gets_what_they_read_of_a_parcel_without_a_copy() -> None:
    """The first reader gets all of it, the second its rows: both as views of the one payload."""
    pieces = parcel_of(SHARED, {5: IMAGE, 6: SCORES}, {}).pieces
    (first, mine), (second, theirs) = dealt(SHARED, pieces)
    assert (first, second) == ((1, 0), (2, 1))
    assert [(piece.tensor, piece.box) for piece in mine] == list(SHARED.boxes)
    ((tensor, box, array),) = [(piece.tensor, piece.box, piece.array) for piece in theirs]
    assert (tensor, box) == (5, BAND)
    assert np.array_equal(array, IMAGE[:, 1:3])
    assert np.shares_memory(array, IMAGE)


@pytest.mark.parametrize("wrong", ["fewer", "other", "order"])
def test_a_parcel_that_is_not_the_plans_is_dealt_to_nobody(wrong: str) -> None:
    """Pieces missing, of another box, or in another order are the sender's error."""
    pieces = list(parcel_of(SHARED, {5: IMAGE, 6: SCORES}, {}).pieces)
    spoilt = {"fewer": pieces[:1], "other": [Piece(5, BAND, IMAGE[:, 1:3]), pieces[1]], "order": pieces[::-1]}[wrong]
    with pytest.raises(PeerError):
        list(dealt(SHARED, spoilt))


def test_cut_is_relative_to_what_the_shard_has() -> None:
    """A shard that made rows 2 to 4 cuts row 3 out of its own array, without a copy."""
    held = IMAGE[:, 2:4]
    found = cut(held, ((0, 1), (2, 4), (0, 6)), ((0, 1), (3, 4), (0, 6)))
    assert np.array_equal(found, IMAGE[:, 3:4])
    assert np.shares_memory(found, IMAGE)
    assert cut(np.array(3.0), None, ()) == 3.0


def test_pieces_come_back_as_views_of_the_payload() -> None:
    """What was packed is unpacked with its type and place, a band of rows and a scalar included, and not copied."""
    band = IMAGE[:, 1:3, 2:5]
    scalar = np.array(7, np.int32)
    header, payload = packed(
        Piece(5, ((0, 1), (1, 3), (2, 5)), band), Piece(6, ((0, 3),), SCORES), Piece(8, (), scalar)
    )
    found = pieces_of(header, payload)
    assert [(one.tensor, one.box) for one in found] == [(5, ((0, 1), (1, 3), (2, 5))), (6, ((0, 3),)), (8, ())]
    assert np.array_equal(found[0].array, band)
    assert found[1].array.tobytes() == SCORES.tobytes()
    assert (found[2].array.shape, int(found[2].array)) == ((), 7)
    assert np.shares_memory(found[0].array, np.frombuffer(payload, np.uint8))


def test_header_keeps_what_the_attempt_is() -> None:
    """Every slice carries the origin's choice, the time left and the times so far; no time left is never negative."""
    header, _ = packed(Piece(6, ((0, 3),), SCORES))
    assert passage_of(header) == PASSAGE
    assert (header.stage, header.part, header.source_stage, header.source_part, header.left_ms) == (2, 0, 1, 0, 1500)
    assert header.times == (StageTime(0, 0, B, 1.5, 24),)
    assert header_of(PASSAGE, Parcel(2, 0, ()), (1, 0), -4, ()).left_ms == 0


@pytest.mark.parametrize(
    "change",
    [{"shape": (4,)}, {"dtype": "float64"}, {"dtype": "object"}, {"box": ((0, 2),)}, {"box": ((0, 3), (0, 1))}],
    ids=["shape", "size", "type", "box", "rank"],
)
def test_header_that_does_not_describe_its_bytes_is_refused(change: dict[str, object]) -> None:
    """Shape, type and box must agree with each other and with the payload."""
    header, payload = packed(Piece(6, ((0, 3),), SCORES))
    wrong = msgspec.structs.replace(header.tensors[0], **change)
    with pytest.raises(PeerError):
        pieces_of(msgspec.structs.replace(header, tensors=(wrong,)), payload)


def test_payload_of_another_length_is_refused() -> None:
    """Bytes missing or left over are the sender's error."""
    header, payload = packed(Piece(6, ((0, 3),), SCORES))
    for wrong in (payload[:-1], memoryview(bytes(payload) + b"x")):
        with pytest.raises(PeerError):
            pieces_of(header, wrong)
