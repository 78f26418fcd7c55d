"""A run of chaos: a schedule of faults carried out on a mesh that is asked all the while."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.acceptance.field import Station, Status, pause, until
from tools.chaos.rig import Options, Rig, percentile
from tools.chaos.schedule import Fault, Kind

CONVERGE_S = 30.0
SAMPLE_S = 5.0
CALM_S = 5.0
PAGE_BYTES = 4096
# Memory's course is told in so many medians.
PARTS = 24
# A run so long tells a leak from a start that is not over yet: its last quarter is compared with its second.
SOAK_S = 1200.0
GROWN_RSS = 0.10
GROWN_COUNT = 3
COUNTS = ("descriptors", "threads", "tasks")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a node held at a time, and in which term: resident memory, descriptors, threads, tasks of its event loop."""

    at_s: float
    rss_mb: float
    descriptors: int
    threads: int
    tasks: int
    term: int = 0


@dataclass(slots=True)
class Report:
    """What came of a run."""

    seed: int
    seconds: float
    faults: Sequence[Fault]
    counts: dict[str, int] = field(default_factory=dict)
    converged_s: float | None = None
    broken: list[str] = field(default_factory=list)
    rerouted_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    terms: list[int] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled or wrong, and the mesh converged in time."""
        clean = all(self.counts.get(key, 1) == 0 for key in ("lost", "doubled", "wrong"))
        return clean and self.counts["requests"] > 0 and self.converged_s is not None and not self.broken

    @property
    def line(self) -> str:
        """The summary."""
        count = self.counts
        kinds = {kind: sum(1 for fault in self.faults if fault.kind is kind) for kind in Kind}
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        met = f"converged in {self.converged_s:.1f} s" if self.converged_s is not None else "NOT converged"
        return (
            f"chaos seed {self.seed}: {'pass' if self.passed else 'FAIL'}; {self.seconds:.0f} s, {len(self.faults)} "
            f"faults ({told}); {count.get('requests', 0)} requests: {count.get('lost', '?')} lost, "
            f"{count.get('doubled', '?')} doubled, {count.get('wrong', '?')} wrong; {met}"
        )

    @property
    def figures(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "passed": self.passed,
            "summary": self.line,
            "broken": self.broken,
            "counts": self.counts,
            "converged_s": self.converged_s,
            "terms_first_last": [self.terms[0], self.terms[-1]] if self.terms else [],
            "latency_ms": {f"p{share:g}": percentile(self.latencies_ms, share / 100) for share in (50, 95, 99, 100)},
            "retried": len(self.rerouted_s),
            "retried_s": {f"p{share:g}": percentile(self.rerouted_s, share / 100) for share in (50, 99, 100)},
            "held": {name: _drift(samples) for name, samples in self.samples.items()},
            "faults": [fault.line for fault in self.faults],
        }


class Storm:
    """Carries out the faults of a schedule."""

    def __init__(self, rig: Rig, report: Report) -> None:
        """`rig` serves and is asked already."""
        self._rig = rig
        self._report = report
        self._sampled_s = 0.0

    def run(self) -> None:
        """Every fault and its healing at its time; then wait until the mesh is one again."""
        began = time.monotonic()
        for at_s, fault, heals in steps(self._report.faults):
            self._rest(began + at_s)
            (self._heal if heals else self._begin)(fault)
        self._rest(began + self._report.seconds)
        with suppress(TimeoutError):
            self._report.converged_s = round(until(self._rig.converged, CONVERGE_S, "one mesh again"), 1)
        self._rest(time.monotonic() + CALM_S)

    def _rest(self, until_s: float) -> None:
        """Wait, sampling what the origins hold."""
        while (left := until_s - time.monotonic()) > 0:
            if time.monotonic() - self._sampled_s > SAMPLE_S:
                self._sample()
            pause(max(0.0, min(left, 0.5)))

    def _sample(self) -> None:
        self._sampled_s = time.monotonic()
        for station in self._rig.origins:
            if station.process is not None and not station.dead():
                taken = sample(station.process.pid, self._sampled_s, station.look())
                self._report.samples.setdefault(station.name, []).append(taken)
            elif f"the node of {station.name} ended" not in self._report.broken:
                self._report.broken.append(f"the node of {station.name} ended")
        if term := self._rig.origins[0].look().get("term"):
            self._report.terms.append(int(term))

    def _begin(self, fault: Fault) -> None:
        print(fault.line, flush=True)
        _BEGIN[fault.kind](self._rig, [self._rig.stations[index] for index in fault.devices], fault)

    def _heal(self, fault: Fault) -> None:
        _HEAL[fault.kind](self._rig, [self._rig.stations[index] for index in fault.devices])


def steps(faults: Sequence[Fault]) -> list[tuple[float, Fault, bool]]:
    """When what begins (False) and is healed (True), in order; what is healed goes before what begins."""
    assert all(fault.lasts_s > 0 for fault in faults), "a fault that is healed before it begins"
    rows = [(f.at_s, f, False) for f in faults] + [(f.healed_s, f, True) for f in faults]
    return sorted(rows, key=lambda row: (row[0], not row[2], row[1].at_s))


def storm(options: Options, seconds: float, faults: Sequence[Fault]) -> Report:
    """A run of chaos in a rack of its own."""
    report = Report(options.seed, seconds, faults)
    with Rig(options, "chaos") as rig:
        try:
            rig.serve()
            Storm(rig, report).run()
        except (RuntimeError, TimeoutError, OSError) as error:
            report.broken.append(f"{type(error).__name__}: {error}")
        try:
            report.counts = rig.end()
        except RuntimeError as error:
            report.broken.append(str(error))
        requests = rig.requests()
        report.latencies_ms = [round((r.ended_s - r.began_s) * 1000, 1) for r in requests]
        report.rerouted_s = [round(r.ended_s - r.began_s, 3) for r in requests if r.attempts > 1]
        report.broken += sorted({r.outcome for r in requests if r.outcome != "ok"})
        if seconds >= SOAK_S:
            report.broken += [line for name, taken in report.samples.items() for line in grown(name, taken)]
    return report


def write(report: Report, path: Path) -> None:
    """The report as JSON, and what it says in text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.figures, indent=1) + "\n", encoding="utf-8")
    rows = {key: value for key, value in report.figures.items() if key not in {"summary", "faults"}}
    print("\n".join(f"{key}: {value}" for key, value in rows.items()))
    print(report.line, flush=True)


