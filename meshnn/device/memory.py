"""The real memory of this process and around it: what it may still take before the system objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from meshnn.errors import NodeError

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")


class Look(NamedTuple):
    """In bytes: what this process may still take, out of how much altogether, what it has taken itself."""

    room_bytes: int
    limit_bytes: int
    own_bytes: int


def look(root: Path = ROOT, own: Path = OWN) -> Look:
    """The tightest of the machine's memory and the limits of the control groups this process is in (versions 1 and 2).

    What the kernel keeps of files does not count as taken: it is given back where it is needed. NodeError where the
    system does not tell, as when there is no descriptor left to ask it through.
    """
    try:
        return _look(root, own)
    except (OSError, psutil.Error) as error:
        raise NodeError(f"the memory of this device cannot be seen: {error}") from None


def _look(root: Path, own: Path) -> Look:
    machine = psutil.virtual_memory()
    room_bytes, limit_bytes = int(machine.available), int(machine.total)
    for folder, second in _groups(root, own):
        found = _group(folder, second=second)
        if found is not None and found[1] < machine.total:
            room_bytes, limit_bytes = min(room_bytes, found[0]), min(limit_bytes, found[1])
    return Look(max(0, room_bytes), limit_bytes, _own_bytes())


def total_bytes(root: Path = ROOT, own: Path = OWN) -> int:
    """What this process may take altogether: the machine's memory, or less by the limit of a control group."""
    return look(root, own).limit_bytes


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, bool]]:
    """The memory control groups this process is in, the innermost first, each with whether it is of version 2."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers == "":
            bases = [root, root / "unified"]
        elif "memory" in controllers.split(","):
            bases = [root / "memory"]
        else:
            continue
        for base in bases:
            folder = base / place.strip("/")
            while folder.is_relative_to(base):
                yield folder, controllers == ""
                folder = folder.parent


def _group(folder: Path, *, second: bool) -> tuple[int, int] | None:
    """Room and limit of one control group in bytes; None where it has no limit or cannot be read."""
    limit_name, used_name = (
        ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    prefix = "" if second else "total_"
    try:
        limit_bytes = int((folder / limit_name).read_text(encoding="ascii"))
        used_bytes = int((folder / used_name).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        kept = dict(line.split(" ", 1) for line in lines if " " in line)
        files_bytes = sum(int(kept.get(f"{prefix}{age}_file", "0")) for age in ("active", "inactive"))
    except (OSError, ValueError):  # "max" is no limit
        return None
    return limit_bytes - max(0, used_bytes - files_bytes), limit_bytes


def _own_bytes() -> int:
    """What this process has taken and cannot give back: its anonymous pages, or all pages where not told apart."""
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss)
    return int(psutil.Process().memory_info().rss)
