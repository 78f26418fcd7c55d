"""Shards: every split's parts, run and merged, give the whole's bytes; partial sums stay within 1e-5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.graph import cut
from meshnn.graph.builder import Builder, Precision, random_inputs
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.splits.boxes import even_shares
from meshnn.graph.splits.layout import Split, refusal, share_lengths
from meshnn.graph.splits.merge import activate, lay, total
from meshnn.graph.splits.shard import shard, shards
from meshnn.graph.writer import write
from tests.graph.networks import PRECISIONS, residual
from tests.shared_data import model
from tools.run_graph import run_bytes
from tools.split_check import check, run_split, values_of


def _assert_good(
    graph: Graph, first: int, last: int, split: Split, shares: tuple[int, ...], *, must_run: bool = True
) -> None:
    """A split runs within its class."""
    card = card_of(graph, "", 0, "net")
    told = refusal(card, first, last, split, shares)
    assert told is None or not must_run, told
    if told is None:
        values = values_of(graph, random_inputs(graph, np.random.default_rng(2)))
        outcome = run_split(graph, card, first, last, split, shares, values)
        assert outcome.good, outcome


EXACT: list[tuple[Precision, Split]] = [
    (precision, split)
    for precision in PRECISIONS
    for split in ("output", "input", "spatial")
    if not (precision == "dynamic" and split != "output") and not (precision in ("int8", "uint8") and split == "input")
]


@pytest.mark.parametrize(("precision", "split"), EXACT)
def test_a_convolution_splits_in_every_precision(precision: Precision, split: Split) -> None:
    """Uneven thirds of a strided, padded convolution with bias and activation merge to the whole."""
    b = Builder(np.random.default_rng(0), precision)
    x = b.input(1, 13, 11, 12)
    graph = b.graph(b.conv(x, 12, stride=(2, 1), activation="RELU6"))
    shares = (0, 1, 5, 7) if split == "spatial" else (0, 2, 7, 12)
    _assert_good(graph, 0, len(graph.operators) - 1, split, shares)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8"])
def test_a_fused_residual_run_splits_into_strips_and_tiles(precision: Precision) -> None:
    """Convolutions, depthwise and the addition as one spatial stage: strips and tiles, sliced where ways differ."""
    b = Builder(np.random.default_rng(1), precision)
    x = b.conv(b.input(1, 15, 14, 3), 8, stride=(2, 2), activation="RELU6")
    y = b.conv(b.depthwise(b.conv(x, 16, (1, 1), activation="RELU6"), (5, 5)), 8, (1, 1))
    y = b.pool(b.concat(b.add(x, y), x), (3, 3), stride=(2, 2), same=True)
    graph = b.graph(b.conv(y, 8, dilation=(2, 2)))
    last = len(graph.operators) - 1
    _assert_good(graph, 0, last, "spatial", (0, 1, 4))
    _assert_good(graph, 0, last, "spatial", even_shares(4, 4))
    _assert_good(graph, 0, last, "spatial", (0, 2, 4, -1, 0, 1, 4))


def test_a_run_with_several_outputs_splits() -> None:
    """A stage whose inner tensor is read later too gives both, each at its own resolution."""
    b = Builder(np.random.default_rng(1), "int8")
    early = b.conv(b.input(1, 12, 12, 4), 8)
    late = b.conv(b.pool(early), 8)
    graph = b.graph(b.add(b.pool(early), late))
    _assert_good(graph, 0, 2, "spatial", (0, 1, 6))


def test_depthwise_stays_on_the_channels_its_neighbour_made() -> None:
    """Convolution, depthwise, pool and mean as one output stage; depthwise before a sum as one input stage."""
    b = Builder(np.random.default_rng(1))
    x = b.conv(b.input(1, 8, 8, 4), 12, activation="RELU")
    graph = b.graph(b.mean(b.pool(b.depthwise(x, multiplier=2))))
    _assert_good(graph, 0, 3, "output", (0, 2, 7, 12))
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.conv(b.depthwise(b.input(1, 8, 8, 12)), 6, (1, 1), activation="RELU"))
    _assert_good(graph, 0, 1, "input", (0, 5, 12))


@pytest.mark.parametrize("split", ["output", "input"])
def test_a_fully_connected_layer_splits(split: Split) -> None:
    """Rows of weights concatenate, columns sum; the bias counts once."""
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.fully_connected(b.input(1, 40), 30, activation="RELU"))
    _assert_good(graph, 0, 0, split, (0, 7, 30 if split == "output" else 40))


def test_padding_belongs_to_the_part_that_touches_it() -> None:
    """A PAD before a VALID convolution: edge parts keep their padding, inner ones have none."""
    b = Builder(np.random.default_rng(1), "int8")
    x = b.pad(b.input(1, 10, 9, 4), (0, 0), (2, 1), (0, 3), (0, 0))
    graph = b.graph(b.conv(x, 8, same=False))
    _assert_good(graph, 0, 1, "spatial", (0, 3, 7, 11))


def test_places_made_in_blocks_may_be_shared_in_the_middle_of_one() -> None:
    """Depth to space: a boundary inside a block makes both parts compute it, and each gives its own rows."""
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.depth_to_space(b.conv(b.input(1, 6, 6, 4), 12), 2))
    _assert_good(graph, 0, 1, "spatial", (0, 3, 12, -1, 0, 5, 12))


def test_the_bias_is_in_one_part_and_the_activation_in_none() -> None:
    """An input split's parts give addends: their sum without the activation may be negative."""
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.conv(b.input(1, 6, 6, 8), 8, activation="RELU"))
    made = shards(graph, 0, 0, "input", (0, 3, 8))
    biases = [part.tensors[part.operators[0].inputs[2]].data for part in made]
    assert biases[0] is not None
    assert biases[1] is not None
    assert biases[0].any()
    assert not biases[1].any()
    assert [part.operators[0].options.fusedActivationFunction for part in made] == [0, 0]
    assert graph.operators[0].options.fusedActivationFunction == 1, "the whole's own options were touched"


