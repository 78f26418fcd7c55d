"""The one-process executor: random legal plans equal the whole model, illegal ones never run, faults are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from meshnn.cli.check import check_plan, open_bench
from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.once import run_once
from meshnn.errors import MeshError, ModelError, NoPlanError, UsageError
from meshnn.graph.builder import random_inputs
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.writer import write
from meshnn.node.check import Bench, Outcome, Trial, difference, trials
from meshnn.node.slices import Array
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.explicit import bound, decode
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage
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
    """Any stages, splits, shares, groups and lanes that the check lets through, asked from inside and outside the plan.

    The whole model's bytes, or sums within 1e-5 at their merged tensors; and the memory is what the planner counts.
    """
    bench = bench_of(data.draw(networks()))
    plan = data.draw(plans(bench.card))
    if refusal_of(plan, bench):
        return
    for outcome in bench.plan(plan):
        assert outcome.good, outcome
    for way in bench.ways(plan, DeviceId(data.draw(st.sampled_from(["a", "b", "elsewhere"])))):
        assert way.good, way
        assert way.error < 1e-3


def test_random_plans_are_of_every_kind() -> None:
    """What hypothesis draws has each split, several shards on one device, groups, lanes and several stages."""
    seen: set[str] = set()

    @given(st.data())
    @settings(max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def draw(data: st.DataObject) -> None:
        card = card_of(data.draw(networks()), "d" * 64, 0, "net")
        plan = data.draw(plans(card))
        try:
            check(plan, card)
        except (NoPlanError, UsageError):
            return
        lane = plan.lanes[0]
        groups = [group for stage in lane.stages for group in stage.groups]
        devices = [[shard.device for shard in group.shards] for group in groups]
        seen.update(group.split for group in groups)
        seen.update(
            name
            for name, there in {
                "lanes": len(plan.lanes) > 1,
                "groups": any(len(stage.groups) > 1 for stage in lane.stages),
                "stages": len(lane.stages) > 2,
                "shared": any(len(set(one)) < len(one) for one in devices),
                "tiles": any(-1 in group.shares for group in groups),
            }.items()
            if there
        )

    draw()
    assert seen == {"none", "output", "input", "spatial", "lanes", "groups", "stages", "shared", "tiles"}


def _never(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
    """A runtime that must not be reached."""
    raise AssertionError("an illegal plan was executed")


def written(plan: Plan) -> bytes:
    """A plan as a file that a person applies."""
    return msgspec.json.encode(plan)


HERE = [DeviceInfo(DeviceId(name), BootId("1"), 1 << 40, 1.0, name=name) for name in "abc"]


def applied(data: bytes, card: Card) -> Plan:
    """What `plan apply` does with a file before anything of it is done: UsageError, NoPlanError."""
    model = outline(card)
    plan = bound(decode(data, "m"), model, HERE)
    check(plan, model, HERE)
    return plan


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_illegal_plans_are_refused_with_a_reason_and_never_run(data: st.DataObject) -> None:
    """A legal plan made illegal in one place is refused in words, as a file and as a message, before it is run."""
    graph = residual()
    card = card_of(graph, "d" * 64, 0, "net")
    plan = data.draw(plans(card))
    try:
        check(plan, card)
    except (NoPlanError, UsageError):
        return
    name = data.draw(st.sampled_from(sorted(SPOILERS)))
    spoilt = SPOILERS[name](plan, data.draw(st.integers(0, 7)))
    assume(spoilt is not None)
    assert spoilt is not None
    with pytest.raises((NoPlanError, UsageError)) as refused:
        check(spoilt, card, HERE)
    assert len(str(refused.value)) > 10
    assert "\n" not in str(refused.value)
    if name != "a second life":  # a file names devices, not lives
        with pytest.raises((NoPlanError, UsageError)):
            applied(written(spoilt), card)


def test_a_refused_plan_is_refused_before_the_runtime_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan check` of every spoilt form of one plan: refused, and no part of it reaches the runtime."""
    graph = residual()
    file = tmp_path / "net.tflite"
    file.write_bytes(write(graph).to_bytes())
    bench = open_bench(file)
    shard = Shard(DeviceId("a"), BootId("1"))
    last = len(bench.card.operators) - 1
    stages = (Stage(0, 0, (Group((shard, shard), "output", (0, 3, 8)),)), Stage(1, last, (Group((shard,)),)))
    plan = Plan(Epoch(1, DeviceId("a"), 1), "m", bench.card.digest, (Lane(stages),))
    check(plan, bench.card)
    bench.executor._run = _never
    monkeypatch.setattr("meshnn.cli.check.open_bench", lambda *_: bench)
    tried = 0
    for name, spoil in SPOILERS.items():
        for place in range(4):
            spoilt = spoil(plan, place)
            if spoilt is not None and name not in {"a second life", "an unknown device"}:
                (tmp_path / "plan.json").write_bytes(written(spoilt))
                with pytest.raises((NoPlanError, UsageError)):
                    check_plan(tmp_path / "plan.json", file, seed=0, as_json=False)
                tried += 1
    assert tried > 40


Spoiler = Callable[[Plan, int], Plan | None]


