"""The world: one clock, one heap of what is to happen, one seed from which every source of chance is made."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

Deed = Callable[[], None]

START_S = 100.0
STEPS_AT_ONCE_MAX = 100_000


class World:
    """Runs deeds in the order of their time; the same seed gives the same trace, whatever the hash seed."""

    def __init__(self, seed: int) -> None:
        """A world without anybody in it."""
        self.seed = seed
        self.now = START_S
        self.steps = 0
        self.after_step: Deed | None = None
        self._heap: list[tuple[float, int, Deed]] = []
        self._serial = 0
        self._trace = hashlib.sha256()

    @property
    def trace(self) -> str:
        """A hash over everything that was noted."""
        return self._trace.hexdigest()

    def chance(self, *name: object) -> random.Random:
        """An own source of chance for whatever has this name: what others draw does not change it."""
        text = f"{self.seed}/" + "/".join(str(part) for part in name)
        return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))

    def note(self, line: str) -> None:
        """Put a line into the trace."""
        self._trace.update(f"{self.now:.6f} {line}\n".encode())

    def later(self, delay_s: float, deed: Deed) -> None:
        """Have something happen in `delay_s` seconds."""
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, deed))

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        end = self.now + duration_s
        at_once = 0
        heap = self._heap
        while heap and heap[0][0] <= end:
            when, _, deed = heapq.heappop(heap)
            at_once = at_once + 1 if when <= self.now else 0
            assert at_once < STEPS_AT_ONCE_MAX, "time stands still: a deadline that is never met"
            self.now = max(self.now, when)
            self.steps += 1
            deed()
            if self.after_step is not None:
                self.after_step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], within_s: float, step_s: float = 0.05) -> float | None:
        """Let time pass until the condition holds; how long that took in seconds, None where it took longer."""
        begun = self.now
        while not condition():
            if self.now - begun > within_s:
                return None
            self.run(step_s)
        return self.now - begun
