"""What a part costs, and boundaries that give each part work in proportion to its device's speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshnn.errors import ModelError
from meshnn.graph.card import Card, CardOperator
from meshnn.graph.cost import arena_bytes as peak_bytes
from meshnn.graph.cost import work_ms
from meshnn.graph.ir import BITS
from meshnn.graph.splits.boxes import SEPARATOR, Box, volume, whole, with_axis
from meshnn.graph.splits.layout import DENSE, Layout, Split, Step, layout, share_lengths
from meshnn.graph.splits.windows import reach

ALIGN = 16
"""Channels are dealt out in multiples of this where there are enough of them: kernels work in such blocks."""

_CONSTANT_SLACK_BYTES = 64
_ROUNDS = 24


def work(card: Card, first: int, last: int, split: Split, shares: tuple[int, ...], part: int) -> float:
    """The relative cost of one part, on the scale of `card.work`; halos computed twice count twice."""
    if split == "none":
        return card.work(first, last)
    return _work(card, layout(card, first, last, split, shares, part))


def weight_bytes(card: Card, first: int, last: int, split: Split, shares: tuple[int, ...], part: int) -> int:
    """The bytes of constants in one part's file, from the card; never less than what it holds."""
    if split == "none":
        return card.weight_bytes(first, last)
    plan = layout(card, first, last, split, shares, part)
    kept = 0.0
    for step in plan.steps:
        operator = card.operators[step.operator]
        share = _weight_share(card, operator, step, plan)
        own = operator.weight_bytes + sum(card.operators[index].weight_bytes for index in operator.depends)
        kept += own * share + _bias_bytes(operator, card) * (1 - share) + 4 * _CONSTANT_SLACK_BYTES
    return int(kept) + _CONSTANT_SLACK_BYTES


