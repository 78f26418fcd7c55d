"""Cards from other devices: honest ones pass, damaged ones are refused before a planner meets them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnn.errors import ModelError
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.splits import balance
from meshnn.graph.splits.layout import SPLITS, refusal, share_lengths
from meshnn.graph.table import cheapest_cuts, rows
from meshnn.graph.vet import vet
from tests.graph.networks import PRECISIONS, residual, two_ends

_CARDS = [card_of(residual(precision), "ab" * 32, 1000, "net") for precision in PRECISIONS]


@pytest.mark.parametrize("card", [*_CARDS, card_of(two_ends(), "ab" * 32, 1000, "two")], ids=lambda card: card.name)
def test_honest_cards_pass(card: Card) -> None:
    """What this device describes, it accepts, also after a journey."""
    vet(card)
    vet(msgspec.msgpack.decode(msgspec.msgpack.encode(card), type=Card))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 99}, "version 99"),
        ({"operators": ()}, "0 operators"),
        ({"size_bytes": -1}, "-1 bytes"),
        ({"inputs": ()}, "inputs or outputs"),
        ({"refused": {99: "x"}}, "do not exist"),
        ({"tensors": _CARDS[0].tensors * 2}, "twice"),
        ({"tensors": _CARDS[0].tensors[:-1]}, "outputs that are not"),
        ({"operators": _CARDS[0].operators[:-1]}, "contradicts"),
    ],
)
def test_each_rule_refuses(change: dict[str, Any], reason: str) -> None:
    """A card that contradicts itself is refused by that reason."""
    with pytest.raises(ModelError, match=reason):
        vet(msgspec.structs.replace(_CARDS[0], **change))


_NUMBERS = st.sampled_from((-1, 0, 1, 2, 3, 7, 100, 1 << 31, 1 << 60))


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every number of a JSON value."""
    if isinstance(value, dict):
        return [p for key, inner in value.items() for p in _places(inner, (*path, key))]
    if isinstance(value, list):
        return [p for key, inner in enumerate(value) for p in _places(inner, (*path, key))]
    return [path] if isinstance(value, int) and not isinstance(value, bool) else []


_PLAIN = [json.loads(msgspec.json.encode(card)) for card in _CARDS]
_WAYS = [_places(plain) for plain in _PLAIN]


@settings(max_examples=200)
@given(st.data())
def test_no_damage_that_passes_can_make_planning_crash(data: st.DataObject) -> None:
    """Any numbers in a card: refused when it arrives, or every question about it is answered or refused."""
    which = data.draw(st.integers(0, len(_CARDS) - 1))
    changed = json.loads(json.dumps(_PLAIN[which]))
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(_WAYS[which]))
        inner = changed
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = data.draw(_NUMBERS)
    try:
        card = msgspec.json.decode(json.dumps(changed), type=Card)
        vet(card)
    except (ModelError, msgspec.ValidationError):
        return
    _ask_everything(card)


def _ask_everything(card: Card) -> None:
    """Everything a planner asks of a card; ModelError is an answer."""
    rows(card)
    cheapest_cuts(card)
    total = len(card.operators)
    for first, last in ((0, total - 1), (2, 6), (5, 5), (3, 3)):
        card.refusal(first, last)
        card.weight_bytes(first, last)
        card.arena_bytes(first, last)
        card.work(first, last)
        for split in SPLITS:
            if split == "none" or refusal(card, first, last, split) is not None:
                continue
            length = share_lengths(card, first, last, split)[0]
            shares = (0, length // 2, length)
            if length < 10_000 and refusal(card, first, last, split, shares) is None:
                balance.work(card, first, last, split, shares, 1)
                balance.weight_bytes(card, first, last, split, shares, 1)
                balance.arena_bytes(card, first, last, split, shares, 1)
