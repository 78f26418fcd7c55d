"""Coverage: every single death has a loaded contingency wherever second copies of all shards fit, dearest first."""

from __future__ import annotations

import random
from itertools import product

import pytest

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan.contingency import contingencies, worth
from meshnn.plan.copies import second_copies
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, PlanSet, Recipe, Stage
from meshnn.plan.planner import solve_set
from meshnn.plan.ranges import memory_bytes, memory_of, plan_memory
from meshnn.plan.solver import Problem
from tests.plan.cards import EPOCH, Op, card, chain, device, links, pipeline, shard

CASES = 160


def loaded_together(model: Card, plans: PlanSet, devices: list[DeviceInfo]) -> set[str]:
    """The deaths whose contingencies fit beside the plan and each other, counted in their order."""
    budget = {info.device: info.memory_bytes for info in devices}
    standing: list[Plan] = [plans.main]
    for plan in plans.contingencies:
        taken = memory_of(model, [*standing, plan])
        if all(taken[name] <= budget[name] for name in taken):
            standing.append(plan)
    return {plan.epoch.absent for plan in standing[1:]}


def heirs(main: Plan, plan: Plan) -> set[str]:
    """The devices that take over the dead one's shards in a contingency that keeps all others."""
    before, after = main.placements(), plan.placements()
    if [recipe for recipe, _ in before] != [recipe for recipe, _ in after]:
        return set()
    return {new.device for (_, old), (_, new) in zip(before, after, strict=True) if old.device == plan.epoch.absent}


def placeable(model: Card, main: Plan, devices: list[DeviceInfo]) -> bool:
    """Whether some placement of a second copy of every shard on another device fits: every one is tried."""
    copies = [(dead, recipe) for dead in main.devices() for recipe in main.recipes_of(dead)]
    taken = plan_memory(model, main)
    left = {info.device: info.memory_bytes - taken.get(info.device, 0) for info in devices}
    for homes in product([info.device for info in devices], repeat=len(copies)):
        if any(home == dead for home, (dead, _) in zip(homes, copies, strict=True)):
            continue
        wanted = {(home, recipe) for home, (_, recipe) in zip(homes, copies, strict=True)}
        used = dict.fromkeys(left, 0)
        for home, recipe in wanted:
            if recipe not in main.recipes_of(home):
                used[home] += memory_bytes(model, recipe, main.window)
        if all(used[name] <= left[name] for name in left):
            return True
    return False


def cases() -> list[tuple[Card, Plan, list[DeviceInfo]]]:
    """Plans of few shards over few devices, with memory beside them that sometimes is enough and often just not."""
    found = []
    for seed in range(CASES):
        chance = random.Random(seed)
        model = card([Op(1.0, chance.randint(1, 12) * 1000) for _ in range(chance.randint(3, 6))])
        count = chance.randint(2, 5)
        cuts = sorted(
            chance.sample(range(1, len(model.operators)), min(len(model.operators) - 1, chance.randint(1, 3)))
        )
        spans = [after - first for first, after in zip([0, *cuts], [*cuts, len(model.operators)], strict=True)]
        names = "abcde"[:count]
        parts = [(span, chance.choice(names)) for span in spans]
        taken = plan_memory(model, pipeline(model, [(span, device(name)) for span, name in parts]))
        pieces = 2 * sum(op.weight_bytes for op in model.operators) + 4000
        devices = [
            device(
                name,
                taken.get(DeviceId(name), 0) + int(pieces * chance.uniform(0.4, 4.0) / count),
                chance.choice((1.0, 2.0)),
            )
            for name in names
        ]
        by_name = {info.name: info for info in devices}
        found.append((model, pipeline(model, [(span, by_name[name]) for span, name in parts]), devices))
    return found


