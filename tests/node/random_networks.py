"""Random small networks and random plans for them, drawn by hypothesis."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from meshnn.cluster.member import BootId, DeviceId
from meshnn.graph.builder import Builder, Precision
from meshnn.graph.card import Card
from meshnn.graph.ir import Graph
from meshnn.graph.splits.boxes import SEPARATOR
from meshnn.graph.splits.layout import refusal, share_lengths
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Split, Stage

SPLITS: tuple[Split, ...] = ("output", "input", "spatial")
ACTIVATIONS = ("NONE", "RELU", "RELU6")


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """A chain of two to seven layers with residual additions and joins, perhaps a classifier behind it."""
    precision: Precision = draw(st.sampled_from(["float32", "float32", "int8", "uint8", "float16", "dynamic"]))
    b = Builder(np.random.default_rng(draw(st.integers(0, 1000))), precision)
    x = b.input(1, draw(st.integers(5, 14)), draw(st.integers(5, 14)), draw(st.integers(1, 6)))
    for _ in range(draw(st.integers(2, 7))):
        x = _layer(draw, b, x)
    if draw(st.booleans()):
        x = b.fully_connected(b.mean(x), draw(st.integers(2, 12)), activation=draw(st.sampled_from(ACTIVATIONS)))
    return b.graph(x)


def _layer(draw: st.DrawFn, b: Builder, x: int) -> int:
    """One more layer, whatever fits."""
    kind = draw(st.sampled_from(["conv", "conv", "depthwise", "pool", "residual", "pad", "relu", "concat", "early"]))
    _, height, width, channels = b.shape(x)
    activation = draw(st.sampled_from(ACTIVATIONS))
    window = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    if kind == "depthwise":
        return b.depthwise(x, window, stride=stride, activation=activation, multiplier=draw(st.integers(1, 2)))
    if kind == "pool" and min(height, width) > 2:
        return b.pool(x, (2, 2), stride=stride, same=draw(st.booleans()), average=draw(st.booleans()))
    if kind == "residual":
        return b.add(x, b.conv(x, channels, (3, 3), activation=activation))
    if kind == "pad":
        return b.pad(x, (0, 0), (draw(st.integers(0, 2)), 1), (1, draw(st.integers(0, 2))), (0, 0))
    if kind == "relu":
        return b.unary("RELU", x)
    if kind == "concat":
        return b.concat(x, b.conv(x, draw(st.integers(1, 5)), (1, 1)))
    if kind == "early":
        y = b.conv(x, channels, (1, 1))
        return b.add(b.conv(y, channels, window), y)
    return b.conv(x, draw(st.integers(2, 20)), window, stride=stride, activation=activation)


@st.composite
def plans(draw: st.DrawFn, card: Card) -> Plan:
    """A plan that is meant to be legal: one or two lanes of one to five stages, each of one or two groups.

    Every split that the compiler allows is among the choices, in uneven shares; a device often has several shards.
    """
    lanes = [_lane(draw, card) for _ in range(draw(st.integers(1, 2)))]
    return Plan(Epoch(1, DeviceId("a"), 1), "m", card.digest, tuple(lanes))


def _lane(draw: st.DrawFn, card: Card) -> Lane:
    count = len(card.operators)
    legal = [place for place in range(1, count) if card.cuttable(place) is None]
    cuts = sorted(draw(st.sets(st.sampled_from(legal), max_size=4))) if legal else []
    edges = [0, *cuts, count]
    stages = [
        Stage(first, after - 1, tuple(_group(draw, card, first, after - 1) for _ in range(_replicas(draw))))
        for first, after in itertools.pairwise(edges)
    ]
    return Lane(tuple(stages), draw(st.integers(1, 3)))


def _replicas(draw: st.DrawFn) -> int:
    """How many groups serve a stage: seldom more than one, so that the ways stay few."""
    return draw(st.sampled_from([1, 1, 1, 2]))


def _group(draw: st.DrawFn, card: Card, first: int, last: int) -> Group:
    """A group with any split that these operators allow."""
    allowed = [split for split in SPLITS if refusal(card, first, last, split) is None]
    split: Split = draw(st.sampled_from([*allowed, "none"]))
    weight = draw(st.integers(1, 3))
    if split == "none":
        return Group((_shard(draw),), weight=weight)
    lengths = share_lengths(card, first, last, split)
    rows = _boundaries(draw, lengths[0])
    shares, parts = rows, len(rows) - 1
    if split == "spatial" and lengths[1] > 1 and draw(st.booleans()):
        columns = _boundaries(draw, lengths[1])
        shares, parts = (*rows, SEPARATOR, *columns), parts * (len(columns) - 1)
    return Group(tuple(_shard(draw) for _ in range(parts)), split, shares, weight)


def _boundaries(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    """Two to four uneven shares of a length."""
    inner = draw(st.sets(st.integers(1, length - 1), min_size=1, max_size=min(3, length - 1)))
    return (0, *sorted(inner), length)


def _shard(draw: st.DrawFn) -> Shard:
    return Shard(DeviceId(draw(st.sampled_from("abc"))), BootId("1"))
