"""`meshnn ask` when the node of this device dies under it."""

from __future__ import annotations

import pytest

from meshnn.cli import ask
from meshnn.cli.wish import Wish
from meshnn.client import LocalNode, Reply
from meshnn.errors import BusyError, MeshError, NoMeshError

WISH = Wish("photos", 5, 30.0, False, None)


class Gone(LocalNode):
    """A node that ends a request with an error."""

    def __init__(self, error: MeshError) -> None:
        """Nothing listens."""
        super().__init__(1)
        self._error = error

    def ask(self, data: bytes, source: str, deadline_s: float, query: object) -> Reply:
        """As a node that went away, or refused."""
        raise self._error


def test_another_answers_what_a_dead_node_left() -> None:
    """The same input and wish, with what is left of the deadline."""
    heard: list[tuple[bytes, str, Wish]] = []

    def another(data: bytes, source: str, wish: Wish) -> Reply:
        heard.append((data, source, wish))
        return Reply(b"{}", b"")

    assert ask._by_node(Gone(NoMeshError("went away")), another)(b"photo", "cat.png", WISH) == Reply(b"{}", b"")
    ((data, source, wish),) = heard
    assert (data, source, wish.model) == (b"photo", "cat.png", "photos")
    assert 29.0 < wish.deadline_s <= 30.0


def test_what_a_living_node_refuses_is_its_answer() -> None:
    """An overload is told, not carried to another node."""

    def another(data: bytes, source: str, wish: Wish) -> Reply:
        raise AssertionError("nobody else is asked")

    with pytest.raises(BusyError):
        ask._by_node(Gone(BusyError("full")), another)(b"photo", "cat.png", WISH)
