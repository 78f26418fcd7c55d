"""The search, against every pipeline there is on small cases, and against the clock of what must hold on large ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError
from meshnn.graph.card import Card
from meshnn.plan.devices import DeviceInfo, Link, Links
from meshnn.plan.outline import outline
from meshnn.plan.plan import Plan
from meshnn.plan.predict import Prediction, predict
from meshnn.plan.ranges import plan_memory
from meshnn.plan.solver import STAGE_GAIN, Problem, share_of, solutions, solve, window_of
from tests.plan.cards import EPOCH, Op, card, chain, device, links, pipeline, spans


def problem(model: Card, devices: list[DeviceInfo], **changes: object) -> Problem:
    """A problem on made-up links of 100 bytes a ms."""
    settings_ = {"links": links(), "origins": len(devices)} | changes
    return Problem("m", outline(model), tuple(devices), **settings_)  # type: ignore[arg-type]


def every_plan(task: Problem) -> Iterator[tuple[Plan, Prediction]]:
    """Every contiguous pipeline that fits, one stage a device, at the default window."""
    model = task.card.card
    total = len(model.operators)
    for count in range(1, min(len(task.devices), total) + 1):
        window = window_of(count, task.origins)
        for cuts in combinations(range(1, total), count - 1):
            lengths = [b - a for a, b in zip((0, *cuts), (*cuts, total), strict=True)]
            for chosen in permutations(task.devices, count):
                plan = pipeline(model, list(zip(lengths, chosen, strict=True)), window, share_of(window, task.origins))
                memory = plan_memory(model, plan)
                if all(memory[info.device] <= task.budget(info) for info in chosen):
                    yield plan, predict(plan, model, task.devices, task.links, task.asking)


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    """Up to six operators in a chain and three uneven devices on uneven links, often too small for the whole model."""
    ops = [
        Op(draw(st.integers(1, 9)), draw(st.integers(0, 40)) * 1000, draw(st.integers(1, 8)) * 100)
        for _ in range(draw(st.integers(1, 6)))
    ]
    model = card(ops, in_bytes=draw(st.integers(1, 8)) * 100)
    floor = 18_000 + 2 * max(op.weights for op in ops) + 8000
    devices = [
        device(name, floor + draw(st.integers(0, 120)) * 1000, draw(st.sampled_from([0.5, 1.0, 3.0])))
        for name in "abc"[: draw(st.integers(1, 3))]
    ]
    pairs = {(DeviceId("a"), DeviceId("b")): Link(draw(st.sampled_from([20.0, 500.0])), 2.0)}
    return problem(model, devices, links=Links(Link(100.0, 1.0), pairs, 0.5))


@given(small_problems())
@settings(max_examples=60, deadline=None)
def test_solver_equals_brute_force_on_chains(task: Problem) -> None:
    """With few devices nothing cheaper exists, but for what is given up on purpose to have fewer stages."""
    best = min((cost.latency_ms for _, cost in every_plan(task)), default=None)
    if best is None:
        found = solutions(task, EPOCH)
        assert all(solution.plan.window < window_of(1, task.origins) for solution in found)
        return
    solution = solve(task, EPOCH)
    assert solution.prediction.latency_ms <= best / (1 - STAGE_GAIN) ** 2 + 1e-9
    depths = {len(plan.lanes[0].stages): 0.0 for plan, _ in every_plan(task)}
    assert len(solution.plan.lanes[0].stages) in depths


@given(small_problems())
@settings(max_examples=25, deadline=None)
def test_every_depth_equals_brute_force(task: Problem) -> None:
    """For every number of stages the best pipeline of that depth is found."""
    best: dict[int, float] = {}
    for plan, cost in every_plan(task):
        depth = len(plan.lanes[0].stages)
        best[depth] = min(best.get(depth, float("inf")), cost.latency_ms)
    found = {len(s.plan.lanes[0].stages): s.prediction.latency_ms for s in solutions(task, EPOCH, every_depth=True)}
    if best:
        assert found == pytest.approx(best)


@given(small_problems())
@settings(max_examples=25, deadline=None)
def test_throughput_equals_brute_force(task: Problem) -> None:
    """For a stream the best pipeline is the one whose busiest part is least busy."""
    stream = Problem("m", task.card, task.devices, task.links, task.origins, objective="throughput")
    best = max((cost.throughput_per_s for _, cost in every_plan(stream)), default=None)
    if best is not None:
        found = max(solution.prediction.throughput_per_s for solution in solutions(stream, EPOCH))
        assert found >= 0.9 * best


def test_one_device_wins_when_a_pipeline_is_not_faster() -> None:
    """Equal devices with room: cutting only adds a hop."""
    assert len(solve(problem(chain(8), [device("a"), device("b")]), EPOCH).plan.devices()) == 1


def test_the_fast_device_is_chosen() -> None:
    """Of uneven devices the fastest does it all."""
    found = solve(problem(chain(8), [device("a"), device("b", speed=2.0), device("c")]), EPOCH)
    assert spans(found.plan) == [(0, 7, "b")]


def test_the_device_that_asks_is_preferred_among_equals() -> None:
    """Where one device asks and others are no faster, its own is used: no message at all."""
    task = problem(chain(8), [device("a"), device("b"), device("c")], asking={DeviceId("b"): 1.0})
    found = solve(task, EPOCH)
    assert spans(found.plan) == [(0, 7, "b")]
    assert found.prediction.air_bytes == 0


def test_memory_forces_a_spread() -> None:
    """A model of 8 x 100 kB on devices that hold about 3 operators each needs three of them."""
    model = chain(8, weights=100_000)
    found = solve(problem(model, [device(name, 700_000) for name in "abcde"]), EPOCH)
    assert len(found.plan.lanes[0].stages) == 3
    assert max(plan_memory(model, found.plan).values()) <= 700_000


def test_cuts_fall_where_little_crosses() -> None:
    """Between cuts that all fit, the cheapest crossing is taken."""
    model = card([Op(weights=100_000, out_bytes=5 if place == 3 else 5000) for place in range(8)], in_bytes=5000)
    found = solve(problem(model, [device("a", 1_400_000), device("b", 1_400_000)], origins=1), EPOCH)
    assert [stage.last for stage in found.plan.lanes[0].stages] == [3, 7]


def test_a_pair_that_cannot_reach_each_other_is_not_neighbours() -> None:
    """A link that is known not to work is never on the way."""
    model = chain(4, weights=100_000)
    pairs = {(DeviceId("a"), DeviceId("b")): Link(0.0, 1.0)}
    devices = [device("a", 500_000), device("b", 500_000), device("c", 500_000)]
    task = problem(model, devices, links=Links(Link(), pairs), asking={DeviceId("c"): 1.0})
    found = solve(task, EPOCH)
    assert found.plan.devices() != ("a", "b")
    assert found.prediction.latency_ms < 100


def test_devices_that_cannot_reach_each_other_still_serve_themselves() -> None:
    """Two devices without a way between them: there is a plan all the same, on one of them."""
    pairs = {(DeviceId("a"), DeviceId("b")): Link(0.0, 1.0)}
    found = solve(problem(chain(4), [device("a"), device("b")], links=Links(Link(), pairs)), EPOCH)
    assert len(found.plan.devices()) == 1


def test_a_window_too_large_for_memory_is_made_smaller() -> None:
    """Where two requests an origin do not fit but one does, the plan takes one."""
    model = card([Op(), Op()], in_bytes=10_000)
    tight = plan_memory(model, pipeline(model, [(2, device("a"))], window=4))[DeviceId("a")]
    found = solve(problem(model, [device("a", tight)], origins=4), EPOCH)
    assert (found.plan.window, found.plan.share) == (4, 1)


def test_windows_and_shares() -> None:
    """Twice the depth or two an origin, at most 64; a share is an equal part and never 0."""
    assert [window_of(1, 1), window_of(5, 2), window_of(2, 5), window_of(40, 1)] == [2, 10, 10, 64]
    assert [share_of(10, 5), share_of(64, 100), share_of(4, 1)] == [2, 1, 4]


def test_devices_to_avoid_are_used_last() -> None:
    """A flapping device serves only where nothing fits without it."""
    model = chain(4, weights=100_000)
    fast, slow = device("a", 2_000_000, speed=9.0), device("b", 2_000_000)
    avoiding = frozenset({DeviceId("a")})
    assert solve(problem(model, [fast, slow], avoid=avoiding), EPOCH).plan.devices() == ("b",)
    small = device("b", 10_000)
    assert solve(problem(model, [fast, small], avoid=avoiding), EPOCH).plan.devices() == ("a",)


def test_exact_keeps_to_one_numeric_class() -> None:
    """A model that needs two devices is kept to two of one class, though another pair were faster."""
    model = chain(4, weights=100_000)
    devices = [
        device("a", 500_000, 5.0, "arm"),
        device("b", 500_000, 5.0, "x86"),
        device("c", 500_000, 1.0, "x86"),
    ]
    assert solve(problem(model, devices, exact=True), EPOCH).plan.devices() == ("b", "c")
    assert solve(problem(model, devices), EPOCH).plan.devices() == ("a", "b")
    with pytest.raises(NoPlanError):
        solve(problem(model, devices[:2], exact=True), EPOCH)


def test_the_same_problem_has_the_same_answer() -> None:
    """Ties are broken by order, never by chance."""
    model = chain(9, weights=100_000)
    devices = [device(f"d{number}", 500_000) for number in range(9)]
    plans = {str(solve(problem(model, devices), EPOCH).plan) for _ in range(3)}
    assert len(plans) == 1


@pytest.mark.parametrize(("operators", "count"), [(200, 16), (1000, 12)])
def test_large_models_over_many_uneven_devices_are_planned(operators: int, count: int) -> None:
    """With 1.5 times the memory needed in all, spread unevenly, a plan is found and keeps every budget."""
    rng = random.Random(operators)
    ops = [
        Op(rng.uniform(0.05, 2), rng.choice([0, 1000, 200_000]), rng.choice([20_000, 100_000, 400_000]))
        for _ in range(operators)
    ]
    model = card(ops, 150_000)
    need = 2 * sum(op.weights for op in ops)
    devices = [
        device(f"d{number:02d}", int(1.5 * need / count * rng.uniform(0.8, 1.2)) + 15_000_000, rng.uniform(0.3, 1.5))
        for number in range(count)
    ]
    found = solve(problem(model, devices, links=links(11_000.0)), EPOCH)
    memory = plan_memory(model, found.plan)
    assert len(found.plan.devices()) > 1
    assert all(memory[info.device] <= info.memory_bytes for info in devices if info.device in memory)


def test_a_shortage_says_what_is_missing() -> None:
    """The error names the need, the offer, and the part that no device can hold."""
    with pytest.raises(NoPlanError, match=r"it needs 0\.\d MB, the 2 devices offer 0\.1 MB"):
        solve(problem(chain(4, weights=100_000), [device("a", 50_000), device("b", 50_000)]), EPOCH)
    heavy = card([Op(weights=10), Op(weights=3_000_000)])
    with pytest.raises(NoPlanError, match=r"operator 1 cannot be cut and alone needs 6\.0 MB, the largest"):
        solve(problem(heavy, [device(name, 5_000_000) for name in "abc"]), EPOCH)
    with pytest.raises(NoPlanError, match="no live device"):
        solve(problem(heavy, []), EPOCH)
