"""Too few descriptors: 256, then none at all for a while."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from meshnn.client import LocalNode
from meshnn.errors import MeshError
from tools.acceptance.verdict import Verdict
from tools.borders.ground import MODEL, SMALL, Cpu, Ground, http_port, peer_port, process_of, status
from tools.processes import Device, until

LOCAL = "127.0.0.1"
LIMIT = 256
SPARE = 6
FLOOD_S = 10.0
CPU_PERCENT_MAX = 20.0
GOOD_PERCENT_MIN = 95.0
RECOVERY_S_MAX = 5.0
WAIT_S = 60.0


def descriptors(ground: Ground, verdict: Verdict) -> None:
    """Connections to both ports beyond the limit: no busy loop, links and callers at work go on, and it recovers."""
    a = ground.mesh.device("a", *SMALL, launch=_launch)
    b = ground.mesh.device("b", *SMALL)
    for device in (a, b):
        device.start()
    for device in (a, b):
        device.wait_ready()
    until(lambda: a.sees("a", "b"), WAIT_S, "the two meet")
    ground.add(b, MODEL)
    process = process_of(a)
    kept = ground.traffic(a, fresh=False)
    until(lambda: kept.ok > 0, WAIT_S, "somebody asks")
    verdict.figures["descriptors_at_rest"] = process.num_fds()
    idle = Cpu(process)
    threading.Event().wait(FLOOD_S)
    verdict.figures["cpu_before_percent"] = before = idle.percent
    _flood(verdict, a, "256", before)
    low = process.num_fds() + SPARE
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (low, LIMIT))
    _flood(verdict, a, "emfile", before)
    kept_good = kept.good_percent
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    verdict.figures["good_percent"], verdict.figures["asked"] = kept_good, kept.ok + kept.failed
    verdict.check(kept_good >= GOOD_PERCENT_MIN, f"{kept_good} % good: {kept.errors[:2]}")
    until(lambda: status(a)["health"]["state"] == "ok", WAIT_S, "its health comes back")
    verdict.check(a.sees("a", "b") and b.sees("a", "b"), "the two lost each other")


def _launch(
    command: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process that may have few descriptors."""
    words = ["sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh", *command]
    return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def _flood(verdict: Verdict, node: Device, name: str, idle_percent: float) -> None:
    """More connections than there are descriptors, held and held again for a while; then none."""
    ports, held = (peer_port(node), http_port(node)), list[socket.socket]()
    process, until_s = process_of(node), time.monotonic() + FLOOD_S
    cpu, most = Cpu(process), 0
    pause = threading.Event()
    while time.monotonic() < until_s:
        for port in ports:
            held += _connections(port, LIMIT // 2)
        most = max(most, process.num_fds())
        pause.wait(0.2)
        for connection in held[:-LIMIT]:
            connection.close()
        del held[:-LIMIT]
    verdict.figures[f"{name}_cpu_percent"], verdict.figures[f"{name}_descriptors_most"] = cpu.percent, most
    verdict.figures[f"{name}_accept_errors"] = node.log.count("accept")
    for connection in held:
        connection.close()
    verdict.figures[f"{name}_recovered_s"] = recovered = round(until(lambda: _answers(node), WAIT_S, "it answers"), 1)
    verdict.check(recovered <= RECOVERY_S_MAX, f"{name}: it answered only after {recovered} s")
    # What accepting and refusing hundreds of connections a second costs is no busy loop: that takes all there is.
    verdict.check(cpu.percent < CPU_PERCENT_MAX + idle_percent, f"{name}: {cpu.percent} % of a processor")


def _connections(port: int, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)
            made.append(connection)
            connection.connect((LOCAL, port))
    return made


def _answers(node: Device) -> bool:
    caller = LocalNode(http_port(node))
    try:
        return bool(caller.get("/api/v1/status", timeout_s=1.0))
    except MeshError:
        return False
    finally:
        caller.close()
