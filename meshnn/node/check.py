"""The one-process executor: runs any plan, and every split of a model, on this machine and compares with the whole.

Each split is judged at its own merged tensors, fed with the tensors recorded from one run of the whole model: equal
bytes, or for float partial sums at most 1e-5 of the tensor's largest magnitude. What that does at the model's outputs
is reported, not judged. Pure: `run` executes a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import MeshError, ModelError
from meshnn.graph import cut
from meshnn.graph.card import Card
from meshnn.graph.ir import Graph
from meshnn.graph.splits.boxes import parts_of
from meshnn.graph.splits.layout import refusal
from meshnn.graph.splits.merge import exact
from meshnn.graph.splits.shard import shard
from meshnn.node.assembly import Arrival, Assembly, Key, Target
from meshnn.node.slices import Array, Passage, parcels
from meshnn.plan import boxes
from meshnn.plan.outline import Outline, outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Split, Stage
from meshnn.plan.routes import ORIGIN, Routes, derive, ways

Run = Callable[[Graph, Sequence[Array]], list[Array]]
"""Runs a graph on inputs in its order; its outputs in its order. ModelError where the runtime refuses."""

TOLERANCE = 1e-5
"""How far a float partial sum may be from the whole, relative to the largest magnitude of the tensor."""

# Ways through a plan that are followed from end to end.
WAYS_MAX = 16
_HERE = DeviceId("here")
_BOOT = BootId("now")
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one split of operators `first` to `last`.

    `error` is the largest deviation at its merged tensors, relative to their largest magnitude; 0.0 where every byte
    was equal. `at_outputs` is the same at the model's outputs, where the split is not exact. A split that was refused
    has a `refused` reason, one that did not run although it was allowed a `crashed` one.
    """

    first: int
    last: int
    split: Split
    shares: tuple[int, ...] = ()
    error: float = 0.0
    at_outputs: float | None = None
    refused: str = ""
    crashed: str = ""

    @property
    def ran(self) -> bool:
        """Whether it was executed."""
        return not self.refused and not self.crashed

    @property
    def good(self) -> bool:
        """Whether it was refused, or ran within its class."""
        if self.crashed:
            return False
        return bool(self.refused) or self.error <= (0.0 if exact(self.split) else TOLERANCE)


class Bench:
    """A model with the tensors of one run of the whole of it: what every split is fed with and compared to."""

    def __init__(self, graph: Graph, card: Card, inputs: Mapping[int, Array], run: Run) -> None:
        """Run the whole model once, with every tensor that can cross a boundary as an output. ModelError."""
        self.graph = graph
        self.card = card
        self.model: Outline = outline(card)
        self._run = run
        kept = tuple(t for t in _crossing(graph) if t not in graph.inputs)
        made = run(dataclasses.replace(graph, outputs=kept, metadata=(), file=None), [inputs[t] for t in graph.inputs])
        self.values: dict[int, Array] = {**inputs, **dict(zip(kept, made, strict=True))}

    def whole(self) -> dict[int, Array]:
        """The model's outputs by tensor index, made by the model as it is."""
        return dict(zip(self.graph.outputs, self._run(self.graph, self._inputs()), strict=True))

    def judge(self, first: int, last: int, split: Split, shares: tuple[int, ...] = ()) -> Outcome:
        """Run every part of one split on the recorded tensors and compare what they merge to."""
        outcome = Outcome(first, last, split, shares)
        reason = refusal(self.card, first, last, split, shares)
        if reason is not None:
            return dataclasses.replace(outcome, refused=reason)
        try:
            merged = self._merged(first, last, split, shares)
            error = max(difference(merged[t], self.values[t]) for t in merged)
            at_outputs = self._downstream(last, merged) if error else None
        except (MeshError, ValueError, KeyError, IndexError, AssertionError) as failure:
            return dataclasses.replace(outcome, crashed=f"{type(failure).__name__}: {failure}")
        return dataclasses.replace(outcome, error=error, at_outputs=at_outputs)

    def follow(self, plan: Plan, lane: int, groups: Sequence[int]) -> dict[int, Array]:
        """The model's outputs by tensor index, made by the shards of one way through a plan."""
        made = _Walk(self, plan.lanes[lane], groups).run(self._inputs())
        return {t: made[t] for t in self.card.fragment_outputs(0, len(self.card.operators) - 1)}

    def execute(self, first: int, last: int, group: Group, part: int, inputs: Sequence[Array]) -> list[Array]:
        """The outputs of one shard."""
        made = shard(self.graph, first, last, group.split, part, group.shares, self.card)
        return self._run(made, inputs)

    def _inputs(self) -> list[Array]:
        return [self.values[t] for t in self.graph.inputs]

    def _merged(self, first: int, last: int, split: Split, shares: tuple[int, ...]) -> dict[int, Array]:
        """What the parts of a split give, put together by the same assembly that serves requests."""
        parts = 1 if split == "none" else parts_of(shares)
        group = Group((Shard(_HERE, _BOOT),) * parts, split, shares)
        stages = [*self._around(0, first), Stage(first, last, (group,)), *self._around(last + 1, None)]
        walk = _Walk(self, Lane(tuple(stages)), (0,) * len(stages))
        return walk.merge(int(first > 0), self.values)

    def _around(self, first: int, end: int | None) -> list[Stage]:
        """The operators before or behind a split, as one stage without a split."""
        last = len(self.card.operators) - 1 if end is None else end - 1
        return [Stage(first, last, (Group((Shard(_HERE, _BOOT),)),))] if first <= last else []

    def _downstream(self, last: int, merged: Mapping[int, Array]) -> float:
        """How far the model's outputs are from the whole's when everything behind a split reads what it merged to."""
        values, final = {**self.values, **merged}, len(self.card.operators) - 1
        if last < final:
            tail = cut.fragment(self.graph, last + 1, final)
            needed = self.card.fragment_inputs(last + 1, final)
            given = self.card.fragment_outputs(last + 1, final)
            values.update(zip(given, self._run(tail, [values[t] for t in needed]), strict=True))
        return max((difference(values[t], self.values[t]) for t in self.graph.outputs), default=0.0)