def test_every_death_is_covered_wherever_second_copies_of_all_shards_fit() -> None:
    """Over random plans and budgets, against trying every placement; both answers come up, and spreading matters."""
    covered = missing = spread = 0
    for model, main, devices in cases():
        problem = Problem("m", outline(model), tuple(devices), links(), 1)
        plans = PlanSet(main, contingencies(problem, main))
        possible = placeable(model, main, devices)
        together = loaded_together(model, plans, devices)
        if possible:
            assert together == set(main.devices()), (main, devices)
            covered += 1
            spread += any(len(heirs(main, plan)) > 1 for plan in plans.contingencies)
        else:
            missing += 1
    assert (covered > CASES // 8, missing > CASES // 8, spread > 5) == (True, True, True), (covered, missing, spread)


def test_the_search_for_copies_finds_what_trying_everything_finds() -> None:
    """The placement itself: found exactly where one exists, and then within every budget."""
    for model, main, devices in cases():
        taken = plan_memory(model, main)
        left = {info.device: info.memory_bytes - taken.get(info.device, 0) for info in devices}
        placed = second_copies(outline(model), main, main.devices(), devices, left)
        assert (placed is not None) == placeable(model, main, devices)
        for (dead, _), heir in (placed or {}).items():
            assert heir.device != dead


def test_what_one_heir_cannot_hold_is_spread_over_several() -> None:
    """A device with two shards dies: no survivor has room for both, two have room for one each."""
    model = chain(4, weights=100_000)
    one = memory_bytes(model, Recipe(model.digest, 0, 0), 2)
    a, b = device("a", 2 * one), device("b", 3 * one)
    c, d = device("c", one + one // 2), device("d", one + one // 2)
    main = pipeline(model, [(1, a), (1, b), (1, a), (1, b)])
    problem = Problem("m", outline(model), (a, b, c, d), links(), 1)
    plans = PlanSet(main, contingencies(problem, main))
    assert loaded_together(model, plans, [a, b, c, d]) == {"a"}
    after = plans.without(DeviceId("a"))
    assert after is not None
    assert {s.device for _, s in after.placements()} - {"b"} <= {"c", "d"}


def test_contingencies_share_a_recipe_on_one_device_at_no_cost() -> None:
    """Two replicas of one stage whose deaths need the same shard: one copy stands for both, and is counted once."""
    model = chain(2, weights=100_000)
    one = memory_bytes(model, Recipe(model.digest, 0, 0), 4)
    a, b, c = device("a", one), device("b", one), device("c", 2 * one)
    lanes = (
        Lane((Stage(0, 0, (Group((shard(a),)),)), Stage(1, 1, (Group((shard(b),)),)))),
        Lane((Stage(0, 0, (Group((shard(b),)),)), Stage(1, 1, (Group((shard(a),)),)))),
    )
    a, b = device("a", 2 * one), device("b", 2 * one)
    main = Plan(EPOCH, "m", model.digest, lanes, 4, 2)
    problem = Problem("m", outline(model), (a, b, c), links(), 1)
    plans = PlanSet(main, contingencies(problem, main))
    assert loaded_together(model, plans, [a, b, c]) == {"a", "b"}


def test_the_dearest_deaths_are_covered_where_memory_is_not_enough_for_all() -> None:
    """Room for one copy: the leader's death costs an election too, and a risky device counts more than a safe one."""
    model = chain(2, weights=100_000)
    one = memory_bytes(model, Recipe(model.digest, 0, 0), 2)
    a, b, c = device("a", one), device("b", one), device("c", one + 100)
    main = pipeline(model, [(1, a), (1, b)])

    def first(leader: str, risk: dict[DeviceId, float]) -> set[str]:
        plan = Plan(Epoch(1, DeviceId(leader), 1), main.model, main.digest, main.lanes, main.window, main.share)
        problem = Problem("m", outline(model), (a, b, c), links(), 1, risk=risk)
        return loaded_together(model, PlanSet(plan, contingencies(problem, plan)), [a, b, c])

    assert first("a", {}) == {"a"}
    assert first("b", {}) == {"b"}
    assert first("c", {DeviceId("b"): 2.0}) == {"b"}
    assert first("c", {DeviceId("a"): 2.0}) == {"a"}


def test_a_large_shard_is_worth_more_than_a_small_one() -> None:
    """What takes longer to load is dearer to lose."""
    model = card([Op(1.0, 10_000), Op(1.0, 900_000_000)])
    a, b = device("a"), device("b", 4 * 10**9)
    problem = Problem("m", outline(model), (a, b), links(), 1)
    main = pipeline(model, [(1, a), (1, b)])
    assert worth(problem, main, DeviceId("b")) > worth(problem, main, DeviceId("a"))


@pytest.mark.parametrize("count", [4, 8, 16])
def test_a_mesh_with_room_for_two_of_everything_covers_every_death(count: int) -> None:
    """As the planner itself plans it: budgets of a bit over twice what the model takes, on many devices."""
    model = chain(4 * count, weights=50_000)
    each = memory_bytes(model, Recipe(model.digest, 0, 4), 2 * count)
    devices = [device(chr(97 + number), 2 * each + each // 2) for number in range(count)]
    try:
        plans = solve_set("m", model, devices, links(), EPOCH, origins=count)
    except NoPlanError as error:
        pytest.fail(str(error))
    assert loaded_together(model, plans, devices) == set(plans.main.devices())
