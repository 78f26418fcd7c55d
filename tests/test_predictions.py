"""A classifier's outputs as predictions: real scores, best first, with the labels that belong to them."""

from __future__ import annotations

import numpy as np
import pytest

from meshnn.graph.card import CARD_VERSION, Card, CardQuantization, CardTensor
from meshnn.predictions import Prediction, label_of, predictions


def head(
    shape: tuple[int, ...], dtype: str = "float32", name: str = "out", quantization: CardQuantization | None = None
) -> CardTensor:
    """One output of a card."""
    return CardTensor(0, name, shape, dtype, 0, quantization=quantization)


def card(*outputs: CardTensor, labels: tuple[str, ...] = ()) -> Card:
    """A card with these outputs."""
    return Card(CARD_VERSION, "d", "m", 1, (), outputs, (), (), labels=labels)


def test_the_best_come_first_and_equals_by_index() -> None:
    """Scores as the model gave them: no softmax is added, so what was a distribution stays one."""
    scores = np.array([[0.1, 0.4, 0.1, 0.4]], np.float32)
    made = predictions({"out": scores}, card(head((1, 4)), labels=("a", "b", "c", "d")), 3)
    assert [(p.index, p.label) for p in made] == [(1, "b"), (3, "d"), (0, "a")]
    assert made[0].score == pytest.approx(0.4)


def test_quantised_scores_become_real() -> None:
    """uint8 of scale 1/256, and int8 with its zero point: scale * (stored - zero point)."""
    wanted = card(head((1, 3), "uint8", quantization=CardQuantization(1 / 256, 0)))
    assert [p.score for p in predictions({"out": np.array([[0, 255, 1]], np.uint8)}, wanted, 3)] == [
        255 / 256,
        1 / 256,
        0,
    ]
    wanted = card(head((1, 2), "int8", quantization=CardQuantization(1 / 256, -128)))
    assert [p.score for p in predictions({"out": np.array([[-128, 127]], np.int8)}, wanted, 2)] == [255 / 256, 0]


def test_top_bounds_what_comes() -> None:
    """No more than asked for, no more than there are, none for none."""
    scores = {"out": np.array([0.5, 0.2], np.float32)}
    assert [len(predictions(scores, card(head((2,))), top)) for top in (0, 1, 2, 9)] == [0, 1, 2, 2]


def test_what_is_no_number_is_left_out() -> None:
    """NaN and infinity have no place in JSON and no place in an order."""
    scores = {"out": np.array([np.nan, 0.2, np.inf, 0.3], np.float32)}
    assert [p.index for p in predictions(scores, card(head((4,))), 4)] == [3, 1]


def test_what_is_no_classifier_has_no_predictions() -> None:
    """Maps of pixels, and several outputs that no labels choose between."""
    maps = card(head((1, 8, 8, 3)))
    assert predictions({"out": np.zeros((1, 8, 8, 3), np.float32)}, maps, 5) == []
    boxes = card(head((1, 10), name="x"), head((1, 10), name="y"))
    assert predictions({"x": np.zeros((1, 10), np.float32), "y": np.zeros((1, 10), np.float32)}, boxes, 5) == []


def test_labels_choose_among_outputs() -> None:
    """Of several outputs the one that the labels fit is the classifier."""
    wanted = card(head((1, 7), name="x"), head((1, 2), name="y"), labels=("a", "b"))
    made = predictions({"x": np.zeros((1, 7), np.float32), "y": np.array([[0, 1]], np.float32)}, wanted, 1)
    assert made == [Prediction(1, "b", 1.0)]


def test_a_vector_may_stand_on_edge() -> None:
    """[1, 1, 1, n] is a row of scores too."""
    made = predictions({"out": np.array([0, 1], np.float32).reshape(1, 1, 1, 2)}, card(head((1, 1, 1, 2))), 1)
    assert made == [Prediction(1, None, 1.0)]


def test_labels_are_matched_to_outputs() -> None:
    """Equal counts directly; one more with a background first, one fewer without: shifted; anything else: no label."""
    assert label_of(1, 3, ("background", "cat", "dog")) == "cat"
    assert label_of(1, 2, ("background", "cat", "dog")) == "dog"
    assert [label_of(index, 3, ("cat", "dog")) for index in range(3)] == [None, "cat", "dog"]
    assert label_of(0, 2, ("a", "b", "c")) is None
    assert label_of(0, 5, ("a", "b", "c")) is None
    assert label_of(0, 3, ()) is None


def test_gaps_in_a_label_file_are_no_labels() -> None:
    """`???`, `n/a` and empty lines stand for nothing; blanks around a label go."""
    assert [label_of(index, 4, ("???", "n/a", "", " tench, Tinca tinca ")) for index in range(4)] == [
        None,
        None,
        None,
        "tench, Tinca tinca",
    ]
