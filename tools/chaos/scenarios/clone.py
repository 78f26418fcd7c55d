"""A disk is cloned: two devices have one key. Scenario 28."""

from __future__ import annotations

import shutil
import time

from tools.acceptance.field import Field, Station, alive, pause, until
from tools.acceptance.verdict import Setting, Verdict
from tools.chaos.rig import Options

LIMIT_S = 10.0
WAIT_S = 60.0
CALM_S = 15.0
# How often a view may change its mind about the elder's address until the clone has its own key, and not after.
MOVES_MAX = 4
LINE = "device_key_duplicated"


def clone(options: Options, verdict: Verdict) -> None:
    """The younger of two devices with one key takes another and says so; the elder stays who it is in every view."""
    setting = Setting(options.model, options.model, "", options.logs, options.seed, options.cpu, options.rate)
    with Field(setting, verdict.scenario, count=4) as field:
        elder, *others, copy = field.stations
        for station in (elder, *others):
            station.start()
        until(lambda: _met((elder, *others)), WAIT_S, "three devices meet", field)
        own = elder.look()["self"]
        pause(5.0)
        shutil.copytree(
            elder.folder, copy.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock", "node.json")
        )
        copy.start()
        until(lambda: copy.joined, WAIT_S, "the clone says that it joined", field)
        began = time.monotonic()
        watch = _Watch(tuple(others), own)
        until(lambda: watch.look() or LINE in copy.log, WAIT_S, "the clone is found out", field)
        verdict.figures["detected_s"] = round(time.monotonic() - began, 2)
        until(lambda: watch.look() or _met(field.stations), WAIT_S, "four devices with four keys meet", field)
        verdict.figures["all_apart_s"] = round(time.monotonic() - began, 2)
        verdict.figures["moves_until_then"] = watch.moves
        settled, calm_until = watch.moves, time.monotonic() + CALM_S
        while time.monotonic() < calm_until:
            watch.look()
        _judge(verdict, field, own, watch.moves - settled, elder, copy)


def _judge(verdict: Verdict, field: Field, own: str, moves: int, elder: Station, copy: Station) -> None:
    ids = {station.look()["self"] for station in field.stations}
    verdict.figures["moves_afterwards"] = moves
    verdict.check(float(str(verdict.figures["detected_s"])) <= LIMIT_S, "not found out within 10 s")
    verdict.check(int(str(verdict.figures["moves_until_then"])) <= MOVES_MAX, "the views oscillated")
    verdict.check(moves == 0, f"{moves} changes of a view after all were apart")
    verdict.check(len(ids) == len(field.stations), f"{len(ids)} ids among {len(field.stations)} devices")
    verdict.check(elder.look()["self"] == own, "the elder changed its id")
    lines = {station.name: station.log.count(LINE) for station in field.stations}
    verdict.check(lines == {s.name: int(s is copy) for s in field.stations}, f"lines that tell of it: {lines}")


def _met(stations: tuple[Station, ...] | list[Station]) -> bool:
    return all(len(alive(station.look())) == len(stations) for station in stations)


class _Watch:
    """How often some devices' views change their mind about where one device is."""

    def __init__(self, observers: tuple[Station, ...], own: str) -> None:
        """Nothing was seen yet."""
        self.moves = 0
        self._observers = observers
        self._own = own
        self._seen: dict[str, str] = {}

    def look(self) -> bool:
        """Look once; always false, so that it can be one condition among others."""
        for station in self._observers:
            for row in station.look().get("members", ()):
                if row["id"] == self._own:
                    told = f"{row['address']} {row['state']}"
                    self.moves += self._seen.setdefault(station.name, told) != told
                    self._seen[station.name] = told
        return False
