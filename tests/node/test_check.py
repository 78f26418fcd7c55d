"""The one-process executor: random legal plans equal the whole model, illegal ones never run, faults are found."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnn.device.once import run_once
from meshnn.errors import MeshError, ModelError, NoPlanError, UsageError
from meshnn.graph.builder import random_inputs
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.node.check import Bench, Outcome, Trial, difference, trials
from meshnn.node.slices import Array
from meshnn.plan.plan import Plan
from meshnn.plan.verify import check
from tests.graph.networks import residual
from tests.node.random_networks import networks, plans

SLOW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def bench_of(graph: Graph, run: object = run_once) -> Bench:
    """A bench for a generated model."""
    card = card_of(graph, "d" * 64, 0, "net")
    return Bench(graph, card, random_inputs(graph, np.random.default_rng(7)), run)  # type: ignore[arg-type]


def refusal_of(plan: Plan, bench: Bench) -> str:
    """Why a plan is refused; empty where it is not."""
    try:
        check(plan, bench.card)
    except (NoPlanError, UsageError) as error:
        return str(error)
    return ""


@given(st.data())
@SLOW
def test_random_legal_plans_equal_the_whole_model(data: st.DataObject) -> None:
    """Any cuts, splits and shares that the check lets through give the whole model's bytes, or sums within 1e-5."""
    bench = bench_of(data.draw(networks()))
    plan = data.draw(plans(bench.card))
    if refusal_of(plan, bench):
        return
    for outcome in bench.plan(plan):
        assert outcome.good, outcome
    for way in bench.ways(plan):
        assert way.good, way
        assert way.error < 1e-3


@given(st.data())
@SLOW
def test_random_illegal_plans_are_refused_with_a_reason(data: st.DataObject) -> None:
    """A legal plan made illegal in one place is refused in words, before any shard of it is made."""
    bench = bench_of(residual())
    plan = data.draw(plans(bench.card))
    spoilt = data.draw(st.sampled_from(SPOILERS))(plan)
    assert spoilt == plan or len(refusal_of(spoilt, bench)) > 10, "a spoilt plan was let through"


def _with_group(plan: Plan, **changes: object) -> Plan:
    """The plan with the first split group changed; itself where it has none."""
    lane = plan.lanes[0]
    for number, stage in enumerate(lane.stages):
        if stage.groups[0].split != "none":
            group = msgspec.structs.replace(stage.groups[0], **changes)
            stages = list(lane.stages)
            stages[number] = msgspec.structs.replace(stage, groups=(group,))
            return msgspec.structs.replace(plan, lanes=(msgspec.structs.replace(lane, stages=tuple(stages)),))
    return plan


SPOILERS = [
    lambda plan: _with_group(plan, shares=(0, 7, 3)),
    lambda plan: _with_group(plan, shares=()),
    lambda plan: _with_group(plan, shares=(0, -1, -1, 4)),
    lambda plan: _with_group(plan, shares=(1, 5, 10**9)),
    lambda plan: _with_group(plan, shards=()),
    lambda plan: msgspec.structs.replace(plan, lanes=(msgspec.structs.replace(plan.lanes[0], stages=()),)),
    lambda plan: msgspec.structs.replace(
        plan, lanes=(msgspec.structs.replace(plan.lanes[0], stages=plan.lanes[0].stages[::-1] * 2),)
    ),
]


@pytest.mark.parametrize(
    ("split", "shares", "reason"),
    [
        ("input", (0, 4, 8), r"operator 4 \(ADD\): does not sum over its inputs"),
        ("output", (0, 4, 8), "reads channels that other parts make"),
        ("spatial", (0, 3, 2), "do not run from 0 to"),
        ("spatial", (0, 3), "make 1 parts for 2 shards"),
    ],
)
def test_a_refused_split_says_why(split: str, shares: tuple[int, ...], reason: str) -> None:
    """The compiler's own reason reaches whoever wrote the plan."""
    bench = bench_of(residual())
    group = {"split": split, "shares": shares, "shards": [{"device": "a", "boot": "1"}, {"device": "b", "boot": "1"}]}
    stages = [
        {"first": 0, "last": 4, "groups": [group]},
        {"first": 5, "last": len(bench.card.operators) - 1, "groups": [{"shards": [{"device": "a", "boot": "1"}]}]},
    ]
    epoch = {"term": 1, "leader": "a", "number": 1}
    written = {"epoch": epoch, "model": "m", "digest": "d" * 64, "lanes": [{"stages": stages}]}
    with pytest.raises(MeshError, match=reason):
        check(msgspec.convert(written, Plan), bench.card)


@pytest.mark.parametrize("precision", ["float32", "int8", "dynamic"])
def test_every_split_of_a_network_is_within_its_class(precision: str) -> None:
    """All trials of a network that has everything: what runs is good, exact where it must be, and all kinds do run."""
    bench = bench_of(residual(precision))  # type: ignore[arg-type]
    outcomes = [bench.judge(trial) for trial in trials(bench.card, (1.0, 2.0, 1.0))]
    assert all(outcome.good for outcome in outcomes), [outcome for outcome in outcomes if not outcome.good]
    ran = {outcome.trial.split for outcome in outcomes if outcome.ran}
    assert ran == {"output", "spatial", "input"} if precision == "float32" else "output" in ran
    assert all(outcome.trial.refused for outcome in outcomes if not outcome.ran)


def test_fused_runs_are_those_that_save_most() -> None:
    """At most the number asked for, all longer than one operator, none refused."""
    bench = bench_of(residual())
    single = trials(bench.card, (1.0, 1.0), runs_max=0)
    found = trials(bench.card, (1.0, 1.0), runs_max=5)
    runs = found[len(single) :]
    assert len(runs) == 5
    assert all(trial.last > trial.first and not trial.refused for trial in runs)


def _tampering(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
    """A runtime that gets one value wrong wherever a graph is small."""
    made = run_once(graph, inputs)
    if len(graph.operators) < 3:
        made[0].reshape(-1)[-1] += 1
    return made


def test_a_wrong_value_is_found() -> None:
    """One wrong element of one part is outside the class, and its effect at the outputs is told."""
    bench = bench_of(residual(), _tampering)
    outcome = bench.judge(Trial(0, 0, "output", (0, 4, 8)))
    assert outcome.ran
    assert not outcome.good
    assert outcome.error > 1e-3
    assert outcome.at_outputs is not None
    assert outcome.at_outputs > 0


def test_a_part_that_cannot_run_is_a_crash() -> None:
    """The runtime's refusal of a part that was allowed is named and is not good."""

    def refusing(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        if len(graph.operators) < 3:
            raise ModelError("the runtime refuses it: no")
        return run_once(graph, inputs)

    outcome = bench_of(residual(), refusing).judge(Trial(0, 0, "output", (0, 4, 8)))
    assert outcome == Outcome(outcome.trial, crashed="ModelError: the runtime refuses it: no")
    assert not outcome.good


def test_difference_is_relative_to_the_largest_magnitude() -> None:
    """Zero for equal bytes alone; infinite for other shapes, types and what is no number."""
    one = np.array([1.0, -4.0], np.float32)
    assert difference(one, one.copy()) == 0.0
    assert difference(one + np.float32(1), one) == 0.25
    assert 0.0 < difference(np.array([0.0], np.float32), np.array([-0.0], np.float32)) < 1e-200
    for other in (one[:1], one.astype(np.float64), np.array([np.nan, 1.0], np.float32)):
        assert difference(other, one) == float("inf")
