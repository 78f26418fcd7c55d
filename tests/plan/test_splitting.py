"""Split stages in the solver: chosen where they answer much sooner or memory forces them, exact ones alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from meshnn.errors import NoPlanError
from meshnn.graph.builder import Builder
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.plan.devices import DeviceInfo, Link, Links
from meshnn.plan.outline import outline
from meshnn.plan.plan import Plan
from meshnn.plan.planner import solve_set
from meshnn.plan.predict import predict
from meshnn.plan.verify import check
from tests.plan.cards import DIGEST, EPOCH, device

FAST = Links(Link(110_000.0, 0.5))


def heavy(layers: int = 6, size: int = 64, channels: int = 32, outputs: int = 10) -> Card:
    """Convolutions that take their time, then a classifier."""
    b = Builder(np.random.default_rng(1))
    x = b.input(1, size, size, 3)
    for _ in range(layers):
        x = b.conv(x, channels, activation="RELU")
    return card_of(b.graph(b.fully_connected(b.mean(b.pool(x)), outputs)), DIGEST, 0, "heavy")


def wide(inputs: int, outputs: int) -> Card:
    """A small layer, one of many weights, a small one."""
    b = Builder(np.random.default_rng(1), "int8")
    x = b.fully_connected(b.input(1, 16), inputs)
    return card_of(b.graph(b.fully_connected(b.fully_connected(x, outputs), 4)), DIGEST, 0, "wide")


def solved(card: Card, devices: list[DeviceInfo], links: Links = FAST) -> Plan:
    """The main plan, which everybody would accept."""
    plan = solve_set("m", card, devices, links, EPOCH).main
    check(plan, card, devices)
    return plan


def splits(plan: Plan) -> set[str]:
    """The splits of a plan."""
    return {recipe.split for recipe, _ in plan.placements()}


def test_rows_over_several_devices_where_that_is_much_faster() -> None:
    """Heavy convolutions, slow devices, a fast link: rows are shared, and the prediction falls by far."""
    card = heavy()
    devices = [device(name, speed=0.05) for name in "abcd"]
    plan = solved(card, devices)
    assert splits(plan) == {"spatial", "none"}
    alone = card.work(0, len(card.operators) - 1) / 0.05
    assert predict(plan, card, devices, FAST).latency_ms < 0.6 * alone


def test_a_slow_device_gets_fewer_rows() -> None:
    """Shares follow the speeds."""
    plan = solved(heavy(), [device("a", speed=0.02), device("b", speed=0.01)])
    group = next(stage.groups[0] for stage in plan.lanes[0].stages if stage.groups[0].split == "spatial")
    rows = dict(zip((str(shard.device) for shard in group.shards), np.diff(group.shares), strict=True))
    assert 1.5 * rows["b"] < rows["a"]


@pytest.mark.parametrize(
    ("speed", "links"),
    [(100.0, FAST), (0.05, Links(Link(20.0, 50.0)))],
)
def test_one_device_where_a_split_does_not_pay(speed: float, links: Links) -> None:
    """A fast device, or a slow link: nothing is divided."""
    plan = solved(heavy(), [device(name, speed=speed) for name in "abc"], links)
    assert splits(plan) == {"none"}
    assert len(plan.devices()) == 1


def test_a_layer_too_large_for_any_device_is_divided_exactly() -> None:
    """Memory forces it: outputs over several devices, and a plan for most deaths; with too little, the reason."""
    card = wide(1000, 4000)
    devices = [device(name, 4_000_000) for name in "abcd"]
    plans = solve_set("m", card, devices, FAST, EPOCH)
    check(plans.main, card, devices)
    assert splits(plans.main) == {"output", "none"}
    assert len(plans.contingencies) == len(plans.main.devices())
    with pytest.raises(NoPlanError, match="alone needs 8"):
        solve_set("m", card, devices[:1], FAST, EPOCH)


def test_shares_that_memory_forces_follow_the_memory() -> None:
    """A device with half of the memory holds about half as many outputs."""
    plan = solved(wide(1000, 4000), [device("a", 7_000_000, 0.001), device("b", 3_500_000, 0.001)])
    group = next(stage.groups[0] for stage in plan.lanes[0].stages if stage.groups[0].split == "output")
    rows = dict(zip((str(shard.device) for shard in group.shards), np.diff(group.shares), strict=True))
    assert 1.5 * rows["b"] < rows["a"] < 3 * rows["b"]


def test_shares_that_memory_forces_are_multiples_of_what_kernels_work_in() -> None:
    """Uneven, but at multiples of 16: 4000 outputs by 7 to 4 to 3 parts of memory."""
    devices = [device(name, size, 0.001) for name, size in (("a", 5_000_000), ("b", 3_500_000), ("c", 3_000_000))]
    plan = solved(wide(1000, 4000), devices)
    group = next(stage.groups[0] for stage in plan.lanes[0].stages if stage.groups[0].split == "output")
    assert len(set(np.diff(group.shares).tolist())) > 1
    assert all(boundary % 16 == 0 for boundary in group.shares[:-1])


def test_partial_sums_are_never_chosen_for_speed() -> None:
    """Whatever the devices, a plan that memory does not force is exact."""
    for speed in (0.01, 0.05, 0.5):
        for count in (2, 3, 5):
            plan = solved(heavy(4), [device(name, speed=speed * (1 + at)) for at, name in enumerate("abcde"[:count])])
            assert "input" not in splits(plan)


def test_the_search_for_splits_ends_soon() -> None:
    """Two hundred operators and five devices: the whole plan set in little time (the machine of the tests is slow)."""
    card = outline(heavy(200, 64, 8))
    started = time.process_time()
    plans = solve_set("m", card, [device(name, speed=0.01) for name in "abcde"], FAST, EPOCH)
    assert time.process_time() - started < 10
    assert "spatial" in splits(plans.main)
