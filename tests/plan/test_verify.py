"""The check of plans from outside: each rule refused with its reason, and legal plans let through."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import MeshError, NoPlanError, UsageError
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.plan import Group, Lane, Plan, Shard, Split, Stage
from meshnn.plan.verify import check
from tests.plan.cards import Op, card, chain, device, pipeline, shard

A, B = device("a"), device("b")
MODEL = chain(4)
GOOD = pipeline(MODEL, [(2, A), (2, B)])


def staged(*stages: Stage) -> Plan:
    """The good plan with other stages."""
    return msgspec.structs.replace(GOOD, lanes=(Lane(stages),))


def group(*infos: DeviceInfo, split: Split = "none", shares: tuple[int, ...] = (), weight: int = 1) -> Group:
    """A group over devices."""
    return Group(tuple(shard(info) for info in infos), split, shares, weight)


ONE = (group(A),)


def test_a_legal_plan_passes() -> None:
    """A plan over two devices that are here, with the memory."""
    check(GOOD, MODEL)
    check(GOOD, MODEL, [A, B])


@pytest.mark.parametrize(
    ("plan", "error", "reason"),
    [
        (msgspec.structs.replace(GOOD, digest="e" * 64), UsageError, "is for a model of digest eeeeeeeeeeee"),
        (msgspec.structs.replace(GOOD, lanes=()), UsageError, "has no lane"),
        (msgspec.structs.replace(GOOD, window=0), UsageError, "the window must be 1 to"),
        (msgspec.structs.replace(GOOD, window=10**9), UsageError, "the window must be 1 to"),
        (msgspec.structs.replace(GOOD, share=3), UsageError, "share must be 1 to the window 2, it is 3"),
        (msgspec.structs.replace(GOOD, lanes=(Lane(GOOD.lanes[0].stages, 0),)), UsageError, "weights must be 1"),
        (staged(Stage(0, 3, (group(A, weight=-1),))), UsageError, "weights must be 1"),
        (staged(), UsageError, "operators 0-3 are in no stage"),
        (staged(Stage(0, 2, ONE)), UsageError, "operators 3-3 are in no stage"),
        (staged(Stage(0, 1, ONE), Stage(1, 3, ONE)), UsageError, "stages cover each operator once"),
        (staged(Stage(1, 3, ONE)), UsageError, "0 is the next"),
        (staged(Stage(0, 1, ONE), Stage(2, 1, ONE)), UsageError, "stages cover each operator once"),
        (staged(Stage(0, 9, ONE)), UsageError, "made-up has operators 0-3"),
        (staged(Stage(0, 3, ())), UsageError, "it has no group"),
        (staged(Stage(0, 3, (Group(()),))), UsageError, "a group has no shard"),
        (staged(Stage(0, 3, (group(A, B),))), UsageError, "one shard and no shares"),
        (staged(Stage(0, 3, (group(A, shares=(1, 2)),))), UsageError, "one shard and no shares"),
        (staged(Stage(0, 3, (group(A, split="output"),))), UsageError, "needs two shards or more"),
        (
            staged(Stage(0, 3, (Group((Shard(DeviceId("a"), BootId("")),)),))),
            UsageError,
            "names a device and its boot",
        ),
    ],
)
def test_what_means_nothing_is_refused(plan: Plan, error: type[MeshError], reason: str) -> None:
    """Every rule of form has its reason."""
    with pytest.raises(error, match=reason):
        check(plan, MODEL)


def test_a_cut_where_the_model_cannot_be_cut_is_refused() -> None:
    """The card's own reason is given."""
    model = card([Op()] * 4, refused={2: "its shape is known to the run only"})
    with pytest.raises(NoPlanError, match="no cut before operator 2: its shape is known to the run only"):
        check(GOOD, model)


def test_a_stage_that_nothing_starts_is_refused() -> None:
    """A stage that receives nothing would never run."""
    model = card([Op(), Op(reads=()), Op(reads=(1, 2))])
    with pytest.raises(NoPlanError, match="nothing comes in"):
        check(pipeline(model, [(1, A), (1, B), (1, A)]), model)


def test_a_stage_that_makes_nothing_is_refused() -> None:
    """A stage that nobody reads would be waited for in vain."""
    model = card([Op(), Op(), Op(reads=(1,))])
    with pytest.raises(NoPlanError, match="nothing goes out"):
        check(pipeline(model, [(1, A), (1, B), (1, A)]), model)


def test_too_many_ways_are_refused() -> None:
    """Groups that make an endless number of ways through a plan are a stranger's joke."""
    lane = Lane(tuple(Stage(k, k, (group(A),) * 5) for k in range(4)))
    with pytest.raises(UsageError, match="make 625 ways through the plan, more than 256"):
        check(msgspec.structs.replace(GOOD, lanes=(lane,)), MODEL)


def test_devices_must_be_here_in_this_life_with_the_memory() -> None:
    """Absent, restarted, and full devices are named."""
    with pytest.raises(NoPlanError, match="device b of the plan is not here"):
        check(GOOD, MODEL, [A])
    with pytest.raises(NoPlanError, match="b has restarted"):
        check(GOOD, MODEL, [A, msgspec.structs.replace(B, boot=BootId("other"))])
    with pytest.raises(NoPlanError, match=r"b needs 0\.0 MB for this plan and offers 0\.0 MB"):
        check(GOOD, MODEL, [A, device("b", 1000)])
    with pytest.raises(NoPlanError, match="b needs"):
        check(GOOD, MODEL, [A, device("b", 30_000)], {DeviceId("b"): 29_000})


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_plans_are_checked_or_refused_but_never_crash(data: st.DataObject) -> None:
    """Any decoded plan ends in a pass or in a named error."""
    small = st.integers(-2, 5)
    groups = st.builds(
        Group,
        st.lists(st.sampled_from([shard(A), shard(B)]), max_size=3).map(tuple),
        st.sampled_from(["none", "output", "input", "spatial"]),
        st.lists(small, max_size=4).map(tuple),
        st.integers(0, 2),
    )
    stages = st.builds(Stage, small, small, st.lists(groups, max_size=2).map(tuple))
    lanes = st.lists(st.builds(Lane, st.lists(stages, max_size=3).map(tuple), small), max_size=2).map(tuple)
    plan = msgspec.structs.replace(GOOD, lanes=data.draw(lanes), window=data.draw(small), share=data.draw(small))
    try:
        check(plan, MODEL, [A, B])
    except (NoPlanError, UsageError):
        return
    covered = [k for stage in plan.lanes[0].stages for k in range(stage.first, stage.last + 1)]
    assert covered == [0, 1, 2, 3]
