"""A program as a caller of a mesh: linked to a few of its nodes, each question answered once by whichever lives.

    async with meshnn.connect() as mesh:
        answer = await mesh.ask(Path("cat.jpg"))
        print(answer.report["predictions"][0]["label"])

A caller is no member: nodes answer it and owe it nothing else. The node that is asked is the request's origin; when it
dies its requests die with it, so the caller asks another one, under the same name and within the same deadline.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.config import Config, load
from meshnn.device import records
from meshnn.errors import BusyError, DeadlineError, MeshError, NodeError, NoMeshError, PeerError, from_code
from meshnn.input_file import check_size, read_file
from meshnn.net.discovery import Discovery
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.tasks import TaskSet
from meshnn.net.transport import Address, Limits
from meshnn.node.messages import BUSY_MS_MAX, Busy, Others, RemoteAnswer, RemoteAsk
from meshnn.node.switchboard import codec

ASK_DEADLINE_S = 30.0
# How long to look for a mesh: the notes measured 0.1 s for a late joiner to hear the others, 1.5 s at worst.
LOOK_S = 1.5
# So many nodes are linked at once: one answers, the others are there when it dies.
LINKS = 3
REDIAL_S = 1.0
ADDRESSES_MAX = 64
ANSWER_BYTES_MAX = 256 << 20
# What a node's own word on a deadline may take to come.
SLACK_S = 2.0
# A node that was too busy a moment ago is asked whether it would take a question before its body is sent.
ASK_FIRST_S = 5.0
# A node that ends says so, and another one can answer; every other error is an answer.
_STOPPING = "node_error"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    `report` is what `meshnn ask --json` prints; `arrays` an npz of raw tensors, empty unless asked for; `asked` how
    many times a node was asked: more than once where one went away.
    """

    report: dict[str, Any]
    arrays: bytes
    asked: int

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The raw tensors by name (`input:NAME`, `output:NAME`); empty unless asked for."""
        if not self.arrays:
            return {}
        with np.load(io.BytesIO(self.arrays), allow_pickle=False) as held:
            return dict(held)


@dataclass(slots=True)
class _Waiting:
    host: DeviceId
    answer: asyncio.Future[tuple[bytes, bytes]]


class _Desk:
    """`net.transport.Handler` of a caller: who is linked, where others are, and which answers are waited for."""

    def __init__(self) -> None:
        self.transport: Neighbours | None = None
        self.linked: dict[DeviceId, int] = {}
        self.addresses: dict[Address, None] = {}
        self.waiting: dict[str, _Waiting] = {}
        self._links = 0
        self._news = asyncio.Event()

    def look_at(self, host: str, port: int) -> None:
        """An address where a node may be; the newest are kept."""
        self.addresses.pop((host, port), None)
        self.addresses[host, port] = None
        if len(self.addresses) > ADDRESSES_MAX:
            del self.addresses[next(iter(self.addresses))]
        self.dial_more()

    def dial_more(self) -> None:
        """Call known addresses while too few nodes are linked."""
        for host, port in list(self.addresses):
            if self.transport is not None and len(self.linked) < LINKS:
                self.transport.dial(host, port)

    async def link_not_in(self, tried: set[int]) -> tuple[DeviceId, int]:
        """The node linked longest over a link that was not tried yet; waits for one."""
        while True:
            for device, link in self.linked.items():
                if link not in tried:
                    return device, link
            await self._news.wait()

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """A node to ask; another caller is none."""
        del boot_id, address
        if hello.visitor:
            return
        self._links += 1
        self.linked.pop(device_id, None)
        self.linked[device_id] = self._links
        self._tell()

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """The node is gone, and with it every question it was asked."""
        self.linked.pop(device_id, None)
        for waiting in self.waiting.values():
            if waiting.host == device_id and not waiting.answer.done():
                waiting.answer.set_exception(PeerError(f"{device_id[:12]} went away ({evidence})"))
        self.dial_more()

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """An address where nobody answers is no mesh; it is tried again."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """Where the other nodes are, and for how long one cannot answer pings."""
        match message:
            case Others(addresses):
                for address in addresses:
                    self.look_at(address.host, address.port)
            case Busy(for_ms) if self.transport is not None:
                self.transport.excuse(device_id, min(max(for_ms, 0), BUSY_MS_MAX) / 1000)
            case _:
                return

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """A caller takes no part in membership."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether this is an answer that is waited for."""
        if not isinstance(meta_message, RemoteAnswer) or payload_bytes > ANSWER_BYTES_MAX:
            return False
        waiting = self.waiting.get(meta_message.ask)
        return waiting is not None and waiting.host == device_id

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """An answer: its JSON, then the tensors."""
        del boot_id
        waiting = self.waiting.get(meta_message.ask) if isinstance(meta_message, RemoteAnswer) else None
        if waiting is None or waiting.host != device_id or waiting.answer.done():
            return
        assert isinstance(meta_message, RemoteAnswer)
        size = meta_message.json_bytes
        waiting.answer.set_result((bytes(payload[:size]), bytes(payload[size:])))

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Mesh:
    """A mesh as a caller sees it; made by `connect`. Questions may be asked at the same time."""

    def __init__(self, transport: Neighbours, desk: _Desk) -> None:
        """Links are `desk`'s affair."""
        self._transport = transport
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._busy_until: dict[DeviceId, float] = {}

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """The ids of the nodes linked now, the one that is asked first; empty while all are away."""
        return tuple(self._desk.linked)

    async def ask(
        self,
        given: bytes | Path | str,
        *,
        model: str | None = None,
        top: int = 5,
        deadline_s: float = ASK_DEADLINE_S,
        tensors: bool = False,
        source: str = "",
    ) -> Answer:
        """Answer a photo or npz, given as its bytes or its path: exactly one answer or one error, within the deadline.

        Raises InputError, UnknownModelError, NoPlanError, ModelError, BusyError as the node that was asked says;
        DeadlineError where none answered in time. A node that goes away meanwhile costs no question.
        """
        if isinstance(given, bytes):
            check_size(len(given), source or "the input")
            data, name = given, source or "input"
        else:
            data, name = await asyncio.to_thread(read_file, Path(given)), source or str(given)
        line, arrays, asked = await self.ask_raw(data, name, model, top, deadline_s, tensors=tensors)
        return Answer(json.loads(line), arrays, asked)

    async def ask_raw(
        self, data: bytes, source: str, model: str | None, top: int, deadline_s: float, *, tensors: bool
    ) -> tuple[bytes, bytes, int]:
        """As `ask`: the JSON line of the answer, its npz, and how often a node was asked."""
        until = self._loop.time() + deadline_s
        ask = RemoteAsk(secrets.token_hex(8), model or "", source, top, 0, tensors)
        tried: set[int] = set()
        try:
            async with asyncio.timeout(deadline_s + SLACK_S) as bound:
                while True:
                    device, link = await self._linked(tried, until)
                    tried.add(link)
                    left_ms = int((until - self._loop.time()) * 1000)
                    try:
                        line, arrays = await self._ask_node(
                            device, msgspec.structs.replace(ask, deadline_ms=left_ms), data
                        )
                    except PeerError:
                        continue
                    error = _error_in(line, device)
                    if error is None:
                        return line, arrays, len(tried)
                    if error.code != _STOPPING:
                        raise error
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineError(f"the mesh did not answer within {deadline_s:.1f} s") from None

    async def _linked(self, tried: set[int], until: float) -> tuple[DeviceId, int]:
        """A node to ask; DeadlineError where none is there in time."""
        try:
            async with asyncio.timeout_at(until):
                return await self._desk.link_not_in(tried)
        except TimeoutError:
            raise DeadlineError(f"no node of the mesh was in reach in time; {len(tried)} were asked") from None

    async def _ask_node(self, device: DeviceId, ask: RemoteAsk, data: bytes) -> tuple[bytes, bytes]:
        """One node's answer; PeerError where it goes away. One that has too much to do is not sent the body as well."""
        if self._loop.time() < self._busy_until.get(device, 0.0):
            line, _ = await self._exchange(device, ask, b"")
            if isinstance(_error_in(line, device), BusyError):
                return line, b""
        line, arrays = await self._exchange(device, ask, data)
        if isinstance(_error_in(line, device), BusyError):
            self._busy_until = {one: until for one, until in self._busy_until.items() if one in self.devices}
            self._busy_until[device] = self._loop.time() + ASK_FIRST_S
        return line, arrays

    async def _exchange(self, device: DeviceId, ask: RemoteAsk, data: bytes) -> tuple[bytes, bytes]:
        """A question and its answer; PeerError where the node goes away. While it is waited for, the node is pinged."""
        answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._desk.waiting[ask.ask] = _Waiting(device, answer)
        self._transport.expecting(device, 1)
        try:
            await self._transport.send_tensors(device, ask, [memoryview(data)])
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # the node went away while the question was still being sent
            answer.cancel()
            self._transport.expecting(device, -1)
            del self._desk.waiting[ask.ask]


