"""The search for pipelines: dynamic programming over candidate cuts and the sets of devices used, kept to a beam.

A state is (cut reached, devices used, last device). Devices that are alike are used in order, so that no two states
differ only in their names. With few devices the beam holds every state and the search is exhaustive over the candidate
cuts; with many it keeps the cheapest states and those that leave most memory unused, so that tight plans are found too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from meshnn.cluster.member import DeviceId
from meshnn.plan.devices import DeviceInfo, Links
from meshnn.plan.ranges import Floats, Ints, Table

Objective = Literal["latency", "throughput"]
# States kept at one cut after one more stage; half of them by cost, half by the memory they leave.
BEAM = 96
# Pipelines returned of each number of stages, for an exact prediction.
FINALISTS = 3


@dataclass(frozen=True)
class Ground:
    """What one search stands on: the segments' costs, the devices with what each can still take, the links.

    `budgets` are bytes by device index; `held` maps a segment that a device has loaded already, as (device index, index
    of the first cut, of the last cut), to the window it is loaded for. `asking` holds parts of 1 by device. With
    `every_depth` a pipeline is looked for even where one of fewer stages is known to be better.
    """

    table: Table
    devices: tuple[DeviceInfo, ...]
    budgets: tuple[int, ...]
    links: Links
    window: int
    objective: Objective = "latency"
    asking: Mapping[DeviceId, float] = field(default_factory=dict)
    held: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    every_depth: bool = False

    @cached_property
    def compute(self) -> Floats:
        """Milliseconds by (device, first cut, last cut); infinite where the segment does not fit or is not legal."""
        memory = self.table.memory(self.window)
        found = np.empty((len(self.devices), self.table.count, self.table.count))
        for index, (info, budget) in enumerate(zip(self.devices, self.budgets, strict=True)):
            found[index] = np.where(memory <= budget, self.table.work / max(info.speed, 1e-9), np.inf)
        for (index, row, column), window in self.held.items():
            more = max(0, self.window - window) * self.table.inputs[row, column]
            if more <= self.budgets[index]:
                found[index, row, column] = self.table.work[row, column] / max(self.devices[index].speed, 1e-9)
        return found

    @property
    def fastest(self) -> float:
        """The speed of the fastest device."""
        return max(1e-9, *(info.speed for info in self.devices))

    @cached_property
    def byte_ms(self) -> Floats:
        """Milliseconds per byte by (sender, receiver); the last row and column are the origins' mean."""
        return self._pairs(self.links.byte_ms)

    @cached_property
    def hop_ms(self) -> Floats:
        """Milliseconds per message by (sender, receiver); the last row and column are the origins' mean."""
        return self._pairs(self.links.hop_ms)

    @cached_property
    def before(self) -> Ints:
        """Of each device the one like it that must be used first; -1 where there is none."""
        last: dict[tuple[object, ...], int] = {}
        found = np.full(len(self.devices), -1, dtype=np.int64)
        for index, info in enumerate(self.devices):
            held = tuple(sorted((row, column) for owner, row, column in self.held if owner == index))
            alone = info.device if self.links.singular(info.device) else ""
            kind = (info.speed, self.budgets[index], self.asking.get(info.device, 0.0), held, alone)
            found[index] = last.get(kind, -1)
            last[kind] = index
        return found

    def _pairs(self, cost: Callable[[DeviceId, DeviceId], float]) -> Floats:
        """A cost of every pair, with the mean over the origins as one more device."""
        names = [info.device for info in self.devices]
        count = len(names)
        found = np.zeros((count + 1, count + 1))
        for row, sender in enumerate(names):
            for column, receiver in enumerate(names):
                found[row, column] = cost(sender, receiver)
        # Devices that ask need not be among those searched; one that never asks has no part in the mean.
        asks = [(name, share) for name, share in sorted(self.asking.items()) if share > 0]
        for index, name in enumerate(names):
            found[count, index] = sum(share * cost(origin, name) for origin, share in asks)
            found[index, count] = sum(share * cost(name, origin) for origin, share in asks)
        return found


@dataclass(frozen=True)
class Pipeline:
    """One lane found: (first operator, last operator, index of the device) a stage, and its estimated cost."""

    stages: tuple[tuple[int, int, int], ...]
    cost: float


