"""`meshnn bench` on one device, again and again, for as long as a scenario lasts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools.acceptance.field import Station

CONCURRENCY = 4
# A bench that cannot end by itself has lost a request for ever: its last deadline, and time to start and sum up.
SLACK_S = 120.0
SLOWEST_PER_S = 2.0


class Load:
    """Asks from one device at a time, checked answer by answer, in segments of one `bench` each; sums them up."""

    def __init__(self, origin: Station, model: str, segment_s: float, folder: Path) -> None:
        """`segment_s`: how long one bench asks; the origin can change between two."""
        self.origin = origin
        self.origins: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.broken: list[str] = []
        self.errors = ""
        self._model = model
        self._segment_s = segment_s
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._next: Station | None = None

    @property
    def running(self) -> bool:
        """Whether a bench is at work."""
        return self._process is not None and self._process.poll() is None

    @property
    def may_move(self) -> bool:
        """Whether no other origin was chosen yet for the next segment."""
        return self._next is None

    def move(self, origin: Station) -> None:
        """Ask from another device from the next segment on."""
        self._next = origin

    def begin(self) -> None:
        """Start the first segment."""
        self._start("--seconds", str(self._segment_s))

    def keep_up(self) -> None:
        """Start the next segment where one has ended."""
        if not self.running:
            self._sum_up()
            self.origin, self._next = self._next or self.origin, None
            self._start("--seconds", str(self._segment_s))

    def finish(self, requests: int) -> None:
        """Wait for the last segment, then ask until there were so many requests in all."""
        self._wait(self._segment_s + SLACK_S)
        if self.broken:
            return
        left = requests - self.ok - self.failed - self.wrong
        if left > 0:
            self._start("--requests", str(left))
            self._wait(left / SLOWEST_PER_S + SLACK_S)

    @property
    def ok(self) -> int:
        """Right answers."""
        return sum(report["ok"] for report in self.reports)

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return sum(report["failed"] for report in self.reports)

    @property
    def wrong(self) -> int:
        """Answers that differ from the whole model's."""
        return sum(report["wrong"] for report in self.reports)

    @property
    def longest_ms(self) -> float:
        """The slowest answer of all."""
        return max((report["latency_ms"]["max"] for report in self.reports), default=0.0)

    @property
    def p50_ms(self) -> list[float]:
        """The median of each segment."""
        return [report["latency_ms"]["p50"] for report in self.reports]

    @property
    def throughput_per_s(self) -> list[float]:
        """The answers per second of each segment."""
        return [report["throughput_per_s"] for report in self.reports]

    @property
    def attempts_max(self) -> int:
        """The most attempts any answer took."""
        return max((report["attempts_max"] for report in self.reports), default=0)

    def _start(self, *length: str) -> None:
        self.origins.append(self.origin.name)
        typed = ("bench", "--model", self._model, *length, "--concurrency", str(CONCURRENCY), "--check", "--json")
        with self._path("out").open("wb") as out, self._path("err").open("wb") as err:
            self._process = self.origin.observe(*typed, out=out, err=err)

    def _wait(self, timeout_s: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self.broken.append(f"a bench on {self.origin.name} did not end")
        self._sum_up()

    def _sum_up(self) -> None:
        """Take the report of the segment that ended."""
        text = self._path("out").read_text()
        told = self._path("err").read_text().strip()
        if told:
            self.errors = f"{self.errors} {told}".strip()
        if text.strip():
            self.reports.append(json.loads(text))
        elif not self.broken:
            self.broken.append(f"a bench on {self.origin.name} ended without a report: {told[-300:]}")

    def _path(self, ending: str) -> Path:
        return self._folder / f"bench-{len(self.origins)}.{ending}"
