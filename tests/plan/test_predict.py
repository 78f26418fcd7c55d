"""Predictions, against figures worked out by hand: 100 bytes a ms, 1 ms a message."""

from __future__ import annotations

import msgspec
import pytest

from meshnn.cluster.member import DeviceId
from meshnn.errors import NoPlanError
from meshnn.plan.devices import Link, Links, asking_weights, speed_of
from meshnn.plan.plan import Group, Lane, Plan, Stage
from meshnn.plan.predict import predict
from tests.plan.cards import EPOCH, Op, card, chain, device, links, pipeline, shard

A, B, C = device("a"), device("b", speed=2.0), device("c")
LINKS = links(bytes_per_ms=100.0, rtt_ms=1.0, overhead_ms=0.5)
MESSAGE = 1.0


def test_one_device_asking_itself_pays_only_its_work() -> None:
    """The origin's own device needs no message."""
    cost = predict(pipeline(chain(4), [(4, A)], window=4), chain(4), [A], LINKS)
    assert cost.latency_ms == pytest.approx(4.0)
    assert cost.throughput_per_s == pytest.approx(250.0)
    assert cost.air_bytes == 0


def test_another_origin_pays_the_way_in_and_out() -> None:
    """100 bytes each way: 1 ms on the air and 1 ms a message."""
    cost = predict(pipeline(chain(4), [(4, A)]), chain(4), [A, C], LINKS, {DeviceId("c"): 1.0})
    assert cost.latency_ms == pytest.approx(4 + 2 * (1 + MESSAGE))
    assert cost.air_bytes == 200
    assert cost.stages[0].transfer_ms == pytest.approx(2.0)


def test_the_mean_is_over_everybody_that_asks() -> None:
    """With no rates known every device asks alike; those outside the plan stand for one another."""
    cost = predict(pipeline(chain(4), [(4, A)]), chain(4), [A, C, device("e"), device("f")], LINKS)
    assert cost.latency_ms == pytest.approx(4 + 3 / 4 * 4)


def test_a_pipeline_adds_work_by_speed_and_the_hop() -> None:
    """Two operators at speed 1, two at speed 2, one hop of 100 bytes, and the way home from b."""
    cost = predict(pipeline(chain(4), [(2, A), (2, B)]), chain(4), [A, B], LINKS, {DeviceId("a"): 1.0})
    assert cost.latency_ms == pytest.approx(2 + 2 + 1 + 2)
    assert [stage.compute_ms for stage in cost.stages] == [2.0, 1.0]
    assert [stage.bytes_in for stage in cost.stages] == [100, 100]


def test_independent_branches_run_at_once() -> None:
    """Two branches on two devices take as long as the longer, and the join waits for both."""
    model = card([Op(work=1), Op(work=10, reads=(1,)), Op(work=10, reads=(1,)), Op(work=1, reads=(2, 3))])
    plan = pipeline(model, [(1, A), (1, B), (1, C), (1, A)])
    cost = predict(plan, model, [A, B, C], LINKS, {DeviceId("a"): 1.0})
    # a sends to b, then to c: c starts at 1 + 1 + 1 + 1 ms and is the last to come back.
    assert cost.latency_ms == pytest.approx(1 + (1 + 1 + MESSAGE) + 10 + (1 + MESSAGE) + 1)


def test_one_device_does_one_thing_at_a_time() -> None:
    """The same branches on one device follow each other."""
    model = card([Op(work=1), Op(work=10, reads=(1,)), Op(work=10, reads=(1,)), Op(work=1, reads=(2, 3))])
    plan = pipeline(model, [(1, A), (1, A), (1, A), (1, A)])
    assert predict(plan, model, [A], LINKS).latency_ms == pytest.approx(22.0)


def test_throughput_is_that_of_the_busiest_device_or_link() -> None:
    """A pipeline is as fast as its slowest part; a full window hides the waiting, a small one does not."""
    model = card([Op(work=3, out_bytes=100), Op(work=1)])
    ask = {DeviceId("a"): 1.0}
    assert predict(pipeline(model, [(1, A), (1, C)], window=9), model, [A, C], LINKS, ask).throughput_per_s == (
        pytest.approx(1000 / 3)
    )
    slow = card([Op(work=3, out_bytes=1000), Op(work=1)])
    assert predict(pipeline(slow, [(1, A), (1, C)], window=9), slow, [A, C], LINKS, ask).throughput_per_s == (
        pytest.approx(100)
    )
    alone = predict(pipeline(model, [(1, A), (1, C)], window=1), model, [A, C], LINKS, ask)
    assert alone.throughput_per_s == pytest.approx(1000 / alone.latency_ms)


def test_lanes_and_groups_are_means_by_weight() -> None:
    """A third of the requests go to the fast lane: latency and load are the weighted means."""
    slow = Lane((Stage(0, 3, (Group((shard(A),)),)),), weight=2)
    fast = Lane((Stage(0, 3, (Group((shard(B),)),)),), weight=1)
    plan = Plan(EPOCH, "m", chain(1).digest, (slow, fast), window=9, share=9)
    free = links(bytes_per_ms=1e12, rtt_ms=0, overhead_ms=0)
    cost = predict(plan, chain(4), [A, B], free)
    assert cost.latency_ms == pytest.approx((2 * 4 + 2) / 3)
    assert cost.throughput_per_s == pytest.approx(1000 / (4 * 2 / 3))


def test_measured_links_count_per_pair_and_an_unusable_one_is_as_good_as_never() -> None:
    """A slow pair costs what it costs; the measure of one direction stands for the other where that is not known."""
    pair = Links(Link(100.0, 1.0), {(DeviceId("a"), DeviceId("b")): Link(10.0, 1.0)}, 0.5)
    plan = pipeline(chain(4), [(2, A), (2, B)])
    assert predict(plan, chain(4), [A, B], pair, {DeviceId("a"): 1}).latency_ms == pytest.approx(2 + 11 + 1 + 11)
    dead = msgspec.structs.replace(pair, pairs={(DeviceId("a"), DeviceId("b")): Link(0.0, 1.0)})
    assert predict(plan, chain(4), [A, B], dead, {DeviceId("a"): 1}).latency_ms > 2 * 60_000


def test_a_device_that_is_not_here_is_named() -> None:
    """A prediction for a plan with a stranger is refused."""
    with pytest.raises(NoPlanError, match="not here: b"):
        predict(pipeline(chain(4), [(2, A), (2, B)]), chain(4), [A], LINKS)


def test_asking_weights_sum_to_one_and_fall_back_to_all() -> None:
    """Rates are shares of those that are here; without any, everybody asks alike."""
    assert asking_weights([A, B], {DeviceId("a"): 3.0, DeviceId("b"): 1.0, DeviceId("z"): 9.0}) == {
        "a": 0.75,
        "b": 0.25,
    }
    assert asking_weights([A, B], {}) == {"a": 0.5, "b": 0.5}


def test_a_device_without_a_measure_counts_as_the_reference() -> None:
    """Speed in multiply-accumulates a second becomes work units a ms; unmeasured is 1."""
    assert speed_of(0.0) == 1.0
    assert speed_of(0.5) == 0.5
