"""A process is stopped for 1, 5, 30 and 120 s and goes on: scenario 16. It is alive, and silent."""

from __future__ import annotations

import signal
import time

from tools.acceptance.field import Station, Status, alive, pause, until
from tools.acceptance.verdict import Verdict
from tools.chaos.rig import GLANCE_S, Asking, Options, Rig, agreed
from tools.racklab.lab import Device

NAPS_S = (1.0, 5.0, 30.0, 120.0)
REJOIN_LIMIT_S = 3.0
LEADER_LIMIT_S = 15.0
WAIT_S = 60.0
WATCH_S = 12.0


def sleep(options: Options, verdict: Verdict) -> None:
    """A device that works sleeps."""
    _naps(options, verdict, leader=False)


def sleep_leader(options: Options, verdict: Verdict) -> None:
    """The leader sleeps: it is replaced, and what it says on waking is not heard."""
    _naps(options, verdict, leader=True)


def _naps(options: Options, verdict: Verdict, *, leader: bool) -> None:
    with Rig(options, verdict.scenario) as rig:
        rig.start()
        rig.add(rig.stations[0])
        for nap_s in NAPS_S:
            until(lambda: rig.converged() and rig.leader() is not None, WAIT_S, "one leader and one plan", rig)
            said = rig.leader()
            assert said is not None
            stations = rig.by_id()
            follower = next(stations[d] for d in (*rig.plan(), *sorted(stations)) if d != said[0])
            sleeper = stations[said[0]] if leader else follower
            asker = next(station for station in reversed(rig.stations) if station not in (sleeper, stations[said[0]]))
            rig.asking.append(Asking(asker, rig.setting.name, options.concurrency, rig.folder))
            until(lambda: bool(rig.asking[-1].requests), WAIT_S, "the first answers", rig)
            _Nap(rig, verdict, sleeper, nap_s, leader=leader).take()
            rig.asking[-1].end()
        counts = rig.end()
        verdict.figures |= counts
        for key in ("lost", "doubled", "wrong"):
            verdict.check(counts[key] == 0, f"{counts[key]} {key}")


class _Nap:
    """One sleep of one device, and what everybody saw of it."""

    def __init__(self, rig: Rig, verdict: Verdict, sleeper: Station, nap_s: float, *, leader: bool) -> None:
        """`leader`: whether it leads, and so must be replaced in a long sleep."""
        self._rig = rig
        self._verdict = verdict
        self._sleeper = sleeper
        self._nap_s = nap_s
        self._leader = leader
        self._own = sleeper.look()["self"]
        self._epochs: dict[str, tuple[int, str]] = {}
        self._backwards: list[str] = []
        self._what = f"{nap_s:.0f}_s"

    def take(self) -> None:
        """Stop it, watch the others, let it go on, watch it."""
        others = [station for station in self._rig.stations if station is not self._sleeper]
        rack = self._sleeper.rack
        assert rack is not None
        _signal(rack, signal.SIGSTOP)
        began = time.monotonic()
        replaced_s = 0.0
        while time.monotonic() - began < self._nap_s:
            views = self._views(others)
            if not replaced_s and self._replaced(views):
                replaced_s = round(time.monotonic() - began, 2)
        _signal(rack, signal.SIGCONT)
        self._wake(time.monotonic())
        if self._leader and self._nap_s > LEADER_LIMIT_S:
            self._verdict.figures[f"replaced_after_{self._what}"] = replaced_s
            self._verdict.check(0 < replaced_s <= LEADER_LIMIT_S, f"{self._what}: replaced after {replaced_s} s")

    def _wake(self, woke: float) -> None:
        """Until all agree again, and some time after: the sleeper accuses nobody, and no plan goes back."""
        rejoined_s, accused = 0.0, set[str]()
        while time.monotonic() - woke < WATCH_S or (not rejoined_s and time.monotonic() - woke < WAIT_S):
            views = self._views(self._rig.stations)
            own = next((view for view in views if view["self"] == self._own), None)
            accused |= {row["name"] for row in (own or {}).get("members", ()) if row["state"] in {"suspect", "dead"}}
            together = len(views) == len(self._rig.stations) and all(len(alive(v)) == len(views) for v in views)
            if not rejoined_s and together and agreed(views):
                rejoined_s = round(time.monotonic() - woke, 2)
        print(f"  {self._sleeper.name} slept {self._nap_s:.0f} s: rejoined after {rejoined_s} s", flush=True)
        self._verdict.figures[f"rejoined_after_{self._what}"] = rejoined_s
        self._verdict.check(0 < rejoined_s <= REJOIN_LIMIT_S, f"{self._what}: rejoined after {rejoined_s} s")
        self._verdict.check(not accused, f"{self._what}: the sleeper accused {', '.join(sorted(accused))}")
        self._verdict.check(not self._backwards, f"{self._what}: {'; '.join(self._backwards[:3])}")

    def _views(self, stations: list[Station]) -> list[Status]:
        """What each sees now; notes where a term went back under one leader."""
        views = [view for station in stations if (view := station.look())]
        for view in views:
            term, epoch = int(view["term"]), str(view["epoch"])
            before = self._epochs.get(view["self"], (0, ""))
            if view["leader"] is not None and term < before[0]:
                self._backwards.append(f"{view['self'][:6]} went from term {before[0]} back to {term}")
            if view["leader"] is not None:
                self._epochs[view["self"]] = (term, epoch)
        pause(GLANCE_S)
        return views

    def _replaced(self, views: list[Status]) -> bool:
        leaders = {view["leader"] for view in views}
        return len(leaders) == 1 and leaders.isdisjoint({None, self._own})


def _signal(device: Device, number: signal.Signals) -> None:
    for process in device.processes:
        if process.poll() is None:
            process.send_signal(number)
