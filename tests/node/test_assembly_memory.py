"""Memory is bounded by the window: whatever arrives in whatever order, a shard holds what the planner counts for it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import DeviceId
from meshnn.errors import BusyError, MeshError
from meshnn.graph.builder import Builder
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.node.assembly import Assembly, Key
from meshnn.node.inputs import Arrival
from meshnn.node.slices import Array, Passage, Piece, buffers_of, dealt, header_of, parcel_of, pieces_of
from meshnn.node.ways import Ways
from meshnn.plan import boxes
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage
from meshnn.plan.ranges import addends_before, assembly_bytes, plan_memory, shard_memory
from meshnn.plan.shipments import At
from meshnn.plan.verify import check
from tests.node.random_networks import networks, plans
from tests.node.shelf import A, B, C, life

LIMIT_BYTES = 1 << 40
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def real_bytes(assembly: Assembly) -> int:
    """The memory that everything in an assembly keeps alive, each payload or array of its own counted once."""
    held = [array for entry in assembly._collecting.values() for array in entry.inputs.arrays]
    held += [array for running in assembly._running.values() for array in running.tensors.values()]
    owners: dict[int, int] = {}
    for array in held:
        owner: object = array
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if isinstance(owner, memoryview):
            owner = owner.obj
        size = owner.nbytes if isinstance(owner, np.ndarray) else len(owner)  # type: ignore[arg-type]
        owners[id(owner)] = size
    return sum(owners.values())


def arrivals(ways: Ways, origin: DeviceId, at: At, request: str) -> list[tuple[Key, Arrival]]:
    """Everything that comes to a shard for one request, as views of payloads as the network brings them."""
    passage = Passage(request, 1, "m", Epoch(1, A, 1), origin, life(A), 0, (0,) * ways.routes.stages)
    found = []
    for shipment in ways.traffic.received(at, origin):
        whole: dict[int, Array] = {
            tensor: np.zeros(ways.model.tensor(tensor).shape, ways.model.tensor(tensor).dtype)
            for tensor, _ in shipment.boxes
        }
        parcel = parcel_of(shipment, whole, {})
        payload = bytearray().join(buffers_of(parcel))
        pieces = pieces_of(header_of(passage, parcel, shipment.source, 1, ()), memoryview(payload))
        mine: tuple[Piece, ...] = next(taken for reader, taken in dealt(shipment, pieces) if reader == at)
        found.append((Key(passage, *at), Arrival(shipment.source, shipment.address, mine)))
    return found


def bring(assembly: Assembly, ways: Ways, slices: list[tuple[Key, Arrival]], rng: random.Random, bound: int) -> None:
    """Slices in any order, with duplicates, runs, ends and cancels between; the bound holds after each step."""
    now = 0.0
    for key, arrival in slices:
        now += 0.01
        target = ways.target((key.stage, key.part), key.origin)
        try:
            complete = assembly.add(key, target, arrival, now + 60, now)
        except BusyError:
            assert assembly.held_bytes + target.reserve_bytes > bound or len(assembly.keys) == 2 * target.window
            complete = None
        assert real_bytes(assembly) <= assembly.held_bytes + 64 * len(slices)
        assert assembly.held_bytes <= bound
        if complete is not None and rng.random() < 0.7:
            assert assembly.begin(key)
            steps = [assembly.spend, assembly.finish][rng.randrange(2) :]
            for step in steps:
                step(key)
        if rng.random() < 0.1:
            assembly.cancel(key.origin, key.passage.request, 1, now)
        assert assembly.held_bytes <= bound


@given(st.data(), st.randoms(use_true_random=False))
@SLOW
def test_a_shard_never_holds_more_than_the_planner_counts(data: st.DataObject, rng: random.Random) -> None:
    """Random plans, every shard of a way, twice the window of requests, slices shuffled over all of them."""
    card = card_of(data.draw(networks()), "d" * 64, 0, "net")
    plan = data.draw(plans(card))
    try:
        check(plan, card)
    except MeshError:
        return
    model = outline(card)
    ways = Ways(model, plan, 0, (0,) * len(plan.lanes[0].stages))
    addends = addends_before(model, plan.lanes[0].stages)
    for at in ways.routes.devices:
        slices = [one for n in range(2 * plan.window) for one in arrivals(ways, DeviceId("a"), at, f"r{n}")]
        rng.shuffle(slices)
        bound = plan.window * assembly_bytes(model, ways.recipe(*at), addends)
        assert bound >= plan.window * ways.target(at, DeviceId("a")).reserve_bytes
        bring(Assembly(LIMIT_BYTES), ways, slices + slices[::3], rng, bound)


def summing() -> Card:
    """Three convolutions, the last of 6 x 6 x 8 -> 4."""
    b = Builder(np.random.default_rng(3))
    return card_of(b.graph(b.conv(b.conv(b.conv(b.input(1, 6, 6, 4), 8), 8), 4)), "d" * 64, 0, "net")


def planned(*parts: tuple[str, tuple[int, ...], tuple[DeviceId, ...]]) -> Plan:
    """A plan of one operator a stage."""
    stages = tuple(
        Stage(at, at, (Group(tuple(Shard(one, life(one)) for one in devices), split, shares),))  # type: ignore[arg-type]
        for at, (split, shares, devices) in enumerate(parts)
    )
    return Plan(Epoch(1, A, 1), "m", "d" * 64, (Lane(stages),), window=3, share=3)


@pytest.mark.parametrize("order", ["last first", "in order", "middle first"])
def test_addends_that_wait_are_counted_by_planner_and_node_alike(order: str) -> None:
    """Four partial sums for one reader: four boxes for each request of the window, however they arrive."""
    card = summing()
    plan = planned(("none", (), (A,)), ("input", (0, 2, 4, 6, 8), (A, B, C, B)), ("none", (), (C,)))
    whole = planned(("none", (), (A,)), ("none", (), (B,)), ("none", (), (C,)))
    check(plan, card)
    box_bytes = 6 * 6 * 8 * 4
    assert plan_memory(card, whole)[C] + 3 * 3 * box_bytes == shard_memory(card, plan, C)[plan.recipes_of(C)[-1]]
    model = outline(card)
    ways = Ways(model, plan, 0, (0, 0, 0))
    assert ways.target((2, 0), A).reserve_bytes == 4 * box_bytes
    assembly = Assembly(LIMIT_BYTES)
    sets = [arrivals(ways, A, (2, 0), f"r{n}") for n in range(3)]
    turns = {"last first": (3, 2, 1, 0), "in order": (0, 1, 2, 3), "middle first": (2, 1, 3, 0)}[order]
    most = 0
    for turn in turns[:-1]:
        for one in sets:
            assembly.add(one[turn][0], ways.target((2, 0), A), one[turn][1], 9.0, 0.0)
            most = max(most, real_bytes(assembly))
            assert assembly.held_bytes <= 3 * 4 * box_bytes
    assert most <= 3 * 4 * box_bytes
    if order == "last first":
        assert most >= 3 * 3 * box_bytes


def test_a_view_of_a_corner_does_not_keep_a_neighbours_bytes() -> None:
    """A parcel for two strips: the second takes one row of it, as a copy; alone the first keeps it where it came."""
    card = summing()
    plan = planned(("none", (), (A,)), ("spatial", (0, 3, 6), (B, B)), ("none", (), (C,)))
    ways = Ways(outline(card), plan, 0, (0, 0, 0))
    first, second = Assembly(LIMIT_BYTES), Assembly(LIMIT_BYTES)
    ((key, whole),) = arrivals(ways, A, (1, 0), "r1")
    done = first.add(key, ways.target((1, 0), A), whole, 9.0, 0.0)
    assert done is not None
    assert all(np.shares_memory(piece.array, done.tensors[piece.tensor]) for piece in whole.pieces)
    (key, shared), _ = arrivals(ways, A, (1, 1), "r1")
    assert (shared.source, shared.address) == ((0, 0), (1, 0))
    second.add(key, ways.target((1, 1), A), shared, 9.0, 0.0)
    assert real_bytes(second) == ways.target((1, 1), A).reserve_bytes
    assert boxes.volume(shared.pieces[0].box) < boxes.volume(whole.pieces[0].box)


def test_a_whole_input_that_lies_in_a_larger_payload_is_copied() -> None:
    """Kept where it came, it would keep the rest of the payload alive, which nobody counts."""
    card = summing()
    ways = Ways(outline(card), planned(("none", (), (A,)), ("none", (), (B,)), ("none", (), (C,))), 0, (0, 0, 0))
    ((key, alone),) = arrivals(ways, A, (1, 0), "r1")
    payloads = [np.concatenate([piece.array.ravel(), piece.array.ravel()]) for piece in alone.pieces]
    views = [
        replace(piece, array=payload[: piece.array.size].reshape(piece.array.shape))
        for piece, payload in zip(alone.pieces, payloads, strict=True)
    ]
    done = Assembly(LIMIT_BYTES).add(key, ways.target((1, 0), A), replace(alone, pieces=tuple(views)), 9.0, 0.0)
    assert done is not None
    for piece, payload in zip(alone.pieces, payloads, strict=True):
        assert np.array_equal(done.tensors[piece.tensor], piece.array)
        assert not np.shares_memory(done.tensors[piece.tensor], payload)
