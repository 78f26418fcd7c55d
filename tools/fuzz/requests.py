"""The border of the API, without sockets: requests to the application of a node that lives on the same loop."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

from aiohttp import web

from meshnn.http.app import application
from meshnn.http.patience import Reception
from tools.fuzz.aside import Stage
from tools.fuzz.border import Border
from tools.fuzz.live import REQUESTS
from tools.fuzz.mutate import mutated

# Turns of the loop in which a request that waits for nothing is answered.
TURNS = 12
END_TURNS = 6
ODD = [
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n",
    b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nExpect: \xff\xfe\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nmore",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://127.0.0.1:1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HEAD /api/v1/status HTTP/1.1\r\nHost: localhost\r\nRange: bytes=9-1\r\nIf-Modified-Since: never\r\n\r\n",
    b"POST /api/v1/ask?top=1e400&deadline=-0 HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: br\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    b"GET /api/v1/models/%00%ff%2e%2e/card HTTP/1.1\r\nHost: [::1%25x]:99999\r\nOrigin: null\r\n"
    b'Cookie: "=;;\x7f\r\n\r\n',
]


class Line(asyncio.Transport):
    """A connection whose other end takes everything."""

    def __init__(self) -> None:
        """Open."""
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 7767)})
        self.answer = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Kept."""
        if not self.closed:
            self.answer += data

    def is_closing(self) -> bool:
        """Whether this end has closed it."""
        return self.closed

    def is_reading(self) -> bool:
        """Always."""
        return True

    def pause_reading(self) -> None:
        """As it likes."""

    def resume_reading(self) -> None:
        """As it likes."""

    def close(self) -> None:
        """The end is told by whoever plays the network."""
        self.closed = True

    def abort(self) -> None:
        """At once."""
        self.closed = True


class Served:
    """Requests of a connection each, spoilt; what is answered is HTTP, and never our own fault."""

    def __init__(self, folder: Path) -> None:
        """A node that lives, and its application."""
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it tells of every broken request at length
        self._loop = asyncio.new_event_loop()
        self._faults: list[str] = []
        self._loop.set_exception_handler(lambda _, what: self._faults.append(str(what)[:500]))
        self._stage = Stage(folder)
        self._reception = Reception()
        self._runner, self._life = self._loop.run_until_complete(self._begin())

    async def _begin(self) -> tuple[web.AppRunner, asyncio.Task[None]]:
        ready = asyncio.Event()
        life = self._loop.create_task(self._stage.begin(ready))
        await ready.wait()
        assert self._stage.node is not None
        runner = web.AppRunner(
            application(self._stage.node, self._reception), access_log=None, handler_cancellation=True
        )
        await runner.setup()
        assert runner.server is not None
        self._reception.serve(runner.server)
        return runner, life

    def draw(self, rng: random.Random) -> bytes:
        """A request, spoilt; never the one that ends the node."""
        return mutated(rng, rng.choice((*REQUESTS, *ODD)), REQUESTS).replace(b"leave", b"leaf")

    def take(self, given: object) -> None:
        """Let it come, look at the answer where there is one, and hang up."""
        assert isinstance(given, bytes)
        answer = bytes(self._loop.run_until_complete(self._call(given)))
        assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500")), f"answered {answer[:300]!r}"
        assert not answer or answer.startswith(b"HTTP/"), f"answered {answer[:80]!r}"
        assert not self._faults, f"the loop: {self._faults[0]}"

    async def _call(self, given: bytes) -> bytearray:
        line, protocol = Line(), self._reception()
        assert isinstance(protocol, asyncio.Protocol)
        protocol.connection_made(line)
        protocol.data_received(given)
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if line.closed:
                break
        protocol.connection_lost(None)
        for _ in range(END_TURNS):
            await asyncio.sleep(0)
        return line.answer

    def close(self) -> None:
        """The node lives, no connection is left, and then it ends."""
        assert not self._reception.connections, "connections are left"
        self._loop.run_until_complete(self._end())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        assert not self._faults, f"the loop: {self._faults[0]}"

    async def _end(self) -> None:
        assert self._stage.node is not None
        assert not self._life.done(), "the node ended"
        await self._runner.cleanup()
        self._stage.node.leave()
        await self._life


def _served(rng: random.Random, folder: Path) -> Served:
    return Served(folder / f"node-{rng.getrandbits(32):x}")


# Time is the whole loop's, the node's own affairs included.
BORDERS = (Border("request", _served, (), episode=20_000, share=0.2, again=False, limit_s=1.0, measures_memory=False),)