class _Walk:
    """One request through the shards of a lane, by its routes, slices and assembly; one shard after the other."""

    def __init__(self, bench: Bench, lane: Lane, groups: Sequence[int]) -> None:
        self._bench = bench
        self._lane = lane
        self._groups = [stage.groups[index] for stage, index in zip(lane.stages, groups, strict=True)]
        self._routes: Routes = derive(bench.model, lane, groups)
        self._assembly = Assembly(_UNBOUNDED)
        self._passage = Passage("check", 1, bench.card.name, Epoch(0, _HERE, 0), _HERE, _BOOT, 0, tuple(groups))

    def run(self, inputs: Sequence[Array]) -> dict[int, Array]:
        """The model's outputs by tensor index."""
        values = dict(zip(self._bench.graph.inputs, inputs, strict=True))
        arrived: dict[tuple[int, int], list[Arrival]] = {}
        self._send(arrived, (ORIGIN, 0), values, {})
        for stage in range(len(self._groups)):
            for part in range(len(self._groups[stage].shards)):
                fed = self._assembled((stage, part), arrived[stage, part])
                self._send(arrived, (stage, part), *self._fire(stage, part, fed))
        return self._assembled((len(self._groups), 0), arrived[len(self._groups), 0])

    def merge(self, stage: int, values: Mapping[int, Array]) -> dict[int, Array]:
        """What the parts of one stage give, assembled; they read `values`. Addends arrive last part first."""
        gives: dict[int, list[tuple[int, boxes.Box, Array]]] = {}
        for part in range(len(self._groups[stage].shards)):
            needs = self._routes.needs[stage, part]
            fed = {need.tensor: _piece(values[need.tensor], need.box) for need in needs}
            arrays, bases = self._fire(stage, part, fed)
            for t, array in arrays.items():
                gives.setdefault(t, []).append((part, bases[t], array))
        return {t: self._together(stage, t, pieces) for t, pieces in gives.items()}

    def _together(self, stage: int, tensor: int, pieces: Sequence[tuple[int, boxes.Box, Array]]) -> Array:
        """One tensor from what every part gave of it, by the need of whoever reads all of it."""
        from meshnn.node.slices import Piece
        from meshnn.plan.routes import Need, Source

        group, entry = self._groups[stage], self._lane.stages[stage]
        box = boxes.whole(self._bench.model.tensor(tensor).shape)
        sources = tuple(Source(stage, part, base) for part, base, _ in pieces)
        activation = boxes.activation(self._bench.model, entry, group)
        need = Need(tensor, box, sources, boxes.sums(group), activation)
        target = Target((need,), {tensor: self._bench.model.tensor(tensor).dtype}, 1)
        key = Key(self._passage, len(self._groups) + 1 + tensor, 0)
        for part, base, array in reversed(pieces):
            done = self._assembly.add(key, target, Arrival((stage, part), (Piece(tensor, base, array),)), 1.0, 0.0)
        if done is None:
            raise ModelError(f"the parts do not make all of tensor {tensor}")
        self._assembly.finish(key)
        return done.tensors[tensor]

    def _send(
        self,
        arrived: dict[tuple[int, int], list[Arrival]],
        source: tuple[int, int],
        arrays: Mapping[int, Array],
        bases: Mapping[int, boxes.Box],
    ) -> None:
        for parcel in parcels(self._routes, source, arrays, bases):
            arrived.setdefault((parcel.stage, parcel.part), []).append(Arrival(source, parcel.pieces))

    def _assembled(self, key: tuple[int, int], arrivals: Sequence[Arrival]) -> dict[int, Array]:
        """The inputs of a shard, assembled from what was sent to it, the last sent first."""
        needs = self._routes.needs[key]
        dtypes = {need.tensor: self._bench.model.tensor(need.tensor).dtype for need in needs}
        slot = Key(self._passage, *key)
        done = None
        for arrival in reversed(arrivals):
            done = self._assembly.add(slot, Target(needs, dtypes, 1), arrival, 1.0, 0.0)
        if done is None:
            raise ModelError(f"shard {key} does not get all of its inputs")
        self._assembly.finish(slot)
        return dict(done.tensors)

    def _fire(
        self, stage: int, part: int, tensors: Mapping[int, Array]
    ) -> tuple[dict[int, Array], dict[int, boxes.Box]]:
        """Run one shard: its outputs, and the boxes they are, by tensor index."""
        entry, group, model = self._lane.stages[stage], self._groups[stage], self._bench.model
        inputs = [tensors[t] for t in model.fragment_inputs(entry.first, entry.last) if t in tensors]
        outputs = model.fragment_outputs(entry.first, entry.last)
        bases = {t: box for t in outputs if (box := boxes.have(model, entry, group, part, t)) is not None}
        made = self._bench.execute(entry.first, entry.last, group, part, inputs)
        return dict(zip(bases, made, strict=True)), bases


