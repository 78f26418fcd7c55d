"""What a person asked for, whoever answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshnn.client import Reply


@dataclass(frozen=True, slots=True)
class Wish:
    """What was typed, for every input. `deadline_s` is for each of them."""

    model: str | None
    top: int
    deadline_s: float
    as_json: bool
    tensors: Path | None

    @property
    def query(self) -> dict[str, object]:
        """The wish as the API takes it."""
        return {"model": self.model, "top": self.top, "tensors": int(self.tensors is not None)}


Asker = Callable[[bytes, str, Wish], Reply]
