"""Every cable drops packets: what share of what is asked is still answered, and who is taken for dead (scenario 5)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from tools.acceptance.field import until
from tools.acceptance.verdict import Verdict
from tools.chaos.rig import ASK_READY_S, Options, Rig, percentile, state_of
from tools.chaos.scenarios.requests import Flooding

# From one device to another, over two cables; the share of requests that must still be answered.
WANTED = {0.0: 1.0, 0.05: 0.9, 0.1: 0.8, 0.2: 0.5}
RATE_PER_S = 1.0
SECONDS = 60.0
DEADLINE_S = 30.0
WAIT_S = 60.0


def loss(options: Options, verdict: Verdict) -> None:
    """An origin asks at a steady rate, at each loss in turn; nothing is answered wrong, nobody is buried."""
    with Rig(replace(options, origins=1), verdict.scenario) as rig:
        rig.start()
        rig.add(rig.stations[0])
        until(rig.converged, ASK_READY_S, "one leader and one plan", rig)
        for share, wanted in WANTED.items():
            _shape(rig, share)
            _measure(rig, verdict, share, wanted)
        _shape(rig, 0.0)
        until(rig.converged, WAIT_S, "one leader and one plan again", rig)


def _shape(rig: Rig, share: float) -> None:
    """Have this share of the packets between any two devices lost: each crosses the cables of both."""
    for station in rig.stations:
        assert station.rack is not None
        station.rack.shape(rig.setting.rate, 1 - math.sqrt(1 - share))


def _measure(rig: Rig, verdict: Verdict, share: float, wanted: float) -> None:
    origin, what = rig.origins[0], f"loss_{share:.0%}"
    flood = Flooding(origin, rig.setting.name, DEADLINE_S, origin, "pour", f"{RATE_PER_S}:{SECONDS}")
    flood.end()
    rows = flood.rows
    outcomes = Counter(str(row["outcome"]) for row in rows)
    took_s = [float(row["ended_s"]) - float(row["began_s"]) for row in rows if row["outcome"] == "ok"]
    views = [view for station in rig.stations if (view := station.look())]
    buried = sum(state_of(view, other["self"]) == "dead" for view in views for other in views)
    verdict.figures |= {
        f"{what}_answered": f"{outcomes['ok']} of {len(rows)}",
        f"{what}_p50_s": round(percentile(took_s, 0.5), 2),
        f"{what}_p99_s": round(percentile(took_s, 0.99), 2),
        f"{what}_buried": buried,
    }
    verdict.check(outcomes["ok"] >= wanted * len(rows), f"{share:.0%} loss: {dict(outcomes)}")
    verdict.check(outcomes["wrong"] == 0, f"{share:.0%} loss: {outcomes['wrong']} wrong")
    verdict.check(buried == 0, f"{share:.0%} loss: {buried} views have a living device dead")
