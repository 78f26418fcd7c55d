"""Comparing answers: what equal means, byte for byte and within the bounds of a class."""

from __future__ import annotations

import numpy as np
import pytest

from meshnn.graph.card import Card, CardQuantization, CardTensor
from meshnn.node.compare import difference, seeded_inputs
from meshnn.node.slices import Array


def card(*tensors: CardTensor) -> Card:
    """A card of which only the inputs matter."""
    return Card(1, "d" * 64, "cat", 1, tensors, (), (), tensors)


IMAGE = CardTensor(3, "image", (1, 40, 40, 3), "uint8", 4800, quantization=CardQuantization(0.05, 128))
WORDS = CardTensor(5, "words", (1, 100), "int32", 400)
SOUND = CardTensor(8, "sound", (1, 100), "float32", 400)
GATE = CardTensor(9, "gate", (7,), "bool", 7)


def test_seeded_inputs_repeat_and_fit_the_card() -> None:
    """The same seed gives the same bytes, another seed others; shapes and types are the card's."""
    model = card(IMAGE, WORDS, SOUND, GATE)
    first, again, other = (seeded_inputs(model, seed) for seed in (4, 4, 5))
    assert sorted(first) == [3, 5, 8, 9]
    for tensor in model.inputs:
        array = first[tensor.index]
        assert (array.shape, array.dtype.name) == (tensor.shape, tensor.dtype)
        assert array.tobytes() == again[tensor.index].tobytes()
    assert any(first[index].tobytes() != other[index].tobytes() for index in first)


def test_seeded_inputs_use_the_range_that_is_safe() -> None:
    """A quantised image uses every value; places in a table stay inside every table."""
    drawn = seeded_inputs(card(IMAGE, WORDS), 1)
    assert (drawn[3].min(), drawn[3].max()) == (0, 255)
    assert set(np.unique(drawn[5])) == {0, 1}


SCORES = np.array([0.5, -100.0, 0.0, np.nan, np.inf], np.float32)
STEPS = np.array([10, -20, 127], np.int8)


def changed(array: Array, place: int, value: float) -> Array:
    """The array with one value another."""
    copy = array.copy()
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "near"),
    [
        (SCORES, SCORES, True, True),
        (changed(SCORES, 0, 0.5005), SCORES, False, True),
        (changed(SCORES, 0, 0.502), SCORES, False, False),
        (changed(SCORES, 2, -0.0), SCORES, False, True),
        (changed(SCORES, 3, 1.0), SCORES, False, False),
        (changed(SCORES, 4, -np.inf), SCORES, False, False),
        (STEPS, STEPS, True, True),
        (changed(STEPS, 0, 12), STEPS, False, True),
        (changed(STEPS, 0, 13), STEPS, False, False),
        (STEPS.astype(np.int16), STEPS, False, False),
        (STEPS.reshape(3, 1), STEPS, False, False),
        (np.array([True]), np.array([False]), False, False),
        (np.zeros(0, np.int8), np.zeros(0, np.int8), True, True),
    ],
)
def test_equal_is_every_byte_and_near_is_the_bound_of_the_class(
    found: Array, wanted: Array, exact: bool, near: bool
) -> None:
    """Exact answers equal every byte (-0 is not 0); others may differ by 1e-5 of the largest value, or two steps."""
    assert (difference({1: found}, {1: wanted}) is None) == exact
    assert (difference({1: found}, {1: wanted}, exact=False) is None) == near


def test_difference_says_which_output_and_how_much() -> None:
    """A person reads the output's name and the number of values that differ, or which outputs there are."""
    told = difference({"scores": changed(STEPS, 0, 13)}, {"scores": STEPS})
    assert told == "output scores differs in 1 of 3 values"
    assert "['a']" in str(difference({"a": STEPS}, {"b": STEPS}))
