"""Layouts: what each part needs and gives, told from the card, and what is refused with which reason."""

from __future__ import annotations

import numpy as np
import pytest

from meshnn.errors import ModelError
from meshnn.graph.builder import Builder, Precision
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.splits.boxes import even_shares, whole
from meshnn.graph.splits.layout import Split, layout, refusal, share_lengths
from tests.graph.networks import residual


def _card(graph: Graph) -> Card:
    """The card of a graph."""
    return card_of(graph, "", 0, "net")


def _builder(precision: Precision = "float32") -> Builder:
    """A builder with a fixed seed."""
    return Builder(np.random.default_rng(0), precision)


def test_a_strip_needs_its_halo() -> None:
    """Two 3x3 convolutions: the middle strip of three needs two rows more on each side, cut off at the edges."""
    b = _builder()
    x = b.input(1, 12, 10, 4)
    card = _card(b.graph(b.conv(b.conv(x, 8), 6)))
    rows = [layout(card, 0, 1, "spatial", (0, 4, 8, 12), part).needs[x][1] for part in range(3)]
    assert rows == [(0, 6), (2, 10), (6, 12)]
    out = card.outputs[0].index
    assert layout(card, 0, 1, "spatial", (0, 4, 8, 12), 1).gives[out] == ((0, 1), (4, 8), (0, 10), (0, 6))


def test_a_tile_needs_its_halo_on_both_axes() -> None:
    """Tiles are counted row by row; the last of a two by two grid needs the corner with one row and column more."""
    b = _builder()
    x = b.input(1, 8, 6, 4)
    card = _card(b.graph(b.conv(x, 8)))
    shares = (0, 4, 8, -1, 0, 3, 6)
    assert layout(card, 0, 0, "spatial", shares, 3).needs[x] == ((0, 1), (3, 8), (2, 6), (0, 4))
    assert layout(card, 0, 0, "spatial", shares, 1).gives[card.outputs[0].index] == ((0, 1), (0, 4), (3, 6), (0, 8))


def test_a_stride_skips_rows_no_window_reads() -> None:
    """A 1x1 convolution with stride 2 needs exactly the rows it lands on, from first to last."""
    b = _builder()
    x = b.input(1, 8, 8, 4)
    card = _card(b.graph(b.conv(x, 4, (1, 1), stride=(2, 2))))
    assert layout(card, 0, 0, "spatial", (0, 2, 4), 1).needs[x][1] == (4, 7)


def test_residual_parts_need_the_union_of_both_ways() -> None:
    """Through an addition the wider of the two ways counts: the tensor both read is needed with the halo."""
    b = _builder()
    x = b.input(1, 9, 9, 4)
    card = _card(b.graph(b.add(x, b.conv(x, 4))))
    assert layout(card, 0, 1, "spatial", (0, 3, 6, 9), 1).needs[x][1] == (2, 7)


def test_output_parts_need_everything_and_give_their_channels() -> None:
    """A convolution, a depthwise of multiplier two and a pool: channels stay apart, the input is whole."""
    b = _builder()
    x = b.input(1, 8, 8, 4)
    y = b.pool(b.depthwise(b.conv(x, 6), multiplier=2))
    card = _card(b.graph(y))
    made = layout(card, 0, 2, "output", (0, 2, 6), 1)
    assert made.needs[x] == whole((1, 8, 8, 4))
    assert made.gives[y] == ((0, 1), (0, 4), (0, 4), (4, 12))
    assert not made.sums


def test_output_then_input_needs_no_gather() -> None:
    """What part i of an output split gives is what part i of the input split behind it needs."""
    b = _builder()
    x = b.conv(b.input(1, 6, 6, 4), 12, activation="RELU")
    card = _card(b.graph(b.conv(x, 5)))
    for part in range(3):
        before = layout(card, 0, 0, "output", (0, 3, 4, 12), part)
        behind = layout(card, 1, 1, "input", (0, 3, 4, 12), part)
        assert before.gives == behind.needs
        assert behind.sums


def test_consecutive_strips_exchange_only_halo_rows() -> None:
    """Two spatial stages with equal shares: a part needs its own rows and one more on each inner side."""
    b = _builder()
    x = b.conv(b.input(1, 12, 12, 4), 4)
    card = _card(b.graph(b.conv(x, 4)))
    shares = even_shares(12, 3)
    given = [layout(card, 0, 0, "spatial", shares, part).gives[x][1] for part in range(3)]
    needed = [layout(card, 1, 1, "spatial", shares, part).needs[x][1] for part in range(3)]
    assert given == [(0, 4), (4, 8), (8, 12)]
    assert needed == [(0, 5), (3, 9), (7, 12)]


