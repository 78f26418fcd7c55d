"""`meshnn join` as a process: node, discovery, HTTP, and the file by which local commands find them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

from aiohttp import web

from meshnn.config import Config
from meshnn.device.records import NodeNote
from meshnn.errors import NodeError
from meshnn.http.app import application
from meshnn.net.discovery import Discovery
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.transport import Limits, Transport
from meshnn.node.driver import Node
from meshnn.node.switchboard import Switchboard, codec
from meshnn.telemetry import logger

HTTP_PORT = 7767
PORTS_TRIED = 200
HTTP_HOST = "127.0.0.1"
STOP_S = 5.0

_log = logger(__name__)


def listen_http(port: int | None) -> socket.socket:
    """The bound HTTP socket: an explicit port or the next free one; NodeError where it is in use."""
    for candidate in range(HTTP_PORT, HTTP_PORT + PORTS_TRIED) if port is None else (port,):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HTTP_HOST, candidate))
            bound.listen(128)
        except OSError as error:
            bound.close()
            if port is not None:
                raise NodeError(f"HTTP port {port} cannot be used: {error.strerror}; choose another") from error
            continue
        return bound
    raise NodeError(f"no free HTTP port from {HTTP_PORT} to {HTTP_PORT + PORTS_TRIED - 1}")


async def serve(config: Config, announce: Callable[[str], None]) -> int:
    """Live as a member of the mesh; the exit status: 0 after `leave`, 128 + N after signal N. NodeError."""
    received: list[int] = []
    async with AsyncExitStack() as stack:
        http_socket = listen_http(config.http_port)
        stack.callback(http_socket.close)
        http_port = http_socket.getsockname()[1]
        node = Node(config, _transport(config), http_port=http_port)
        stack.push_async_callback(node.stop)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, number, received, node)
        await node.start()
        await _serve_http(stack, node, http_socket)
        discovery = Discovery(node.me, node.boot, config.mesh, node.transport.port, config.interface, node.seen)
        stack.push_async_callback(discovery.stop)
        _write_note(node, http_port)
        line = f"{config.name} ({node.me[:12]}) joined mesh {config.mesh} on port {node.transport.port}"
        await _run(node, discovery, lambda: announce(line))
    return 128 + received[0] if received else 0


def _transport(config: Config) -> Callable[[Identity, Hello, Switchboard], Transport]:
    """The real network of a configuration."""

    def make(identity: Identity, hello: Hello, handler: Switchboard) -> Transport:
        return Neighbours(
            identity, hello, handler, Limits(), codec(), config.interface, named=[host for host, _ in config.peers]
        )

    return make


async def _run(node: Node, discovery: Discovery, ready: Callable[[], None]) -> None:
    """The node's life, with mDNS beside it; mDNS that fails is a warning, not an end."""
    async with asyncio.TaskGroup() as group:
        finding = group.create_task(_discover(discovery))
        await node.run(ready)
        finding.cancel()


async def _discover(discovery: Discovery) -> None:
    await discovery.start()


async def _serve_http(stack: AsyncExitStack, node: Node, bound: socket.socket) -> None:
    runner = web.AppRunner(application(node), access_log=None, shutdown_timeout=STOP_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, bound).start()


def _write_note(node: Node, http_port: int) -> None:
    """`node.json` tells the commands of this machine where the node is."""
    node.store.save_note(NodeNote(node.transport.port, http_port, os.getpid(), node.me, ""))


def _on_signal(number: int, received: list[int], node: Node) -> None:
    received.append(number)
    with suppress(RuntimeError):
        node.leave()