def test_parts_of_an_output_split_share_out_the_weights() -> None:
    """Each part's file holds its share of the weights and no more; rows of a fully connected layer stay views."""
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.fully_connected(b.input(1, 400), 300))
    made = shards(graph, 0, 0, "output", (0, 100, 300))
    held = [sum(t.data.size for t in part.tensors if t.data is not None) for part in made]
    assert held == [4 * 100 * 401, 4 * 200 * 401]
    weights = [t.data for t in graph.tensors if t.data is not None and len(t.shape) == 2]
    assert all(any(t.data is not None and np.shares_memory(t.data, weights[0]) for t in part.tensors) for part in made)


def test_columns_of_large_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input split's part of large weights is a view of the whole's, written row by row, and runs exactly so."""
    b = Builder(np.random.default_rng(1))
    graph = b.graph(b.fully_connected(b.input(1, 1024), 512, activation="RELU"))
    part = shard(graph, 0, 0, "input", 1, (0, 300, 1024))
    mine = next(t.data for t in part.tensors if t.data is not None and len(t.shape) == 2)
    assert any(t.data is not None and np.shares_memory(t.data, mine) for t in graph.tensors)
    inside = write(part).to_bytes()
    monkeypatch.setattr("meshnn.graph.writer.LARGE_BYTES", 16)
    monkeypatch.setattr("meshnn.graph.writer._PIECE_BYTES", 5000)
    x = random_inputs(part, np.random.default_rng(0))
    behind = write(part)
    assert sum(len(chunk) for chunk in behind.chunks()) == behind.size_bytes
    assert (
        run_bytes(inside, list(x.values()))[0].tobytes() == run_bytes(behind.to_bytes(), list(x.values()))[0].tobytes()
    )
    _assert_good(graph, 0, 0, "input", (0, 300, 1024))


def test_equal_recipes_make_equal_bytes() -> None:
    """Whoever cuts a part, its file is the same."""
    a = shard(residual("int8"), 3, 6, "spatial", 1, (0, 1, 4))
    b = shard(residual("int8"), 3, 6, "spatial", 1, (0, 1, 4))
    assert write(a).to_bytes() == write(b).to_bytes()


def test_no_split_is_the_fragment() -> None:
    """`none` makes the file that cutting makes."""
    graph = residual("int8")
    assert write(shard(graph, 2, 5, "none", 0, ())).to_bytes() == write(cut.fragment(graph, 2, 5)).to_bytes()


def test_merging_lays_boxes_and_adds_in_order() -> None:
    """Boxes go where they belong; addends are added in the order given, then activated once."""
    made = lay(
        (1, 4),
        "int8",
        [(((0, 1), (2, 4)), np.array([[3, 4]], np.int8)), (((0, 1), (0, 2)), np.array([[1, 2]], np.int8))],
    )
    assert made.tolist() == [[1, 2, 3, 4]]
    big, one = np.array([1e8], np.float32), np.array([1.0], np.float32)
    assert total([big, one, -big], "NONE").tolist() == [0.0]
    assert total([big, -big, one], "NONE").tolist() == [1.0]
    assert total([one, -big], "RELU").tolist() == [0.0]
    assert total([big, one], "RELU6").tolist() == [6.0]
    assert total([-big, one], "RELU_N1_TO_1").tolist() == [-1.0]
    with pytest.raises(ValueError, match="TANH"):
        activate(big, "TANH")


@st.composite
def _run(draw: st.DrawFn) -> tuple[Graph, int, int, Split, tuple[int, ...]]:
    """A random network of places and channels, a random range of it, a split and random shares."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 3))), draw(st.sampled_from(("float32", *PRECISIONS))))
    made = [b.input(1, draw(st.integers(6, 14)), draw(st.integers(5, 9)), draw(st.sampled_from((1, 3, 8))))]
    made.append(b.conv(made[0], draw(st.sampled_from((2, 8)))))
    for _ in range(draw(st.integers(1, 5))):
        x = draw(st.sampled_from(made[-2:]))
        made.append(_grow(draw, b, x, made))
    graph = b.graph(made[-1])
    card, count = card_of(graph, "", 0, "net"), len(graph.operators)
    split: Split = draw(st.sampled_from(("output", "input", "spatial")))
    every = [(first, last) for first in range(count) for last in range(first, count)]
    allowed = [ends for ends in every if refusal(card, *ends, split) is None]
    first, last = draw(st.sampled_from(allowed or every) | st.sampled_from(every))
    if refusal(card, first, last, split) is not None:
        return graph, first, last, split, (0, 1, 2)
    lengths = share_lengths(card, first, last, split)
    shares = _shares(draw, lengths[0])
    if split == "spatial" and lengths[1] > 1 and draw(st.booleans()):
        shares = (*shares, -1, *_shares(draw, lengths[1]))
    return graph, first, last, split, shares


