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

from meshnn.cluster.member import DeviceId
from meshnn.node.request import Attempt
from meshnn.node.served import Served
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch, Plan

# So many attempts must be late, each begun when the one before was found to be: what one hiccup holds up is late all
# at once.
GENERATIONS = 2
# And so long after the first of them began: by then the silence of a dead device has been evidence, in seconds.
EVIDENCE_S = 1.25
# How long a suspect is gone around, and how long nobody is where every way was late, in seconds. As long again a first
# late attempt is enough to go around it anew, so many times in a row.
AROUND_S, RELAPSES = 10.0, 2
# Times of a shard that are remembered.
TIMES = 64


@dataclass(slots=True)
class _Case:
    """What is known of one plan set.

    So many `lates` were found in a row, the first sent at `first_at`, the last found at `found_at`; `common` are the
    devices on the way of all of them that were on no way in time since. The `suspect`, or nobody, is gone around from
    `since` until `until`.
    """

    lates: int = 0
    first_at: float = -math.inf
    found_at: float = -math.inf
    common: frozenset[DeviceId] = frozenset()
    suspect: DeviceId | None = None
    since: float = -math.inf
    until: float = -math.inf
    relapses: int = 0
    tried: set[DeviceId] = field(default_factory=set)

    def found(self, attempt: Attempt, now: float) -> None:
        """Another attempt is late."""
        devices = frozenset(attempt.devices)
        shared = self.common & devices if self.lates else devices
        first = not self.lates or not shared
        self.lates, self.first_at = (1, attempt.sent_at) if first else (self.lates + 1, self.first_at)
        self.common = shared or devices
        self.found_at = now


class Lags:
    """Who is gone around, by plan set."""

    def __init__(self, served: Served) -> None:
        """Nobody; `served` tells which plans may be forgotten."""
        self._served = served
        self._cases: dict[tuple[str, Epoch], _Case] = {}
        self._times: dict[tuple[str, Epoch], dict[tuple[int, int, int, DeviceId], deque[float]]] = {}

    def suspected(self, plan: Plan, now: float) -> set[DeviceId]:
        """The device that is gone around in this plan set, if one is."""
        case = self._cases.get((plan.model, plan.epoch.main))
        return {case.suspect} if case is not None and case.suspect is not None and case.until > now else set()

    def on_answer(self, attempt: Attempt, times: Sequence[StageTime]) -> None:
        """An attempt's answer, with the times that its devices tell of its shards."""
        if not attempt.plan.epoch.absent:
            rows = self._times.setdefault((attempt.plan.model, attempt.plan.epoch), {})
            for time in times:
                if _is_of(time, attempt) and math.isfinite(time.compute_ms):
                    row = (attempt.lane, time.stage, time.part, time.device)
                    rows.setdefault(row, deque(maxlen=TIMES)).append(time.compute_ms)
        case = self._cases.get((attempt.plan.model, attempt.plan.epoch.main))
        if case is not None and attempt.in_time:
            case.common = case.common.difference(attempt.devices)
            if not case.common:
                case.lates = 0

    def on_late(self, attempt: Attempt, now: float, *, stuck: bool) -> list[DeviceId] | None:
        """An attempt is late that goes around whoever is suspected: whom to suspect now, the likeliest first.

        None where that says nothing yet; an empty list where everybody was suspected already. An attempt that is
        `stuck`, without an answer for longer than anybody waits, is ground enough by itself.
        """
        case = self._cases.setdefault((attempt.plan.model, attempt.plan.epoch.main), _Case())
        known = now < case.until and (case.suspect is None or attempt.sent_at < case.since)
        if known or (attempt.sent_at < case.found_at and not stuck):
            return None
        relapsed = case.suspect in attempt.devices and case.until <= now < case.until + AROUND_S
        if relapsed:
            case.lates = 0
        case.found(attempt, now)
        ground = case.lates >= GENERATIONS and now - case.first_at >= EVIDENCE_S
        if not (ground or relapsed or stuck):
            return None
        case.lates = 0
        if relapsed:
            case.relapses += 1
        elif case.suspect is not None and now < case.until:
            case.tried.add(case.suspect)
        else:
            case.suspect, case.relapses, case.tried = None, 0, set()
        return [] if case.relapses > RELAPSES else self._likely(attempt, case)

    def go_around(self, plan: Plan, device: DeviceId | None, now: float) -> None:
        """From now on go around a device of this plan set; with None around nobody, for as long."""
        case = self._cases.setdefault((plan.model, plan.epoch.main), _Case())
        case.suspect, case.since, case.until = device, now, now + AROUND_S

    def prune(self) -> None:
        """Forget plans that are no longer served."""
        self._times = {key: rows for key, rows in self._times.items() if self._served.plan(*key) is not None}
        self._cases = {key: case for key, case in self._cases.items() if self._served.plan(*key) is not None}

    def _likely(self, attempt: Attempt, case: _Case) -> list[DeviceId]:
        """Of the devices of the plan that late attempts have in common those that were not tried, the likeliest first.

        That is whoever relapsed, then by how many times its usual time a device's slowest shard took at last.
        """
        main = self._served.plan(attempt.plan.model, attempt.plan.epoch.main) or attempt.plan
        paces: dict[DeviceId, float] = {}
        for (*_, device), times in self._times.get((main.model, main.epoch), {}).items():
            # The lower quartile: most of the latest times may be slow ones already.
            usual_ms = sorted(times)[len(times) // 4]
            paces[device] = max(paces.get(device, 0.0), times[-1] / max(usual_ms, 1e-3))
        likely = case.common.intersection(main.devices()) - case.tried
        return sorted(likely, key=lambda one: (one != case.suspect, -paces.get(one, 0.0), one))


def _is_of(time: StageTime, attempt: Attempt) -> bool:
    """Whether there is such a shard on the way of an attempt: times come from other devices."""
    stages = attempt.plan.lanes[attempt.lane].stages
    if not 0 <= time.stage < len(stages):
        return False
    shards = stages[time.stage].groups[attempt.groups[time.stage]].shards
    return 0 <= time.part < len(shards) and shards[time.part].device == time.device
