"""Callers that are no members: they ask over the peer protocol and get one answer each.

What cannot be answered in time is refused before its payload is read. A question without a payload asks just that: a
caller that was refused a moment ago sends it first, so that a mesh with too much to do need not read bodies as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.errors import BusyError, InputError, MeshError, PeerError
from meshnn.input_file import INPUT_BYTES_MAX
from meshnn.net.tasks import contained
from meshnn.net.transport import Transport
from meshnn.node.answer import failure_report, npz_of
from meshnn.node.messages import RemoteAnswer, RemoteAsk
from meshnn.node.service import Service
from meshnn.telemetry import logger

ASKS_MAX = 1024
# What the questions under way may take together; one alone may take more.
ASK_BYTES_MAX = 256_000_000
TELLINGS_MAX = 1024
ANSWER_BYTES_MAX = 250_000_000
DEADLINE_MAX_S = 600.0
SEND_S = 30.0

_log = logger(__name__)


class Visitors:
    """Answers `RemoteAsk` frames, a bounded number at once."""

    def __init__(
        self, service: Service, transport: Transport, spawn: Callable[[Coroutine[object, object, None], str], None]
    ) -> None:
        """`spawn` runs a task under the node's care."""
        self._service = service
        self._transport = transport
        self._spawn = spawn
        self._asks = 0
        self._ask_bytes = 0
        self._tellings = 0
        self._answering: dict[DeviceId, set[asyncio.Task[object]]] = {}

    def admit(self, source: DeviceId, ask: RemoteAsk, payload_bytes: int) -> bool:
        """Whether one more question of this size can be taken; a caller that is refused hears why."""
        if payload_bytes > INPUT_BYTES_MAX:
            self._refuse(source, ask, InputError(f"the input has {payload_bytes} bytes; at most {INPUT_BYTES_MAX}"))
            return False
        if self._asks >= ASKS_MAX or (self._asks and self._ask_bytes + payload_bytes > ASK_BYTES_MAX):
            self._refuse(source, ask, BusyError(f"{self._asks} callers are being answered already; try again later"))
            return False
        try:
            self._service.refuse_overload(min(ask.deadline_ms / 1000, DEADLINE_MAX_S))
        except BusyError as error:
            self._refuse(source, ask, error)
            return False
        return True

    def on_ask(self, source: DeviceId, ask: RemoteAsk, payload: memoryview) -> None:
        """A question that was admitted; one that only asks whether it would be hears so."""
        if not payload:
            self._tell(source, ask, {"input": ask.source, "ok": True})
            return
        self._asks += 1
        self._ask_bytes += len(payload)
        self._spawn(self._answer(source, ask, bytes(payload)), "visitor")

    def on_unlinked(self, source: DeviceId) -> None:
        """A caller is gone: nobody wants its answers."""
        for task in self._answering.get(source, ()):
            task.cancel()

    def _refuse(self, source: DeviceId, ask: RemoteAsk, error: MeshError) -> None:
        self._tell(source, ask, failure_report(ask.source, error))

    def _tell(self, source: DeviceId, ask: RemoteAsk, report: dict[str, object]) -> None:
        """Answer at once, as far as the bound allows; the caller's deadline ends what is beyond it."""
        if self._tellings < TELLINGS_MAX:
            self._tellings += 1
            self._spawn(self._told(source, ask, report), "visitor told")

    async def _told(self, source: DeviceId, ask: RemoteAsk, report: dict[str, object]) -> None:
        try:
            await self._send(source, ask, msgspec.json.encode(report), b"")
        finally:
            self._tellings -= 1

    async def _answer(self, source: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        mine = self._answering.setdefault(source, set())
        mine.add(task)
        try:
            line, arrays = await self._lines(ask, data)
            await self._send(source, ask, line, arrays)
        finally:
            self._asks -= 1
            self._ask_bytes -= len(data)
            mine.discard(task)
            if not mine:
                self._answering.pop(source, None)

    async def _send(self, source: DeviceId, ask: RemoteAsk, line: bytes, arrays: bytes) -> None:
        if len(line) + len(arrays) > ANSWER_BYTES_MAX:
            error = InputError(f"the answer's tensors take {len(arrays)} bytes; ask without them")
            line, arrays = msgspec.json.encode(failure_report(ask.source, error)), b""
        buffers = [memoryview(line), memoryview(arrays)] if arrays else [memoryview(line)]
        try:
            async with asyncio.timeout(SEND_S):
                await self._transport.send_tensors(source, RemoteAnswer(ask.ask, len(line)), buffers)
        except (PeerError, TimeoutError) as error:
            _log.info("visitor_gone", device=source, reason=str(error))

    async def _lines(self, ask: RemoteAsk, data: bytes) -> tuple[bytes, bytes]:
        """The JSON of the answer, and the tensors where they were asked for."""
        deadline_s = min(ask.deadline_ms / 1000, DEADLINE_MAX_S)
        asked = self._service.ask(data, ask.source, model=ask.model or None, top=ask.top, deadline_s=deadline_s)
        try:
            answer = await contained(asked, "answering")
            arrays = await contained(asyncio.to_thread(npz_of, answer), "packing the tensors") if ask.tensors else b""
        except MeshError as error:
            return msgspec.json.encode(failure_report(ask.source, error)), b""
        return msgspec.json.encode(answer.report), arrays
