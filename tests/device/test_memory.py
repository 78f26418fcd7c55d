"""The real memory: the tightest of the machine and its control groups, files not counted as taken."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from meshnn.device import memory
from meshnn.device.memory import look
from meshnn.errors import NodeError

MIB = 1 << 20


def group(folder: Path, limit: str, used: int, files: int, *, second: bool) -> None:
    """The files of one control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "" if second else "total_"
    own = "" if second else "inactive_file 1\nactive_file 1\n"
    stat = f"anon 5\n{own}{prefix}inactive_file {files // 2}\n{prefix}active_file {files - files // 2}\n"
    (folder / "memory.stat").write_text(stat)


def membership(path: Path, line: str) -> Path:
    """What /proc/self/cgroup would say."""
    path.write_text(f"9:name=systemd:/\n{line}\n")
    return path


@pytest.mark.parametrize("second", [False, True])
def test_a_control_group_bounds_what_the_machine_has(tmp_path: Path, second: bool) -> None:
    """Limit less what is taken, without what is kept of files; the tighter of a group and its parent."""
    base = tmp_path if second else tmp_path / "memory"
    own = membership(tmp_path / "own", "0::/a/b" if second else "4:memory:/a/b")
    group(base / "a/b", str(64 * MIB), 50 * MIB, 20 * MIB, second=second)
    group(base / "a", str(60 * MIB), 58 * MIB, 8 * MIB, second=second)
    found = look(tmp_path, own)
    assert (found.room_bytes, found.limit_bytes) == (10 * MIB, 60 * MIB)
    group(base / "a", "max" if second else str(2**63 - 4096), 58 * MIB, 8 * MIB, second=second)
    found = look(tmp_path, own)
    assert (found.room_bytes, found.limit_bytes) == (34 * MIB, 64 * MIB)
    assert memory.total_bytes(tmp_path, own) == 64 * MIB


def test_a_group_over_its_limit_has_no_room(tmp_path: Path) -> None:
    """For a moment a group may hold more than its limit: that is no negative room."""
    group(tmp_path / "a", str(64 * MIB), 70 * MIB, 0, second=True)
    assert look(tmp_path, membership(tmp_path / "own", "0::/a")).room_bytes == 0


@pytest.mark.parametrize("line", ["0::/gone", "", "nonsense", "4:memory", "4:memory:/../../x"])
def test_without_a_group_the_machine_counts(tmp_path: Path, line: str) -> None:
    """Groups that are not there, and lines that are none, change nothing."""
    found = look(tmp_path, membership(tmp_path / "own", line))
    assert found.limit_bytes == psutil.virtual_memory().total
    assert 0 < found.room_bytes <= found.limit_bytes


def test_damaged_files_are_no_limit(tmp_path: Path) -> None:
    """What cannot be read as numbers is passed over."""
    group(tmp_path / "a", "lots", 1, 1, second=True)
    assert look(tmp_path, membership(tmp_path / "own", "0::/a")).limit_bytes == psutil.virtual_memory().total


def test_this_process_is_seen_to_grow() -> None:
    """64 MiB taken and written to are 64 MiB more of its own."""
    before = look().own_bytes
    taken = bytearray(b"x") * (64 * MIB)
    assert look().own_bytes - before > 60 * MIB
    del taken


def test_a_system_that_does_not_tell_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor to ask through there is no look, and the node that wanted one lives on."""

    def exhausted() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(psutil, "virtual_memory", exhausted)
    with pytest.raises(NodeError, match="Too many open files"):
        look()
