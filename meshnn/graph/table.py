"""What `meshnn models show FILE` prints: a row per operator, and the cheapest places to cut."""

from __future__ import annotations

from typing import NamedTuple

from meshnn.graph.card import Card


class Row(NamedTuple):
    """One operator: `shape` and `dtype` of its first output, bytes, and `work` in ms of a reference machine."""

    operator: int
    kind: str
    shape: tuple[int, ...]
    dtype: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    work: float


class CutRow(NamedTuple):
    """A boundary: what crosses before operator `position`, and the share of the work that lies before it."""

    position: int
    tensors: tuple[int, ...]
    size_bytes: int
    work_before: float


def rows(card: Card) -> tuple[Row, ...]:
    """The operator table; an operator that only computes constants has an empty shape and dtype."""
    tensors = card.by_index()
    made = [tensors.get(op.outputs[0]) if op.outputs else None for op in card.operators]
    return tuple(
        Row(
            operator=index,
            kind=op.kind,
            shape=tensor.shape if tensor is not None else (),
            dtype=tensor.dtype if tensor is not None else "",
            macs=op.macs,
            weight_bytes=op.weight_bytes,
            activation_bytes=op.activation_bytes,
            work=op.work,
        )
        for index, (op, tensor) in enumerate(zip(card.operators, made, strict=True))
    )


def cuts(card: Card) -> tuple[CutRow, ...]:
    """Every boundary that can be cut, in order of position."""
    tensors = card.by_index()
    total = card.work(0, len(card.operators) - 1) or 1.0
    return tuple(
        CutRow(
            position=position,
            tensors=crossing,
            size_bytes=sum(tensors[t].size_bytes for t in crossing),
            work_before=card.work(0, position - 1) / total,
        )
        for position in range(1, len(card.operators))
        if card.cuttable(position) is None and (crossing := card.crossing(position))
    )


def cheapest_cuts(card: Card, count: int = 10) -> tuple[CutRow, ...]:
    """The `count` boundaries that send the fewest bytes, the cheapest first, earlier ones first among equals."""
    return tuple(sorted(cuts(card), key=lambda row: (row.size_bytes, row.position))[:count])
