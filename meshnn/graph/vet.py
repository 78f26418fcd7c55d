"""What must hold of a card from another device before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from meshnn.errors import ModelError
from meshnn.graph.card import CARD_VERSION, Card, CardOperator, CardTensor
from meshnn.graph.verify import refuse

_MOST_BYTES = 1 << 50
_MOST_OPERATORS = 1 << 16
_MOST_RANK = 8


def vet(card: Card) -> None:
    """Check that a card is of this version and coherent; ModelError at the first thing that does not hold.

    What passes never makes a planner or a split rule raise anything but ModelError.
    """
    for problem in _problems(card):
        raise problem


def _problems(card: Card) -> Iterator[ModelError]:
    """Everything that does not hold of a card."""
    place = f"card {card.name}"
    if card.version != CARD_VERSION:
        yield refuse("card_version", place, f"is of version {card.version}, this device knows {CARD_VERSION}")
    if not 0 < len(card.operators) <= _MOST_OPERATORS or not 0 <= card.size_bytes <= _MOST_BYTES:
        yield refuse("bad_card", place, f"tells of {len(card.operators)} operators in {card.size_bytes} bytes")
    known = card.by_index()
    if len(known) != len(card.tensors):
        yield refuse("bad_card", place, "lists a tensor twice")
    if not card.inputs or not card.outputs or any(known.get(t.index) != t for t in (*card.inputs, *card.outputs)):
        yield refuse("bad_card", place, "has inputs or outputs that are not among its tensors")
    if any(not 0 < position < len(card.operators) for position in card.refused):
        yield refuse("bad_card", place, "refuses boundaries that do not exist")
    for tensor in card.tensors:
        if not _tensor_holds(tensor, len(card.operators)):
            yield refuse("bad_card", place, f"tensor {tensor.index} contradicts itself")
    for index, operator in enumerate(card.operators):
        if not _operator_holds(card, index, operator):
            yield refuse("bad_card", place, f"operator {index} ({operator.kind}) contradicts the rest")


def _tensor_holds(tensor: CardTensor, total: int) -> bool:
    """Whether a tensor's row is possible among `total` operators."""
    sizes = len(tensor.shape) <= _MOST_RANK and all(0 <= size < 1 << 31 for size in tensor.shape)
    order = -1 <= tensor.producer < total and all(tensor.producer < reader <= total for reader in tensor.consumers)
    quantization = tensor.quantization
    scaled = quantization is None or math.isfinite(quantization.scale)
    return tensor.index >= 0 and sizes and order and scaled and 0 <= tensor.size_bytes <= _MOST_BYTES


def _operator_holds(card: Card, index: int, operator: CardOperator) -> bool:
    """Whether an operator's row agrees with the tensors' and its numbers can be meant."""
    known = card.by_index()
    counts = (operator.macs, operator.weight_bytes, operator.activation_bytes, operator.scratch_bytes)
    numbers = all(0 <= count <= _MOST_BYTES for count in counts) and math.isfinite(operator.work) and operator.work >= 0
    reads = all(t in known and index in known[t].consumers for t in operator.inputs)
    makes = all(t in known and known[t].producer == index for t in operator.outputs)
    depends = all(0 <= other < index and card.operators[other].constant for other in operator.depends)
    if not (numbers and reads and makes and depends):
        return False
    return operator.constant or (bool(operator.outputs) and _geometry_holds(card, operator))


def _geometry_holds(card: Card, operator: CardOperator) -> bool:
    """Whether an operator's geometry can be computed with."""
    geometry = operator.geometry
    if not geometry.form:
        return bool(operator.no_output and operator.no_input and operator.no_spatial)
    positive = (*geometry.window, *geometry.stride, *geometry.dilation, geometry.block, geometry.multiplier)
    sides = (*geometry.before, *geometry.after, *(side for pair in geometry.pads for side in pair))
    tensors = [card.by_index()[t] for t in (*operator.inputs, *operator.outputs)]
    rank = len(tensors[-1].shape)
    shaped = all(tensor.shape and math.prod(tensor.shape) for tensor in tensors)
    padded = geometry.form != "pad" or len(geometry.pads) == rank
    joined = geometry.form != "concat" or 0 <= geometry.axis < rank
    alike = geometry.form in ("reshape", "channelwise", "fc") or all(len(t.shape) == rank for t in tensors)
    bounded = all(0 < n < 1 << 31 for n in positive) and all(0 <= n < 1 << 31 for n in sides)
    return bool(operator.inputs) and bounded and shaped and padded and joined and alike
