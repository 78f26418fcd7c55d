"""Explicit plans that put as much of a network as possible under one split: pure, from its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from meshnn.errors import ModelError
from meshnn.graph.card import Card
from meshnn.graph.splits.balance import balanced, proportional
from meshnn.graph.splits.layout import DENSE, Split, refusal

Row = Literal["layer-wise", "output", "depthwise", "spatial", "mixed", "input", "output+input"]
ROWS: tuple[Row, ...] = ("layer-wise", "output", "depthwise", "spatial", "mixed", "input", "output+input")
DIVISIONS: dict[str, tuple[float, ...]] = {"2": (1, 1), "3": (1, 1, 1), "4": (1, 1, 1, 1), "3:1": (3, 1)}
# Short runs, so that many stages under one split follow each other and hand on only what the next part lacks.
RUN_MAX = 6
# Every request is asked alone: assembly for more would only take the devices' memory.
WINDOW = 2

Stage = dict[str, Any]
Choice = Callable[[int, Split], Sequence[tuple[Split, int]]]
"""For an operator and the split of the stage before: the splits to try there, each with the longest run."""


@dataclass(frozen=True, slots=True)
class Case:
    """A plan for some devices: `stages` as JSON, how many of them are `divided`; none where no split applies."""

    row: Row
    division: str
    stages: tuple[Stage, ...]
    divided: int

    @property
    def exact(self) -> bool:
        """Whether no partial sums are in it."""
        return not any(group["split"] == "input" for stage in self.stages for group in stage["groups"])

    @property
    def plan(self) -> dict[str, Any]:
        """What a person would write."""
        return {"window": WINDOW, "share": 1, "lanes": [{"stages": list(self.stages)}]}


def cases(card: Card, names: Sequence[str], rows: Sequence[Row] = ROWS) -> Iterator[Case]:
    """A plan for every one of `rows` and every division that applies, over the first of `names`.

    Where a network's partial sums are refused the plan for `input` is there all the same: it must be refused.
    """
    for row in rows:
        for division, speeds in DIVISIONS.items():
            devices = names[: len(speeds)]
            stages = _layers(card, speeds, devices) if row == "layer-wise" else _cover(card, row, speeds, devices)
            divided = sum(len(stage["groups"][0]["shards"]) > 1 for stage in stages)
            if row == "input" and not divided:
                stages = _refused(card, speeds, devices)
            # A pair needs a stage of each kind; without sums it would be the row `output` again.
            paired = row != "output+input" or any(stage["groups"][0]["split"] == "input" for stage in stages)
            if paired and (divided or row in ("layer-wise", "input")):
                yield Case(row, division, tuple(stages), divided)


def _stage(first: int, last: int, devices: Sequence[str], split: Split = "none", shares: Sequence[int] = ()) -> Stage:
    shards = [{"device": name} for name in devices]
    return {"first": first, "last": last, "groups": [{"split": split, "shares": list(shares), "shards": shards}]}


def _layers(card: Card, speeds: Sequence[float], devices: Sequence[str]) -> list[Stage]:
    """A pipeline: every device a run of operators, its work in proportion to its speed as far as cuts allow."""
    total, count = card.work(0, len(card.operators) - 1), len(card.operators)
    legal = [p for p in range(1, count) if card.cuttable(p) is None and not card.operators[p - 1].constant]
    ends, reached = [0], 0.0
    for place, speed in enumerate(speeds[:-1]):
        reached += speed
        wanted = total * reached / sum(speeds)
        left = [p for p in legal if p > ends[-1]]
        left = left[: len(left) - (len(speeds) - 2 - place)]
        ends.append(min(left, key=lambda p: abs(card.work(0, p - 1) - wanted)))
    ends.append(count)
    return [_stage(a, b - 1, [name]) for a, b, name in zip(ends, ends[1:], devices, strict=False)]


def _choice(card: Card, row: Row) -> Choice:
    """Which splits a row tries where."""
    half = len(card.operators) // 2

    def choose(index: int, before: Split) -> Sequence[tuple[Split, int]]:
        if row == "depthwise":
            return (("output", 1),) if card.operators[index].kind == "DEPTHWISE_CONV_2D" else ()
        if row == "mixed":
            return (("spatial", RUN_MAX),) if index < half else (("output", RUN_MAX), ("spatial", RUN_MAX))
        if row == "output+input":
            return (("input", RUN_MAX), ("output", 1)) if before == "output" else (("output", RUN_MAX),)
        assert row in ("output", "spatial", "input")
        return ((row, RUN_MAX),)

    return choose


def _cover(card: Card, row: Row, speeds: Sequence[float], devices: Sequence[str]) -> list[Stage]:
    """Stages from the first operator to the last: under the row's split where it applies, else whole."""
    choose, begin, index = _choice(card, row), 0, 0
    stages: list[Stage] = []
    before: Split = "none"
    while index < len(card.operators):
        whole = any(not card.operators[i].constant for i in range(begin, index))
        first = index if whole else begin
        found = None if card.operators[index].constant else _longest(card, first, index, choose(index, before), speeds)
        if found is None:
            index += 1
            continue
        if whole:
            stages.append(_stage(begin, index - 1, [devices[len(stages) % len(devices)]]))
        last, before, shares = found
        stages.append(_stage(first, last, devices, before, shares))
        begin = index = last + 1
    if begin < len(card.operators):
        stages.append(_stage(begin, len(card.operators) - 1, [devices[len(stages) % len(devices)]]))
    return stages


def _longest(
    card: Card, first: int, index: int, choices: Sequence[tuple[Split, int]], speeds: Sequence[float]
) -> tuple[int, Split, tuple[int, ...]] | None:
    """The longest run that can be split so: its last operator, the split, the shares; None where there is none."""
    for split, most in choices:
        for last in range(min(index + most, len(card.operators)) - 1, index - 1, -1):
            try:
                shares = balanced(card, first, last, split, speeds)
            except ModelError:
                continue
            if shares is not None and refusal(card, first, last, split, shares) is None:
                return last, split, shares
    return None


def _refused(card: Card, speeds: Sequence[float], devices: Sequence[str]) -> list[Stage]:
    """The largest dense operator by its inputs, everything else whole: a plan that integer networks must refuse."""
    dense = [i for i, operator in enumerate(card.operators) if operator.geometry.form in DENSE]
    able = [i for i in dense if card.refusal(i, i) is None and 0 < i < len(card.operators) - 1]
    largest = max(able, key=lambda i: card.operators[i].weight_bytes)
    inputs = card.by_index()[card.operators[largest].inputs[0]].shape[-1]
    return [
        _stage(0, largest - 1, devices[:1]),
        _stage(largest, largest, devices, "input", proportional(inputs, speeds, 1)),
        _stage(largest + 1, len(card.operators) - 1, devices[-1:]),
    ]
