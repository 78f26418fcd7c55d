"""Routes of split stages: halos move their rows alone, kept channels move nothing, addends come in part order."""

from __future__ import annotations

import numpy as np
import pytest

from meshnn.errors import NoPlanError, UsageError
from meshnn.graph.builder import Builder
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.plan import boxes
from meshnn.plan.outline import outline
from meshnn.plan.plan import Group, Lane, Plan, Split, Stage
from meshnn.plan.predict import predict
from meshnn.plan.ranges import plan_memory
from meshnn.plan.routes import derive
from meshnn.plan.verify import check
from tests.plan.cards import DIGEST, EPOCH, device, links, shard

DEVICES = [device(name) for name in "abcd"]


def net() -> Card:
    """Three 3 x 3 convolutions of 16 channels over 12 x 10 places, a RELU6 behind the second."""
    b = Builder(np.random.default_rng(1))
    x = b.conv(b.input(1, 12, 10, 4), 16)
    return card_of(b.graph(b.conv(b.conv(x, 16, activation="RELU6"), 8)), DIGEST, 0, "net")


def lane(*parts: tuple[Split, tuple[int, ...], str]) -> Lane:
    """One stage for each operator: split, shares, devices."""
    infos = {str(info.device): info for info in DEVICES}
    return Lane(
        tuple(
            Stage(at, at, (Group(tuple(shard(infos[one]) for one in letters), split, shares),))
            for at, (split, shares, letters) in enumerate(parts)
        )
    )


def plan(*parts: tuple[Split, tuple[int, ...], str]) -> Plan:
    """A plan of that lane."""
    return Plan(EPOCH, "m", DIGEST, (lane(*parts),), 2, 1)


def rows(box: boxes.Box) -> tuple[int, int]:
    """The rows of a box."""
    return box[1]


def test_halos_come_from_the_neighbour_and_the_rest_stays() -> None:
    """Strip 1 of a second spatial stage needs its own rows of itself and one row of each neighbour."""
    shares = (0, 3, 7, 12)
    found = derive(net(), lane(("spatial", shares, "abc"), ("spatial", shares, "abc"), ("none", (), "a")), (0, 0, 0))
    (need,) = found.needs[1, 1]
    assert rows(need.box) == (2, 8)
    assert [(one.part, rows(one.box)) for one in need.sources] == [(0, (2, 3)), (1, (3, 7)), (2, (7, 8))]
    assert [(one.part, rows(one.box)) for one in found.needs[1, 0][0].sources] == [(0, (0, 3)), (1, (3, 4))]


def test_the_origin_sends_each_strip_its_rows_and_halo() -> None:
    """What the first strips read overlaps by the halo, and no strip gets the whole image."""
    found = derive(net(), lane(("spatial", (0, 5, 12), "ab"), ("none", (), "a"), ("none", (), "a")), (0, 0, 0))
    assert [(give.part, rows(give.box)) for give in found.gives[-1, 0]] == [(0, (0, 6)), (1, (4, 12))]


def test_an_output_stage_before_an_input_stage_moves_nothing() -> None:
    """Equal shares: every part reads the very channels it made; unequal ones move only the difference."""
    pair = lane(("output", (0, 4, 16), "ab"), ("input", (0, 4, 16), "ab"), ("none", (), "c"))
    found = derive(net(), pair, (0, 0, 0))
    assert [[source.part for source in found.needs[1, part][0].sources] for part in (0, 1)] == [[0], [1]]
    crossed = lane(("output", (0, 4, 16), "ab"), ("input", (0, 6, 16), "ab"), ("none", (), "c"))
    sources = derive(net(), crossed, (0, 0, 0)).needs[1, 0][0].sources
    assert [(one.part, one.box[-1]) for one in sources] == [(0, (0, 4)), (1, (4, 6))]


@pytest.mark.parametrize("following", ["none", "spatial", "output"])
def test_addends_reach_every_reader_in_part_order_with_the_activation(following: Split) -> None:
    """Whatever reads the sum adds all parts' addends of its own box, in part order, and applies RELU6."""
    shares: tuple[int, ...] = {"none": (), "spatial": (0, 5, 12), "output": (0, 3, 8)}[following]
    split = lane(("none", (), "a"), ("input", (0, 1, 9, 16), "cba"), (following, shares, "d" if not shares else "ab"))
    found = derive(net(), split, (0, 0, 0))
    for part in range(max(1, len(shares) - 1)):
        (need,) = found.needs[2, part]
        assert (need.sums, need.activation) == (True, "RELU6")
        assert [(one.part, one.box) for one in need.sources] == [(at, need.box) for at in range(3)]


def test_parts_cost_their_share_of_work_weights_and_memory() -> None:
    """Uneven output shares: a quarter of the channels is about a quarter of the weights, and less work and memory."""
    card = outline(net())
    stage = lane(("none", (), "a"), ("output", (0, 4, 16), "bc"), ("none", (), "a")).stages[1]
    small, large = (boxes.work(card, stage, stage.groups[0], part) for part in (0, 1))
    assert 0 < small < large < card.work(1, 1) < small + large
    weights = [boxes.weight_bytes(card, stage, stage.groups[0], part) for part in (0, 1)]
    assert 0.2 < weights[0] / sum(weights) < 0.35
    whole = Group((shard(DEVICES[1]),))
    assert boxes.arena_bytes(card, stage, stage.groups[0], 0) < boxes.arena_bytes(card, stage, whole, 0)
    memory = plan_memory(card, plan(("none", (), "a"), ("output", (0, 4, 16), "bc"), ("none", (), "a")))
    assert memory[DEVICES[1].device] < memory[DEVICES[2].device]


def test_a_prediction_follows_the_slowest_part() -> None:
    """Two parts at once take less than the whole after the other; on a mute link they take longer."""
    card = net()
    one = plan(("none", (), "a"), ("none", (), "a"), ("none", (), "a"))
    two = plan(("spatial", (0, 6, 12), "ab"), ("spatial", (0, 6, 12), "ab"), ("none", (), "a"))
    slow = [device(name, speed=0.0005) for name in "abcd"]
    quick = links(1e6, 0.0, 0.0)
    asking = {DEVICES[0].device: 1.0}
    assert predict(two, card, slow, quick, asking).latency_ms < predict(one, card, slow, quick, asking).latency_ms
    mute = links(10.0, 0.0, 0.0)
    assert predict(two, card, slow, mute, asking).latency_ms > predict(one, card, slow, mute, asking).latency_ms


@pytest.mark.parametrize(
    ("split", "shares", "error", "reason"),
    [
        ("output", (0, 8, 15), NoPlanError, "do not run from 0 to 16"),
        ("output", (0, 16, 16), NoPlanError, "leave a part empty"),
        ("spatial", (0, 6, 12, -1, 0, 5, 10), UsageError, "make 4 parts for 2 shards"),
        ("input", (), UsageError, "make 0 parts for 2 shards"),
    ],
)
def test_shares_that_do_not_fit_are_refused(
    split: Split, shares: tuple[int, ...], error: type[Exception], reason: str
) -> None:
    """The boundaries must divide the axis into as many parts as there are shards."""
    with pytest.raises(error, match=reason):
        check(plan(("none", (), "a"), (split, shares, "ab"), ("none", (), "a")), net())


def test_uneven_shares_with_both_ends_are_the_form() -> None:
    """(0, 8, 16) and (0, 1, 16) are legal shares of sixteen channels."""
    for shares in ((0, 8, 16), (0, 1, 16)):
        check(plan(("none", (), "a"), ("output", shares, "ab"), ("none", (), "a")), net())
