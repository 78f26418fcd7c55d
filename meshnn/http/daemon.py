"""`meshnn join` as a process: node, discovery, HTTP, and the file by which local commands find them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import NoReturn

import psutil

from meshnn.config import Config
from meshnn.device.records import NodeNote
from meshnn.errors import MeshError, NodeError
from meshnn.http.app import listen
from meshnn.http.patience import Patience
from meshnn.net.discovery import Discovery
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity, forget_key
from meshnn.net.sockets import descriptors
from meshnn.net.tasks import contained
from meshnn.net.transport import Limits, Transport
from meshnn.node.driver import Node
from meshnn.node.switchboard import Switchboard, codec
from meshnn.telemetry import logger

HTTP_PORT = 7767
PORTS_TRIED = 200
HTTP_HOST = "127.0.0.1"
# What is under way at the end gets so long to be answered, and everything together so long to end, in seconds.
HTTP_STOP_S = 0.4
STOP_S = 1.7
# Threads for the disk, photos, searches and trials: many may wait long, and the election's disk write must not.
THREADS = 32

End = Callable[[], Coroutine[None, None, None]]

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


def run(config: Config, announce: Callable[[str], None]) -> NoReturn:
    """Be a node, then end this process with its exit status; NodeError where it cannot begin.

    The process ends at once: a search, a decoded photo or a model's trial in some thread may take minutes more.
    """
    # What imports made stays for good: looking through it at every full collection would stop the loop for 50 ms.
    gc.freeze()
    with asyncio.Runner() as runner:
        try:
            code = runner.run(serve(config, announce))
        except BaseExceptionGroup as group:
            _log.error("node_broke", exc_info=group)
            code = 1
        _end_process(code)


def _end_process(code: int) -> NoReturn:
    """Leave without waiting for threads; children, which are trials of models, go with us."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


async def serve(config: Config, announce: Callable[[str], None]) -> int:
    """Live as a member of the mesh; the exit status: 0 after `leave`, 128 + N after signal N. NodeError.

    Where another running device has this one's key (a cloned disk), life begins anew under another key.
    """
    while True:
        code, key_taken = await _one_life(config, announce)
        if not key_taken:
            return code
        await asyncio.to_thread(forget_key, config.state_dir)


async def _one_life(config: Config, announce: Callable[[str], None]) -> tuple[int, bool]:
    """The exit status of one life, and whether its key turned out to be another device's."""
    received: list[int] = []
    ends: list[End] = []
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="meshnn"))
    with ExitStack() as stack:
        http_socket = listen_http(config.http_port)
        stack.callback(http_socket.close)
        http_port = http_socket.getsockname()[1]
        node = Node(config, _transport(config), http_port=http_port)
        stack.callback(node.store.unlock)
        ends.append(node.stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, number, received, node)
        try:
            await node.start()
            await _serve_http(ends, node, http_socket)
            discovery = Discovery(node.me, node.boot, config.mesh, node.transport.port, config.interface, node.seen)
            ends.append(discovery.stop)
            _write_note(node, http_port)
            line = f"{config.name} ({node.me[:12]}) joined mesh {config.mesh} on port {node.transport.port}"
            await _run(node, discovery, lambda: announce(line))
        finally:
            await _end(ends)
    return 128 + received[0] if received else 0, node.key_taken and not received


async def _end(ends: Iterable[End]) -> None:
    """End every part at the same time, and wait no longer than a person would."""
    try:
        async with asyncio.timeout(STOP_S), asyncio.TaskGroup() as group:
            for end in ends:
                group.create_task(_ended(end))
    except TimeoutError:
        _log.warning("stopped_in_haste")


async def _ended(end: End) -> None:
    with suppress(MeshError):
        await contained(end(), "the end of the node")


def _transport(config: Config) -> Callable[[Identity, Hello, Switchboard], Transport]:
    """The real network of a configuration; where descriptors are few, strangers get fewer of them."""
    limits = Limits(half_open=min(Limits().half_open, descriptors() // 8))

    def make(identity: Identity, hello: Hello, handler: Switchboard) -> Transport:
        return Neighbours(
            identity, hello, handler, limits, codec(), config.interface, named=[host for host, _ in config.peers]
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


async def _serve_http(ends: list[End], node: Node, bound: socket.socket) -> None:
    """Serve the API until the end."""
    patience = Patience(connections=min(Patience().connections, descriptors() // 4))
    runner = await listen(node, bound, patience, stop_s=HTTP_STOP_S)
    ends.append(runner.cleanup)


def _write_note(node: Node, http_port: int) -> None:
    """`node.json` tells the commands of this machine where the node is; without it the node serves its peers alone."""
    try:
        node.store.save_note(NodeNote(node.transport.port, http_port, os.getpid(), node.me, ""))
    except NodeError as error:
        _log.error("note_not_written", reason=str(error), do="make room, then start the node again")
        node.trouble("disk (node.json)", f"{error}; the commands of this device do not find its node")


def _on_signal(number: int, received: list[int], node: Node) -> None:
    received.append(number)
    with suppress(RuntimeError):
        node.leave()
