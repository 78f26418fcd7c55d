"""A model new to this device is loaded and run once in a child process, so that a bad file costs one child."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshnn.device import memory, runtime, trial_child
from meshnn.errors import ModelError, NodeError

CPU_S = 90
"""Processor seconds a trial may take: loading and running once, twice over."""

WALL_S = 180
"""Seconds a trial may take altogether."""

_MEMORY_FLOOR_BYTES = 1 << 30
_MEMORY_PER_FILE_BYTE = 8
_REPORT_BYTES_MAX = 64 << 20
_CUSTOM = re.compile(r"unresolved custom op:?\s*([^\s.]+)|Node number \d+ \((Flex\w+)\)")
_BUILTIN = re.compile(r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'")


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run told: shapes by tensor index **after one run**, which of them only a run determines, its seconds."""

    shapes: dict[int, tuple[int, ...]]
    dynamic: tuple[int, ...]
    run_s: float
    peak_bytes: int


def attempt(
    path: Path, name: str = "", *, memory_bytes: int | None = None, cpu_s: int = CPU_S, wall_s: int = WALL_S
) -> Trial:
    """Load and run a file once in a child process; ModelError (one line, beginning with `name`) where it fails.

    `memory_bytes` bounds the child's growth: by default eight times the file and 1 GiB, and never more than what
    the machine has free. Blocks for as long as the trial takes: call it in a thread.
    """
    name = name or path.name
    limit_bytes = _memory_limit(path, memory_bytes)
    command = [sys.executable, "-P", "-m", "meshnn.device.trial_child", str(path)]
    command += [str(limit_bytes), str(cpu_s), str(wall_s)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module; the file's path is an argument, not a shell word
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=wall_s,
            env=_environment(),
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{name}: loading and running it once took more than {wall_s} s") from None
    except OSError as error:
        raise NodeError(f"no child process could be started to try {name}: {error.strerror}") from None
    if done.returncode != 0 or not done.stdout:
        raise ModelError(f"{name}: {_death(done.returncode, done.stderr, limit_bytes)}")
    report = _report(name, done.stdout)
    if isinstance(report, trial_child.Refused):
        raise ModelError(f"{name}: {explain(report.reason)}")
    return Trial(report.shapes, report.dynamic, report.run_s, report.peak_bytes)


def explain(reason: str) -> str:
    """The runtime's reason in the words of the person who brought the file: missing operators by name."""
    custom = _CUSTOM.search(reason)
    if custom:
        return f"it needs the custom operator {custom[1] or custom[2]}, which {_runtime_name()} does not have"
    builtin = _BUILTIN.search(reason)
    if builtin:
        return f"it needs {builtin[1]} in version {builtin[2]}, which {_runtime_name()} does not have"
    if "Select TensorFlow op" in reason:
        return f"it needs TensorFlow (Flex) operators, which {_runtime_name()} does not have"
    return f"the runtime refuses it: {reason}"


def _runtime_name() -> str:
    found = runtime.find()
    return f"{found.name} {found.version}"


def _memory_limit(path: Path, asked_bytes: int | None) -> int:
    """How far the child may grow, in bytes of address space."""
    if asked_bytes is not None:
        return asked_bytes
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path.name}: {error.strerror}") from None
    wanted = _MEMORY_FLOOR_BYTES + _MEMORY_PER_FILE_BYTE * size_bytes
    # The mapped file is address space but no memory.
    return min(wanted, memory.look().room_bytes + size_bytes)


def _environment() -> dict[str, str]:
    """The child's environment: ours, and this very package first on its path, installed or not."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _report(name: str, raw: bytes) -> trial_child.Ran | trial_child.Refused:
    """The child's report, which an odd file may have spoilt."""
    try:
        if len(raw) > _REPORT_BYTES_MAX:
            raise msgspec.DecodeError("too long")
        return msgspec.json.decode(raw, type=trial_child.Ran | trial_child.Refused)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{name}: the trial's report cannot be read ({error})") from None


def _death(code: int, stderr: bytes, limit_bytes: int) -> str:
    """Why a child without a report ended."""
    if code == -getattr(signal, "SIGXCPU", 0) or code == -signal.SIGALRM:
        return "loading and running it once took too much processor time"
    said = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    if any("bad_alloc" in line or "MemoryError" in line or "allocate" in line for line in said):
        return f"it takes more than {limit_bytes // 1_000_000} MB to load and run it once"
    if code == -getattr(signal, "SIGKILL", 0):
        return "the system ended the trial, most likely for want of memory: free some, or take a smaller model"
    if code < 0:
        return f"the runtime crashes on it ({_signal_name(-code)})"
    return f"the trial failed: {runtime.reason(RuntimeError(said[0] if said else f'exit code {code}'))}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
