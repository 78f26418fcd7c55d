"""The card says, without weights, exactly what the graph itself would."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from meshnn.graph import cost, cut
from meshnn.graph.builder import Builder, Precision
from meshnn.graph.card import CARD_VERSION, Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.table import cheapest_cuts, cuts, rows
from meshnn.graph.writer import write
from tests.graph.networks import PRECISIONS, residual, two_ends
from tests.shared_data import models


def _card(graph: Graph) -> Card:
    """The card of a graph with a stand-in digest."""
    return card_of(graph, "ab" * 32, 1234, "net")


def _assert_agree(graph: Graph, card: Card, ranges: list[tuple[int, int]]) -> None:
    """Card and graph name the same cuts, tensors and operators."""
    for position in range(len(graph.operators) + 1):
        assert card.cuttable(position) == cut.refusal(graph, position)
        if position < len(graph.operators):
            assert card.crossing(position) == cut.live(graph, position)
    for first, last in ranges:
        assert card.fragment_inputs(first, last) == cut.fragment_inputs(graph, first, last)
        assert card.fragment_outputs(first, last) == cut.fragment_outputs(graph, first, last)
        assert card.members(first, last) == cut.members(graph, first, last)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_card_and_graph_agree_on_every_range(precision: Precision) -> None:
    """Every range of a residual network: inputs, outputs, members, weights and arena follow from the card alone."""
    graph = residual(precision)
    card, total = _card(graph), len(graph.operators)
    ranges = [(a, b) for a in range(total) for b in range(a, total)]
    _assert_agree(graph, card, ranges)
    for first, last in ranges:
        if card.refusal(first, last) is None:
            part = cut.fragment(graph, first, last)
            held = sum(t.data.size for t in part.tensors if t.data is not None)
            assert held <= card.weight_bytes(first, last) <= held + 64
            assert card.arena_bytes(first, last) >= cost.graph_arena_bytes(part) - (16 << 10)


def test_passed_through_inputs_and_constants_belong_to_the_last_part() -> None:
    """Outputs that no operator makes are given by the part that ends the model, and only by it."""
    _assert_agree(two_ends(), _card(two_ends()), [(a, b) for a in range(3) for b in range(a, 3)])
    b = Builder(np.random.default_rng(0))
    x, fixed = b.input(1, 4, 4, 2), b.constant(np.ones((1, 3), np.float32))
    graph = b.graph(b.conv(b.conv(x, 2), 2), fixed)
    card = _card(graph)
    _assert_agree(graph, card, [(0, 0), (0, 1), (1, 1)])
    assert fixed in card.fragment_outputs(1, 1)
    assert fixed not in card.fragment_inputs(1, 1)


@pytest.mark.parametrize("path", models(), ids=lambda path: path.stem[:40])
def test_cards_of_real_models_agree_and_are_small(path: Path) -> None:
    """Real models: the card agrees with the graph on a grid of ranges and stays below 80 kB."""
    graph = read(np.memmap(path, np.uint8, "r"), name=path.name)
    card, total = _card(graph), len(graph.operators)
    step = max(1, total // 6)
    _assert_agree(graph, card, [(a, b) for a in range(0, total, step) for b in range(a, total, step)])
    assert len(msgspec.msgpack.encode(card)) < 80_000


def test_a_card_travels() -> None:
    """A card is the same after msgpack and JSON."""
    card = _card(residual("int8"))
    assert card.version == CARD_VERSION
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(card), type=Card) == card
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card


def test_inputs_and_outputs_are_described() -> None:
    """Name, shape, dtype and quantisation of what goes in and out are the file's own."""
    card = _card(residual("int8"))
    assert (card.inputs[0].name, card.inputs[0].shape, card.inputs[0].dtype) == ("image", (1, 13, 12, 3), "int8")
    quantization = card.inputs[0].quantization
    assert quantization is not None
    assert quantization.zero_point == -5
    assert card.outputs[0].shape == (1, 10)


def test_macs_are_what_the_definition_says() -> None:
    """Convolution: output elements times window times input channels; depthwise: without the channels."""
    b = Builder(np.random.default_rng(0))
    x = b.conv(b.input(1, 8, 6, 4), 10, (3, 5), stride=(2, 2))
    x = b.fully_connected(b.reshape(b.depthwise(x), 1, 4 * 3 * 10), 7)
    ops = _card(b.graph(x)).operators
    assert [op.macs for op in ops] == [4 * 3 * 10 * 3 * 5 * 4, 4 * 3 * 10 * 9, 0, 120 * 7]
    assert ops[3].weight_bytes == 4 * (120 * 7 + 7)


def test_work_of_ranges_adds_up() -> None:
    """The work of two halves is the work of the whole, and constants cost none."""
    card = _card(residual("float16"))
    total = len(card.operators) - 1
    assert card.work(0, 9) + card.work(10, total) == pytest.approx(card.work(0, total))
    assert card.work(0, 0) == 0


def test_arena_is_the_peak_of_what_lives_at_once() -> None:
    """Three tensors of 1, 2 and 4 kB, the first two alive together, then the last two: 6 kB and the margin."""
    spans = [(0, 1, 1024), (1, 2, 2048), (2, 3, 4096)]
    assert cost.arena_bytes(spans) == 6144 + 6144 // 8 + 16384


def test_the_operator_table_and_the_cheapest_cuts() -> None:
    """One row per operator in order; cuts in order of bytes, each naming what crosses."""
    graph = residual()
    card = _card(graph)
    assert [row.kind for row in rows(card)] == [operator.kind for operator in graph.operators]
    best = cheapest_cuts(card, 3)
    assert [row.size_bytes for row in best] == sorted(row.size_bytes for row in cuts(card))[:3]
    assert all(row.tensors == card.crossing(row.position) for row in best)
    assert 0 < best[0].work_before < 1


def test_an_empty_range_is_refused_by_the_card() -> None:
    """A stage of constants alone is refused before anybody cuts it."""
    card = _card(residual("float16"))
    assert "make nothing" in (card.refusal(0, 0) or "")
    assert card.refusal(3, 2) is not None
    assert card.refusal(0, len(card.operators) - 1) is None


def test_fragment_files_keep_the_card_order() -> None:
    """The written part's inputs and outputs stand in the order the card tells."""
    graph = two_ends()
    card = _card(graph)
    part = read(write(cut.fragment(graph, 1, 2)).to_bytes())
    assert [part.tensors[t].name for t in part.inputs] == [card.tensor(t).name for t in card.fragment_inputs(1, 2)]
    assert [part.tensors[t].name for t in part.outputs] == [card.tensor(t).name for t in card.fragment_outputs(1, 2)]
