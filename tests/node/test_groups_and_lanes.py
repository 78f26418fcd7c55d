"""Data parallelism on working data planes: groups and lanes share the requests by weight, through deaths too."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import DeviceId
from meshnn.errors import MeshError
from meshnn.graph.builder import Builder
from meshnn.graph.splits.merge import exact
from meshnn.node.check import difference
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Shard, Stage
from meshnn.plan.routes import ways
from meshnn.plan.verify import check
from tests.node.mesh import Mesh, Model, mesh, until
from tests.node.random_networks import networks, plans
from tests.node.shelf import A, B, C, D, E, life
from tests.node.test_dataplane import DEADLINE_S, quiet, same
from tests.node.test_shared_parcels import predicted
from tests.node.test_split_dataplane import network, planned


def group(*devices: DeviceId, split: str = "none", shares: tuple[int, ...] = (), weight: int = 1) -> Group:
    """A group over devices, in the one life they have."""
    return Group(tuple(Shard(one, life(one)) for one in devices), split, shares, weight)  # type: ignore[arg-type]


def parallel(model: Model) -> Plan:
    """Two lanes, 1 to 2: E alone, and a pipeline whose second stage is C (weight 2) or B and D in rows (weight 1)."""
    alone = Lane((Stage(0, 8, (group(E),)),), weight=1)
    replicas = (group(C, weight=2), group(B, D, split="spatial", shares=(0, 4, 10)))
    piped = Lane((Stage(0, 3, (group(B),)), Stage(4, 5, replicas), Stage(6, 8, (group(C),))), weight=2)
    plan = Plan(Epoch(1, A, 1), model.name, model.digest, (alone, piped), window=9, share=9)
    check(plan, model.card)
    return plan


async def test_lanes_and_groups_get_the_requests_of_their_weight(tmp_path: Path) -> None:
    """Of nine requests at once three go to E alone, four through C and two through B and D: each answer every byte."""
    model = Model(network(), tmp_path)
    plan = parallel(model)
    async with mesh([A, B, C, D, E]) as found:
        await found.serve(model, PlanSet(plan))
        inputs = [model.inputs(seed) for seed in range(9)]
        outcomes = await asyncio.gather(*(found.origin.plane.ask(model.name, one, DEADLINE_S) for one in inputs))
        for one, outcome in zip(inputs, outcomes, strict=True):
            assert same(outcome.outputs, await model.whole(one))
        dealt = Counter((outcome.lane, outcome.groups) for outcome in outcomes)
        assert dealt == {(lane, groups): round(9 * share) for lane, groups, share in ways(plan)}
        assert dealt == {(0, (0,)): 3, (1, (0, 0, 0)): 4, (1, (0, 1, 0)): 2}
        workers = {(0, (0,)): {E}, (1, (0, 0, 0)): {B, C}, (1, (0, 1, 0)): {B, C, D}}
        for outcome in outcomes:
            assert {time.device for time in outcome.times} == workers[outcome.lane, outcome.groups]
            assert outcome.attempts == 1
        await until(lambda: quiet(found))


async def test_a_dead_replica_leaves_its_requests_to_the_others(tmp_path: Path) -> None:
    """D dies while it holds a request: without any other plan, what goes through it goes through C and E instead."""
    model = Model(network(), tmp_path)
    async with mesh([A, B, C, D, E]) as found:
        await found.serve(model, PlanSet(parallel(model)))
        engine = found.nodes[D].engine
        engine.gate.clear()
        inputs = [model.inputs(seed) for seed in range(9)]
        asking = [
            asyncio.create_task(found.origin.plane.ask(model.name, one, DEADLINE_S), name=str(number))
            for number, one in enumerate(inputs)
        ]
        await engine.entered.wait()
        await found.kill(D)
        outcomes = await asyncio.gather(*asking)
        for one, outcome in zip(inputs, outcomes, strict=True):
            assert same(outcome.outputs, await model.whole(one))
            assert D not in {time.device for time in outcome.times}
        assert sorted(outcome.attempts for outcome in outcomes)[-1] == 2
        await until(lambda: quiet(found))


async def test_answers_in_slices_from_two_devices_of_many_requests_at_once(tmp_path: Path) -> None:
    """The last stage is divided: the origin collects many answers side by side and turns no slice away."""
    b = Builder(np.random.default_rng(2))
    x = b.conv(b.input(1, 6, 6, 3), 8, activation="RELU")
    model = Model(b.graph(b.fully_connected(b.mean(x), 10)), tmp_path)
    last = len(model.graph.operators) - 1
    plan = planned(model, [(0, last - 1, "none", (), "b"), (last, last, "output", (0, 4, 10), "cd")])
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, PlanSet(plan))
        # D holds back what it makes: C's slices of several answers are there before D's.
        gate = found.nodes[D].engine.gate
        gate.clear()
        inputs = [model.inputs(seed) for seed in range(12)]
        asking = [asyncio.create_task(found.origin.plane.ask(model.name, one, DEADLINE_S)) for one in inputs]
        await until(lambda: sum(header.source_part == 0 for header in found.origin.received) == plan.share)
        gate.set()
        outcomes = await asyncio.gather(*asking)
        for one, outcome in zip(inputs, outcomes, strict=True):
            assert same(outcome.outputs, await model.whole(one))
            assert outcome.attempts == 1


@given(st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_plans_run_on_the_mesh(data: st.DataObject) -> None:
    """Random legal plans over real engines: requests at once from two devices, through every lane and group."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(data.draw(networks()), Path(folder), "m")
        plan = seated(data.draw(plans(model.card)))
        try:
            check(plan, model.card)
        except MeshError:
            return
        asyncio.run(ask_all(model, plan))


