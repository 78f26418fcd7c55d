"""Splits on working data planes: every split over real engines gives the whole model's answer, through deaths too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from meshnn.cluster.member import DeviceId
from meshnn.graph.builder import Builder, Precision
from meshnn.graph.ir import Graph
from meshnn.node.check import difference
from meshnn.node.origin import Outcome
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Shard, Split, Stage
from meshnn.plan.verify import check
from tests.node.mesh import Mesh, Model, mesh
from tests.node.shelf import A, B, C, D, E, life
from tests.node.test_dataplane import DEADLINE_S, same

Part = tuple[int, int, Split, tuple[int, ...], str]
"""A stage: first and last operator, split, shares, the letters of its devices."""


def network(precision: Precision = "float32") -> Graph:
    """Convolutions, a residual addition over a depthwise one, a mean and a classifier: 9 operators."""
    b = Builder(np.random.default_rng(1), precision)
    x = b.conv(b.input(1, 20, 18, 3, name="image"), 16, stride=(2, 2), activation="RELU6")
    y = b.conv(b.depthwise(x), 16, (1, 1), activation="RELU")
    y = b.conv(b.add(x, y), 16, activation="RELU")
    y = b.conv(y, 12, activation="RELU")
    return b.graph(b.softmax(b.fully_connected(b.mean(y), 10)))


def planned(model: Model, parts: Sequence[Part], epoch: Epoch | None = None) -> Plan:
    """A legal plan of one lane."""
    devices = {one[0]: one for one in (A, B, C, D, E)}
    stages = tuple(
        Stage(first, last, (Group(tuple(Shard(devices[at], life(devices[at])) for at in letters), split, shares),))
        for first, last, split, shares, letters in parts
    )
    plan = Plan(epoch or Epoch(1, A, 1), model.name, model.digest, (Lane(stages),))
    check(plan, model.card)
    return plan


async def answered(found: Mesh, model: Model, plan: Plan, seed: int = 1) -> Outcome:
    """What the mesh answers under a plan."""
    await found.serve(model, PlanSet(plan))
    return await found.origin.plane.ask(model.name, model.inputs(seed), DEADLINE_S)


EXACT: list[list[Part]] = [
    [(0, 3, "spatial", (0, 4, 10), "bc"), (4, 8, "none", (), "d")],
    [(0, 3, "spatial", (0, 1, 3, 6, 10), "bcde"), (4, 8, "none", (), "b")],
    [(0, 3, "spatial", (0, 5, 10, -1, 0, 2, 9), "bcde"), (4, 8, "none", (), "b")],
    [(0, 3, "none", (), "b"), (4, 4, "output", (0, 8, 16), "cd"), (5, 8, "none", (), "b")],
    [(0, 3, "none", (), "b"), (4, 4, "output", (0, 1, 5, 16), "cdb"), (5, 8, "none", (), "a")],
    [(0, 0, "none", (), "b"), (1, 1, "output", (0, 3, 16), "cd"), (2, 8, "none", (), "b")],
    [
        (0, 4, "none", (), "b"),
        (5, 6, "output", (0, 2, 12), "cd"),
        (7, 7, "output", (0, 3, 10), "bc"),
        (8, 8, "none", (), "d"),
    ],
]


@pytest.mark.parametrize("parts", EXACT)
@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_output_and_spatial_splits_answer_every_byte(
    tmp_path: Path, precision: Precision, parts: list[Part]
) -> None:
    """Channels, rows and tiles in uneven shares over two to four devices: the bytes of the whole model."""
    model = Model(network(precision), tmp_path)
    async with mesh([A, B, C, D, E]) as found:
        outcome = await answered(found, model, planned(model, parts))
        assert same(outcome.outputs, await model.whole(model.inputs(1)))
        assert outcome.exact


SUMMED: list[list[Part]] = [
    [(0, 3, "none", (), "b"), (4, 4, "input", (0, 8, 16), "cd"), (5, 8, "none", (), "b")],
    [(0, 3, "none", (), "b"), (4, 4, "input", (0, 1, 4, 16), "cde"), (5, 8, "none", (), "b")],
    [(0, 6, "none", (), "b"), (7, 7, "input", (0, 5, 12), "cd"), (8, 8, "none", (), "b")],
    [
        (0, 3, "none", (), "b"),
        (4, 4, "output", (0, 5, 16), "cd"),
        (5, 5, "input", (0, 5, 16), "cd"),
        (6, 8, "none", (), "b"),
    ],
    [
        (0, 3, "none", (), "b"),
        (4, 4, "input", (0, 8, 16), "cd"),
        (5, 5, "spatial", (0, 4, 10), "cd"),
        (6, 8, "none", (), "b"),
    ],
]


@pytest.mark.parametrize("parts", SUMMED)
async def test_input_splits_answer_within_their_bound_and_always_alike(tmp_path: Path, parts: list[Part]) -> None:
    """Partial sums are near the whole, say that they are not exact, and give the same bytes every time."""
    model = Model(network(), tmp_path)
    async with mesh([A, B, C, D, E]) as found:
        outcome = await answered(found, model, planned(model, parts))
        (output,) = outcome.outputs
        assert difference(outcome.outputs[output], (await model.whole(model.inputs(1)))[output]) <= 1e-5
        assert not outcome.exact
        for _ in range(5):
            again = await found.origin.plane.ask(model.name, model.inputs(1), DEADLINE_S)
            assert same(again.outputs, outcome.outputs)


async def test_activation_and_bias_count_once_after_the_sum(tmp_path: Path) -> None:
    """A layer of large biases under RELU: added twice, or cut before the sum, the answer would be far off."""
    b = Builder(np.random.default_rng(3))
    x = b.conv(b.input(1, 6, 6, 8), 8, activation="RELU")
    model = Model(b.graph(b.conv(x, 6, activation="RELU6")), tmp_path)
    last = len(model.graph.operators) - 1
    async with mesh([A, B, C, D]) as found:
        plan = planned(model, [(0, 0, "none", (), "a"), (last, last, "input", (0, 1, 3, 8), "bcd")])
        outcome = await answered(found, model, plan)
        wanted = await model.whole(model.inputs(1))
        (output,) = wanted
        assert difference(outcome.outputs[output], wanted[output]) <= 1e-5
        assert float(np.min(outcome.outputs[output])) == 0.0


async def test_consecutive_spatial_stages_exchange_halo_rows_alone(tmp_path: Path) -> None:
    """Two strips over the same two devices: each sends the other the one row beyond its boundary, and no more."""
    model = Model(network(), tmp_path)
    row_bytes = 9 * 16 * 4
    async with mesh([A, B, C]) as found:
        parts: list[Part] = [
            (0, 3, "spatial", (0, 4, 10), "bc"),
            (4, 4, "spatial", (0, 4, 10), "bc"),
            (5, 5, "spatial", (0, 4, 10), "bc"),
            (6, 8, "none", (), "a"),
        ]
        outcome = await answered(found, model, planned(model, parts))
        assert same(outcome.outputs, await model.whole(model.inputs(1)))
        crossed = {(t.stage, t.part): t.bytes_in for t in outcome.times if t.stage in (1, 2)}
        assert crossed == {(1, 0): row_bytes, (1, 1): row_bytes, (2, 0): row_bytes, (2, 1): row_bytes}
        total = {t.part: t.bytes_in for t in outcome.times if t.stage == 3}
        assert total == {0: 10 * 9 * 12 * 4}
        # On the air: the image with its halo, four halo rows, the gather, and nothing else (the answer is made at A).
        image = sum(
            tensor.size_bytes
            for node in found.nodes.values()
            for h in node.received
            if h.source_stage < 0
            for tensor in h.tensors
        )
        assert found.air_bytes() == image + 4 * row_bytes + 10 * 9 * 12 * 4


async def test_output_then_input_needs_no_gather(tmp_path: Path) -> None:
    """Each device keeps the channels it made: nothing crosses between the two layers, only the addends after them."""
    model = Model(network(), tmp_path)
    async with mesh([A, B, C]) as found:
        parts: list[Part] = [
            (0, 3, "none", (), "a"),
            (4, 4, "output", (0, 5, 16), "bc"),
            (5, 5, "input", (0, 5, 16), "bc"),
            (6, 8, "none", (), "a"),
        ]
        outcome = await answered(found, model, planned(model, parts))
        assert {t.part: t.bytes_in for t in outcome.times if t.stage == 2} == {0: 0, 1: 0}
        assert {t.part: t.bytes_in for t in outcome.times if t.stage == 3} == {0: 2 * 10 * 9 * 12 * 4}
        # On the air: the input of the output stage to both parts, their addends, and nothing between.
        assert found.air_bytes() == 2 * 10 * 9 * 16 * 4 + 2 * 10 * 9 * 12 * 4
        (output,) = outcome.outputs
        assert difference(outcome.outputs[output], (await model.whole(model.inputs(1)))[output]) <= 1e-5


@pytest.mark.parametrize(("split", "shares"), [("spatial", (0, 4, 7, 10)), ("output", (0, 2, 9, 16))])
@pytest.mark.parametrize("victim", [B, D])
async def test_death_of_a_part_in_the_middle_of_a_request(
    tmp_path: Path, split: Split, shares: tuple[int, ...], victim: DeviceId
) -> None:
    """One of three parts dies while it holds the request: the contingency answers, and late slices change nothing."""
    model = Model(network(), tmp_path)
    main = planned(model, [(0, 3, "none", (), "c"), (4, 4, split, shares, "bcd"), (5, 8, "none", (), "c")])
    heir = "c" if victim == B else "b"
    group = "".join(heir if one == victim[0] else one for one in "bcd")
    without = planned(
        model,
        [(0, 3, "none", (), "c"), (4, 4, split, shares, group), (5, 8, "none", (), "c")],
        main.epoch.without(victim),
    )
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, PlanSet(main, (without,)))
        engine = found.nodes[victim].engine
        engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask(model.name, model.inputs(2), DEADLINE_S))
        await engine.entered.wait()
        found.network.crash(victim)
        outcome = await asking
        assert same(outcome.outputs, await model.whole(model.inputs(2)))
        assert (outcome.attempts, outcome.plan.epoch.absent) == (2, victim)
        assert victim not in {time.device for time in outcome.times}
