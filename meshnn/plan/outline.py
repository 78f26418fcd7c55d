"""A card that remembers: the same questions asked again and again by a search are answered once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TypeVar, cast

from meshnn.graph.card import Card, CardOperator, CardTensor

T = TypeVar("T")


class Outline:
    """The parts of a card that planning asks for, with every answer kept. Valid as long as its card is."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.digest = card.digest
        self.name = card.name
        self.operators: tuple[CardOperator, ...] = card.operators
        self._tensors = card.by_index()
        self._inputs: dict[tuple[int, int], tuple[int, ...]] = {}
        self._outputs: dict[tuple[int, int], tuple[int, ...]] = {}
        self._arena: dict[tuple[int, int], int] = {}
        self._weights: dict[tuple[int, int], int] = {}
        self._work: dict[tuple[int, int], float] = {}
        self._recalled: dict[Hashable, object] = {}

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The model's inputs, by tensor index."""
        return tuple(entry.index for entry in self.card.inputs)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The model's outputs, by tensor index."""
        return tuple(entry.index for entry in self.card.outputs)

    @cached_property
    def legal_cuts(self) -> tuple[int, ...]:
        """The positions between operators where the model may be cut, ends left out."""
        return tuple(place for place in range(1, len(self.operators)) if self.card.cuttable(place) is None)

    def tensor(self, index: int) -> CardTensor:
        """The activation with this index; KeyError where there is none."""
        return self._tensors[index]

    def fragment_inputs(self, first: int, last: int) -> tuple[int, ...]:
        """What operators `first` to `last` need from before, by tensor index."""
        if (first, last) not in self._inputs:
            self._inputs[first, last] = self.card.fragment_inputs(first, last)
        return self._inputs[first, last]

    def fragment_outputs(self, first: int, last: int) -> tuple[int, ...]:
        """What operators `first` to `last` give to others, by tensor index."""
        if (first, last) not in self._outputs:
            self._outputs[first, last] = self.card.fragment_outputs(first, last)
        return self._outputs[first, last]

    def weight_bytes(self, first: int, last: int) -> int:
        """The bytes of constants in the fragment."""
        if (first, last) not in self._weights:
            self._weights[first, last] = self.card.weight_bytes(first, last)
        return self._weights[first, last]

    def arena_bytes(self, first: int, last: int) -> int:
        """The bytes of activations the fragment's interpreter holds at once."""
        if (first, last) not in self._arena:
            self._arena[first, last] = self.card.arena_bytes(first, last)
        return self._arena[first, last]

    def work(self, first: int, last: int) -> float:
        """The relative cost of running the fragment."""
        if (first, last) not in self._work:
            self._work[first, last] = self.card.work(first, last)
        return self._work[first, last]

    def recall(self, key: Hashable, find: Callable[[], T]) -> T:
        """What was found for this key before; else what `find` finds now. One key always means one kind of answer."""
        if key not in self._recalled:
            self._recalled[key] = find()
        return cast("T", self._recalled[key])


Model = Card | Outline


def outline(card: Model) -> Outline:
    """The card with a memory; itself where it has one already."""
    return card if isinstance(card, Outline) else Outline(card)
