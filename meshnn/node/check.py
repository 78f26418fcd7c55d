"""Every split of a model, and every group of a plan, judged against one run of the whole model. Pure.

Each split is judged at its own merged tensors, fed with the tensors recorded from that run: equal bytes, or for float
partial sums at most 1e-5 of the tensor's largest magnitude. What the deviation does at the model's outputs is
reported, not judged.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import MeshError
from meshnn.graph import cut
from meshnn.graph.card import Card
from meshnn.graph.ir import Graph
from meshnn.graph.splits import balance
from meshnn.graph.splits.boxes import parts_of
from meshnn.graph.splits.layout import layout, refusal, share_lengths
from meshnn.graph.splits.merge import exact
from meshnn.node.executor import Executor, Run
from meshnn.node.slices import Array
from meshnn.plan.plan import Group, Plan, Shard, Split, Stage
from meshnn.plan.routes import ways

TOLERANCE = 1e-5
"""How far a float partial sum may be from the whole, relative to the largest magnitude of the tensor."""

SPLITS: tuple[Split, ...] = ("output", "input", "spatial")
# Fused runs tried of a model, and how long one may be.
RUNS_MAX = 40
RUN_LENGTH_MAX = 24
# Of so many runs the cost is worked out part by part.
RUNS_WEIGHED = 240
# Ways through a plan that are followed from end to end.
WAYS_MAX = 16
# What moving a byte costs beside computing, in milliseconds on the reference machine: 100 Mb/s.
BYTE_MS = 1 / 11_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One split to be tried: of which operators (inclusive), how, in which shares; `refused` says why it is not."""

    first: int
    last: int
    split: Split
    shares: tuple[int, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    `error` is the largest deviation at the merged tensors, relative to their largest magnitude; 0.0 where every byte
    was equal. `at_outputs` is the same at the model's outputs, where the merged tensors deviate. `crashed` says what
    went wrong with a split that was allowed.
    """

    trial: Trial
    error: float = 0.0
    at_outputs: float | None = None
    crashed: str = ""

    @property
    def ran(self) -> bool:
        """Whether it was executed."""
        return not self.trial.refused and not self.crashed

    @property
    def good(self) -> bool:
        """Whether it was refused, or ran within its class."""
        if self.crashed:
            return False
        return bool(self.trial.refused) or self.error <= (0.0 if exact(self.trial.split) else TOLERANCE)


@dataclass(frozen=True, slots=True)
class Way:
    """One way through a plan, followed from the inputs to the outputs; `error` is the largest deviation there."""

    lane: int
    groups: tuple[int, ...]
    exact: bool
    error: float

    @property
    def good(self) -> bool:
        """Whether a way that must be exact is; the deviation of one with partial sums is not judged here."""
        return self.error == 0.0 or not self.exact


class Bench:
    """A model with the tensors of one run of the whole of it: what every split is fed with and compared to."""

    def __init__(self, graph: Graph, card: Card, inputs: Mapping[int, Array], run: Run) -> None:
        """Run the whole model once, with every tensor that can cross a boundary as an output. ModelError."""
        self.executor = Executor(graph, card, run)
        self.card = card
        self._graph = graph
        self._run = run
        kept = tuple(t for t in _crossing(graph) if t not in graph.inputs)
        made = run(dataclasses.replace(graph, outputs=kept, metadata=(), file=None), [inputs[t] for t in graph.inputs])
        self.values: dict[int, Array] = {**inputs, **dict(zip(kept, made, strict=True))}

    def judge(self, trial: Trial) -> Outcome:
        """Run every part of one split on the recorded tensors and compare what they merge to."""
        if trial.refused:
            return Outcome(trial)
        parts = 1 if trial.split == "none" else parts_of(trial.shares)
        group = Group((Shard(DeviceId(""), BootId("")),) * parts, trial.split, trial.shares)
        try:
            merged = self.executor.merge(Stage(trial.first, trial.last, (group,)), group, self.values)
            error = max(difference(merged[t], self.values[t]) for t in merged)
            return Outcome(trial, error, self._downstream(trial.last, merged) if error else None)
        except (MeshError, ValueError, KeyError, IndexError, AssertionError) as failure:
            return Outcome(trial, crashed=f"{type(failure).__name__}: {failure}")

    def plan(self, plan: Plan) -> Iterator[Outcome]:
        """Every group of a plan judged by itself, in lane, stage and group order; equal ones once."""
        groups = [
            Trial(stage.first, stage.last, group.split, group.shares)
            for lane in plan.lanes
            for stage in lane.stages
            for group in stage.groups
        ]
        yield from (self.judge(trial) for trial in dict.fromkeys(groups))

    def ways(self, plan: Plan, origin: DeviceId | None = None) -> Iterator[Way]:
        """Ways through a plan, at most 16 of them, compared with the whole model at its outputs. MeshError.

        They are asked by `origin`: by the plan's first device unless another is named.
        """
        expected = self.executor.whole(self.values)
        asker = plan.devices()[0] if origin is None else origin
        for number, (lane, groups, _) in enumerate(ways(plan)):
            if number >= WAYS_MAX:
                return
            made = self.executor.follow(plan.lanes[lane], groups, self.values, asker)
            splits = [stage.groups[index].split for stage, index in zip(plan.lanes[lane].stages, groups, strict=True)]
            error = max((difference(made[t], expected[t]) for t in expected), default=0.0)
            yield Way(lane, groups, all(exact(split) for split in splits), error)

    def _downstream(self, last: int, merged: Mapping[int, Array]) -> float:
        """How far the model's outputs are from the whole's when everything behind a split reads what it merged to."""
        values, final = {**self.values, **merged}, len(self.card.operators) - 1
        if last < final:
            tail = cut.fragment(self._graph, last + 1, final)
            needed = self.card.fragment_inputs(last + 1, final)
            made = self._run(tail, [values[t] for t in needed])
            values.update(zip(self.card.fragment_outputs(last + 1, final), made, strict=True))
        return max((difference(values[t], self.values[t]) for t in self._graph.outputs), default=0.0)


def trials(card: Card, speeds: Sequence[float], runs_max: int = RUNS_MAX) -> list[Trial]:
    """Every split at every operator, then of the fused runs those that the cost model likes best.

    One part for each of `speeds`, its share in proportion; two parts and more are divided into tiles as well as rows.
    """
    found: list[Trial] = []
    for index, operator in enumerate(card.operators):
        if not operator.constant:
            first = 0 if all(one.constant for one in card.operators[:index]) else index
            found += [trial for split in SPLITS for trial in _trials_of(card, first, index, split, speeds)]
    liked = heapq.nlargest(runs_max, _runs(card, speeds), key=lambda entry: entry[0])
    return [*found, *(trial for _, trial in liked)]


def _trials_of(card: Card, first: int, last: int, split: Split, speeds: Sequence[float]) -> Iterator[Trial]:
    """A split of some operators in rows (or channels) and, where it has columns, in tiles; refused with the reason."""
    reason = refusal(card, first, last, split)
    if reason is not None:
        yield Trial(first, last, split, refused=reason)
        return
    lengths = share_lengths(card, first, last, split)
    if lengths[0] < len(speeds):
        yield Trial(first, last, split, refused=f"has {lengths[0]} to divide among {len(speeds)} parts")
    else:
        yield _divided(card, Trial(first, last, split, balance.balanced(card, first, last, split, speeds) or ()))
    if split == "spatial" and lengths[1] >= len(speeds):
        rows = 2 if len(speeds) % 2 == 0 and len(speeds) > 2 and lengths[0] >= 2 else 1
        columns = [1.0] * (len(speeds) // 2) if rows == 2 else list(speeds)
        tiles = balance.balanced(card, first, last, split, (1.0,) * rows, columns)
        yield _divided(card, Trial(first, last, split, tiles or ()))


def _divided(card: Card, trial: Trial) -> Trial:
    """The trial, refused where its shares are."""
    reason = refusal(card, trial.first, trial.last, trial.split, trial.shares)
    return trial if reason is None else dataclasses.replace(trial, refused=reason)


def _runs(card: Card, speeds: Sequence[float]) -> Iterator[tuple[float, Trial]]:
    """Fused runs that can be split so, with the milliseconds that each saves by the cost model."""
    found: list[tuple[float, int, int, Split]] = []
    for split in SPLITS:
        for first in range(len(card.operators)):
            for last in range(first + 1, min(first + RUN_LENGTH_MAX, len(card.operators))):
                if _blocked(card, last, split):
                    break
                if refusal(card, first, last, split) is None:
                    found.append((card.work(first, last), first, last, split))
    for whole, first, last, split in heapq.nlargest(RUNS_WEIGHED, found):
        for trial in _trials_of(card, first, last, split, speeds):
            if not trial.refused:
                yield whole - _cost(card, trial, speeds), trial


def _blocked(card: Card, index: int, split: Split) -> bool:
    """Whether no run under this split goes through an operator."""
    operator = card.operators[index]
    if split == "spatial":
        return bool(operator.no_spatial)
    return bool(operator.no_output) and (split == "output" or bool(operator.no_input))


def _cost(card: Card, trial: Trial, speeds: Sequence[float]) -> float:
    """What a split run takes, in milliseconds: its slowest part, and the bytes that come in and go out."""
    tensors = card.by_index()
    slowest, moved = 0.0, 0.0
    mean = sum(speeds) / len(speeds)
    for part in range(parts_of(trial.shares)):
        own = balance.work(card, trial.first, trial.last, trial.split, trial.shares, part)
        slowest = max(slowest, own * mean / speeds[part])
        plan = layout(card, trial.first, trial.last, trial.split, trial.shares, part)
        for t, box in (*plan.needs.items(), *plan.gives.items()):
            elements = max(1, int(np.prod(tensors[t].shape)))
            moved += tensors[t].size_bytes * int(np.prod([b - a for a, b in box])) / elements
    return slowest + moved * BYTE_MS


def difference(one: Array, other: Array) -> float:
    """The largest difference of two tensors relative to the second's largest magnitude; 0.0 only for equal bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return float("inf")
    if one.tobytes() == other.tobytes():
        return 0.0
    expected = other.astype(np.float64)
    gap = float(np.abs(one.astype(np.float64) - expected).max())
    if not np.isfinite(gap):
        return float("inf")
    return max(gap, 1e-300) / max(float(np.abs(expected).max()), 1e-30)


def _crossing(graph: Graph) -> tuple[int, ...]:
    """Every tensor that can cross a boundary, and the model's outputs."""
    known = cut.flow(graph)
    places = [p for p in range(1, len(graph.operators)) if cut.refusal(graph, p, known) is None]
    return tuple(sorted({t for p in places for t in cut.live(graph, p, known)}.union(graph.outputs)))
