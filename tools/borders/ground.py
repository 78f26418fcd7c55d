"""The ground of a scenario: real nodes on loopback, people who ask them all the while, and looks at their processes."""

from __future__ import annotations

import json
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from meshnn.client import LocalNode
from meshnn.errors import MeshError
from tools.processes import Device, Mesh, until

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
# The default model needs more than one device has, and two devices hold it together.
SMALL = ("--memory", "3MB")
ASK_DEADLINE_S = 5.0
PACE_S = 0.1
MEET_S = 60.0


def api(device: Device) -> LocalNode:
    """A connection to a node's API."""
    return LocalNode(http_port(device))


def http_port(device: Device) -> int:
    """Where a node serves its API."""
    return int(json.loads((device.folder / "node.json").read_text())["http_port"])


def peer_port(device: Device) -> int:
    """Where a node listens for its peers."""
    return int(json.loads((device.folder / "node.json").read_text())["port"])


def status(device: Device) -> dict[str, Any]:
    """A node's status, over a connection of its own."""
    node = api(device)
    try:
        return dict(node.get("/api/v1/status"))
    finally:
        node.close()


def process_of(device: Device) -> psutil.Process:
    """A node's process."""
    assert device.process is not None
    return psutil.Process(device.process.pid)


def rss_bytes(device: Device) -> int:
    """A node's memory."""
    return int(process_of(device).memory_info().rss)


class Cpu:
    """What a process uses of one processor from now on."""

    def __init__(self, process: psutil.Process) -> None:
        """From now."""
        self._process = process
        self._began = time.monotonic()
        self._before = self._used()

    def _used(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def percent(self) -> float:
        """Until now."""
        return round(100 * (self._used() - self._before) / max(1e-9, time.monotonic() - self._began), 1)


class Traffic:
    """Somebody asks a node ten times a second, over one connection or a new one each; good answers are counted."""

    def __init__(self, device: Device, model: str | None, *, fresh: bool, label: str | None = "cat") -> None:
        """Asking from now on; `label` is the right answer, where there is one."""
        self._label = label
        self.ok = 0
        self.failed = 0
        self.errors: list[str] = []
        self.took_s: list[float] = []
        self._device = device
        self._model = model
        self._fresh = fresh
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        photo, node = PHOTO.read_bytes(), api(self._device)
        while not self._over.wait(PACE_S):
            began = time.monotonic()
            try:
                told = node.ask(photo, "cat", ASK_DEADLINE_S, {"model": self._model, "top": 1}).json()
            except MeshError as error:
                self.failed += 1
                self.errors.append(str(error))
            else:
                good = self._label is None or told["predictions"][0]["label"] == self._label
                self.ok, self.failed = self.ok + good, self.failed + (not good)
                self.took_s.append(time.monotonic() - began)
            if self._fresh:
                node.close()
        node.close()

    @property
    def good_percent(self) -> float:
        """Of all that were asked."""
        return round(100 * self.ok / max(1, self.ok + self.failed), 1)

    @property
    def p50_ms(self) -> float:
        """The middle time of an answer."""
        return round(1000 * statistics.median(self.took_s), 1) if self.took_s else 0.0

    def end(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join(ASK_DEADLINE_S + 10)


class Ground:
    """Nodes and traffic of one scenario; everything ends with it."""

    def __init__(self, folder: Path, model: Path | None) -> None:
        """Nothing runs."""
        self.folder = folder
        self.model = model
        self.mesh = Mesh(folder)
        self._traffic: list[Traffic] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for traffic in self._traffic:
            with suppress(MeshError):
                traffic.end()
        self.mesh.__exit__(kind, error, trace)

    def pair(self) -> tuple[Device, Device]:
        """Two nodes that serve the default model together."""
        a, b = self.mesh.start("a", "b", options=SMALL)
        until(lambda: a.sees("a", "b"), MEET_S, "the two meet")
        self.add(a, MODEL)
        return a, b

    def add(self, device: Device, model: Path) -> None:
        """Give the mesh a model; RuntimeError where it is not served."""
        done = device.meshnn("models", "add", str(model))
        if done.code:
            raise RuntimeError(f"models add ended with {done.code}: {done.err.strip()}")

    def traffic(
        self, device: Device, model: str | None = "default", *, fresh: bool = True, label: str | None = "cat"
    ) -> Traffic:
        """Somebody who asks from now on."""
        made = Traffic(device, model, fresh=fresh, label=label)
        self._traffic.append(made)
        return made