def seated(plan: Plan) -> Plan:
    """The plan on the devices of these tests."""
    devices = {one[0]: one for one in (A, B, C)}

    def shard(old: Shard) -> Shard:
        return Shard(devices[old.device], life(devices[old.device]))

    lanes = tuple(
        msgspec.structs.replace(
            lane,
            stages=tuple(
                msgspec.structs.replace(
                    stage,
                    groups=tuple(
                        msgspec.structs.replace(one, shards=tuple(map(shard, one.shards))) for one in stage.groups
                    ),
                )
                for stage in lane.stages
            ),
        )
        for lane in plan.lanes
    )
    return msgspec.structs.replace(plan, lanes=lanes, epoch=Epoch(1, A, 1))


async def ask_all(model: Model, plan: Plan) -> None:
    """Ask from a device that works and from one that does not; compare with the whole model, and count the bytes."""
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, PlanSet(plan))
        inputs = [model.inputs(seed) for seed in range(4)]
        wanted = [await model.whole(one) for one in inputs]
        asked = [(found.nodes[origin].plane, number) for origin in (A, D) for number in range(4)]
        outcomes = await asyncio.gather(*(plane.ask("m", inputs[number], DEADLINE_S) for plane, number in asked))
        for (_, number), outcome in zip(asked, outcomes, strict=True):
            stages = plan.lanes[outcome.lane].stages
            chosen = [stage.groups[index] for stage, index in zip(stages, outcome.groups, strict=True)]
            if all(exact(one.split) for one in chosen):
                assert same(outcome.outputs, wanted[number])
            else:
                errors = [difference(outcome.outputs[tensor], wanted[number][tensor]) for tensor in wanted[number]]
                assert max(errors) < 1e-3
        await until(lambda: quiet(found))
        before = {node.me: len(node.received) for node in found.nodes.values()}
        await _counted(found, model, plan, before)


async def _counted(found: Mesh, model: Model, plan: Plan, before: dict[DeviceId, int]) -> None:
    """One more request from D: what crosses the network is what the planner says of its way."""
    outcome = await found.nodes[D].plane.ask("m", model.inputs(9), DEADLINE_S)
    await until(lambda: quiet(found))
    crossed = sum(
        tensor.size_bytes
        for node in found.nodes.values()
        for header in node.received[before[node.me] :]
        for tensor in header.tensors
    )
    lane = plan.lanes[outcome.lane]
    stages = tuple(
        msgspec.structs.replace(stage, groups=(stage.groups[index],))
        for stage, index in zip(lane.stages, outcome.groups, strict=True)
    )
    way = msgspec.structs.replace(plan, lanes=(Lane(stages),))
    assert crossed == predicted(model, way, D)