def arena_bytes(card: Card, first: int, last: int, split: Split, shares: tuple[int, ...], part: int) -> int:
    """The bytes of activations one part's interpreter holds at once, padded copies and slices included."""
    if split == "none":
        return card.arena_bytes(first, last)
    plan = layout(card, first, last, split, shares, part)
    tensors = card.by_index()
    bits = {t: BITS.get(tensors[t].dtype, 0) for t in plan.regions}
    end = len(plan.steps)
    begin, until = dict.fromkeys(plan.needs, 0), dict.fromkeys((*plan.needs, *plan.gives), end)
    spans: list[tuple[int, int, int]] = []
    scratch = 0
    for place, step in enumerate(plan.steps):
        operator = card.operators[step.operator]
        scratch += sum(card.operators[index].scratch_bytes for index in operator.depends)
        for t in operator.outputs:
            begin[t] = place
            until.setdefault(t, place)
        for t, box in zip(operator.inputs, step.read, strict=True):
            until[t] = max(until.get(t, 0), place)
            extra = _padded(operator, step, box, tensors[t].shape) if split == "spatial" else box
            if extra != plan.regions[t]:
                spans.append((place, place, (volume(extra) * bits[t] + 7) // 8))
    spans += [(place, end, (volume(box) * bits[t] + 7) // 8) for t, box in plan.gives.items() for place in (end - 1,)]
    spans += [(begin[t], until[t], (volume(box) * bits[t] + 7) // 8) for t, box in plan.regions.items() if t in begin]
    return peak_bytes(spans) + scratch


def _work(card: Card, plan: Layout) -> float:
    """The cost of the operators of a layout."""
    tensors = card.by_index()
    made = 0.0
    for step in plan.steps:
        operator = card.operators[step.operator]
        out = tensors[operator.outputs[0]]
        share = volume(step.made) / max(1, volume(whole(out.shape)))
        if plan.sums and operator.geometry.form in DENSE:
            share *= (step.read[0][-1][1] - step.read[0][-1][0]) / tensors[operator.inputs[0]].shape[-1]
        moved = [*zip(operator.inputs, step.read, strict=True), (operator.outputs[0], step.made)]
        activations = sum(volume(box) * BITS.get(tensors[t].dtype, 0) / 8 for t, box in moved)
        weights = operator.weight_bytes * _weight_share(card, operator, step, plan)
        integer = out.dtype in ("int8", "uint8", "int16")
        made += work_ms(operator.kind, int(operator.macs * share), int(weights), int(activations), integer=integer)
    return made


def _weight_share(card: Card, operator: CardOperator, step: Step, plan: Layout) -> float:
    """The share of an operator's constants that its part holds."""
    if operator.geometry.form not in (*DENSE, "depthwise"):
        return 1.0
    tensors = card.by_index()
    if plan.sums and operator.geometry.form in DENSE:
        low, high = step.read[0][-1]
        return (high - low) / tensors[operator.inputs[0]].shape[-1]
    low, high = step.made[-1]
    return (high - low) / tensors[operator.outputs[0]].shape[-1]


def _bias_bytes(operator: CardOperator, card: Card) -> int:
    """The most a bias may take: four bytes for every output channel, and eight in 16-bit networks."""
    if operator.geometry.form not in (*DENSE, "depthwise"):
        return 0
    return 8 * card.by_index()[operator.outputs[0]].shape[-1]


def _padded(operator: CardOperator, step: Step, box: Box, shape: tuple[int, ...]) -> Box:
    """What a window reads with its missing padding made explicit."""
    if operator.geometry.form not in ("dense", "depthwise", "pool"):
        return box
    for axis in (0, 1):
        side = reach(operator.geometry, axis, step.made[axis + 1], shape[axis + 1])
        low, high = box[axis + 1]
        box = with_axis(box, axis + 1, (low, high + side.before + side.after))
    return box


def balanced(
    card: Card, first: int, last: int, split: Split, speeds: Sequence[float], columns: Sequence[float] = ()
) -> tuple[int, ...] | None:
    """Boundaries for parts whose devices have these relative speeds, by cost; None where there is too little to divide.

    Spatial boundaries equalise the time of rows with their halos; with `columns` tiles are made, of those relative
    widths. Channels are dealt in proportion, in multiples of 16 where there are enough. ModelError where refused.
    """
    lengths = share_lengths(card, first, last, split)
    if len(speeds) > lengths[0] or (columns and len(columns) > lengths[-1]):
        return None
    if split != "spatial":
        aligned = lengths[0] // ALIGN >= 2 * len(speeds)
        return proportional(lengths[0], speeds, ALIGN if aligned else 1)
    rows = _by_cost(lengths[0], speeds, lambda low, high: _rows_work(card, first, last, low, high, lengths[0]))
    if columns:
        return (*rows, SEPARATOR, *proportional(lengths[1], columns, 1))
    return rows


def proportional(size: int, weights: Sequence[float], align: int) -> tuple[int, ...]:
    """Boundaries that divide `size` in proportion to weights, at multiples of `align`, no part empty."""
    steps = -(-size // align)
    sum_of = sum(weights)
    made, reached = [0], 0.0
    for place, weight in enumerate(weights[:-1]):
        reached += weight
        left = len(weights) - 1 - place
        made.append(min(max(round(steps * reached / sum_of), made[-1] + 1), steps - left))
    return (*(min(size, boundary * align) for boundary in made), size)


def _rows_work(card: Card, first: int, last: int, low: int, high: int, length: int) -> float:
    """The work of output rows [low, high) of a run, halos included; infinite where they cannot be a part."""
    boundaries = sorted({0, low, high, length})
    try:
        return work(card, first, last, "spatial", tuple(boundaries), boundaries.index(low))
    except ModelError:
        return float("inf")


def _by_cost(length: int, speeds: Sequence[float], cost: Callable[[int, int], float]) -> tuple[int, ...]:
    """Boundaries that make the slowest part as fast as possible: bisection on the time every part may take."""
    best = proportional(length, speeds, 1)
    low, high = 0.0, max(cost(a, b) / s for a, b, s in zip(best, best[1:], speeds, strict=False))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        found = _within(middle, length, speeds, cost)
        if found is None:
            low = middle
        else:
            best, high = found, middle
        if high - low < 0.01 * high:
            break
    return best


def _within(
    time: float, length: int, speeds: Sequence[float], cost: Callable[[int, int], float]
) -> tuple[int, ...] | None:
    """Boundaries by which every part ends within `time`, if there are any: each takes as many rows as it can."""
    made = [0]
    for place, speed in enumerate(speeds):
        left = len(speeds) - 1 - place
        low, high = made[-1] + 1, length - left
        if low > high or cost(made[-1], low) > time * speed:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if cost(made[-1], middle) <= time * speed:
                low = middle
            else:
                high = middle - 1
        made.append(low)
    return tuple(made) if made[-1] == length else None
