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
from tools.racklab.lab import INSIDE, PR_SET_PDEATHSIG

NEEDED = ("ip", "tc", "unshare", "mount")


def missing() -> str:
    """Why no rack can be had here, in one line; "" where it can."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if absent:
        return f"the rack needs {', '.join(absent)} (Debian: iproute2, util-linux, mount)"
    if os.geteuid() != 0:
        return "the rack needs root for its network namespaces and processor shares"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "the kernel gives no network namespaces here"


def enter(command: Sequence[str]) -> int:
    """Run a command inside fresh network, mount and process namespaces; its exit status."""
    reason = missing()
    if reason:
        sys.exit(f"rack: {reason}")
    cgroups.collect_garbage()
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*spaces, *command],
        env={**os.environ, INSIDE: cgroups.stamp(os.getpid())},
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for base in (cgroups.ROOT / "cpu", cgroups.ROOT):
            own = base / f"{cgroups.PREFIX}{cgroups.stamp(os.getpid())}"
            if own.is_dir():
                cgroups.remove(own)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