def _groups(change: Callable[[Group], Group | None], *, split: bool = True) -> Spoiler:
    """Change one group (the `place`th that is split, where `split`); None where there is none to change."""

    def spoil(plan: Plan, place: int) -> Plan | None:
        found = [
            (number, at, index)
            for number, lane in enumerate(plan.lanes)
            for at, stage in enumerate(lane.stages)
            for index, group in enumerate(stage.groups)
            if (group.split != "none") == split
        ]
        if not found:
            return None
        number, at, index = found[place % len(found)]
        stage = plan.lanes[number].stages[at]
        changed = change(stage.groups[index])
        if changed is None:
            return None
        groups = (*stage.groups[:index], changed, *stage.groups[index + 1 :])
        return _with_stage(plan, number, at, (msgspec.structs.replace(stage, groups=groups),))

    return spoil


def _stages(change: Callable[[Stage, int], tuple[Stage, ...]]) -> Spoiler:
    """Put other stages in the place of one."""

    def spoil(plan: Plan, place: int) -> Plan:
        number = place % len(plan.lanes)
        at = place % len(plan.lanes[number].stages)
        return _with_stage(plan, number, at, change(plan.lanes[number].stages[at], place))

    return spoil


def _with_stage(plan: Plan, number: int, at: int, stages: tuple[Stage, ...]) -> Plan:
    lane = plan.lanes[number]
    changed = msgspec.structs.replace(lane, stages=(*lane.stages[:at], *stages, *lane.stages[at + 1 :]))
    return msgspec.structs.replace(plan, lanes=(*plan.lanes[:number], changed, *plan.lanes[number + 1 :]))


def _shares(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Spoiler:
    return _groups(lambda group: msgspec.structs.replace(group, shares=change(group.shares)))


def _shards(change: Callable[[tuple[Shard, ...]], tuple[Shard, ...]], *, split: bool = True) -> Spoiler:
    return _groups(lambda group: msgspec.structs.replace(group, shards=change(group.shards)), split=split)


def _stretched(shares: tuple[int, ...]) -> tuple[int, ...]:
    """The last boundary beyond the axis."""
    return (*shares[:-1], shares[-1] + 1)


def _emptied(shares: tuple[int, ...]) -> tuple[int, ...]:
    """The second boundary on the first: a part of size zero, as many parts as before."""
    return (shares[0], shares[0], *shares[2:])


ANYONE = Shard(DeviceId("b"), BootId("1"))
STRANGER = Shard(DeviceId("zoe"), BootId("1"))
REBORN = Shard(DeviceId("a"), BootId("2"))
SPOILERS: dict[str, Spoiler] = {
    "shares that go back": _shares(lambda shares: (shares[0], shares[1] + 10**6, *shares[2:])),
    "shares beyond the axis": _shares(_stretched),
    "shares that begin late": _shares(lambda shares: (1, *shares[1:])),
    "a part of size zero": _shares(_emptied),
    "a negative share": _shares(lambda shares: (shares[0], -5, *shares[2:])),
    "an axis too many": _shares(lambda shares: (*shares, -1, 0, 1, -1, 0, 1)),
    "no parts on an axis": _shares(lambda shares: (*shares, -1)),
    "a part without a shard": _shards(lambda shards: shards[:-1]),
    "a part twice": _shards(lambda shards: (*shards, shards[0])),
    "no shard": _shards(lambda _: ()),
    "two shards without a split": _shards(lambda shards: shards * 2, split=False),
    "shares without a split": _groups(lambda group: msgspec.structs.replace(group, shares=(0, 4, 8)), split=False),
    "a split of one part": _groups(
        lambda group: msgspec.structs.replace(group, split="output", shares=(0, 8)), split=False
    ),
    "a weight of zero": _groups(lambda group: msgspec.structs.replace(group, weight=0)),
    "an unknown device": _shards(lambda shards: (STRANGER, *shards[1:])),
    "a second life": _shards(lambda shards: (REBORN, *shards[1:])),
    "too many groups": _stages(lambda stage, _: (msgspec.structs.replace(stage, groups=stage.groups * 300),)),
    "no group": _stages(lambda stage, _: (msgspec.structs.replace(stage, groups=()),)),
    "a gap": _stages(lambda stage, _: (msgspec.structs.replace(stage, first=stage.first + 1),)),
    "an overlap": _stages(lambda stage, _: (msgspec.structs.replace(stage, last=stage.last + 1),)),
    "a stage twice": _stages(lambda stage, _: (stage, stage)),
    "a stage left out": _stages(lambda _stage, _place: ()),
    "a stage that ends before it begins": _stages(
        lambda stage, _: (msgspec.structs.replace(stage, last=stage.first - 1),)
    ),
    "no lane": lambda plan, _: msgspec.structs.replace(plan, lanes=()),
    "another model": lambda plan, _: msgspec.structs.replace(plan, digest="e" * 64),
    "an endless window": lambda plan, _: msgspec.structs.replace(plan, window=10**6),
    "a lane of no weight": lambda plan, _: msgspec.structs.replace(
        plan, lanes=(msgspec.structs.replace(plan.lanes[0], weight=0), *plan.lanes[1:])
    ),
    # The addition does not sum over its inputs, and reads what every channel makes.
    "a split that is refused": lambda plan, _: msgspec.structs.replace(
        plan, lanes=(Lane((Stage(0, 12, (Group((ANYONE, ANYONE), "input", (0, 4, 8)),)),)), *plan.lanes[1:])
    ),
}


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
