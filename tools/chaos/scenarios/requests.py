"""What becomes of requests when their origin dies, and when there are too many: scenarios 14 and 25."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.acceptance.field import Station, pause, until
from tools.acceptance.verdict import Verdict
from tools.chaos.rig import ASK_READY_S, Options, Rig, percentile

BURST = 1000
BURST_DEADLINE_S = 240.0
ANSWERED_FIRST = 20
PORT = 7766
OVERLOAD_S = 120.0
OVERLOAD = 3.0
AFTERWARDS = 0.4
AFTERWARDS_S = 20.0
CAPACITY_S = 20.0
DEADLINE_S = 2.0
REFUSAL_LIMIT_S = 0.05
RECOVERY_LIMIT_S = 5.0
ATTEMPTS_LIMIT = 1.2
END_S = 420.0

Row = dict[str, Any]


class Flooding:
    """`tools.chaos.flood` on a device's network, from now until it ends."""

    def __init__(self, station: Station, model: str, deadline_s: float, ingress: Station, *how: str) -> None:
        """Starts it at once; `ingress` is the station to ask first."""
        assert station.rack is not None
        assert ingress.rack is not None
        self._path = station.folder.parent / f"flood-{time.monotonic_ns()}.jsonl"
        self._errors = self._path.with_suffix(".err")
        peer = f"{ingress.rack.address}:{PORT}"
        command = [sys.executable, "-m", "tools.chaos.flood", str(station.folder), model, str(deadline_s), peer, *how]
        with self._path.open("wb") as out, self._errors.open("wb") as err:
            self._process = station.rack.spawn(command, station.environment, out, err, limited=False)

    @property
    def lines(self) -> list[Row]:
        """Everything it has said so far."""
        return [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]

    @property
    def rows(self) -> list[Row]:
        """The requests that have ended."""
        return [line for line in self.lines if "outcome" in line]

    @property
    def ingress(self) -> str:
        """The id of the node that is asked; "" before it is known."""
        return next((str(line["ingress"]) for line in self.lines if "ingress" in line), "")

    def end(self) -> None:
        """Wait until every request has ended; RuntimeError where the program broke."""
        if self._process.wait(END_S):
            raise RuntimeError(f"the flood ended with {self._process.returncode}: {_tail(self._errors)}")


def ingress(options: Options, verdict: Verdict) -> None:
    """The node that was asked is killed with a thousand requests in flight: every call returns exactly one answer."""
    with Rig(options, verdict.scenario) as rig:
        rig.start()
        rig.add(rig.stations[0])
        until(rig.converged, ASK_READY_S, "one leader and one plan", rig)
        client = rig.origins[-1]
        flood = Flooding(client, rig.setting.name, BURST_DEADLINE_S, rig.origins[0], "burst", str(BURST))
        until(lambda: len(flood.rows) >= ANSWERED_FIRST, ASK_READY_S, "the first answers", rig)
        victim = rig.by_id()[flood.ingress]
        before = len(flood.rows)
        victim.kill()
        flood.end()
        rows = flood.rows
    outcomes = Counter(str(row["outcome"]) for row in rows)
    verdict.figures |= {
        "calls": BURST,
        "answered_before_the_death": before,
        "in_flight_at_the_death": BURST - before,
        "answers": outcomes["ok"],
        "asked_again": sum(int(row["asked"]) > 1 for row in rows),
        "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
        "longest_s": round(max(float(row["ended_s"]) - float(row["began_s"]) for row in rows), 1),
    }
    numbers = Counter(int(row["number"]) for row in rows)
    verdict.check(outcomes["ok"] == BURST, f"{BURST - outcomes['ok']} calls without a right answer")
    verdict.check(set(numbers.values()) == {1} and len(numbers) == BURST, "a call returned twice, or not at all")


def overload(options: Options, verdict: Verdict) -> None:
    """Three times what the mesh can do, for two minutes: what is taken is answered, the rest is refused at once."""
    with Rig(replace(options, concurrency=8, origins=1), verdict.scenario) as rig:
        rig.serve()
        pause(CAPACITY_S)
        now = time.monotonic()
        capacity = sum(1 for request in rig.requests() if now - request.ended_s < CAPACITY_S) / CAPACITY_S
        rig.end()
        schedule = f"{OVERLOAD * capacity:.2f}:{OVERLOAD_S},{AFTERWARDS * capacity:.2f}:{AFTERWARDS_S}"
        origin = rig.origins[0]
        flood = Flooding(origin, rig.setting.name, DEADLINE_S, origin, "pour", schedule)
        flood.end()
        rows = flood.rows
    verdict.figures["capacity_per_s"] = round(capacity, 1)
    _judge_overload(verdict, rows)


def _judge_overload(verdict: Verdict, rows: list[Row]) -> None:
    over_s = min(float(row["began_s"]) for row in rows) + OVERLOAD_S
    during = [row for row in rows if row["began_s"] < over_s]
    refused = [_took_s(row) for row in during if row["outcome"] == "busy_error"]
    taken = [_took_s(row) for row in during if row["outcome"] != "busy_error"]
    answered = [row for row in rows if row["outcome"] == "ok"]
    attempts = sum(int(row["attempts"]) for row in answered) / max(1, len(answered))
    failed_last = max((row["ended_s"] for row in rows if row["outcome"] != "ok"), default=over_s)
    recovery_s = round(max(0.0, float(failed_last) - over_s), 2)
    outcomes = Counter(str(row["outcome"]) for row in during)
    verdict.figures |= {
        "offered": len(during),
        "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
        "answered_per_s": round(outcomes["ok"] / OVERLOAD_S, 1),
        "taken_p50_s": round(percentile(taken, 0.5), 2),
        "taken_p99_s": round(percentile(taken, 0.99), 2),
        "refused_p50_ms": round(percentile(refused, 0.5) * 1000, 1),
        "refused_p95_ms": round(percentile(refused, 0.95) * 1000, 1),
        "refused_p99_ms": round(percentile(refused, 0.99) * 1000, 1),
        "recovery_s": recovery_s,
        "attempts": round(attempts, 3),
    }
    verdict.check(outcomes["wrong"] == 0, f"{outcomes['wrong']} wrong")
    verdict.check(bool(refused), "nothing was refused: there was no overload")
    verdict.check(percentile(taken, 0.99) <= 2 * DEADLINE_S, "what was taken took more than twice the deadline at p99")
    verdict.check(percentile(refused, 0.99) <= REFUSAL_LIMIT_S, "refusals took more than 50 ms at p99")
    verdict.check(recovery_s <= RECOVERY_LIMIT_S, f"recovered after {recovery_s} s")
    verdict.check(attempts <= ATTEMPTS_LIMIT, f"{attempts:.2f} attempts an answer")


def _took_s(row: Row) -> float:
    return float(row["ended_s"]) - float(row["began_s"])


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-500:].strip()
