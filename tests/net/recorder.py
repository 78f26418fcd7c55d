"""A handler that remembers what happened to it, and the transports of a test, started and surely stopped."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.transport import Address, Limits
from meshnn.wire.codec import Codec

DEADLINE_S = 60.0
LOCAL = "127.0.0.1"
# No other process on this machine has a node of this mesh.
MESH = f"test-{os.getpid()}"
_boots = itertools.count(1)


class Note(msgspec.Struct, frozen=True):
    """A message of the tests."""

    text: str
    raw: bytes = b""


class Later(msgspec.Struct, frozen=True):
    """A message that only some of the test's nodes know."""

    text: str


CODEC = Codec((Note,))
NEWER_CODEC = Codec((Note, Later))


def new_boot() -> BootId:
    """A boot id that no other life in this process has."""
    return BootId(f"{next(_boots):016x}")


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds, giving way to the loop; fails after a minute."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0)


class Recorder:
    """A `Handler` that keeps every event as a tuple: its name, then what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.payloads: list[bytes] = []
        self.admits = True
        self._news = asyncio.Event()

    def _note(self, *event: object) -> None:
        self.events.append(event)
        self._news.set()

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """Remembers."""
        self._note("linked", device_id, boot_id, hello, address)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """Remembers."""
        self._note("unlinked", device_id, evidence)

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """Remembers."""
        self._note("unreachable", address, evidence)

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Remembers."""
        self._note("message", device_id, boot_id, message)

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """Remembers."""
        self._note("datagram", device_id, boot_id, message, address)

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Remembers; says what it was set to say."""
        self._note("admit", device_id, meta_message, payload_bytes)
        return self.admits

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """Remembers."""
        self.payloads.append(bytes(payload))
        self._note("tensors", device_id, boot_id, meta_message, len(payload))

    def of(self, *beginning: object) -> list[tuple[object, ...]]:
        """The events that begin so."""
        return [event for event in self.events if event[: len(beginning)] == beginning]

    async def until(self, *beginning: object, times: int = 1) -> tuple[object, ...]:
        """Waits for the event that begins so (the `times`-th); fails after a minute, saying what came instead."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while len(self.of(*beginning)) < times:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"no {beginning} in {self.events}")
        return self.of(*beginning)[times - 1]


class Peer:
    """One life of one device with its recorder."""

    def __init__(self, identity: Identity, hello: Hello, transport: Neighbours, recorder: Recorder) -> None:
        self.identity = identity
        self.hello = hello
        self.transport = transport
        self.recorder = recorder

    @property
    def id(self) -> DeviceId:
        """Its device id."""
        return self.identity.device_id

    def dial(self, other: Peer) -> None:
        """Dials another on the loopback interface."""
        self.transport.dial(LOCAL, other.transport.port)


StartPeer = Callable[..., Awaitable[Peer]]


async def start_peer(
    folder: Path, mesh: str = MESH, limits: Limits | None = None, codec: Codec = CODEC, boot: BootId | None = None
) -> Peer:
    """A device that lives in `folder`, listening on the loopback interface."""
    identity = Identity.load(folder)
    hello = Hello(mesh=mesh, name=folder.name, boot_id=boot or new_boot())
    recorder = Recorder()
    transport = Neighbours(identity, hello, recorder, limits or Limits(), codec, LOCAL)
    await transport.start()
    return Peer(identity, hello, transport, recorder)


async def link(a: Peer, b: Peer) -> None:
    """Links two peers and waits until both know."""
    a.dial(b)
    await a.recorder.until("linked", b.id)
    await b.recorder.until("linked", a.id)
