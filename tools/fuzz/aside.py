"""An event loop in a thread of its own, with a node on it: what live borders are fuzzed against."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from meshnn.config import Config
from meshnn.net.hello import Hello
from meshnn.net.memory import MemoryNetwork, MemoryTransport
from meshnn.net.security import Identity
from meshnn.net.transport import Handler, Limits
from meshnn.node.driver import Node
from meshnn.node.switchboard import codec
from meshnn.telemetry import captured

T = TypeVar("T")

PATIENCE_S = 60.0
MEMORY_BYTES = 64_000_000


class Aside:
    """A loop in a thread; whatever went wrong on it unseen is in `faults`."""

    def __init__(self) -> None:
        """Running."""
        self.faults: list[str] = []
        self._stack = ExitStack()
        self._entries: list[MutableMapping[str, Any]] = self._stack.enter_context(captured())
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, what: self.faults.append(f"the loop: {what}"[:600]))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Run something on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Begin something that lasts; what it raises is a fault."""
        ended = asyncio.run_coroutine_threadsafe(work, self._loop)
        ended.add_done_callback(lambda one: None if one.cancelled() else self._note(one.exception()))

    def _note(self, error: BaseException | None) -> None:
        if error is not None:
            self.faults.append(f"ended by {error!r}")

    def close(self) -> None:
        """Stop the loop; AssertionError where a fault was logged."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
        self._stack.close()
        said = [str(entry)[:900] for entry in self._entries if entry.get("log_level") in {"error", "critical"}]
        faults = [*self.faults, *said]
        assert not faults, f"{len(faults)} errors were logged: {faults[0]}"


class Stage:
    """A node without models on a network in memory, and whoever else joins that network."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet."""
        self.network = MemoryNetwork(seed=1)
        self._config = Config(name="fuzzed", memory_bytes=MEMORY_BYTES, disk_bytes=MEMORY_BYTES, state_dir=folder)
        self.node: Node | None = None

    async def begin(self, ready: asyncio.Event) -> None:
        """Be the node until it leaves."""
        made: list[MemoryTransport] = []

        def transport(identity: Identity, hello: Hello, handler: Handler) -> MemoryTransport:
            made.append(self.network.transport(identity.device_id, hello, handler, Limits(), codec()))
            return made[0]

        self.node = Node(self._config, transport, host=lambda: made[0].host)
        await self.node.start()
        try:
            await self.node.run(ready.set)
        finally:
            await self.node.stop()
