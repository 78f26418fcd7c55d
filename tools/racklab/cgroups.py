"""Shares of a processor for virtual devices, through cgroup v1 (cpu) or v2, whichever the kernel has."""

from __future__ import annotations

import os
import threading
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "meshlab-"
PERIOD_US = 10_000
# Below this share a period of 10 ms would ask for less than the kernel's least quota of 1 ms.
SMALL_CPU = 0.10
LONG_PERIOD_US = 20_000
LEAST_QUOTA_US = 1_000
REMOVE_TRIES = 40
REMOVE_PAUSE_S = 0.05


def start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks (field 22 of its stat): tells two lives of one number apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def stamp(pid: int) -> str:
    """What names one life of a process."""
    return f"{pid}-{start_time(pid)}"


class CpuGroups:
    """One parent group for the rack, one child a device; removed at the end, and by the next rack after a kill -9."""

    def __init__(self, owner: str) -> None:
        """`owner` is `stamp` of the process whose end makes the groups garbage; OSError where they are not ours."""
        self._v2 = _is_v2()
        self._parent = _base(self._v2) / f"{PREFIX}{owner}"
        self._parent.mkdir()
        if self._v2:
            (self._parent / "cgroup.subtree_control").write_text("+cpu")
        else:
            # The rack is one entity to the scheduler: on a busy machine it would get one share of many.
            (self._parent / "cpu.shares").write_text("16384")

    def add(self, name: str, cpu: float) -> Path:
        """A device's group with `cpu` of a processor; its procs file takes the processes."""
        group = self._parent / name
        group.mkdir()
        self.limit(name, cpu)
        return group / "cgroup.procs"

    def limit(self, name: str, cpu: float) -> None:
        """Set a device's share; 0 lifts the limit."""
        group = self._parent / name
        period_us = PERIOD_US if cpu >= SMALL_CPU else LONG_PERIOD_US
        quota_us = max(LEAST_QUOTA_US, round(cpu * period_us))
        if self._v2:
            (group / "cpu.max").write_text(f"{quota_us if cpu else 'max'} {period_us}")
            return
        (group / "cpu.cfs_quota_us").write_text("-1")
        if cpu:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))

    def close(self) -> None:
        """Remove the groups; what still runs in one keeps it until the rack itself ends."""
        remove(self._parent)


def missing() -> str:
    """Why there are no shares of a processor here, in one line; "" where there are."""
    base = _base(_is_v2())
    probe = base / f"{PREFIX}probe-{stamp(os.getpid())}"
    try:
        probe.mkdir()
    except OSError as error:
        return f"no cpu control group can be made here ({error.strerror})"
    limited = any((probe / name).exists() for name in ("cpu.cfs_quota_us", "cpu.max", "cpu.weight"))
    _try_rmdir(probe)
    return "" if limited or _is_v2() else "the kernel's cpu control group knows no quota here"


def _is_v2() -> bool:
    """Whether the cpu controller is in the unified hierarchy."""
    controllers = ROOT / "cgroup.controllers"
    return controllers.exists() and "cpu" in controllers.read_text().split()


def own_procs() -> Path:
    """The procs file of the cpu group that this process is in."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    v2 = _is_v2()
    path = next(path for _, controllers, path in lines if "cpu" in controllers.split(",") or (v2 and not controllers))
    return _base(v2) / path.lstrip("/") / "cgroup.procs"


def collect_garbage() -> None:
    """Remove the groups of racks whose process is gone."""
    for base in {_base(False), _base(True)}:
        for parent in base.glob(f"{PREFIX}*") if base.is_dir() else ():
            pid, _, started = parent.name.removeprefix(PREFIX).partition("-")
            if not pid.isdigit() or start_time(int(pid)) != started:
                remove(parent)


def remove(parent: Path) -> None:
    """Remove a group and its children; a group whose last process is just going is tried again."""
    pause = threading.Event()
    for _ in range(REMOVE_TRIES):
        for group in sorted(parent.rglob("*"), key=lambda path: -len(path.parts)):
            if group.is_dir():
                _try_rmdir(group)
        _try_rmdir(parent)
        if not parent.exists():
            return
        pause.wait(REMOVE_PAUSE_S)


def _base(v2: bool) -> Path:
    return ROOT if v2 else ROOT / "cpu"


def _try_rmdir(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return
