"""What every part of a split run reads and makes, from the card alone; and why a split is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from meshnn.errors import ModelError
from meshnn.graph.card import Card, CardOperator, CardTensor
from meshnn.graph.splits.boxes import Box, hull, interval_of, parts_of, shares_problem, sizes, volume, whole, with_axis
from meshnn.graph.splits.windows import made_places, read_channels, read_places
from meshnn.graph.verify import refuse

Split = Literal["none", "output", "input", "spatial"]
SPLITS: tuple[Split, ...] = ("none", "output", "input", "spatial")

DENSE = ("dense", "fc")


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of a part: the box of its output it makes, and the box of each activation it reads."""

    operator: int
    made: Box
    read: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One part of a split run. `needs` and `gives` are boxes by tensor index of the file, in the part's own order.

    `regions` are the boxes the part holds of every tensor in it, `steps` its operators in order. `sums` marks a part
    whose output is one addend of the whole.
    """

    needs: dict[int, Box]
    gives: dict[int, Box]
    regions: dict[int, Box]
    steps: tuple[Step, ...]
    sums: bool


def refusal(card: Card, first: int, last: int, split: Split, shares: tuple[int, ...] | None = None) -> str | None:
    """Why operators `first` to `last` cannot be split so (into these shares, where given); None where they can."""
    try:
        if shares is None:
            lengths = share_lengths(card, first, last, split)
            if split != "none" and lengths[0] < 2:
                return f"there is only one element to divide on axes of {lengths}"
            shares = tuple(range(0, lengths[0] + 1, lengths[0])) if lengths else ()
            layout(card, first, last, split, shares, 0)
        else:
            for part in range(max(1, parts_of(shares)) if split != "none" else 1):
                layout(card, first, last, split, shares, part)
    except ModelError as error:
        return str(error)
    return None


def share_lengths(card: Card, first: int, last: int, split: Split) -> tuple[int, ...]:
    """The lengths of the axes that shares divide: channels, inputs, or (rows, columns); ModelError where refused."""
    found = card.recall(("lengths", first, last, split), lambda: _lengths_or_refusal(card, first, last, split))
    if isinstance(found, str):
        raise ModelError(found)
    return found


def _lengths_or_refusal(card: Card, first: int, last: int, split: Split) -> tuple[int, ...] | str:
    """The answer of `share_lengths`, or the refusal's text."""
    try:
        return _find_lengths(card, first, last, split)
    except ModelError as error:
        return str(error)


def _find_lengths(card: Card, first: int, last: int, split: Split) -> tuple[int, ...]:
    """The answer of `share_lengths`; ModelError where refused."""
    if split not in SPLITS:
        raise _refused(first, last, f"there is no split {split}")
    reason = card.refusal(first, last)
    if reason is not None:
        raise _refused(first, last, reason)
    if split == "none":
        return ()
    steps = _running(card, first, last)
    tensors = card.by_index()
    for index, operator in steps:
        problem = _operator_problem(operator, split, tensors, at_end=index == steps[-1][0])
        if problem:
            raise _refused(first, last, f"operator {index} ({operator.kind}): {problem}")
    if split == "spatial":
        shape = tensors[steps[-1][1].outputs[0]].shape
        return shape[1], shape[2]
    if split == "input":
        return (_only_sum(card, first, last, steps, tensors),)
    return (_channels(card, steps, tensors),)


def _operator_problem(operator: CardOperator, split: Split, tensors: Mapping[int, CardTensor], *, at_end: bool) -> str:
    """Why one operator of a run cannot be split so; empty where it can. An input split sums only at its end."""
    if split == "spatial":
        reason, rank = operator.no_spatial, 4
    elif split == "input" and at_end:
        reason, rank = operator.no_input, 1
        if not reason and operator.geometry.form not in DENSE:
            reason = "does not sum over its inputs"
    else:
        reason, rank = operator.no_output, 1
    if not reason and any(len(tensors[t].shape) < rank for t in (*operator.inputs, *operator.outputs)):
        reason = "works on tensors without the axes to divide"
    return reason


def _running(card: Card, first: int, last: int) -> list[tuple[int, CardOperator]]:
    """The operators of a range that run, with their indices."""
    return [(i, card.operators[i]) for i in range(first, last + 1) if not card.operators[i].constant]


def _channels(card: Card, steps: list[tuple[int, CardOperator]], tensors: Mapping[int, CardTensor]) -> int:
    """The channels an output split divides: those of the dense operator at its head, else those it reads."""
    head = steps[0][1]
    return tensors[head.outputs[0] if head.geometry.form in DENSE else head.inputs[0]].shape[-1]


def _only_sum(
    card: Card, first: int, last: int, steps: list[tuple[int, CardOperator]], tensors: Mapping[int, CardTensor]
) -> int:
    """The inputs an input split divides: the run must end in the one dense operator whose result is summed."""
    dense = [index for index, operator in steps if operator.geometry.form in DENSE]
    given = card.fragment_outputs(first, last)
    if dense != [steps[-1][0]] or given != steps[-1][1].outputs:
        raise _refused(first, last, "an input split ends in one dense operator and gives only its result")
    return tensors[steps[-1][1].inputs[0]].shape[-1]


