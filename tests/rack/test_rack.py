"""The virtual rack for real: what it gives its devices, and that nothing of it outlives it. As root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.racklab import cgroups, outer

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 180.0
RACK = (sys.executable, "-m", "tools.racklab")
BURN = "import time; end = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass\nprint(time.process_time())"


@pytest.fixture(autouse=True)
def _rack() -> None:
    """Skip, saying why, where the kernel or the machine has no rack to give."""
    if reason := outer.missing():
        pytest.skip(reason)


pytestmark = [pytest.mark.rack, pytest.mark.root, pytest.mark.timeout(300)]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RACK, *words], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)


def _links() -> str:
    """Every interface of this machine, by name."""
    return "\n".join(sorted(os.listdir("/sys/class/net")))


def _groups() -> set[str]:
    """The rack groups that are there now."""
    return {path.name for base in (cgroups.ROOT / "cpu", cgroups.ROOT) for path in base.glob(f"{cgroups.PREFIX}*")}


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.05)


def test_every_device_has_its_own_name_and_address_and_nothing_stays() -> None:
    """Three devices each see eth0 with an address and a host name of their own; afterwards no link, no group."""
    before = _links()
    words = (
        "run",
        "-n",
        "3",
        "--rate",
        "100mbit",
        "--cpu",
        "0.5",
        "--",
        "sh",
        "-c",
        'echo "$(hostname) $(ip -4 -o a)"',
    )
    rack = subprocess.Popen([*RACK, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    own = f"{cgroups.PREFIX}{cgroups.stamp(rack.pid)}"
    said, _ = rack.communicate(timeout=WAIT_S)
    assert rack.returncode == 0
    assert {line.split()[0] for line in said.splitlines() if line.startswith("d")} == {"d00", "d01", "d02"}
    assert all(f"inet 10.77.0.{host}/24 " in said for host in (10, 11, 12))
    assert _links() == before
    assert own not in _groups()


def test_a_share_of_a_processor_is_a_limit() -> None:
    """A device with a fifth of a processor that computes for a second of the clock gets no more than its share."""
    done = _run("run", "-n", "1", "--cpu", "0.2", "--", sys.executable, "-c", BURN)
    assert done.returncode == 0, done.stderr
    assert 0.0 < float(done.stdout) < 0.4


def test_the_exit_status_is_that_of_a_command_that_failed() -> None:
    """The rack ends with the status of the first command that failed."""
    assert _run("run", "-n", "2", "--", "sh", "-c", "exit $((RACK_INDEX * 3))").returncode == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_nothing_outlives_the_rack(number: signal.Signals, tmp_path: Path) -> None:
    """However the outer process ends, its devices end with it; the next rack removes what a kill -9 left."""
    before = _links()
    note = tmp_path / "up"
    command = ["sh", "-c", f"echo up > {note}-$RACK_INDEX; exec sleep 301.{os.getpid()}"]
    rack = subprocess.Popen([*RACK, "run", "-n", "2", "--cpu", "0.5", "--", *command], cwd=ROOT)
    own = f"{cgroups.PREFIX}{cgroups.stamp(rack.pid)}"
    try:
        _until(lambda: all(Path(f"{note}-{index}").exists() for index in (0, 1)))
        assert own in _groups()
        assert _sleepers()
    finally:
        rack.send_signal(number)
        code = rack.wait(WAIT_S)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    _until(lambda: not _sleepers())
    assert _links() == before
    _until(lambda: _collected(own))


def _sleepers() -> list[str]:
    """The processes of this test that are there still, zombies apart."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"301.{os.getpid()}".encode() in words:
            found.append(entry.parent.name)
    return found


def _collected(own: str) -> bool:
    cgroups.collect_garbage()
    return own not in _groups()


def test_a_cable_has_its_rate_and_can_be_pulled() -> None:
    """A mebibyte at 10 Mbit/s takes most of a second at the least; a device whose cable is out reaches nobody."""
    done = _run("lab", "--", sys.executable, "-m", "tests.rack.cables")
    assert done.returncode == 0, done.stderr
    took_s, *reached = done.stdout.split()
    assert 0.6 < float(took_s) < 30.0
    assert reached == ["True", "False", "True"]


def test_two_devices_find_each_other_and_answer(tmp_path: Path) -> None:
    """Two bare `meshnn join` on a switch meet by mDNS; the model added on one is answered from the other, exactly."""
    done = _run("lab", "--", sys.executable, "-m", "tests.rack.pair", str(tmp_path))
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in tmp_path.rglob("*.log"))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    assert done.stdout.strip() == "met, right, right"
