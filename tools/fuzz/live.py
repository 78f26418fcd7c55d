"""Borders of a node that lives: its HTTP server, mDNS around it, and neighbours who send it whatever is valid."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
from aiohttp import web

from meshnn.cluster.member import BootId, DeviceId
from meshnn.errors import PeerError
from meshnn.http.app import listen
from meshnn.net.discovery import SERVICE, Discovery
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryTransport
from meshnn.net.security import mesh_tag
from meshnn.net.transport import Limits
from meshnn.node.messages import Chunk, RemoteAsk
from meshnn.node.switchboard import codec
from meshnn.plan.messages import Slice
from tools.fuzz.aside import Aside, Stage
from tools.fuzz.border import Border
from tools.fuzz.mutate import edge, mutated
from tools.fuzz.stranger import Stranger
from tools.fuzz.values import BOOTS, DEVICES, message, message_types

LOCAL = "127.0.0.1"
# A request that was cut short gets no answer: so long is waited for one, when so many later ones are open.
ANSWER_S = 0.01
OPEN_MAX = 32
MOMENT_S = 0.004
TOGETHER = 64


# -- HTTP

REQUESTS = [
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1:7767\r\nOrigin: http://localhost\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/models HTTP/1.1\r\nHost: [::1]:7767\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/plans HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"GET /api/v1/models/cat/card?deadline=0.01 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/models/..%2f..%2fetc/file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"DELETE /api/v1/models/cat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"DELETE /api/v1/models/cat/plan?deadline=0.01 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"PUT /api/v1/models/cat/plan?deadline=0.01 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b'Content-Length: 24\r\n\r\n{"lanes":[{"stages":[]}]}',
    b"POST /api/v1/models?name=cat&no_wait=1&deadline=0.01 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Length: 16\r\n\r\n\x1c\0\0\0TFL3\0\0\0\0\0\0\0\0",
    b"POST /api/v1/ask?deadline=0.01&top=5&tensors=1&model=cat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n\x89PNG\r\r\n0\r\n\r\n",
    b"POST /api/v1/ask?deadline=0.01&source=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Length: 4\r\nContent-Encoding: gzip\r\nExpect: 100-continue\r\n\r\nPK\x03\x04",
]


class Requests:
    """Requests over real sockets to the application of a node that lives; none may be answered as our own fault."""

    def __init__(self, folder: Path) -> None:
        """Serving."""
        self._aside = Aside()
        self._stage = Stage(folder)
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it tells of every broken request at length
        ready = asyncio.Event()
        self._aside.start(self._stage.begin(ready))
        self._port, self._runner = self._aside.call(self._serve(ready))
        self._open: deque[tuple[socket.socket, bytes]] = deque()

    async def _serve(self, ready: asyncio.Event) -> tuple[int, web.AppRunner]:
        await ready.wait()
        assert self._stage.node is not None
        self._bound = socket.create_server((LOCAL, 0))
        return self._bound.getsockname()[1], await listen(self._stage.node, self._bound)

    def draw(self, rng: random.Random) -> bytes:
        """A request, spoilt; never the one that ends the node."""
        return mutated(rng, rng.choice(REQUESTS), REQUESTS).replace(b"leave", b"leaf")

    def take(self, given: object) -> None:
        """Send it, and look at the answers to earlier ones."""
        assert isinstance(given, bytes)
        connection = socket.create_connection((LOCAL, self._port), timeout=5.0)
        with contextlib.suppress(OSError):
            connection.sendall(given)
        self._open.append((connection, given))
        if len(self._open) > OPEN_MAX:
            self._look(*self._open.popleft())

    def _look(self, connection: socket.socket, given: bytes) -> None:
        """What a request was answered, where it was."""
        answer = b""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(ANSWER_S)
            while len(answer) < 4096 and (piece := connection.recv(4096)):
                answer += piece
        assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500")), f"{answer[:300]!r} to {given[:300]!r}"
        assert not answer or answer.startswith(b"HTTP/"), f"{answer[:80]!r} to {given[:300]!r}"

    def close(self) -> None:
        """The node still answers; nothing was logged as our own fault."""
        while self._open:
            self._look(*self._open.popleft())
        with socket.create_connection((LOCAL, self._port), timeout=30.0) as connection:
            connection.sendall(REQUESTS[0])
            assert connection.recv(4096).startswith(b"HTTP/1.1 200"), "the node answers no more"
        self._aside.call(self._runner.cleanup())
        self._bound.close()
        _end(self._aside, self._stage)


def _end(aside: Aside, stage: Stage) -> None:
    async def leave() -> None:
        assert stage.node is not None
        stage.node.leave()
        await asyncio.sleep(1.0)

    aside.call(leave())
    aside.close()


# -- neighbours


class Neighbourhood:
    """A member and a visitor send a living node every message there is, and payloads with every header."""

    def __init__(self, folder: Path) -> None:
        """Linked."""
        self._aside = Aside()
        self._stage = Stage(folder)
        self._ends: list[tuple[MemoryTransport, Stranger]] = []
        self._taken = 0
        ready = asyncio.Event()
        self._aside.start(self._stage.begin(ready))
        self._aside.call(self._link(ready))

    async def _link(self, ready: asyncio.Event) -> None:
        await ready.wait()
        assert self._stage.node is not None
        for letter, boot, visitor in ((DEVICES[0], BOOTS[0], False), (DEVICES[1], BOOTS[1], True)):
            hello = Hello("home", letter[:1], BootId(boot), visitor=visitor)
            stranger = Stranger()
            end = self._stage.network.transport(DeviceId(letter), hello, stranger, Limits(), codec())
            await end.start()
            self._ends.append((end, stranger))
        await self._redial()

    async def _redial(self) -> None:
        assert self._stage.node is not None
        node = self._stage.node
        for end, stranger in self._ends:
            if not stranger.linked.is_set():
                end.dial(self._stage.network.host_of(node.me), node.transport.port)
                await stranger.linked.wait()

    def draw(self, rng: random.Random) -> tuple[int, msgspec.Struct, int]:
        """Who says what, with how large a payload (below zero: as a control message)."""
        kind = rng.choice(message_types() if rng.random() < 0.7 else (Slice, Chunk, RemoteAsk))
        said = message(rng, kind)
        return rng.randrange(2), said, rng.choice((0, 1, 100, 5000)) if rng.random() < 0.4 else -1

    def take(self, given: object) -> None:
        """Send it; every so often the node gets a moment to choke on what it has."""
        assert isinstance(given, tuple)
        who, said, size = given
        self._taken += 1
        self._aside.call(self._send(who, said, size, rest=self._taken % TOGETHER == 0))

    async def _send(self, who: int, said: msgspec.Struct, size: int, *, rest: bool) -> None:
        end, stranger = self._ends[who]
        if size < 0:
            end.send(stranger.peer, said)
        else:
            await end.send_tensors(stranger.peer, said, [memoryview(bytes(size))])
        if rest:
            await asyncio.sleep(MOMENT_S)
            await self._redial()

    def close(self) -> None:
        """Nothing was logged as our own fault."""

        async def stop() -> None:
            await asyncio.sleep(0.1)
            for end, _ in self._ends:
                await end.stop()

        self._aside.call(stop())
        _end(self._aside, self._stage)


# -- mDNS

GROUP = ("224.0.0.251", 5353)
MESH = "fuzzed"
# A stranger's names wait for their records, some at a time: so long a good one may have to wait behind them.
FOUND_S = 150.0
PACED_S = 0.0002


def _name(text: str) -> bytes:
    parts = [part.encode() for part in text.split(".") if part]
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def _record(name: str, kind: int, data: bytes, *, unique: bool = True) -> bytes:
    return _name(name) + struct.pack(">HHIH", kind, 0x8001 if unique else 1, 120, len(data)) + data


def announcement(label: str, port: int, tag: str, host: str = LOCAL) -> bytes:
    """The packet by which a node announces itself: PTR, SRV, TXT and A."""
    instance, server = f"{label}.{SERVICE}", f"{label}.local."
    texts = (b"v=1", b"port=" + str(port).encode(), b"mesh=" + tag.encode())
    records = [
        _record(SERVICE, 12, _name(instance), unique=False),
        _record(instance, 33, struct.pack(">HHH", 0, 0, port) + _name(server)),
        _record(instance, 16, b"".join(bytes((len(text),)) + text for text in texts)),
        _record(server, 1, socket.inet_aton(host)),
    ]
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


class Announcements:
    """mDNS packets around a node that looks; it finds only what could be dialled, and a good one at the end."""

    def __init__(self, rng: random.Random) -> None:
        """Looking."""
        self._aside = Aside()
        self._tag = mesh_tag(MESH).hex()
        self._good = [announcement(f"{letter * 12}-00{n:02}", 7000 + n, self._tag) for n, letter in enumerate("abcd")]
        self._found: set[tuple[str, int]] = set()
        self._odd: list[tuple[str, int]] = []
        self._news = threading.Event()
        self._discovery = self._aside.call(self._look())
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((LOCAL, 0))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOCAL))

    async def _look(self) -> Discovery:
        made = Discovery(DeviceId("z" * 26), BootId("0" * 16), MESH, 0, LOCAL, self._seen)
        await made.start()
        return made

    def _seen(self, host: str, port: int) -> None:
        self._found.add((host, port))
        try:
            socket.inet_aton(host)
            assert 0 < port < 65536
        except (OSError, AssertionError):
            self._odd.append((host, port))
        self._news.set()

    def draw(self, rng: random.Random) -> bytes:
        """A packet, spoilt, now and then of a new instance."""
        if rng.random() < 0.05:
            port = edge(rng) % 65536
            return announcement(f"{rng.choice('abcdefgh') * 12}-{rng.randrange(65536):04x}", port, self._tag)
        return mutated(rng, rng.choice(self._good), self._good)

    def take(self, given: object) -> None:
        """Send it to everybody who listens, no faster than it is read."""
        assert isinstance(given, bytes)
        with contextlib.suppress(OSError):
            self._socket.sendto(given[:8000], GROUP)
        threading.Event().wait(PACED_S)

    def close(self) -> None:
        """A good announcement is still found; nothing else was."""
        good, until = (LOCAL, 7999), time.monotonic() + FOUND_S
        turn = 0
        while good not in self._found and time.monotonic() < until:
            turn += 1
            self._socket.sendto(announcement(f"{'y' * 12}-{turn:04}", good[1], self._tag), GROUP)
            self._news.clear()
            self._news.wait(1.0)
        self._aside.call(self._discovery.stop())
        self._socket.close()
        self._aside.close()
        assert good in self._found, "a good announcement was not found any more"
        assert not self._odd, f"found what nobody can dial: {self._odd[:3]}"


def _requests(rng: random.Random, folder: Path) -> Requests:
    return Requests(folder / f"node-{rng.getrandbits(32):x}")


def _neighbourhood(rng: random.Random, folder: Path) -> Neighbourhood:
    return Neighbourhood(folder / f"node-{rng.getrandbits(32):x}")


def _announcements(rng: random.Random, folder: Path) -> Announcements:
    return Announcements(rng)


# Time is that of this side of the socket: a bound for what the node does would be its log and its answers.
BORDERS = (
    Border("http", _requests, (), episode=20_000, share=0.02, again=False, limit_s=5.0, measures_memory=False),
    # A header too large for any peer is refused by the stranger's own end.
    Border(
        "node",
        _neighbourhood,
        (PeerError,),
        episode=10_000,
        share=0.05,
        again=False,
        limit_s=5.0,
        measures_memory=False,
    ),
    Border("mdns", _announcements, (), episode=20_000, share=0.1, again=False, limit_s=5.0, measures_memory=False),
)
