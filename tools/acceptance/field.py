"""Devices of the rack with a plain `meshnn join` on each, and looks at them that cost them next to nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from meshnn.client import Reply, find
from meshnn.errors import MeshError
from tools import processes
from tools.acceptance.verdict import Setting
from tools.racklab import lab

DEVICES = 5
MEET_S = 60.0
LOOK_S = 0.2
LOOK_MOST_S = 5.0
ADD_S = 120.0
LOG_TAIL = 300

Status = dict[str, Any]


@dataclass(slots=True)
class Station(processes.Device):
    """A device of the rack; its node gets no arguments but the scenario's, and knows its state folder alone."""

    rack: lab.Device | None = None

    def start(self) -> None:
        """Start the node: `meshnn join`, named by its host."""
        self.starts += 1
        command = [sys.executable, "-m", "meshnn", "join", *self.options]
        with self.log_path.open("ab") as log:
            self.process = self.launch(command, self.environment, log, log)

    @property
    def joined(self) -> bool:
        """Whether the node of this life has printed its line."""
        return not self.dead() and self.log.count(" joined mesh ") >= self.starts

    def speak(self, method: str, path: str, body: bytes | None = None, **query: object) -> Reply | None:
        """Speak to the node's own API from this process; None where there is no node, it is going, or it refuses."""
        assert self.rack is not None
        if self.dead():
            return None
        with self.rack.inside():
            node = find(self.folder)
            if node is None:
                return None
            try:
                return node.request(method, path, body, query, timeout_s=float(str(query.get("deadline", LOOK_MOST_S))))
            except MeshError:
                return None
            finally:
                node.close()

    def look(self) -> Status:
        """What the device sees of the mesh; empty where its node does not answer."""
        reply = self.speak("GET", "/api/v1/status")
        return dict(reply.json()) if reply is not None else {}

    def observe(self, *arguments: str, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
        """A command on the device's network that does not eat of the device's share."""
        assert self.rack is not None
        command = [sys.executable, "-m", "meshnn", *arguments]
        return self.rack.spawn(command, self.environment, out, err, limited=False)


def alive(status: Status) -> set[str]:
    """The ids of the members that are alive in a status."""
    return {member["id"] for member in status.get("members", ()) if member["state"] == "alive"}


def workers(status: Status, model: str) -> list[str]:
    """The ids of the devices of a model's active plan, in the order of their work."""
    stages = [stage for plan in status.get("plans", ()) if plan["model"] == model for stage in plan["stages"]]
    return list(dict.fromkeys(stage["device_id"] for stage in stages))


class Field:
    """The devices of one scenario in a rack of their own; a context manager."""

    def __init__(self, setting: Setting, scenario: str, *options: str, count: int = DEVICES) -> None:
        """`options` are added to every `meshnn join`; `setting.cpu` and `setting.rate` limit every device."""
        self.setting = setting
        self.folder = setting.logs / scenario
        self.options = options
        self.rack = lab.Lab(count, rate=setting.rate, cpu=setting.cpu)
        self.stations: list[Station] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.rack.__enter__()
        for device in self.rack.devices:
            folder = self.folder / device.name
            folder.mkdir(parents=True)
            environment = {"MESHNN_STATE_DIR": str(folder)}
            launch = _launcher(device)
            self.stations.append(Station(device.name, folder, environment, launch, self.options, rack=device))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rack.__exit__(kind, error, trace)
        for station in self.stations:
            shutil.rmtree(station.folder, ignore_errors=True)

    def start(self) -> tuple[float, float]:
        """Start all devices at once and wait until each lists all as alive.

        The seconds this took from the last start of a process, and from the last node's "joined" line.
        """
        for station in self.stations:
            station.start()
        started = time.monotonic()
        until(self.all_joined, MEET_S, "every node prints its line", self)
        joined = time.monotonic()
        until(self.met, MEET_S, "all list each other", self)
        return time.monotonic() - started, time.monotonic() - joined

    def all_joined(self) -> bool:
        """Whether every node has printed its line, or one has ended without."""
        return all(station.joined for station in self.stations) or any(station.dead() for station in self.stations)

    def met(self) -> bool:
        """Whether every device lists as many alive as there are, itself among them. RuntimeError where one ended."""
        for station in self.stations:
            if station.dead():
                raise RuntimeError(f"the node of {station.name} ended: {station.log[-LOG_TAIL:].strip()}")
            status = station.look()
            if len(alive(status)) != len(self.stations) or status["self"] not in alive(status):
                return False
        return True

    def add(self, station: Station) -> float:
        """Give one device the model; the seconds until `models add` returned. RuntimeError where it failed."""
        began = time.monotonic()
        done = station.meshnn("models", "add", str(self.setting.model), "--deadline", str(ADD_S), timeout_s=ADD_S + 30)
        if done.code:
            raise RuntimeError(f"models add on {station.name} ended with {done.code}: {done.err.strip()}")
        return time.monotonic() - began

    def by_id(self) -> Mapping[str, Station]:
        """The stations that answer, by device id."""
        return {status["self"]: station for station in self.stations if (status := station.look())}

    def leader(self) -> tuple[str, int] | None:
        """Id and term of the leader that every answering device names and sees alive; None while they differ."""
        seen = [status for station in self.stations if (status := station.look())]
        said = {(status["leader"], status["term"]) for status in seen}
        if len(said) != 1 or len(seen) < len(self.stations) - 1:
            return None
        leader, term = said.pop()
        known = leader is not None and all(leader in alive(status) for status in seen)
        return (leader, term) if known and leader in {status["self"] for status in seen} else None

    def plan(self) -> list[str]:
        """The ids of the devices of the model's active plan, as the first device that knows one has it."""
        for station in self.stations:
            if found := workers(station.look(), self.setting.name):
                return found
        return []


def until(true: Callable[[], bool], timeout_s: float, what: str, field: Field | None = None) -> float:
    """Look again and again until a condition holds; the seconds it took. TimeoutError says what did not happen."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}{_told(field)}")
        pause(LOOK_S)
    return time.monotonic() - began


def pause(seconds: float) -> None:
    """Let the devices work for a while."""
    threading.Event().wait(seconds)


def _told(field: Field | None) -> str:
    """What each device of a field sees, in a few words."""
    if field is None:
        return ""
    rows = []
    for station in field.stations:
        status = station.look()
        state = "dead" if station.dead() else "silent" if not status else f"{len(alive(status))} alive"
        rows.append(f"{station.name} {state}")
    return f" ({', '.join(rows)})"


def _launcher(device: lab.Device) -> processes.Launch:
    def launch(
        command: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return device.spawn(command, environment, out, err)

    return launch


def forget_settings() -> None:
    """No setting of the person who runs this reaches a node."""
    for name in [name for name in os.environ if name.startswith("MESHNN_")]:
        del os.environ[name]
