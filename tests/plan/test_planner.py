"""Plan sets: contingencies for every single death, and plans that stay while nothing much better is to be had."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan.contingency import contingencies
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Stage
from meshnn.plan.planner import solve_set
from meshnn.plan.predict import Prediction
from meshnn.plan.ranges import memory_of, plan_memory
from meshnn.plan.solver import Problem, fits, worth_switching
from meshnn.plan.verify import check
from tests.plan.cards import EPOCH, Op, card, chain, device, links, pipeline, shard, spans

HEAVY = chain(8, weights=100_000)
NEXT = Epoch(1, DeviceId("leader"), 2)


def planned(devices: list[DeviceInfo], model: Card = HEAVY, **changes: object) -> PlanSet:
    """The plan set of a model over devices on made-up links."""
    return solve_set("m", model, devices, links(), EPOCH, **({"origins": len(devices)} | changes))  # type: ignore[arg-type]


def test_every_device_of_the_plan_has_a_contingency_without_it() -> None:
    """Each contingency carries the epoch of the plan with the absent device, and does without it."""
    devices = [device(name, 700_000) for name in "abcde"]
    plans = planned(devices)
    assert sorted(plan.epoch.absent for plan in plans.contingencies) == list(plans.main.devices())
    for plan in plans.contingencies:
        assert plan.epoch.main == plans.main.epoch
        assert plan.epoch.absent not in plan.devices()
        check(plan, HEAVY, devices)


def test_the_survivors_keep_their_shards() -> None:
    """With a spare device, a contingency moves only what the dead device held."""
    plans = planned([device(name, 700_000) for name in "abcd"])
    main = plans.main.placements()
    assert len(main) == 3
    for plan in plans.contingencies:
        kept = [entry for entry in main if entry[1].device != plan.epoch.absent]
        assert set(kept) <= set(plan.placements())
        assert [recipe for recipe, _ in plan.placements()] == [recipe for recipe, _ in main]


def test_contingencies_fit_beside_the_plan_and_each_other_where_memory_allows() -> None:
    """With room for two shards everywhere, all contingencies can be loaded at once beside the plan."""
    devices = [device(name, 1_500_000 if name in "de" else 700_000) for name in "abcde"]
    plans = planned(devices, asking={DeviceId("a"): 1.0})
    taken = memory_of(HEAVY, plans.plans)
    assert len(plans.contingencies) == len(plans.main.devices()) > 0
    assert all(taken[info.device] <= info.memory_bytes for info in devices if info.device in taken)


def test_a_contingency_that_fits_only_alone_is_planned_all_the_same() -> None:
    """Survivors that are full beside the plan still have a plan for when it is over."""
    devices = [device(name, 1_000_000) for name in "abc"]
    plans = planned(devices)
    assert len(plans.main.devices()) == 2
    for plan in plans.contingencies:
        memory = plan_memory(HEAVY, plan)
        assert all(memory[info.device] <= info.memory_bytes for info in devices if info.device in memory)
    assert len(plans.contingencies) == 2


def test_a_death_that_nothing_can_replace_has_no_contingency() -> None:
    """Two devices that are both needed: no plan without either, and no error for it."""
    plans = planned([device("a", 1_000_000), device("b", 1_000_000)])
    assert len(plans.main.devices()) == 2
    assert plans.contingencies == ()
    assert planned([device("a")]).contingencies == ()


def test_one_device_is_backed_by_the_next_best() -> None:
    """A plan of one device has the fastest survivor behind it."""
    plans = planned([device("a", speed=3.0), device("b", speed=1.0), device("c", speed=2.0)])
    assert spans(plans.main) == [(0, 7, "a")]
    assert [spans(plan) for plan in plans.contingencies] == [[(0, 7, "c")]]


def test_a_much_faster_contingency_is_worth_new_shards() -> None:
    """Where keeping the survivors' shards means a crawl on a slow heir, the rest is planned afresh."""
    model = card([Op(work=100.0, weights=100_000), Op(work=1.0, weights=100_000)])
    devices = [device("a", 450_000, 10.0), device("b", 800_000, 5.0), device("c", 450_000, 0.01)]
    main = pipeline(model, [(1, devices[0]), (1, devices[1])])
    problem = Problem("m", outline(model), tuple(devices), links(), origins=1)
    found = {plan.epoch.absent: plan for plan in contingencies(problem, main)}
    assert spans(found[DeviceId("a")]) == [(0, 0, "b"), (1, 1, "b")]
    assert "c" not in found[DeviceId("a")].devices()


