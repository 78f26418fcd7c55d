"""Datagrams of strangers, of other meshes, of rings that are over, said again, and forged: nothing changes."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from meshnn.cluster.messages import Ping
from meshnn.net.security import mesh_tag
from meshnn.node.switchboard import codec
from meshnn.wire.datagram import DatagramHeader, encode_datagram
from tools.acceptance.verdict import Verdict
from tools.borders.ground import Cpu, Ground, peer_port, process_of, rss_bytes, status
from tools.fuzz.machines import DATAGRAMS
from tools.fuzz.mutate import mutated
from tools.fuzz.values import message
from tools.fuzz.wire import IDS
from tools.processes import Device, until

LOCAL = "127.0.0.1"
PACKETS = 1_000_000
PER_S = 10_000
FORGED = 100_000
FORGED_PER_S = 1000
AT_ONCE = 100
IDLE_S = 10.0
SETTLED_S = 60.0
CPU_PERCENT_MAX = 10.0
GROWTH_BYTES_MAX = 1 << 20
FORGED_GROWTH_BYTES_MAX = 32 << 20


def stranger(ground: Ground, verdict: Verdict) -> None:
    """10^6 packets at 10 000 a second: no state changes, and they cost a tenth of a processor at most."""
    (node,) = ground.mesh.start("a", options=("--memory", "100MB"))
    port, tag, me = peer_port(node), mesh_tag(ground.mesh.mesh), status(node)["self"]
    ping = codec().encode(Ping(1, "0" * 15 + "1"))  # type: ignore[arg-type]
    life = DatagramHeader(tag, IDS[0], "00000000000000aa", 1)
    replayed = encode_datagram(life, ping)
    kinds = [
        replayed,
        encode_datagram(msgspec.structs.replace(life, mesh_tag=mesh_tag("another")), ping),
        encode_datagram(msgspec.structs.replace(life, counter=2, key_id=3), ping + bytes(16)),
        encode_datagram(msgspec.structs.replace(life, counter=2, target=IDS[1]), ping),
        encode_datagram(msgspec.structs.replace(life, counter=2, sender=me), ping),
        random.Random(1).randbytes(200),
    ]
    _send([replayed] * AT_ONCE, port, AT_ONCE, PER_S)
    until(lambda: status(node)["members"][0]["speed"] > 0, SETTLED_S, "the node has measured itself")
    _idle(node)
    verdict.figures["cpu_idle_percent"] = _idle(node)
    before, memory = _state(node), rss_bytes(node)
    cpu, dropped = Cpu(process_of(node)), _dropped(port)
    sent_per_s = _send(kinds, port, PACKETS, PER_S)
    verdict.figures |= {
        "packets": PACKETS,
        "sent_per_s": sent_per_s,
        "cpu_percent": cpu.percent,
        "dropped_by_the_system": _dropped(port) - dropped,
        "grown_kib": (rss_bytes(node) - memory) >> 10,
    }
    verdict.check(cpu.percent < CPU_PERCENT_MAX, f"{cpu.percent} % of a processor")
    after = _state(node)
    verdict.check(after == before, f"the state changed: {[key for key in after if after[key] != before.get(key)]}")
    verdict.check(rss_bytes(node) - memory < GROWTH_BYTES_MAX, "memory grew")


def forged(ground: Ground, verdict: Verdict) -> None:
    """Valid datagrams of invented lives, which an open mesh cannot tell from true ones: nothing breaks or grows."""
    (node,) = ground.mesh.start("a", options=("--memory", "100MB"))
    port, tag, rng = peer_port(node), mesh_tag(ground.mesh.mesh), random.Random(3)
    made = codec()
    bodies: list[bytes] = []
    while len(bodies) < 2000:
        body = made.encode(message(rng, rng.choice(DATAGRAMS)))
        if len(body) <= 1200:
            bodies.append(body if rng.random() < 0.8 else mutated(rng, body)[:1200] or b"\0")
    packets = [
        encode_datagram(DatagramHeader(tag, rng.choice(IDS), f"{rng.getrandbits(64):016x}", number + 1), body)
        for number, body in enumerate(bodies * (FORGED // len(bodies)))
    ]
    _send(packets[: FORGED // 4], port, FORGED // 4, FORGED_PER_S)
    memory, cpu = rss_bytes(node), Cpu(process_of(node))
    sent_per_s = _send(packets[FORGED // 4 :], port, FORGED * 3 // 4, FORGED_PER_S)
    verdict.figures |= {
        "packets": FORGED,
        "sent_per_s": sent_per_s,
        "cpu_percent": cpu.percent,
        "grown_kib": (rss_bytes(node) - memory) >> 10,
        "rows": len(status(node)["members"]),
    }
    verdict.check(rss_bytes(node) - memory < FORGED_GROWTH_BYTES_MAX, "memory grew")
    verdict.check(not node.dead(), "the node ended")
    verdict.check(node.meshnn("ask", str(Path("examples") / "cat.png")).code == 0, "it answers no more")


def _state(node: Device) -> Any:  # noqa: ANN401 - JSON is any value
    """What a node knows of its mesh, without what breathes."""
    told = status(node)
    told.pop("tasks", None)
    for member in told["members"]:
        member.pop("free_mb", None)
        member.pop("process_mb", None)
    return json.loads(json.dumps(told))


def _idle(node: Device) -> float:
    """What a node uses of a processor when nothing happens."""
    cpu = Cpu(process_of(node))
    threading.Event().wait(IDLE_S)
    return cpu.percent


def _send(packets: Sequence[bytes], port: int, count: int, per_s: int) -> int:
    """Send `count` packets in turn, so many a second; how many a second went out."""
    pause, began = threading.Event(), time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for first in range(0, count, AT_ONCE):
            for number in range(first, min(first + AT_ONCE, count)):
                out.sendto(packets[number % len(packets)], (LOCAL, port))
            ahead_s = (first + AT_ONCE) / per_s - (time.monotonic() - began)
            if ahead_s > 0:
                pause.wait(ahead_s)
    return round(count / (time.monotonic() - began))


def _dropped(port: int) -> int:
    """Datagrams to a port that the system threw away for want of room."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            return int(words[-1])
    return 0
