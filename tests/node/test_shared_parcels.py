"""What several shards of a device read travels there once: counted on the network, as predicted, every byte right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from meshnn.cluster.member import DeviceId
from meshnn.graph.builder import Builder
from meshnn.graph.ir import Graph
from meshnn.node.check import difference
from meshnn.node.slices import Array
from meshnn.plan.devices import DeviceInfo, Link, Links
from meshnn.plan.plan import Epoch, Plan, PlanSet
from meshnn.plan.predict import predict
from tests.node.mesh import Mesh, Model, mesh, until
from tests.node.shelf import A, B, C, D, life
from tests.node.test_dataplane import ends, quiet, same, skipping
from tests.node.test_split_dataplane import Part, answered, network, planned

IMAGE = 20 * 18 * 3 * 4
WIDE = 10 * 9 * 16 * 4
NARROW = 10 * 9 * 12 * 4
ROW = 9 * 16 * 4
ANSWER = 10 * 4


def predicted(model: Model, plan: Plan, origin: DeviceId = A) -> float:
    """The bytes that the planner says cross between devices for a request of one origin."""
    devices = [DeviceInfo(one, life(one), 1 << 40, 1.0) for one in (A, B, C, D)]
    return predict(plan, model.card, devices, Links(Link(1000.0, 1.0), {}, 0.1), {origin: 1.0}).air_bytes


PLANS: dict[str, tuple[list[Part], int]] = {
    "both output parts read the whole input": (
        [(0, 3, "none", (), "b"), (4, 4, "output", (0, 5, 16), "cc"), (5, 8, "none", (), "b")],
        IMAGE + WIDE + WIDE + ANSWER,
    ),
    "strips on one device share their halo": (
        [(0, 3, "none", (), "b"), (4, 4, "spatial", (0, 3, 7, 10), "ccc"), (5, 8, "none", (), "b")],
        IMAGE + WIDE + WIDE + ANSWER,
    ),
    "tiles on one device share rows, columns and corners": (
        [(0, 3, "none", (), "b"), (4, 4, "spatial", (0, 5, 10, -1, 0, 4, 9), "cccc"), (5, 8, "none", (), "b")],
        IMAGE + WIDE + WIDE + ANSWER,
    ),
    "strips on two devices, two neighbours on one of them": (
        [(0, 3, "none", (), "b"), (4, 4, "spatial", (0, 3, 7, 10), "dcc"), (5, 8, "none", (), "b")],
        IMAGE + 4 * ROW + 8 * ROW + WIDE + ANSWER,
    ),
    "the image goes once to three strips": (
        [(0, 3, "spatial", (0, 3, 7, 10), "ccc"), (4, 8, "none", (), "b")],
        IMAGE + WIDE + ANSWER,
    ),
    "the outputs of an output stage are gathered once": (
        [(0, 3, "none", (), "b"), (4, 4, "output", (0, 8, 16), "bc"), (5, 6, "output", (0, 6, 12), "dd"),
         (7, 8, "none", (), "d")],
        IMAGE + WIDE + WIDE + ANSWER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
async def test_each_byte_goes_to_a_device_once(tmp_path: Path, name: str) -> None:
    """Bytes on the in-memory network: what is read there, once; the planner counts the same; the answer is exact."""
    parts, expected = PLANS[name]
    model = Model(network(), tmp_path)
    plan = planned(model, parts)
    async with mesh([A, B, C, D]) as found:
        outcome = await answered(found, model, plan)
        assert same(outcome.outputs, await model.whole(model.inputs(1)))
        assert found.air_bytes() == expected == predicted(model, plan)
        await until(lambda: quiet(found))
        # The origin hears of all that came in over the network: what travels once is counted once.
        origin = sum(tensor.size_bytes for header in found.origin.received for tensor in header.tensors)
        padding = 64 * sum(len(header.tensors) for node in found.nodes.values() for header in node.received)
        assert 0 <= sum(time.bytes_in for time in outcome.times) - (expected - origin) <= padding


async def test_addends_go_once_to_the_strips_that_add_them(tmp_path: Path) -> None:
    """Partial sums from two devices for two strips on a third: the shared rows come once, the sums stay in order."""
    model = Model(network(), tmp_path)
    plan = planned(
        model,
        [
            (0, 3, "none", (), "a"),
            (4, 4, "input", (0, 7, 16), "bc"),
            (5, 5, "spatial", (0, 4, 10), "dd"),
            (6, 8, "none", (), "d"),
        ],
    )
    async with mesh([A, B, C, D]) as found:
        outcome = await answered(found, model, plan)
        (output,) = outcome.outputs
        assert difference(outcome.outputs[output], (await model.whole(model.inputs(1)))[output]) <= 1e-5
        assert found.air_bytes() == WIDE + 2 * WIDE + ANSWER == predicted(model, plan)
        again = await answered(found, model, plan)
        assert same(again.outputs, outcome.outputs)


async def test_a_skip_to_a_later_stage_on_the_same_device_is_no_second_parcel(tmp_path: Path) -> None:
    """The first layer's result is read by stage 1 and by stage 3, both on C: one parcel, kept for the later one."""
    model = Model(skipping(), tmp_path)
    plan = planned(
        model, [(0, 0, "none", (), "b"), (1, 3, "none", (), "c"), (4, 6, "none", (), "d"), (7, 10, "none", (), "c")]
    )
    async with mesh([A, B, C, D]) as found:
        outcome = await answered(found, model, plan)
        assert same(outcome.outputs, await model.whole(model.inputs(1)))
        made = [header for header in found.nodes[C].received if header.source_stage == 0]
        assert [(header.stage, len(header.tensors)) for header in made] == [(1, 1)]
        assert found.air_bytes() == predicted(model, plan)