@dataclass(frozen=True)
class _Layer:
    """All states kept after the same number of stages, as parallel arrays; `parent` points into the layer before."""

    cost: Floats
    used: Ints
    last: Ints
    cut: Ints
    parent: Ints
    before: _Layer | None = None

    def keep(self, chosen: Ints) -> _Layer:
        """The states at these indices."""
        return _Layer(
            self.cost[chosen], self.used[chosen], self.last[chosen], self.cut[chosen], self.parent[chosen], self.before
        )


def pipelines(ground: Ground, stages_max: int) -> Iterator[tuple[Pipeline, ...]]:
    """The best pipelines of 1, 2, ... stages (none, where none fits), cheapest first, until no more can help.

    For latency the search ends when no further stage can pay for its hop: what is left out costs more.
    """
    layer = _start(len(ground.devices))
    best = np.inf
    for count in range(1, min(stages_max, len(ground.devices), ground.table.count - 1) + 1):
        prune = ground.objective == "latency" and not ground.every_depth
        if prune and _bound(ground, count) > best:
            return
        layer = _expand(ground, layer, best if prune else np.inf)
        ends = _finished(ground, layer)
        if ends:
            best = min(best, ends[0].cost)
        yield ends
        if not len(layer.cost):
            return


def _start(devices: int) -> _Layer:
    """The one state before the first stage: at the origin, which is one past the devices."""
    zero = np.zeros(1, dtype=np.int64)
    return _Layer(np.zeros(1), zero, zero + devices, zero, zero - 1)


def _bound(ground: Ground, stages: int) -> float:
    """No pipeline of this many stages costs less: work on the fastest device, the way in and out, the cheapest hops."""
    table, count = ground.table, len(ground.devices)
    pairs = ~np.eye(count, dtype=bool)
    hop = float(ground.hop_ms[:-1, :-1][pairs].min(initial=np.inf)) if count > 1 else 0.0
    byte = float(ground.byte_ms[:-1, :-1][pairs].min(initial=np.inf)) if count > 1 else 0.0
    crossing = float(table.inputs[1:][table.legal[1:]].min(initial=np.inf))
    way_in = ground.hop_ms[count, :count] + ground.byte_ms[count, :count] * table.inputs[0, 1:].min()
    way_out = ground.hop_ms[:count, count] + ground.byte_ms[:count, count] * table.output_bytes
    ends = float(way_in.min() + way_out.min())
    return float(table.work[0, -1]) / ground.fastest + ends + (stages - 1) * (hop + byte * crossing)


def _expand(ground: Ground, layer: _Layer, best: float) -> _Layer:
    """Every state one stage further that may yet cost less than `best`, kept to the beam at each cut."""
    rows = [_expand_cut(ground, layer, row, best) for row in sorted(set(layer.cut.tolist()) - {ground.table.count - 1})]
    none = np.zeros(0, dtype=np.int64)
    cost = np.concatenate([np.zeros(0), *(row[0] for row in rows)])
    used, last, cut, parent = (np.concatenate([none, *(row[field] for row in rows)]) for field in range(1, 5))
    grown = _Layer(cost, used, last, cut, parent, layer)
    return grown.keep(_beam(ground, grown))


def _expand_cut(ground: Ground, layer: _Layer, row: int, best: float) -> tuple[Floats, Ints, Ints, Ints, Ints]:
    """The states at one cut, extended by every free device to every later cut: the parallel arrays of a layer."""
    states = np.flatnonzero(layer.cut == row)
    devices = np.arange(len(ground.devices))
    used, last = layer.used[states], layer.last[states]
    taken = (used[:, None] >> devices[None, :]) & 1
    ready = (ground.before[None, :] < 0) | ((used[:, None] >> np.maximum(ground.before, 0)[None, :]) & 1 == 1)
    state, device = np.nonzero((taken == 0) & ready)
    columns = np.arange(row + 1, ground.table.count)
    cost = _costs(ground, layer.cost[states][state], last[state], device, row)
    rest = ground.table.work[row + 1 :, -1] / ground.fastest
    cost = np.where(cost + rest[None, :] <= best, cost, np.inf)
    pair, column = _strongest(cost, _spare(ground, used[state] | (1 << device)), _width(ground))
    return (
        cost[pair, column],
        used[state[pair]] | (1 << device[pair]),
        device[pair],
        columns[column],
        states[state[pair]],
    )


