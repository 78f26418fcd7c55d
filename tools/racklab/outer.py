"""The rack from the outside: a process whose death, even by kill -9, ends every device and every interface."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from tools.racklab import cgroups
from tools.racklab.lab import INSIDE, PR_SET_PDEATHSIG, ROOTLESS

NEEDED = ("ip", "tc", "unshare", "mount")
BRIDGE = ("sh", "-c", "ip link add br0 type bridge && ip link add p0 type veth peer name p1")
SHAPER = ("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "50ms")
SIGNAL_EXIT = 128
SPACES = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc")
# Root of one's own namespaces: enough for switches, cables, rates and loss.
OWN_ROOT = ("--user", "--map-root-user")


def missing(*, quota: bool = True) -> str:
    """Why no rack can be had here, in one line; "" where it can. Without `quota`, no shares of a processor."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if absent:
        return f"the rack needs {', '.join(absent)} (Debian: iproute2, util-linux, mount)"
    if os.geteuid() != 0 and quota:
        return "the rack needs root for its processor shares; without --cpu it may do without"
    spaces = _spaces()
    for step, what in ((["true"], "namespaces"), (BRIDGE, "bridge or virtual cables"), (SHAPER, "token bucket")):
        done = subprocess.run([*spaces, *step], capture_output=True, check=False)
        if done.returncode:
            return f"the kernel gives no {what} here"
    return cgroups.missing() if quota else ""


def _spaces() -> list[str]:
    return [*SPACES, *(() if os.geteuid() == 0 else OWN_ROOT)]


def enter(command: Sequence[str], *, quota: bool = True) -> int:
    """Run a command inside fresh network, mount and process namespaces; its exit status.

    Without `quota` no root is needed, and no device gets a share of a processor.
    """
    reason = missing(quota=quota)
    if reason:
        sys.exit(f"rack: {reason}")
    rootless = {} if os.geteuid() == 0 else {ROOTLESS: "1"}
    if not rootless:
        cgroups.collect_garbage()
    process = subprocess.Popen(
        [*_spaces(), "--kill-child", *command],
        env={**os.environ, INSIDE: cgroups.stamp(os.getpid()), **rootless},
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread
    )
    received: list[int] = []

    def end(number: int, _: object) -> None:
        # unshare itself ignores SIGTERM while its child runs; with --kill-child its own death ends everything inside.
        received.append(number)
        process.kill()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        for base in (cgroups.ROOT / "cpu", cgroups.ROOT):
            own = base / f"{cgroups.PREFIX}{cgroups.stamp(os.getpid())}"
            if own.is_dir():
                cgroups.remove(own)
    if received:
        return SIGNAL_EXIT + received[0]
    return code if code >= 0 else SIGNAL_EXIT - code


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
