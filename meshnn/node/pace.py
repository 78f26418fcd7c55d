"""How fast answers leave while others wait: what a new request must expect, and when it is better refused. Pure."""

from __future__ import annotations

# With so many more requests open, the time to the next answer is what the mesh can do, not how often it is asked; in a
# mesh that works at several requests at once it may be somewhat better than that.
BACKLOG = 2
SAMPLES = 8
GAIN = 1 / 16
# An estimate is believed for so long after its last sample, in seconds: plans and devices change.
FRESH_S = 10.0


class Pace:
    """The requests of one device that are not answered yet, and the time between answers while there is a backlog."""

    def __init__(self) -> None:
        """Nothing is asked, nothing is known."""
        self.open = 0
        self._answered_at: float | None = None
        self._sampled_at = 0.0
        self._gap_s = 0.0
        self._samples = 0

    def wait_s(self, now: float) -> float:
        """How long a request that comes now would wait for its answer, in seconds; 0 where nothing is known."""
        if self._samples < SAMPLES or now - self._sampled_at > FRESH_S:
            return 0.0
        return (self.open + 1) * self._gap_s

    def begin(self) -> None:
        """A request was taken in."""
        self.open += 1

    def end(self, answered: bool, now: float) -> None:
        """A request ended; only an answer tells how fast answers come."""
        self.open -= 1
        if answered:
            if self._answered_at is not None:
                self._sample(now - self._answered_at, now)
            self._answered_at = now
        if self.open < BACKLOG:
            self._answered_at = None

    def _sample(self, gap_s: float, now: float) -> None:
        if now - self._sampled_at > FRESH_S:
            self._samples = 0
        self._samples += 1
        self._sampled_at = now
        gain = max(GAIN, 1 / self._samples)
        self._gap_s += gain * (gap_s - self._gap_s)
