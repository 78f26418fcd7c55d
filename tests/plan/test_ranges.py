"""Range costs: the memory formula, and the tables that a search reads instead of the card."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.reader import read
from meshnn.plan.outline import outline
from meshnn.plan.plan import Recipe
from meshnn.plan.ranges import Table, candidate_cuts, crossing_bytes, extra_memory, memory_bytes, memory_of, plan_memory
from tests import shared_data
from tests.plan.cards import Op, card, chain, device, pipeline

A, B = device("a"), device("b")


def whole(model: Card) -> Recipe:
    """The recipe of a whole model."""
    return Recipe(model.digest, 0, len(model.operators) - 1)


def test_memory_is_twice_the_weights_and_arena_and_assembly() -> None:
    """The one formula: 2 x weight bytes + activation arena + bytes received x window."""
    model = card([Op(weights=1000), Op(weights=500)], in_bytes=70)
    base = 2 * 1500 + model.arena_bytes(0, 1)
    assert memory_bytes(model, whole(model), 0) == base
    assert memory_bytes(model, whole(model), 4) == base + 4 * 70


def test_a_recipe_counts_once_on_a_device() -> None:
    """A device that serves one recipe twice holds it once."""
    model = chain(2)
    plan = pipeline(model, [(2, A)])
    twice = type(plan)(plan.epoch, plan.model, plan.digest, plan.lanes * 2, plan.window, plan.share)
    assert plan_memory(model, twice) == plan_memory(model, plan)


def test_a_loaded_recipe_costs_only_a_wider_window() -> None:
    """Beside a plan that holds the same recipe on the same device, only more assembly is paid."""
    model = chain(4)
    loaded = pipeline(model, [(2, A), (2, B)], window=2)
    wider = pipeline(model, [(2, A), (2, B)], window=5)
    other = pipeline(model, [(2, B), (2, A)], window=2)
    assert extra_memory(model, wider, [loaded]) == {"a": 300, "b": 300}
    assert extra_memory(model, other, [loaded]) == plan_memory(model, other)
    assert memory_of(model, [loaded, wider]) == plan_memory(model, wider)


@st.composite
def graphs(draw: st.DrawFn) -> Card:
    """A random graph with skips and weights of every size."""
    count = draw(st.integers(1, 10))
    ops = [
        Op(
            draw(st.integers(0, 9)),
            draw(st.integers(0, 999)),
            draw(st.integers(1, 999)),
            tuple(dict.fromkeys((place, *draw(st.lists(st.integers(0, place), max_size=2))))),
        )
        for place in range(count)
    ]
    return card(ops, in_bytes=draw(st.integers(1, 999)))


def assert_table_is_the_card(model: Card, cuts: tuple[int, ...]) -> int:
    """Compare every segment of the table with the card's own answer; return how many segments are legal."""
    table = Table(outline(model), cuts)
    memory = table.memory(3)
    legal = 0
    for row in range(len(cuts)):
        for column in range(row + 1, len(cuts)):
            first, last = cuts[row], cuts[column] - 1
            good = model.refusal(first, last) is None and bool(model.fragment_inputs(first, last))
            assert bool(np.isfinite(memory[row, column])) == good
            if good:
                legal += 1
                assert memory[row, column] == memory_bytes(model, Recipe(model.digest, first, last), 3)
                assert table.work[row, column] == pytest.approx(model.work(first, last), abs=1e-6)
    return legal


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_table_equals_the_card_on_random_graphs(model: Card) -> None:
    """Memory, work and legality of every segment are those of the card, to the byte."""
    assert assert_table_is_the_card(model, tuple(range(len(model.operators) + 1))) >= 1


@pytest.mark.parametrize(
    "name",
    ["coral__mobilenet_v2_1.0_224_quant", "mediapipe_face__face_detection_short_range", "tflite_support__dilated_conv"],
)
def test_table_equals_the_card_on_real_models(name: str) -> None:
    """The same on models with refused cuts, and with constant operators that are cloned into shards."""
    data = shared_data.model(name).read_bytes()
    model = card_of(read(data, name=name), hashlib.sha256(data).hexdigest(), len(data), name)
    assert assert_table_is_the_card(model, candidate_cuts(outline(model), 20)) > 20


def test_crossing_bytes_count_every_living_tensor() -> None:
    """A skip crosses every position between its maker and its last reader."""
    model = card([Op(out_bytes=10), Op(out_bytes=20), Op(out_bytes=30), Op(out_bytes=40, reads=(-1, 1))], in_bytes=5)
    assert crossing_bytes(outline(model)).tolist()[:4] == [5, 10, 30, 40]


def test_candidate_cuts_take_the_cheap_ones_and_those_asked_for() -> None:
    """Of many cuts the cheapest of each stretch stay; ends and the cuts of a running plan are always there."""
    sizes = [1 if place % 10 == 4 else 1000 for place in range(100)]
    model = outline(card([Op(out_bytes=size, weights=10) for size in sizes]))
    cuts = candidate_cuts(model, 10, always=(33,))
    assert cuts == (0, 5, 15, 25, 33, 35, 45, 55, 65, 75, 85, 95, 100)


def test_refused_cuts_are_never_candidates() -> None:
    """A boundary that cannot be cut is left out, even when asked for."""
    model = card([Op()] * 4, refused={2: "because"})
    assert candidate_cuts(outline(model), 10, always=(2,)) == (0, 1, 3, 4)
    assert candidate_cuts(outline(model), 1, always=(2,))[0] == 0
    assert 2 not in candidate_cuts(outline(model), 1, always=(2,))