def _costs(ground: Ground, cost: Floats, last: Ints, device: Ints, row: int) -> Floats:
    """The cost of each (state, device) pair when its next stage ends at each cut after `row`."""
    table = ground.table
    carried = ground.byte_ms[last, device][:, None] * np.maximum(table.inputs[row, row + 1 :], 1e-9)[None, :]
    compute = ground.compute[device, row, row + 1 :]
    home = np.zeros(carried.shape)
    home[:, -1] = ground.byte_ms[device, len(ground.devices)] * table.output_bytes
    if ground.objective == "throughput":
        return np.maximum(np.maximum(cost[:, None], compute), np.maximum(carried, home))
    home[:, -1] += ground.hop_ms[device, len(ground.devices)]
    return cost[:, None] + ground.hop_ms[last, device][:, None] + carried + compute + home


def _strongest(cost: Floats, spare: Floats, width: int) -> tuple[Ints, Ints]:
    """The (pair, column) entries worth keeping: in each column the cheapest, and those that leave most memory."""
    fits = np.isfinite(cost)
    if len(cost) > 2 * width:
        rank = np.argpartition(np.where(fits, cost, np.inf), width, axis=0)[:width]
        roomy = np.argpartition(np.where(fits, -spare[:, None], np.inf), width, axis=0)[:width]
        keep = np.zeros(cost.shape, dtype=bool)
        np.put_along_axis(keep, rank, True, axis=0)
        np.put_along_axis(keep, roomy, True, axis=0)
        fits &= keep
    pair, column = np.nonzero(fits)
    return pair, column


def _spare(ground: Ground, used: Ints) -> Floats:
    """The memory of the devices that a state has not used, in bytes."""
    free = 1 - ((used[:, None] >> np.arange(len(ground.devices))[None, :]) & 1)
    return np.asarray(free @ np.asarray(ground.budgets, dtype=np.float64))


def _width(ground: Ground) -> int:
    """States kept at one cut by either measure; with six devices or fewer all that there can be."""
    return 6 * 2**6 if len(ground.devices) <= 6 else BEAM // 2


def _beam(ground: Ground, layer: _Layer) -> Ints:
    """The indices of the states to keep: the cheapest of each (cut, devices used, last), then the beam at each cut."""
    order = np.lexsort((layer.parent, layer.cost, layer.last, layer.used, layer.cut))
    key = np.stack((layer.cut[order], layer.used[order], layer.last[order]))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
    order = order[first]
    keep = np.zeros(len(layer.cost), dtype=bool)
    width = _width(ground)
    for measure in (layer.cost[order], -_spare(ground, layer.used[order])):
        ranked = order[np.lexsort((measure, layer.cut[order]))]
        cuts = layer.cut[ranked]
        place = np.arange(len(ranked)) - np.searchsorted(cuts, cuts)
        keep[ranked[place < width]] = True
    return np.flatnonzero(keep)


def _finished(ground: Ground, layer: _Layer) -> tuple[Pipeline, ...]:
    """The cheapest whole pipelines among the states."""
    ends = np.flatnonzero(layer.cut == ground.table.count - 1)
    ranked = ends[np.lexsort((layer.used[ends], layer.cost[ends]))][:FINALISTS]
    return tuple(Pipeline(_trace(ground, layer, int(end)), float(layer.cost[end])) for end in ranked)


def _trace(ground: Ground, layer: _Layer, state: int) -> tuple[tuple[int, int, int], ...]:
    """The stages that led to a state."""
    stages: list[tuple[int, int, int]] = []
    while layer.before is not None:
        cut, device = int(layer.cut[state]), int(layer.last[state])
        state, layer = int(layer.parent[state]), layer.before
        stages.append((ground.table.cuts[int(layer.cut[state])], ground.table.cuts[cut] - 1, device))
    return tuple(reversed(stages))
