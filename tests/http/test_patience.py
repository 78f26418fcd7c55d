"""Slow callers of the HTTP server are cut off, and cost the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from meshnn.http.guard import errors
from meshnn.http.patience import Patience, Reception, pieces
from tests.net.recorder import eventually

LOCAL = "127.0.0.1"
SHORT = Patience(head_s=0.3, idle_s=0.5, body_s=0.3, body_bytes=100, stall_s=0.5, connections=4, linger_s=0.1)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT_S = 20.0


class Server:
    """A server that says hello, counts bodies and gives out 64 MB; and those who call it."""

    def __init__(self, reception: Reception, port: int) -> None:
        """It runs."""
        self.reception = reception
        self.port = port
        self.held = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def call(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A caller who says this."""
        reader, writer = await asyncio.open_connection(LOCAL, self.port)
        self._writers.append(writer)
        writer.write(data)
        return reader, writer

    async def part(self) -> None:
        """All callers go."""
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def served(patience: Patience) -> AsyncIterator[Server]:
    """A server of this patience."""
    reception = Reception(patience)
    made = Server(reception, 0)

    async def hello(request: web.Request) -> web.Response:
        if "hold" in request.query:
            await made.held.wait()
        return web.Response(text="hello")

    async def count(request: web.Request) -> web.Response:
        return web.Response(text=str(sum([len(piece) async for piece in pieces(request, patience)])))

    async def much(request: web.Request) -> web.Response:
        return web.Response(body=io.BytesIO(bytes(64 << 20)))

    app = web.Application(middlewares=[reception.middleware, errors])
    app.add_routes([web.get("/", hello), web.post("/", count), web.get("/much", much)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, lingering_time=patience.linger_s)
    await runner.setup()
    assert runner.server is not None
    reception.serve(runner.server)
    server = await asyncio.get_running_loop().create_server(reception, LOCAL, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.held.set()
        await made.part()
        server.close()
        await runner.cleanup()


async def said(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, however it ends."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(WAIT_S):
            while piece := await reader.read(65536):
                heard += piece
    return heard


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", GET[:-2], b"\x16\x03\x01\x02\x00\x01"], ids=repr)
async def test_a_head_that_does_not_come_whole_ends_the_connection(beginning: bytes) -> None:
    """Nothing, half a line, a head without its end, a TLS hello: 408 (or the parser's 400), and the end."""
    async with served(SHORT) as server:
        reader, _ = await server.call(beginning)
        assert (await said(reader)).split()[1] in {b"408", b"400"}
        await eventually(lambda: server.reception.connections == 0)


@pytest.mark.parametrize("pieces_of", [1 << 20, 1000])
async def test_a_head_without_end_is_refused_before_anybody_keeps_it(pieces_of: int) -> None:
    """More than a head can be, at once or in pieces: 431; a head that is whole lets its body be as long as it likes."""
    patience = Patience(connections=4)
    endless = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000
    whole = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
    words: list[bytes] = []
    async with served(patience) as server:
        for _ in range(2):
            reader, writer = await server.call(whole)
            assert b"\r\n\r\n300000" in await reader.readuntil(b"300000")
            writer.write(whole)
            assert b"\r\n\r\n300000" in await reader.readuntil(b"300000")
            reader, writer = await server.call()
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(endless), pieces_of):
                    writer.write(endless[at : at + pieces_of])
                    await writer.drain()
            words += (await said(reader)).split()[1:2]
        # What is still on its way when the connection ends may cost a caller the answer, not all of them.
        assert set(words) == {b"431"}
        await eventually(lambda: server.reception.connections == 2)


async def test_a_head_that_drips_ends_the_connection() -> None:
    """One byte after the other does not begin the time anew."""
    async with served(SHORT) as server:
        reader, writer = await server.call(b"GET / HTTP/1.1\r\nX: ")
        loop = asyncio.get_running_loop()
        ended, began = loop.create_task(said(reader)), loop.time()
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.02)
        assert loop.time() - began < WAIT_S / 2
        assert ended.result().split()[1] == b"408"


async def test_between_two_requests_there_is_more_time() -> None:
    """A connection waits longer for the next request than for the rest of one that has begun."""
    async with served(msgspec.structs.replace(SHORT, idle_s=60.0)) as server:
        slow, _ = await server.call()
        reader, writer = await server.call(GET)
        await reader.readuntil(b"hello")
        assert (await said(slow)).split()[1] == b"408"
        writer.write(GET)
        await reader.readuntil(b"hello")
        writer.write(b"G")
        assert (await said(reader)).split()[1] == b"408"


async def test_an_idle_connection_ends_without_a_word() -> None:
    """Nobody asked anything: an answer would be taken for that of the next request."""
    async with served(SHORT) as server:
        reader, _ = await server.call(GET)
        await reader.readuntil(b"hello")
        assert await said(reader) == b""


async def test_a_body_that_drips_is_answered_with_408() -> None:
    """Below so many bytes in so long; one that comes is taken."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
    async with served(SHORT) as server:
        reader, _ = await server.call(head + b"x")
        answer = await said(reader)
        assert answer.split()[1] == b"408"
        assert b"too slowly" in answer
        reader, _ = await server.call(head + bytes(1000))
        assert (await said(reader)).endswith(b"1000")


async def test_an_answer_nobody_takes_is_given_up() -> None:
    """A caller that asks for much and does not read is cut off; the buffers of the system hold less."""
    async with served(SHORT) as server:
        with socket.create_connection((LOCAL, server.port)) as deaf:
            deaf.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: server.reception.connections == 1)
            await eventually(lambda: server.reception.connections == 0)


async def test_of_too_many_the_longest_waiting_goes_first() -> None:
    """Callers at work keep their place; where all are at work, the next one is told 503."""
    async with served(msgspec.structs.replace(SHORT, head_s=60.0, idle_s=60.0)) as server:
        waiting = [await server.call() for _ in range(SHORT.connections)]
        await eventually(lambda: server.reception.connections == SHORT.connections)
        reader, _ = await server.call(GET)
        await reader.readuntil(b"hello")
        assert (await said(waiting[0][0])).split()[1] == b"503"
        for _ in range(SHORT.connections):
            await server.call(GET.replace(b"/ ", b"/?hold=1 "))
        await eventually(lambda: not any(guest.waiting for guest in server.reception._guests.values()))
        reader, _ = await server.call()
        assert (await said(reader)).split()[1] == b"503"
        assert server.reception.connections == SHORT.connections