class _Fault(msgspec.Struct, frozen=True):
    """Why a question was not answered."""

    code: str = ""
    message: str = ""


class _Told(msgspec.Struct, frozen=True):
    """What matters here of the JSON of an answer."""

    ok: bool
    error: _Fault = _Fault()


def _error_in(line: bytes, device: DeviceId) -> MeshError | None:
    """The error that an answer tells of, or None."""
    try:
        told = msgspec.json.decode(line, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return PeerError(f"{device[:12]} answered nonsense: {str(error)[:200]}")
    return None if told.ok else from_code(told.error.code, told.error.message)


@asynccontextmanager
async def connect(config: Config | None = None, *, look_s: float = LOOK_S, **settings: object) -> AsyncIterator[Mesh]:
    """The mesh in reach of this program, found as nodes find each other; NoMeshError where none is after `look_s`.

    `settings` are those of the configuration (`mesh`, `peers`, `interface`, `state_dir`); UsageError for others.
    """
    config = config or load(settings, os.environ)
    tasks = TaskSet("caller")
    with _key_folder() as folder:
        desk = _Desk()
        hello = Hello(config.mesh, config.name[:63], BootId(secrets.token_hex(8)), visitor=True)
        identity = await asyncio.to_thread(Identity.load, folder)
        named = [host for host, _ in config.peers]
        transport = Neighbours(identity, hello, desk, Limits(), codec(), config.interface, named=named)
        await transport.start()
        desk.transport = transport
        discovery = Discovery(identity.device_id, BootId("0" * 16), config.mesh, 0, config.interface, desk.look_at)
        try:
            for host, port in await asyncio.to_thread(_known, config):
                desk.look_at(host, port)
            tasks.spawn(discovery.start(), "discovery")
            tasks.spawn(_redial(desk), "redial")
            await _first(desk, config, look_s)
            yield Mesh(transport, desk)
        finally:
            await tasks.stop()
            await discovery.stop()
            await transport.stop()


async def _first(desk: _Desk, config: Config, look_s: float) -> None:
    """Wait for the first node; NoMeshError."""
    try:
        async with asyncio.timeout(look_s):
            await desk.link_not_in(set())
    except TimeoutError:
        raise NoMeshError(
            f"no mesh named {config.mesh!r} is in reach: start a node with `meshnn join`, or name one of its nodes"
        ) from None


async def _redial(desk: _Desk) -> None:
    """Keep a few nodes linked."""
    while True:
        await asyncio.sleep(REDIAL_S)
        desk.dial_more()


def _known(config: Config) -> list[Address]:
    """Where nodes may be: the one of this machine, those that were named, those this device met before."""
    note = records.running_node(config.state_dir)
    here = [] if note is None else [(config.interface or "127.0.0.1", note.port)]
    met: list[Address] = []
    with suppress(NodeError, msgspec.ValidationError):
        met = msgspec.convert(records.load_record(config.state_dir, "peers").get("peers", []), list[Address])
    # The last one looked at is dialled first where there are too many.
    return list(dict.fromkeys((*here, *config.peers, *met[:ADDRESSES_MAX])))


@contextmanager
def _key_folder() -> Iterator[Path]:
    """A place for the key of one caller; NodeError where the disk has none."""
    try:
        made = tempfile.TemporaryDirectory(prefix="meshnn-caller-")
    except OSError as error:
        raise NodeError(f"no temporary folder can be made: {error.strerror}") from error
    with made as folder:
        yield Path(folder)