def test_replicas_and_lanes_without_the_dead_are_the_contingency() -> None:
    """Of an explicit plan with replicas the groups that remain are enough, at no cost in memory."""
    model = chain(2)
    a, b, c = device("a"), device("b"), device("c")
    stages = (Stage(0, 0, (Group((shard(a),)), Group((shard(b),)))), Stage(1, 1, (Group((shard(c),)),)))
    main = Plan(
        EPOCH, "m", model.digest, (Lane(stages), Lane((Stage(0, 1, (Group((shard(b),)),)),))), 4, 2, pinned=True
    )
    problem = Problem("m", outline(model), (a, b, c), links())
    found = {plan.epoch.absent: plan for plan in contingencies(problem, main)}
    assert len(found["a"].lanes) == 2
    assert [len(stage.groups) for stage in found["a"].lanes[0].stages] == [1, 1]
    assert len(found["c"].lanes) == 1
    assert not found["c"].pinned


def test_memory_used_by_other_models_is_left_alone() -> None:
    """What other models take of a device is not offered twice."""
    devices = [device("a", 2_000_000, speed=9.0), device("b", 2_000_000)]
    assert planned(devices).main.devices() == ("a",)
    assert planned(devices, memory_used_elsewhere={DeviceId("a"): 1_500_000}).main.devices() == ("b",)


def test_a_running_plan_stays_unless_the_gain_is_worth_it() -> None:
    """A little faster device does not move a running plan; a much faster one does."""
    running = planned([device("a")]).main
    near = [device("a"), device("b", speed=1.1)]
    far = [device("a"), device("b", speed=3.0)]
    stays = solve_set("m", HEAVY, near, links(), NEXT, origins=1, prefer=running)
    assert stays.main.devices() == ("a",)
    assert stays.main.epoch == NEXT
    assert solve_set("m", HEAVY, far, links(), NEXT, origins=1, prefer=running).main.devices() == ("b",)


def test_a_running_plan_of_a_dead_life_is_left() -> None:
    """A restarted device is a new device: the plan that named its old life is not kept."""
    running = planned([device("a")]).main
    reborn = msgspec.structs.replace(device("a"), boot=BootId("new"))
    again = solve_set("m", HEAVY, [reborn], links(), NEXT, prefer=running)
    assert again.main.lives() == {DeviceId("a"): BootId("new")}


def test_a_running_plan_whose_window_is_too_small_is_left() -> None:
    """More origins than requests in the window: each needs at least one."""
    running = pipeline(HEAVY, [(8, device("a"))], window=2, share=1)
    plans = solve_set("m", HEAVY, [device("a")], links(), NEXT, origins=4, prefer=running)
    assert plans.main.window >= 4


def prediction(latency_ms: float, throughput_per_s: float = 1.0) -> Prediction:
    """A prediction of these figures."""
    return Prediction(latency_ms, throughput_per_s, {}, 0, ())


def test_switching_needs_fifteen_percent() -> None:
    """A plan that cannot run is always left; one that runs, for a gain of 15 %."""
    assert worth_switching(None, prediction(99))
    assert worth_switching(prediction(100), prediction(85))
    assert not worth_switching(prediction(100), prediction(85.1))
    assert worth_switching(prediction(9, 100), prediction(9, 115), "throughput")
    assert not worth_switching(prediction(9, 100), prediction(9, 114), "throughput")


def test_no_plan_is_a_named_error() -> None:
    """What does not fit anywhere is refused with what is missing."""
    with pytest.raises(NoPlanError, match=r"the one device offers 0\.1 MB"):
        planned([device("a", 100_000)])


@st.composite
def meshes(draw: st.DrawFn) -> tuple[Card, list[DeviceInfo]]:
    """A random graph with skips over up to six uneven devices."""
    ops = [
        Op(
            draw(st.integers(1, 9)),
            draw(st.integers(0, 30)) * 1000,
            draw(st.integers(1, 8)) * 100,
            tuple(dict.fromkeys((place, *draw(st.lists(st.integers(0, place), max_size=1))))),
        )
        for place in range(draw(st.integers(1, 9)))
    ]
    devices = [
        device(name, draw(st.integers(30, 400)) * 1000, draw(st.sampled_from([0.5, 1.0, 3.0])))
        for name in "abcdef"[: draw(st.integers(1, 6))]
    ]
    return card(ops), devices


@given(meshes())
@settings(max_examples=60, deadline=None)
def test_every_plan_of_a_set_is_legal_and_within_budget(mesh: tuple[Card, list[DeviceInfo]]) -> None:
    """Whatever comes out passes the check for plans from outside, over the devices that are left."""
    model, devices = mesh
    try:
        plans = solve_set("m", model, devices, links(), EPOCH, origins=len(devices))
    except NoPlanError:
        return
    problem = Problem("m", outline(model), tuple(devices), links(), len(devices))
    assert fits(problem, plans.main)
    for plan in plans.plans:
        check(plan, model, [info for info in devices if info.device != plan.epoch.absent])
        assert plan.window >= len(devices) >= 1
        assert plan.share * len(devices) <= plan.window
    assert {plan.epoch.absent for plan in plans.contingencies} <= set(plans.main.devices())
    assert msgspec.json.decode(msgspec.json.encode(plans), type=PlanSet) == plans
