"""Data planes that work together: real engines, real fragments, the network in memory, deaths at bad moments."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import DeadlineError, InputError, ModelError, NodeError
from meshnn.graph.builder import Builder
from meshnn.graph.ir import Graph
from meshnn.net.transport import Evidence
from meshnn.node.slices import Array
from meshnn.plan.messages import Cancel, Failed, Receipt
from meshnn.plan.plan import Epoch, Plan, PlanSet
from tests.node.mesh import Mesh, Model, Node, mesh, until
from tests.node.shelf import A, B, C, D, E, boot, life, pipeline

DEADLINE_S = 50.0


def skipping(seed: int = 1) -> Graph:
    """Seven convolutions with a skip from the first to the last: it goes past the middle of three stages."""
    b = Builder(np.random.default_rng(seed), "int8")
    first = b.conv(b.input(1, 12, 12, 3, name="image"), 8, activation="RELU")
    y = first
    for _ in range(5):
        y = b.conv(y, 8, activation="RELU")
    y = b.add(b.conv(y, 8), first)
    return b.graph(b.softmax(b.fully_connected(b.mean(y), 10)))


def ends() -> Graph:
    """Two inputs, one read late; three outputs, one made early, one an input as it came."""
    b = Builder(np.random.default_rng(5), "float32")
    first, late = b.input(1, 6, 6, 4, name="first"), b.input(1, 6, 6, 4, name="late")
    early = b.conv(first, 4)
    middle = b.conv(early, 4, activation="RELU")
    return b.graph(b.add(middle, late), early, late)


def thirds(
    model: Model,
    *devices: DeviceId,
    epoch: Epoch | None = None,
    share: int = 4,
    lives: Mapping[DeviceId, BootId] | None = None,
) -> Plan:
    """A plan over these devices with equally long stages."""
    count = len(model.graph.operators)
    edges = [round(count * number / len(devices)) for number in range(len(devices) + 1)]
    cuts = [(first, last - 1) for first, last in itertools.pairwise(edges)]
    return pipeline(devices, cuts, epoch=epoch, digest=model.digest, share=share, lives=lives)


def with_contingencies(
    model: Model, *devices: DeviceId, epoch: Epoch | None = None, lives: Mapping[DeviceId, BootId] | None = None
) -> PlanSet:
    """That plan, and for each of its devices the plan without it."""
    main = thirds(model, *devices, epoch=epoch, lives=lives)
    others = [
        thirds(model, *[one for one in devices if one != gone], epoch=main.epoch.without(gone), lives=lives)
        for gone in devices
    ]
    return PlanSet(main, tuple(others))


def same(got: Mapping[int, Array], wanted: Mapping[int, Array]) -> bool:
    """Whether two answers are equal in every byte."""
    return sorted(got) == sorted(wanted) and all(
        (got[one].shape, got[one].dtype, got[one].tobytes()) == (array.shape, array.dtype, array.tobytes())
        for one, array in wanted.items()
    )


def quiet(found: Mesh) -> bool:
    """Whether nothing is under way anywhere, and no link is watched."""
    return all(
        node.plane.stats().open == 0
        and node.plane.stats().inside == 0
        and not any(node.transport.expects(other) for other in found.nodes)
        for node in found.nodes.values()
    )


def ahead(counts: list[int], before: list[int]) -> bool:
    """Whether every asker got on since."""
    return all(now > then for now, then in zip(counts, before, strict=True))


def busy(node: Node) -> bool:
    """Whether a device holds requests."""
    return node.plane.stats().inside > 0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """The model with the skip."""
    return Model(skipping(), tmp_path)


async def test_three_stages_answer_every_byte_of_the_whole_model(model: Model) -> None:
    """A pipeline over three devices with a skip past the middle one: the origin gets the whole model's answer."""
    inputs = model.inputs(1)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        outcome = await found.origin.plane.ask("cat", inputs, DEADLINE_S)
        assert same(outcome.outputs, await model.whole(inputs))
        assert [(time.stage, time.device) for time in outcome.times] == [(0, B), (1, C), (2, D)]
        assert all(time.bytes_in > 0 and time.compute_ms > 0 for time in outcome.times)
        assert (outcome.attempts, outcome.exact, outcome.plan.epoch.absent) == (1, True, "")
        await until(lambda: quiet(found))


async def test_stages_on_the_origin_itself_need_no_network(model: Model) -> None:
    """Where all stages are the origin's own, nothing is sent at all; two of three, and only they have traffic."""
    inputs = model.inputs(2)
    wanted = await model.whole(inputs)
    async with mesh([A, B]) as found:
        await found.serve(model, PlanSet(thirds(model, A, A, A)))
        outcome = await found.origin.plane.ask("cat", inputs, DEADLINE_S)
        assert same(outcome.outputs, wanted)
        assert [time.bytes_in for time in outcome.times] == [0, 0, 0]
        assert found.nodes[B].seen == found.origin.seen == []
        await found.serve(model, PlanSet(thirds(model, A, B, A, epoch=Epoch(1, A, 2))))
        outcome = await found.origin.plane.ask("cat", inputs, DEADLINE_S)
        assert same(outcome.outputs, wanted)
        assert [time.bytes_in > 0 for time in outcome.times] == [False, True, True]


