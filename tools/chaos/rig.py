"""A mesh in the rack with askers on its origins: what every run of chaos and every scenario stands on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.acceptance.field import Field, Station, Status, alive, pause, until
from tools.acceptance.verdict import Setting

END_S = 60.0
GLANCE_S = 0.1
ASK_READY_S = 60.0
# A request of a retry is taken for one that a fault hit when it began no later than this after it.
AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is given: the model, the devices and what each of them has."""

    model: Path
    logs: Path
    devices: int = 5
    origins: int = 2
    cpu: float = 0.25
    rate: str = "100mbit"
    memory: str = ""
    little: str = ""
    concurrency: int = 2
    seed: int = 1
    repeat: int = 0
    hold: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One request of an asker's journal; times in monotonic seconds of this machine."""

    began_s: float
    ended_s: float
    attempts: int
    outcome: str


class Asking:
    """The asker on one device, from now until `end`."""

    def __init__(self, station: Station, model: str, concurrency: int, folder: Path) -> None:
        """Starts it at once."""
        self.station = station
        self._path = folder / f"asker-{station.name}-{time.monotonic_ns()}.jsonl"
        self._errors = self._path.with_suffix(".err")
        assert station.rack is not None
        command = [sys.executable, "-m", "tools.chaos.asker", str(station.folder), model, str(concurrency)]
        with self._path.open("wb") as out, self._errors.open("wb") as err:
            self._process = station.rack.spawn(command, station.environment, out, err, limited=False)

    @property
    def requests(self) -> list[Request]:
        """Every request that has ended so far."""
        rows = [json.loads(line) for line in self._lines()]
        return [Request(**row) for row in rows if "outcome" in row]

    @property
    def running(self) -> bool:
        """Whether it still asks."""
        return self._process.poll() is None

    def end(self) -> dict[str, Any]:
        """Let it finish what is under way; its report. RuntimeError where it gave none."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        reports = [row for line in self._lines() if "ok" in (row := json.loads(line))]
        if not reports:
            raise RuntimeError(f"{self.station.name}'s asker gave no report: {self._errors.read_text()[-500:].strip()}")
        return dict(reports[-1])

    def _lines(self) -> list[str]:
        return [line for line in self._path.read_text().splitlines(keepends=False) if line.endswith("}")]


class Rig(Field):
    """The devices, a model among them, and askers on the last of them; a context manager."""

    def __init__(self, options: Options, scenario: str) -> None:
        """`options.little` is what the origins have for shards where it differs from the others' `memory`."""
        setting = Setting(options.model, options.model, "", options.logs, options.seed, options.cpu, options.rate)
        super().__init__(setting, scenario, count=options.devices)
        self.given = options
        self.asking: list[Asking] = []

    def __enter__(self) -> Self:
        super().__enter__()
        for station in self.stations:
            memory = self.given.little if station in self.origins and self.given.little else self.given.memory
            station.options = ("--memory", memory) if memory else ()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    @property
    def origins(self) -> list[Station]:
        """The devices that ask: the last ones."""
        return self.stations[len(self.stations) - self.given.origins :]

    @property
    def mortals(self) -> list[Station]:
        """The others."""
        return self.stations[: len(self.stations) - self.given.origins]

    def serve(self) -> None:
        """Start everybody, give the mesh the model, wait until one plan serves, and ask from the origins."""
        self.start()
        self.add(self.stations[0])
        until(self.converged, ASK_READY_S, "one leader and one plan", self)
        for station in self.origins:
            self.asking.append(Asking(station, self.setting.name, self.given.concurrency, self.folder))
        until(lambda: all(asking.requests for asking in self.asking), ASK_READY_S, "the first answers", self)

    def end(self) -> dict[str, int]:
        """End the askers: how many requests there were, and how many were lost, doubled and wrong."""
        reports = [asking.end() for asking in self.asking]
        count = {key: sum(int(report[key]) for report in reports) for key in ("ok", "failed", "doubled", "wrong")}
        return {"requests": count["ok"] + count["failed"] + count["wrong"], "lost": count.pop("failed"), **count}

    def requests(self) -> list[Request]:
        """Every request of every asker so far."""
        return [request for asking in self.asking for request in asking.requests]

    def converged(self) -> bool:
        """Whether all are alive in every view, and all name one leader, one term and one plan of living devices."""
        seen = [station.look() for station in self.stations if not station.dead()]
        return len(seen) == len(self.stations) and agreed(seen)

    def rerouted_s(self, since_s: float) -> list[float]:
        """How long the requests that a fault at `since_s` hit took from then, or from their beginning if it was later.

        Hit is what needed more than one attempt and was under way then or began within `AFTER_S`.
        """
        hit = [r for r in self.requests() if r.attempts > 1 and r.ended_s > since_s and r.began_s < since_s + AFTER_S]
        return [round(request.ended_s - max(since_s, request.began_s), 3) for request in hit]


def agreed(seen: list[Status]) -> bool:
    """Whether views name each other alive, one leader among them, one term, one epoch whose devices all live."""
    if not all(seen):
        return False
    ids = {status["self"] for status in seen}
    said = {(status["leader"], status["term"], status["epoch"]) for status in seen}
    if len(said) != 1 or any(alive(status) != ids for status in seen):
        return False
    leader, _, epoch = said.pop()
    waits = [device for status in seen for plan in status["plans"] for device in plan["waits_for"]]
    return leader in ids and epoch is not None and not waits


def state_of(status: Status, device: str) -> str:
    """The state of a member in a view; "" where it is not listed or the view is empty."""
    return next((str(row["state"]) for row in status.get("members", ()) if row["id"] == device), "")


def first_times(
    looks: Iterable[Station], true: Callable[[Status], bool], since_s: float, timeout_s: float
) -> dict[str, float]:
    """For each device, the seconds from `since_s` until its own view first satisfied a condition; absent if never."""
    waiting = {station.name: station for station in looks}
    found: dict[str, float] = {}
    while waiting and time.monotonic() - since_s < timeout_s:
        for name, station in list(waiting.items()):
            status = station.look()
            if status and true(status):
                found[name] = round(time.monotonic() - since_s, 2)
                del waiting[name]
        pause(GLANCE_S)
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile, 0.0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    rank = max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))
    return ordered[rank]
