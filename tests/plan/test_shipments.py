"""Shipments: every box that a device needs goes there once, whoever reads it, and nothing else goes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnn.cluster.member import DeviceId
from meshnn.errors import MeshError
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.plan import boxes
from meshnn.plan.boxes import Box
from meshnn.plan.outline import outline
from meshnn.plan.plan import Group, Lane, Stage
from meshnn.plan.routes import ORIGIN, derive
from meshnn.plan.shipments import Reader, Shipment, Traffic
from meshnn.plan.verify import check
from tests.node.random_networks import networks, plans
from tests.plan.cards import Op, card, device, pipeline, shard
from tests.plan.test_split_routes import lane, net

A, B, C = device("a"), device("b"), device("c")
ELSEWHERE = DeviceId("elsewhere")


def full(size: int = 100) -> Box:
    """The box of a made-up tensor of this many bytes."""
    return ((0, 1), (0, size))


def skipping() -> Card:
    """Four operators; the last adds what the first made to what the third made."""
    return card([Op(), Op(), Op(), Op(reads=(-1, 1))])


def test_a_skip_for_a_later_stage_of_a_device_comes_with_the_first() -> None:
    """Stages 1 and 3 on b read what stage 0 makes: one parcel, addressed to stage 1, and both take all of it."""
    traffic = Traffic(derive(skipping(), pipeline(skipping(), [(1, A), (1, B), (1, C), (1, B)]).lanes[0], (0,) * 4))
    takes = ((0, full()),)
    assert traffic.sent((0, 0), ELSEWHERE) == (
        Shipment((0, 0), (1, 0), ((1, full()),), (Reader((1, 0), takes), Reader((3, 0), takes))),
    )
    assert [one.source for one in traffic.received((3, 0), ELSEWHERE)] == [(0, 0), (2, 0)]


def test_a_later_reader_gets_what_is_missing_under_its_own_address() -> None:
    """Strips of rows 0-5 and 5-12 on one device: the first parcel brings the halo of both, the second the rest."""
    split = lane(("none", (), "a"), ("spatial", (0, 5, 12), "bb"), ("none", (), "a"))
    first, second = Traffic(derive(net(), split, (0, 0, 0))).sent((0, 0), ELSEWHERE)
    assert [(one.address, [box[1] for _, box in one.boxes]) for one in (first, second)] == [
        ((1, 0), [(0, 6)]),
        ((1, 1), [(6, 12)]),
    ]
    assert [(reader.at, reader.takes[0][1][1]) for reader in first.readers] == [((1, 0), (0, 6)), ((1, 1), (4, 6))]
    assert [reader.at for reader in second.readers] == [(1, 1)]


def test_readers_on_different_devices_each_get_a_parcel() -> None:
    """What b and c both read goes to both: it is once for each device, not once for all."""
    split = lane(("none", (), "a"), ("output", (0, 8, 16), "bc"), ("none", (), "a"))
    sent = Traffic(derive(net(), split, (0, 0, 0))).sent((0, 0), ELSEWHERE)
    assert [(one.address, len(one.readers)) for one in sent] == [((1, 0), 1), ((1, 1), 1)]


def test_the_origin_as_a_reader_counts_where_it_is() -> None:
    """An output that a stage of the origin's own device reads comes once to it, and apart to any other origin."""
    model = card([Op(), Op()])
    both = Card(**{name: getattr(model, name) for name in model.__struct_fields__} | {"outputs": model.tensors[1:]})
    traffic = Traffic(derive(both, pipeline(both, [(1, A), (1, B)]).lanes[0], (0, 0)))
    assert [(one.address, len(one.readers)) for one in traffic.sent((0, 0), B.device)] == [((1, 0), 2)]
    for origin in (A.device, ELSEWHERE):
        assert [one.address for one in traffic.sent((0, 0), origin)] == [(1, 0), (2, 0)]
    assert (traffic.seat(B.device), traffic.seat(ELSEWHERE)) == (B.device, "")


def test_a_shard_that_reads_nothing_is_told_to_fire_by_the_origin_alone() -> None:
    """An empty shipment, addressed to it; nobody else sends one."""
    model = card([Op(), Op(reads=())])
    stages = (Stage(0, 0, (Group((shard(A),)),)), Stage(1, 1, (Group((shard(B),)),)))
    traffic = Traffic(derive(model, Lane(stages), (0, 0)))
    empty = Shipment((ORIGIN, 0), (1, 0), (), (Reader((1, 0), ()),))
    assert traffic.received((1, 0), ELSEWHERE) == (empty,)
    assert empty in traffic.sent((ORIGIN, 0), ELSEWHERE)
    assert empty not in traffic.sent((0, 0), ELSEWHERE)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_element_that_a_device_needs_is_sent_to_it_exactly_once(data: st.DataObject) -> None:
    """Random plans, origins inside and outside: each source's elements counted one by one, for each device."""
    model = card_of(data.draw(networks()), "d" * 64, 0, "net")
    plan = data.draw(plans(model))
    try:
        check(plan, model)
    except MeshError:
        return
    origin = data.draw(st.sampled_from([DeviceId("a"), DeviceId("b"), ELSEWHERE]))
    groups = tuple(data.draw(st.integers(0, len(stage.groups) - 1)) for stage in plan.lanes[0].stages)
    routes = derive(outline(model), plan.lanes[0], groups)
    traffic = Traffic(routes)
    shapes = {entry.index: entry.shape for entry in model.tensors}
    for source, gives in routes.gives.items():
        wanted: dict[tuple[DeviceId, int], npt.NDArray[np.bool_]] = {}
        for give in gives:
            where = (traffic.device((give.stage, give.part), origin), give.tensor)
            wanted.setdefault(where, np.zeros(shapes[give.tensor], bool))[_at(give.box)] = True
        sent = {where: np.zeros(mask.shape, int) for where, mask in wanted.items()}
        for shipment in traffic.sent(source, origin):
            for tensor, box in shipment.boxes:
                sent[traffic.device(shipment.address, origin), tensor][_at(box)] += 1
        for where, mask in wanted.items():
            assert np.array_equal(sent[where], mask.astype(int)), (source, where)
    for at, needs in routes.needs.items():
        taken = [
            (shipment.boxes[place][0], boxes.volume(box))
            for shipment in traffic.received(at, origin)
            for reader in shipment.readers
            if reader.at == at
            for place, box in reader.takes
        ]
        for need in needs:
            due = need.copies * boxes.volume(need.box)
            assert sum(volume for tensor, volume in taken if tensor == need.tensor) == due


def _at(box: Box) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(*extent) for extent in box)