async def test_inputs_read_late_and_outputs_made_early(tmp_path: Path) -> None:
    """Inputs go straight to whoever reads them, early outputs straight to the origin, an echoed input nowhere."""
    model = Model(ends(), tmp_path)
    inputs = model.inputs(3)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, PlanSet(thirds(model, B, C, D)))
        outcome = await found.origin.plane.ask("cat", inputs, DEADLINE_S)
        assert same(outcome.outputs, await model.whole(inputs))
        assert len(outcome.outputs) == 3


@pytest.mark.parametrize("victim", [B, C, D])
async def test_death_in_the_middle_of_a_stage_is_answered_by_the_contingency(model: Model, victim: DeviceId) -> None:
    """Whichever device dies while it holds the request: the second attempt goes without it, the bytes are right."""
    inputs = model.inputs(4)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        engine = found.nodes[victim].engine
        engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S))
        await engine.entered.wait()
        found.network.crash(victim)
        outcome = await asking
        assert same(outcome.outputs, await model.whole(inputs))
        assert (outcome.attempts, outcome.plan.epoch.absent) == (2, victim)
        workers = {time.device for time in outcome.times}
        assert victim not in workers
        # Whoever worked for it has said so, or another contingency could take its room meanwhile.
        assert all(set(found.nodes[one].shelf.asked) == {("cat", outcome.plan.epoch)} for one in workers - {A})


async def test_silent_power_loss_is_noticed_by_the_pings(model: Model) -> None:
    """Nobody resets anything: the origin itself watches every device of the way and goes around the mute one."""
    inputs = model.inputs(5)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        engine = found.nodes[D].engine
        engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S))
        await engine.entered.wait()
        found.network.unplug(D)
        outcome = await asking
        assert same(outcome.outputs, await model.whole(inputs))
        assert outcome.plan.epoch.absent == D


async def test_pair_that_cannot_reach_each_other_is_gone_around(model: Model) -> None:
    """B and C have no link, the origin reaches both: B names C, and later requests avoid C at once."""
    inputs = model.inputs(6)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        found.network.cut(B, C)
        found.network.cut(C, B)
        outcome = await found.origin.plane.ask("cat", inputs, DEADLINE_S)
        assert same(outcome.outputs, await model.whole(inputs))
        assert outcome.plan.epoch.absent == C
        told = [message for message in found.origin.seen if isinstance(message, Failed)]
        assert {message.culprit for message in told} == {C}
        assert found.origin.transport.connected(C)
        assert (await found.origin.plane.ask("cat", inputs, DEADLINE_S)).attempts == 1


async def test_retired_plan_is_refused_and_the_next_one_used(model: Model) -> None:
    """A stage that no longer serves the epoch says so; the request goes with the newer plan, nobody is accused."""
    inputs = model.inputs(7)
    async with mesh([A, B, C, D]) as found:
        old, new = thirds(model, B, C, D), thirds(model, B, C, D, epoch=Epoch(2, B, 1))
        await found.serve(model, PlanSet(old))
        for device in (B, C, D):
            found.nodes[device].shelf.active["cat"] = PlanSet(new)
        asking = asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S))
        await until(lambda: any(isinstance(message, Failed) for message in found.origin.seen))
        found.origin.shelf.active["cat"] = PlanSet(new)
        found.origin.plane.on_plans_changed()
        outcome = await asking
        told = next(message for message in found.origin.seen if isinstance(message, Failed))
        assert (told.code, told.culprit, told.newest) == ("stale_epoch_error", "", new.epoch)
        assert same(outcome.outputs, await model.whole(inputs))
        assert outcome.plan == new


async def test_work_for_an_earlier_life_of_a_device_is_refused(model: Model) -> None:
    """A plan that names another boot of C is not served by C; with C linked, the origin does not even try it."""
    async with mesh([A, B, C, D]) as found:
        main = pipeline([B, C], [(0, 4), (5, 9)], digest=model.digest, lives={C: boot(7)})
        await found.serve(model, PlanSet(main))
        with pytest.raises(DeadlineError):
            await found.origin.plane.ask("cat", model.inputs(1), 0.2)
        assert found.nodes[B].engine.runs == 0


