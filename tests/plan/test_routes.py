"""Routes: what each shard needs and gives, over any cut of any graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import UsageError
from meshnn.graph.card import Card
from meshnn.plan import boxes
from meshnn.plan.outline import outline
from meshnn.plan.plan import Group, Lane, Plan, Stage
from meshnn.plan.routes import ORIGIN, Give, Need, Source, deal, derive, gives, needs, way_count, ways
from tests.plan.cards import EPOCH, Op, card, chain, device, pipeline, shard

A, B, C = device("a"), device("b"), device("c")


def skipping() -> Card:
    """Four operators; the last adds what the first made to what the third made."""
    return card([Op(), Op(), Op(), Op(reads=(-1, 1))])


def full(size: int = 100) -> boxes.Box:
    """The box of a made-up tensor of this many bytes."""
    return ((0, 1), (0, size))


def test_a_skip_goes_straight_to_its_consumer() -> None:
    """The tensor that skips a stage comes from the stage that made it, and the stage between never sees it."""
    lane = pipeline(skipping(), [(1, A), (2, B), (1, C)]).lanes[0]
    assert needs(skipping(), lane, (0, 0, 0), 1, 0) == (Need(1, full(), (Source(0, 0, full()),)),)
    assert needs(skipping(), lane, (0, 0, 0), 2, 0) == (
        Need(1, full(), (Source(0, 0, full()),)),
        Need(3, full(), (Source(1, 0, full()),)),
    )
    assert gives(skipping(), lane, (0, 0, 0), 0, 0) == (Give(1, full(), 1, 0), Give(1, full(), 2, 0))


def test_the_origin_gives_inputs_and_needs_outputs() -> None:
    """Stage -1 is the origin with the model's inputs, stage len(stages) the origin with its outputs."""
    lane = pipeline(chain(3), [(1, A), (2, B)]).lanes[0]
    assert gives(chain(3), lane, (0, 0), ORIGIN, 0) == (Give(0, full(), 0, 0),)
    assert needs(chain(3), lane, (0, 0), 2, 0) == (Need(3, full(), (Source(1, 0, full()),)),)
    assert gives(chain(3), lane, (0, 0), 1, 0) == (Give(3, full(), 2, 0),)


def test_a_tensor_read_twice_by_a_stage_is_sent_once() -> None:
    """Two operators of one stage read the same tensor: it is one need and one give."""
    model = card([Op(), Op(), Op(reads=(1, -1))])
    lane = pipeline(model, [(1, A), (2, B)]).lanes[0]
    assert len(needs(model, lane, (0, 0), 1, 0)) == 1
    assert len(gives(model, lane, (0, 0), 0, 0)) == 1


def test_an_inner_tensor_that_is_also_an_output_goes_both_ways() -> None:
    """A model output that a later stage reads is given to that stage and to the origin."""
    model = card([Op(), Op()])
    both = Card(**{name: getattr(model, name) for name in model.__struct_fields__} | {"outputs": model.tensors[1:]})
    lane = pipeline(both, [(1, A), (1, B)]).lanes[0]
    assert gives(both, lane, (0, 0), 0, 0) == (Give(1, full(), 1, 0), Give(1, full(), 2, 0))


def test_a_choice_that_does_not_fit_the_lane_is_refused() -> None:
    """Groups chosen by a frame from outside are checked before anything is derived from them."""
    lane = pipeline(chain(2), [(1, A), (1, B)]).lanes[0]
    with pytest.raises(UsageError, match="1 groups chosen for a lane of 2 stages"):
        derive(chain(2), lane, (0,))
    with pytest.raises(UsageError, match="group 1 chosen where operators 1-1 have 1"):
        derive(chain(2), lane, (0, 1))


def replicas(weights: Sequence[Sequence[int]], lanes: Sequence[int]) -> Plan:
    """A plan of lanes of these weights, each of stages with groups of these weights."""
    stages = tuple(
        Stage(number, number, tuple(Group((shard(A),), weight=weight) for weight in groups))
        for number, groups in enumerate(weights)
    )
    return Plan(EPOCH, "m", "d", tuple(Lane(stages, weight) for weight in lanes))


def test_requests_are_dealt_by_weight() -> None:
    """Over 3 x 4 x 3 requests every way through the plan gets exactly its part of them."""
    plan = replicas([[1, 3], [2, 1]], [1, 2])
    dealt = Counter(deal(plan, ticket) for ticket in range(36))
    assert dealt == {(lane, groups): pytest.approx(36 * share) for lane, groups, share in ways(plan)}
    assert len(dealt) == way_count(plan) == 8
    assert deal(plan, 36) == deal(plan, 0)


def test_turns_are_mixed_not_in_blocks() -> None:
    """Weights of 700 and 300 are 7 and 3, and no lane waits for a whole block of the other."""
    lanes = [deal(replicas([[1]], [700, 300]), ticket)[0] for ticket in range(10)]
    assert lanes.count(1) == 3
    assert max(len(run) for run in "".join(map(str, lanes)).split("1")) <= 3


@st.composite
def cut_graph(draw: st.DrawFn) -> tuple[Card, Lane]:
    """A random graph with skips, cut anywhere."""
    count = draw(st.integers(1, 9))
    ops = []
    for place in range(count):
        extra = draw(st.lists(st.integers(0, place), max_size=2, unique=True))
        ops.append(Op(out_bytes=draw(st.integers(1, 50)), reads=tuple(dict.fromkeys((place, *extra)))))
    model = card(ops)
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=4))) if count > 1 else []
    ends = [*cuts, count]
    parts = [(stop - start, device(f"d{start}")) for start, stop in zip([0, *cuts], ends, strict=True)]
    return model, pipeline(model, parts).lanes[0]


@given(cut_graph())
@settings(max_examples=60, deadline=None)
def test_every_need_is_filled_once_by_an_earlier_stage(given_: tuple[Card, Lane]) -> None:
    """Pieces fill each need without overlap and come from before; gives are the same routes seen from the other end."""
    model, lane = given_
    routes = derive(model, lane, (0,) * len(lane.stages))
    reached = []
    for (stage, part), wanted in routes.needs.items():
        for need in wanted:
            assert sum(boxes.volume(source.box) for source in need.sources) == boxes.volume(need.box)
            assert all(source.stage < stage for source in need.sources)
            reached += [(s.stage, s.part, Give(need.tensor, s.box, stage, part)) for s in need.sources]
    sent = [(stage, part, give) for (stage, part), given_out in routes.gives.items() for give in given_out]
    assert sorted(reached, key=str) == sorted(sent, key=str)
    assert len(set(map(str, sent))) == len(sent)
    for number, entry in enumerate(lane.stages):
        assert [need.tensor for need in routes.needs[number, 0]] == list(model.fragment_inputs(entry.first, entry.last))
        made = {give.tensor for give in routes.gives[number, 0]}
        assert made == set(outline(model).fragment_outputs(entry.first, entry.last))