def test_no_split_is_the_whole() -> None:
    """`none` is one part that needs and gives everything, by the same call."""
    card = _card(residual())
    made = layout(card, 2, 6, "none", (), 0)
    tensors = card.by_index()
    assert made.needs == {t: whole(tensors[t].shape) for t in card.fragment_inputs(2, 6)}
    assert made.gives == {t: whole(tensors[t].shape) for t in card.fragment_outputs(2, 6)}


def _one(kind: str, precision: Precision) -> tuple[Card, int, int]:
    """(card, first, last) of a run that some split refuses."""
    b = _builder(precision)
    x = b.input(1, 8, 8, 4)
    if kind == "conv":
        y = b.conv(x, 8)
    elif kind == "two":
        y = b.conv(b.conv(x, 8), 8)
    elif kind == "depthwise":
        y = b.depthwise(x)
    elif kind == "average":
        y = b.pool(x, (3, 3), stride=(1, 1), same=True, average=True)
    elif kind == "concat":
        y = b.concat(x, b.conv(x, 4))
    elif kind == "softmax":
        y = b.softmax(x)
    elif kind == "tanh":
        y = b.unary("TANH", x)
    elif kind == "rows":
        y = b.concat(x, b.conv(x, 4), axis=1)
    elif kind == "relu":
        y = b.unary("RELU", b.conv(x, 8))
    else:
        y = b.fully_connected(b.reshape(x, 1, 256), 10)
    graph = b.graph(y)
    return _card(graph), 0, len(graph.operators) - 1


@pytest.mark.parametrize(
    ("kind", "precision", "split", "reason"),
    [
        ("conv", "dynamic", "spatial", "another range"),
        ("conv", "dynamic", "input", "dynamic-range"),
        ("depthwise", "dynamic", "output", "dynamic-range"),
        ("conv", "int8", "input", "integer partial sums"),
        ("conv", "uint8", "input", "integer partial sums"),
        ("fc", "int8", "spatial", "moves places"),
        ("two", "float32", "output", "channels that other parts make"),
        ("two", "float32", "input", "one dense operator"),
        ("average", "float32", "spatial", "padding out of the mean"),
        ("concat", "float32", "output", "joins channels"),
        ("rows", "float32", "spatial", "joins rows"),
        ("softmax", "float32", "output", "no rule"),
        ("tanh", "float32", "spatial", "last bit"),
        ("relu", "float32", "input", "does not sum"),
        ("depthwise", "float32", "input", "does not sum"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_its_reason(
    kind: str, precision: Precision, split: Split, reason: str
) -> None:
    """Every rule says why it does not apply, and asking for the parts anyway raises the same."""
    card, first, last = _one(kind, precision)
    told = refusal(card, first, last, split)
    assert told is not None
    assert reason in told
    with pytest.raises(ModelError, match="no_split"):
        layout(card, first, last, split, (0, 1, 2), 0)


def test_a_boundary_between_channels_made_of_one_is_refused() -> None:
    """Beside a convolution, a depthwise of multiplier two on a tensor of its own: its pairs may not be torn apart."""
    b = _builder()
    x = b.input(1, 6, 5, 3)
    y, z = b.conv(x, 2), b.depthwise(x, multiplier=2)
    card = _card(b.graph(b.add(y, y), b.add(z, z)))
    assert "boundary lies between them" in (refusal(card, 0, 3, "output", (0, 1, 2)) or "")


@pytest.mark.parametrize("shares", [(), (0,), (0, 8), (0, 4), (0, 0, 8), (0, 5, 3, 8), (1, 8), (0, 4, 8, -1, 0, 3)])
def test_shares_that_divide_nothing_are_refused(shares: tuple[int, ...]) -> None:
    """Shares run from 0 to the length and leave no part empty; one part alone is no split but is none either."""
    b = _builder()
    card = _card(b.graph(b.conv(b.input(1, 8, 8, 4), 8)))
    told = refusal(card, 0, 0, "spatial", shares)
    assert (told is None) == (shares == (0, 8))


def test_a_part_that_does_not_exist_is_refused() -> None:
    """Parts are counted from zero to one less than their number."""
    b = _builder()
    card = _card(b.graph(b.conv(b.input(1, 8, 8, 4), 8)))
    for part in (-1, 2):
        with pytest.raises(ModelError, match="there is no part"):
            layout(card, 0, 0, "output", (0, 4, 8), part)


def test_share_lengths_are_what_a_split_divides() -> None:
    """Output channels, input channels, or rows and columns."""
    b = _builder()
    card = _card(b.graph(b.conv(b.input(1, 9, 7, 4), 6)))
    assert share_lengths(card, 0, 0, "output") == (6,)
    assert share_lengths(card, 0, 0, "input") == (4,)
    assert share_lengths(card, 0, 0, "spatial") == (9, 7)
    assert share_lengths(card, 0, 0, "none") == ()
