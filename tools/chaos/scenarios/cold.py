"""Two fresh devices are started at once and nothing is configured: scenario 34."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tools.acceptance.field import Field, Station, pause, until
from tools.acceptance.verdict import Setting, Verdict
from tools.chaos.rig import GLANCE_S, Options, agreed, percentile

REPEATS = 100
BUDGET_S = 330.0
LIMIT_S = 5.0
WAIT_S = 60.0
# What makes a device this device, and what it knows of others; the rest of a state folder is a model.
PERSONAL = ("device.key", "device.crt", "peers.json", "term.json", "incarnation.json", "node.json", "lock")


def cold(options: Options, verdict: Verdict) -> None:
    """From the start of two processes until they are one mesh with one leader, and until its plan serves."""
    setting = Setting(options.model, options.model, "", options.logs, options.seed, options.cpu, options.rate)
    formed: list[float] = []
    planned: list[float] = []
    since_joined: list[float] = []
    began = time.monotonic()
    with Field(setting, verdict.scenario, count=2) as field:
        stored = field.folder / "stored"
        _store(field, stored)
        while len(planned) < (options.repeat or REPEATS) and time.monotonic() - began < BUDGET_S:
            for station in field.stations:
                shutil.rmtree(station.folder)
                station.folder.mkdir()
                station.options = ("--memory", options.memory) if options.memory else ()
            shutil.copytree(stored, field.stations[0].folder, dirs_exist_ok=True)
            took = _started(field.stations)
            formed.append(took[0])
            planned.append(took[1])
            since_joined.append(took[2])
            for station in field.stations:
                station.kill()
    verdict.figures |= {"repetitions": len(planned)}
    for what, times in (("formed", formed), ("planned", planned), ("planned_since_joined", since_joined)):
        verdict.figures |= {
            f"{what}_p50_s": percentile(times, 0.5),
            f"{what}_p95_s": percentile(times, 0.95),
            f"{what}_max_s": max(times),
        }
    verdict.check(
        percentile(planned, 0.95) <= LIMIT_S, f"formed and planned after {percentile(planned, 0.95)} s at p95"
    )


def _store(field: Field, stored: Path) -> None:
    """A state folder with the model and nothing personal."""
    first = field.stations[0]
    first.start()
    until(lambda: first.joined, WAIT_S, "the first joins", field)
    field.add(first)
    first.stop()
    shutil.copytree(first.folder, stored, ignore=shutil.ignore_patterns(*PERSONAL))
    for station in field.stations:
        station.starts = 0
        station.log_path.unlink(missing_ok=True)


def _started(stations: list[Station]) -> tuple[float, float, float]:
    """Start both; the seconds until they list each other under one leader, and until the plan serves in both views.

    The last figure counts from when both had said that they joined: without the start of the interpreter.
    """
    began = time.monotonic()
    for station in stations:
        station.start()
    formed_s = joined_s = 0.0
    while time.monotonic() - began < WAIT_S:
        if not joined_s and all(station.joined for station in stations):
            joined_s = time.monotonic() - began
        views = [view for station in stations if (view := station.look())]
        if len(views) == len(stations):
            together = {frozenset(row["id"] for row in view["members"] if row["state"] == "alive") for view in views}
            leaders = {view["leader"] for view in views}
            if not formed_s and together == {frozenset(v["self"] for v in views)} and len(leaders - {None}) == 1:
                formed_s = round(time.monotonic() - began, 2)
            if formed_s and agreed(views):
                took_s = time.monotonic() - began
                return formed_s, round(took_s, 2), round(took_s - joined_s, 2)
        pause(GLANCE_S / 2)
    raise TimeoutError(f"two devices are no mesh with a plan after {WAIT_S:.0f} s")
