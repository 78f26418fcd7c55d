"""Real nodes as real processes: started, asked through the command line, killed; for demo, tests and rack."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

READY_S = 60.0
STOP_S = 15.0
POLL_S = 0.1

Launch = Callable[[Sequence[str], dict[str, str], IO[bytes], IO[bytes]], "subprocess.Popen[bytes]"]


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - JSON is any value
        """What it printed, as plain values."""
        return json.loads(self.out)


def launch_here(
    command: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process of this machine."""
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


@dataclass(slots=True)
class Device:
    """One device: its state folder, its node's process, the commands typed on it."""

    name: str
    folder: Path
    environment: dict[str, str]
    launch: Launch = launch_here
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _number: int = field(default=0)

    @property
    def log_path(self) -> Path:
        """Where the node's lines go, over all its lives."""
        return self.folder.parent / f"{self.name}.log"

    @property
    def log(self) -> str:
        """Everything the node printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start the node; `wait_ready` waits for its line."""
        self.starts += 1
        command = [sys.executable, "-m", "meshnn", "join", "--name", self.name, *self.options]
        with self.log_path.open("ab") as log:
            self.process = self.launch(command, self.environment, log, log)

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until the node of this life has said that it joined."""
        until(lambda: self.log.count(" joined mesh ") >= self.starts or self.dead(), timeout_s, f"{self.name} joins")
        if self.dead():
            raise RuntimeError(f"{self.name} ended at its start: {self.log[-2000:]}")

    def dead(self) -> bool:
        """Whether the node's process has ended."""
        return self.process is None or self.process.poll() is not None

    def meshnn(self, *arguments: str, timeout_s: float = 120.0) -> Done:
        """Type a command on this device."""
        self._number += 1
        out_path = self.folder.parent / f"{self.name}.{self._number}.{secrets.token_hex(2)}.out"
        err_path = out_path.with_suffix(".err")
        with out_path.open("wb") as out, err_path.open("wb") as err:
            process = self.launch([sys.executable, "-m", "meshnn", *arguments], self.environment, out, err)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = -1
        done = Done(code, out_path.read_text(errors="replace"), err_path.read_text(errors="replace"))
        out_path.unlink()
        err_path.unlink()
        return done

    def status(self) -> dict[str, Any]:
        """What the device sees of the mesh; empty where its node does not answer."""
        done = self.meshnn("status", "--json")
        return dict(done.json()) if done.code == 0 else {}

    def states(self) -> dict[str, str]:
        """The state of every member this device knows, by name; of two lives of a name the alive one."""
        members = sorted(self.status().get("members", ()), key=lambda member: member["state"] == "alive")
        return {member["name"]: member["state"] for member in members}

    def sees(self, *names: str) -> bool:
        """Whether all of these are alive in this device's eyes, itself included."""
        states = self.states()
        return all(states.get(name) == "alive" for name in names)

    def kill(self) -> None:
        """Pull the plug of the process: kill -9."""
        if self.process is not None and not self.dead():
            self.process.kill()
            self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the node in order; its exit status."""
        if self.process is None:
            return 0
        if not self.dead():
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Mesh:
    """Devices of one mesh on this machine's loopback, apart from every other mesh; a context manager."""

    def __init__(self, folder: Path, mesh: str = "") -> None:
        """`folder` takes the state folders and logs."""
        self.folder = folder
        self.mesh = mesh or f"test-{secrets.token_hex(6)}"
        self.devices: dict[str, Device] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for device in self.devices.values():
            if not device.dead() and device.process is not None:
                device.process.terminate()
        for device in self.devices.values():
            device.stop()

    def device(self, name: str, *options: str, launch: Launch = launch_here, **environment: str) -> Device:
        """A device, not yet started; `environment` adds to what every node of a mesh is given."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        given = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MESHNN_")},
            "MESHNN_MESH": self.mesh,
            "MESHNN_INTERFACE": "127.0.0.1",
            "MESHNN_STATE_DIR": str(folder),
            **environment,
        }
        self.devices[name] = Device(name, folder, given, launch, options)
        return self.devices[name]

    def start(self, *names: str, options: Sequence[str] = ()) -> list[Device]:
        """Start devices together and wait until each has joined."""
        devices = [self.device(name, *options) for name in names]
        for device in devices:
            device.start()
        for device in devices:
            device.wait_ready()
        return devices


def until(true: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Look every 0.1 s until a condition holds; the seconds it took. TimeoutError names what did not happen."""
    began = time.monotonic()
    pause = threading.Event()
    while not true():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        pause.wait(POLL_S)
    return time.monotonic() - began