def sample(pid: int, at_s: float, status: Status) -> Sample:
    """What a process holds now, and the tasks and the term that its node told of."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    threads = len(list((folder / "task").iterdir()))
    descriptors = len(list((folder / "fd").iterdir()))
    told = (int(status.get("tasks", 0)), int(status.get("term", 0)))
    return Sample(at_s, round(pages * PAGE_BYTES / 1e6, 2), descriptors, threads, *told)


def grown(name: str, samples: Sequence[Sample]) -> list[str]:
    """What of a node grew between the second quarter of its samples and the last, in a line each."""
    early, late = _quarters(samples)
    found = [
        f"{what} of {name} grew from {before:.0f} to {after:.0f}"
        for what in COUNTS
        if (after := _median(late, what)) - (before := _median(early, what)) > GROWN_COUNT
    ]
    before_mb, after_mb = _median(early, "rss_mb"), _median(late, "rss_mb")
    if after_mb > (1 + GROWN_RSS) * before_mb:
        found.append(f"memory of {name} grew from {before_mb:.1f} to {after_mb:.1f} MB")
    return found


def _drift(samples: Sequence[Sample]) -> dict[str, float | list[float]]:
    """Medians of the second and the last quarter, and what memory's fitted line rises in an hour; its whole course."""
    early, late = _quarters(samples)
    pairs: dict[str, float | list[float]] = {
        name: [_median(part, name) for part in (early, late)] for name in ("rss_mb", *COUNTS)
    }
    later = _lasting(samples)
    later = later[len(later) // 2 :]
    if len(later) > 1:
        slope = statistics.linear_regression([s.at_s for s in later], [s.rss_mb for s in later]).slope
        pairs["rss_mb_per_hour_second_half"] = round(slope * 3600, 1)
        part = max(1, len(samples) // PARTS)
        pairs["rss_mb_over_time"] = [_median(samples[at : at + part], "rss_mb") for at in range(0, len(samples), part)]
    return pairs


def _lasting(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The longest time under one leader: whoever takes office reads, solves and cuts from then on, 14 MB once."""
    return max((list(own) for _, own in groupby(samples, key=lambda one: one.term)), key=len, default=[])


def _quarters(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The second quarter of a lasting time and the last; the first is a node's start."""
    samples = _lasting(samples)
    quarter = max(1, len(samples) // 4)
    return samples[quarter : 2 * quarter] or samples, samples[-quarter:]


def _median(samples: Sequence[Sample], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in samples))


def _end_nodes(_: Rig, stations: list[Station], __: Fault) -> None:
    for station in stations:
        station.kill()


def _start_nodes(_: Rig, stations: list[Station]) -> None:
    for station in stations:
        assert station.dead(), f"{station.name} was to be started again and never ended"
        station.start()


def _pull(_: Rig, stations: list[Station], __: Fault) -> None:
    for station in stations:
        assert station.rack is not None
        station.rack.unplug()


def _put(_: Rig, stations: list[Station]) -> None:
    for station in stations:
        assert station.rack is not None
        station.rack.plug()


def _split(rig: Rig, stations: list[Station], _: Fault) -> None:
    rig.rack.split([station.rack for station in stations if station.rack is not None])


def _join(rig: Rig, _: list[Station]) -> None:
    rig.rack.heal()


def _lose(rig: Rig, stations: list[Station], fault: Fault) -> None:
    for station in stations:
        assert station.rack is not None
        station.rack.shape(rig.setting.rate, fault.loss)


def _lose_no_more(rig: Rig, stations: list[Station]) -> None:
    for station in stations:
        assert station.rack is not None
        station.rack.shape(rig.setting.rate, 0.0)


def _freeze(_: Rig, stations: list[Station], __: Fault) -> None:
    _signal(stations, signal.SIGSTOP)


def _thaw(_: Rig, stations: list[Station]) -> None:
    _signal(stations, signal.SIGCONT)


def _signal(stations: list[Station], number: signal.Signals) -> None:
    for station in stations:
        if station.process is not None and not station.dead():
            station.process.send_signal(number)


_BEGIN: dict[Kind, Callable[[Rig, list[Station], Fault], None]] = {
    Kind.KILL: _end_nodes,
    Kind.RESTART: _end_nodes,
    Kind.UNPLUG: _pull,
    Kind.PARTITION: _split,
    Kind.LOSS: _lose,
    Kind.STOP: _freeze,
}
_HEAL: dict[Kind, Callable[[Rig, list[Station]], None]] = {
    Kind.KILL: _start_nodes,
    Kind.RESTART: _start_nodes,
    Kind.UNPLUG: _put,
    Kind.PARTITION: _join,
    Kind.LOSS: _lose_no_more,
    Kind.STOP: _thaw,
}