async def test_what_the_origin_reads_itself_is_also_its_answer(tmp_path: Path) -> None:
    """A tensor that is an output of the model and the input of the origin's own stage comes once and serves both."""
    model = Model(ends(), tmp_path)
    plan = planned(model, [(0, 0, "none", (), "b"), (1, 2, "none", (), "a")])
    async with mesh([A, B]) as found:
        outcome = await answered(found, model, plan)
        assert same(outcome.outputs, await model.whole(model.inputs(1)))
        assert [(header.stage, len(header.tensors)) for header in found.origin.received] == [(1, 1)]
        assert found.air_bytes() == 2 * 6 * 6 * 4 * 4 == predicted(model, plan)
        await until(lambda: quiet(found))


async def test_an_origin_elsewhere_gets_its_own_parcel(tmp_path: Path) -> None:
    """The same plan asked from B, which holds no reader: the output comes to B, the input to A, each once."""
    model = Model(ends(), tmp_path)
    plan = planned(model, [(0, 0, "none", (), "a"), (1, 2, "none", (), "a")])
    async with mesh([A, B]) as found:
        await answered(found, model, plan)
        before = found.air_bytes()
        outcome = await found.nodes[B].plane.ask(model.name, model.inputs(2), 50.0)
        assert same(outcome.outputs, await model.whole(model.inputs(2)))
        assert found.air_bytes() - before == predicted(model, plan, B)


def chain() -> Graph:
    """Four layers; the last adds the first's result to the third's."""
    b = Builder(np.random.default_rng(4))
    first = b.conv(b.input(1, 8, 8, 3, name="image"), 4)
    return b.graph(b.add(b.conv(b.conv(first, 4), 4), first))


async def test_many_requests_that_share_parcels_stay_apart(tmp_path: Path) -> None:
    """Twenty requests at once through stages that read one parcel: every answer is its own, nothing stays behind."""
    model = Model(chain(), tmp_path)
    plan = planned(model, [(0, 0, "none", (), "b"), (1, 1, "output", (0, 1, 4), "cc"), (2, 3, "none", (), "c")])
    async with mesh([A, B, C]) as found:
        await answered(found, model, plan)
        inputs = [model.inputs(seed) for seed in range(20)]
        asking = [found.origin.plane.ask(model.name, one, 50.0) for one in inputs]
        outcomes = await asyncio.gather(*asking)
        for one, outcome in zip(inputs, outcomes, strict=True):
            assert same(outcome.outputs, await model.whole(one))
        await until(lambda: quiet(found))
        assert all(node.plane._pipeline.assembly.held_bytes == 0 for node in found.nodes.values())


async def test_death_of_the_device_that_shares_a_parcel(tmp_path: Path) -> None:
    """C dies with two parts inside: the contingency answers, and what C's parcels began elsewhere is freed."""
    model = Model(network(), tmp_path)
    main = planned(model, [(0, 3, "none", (), "b"), (4, 4, "output", (0, 8, 16), "cc"), (5, 8, "none", (), "b")])
    without = planned(
        model,
        [(0, 3, "none", (), "b"), (4, 4, "output", (0, 8, 16), "dd"), (5, 8, "none", (), "b")],
        main.epoch.without(C),
    )
    async with mesh([A, B, C, D]) as found:
        outcome = await _asked_through_a_death(found, model, main, without)
        assert same(outcome, await model.whole(model.inputs(3)))


async def _asked_through_a_death(found: Mesh, model: Model, main: Plan, without: Plan) -> dict[int, Array]:
    await found.serve(model, PlanSet(main, (without,)))
    engine = found.nodes[C].engine
    engine.gate.clear()
    asking = asyncio.create_task(found.origin.plane.ask(model.name, model.inputs(3), 50.0))
    await engine.entered.wait()
    found.network.crash(C)
    outcome = await asking
    assert (outcome.attempts, outcome.plan.epoch) == (2, Epoch(1, A, 1, C))
    return dict(outcome.outputs)