def _shares(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    """Random boundaries of up to four parts."""
    inner = draw(st.lists(st.integers(1, length - 1), min_size=1, max_size=3, unique=True))
    return (0, *sorted(inner), length)


def _grow(draw: st.DrawFn, b: Builder, x: int, made: list[int]) -> int:
    """One more operator behind `x`."""
    _, height, width, _ = b.shape(x)
    step = draw(st.sampled_from(("conv", "depthwise", "add", "relu", "concat", "pool", "pad", "average")))
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 3)))
    if step == "conv":
        stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        channels = draw(st.sampled_from((1, 2, 8, 17)))
        same = draw(st.booleans()) or height < window[0] or width < window[1]
        return b.conv(
            x, channels, window, stride=stride, same=same, activation=draw(st.sampled_from(("NONE", "RELU6")))
        )
    if step == "depthwise":
        return b.depthwise(x, window, multiplier=draw(st.integers(1, 2)))
    if step == "add":
        return b.add(x, draw(st.sampled_from([t for t in made if b.shape(t) == b.shape(x)])))
    if step == "concat":
        return b.concat(x, draw(st.sampled_from([t for t in made if b.shape(t)[:3] == b.shape(x)[:3]])))
    if step == "pool":
        return b.pool(x, (3, 2), stride=(draw(st.integers(1, 2)), 1), same=True)
    if step == "pad":
        return b.pad(x, (0, 0), (draw(st.integers(0, 2)), 1), (0, draw(st.integers(0, 2))), (0, 0))
    if step == "average" and height > 2 and width > 1:
        return b.pool(x, (2, 2), stride=(1, 1), average=True)
    return b.unary("RELU", x)


@settings(max_examples=120)
@given(_run())
def test_random_splits_of_random_runs_are_exact_or_refused(
    drawn: tuple[Graph, int, int, Split, tuple[int, ...]],
) -> None:
    """Whatever the card allows runs within its class; whatever it refuses is never cut."""
    graph, first, last, split, shares = drawn
    _assert_good(graph, first, last, split, shares, must_run=False)


@pytest.mark.parametrize(
    ("name", "parts", "least"),
    [("mlperf_tiny__pretrainedResnet", 3, 40), ("mlperf_tiny__ad01_int8", 2, 10), ("coral__split_concat", 2, 2)],
)
def test_real_models_split(name: str, parts: int, least: int) -> None:
    """Every split of every operator, and the fused runs with the most work, of real models."""
    outcomes, _ = check(Path(model(name)), parts, 10)
    assert len(outcomes) >= min(least, 10)
    assert all(outcome.good for outcome in outcomes), [outcome for outcome in outcomes if not outcome.good]