async def test_many_requests_at_once_are_each_answered_right(model: Model) -> None:
    """Thirty requests over a share of two, from two origins: each gets its own answer, the window is kept."""
    inputs = [model.inputs(seed) for seed in range(30)]
    async with mesh([A, B, C, D]) as found:
        main = thirds(model, B, C, D, share=2)
        await found.serve(model, PlanSet(main))
        worst = 0

        async def one(number: int) -> bool:
            nonlocal worst
            plane = found.nodes[A if number % 2 else B].plane
            outcome = await plane.ask("cat", inputs[number], DEADLINE_S)
            worst = max(worst, found.nodes[C].plane.stats().inside)
            return same(outcome.outputs, wanted[number])

        wanted = [await model.whole(one_input) for one_input in inputs]
        assert await asyncio.gather(*(one(number) for number in range(30))) == [True] * 30
        assert worst <= 2 * main.share
        await until(lambda: quiet(found))


async def test_inputs_that_do_not_fit_are_refused_by_name(model: Model) -> None:
    """A wrong shape and a missing tensor fail at once, whatever the mesh does."""
    async with mesh([A, B]) as found:
        await found.serve(model, PlanSet(thirds(model, A, B)))
        (index,) = model.inputs(1)
        with pytest.raises(InputError, match="image"):
            await found.origin.plane.ask("cat", {index: np.zeros((1, 2, 2, 3), np.int8)}, DEADLINE_S)
        with pytest.raises(InputError, match="missing"):
            await found.origin.plane.ask("cat", {}, DEADLINE_S)
        await until(lambda: quiet(found))


async def test_run_that_fails_everywhere_is_a_model_error(model: Model) -> None:
    """A shard that cannot run on two devices is the model's fault, and the caller hears the reason."""
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        for node in found.nodes.values():
            for handle in node.shelf.handles.values():
                node.engine.unload(handle)
        with pytest.raises(ModelError, match="not loaded"):
            await found.origin.plane.ask("cat", model.inputs(1), DEADLINE_S)


async def test_deadline_is_met_without_a_plan_and_with_a_stage_that_hangs(model: Model) -> None:
    """No plan, or a stage that never ends: a named error at the deadline, and nothing stays behind."""
    async with mesh([A, B, C]) as found:
        with pytest.raises(DeadlineError, match="no plan for cat"):
            await found.origin.plane.ask("cat", model.inputs(1), 0.1)
        await found.serve(model, PlanSet(thirds(model, B, C)))
        found.nodes[C].engine.gate.clear()
        with pytest.raises(DeadlineError, match="no answer"):
            await found.origin.plane.ask("cat", model.inputs(1), 0.3)
        found.nodes[C].engine.gate.set()
        await until(lambda: quiet(found))


async def test_whoever_stops_waiting_frees_the_slots(model: Model) -> None:
    """A cancelled ask is cancelled at its stages too."""
    async with mesh([A, B, C]) as found:
        await found.serve(model, PlanSet(thirds(model, B, C)))
        found.nodes[C].engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", model.inputs(1), DEADLINE_S))
        await found.nodes[C].engine.entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: Cancel in {type(message) for message in found.nodes[C].seen})
        await until(lambda: found.origin.plane.in_flight(thirds(model, B, C).epoch) == 0)
        found.nodes[C].engine.gate.set()
        await until(lambda: quiet(found))


async def test_receipt_comes_before_the_stage_has_run(model: Model) -> None:
    """The receiver acknowledges a whole slice at once, so that a long stage is no silence."""
    async with mesh([A, B]) as found:
        await found.serve(model, PlanSet(thirds(model, B)))
        found.nodes[B].engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", model.inputs(1), DEADLINE_S))
        await until(lambda: any(isinstance(message, Receipt) for message in found.origin.seen))
        assert found.nodes[B].engine.runs == 0
        assert found.origin.transport.expects(B)
        found.nodes[B].engine.gate.set()
        await asking
        await until(lambda: quiet(found))


async def test_evidence_while_a_parcel_is_unacknowledged_names_the_device(model: Model) -> None:
    """C vanishes after taking bytes but before its receipt: B tells the origin whom to avoid."""
    inputs = model.inputs(8)
    async with mesh([A, B, C, D]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        outstanding = found.nodes[B].plane._carrier
        found.nodes[C].engine.gate.clear()
        found.network.cut(C, B)
        asking = asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S))
        await until(lambda: len(outstanding) > 0 or asking.done())
        found.nodes[B].on_unlinked(C, str(Evidence.RESET))
        outcome = await asking
        assert same(outcome.outputs, await model.whole(inputs))
        assert outcome.plan.epoch.absent == C


