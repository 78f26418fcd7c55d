"""A thousand callers who say a byte a second, half of them in TLS: cut off, and everybody else is served."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field

from tools.acceptance.verdict import Verdict
from tools.borders.ground import Cpu, Ground, Traffic, api, peer_port, process_of
from tools.processes import Device, until

LOCAL = "127.0.0.1"
CALLERS = 1000
AT_ONCE = 50
SAY_EVERY_S = 1.0
FOR_S = 30.0
CLOSED_S_MAX = 10.0
GOOD_PERCENT_MIN = 95.0
JOIN_S = 60.0
SLOW_HEAD = b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 500
SLOW_BODY = b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"


@dataclass
class Callers:
    """What became of slow callers: seconds until each was hung up on, how many never were."""

    lasted_s: list[float] = field(default_factory=list)
    refused: int = 0
    left: int = 0


def peers(ground: Ground, verdict: Verdict) -> None:
    """At the port for peers; a device that joins meanwhile gets in."""
    a, _ = ground.pair()
    traffic = ground.traffic(a)
    _besiege(verdict, a, peer_port(a), traffic, b"no hello at all" * 40, ground)
    verdict.check(a.sees("a", "b"), "the two lost each other")


def http(ground: Ground, verdict: Verdict) -> None:
    """At the port of the API."""
    a, _ = ground.pair()
    traffic = ground.traffic(a)
    port = api(a).http_port
    _besiege(verdict, a, port, traffic, SLOW_HEAD, ground)
    callers = asyncio.run(_all(port, b"x" * 500, SLOW_BODY, CALLERS // 10))
    verdict.figures["bodies_closed_within_s"] = round(max(callers.lasted_s, default=0.0), 1)
    verdict.check(not callers.left and max(callers.lasted_s) <= CLOSED_S_MAX, "slow bodies were not cut off")


def _besiege(verdict: Verdict, node: Device, port: int, traffic: Traffic, said: bytes, ground: Ground) -> None:
    """The thousand at once, and again for as long as it lasts."""
    cpu, began = Cpu(process_of(node)), time.monotonic()
    descriptors: list[int] = []
    callers = asyncio.run(_waves(port, said, node, descriptors))
    newcomer = ground.mesh.device("c")
    newcomer.start()
    newcomer.wait_ready()
    verdict.figures |= {
        "connections": len(callers.lasted_s) + callers.refused + callers.left,
        "closed_within_s": round(max(callers.lasted_s, default=0.0), 1),
        "cpu_percent": cpu.percent,
        "descriptors_most": max(descriptors),
        "good_percent": traffic.good_percent,
        "asked": traffic.ok + traffic.failed,
        "p50_ms": traffic.p50_ms,
        "newcomer_joined_s": round(until(lambda: newcomer.sees("a"), JOIN_S, "a newcomer joins"), 1),
        "siege_s": round(time.monotonic() - began),
    }
    verdict.check(not callers.left, f"{callers.left} were never hung up on")
    verdict.check(max(callers.lasted_s) <= CLOSED_S_MAX, f"one lasted {max(callers.lasted_s):.1f} s")
    verdict.check(traffic.good_percent >= GOOD_PERCENT_MIN, f"{traffic.good_percent} % good: {traffic.errors[:2]}")
    newcomer.stop()


async def _waves(port: int, said: bytes, node: Device, descriptors: list[int]) -> Callers:
    """Waves of callers, each begun when the last is over, for half a minute."""
    total, until_s = Callers(), time.monotonic() + FOR_S
    while time.monotonic() < until_s:
        wave = asyncio.ensure_future(_all(port, said, b"", CALLERS))  # noqa: TID251 - awaited below
        while not wave.done():
            descriptors.append(process_of(node).num_fds())
            await asyncio.wait([wave], timeout=0.5)
        found = wave.result()
        total.lasted_s += found.lasted_s
        total.refused += found.refused
        total.left += found.left
    return total


async def _all(port: int, said: bytes, first: bytes, count: int) -> Callers:
    """So many callers together, every second one with the beginning of a TLS handshake (unless `first` is said)."""
    callers, hello = Callers(), _client_hello()
    gate = asyncio.Semaphore(AT_ONCE)
    words = [hello if number % 2 and not first else said for number in range(count)]
    await asyncio.gather(*(_call(port, word, first, callers, gate) for word in words))
    return callers


async def _call(port: int, said: bytes, first: bytes, callers: Callers, gate: asyncio.Semaphore) -> None:
    """One caller: connects, says a byte a second, until it is hung up on."""
    try:
        async with gate:
            reader, writer = await asyncio.open_connection(LOCAL, port)
    except OSError:
        callers.refused += 1
        return
    began = time.monotonic()
    ended = asyncio.ensure_future(_listen(reader))  # noqa: TID251 - awaited below
    writer.write(first)
    for byte in said:
        with suppress(OSError):
            writer.write(bytes((byte,)))
        done, _ = await asyncio.wait([ended], timeout=SAY_EVERY_S)
        if done or time.monotonic() - began > 3 * CLOSED_S_MAX:
            break
    if ended.done():
        callers.lasted_s.append(time.monotonic() - began)
    else:
        callers.left += 1
        ended.cancel()
    writer.transport.abort()


async def _listen(reader: asyncio.StreamReader) -> None:
    """Until the other end hangs up."""
    with suppress(OSError):
        while await reader.read(65536):
            pass


def _client_hello() -> bytes:
    """The beginning of a TLS handshake."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()
