"""Plans whose requests suddenly take far longer than they did, and which device to go around for it. Pure.

A device that became slow is planned around by the leader (`node.paces`), which takes a while. Until then an origin goes
around it as around a dead one, where a way is at hand. Who is slow it cannot see: it suspects the device whose shards
took the longest beside what they took before, and where the way around is as late, the next one. What lasts becomes
usual: an origin helps itself for a while, the leader for good.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from meshnn.cluster.member import DeviceId
from meshnn.node.request import Attempt
from meshnn.node.served import Served
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch, Plan

# So many attempts must be late, each begun when the one before was found to be, with no answer in time between them:
# what one hiccup holds up is late all at once.
GENERATIONS = 2
# How long a suspect is gone around, and how long none is sought where every way was late, in seconds. As long again a
# first late attempt is enough to go around it anew.
AROUND_S = 10.0
# Times of a shard that are remembered.
TIMES = 16


@dataclass(slots=True)
class _Case:
    """What is known of one plan set: attempts found late in a row, when the last was, and who was suspected."""

    lates: int = 0
    late_at: float = -math.inf
    suspect: DeviceId | None = None
    until: float = -math.inf
    tried: set[DeviceId] = field(default_factory=set)


class Lags:
    """Who is gone around, by plan set."""

    def __init__(self, served: Served) -> None:
        """Nobody; `served` tells which plans may be forgotten."""
        self._served = served
        self._cases: dict[tuple[str, Epoch], _Case] = {}
        self._times: dict[tuple[str, Epoch], dict[tuple[int, int, int, DeviceId], deque[float]]] = {}

    def of(self, plan: Plan, now: float) -> set[DeviceId]:
        """The device that is gone around in this plan set, if one is."""
        case = self._cases.get((plan.model, plan.epoch.main))
        return {case.suspect} if case is not None and case.suspect is not None and case.until > now else set()

    def on_answer(self, attempt: Attempt, times: Sequence[StageTime]) -> None:
        """An attempt's answer, with the times of its shards."""
        rows = self._times.setdefault((attempt.plan.model, attempt.plan.epoch), {})
        for time in times:
            if time.device in attempt.devices:
                row = (attempt.lane, time.stage, time.part, time.device)
                rows.setdefault(row, deque(maxlen=TIMES)).append(time.compute_ms)
        case = self._cases.get((attempt.plan.model, attempt.plan.epoch.main))
        if case is not None and not attempt.late:
            case.lates = 0

    def on_late(self, attempt: Attempt, now: float) -> list[DeviceId] | None:
        """An attempt is late that goes around whoever is suspected: whom to suspect now, the likeliest first.

        None where that says nothing yet.
        """
        case = self._cases.setdefault((attempt.plan.model, attempt.plan.epoch.main), _Case())
        if attempt.sent_at < case.late_at or (case.suspect is None and now < case.until):
            return None
        case.lates += 1
        case.late_at = now
        again = case.suspect is not None and case.until <= now < case.until + AROUND_S
        if case.lates < GENERATIONS and not again:
            return None
        case.lates = 0
        if case.suspect is not None and now < case.until:
            case.tried.add(case.suspect)
        elif not again:
            case.suspect, case.tried = None, set()
        main = self._served.plan(attempt.plan.model, attempt.plan.epoch.main) or attempt.plan
        likely, paces = set(main.devices()).intersection(attempt.devices) - case.tried, self._paces(main)
        return sorted(likely, key=lambda one: (one != case.suspect, -paces.get(one, 0.0), one))

    def go_around(self, plan: Plan, device: DeviceId | None, now: float) -> None:
        """From now on go around a device of this plan set; with None around nobody, for as long."""
        case = self._cases.setdefault((plan.model, plan.epoch.main), _Case())
        case.suspect, case.until = device, now + AROUND_S

    def prune(self) -> None:
        """Forget plans that are no longer served."""
        self._times = {key: rows for key, rows in self._times.items() if self._served.plan(*key) is not None}
        self._cases = {key: case for key, case in self._cases.items() if self._served.plan(*key) is not None}

    def _paces(self, plan: Plan) -> dict[DeviceId, float]:
        """Of each device how many times its usual time its slowest shard took at last."""
        paces: dict[DeviceId, float] = {}
        for (*_, device), times in self._times.get((plan.model, plan.epoch), {}).items():
            paces[device] = max(paces.get(device, 0.0), times[-1] / max(median(times), 1e-3))
        return paces