async def test_kills_and_restarts_under_load_lose_nothing(model: Model) -> None:
    """Four askers on two origins while each working device is killed and restarted in turn: every answer is right."""
    inputs = [model.inputs(seed) for seed in range(8)]
    wanted = [await model.whole(one) for one in inputs]
    async with mesh([A, B, C, D, E]) as found:
        await found.serve(model, with_contingencies(model, B, C, D))
        over = asyncio.Event()
        counts = [0] * 4

        async def asker(number: int) -> bool:
            plane = found.nodes[A if number % 2 else E].plane
            right = True
            while not over.is_set():
                turn = (number + counts[number]) % len(inputs)
                outcome = await plane.ask("cat", inputs[turn], DEADLINE_S)
                right = right and same(outcome.outputs, wanted[turn])
                counts[number] += 1
            return right

        lives = {device: life(device) for device in (B, C, D)}
        asking = [asyncio.create_task(asker(number)) for number in range(4)]
        for number, victim in enumerate([C, B, D, C]):
            before = list(counts)
            await until(partial(ahead, counts, before))
            found.nodes[victim].engine.gate.clear()
            await until(partial(busy, found.nodes[victim]))
            await found.kill(victim)
            lives[victim] = boot(1000 + number)
            await found.start(victim, lives[victim])
            await found.serve(model, with_contingencies(model, B, C, D, epoch=Epoch(2, A, number), lives=lives))
        over.set()
        assert await asyncio.gather(*asking) == [True] * 4
        assert min(counts) >= 4
        await until(lambda: quiet(found))


async def test_shard_unloaded_under_a_run_is_no_fault_of_the_model(model: Model) -> None:
    """A plan whose shard is dropped while a request waits for it is over, and the request goes with the next plan."""
    inputs = model.inputs(9)
    async with mesh([A, B, C]) as found:
        await found.serve(model, PlanSet(thirds(model, A, B)))
        node = found.nodes[B]
        node.engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S))
        await node.engine.entered.wait()
        for recipe, handle in list(node.shelf.handles.items()):
            del node.shelf.handles[recipe]
            node.engine.unload(handle)
        node.engine.gate.set()
        await until(lambda: any(isinstance(message, Failed) for message in found.origin.seen))
        await found.serve(model, PlanSet(thirds(model, A, C, epoch=Epoch(2, A, 1))))
        assert same((await asking).outputs, await model.whole(inputs))
        assert {message.code for message in found.origin.seen if isinstance(message, Failed)} == {"stale_epoch_error"}


async def test_what_waits_to_run_goes_with_its_plan(model: Model) -> None:
    """At most two run of four when the plan is replaced, the shard still loaded: the others run by the next plan."""
    inputs = model.inputs(3)
    async with mesh([A, B]) as found:
        await found.serve(model, PlanSet(thirds(model, B)))
        node = found.nodes[B]
        node.engine.gate.clear()
        asking = [asyncio.create_task(found.origin.plane.ask("cat", inputs, DEADLINE_S)) for _ in range(4)]
        await node.engine.entered.wait()
        await until(lambda: node.plane.stats().inside == 4)
        await found.serve(model, PlanSet(thirds(model, B, epoch=Epoch(1, A, 2))))
        node.shelf.others.clear()  # it has drained
        node.engine.gate.set()
        outcomes = await asyncio.gather(*asking)
        assert all([same(outcome.outputs, await model.whole(inputs)) for outcome in outcomes])
        numbers = sorted(outcome.plan.epoch.number for outcome in outcomes)
        assert (numbers[0], numbers[2:]) == (1, [2, 2])


async def test_stopping_node_tells_whoever_waits(model: Model) -> None:
    """An ask that is open when the node stops ends with a named error."""
    async with mesh([A, B]) as found:
        await found.serve(model, PlanSet(thirds(model, B)))
        found.nodes[B].engine.gate.clear()
        asking = asyncio.create_task(found.origin.plane.ask("cat", model.inputs(1), DEADLINE_S))
        await found.nodes[B].engine.entered.wait()
        await found.kill(A)
        with pytest.raises(NodeError, match="stopping"):
            await asking


@pytest.mark.parametrize("edges", [(1, 3), (2, 5), (4, 8), (7, 9)])
async def test_any_cut_gives_the_same_bytes(model: Model, edges: tuple[int, int]) -> None:
    """Wherever the model is cut in three, on one device or three, the answer is the whole model's."""
    inputs = model.inputs(10)
    wanted = await model.whole(inputs)
    last = len(model.graph.operators) - 1
    cuts = [(0, edges[0] - 1), (edges[0], edges[1] - 1), (edges[1], last)]
    async with mesh([A, B, C]) as found:
        for number, devices in enumerate([(A, A, A), (A, B, C), (C, B, A)]):
            plan = pipeline(devices, cuts, epoch=Epoch(1, A, number), digest=model.digest)
            await found.serve(model, PlanSet(plan))
            assert same((await found.origin.plane.ask("cat", inputs, DEADLINE_S)).outputs, wanted)
