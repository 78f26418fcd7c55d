"""How well this device itself is doing (Lifeguard): a score that makes it slower to accuse others."""

from __future__ import annotations


class Health:
    """A score from 0 (well) upwards; waits are stretched by `stretch`."""

    def __init__(self) -> None:
        self._score = 0

    @property
    def score(self) -> int:
        """0 when well; missed acknowledgements and refutations raise it."""
        return self._score

    @property
    def stretch(self) -> int:
        """The factor by which probe interval and timeout grow."""
        return self._score + 1

    def note(self, change: int, score_end: int) -> None:
        """Add to the score, kept within 0 and `score_end` - 1."""
        self._score = max(0, min(self._score + change, score_end - 1))
