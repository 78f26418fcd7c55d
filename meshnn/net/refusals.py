"""What was refused at the borders: counted by reason, and logged without letting strangers fill the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from meshnn.telemetry import logger

QUIET_S = 10.0
_log = logger(__name__)


class Refusals:
    """Counters by reason; each reason is logged at most every 10 s, saying how often it happened since."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}

    def note(self, reason: str, host: str, line: str = "") -> None:
        """Counts one refusal of something from `host`; `line` may quote a peer and is made harmless."""
        self.counts[reason] += 1
        now = self._clock()
        logged_at, count = self._logged.get(reason, (now - QUIET_S, 0))
        if now - logged_at < QUIET_S:
            return
        times = self.counts[reason] - count
        self._logged[reason] = (now, self.counts[reason])
        _log.warning("refused", reason=reason, host=host, line=ascii(line)[1:-1][:200], times=times)
