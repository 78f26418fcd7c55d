"""What parts cost, told from the card, and boundaries chosen by it."""

from __future__ import annotations

import numpy as np
import pytest

from meshnn.errors import ModelError
from meshnn.graph import cost
from meshnn.graph.builder import Builder, Precision
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.splits import balance
from meshnn.graph.splits.layout import Split
from meshnn.graph.splits.shard import shards


def _deep(length: int = 4, precision: Precision = "float32") -> tuple[Graph, Card]:
    """Convolutions over 64 by 32 places."""
    b = Builder(np.random.default_rng(0), precision)
    x = b.input(1, 64, 32, 32)
    for _ in range(length):
        x = b.conv(x, 32, activation="RELU")
    graph = b.graph(x)
    return graph, card_of(graph, "", 0, "net")


@pytest.mark.parametrize("split", ["output", "input", "spatial"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_card_knows_what_parts_hold(split: Split, precision: Precision) -> None:
    """Weight bytes are never less than a part's own, nor much more; the arena covers the graph's own estimate."""
    graph, card = _deep(1, precision)
    last = len(graph.operators) - 1
    if precision == "int8" and split == "input":
        return
    shares = (0, 8, 32) if split != "spatial" else (0, 20, 64)
    for part, made in enumerate(shards(graph, 0, last, split, shares)):
        held = sum(t.data.size for t in made.tensors if t.data is not None)
        told = balance.weight_bytes(card, 0, last, split, shares, part)
        assert held <= told <= held + 1024
        assert balance.arena_bytes(card, 0, last, split, shares, part) >= cost.graph_arena_bytes(made) * 0.95


def test_halves_cost_half_and_halos_their_rows() -> None:
    """An output split halves the work; strips of a fused run cost more together than the whole."""
    _, card = _deep()
    whole = card.work(0, 3)
    halves = [balance.work(card, 0, 0, "output", (0, 16, 32), part) for part in (0, 1)]
    assert sum(halves) == pytest.approx(card.work(0, 0), rel=0.2)
    strips = [balance.work(card, 0, 3, "spatial", (0, 32, 64), part) for part in (0, 1)]
    assert whole < sum(strips) < 1.3 * whole


def test_boundaries_by_cost_beat_equal_rows() -> None:
    """Inner strips have two halos, edge strips one: by cost the slowest part is faster than with equal rows."""
    _, card = _deep(6)
    chosen = balance.balanced(card, 0, 5, "spatial", (1.0,) * 4)
    assert chosen is not None

    def slowest(shares: tuple[int, ...]) -> float:
        return max(balance.work(card, 0, 5, "spatial", shares, part) for part in range(4))

    assert slowest(chosen) < slowest((0, 16, 32, 48, 64))
    assert chosen[1] > 16


def test_a_slow_device_gets_less() -> None:
    """Shares follow speeds: rows by cost, channels in multiples of sixteen where there are enough."""
    _, card = _deep()
    rows = balance.balanced(card, 0, 3, "spatial", (3.0, 1.0))
    assert rows is not None
    assert 44 <= rows[1] <= 52
    assert balance.balanced(card, 0, 0, "output", (3.0, 1.0)) == (0, 24, 32)
    assert balance.proportional(256, (3.0, 1.0), 16) == (0, 192, 256)
    assert balance.proportional(40, (1.0, 1.0), 16) == (0, 32, 40)
    assert balance.proportional(3, (100.0, 1.0, 1.0), 1) == (0, 1, 2, 3)


def test_tiles_are_rows_by_cost_and_columns_by_share() -> None:
    """With columns a grid comes back, rows first."""
    _, card = _deep()
    shares = balance.balanced(card, 0, 3, "spatial", (1.0, 1.0), columns=(1.0, 3.0))
    assert shares is not None
    assert shares[2:] == (64, -1, 0, 8, 32)


def test_too_little_to_divide_is_none_and_a_refused_split_raises() -> None:
    """More parts than rows give no shares; a split that does not apply says why."""
    b = Builder(np.random.default_rng(0))
    graph = b.graph(b.softmax(b.conv(b.input(1, 3, 3, 4), 4)))
    card = card_of(graph, "", 0, "net")
    assert balance.balanced(card, 0, 0, "spatial", (1.0,) * 4) is None
    with pytest.raises(ModelError, match="SOFTMAX"):
        balance.balanced(card, 0, 1, "spatial", (1.0, 1.0))
