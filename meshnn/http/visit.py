"""A visit to a mesh nearby: this process links to one of its nodes as a caller, asks, and goes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from meshnn.cluster.member import BootId, DeviceId
from meshnn.config import Config
from meshnn.errors import DeadlineError, MeshError, NodeError, PeerError, from_code
from meshnn.net.discovery import Discovery
from meshnn.net.hello import Hello
from meshnn.net.neighbours import Neighbours
from meshnn.net.security import Identity
from meshnn.net.transport import Address, Limits
from meshnn.node.messages import RemoteAnswer, RemoteAsk
from meshnn.node.switchboard import codec

# How long to look for a mesh: the notes measured 0.1 s for a late joiner to hear the others, 1.5 s at worst.
LOOK_S = 1.5
ANSWER_BYTES_MAX = 256 << 20
SLACK_S = 5.0


class _Caller:
    """`net.transport.Handler` of a caller: it waits for one link and for answers."""

    def __init__(self) -> None:
        self.linked: asyncio.Future[DeviceId] = asyncio.get_running_loop().create_future()
        self.answers: dict[str, tuple[DeviceId, asyncio.Future[tuple[bytes, bytes]]]] = {}

    def on_linked(self, device_id: DeviceId, boot_id: BootId, hello: Hello, address: Address) -> None:
        """The first node that links is the one to ask."""
        del boot_id, address
        if not self.linked.done() and not hello.visitor:
            self.linked.set_result(device_id)

    def on_unlinked(self, device_id: DeviceId, evidence: str) -> None:
        """The node is gone, and with it every question it was asked."""
        for host, answer in self.answers.values():
            if host == device_id and not answer.done():
                answer.set_exception(PeerError(f"{device_id[:12]} went away ({evidence}); ask again"))

    def on_unreachable(self, address: Address, evidence: str) -> None:
        """An address where nobody answers is no mesh."""

    def on_message(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct) -> None:
        """A caller is told nothing but its answers."""

    def on_datagram(self, device_id: DeviceId, boot_id: BootId, message: msgspec.Struct, address: Address) -> None:
        """A caller takes no part in membership."""

    def admit(self, device_id: DeviceId, meta_message: msgspec.Struct, payload_bytes: int) -> bool:
        """Whether this is an answer that is waited for."""
        if not isinstance(meta_message, RemoteAnswer) or payload_bytes > ANSWER_BYTES_MAX:
            return False
        return self.answers.get(meta_message.ask, ("", None))[0] == device_id

    def on_tensors(
        self, device_id: DeviceId, boot_id: BootId, meta_message: msgspec.Struct, payload: memoryview
    ) -> None:
        """An answer: its JSON, then the tensors."""
        del boot_id
        if isinstance(meta_message, RemoteAnswer) and meta_message.ask in self.answers:
            host, answer = self.answers[meta_message.ask]
            size = meta_message.json_bytes
            if host == device_id and not answer.done():
                answer.set_result((bytes(payload[:size]), bytes(payload[size:])))


class _Error(msgspec.Struct, frozen=True):
    """Why a question was not answered."""

    code: str = ""
    message: str = ""


class _Told(msgspec.Struct, frozen=True):
    """What matters to a visit of the JSON of an answer."""

    ok: bool
    error: _Error = _Error()


class Visit:
    """A link to one node of a mesh nearby, driven from synchronous code."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Neighbours, caller: _Caller, host: DeviceId) -> None:
        """Made by `open_visit`."""
        self._loop = loop
        self._transport = transport
        self._caller = caller
        self._host = host

    def ask(
        self, data: bytes, source: str, *, model: str | None, top: int, deadline_s: float, tensors: bool
    ) -> tuple[bytes, bytes]:
        """The JSON line of the answer and its npz; the errors of the node's `ask`, PeerError where it goes away."""
        ask = RemoteAsk(secrets.token_hex(8), model or "", source, top, int(deadline_s * 1000), tensors)
        line, arrays = self._loop.run_until_complete(self._ask(ask, data, deadline_s + SLACK_S))
        try:
            told = msgspec.json.decode(line, type=_Told)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"{self._host[:12]} answered nonsense: {str(error)[:200]}") from None
        if not told.ok:
            raise from_code(told.error.code, told.error.message)
        return line, arrays

    async def _ask(self, ask: RemoteAsk, data: bytes, timeout_s: float) -> tuple[bytes, bytes]:
        """The answer of the node that linked first; where it goes away, of another one that is linked too."""
        tried = {self._host}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._ask_host(ask, data)
                    except PeerError:
                        others = [device for device in self._transport.neighbours() if device not in tried]
                        if not others:
                            raise
                        self._host = others[0]
                        tried.add(self._host)
        except TimeoutError:
            raise DeadlineError(f"the mesh did not answer within {timeout_s:.0f} s") from None

    async def _ask_host(self, ask: RemoteAsk, data: bytes) -> tuple[bytes, bytes]:
        answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._caller.answers[ask.ask] = (self._host, answer)
        try:
            await self._transport.send_tensors(self._host, ask, [memoryview(data)])
            return await answer
        finally:
            answer.cancel()
            del self._caller.answers[ask.ask]


@contextmanager
def open_visit(config: Config) -> Iterator[Visit | None]:
    """A visit to a mesh nearby, or None where none is found."""
    loop = asyncio.new_event_loop()
    with _folder() as folder, contextlib.closing(loop):
        transport: Neighbours | None = None
        host: DeviceId | None = None
        with contextlib.suppress(MeshError):
            caller, transport, me = loop.run_until_complete(_start(config, Path(folder)))
            host = loop.run_until_complete(_link(config, caller, transport, me))
        try:
            yield None if host is None or transport is None else Visit(loop, transport, caller, host)
        finally:
            if transport is not None:
                loop.run_until_complete(transport.stop())


@contextmanager
def _folder() -> Iterator[str]:
    """A place for the key of one visit; NodeError where the disk has none."""
    try:
        made = tempfile.TemporaryDirectory(prefix="meshnn-visit-")
    except OSError as error:
        raise NodeError(f"no temporary folder can be made: {error.strerror}") from error
    with made as folder:
        yield folder


async def _start(config: Config, folder: Path) -> tuple[_Caller, Neighbours, DeviceId]:
    """The network of this process, under a key that lives as long as the visit."""
    caller = _Caller()
    hello = Hello(config.mesh, config.name, BootId(secrets.token_hex(8)), visitor=True)
    identity = await asyncio.to_thread(Identity.load, folder)
    transport = Neighbours(identity, hello, caller, Limits(), codec(), config.interface)
    await transport.start()
    return caller, transport, identity.device_id


async def _link(config: Config, caller: _Caller, transport: Neighbours, me: DeviceId) -> DeviceId | None:
    """The first node of this mesh that links within the time to look."""
    discovery = Discovery(me, BootId("0" * 16), config.mesh, 0, config.interface, transport.dial)
    for host, port in config.peers:
        transport.dial(host, port)
    try:
        async with asyncio.timeout(LOOK_S):
            await discovery.start()
            return await caller.linked
    except (TimeoutError, OSError):
        return None
    finally:
        await discovery.stop()