def check_plan(bench: Bench, plan: Plan) -> Iterator[Outcome]:
    """Every group of a plan judged by itself, in lane, stage and group order; equal ones once."""
    seen: set[tuple[int, int, Split, tuple[int, ...]]] = set()
    for lane in plan.lanes:
        for stage in lane.stages:
            for group in stage.groups:
                key = (stage.first, stage.last, group.split, group.shares)
                if key not in seen:
                    seen.add(key)
                    yield bench.judge(*key)


@dataclass(frozen=True, slots=True)
class Way:
    """One way through a plan, followed from the inputs to the outputs: the largest deviation of an output."""

    lane: int
    groups: tuple[int, ...]
    exact: bool
    error: float

    @property
    def good(self) -> bool:
        """Whether a way that must be exact is; the deviation of one with partial sums is not judged here."""
        return self.error == 0.0 or not self.exact


def check_ways(bench: Bench, plan: Plan) -> Iterator[Way]:
    """Ways through a plan, at most 16 of them, compared with the whole model at its outputs."""
    expected = bench.whole()
    for number, (lane, groups, _) in enumerate(ways(plan)):
        if number >= WAYS_MAX:
            return
        made = bench.follow(plan, lane, groups)
        splits = [stage.groups[index].split for stage, index in zip(plan.lanes[lane].stages, groups, strict=True)]
        error = max((difference(made[t], expected[t]) for t in expected), default=0.0)
        yield Way(lane, groups, all(exact(split) for split in splits), error)


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


def _piece(values: Array, box: boxes.Box) -> Array:
    """What lies in a box."""
    return np.ascontiguousarray(values[tuple(slice(start, stop) for start, stop in box)])


def _crossing(graph: Graph) -> tuple[int, ...]:
    """Every tensor that can cross a boundary, and the model's outputs."""
    known = cut.flow(graph)
    places = [p for p in range(1, len(graph.operators)) if cut.refusal(graph, p, known) is None]
    return tuple(sorted({t for p in places for t in cut.live(graph, p, known)}.union(graph.outputs)))