def _refused(first: int, last: int, reason: str) -> ModelError:
    """The refusal of a split."""
    return refuse("no_split", f"operators {first} to {last}", reason)


def layout(card: Card, first: int, last: int, split: Split, shares: tuple[int, ...], part: int) -> Layout:
    """What part `part` of a split needs, makes and gives; ModelError with the reason where it is refused.

    `shares` are boundaries in elements of `share_lengths`, from 0 to the length; for tiles rows, -1, columns.
    """
    lengths = share_lengths(card, first, last, split)
    problem = None
    if split != "none":
        problem = shares_problem(shares, lengths)
        if problem is None and not 0 <= part < parts_of(shares):
            problem = f"there is no part {part} of {parts_of(shares)}"
    if problem is not None:
        raise _refused(first, last, problem)
    tensors = card.by_index()
    given = card.fragment_outputs(first, last)
    for t in given if split != "none" else ():
        if not first <= tensors[t].producer <= last or t not in card.operators[tensors[t].producer].outputs:
            raise _refused(first, last, f"output {t} is made by no operator of the run")
    gives = {t: _share_of(tensors[t], split, shares, part, lengths) for t in given}
    for t, box in gives.items() if split != "none" else ():
        if volume(box) == 0:
            raise _refused(first, last, f"a part would make nothing of output {t}")
    summed = interval_of(shares, part)[0] if split == "input" else None
    regions, steps = _walk(card, first, last, split, dict(gives), summed)
    needs = {t: regions[t] for t in card.fragment_inputs(first, last) if t in regions}
    return Layout(needs, gives, regions, steps, split == "input")


def _walk(
    card: Card, first: int, last: int, split: Split, regions: dict[int, Box], summed: tuple[int, int] | None
) -> tuple[dict[int, Box], tuple[Step, ...]]:
    """From what is given back to what is needed: the box of every tensor, and the operators that make them."""
    tensors = card.by_index()
    running = _running(card, first, last)
    steps: list[Step] = []
    for index, operator in reversed(running):
        wanted = [t for t in operator.outputs if t in regions]
        if not wanted:
            continue
        out = regions[wanted[0]]
        if split == "none":
            regions.update({t: whole(tensors[t].shape) for t in operator.outputs})
            read = [whole(tensors[t].shape) for t in operator.inputs]
        elif split == "spatial":
            out = regions[wanted[0]] = made_places(operator.geometry, out)
            read = [read_places(operator.geometry, out, tensors[t].shape) for t in operator.inputs]
        else:
            ends = summed if index == running[-1][0] else None
            read = [_read_channels(operator, out, tensors[t], ends) for t in operator.inputs]
        problem = None if split == "none" else _read_problem(operator, out, read, tensors, first, split)
        if problem is not None:
            raise _refused(first, last, f"operator {index} ({operator.kind}): {problem}")
        steps.append(Step(index, out, tuple(read)))
        for t, box in zip(operator.inputs, read, strict=True):
            regions[t] = hull(regions[t], box) if t in regions else box
    return regions, tuple(reversed(steps))


def _read_problem(
    operator: CardOperator, out: Box, read: list[Box], tensors: Mapping[int, CardTensor], first: int, split: Split
) -> str | None:
    """Why an operator cannot read these boxes: they lie in padding, or other parts make some of them."""
    if any(volume(box) <= 0 or min(sizes(box)) < 0 for box in read):
        return "a part would lie in padding alone"
    inside = any(tensors[t].producer >= first for t in operator.inputs)
    if split == "output" and operator.geometry.form in DENSE and inside:
        return "reads channels that other parts make"
    if split in ("output", "input") and any(end % operator.geometry.multiplier for end in out[-1]):
        return "makes several channels of one, and a boundary lies between them"
    single = split == "output" and operator.geometry.form == "dense" and out[-1][1] - out[-1][0] == 1
    if single and tensors[operator.inputs[0]].shape[-1] == 1 < tensors[operator.outputs[0]].shape[-1]:
        return "one channel made of one channel runs another kernel, whose last bit may differ"
    return None


def _share_of(tensor: CardTensor, split: Split, shares: tuple[int, ...], part: int, lengths: tuple[int, ...]) -> Box:
    """The box of a run's output that one part gives."""
    box = whole(tensor.shape)
    if split in ("none", "input"):
        return box
    intervals = interval_of(shares, part)
    if split == "output":
        low, high = intervals[0]
        factor, rest = divmod(tensor.shape[-1], lengths[0])
        if rest:
            raise refuse("no_split", f"tensor {tensor.index}", f"its channels are no multiple of {lengths[0]}")
        return with_axis(box, -1, (low * factor, high * factor))
    for axis, (low, high) in enumerate(intervals):
        size, length = tensor.shape[axis + 1], lengths[axis]
        box = with_axis(box, axis + 1, (round(low * size / length), round(high * size / length)))
    return box


def _read_channels(operator: CardOperator, out: Box, tensor: CardTensor, interval: tuple[int, int] | None) -> Box:
    """The box an operator that stays on its channels reads; for the sum of an input split, its own inputs."""
    channels = interval if interval is not None else read_channels(operator.geometry, out[-1], tensor.shape)
    return with_axis(whole(tensor.shape), -1, channels)
