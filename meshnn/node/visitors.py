"""Callers that are no members: they ask over the peer protocol and get one answer each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import msgspec

from meshnn.cluster.member import DeviceId
from meshnn.errors import MeshError, PeerError
from meshnn.net.transport import Transport
from meshnn.node.answer import failure_report, npz_of
from meshnn.node.messages import RemoteAnswer, RemoteAsk
from meshnn.node.service import Service
from meshnn.telemetry import logger

ASKS_MAX = 16
INPUT_BYTES_MAX = 64 << 20
DEADLINE_MAX_S = 600.0
SEND_S = 30.0

_log = logger(__name__)


class Visitors:
    """Answers `RemoteAsk` frames, a bounded number at once."""

    def __init__(
        self, service: Service, transport: Transport, spawn: Callable[[Coroutine[None, None, None]], None]
    ) -> None:
        """`spawn` runs a task under the node's care."""
        self._service = service
        self._transport = transport
        self._spawn = spawn
        self._asks = 0

    def admit(self, source: DeviceId, ask: RemoteAsk, payload_bytes: int) -> bool:
        """Whether one more question of this size can be taken."""
        del source, ask
        return self._asks < ASKS_MAX and payload_bytes <= INPUT_BYTES_MAX

    def on_ask(self, source: DeviceId, ask: RemoteAsk, payload: memoryview) -> None:
        """A question that was admitted."""
        self._asks += 1
        self._spawn(self._answer(source, ask, bytes(payload)))

    async def _answer(self, source: DeviceId, ask: RemoteAsk, data: bytes) -> None:
        try:
            line, arrays = await self._lines(ask, data)
            async with asyncio.timeout(SEND_S):
                buffers = [memoryview(line), memoryview(arrays)] if arrays else [memoryview(line)]
                await self._transport.send_tensors(source, RemoteAnswer(ask.ask, len(line)), buffers)
        except (PeerError, TimeoutError) as error:
            _log.info("visitor_gone", device=source, reason=str(error))
        finally:
            self._asks -= 1

    async def _lines(self, ask: RemoteAsk, data: bytes) -> tuple[bytes, bytes]:
        """The JSON of the answer, and the tensors where they were asked for."""
        deadline_s = min(ask.deadline_ms / 1000, DEADLINE_MAX_S)
        try:
            answer = await self._service.ask(
                data, ask.source, model=ask.model or None, top=ask.top, deadline_s=deadline_s
            )
        except MeshError as error:
            return msgspec.json.encode(failure_report(ask.source, error)), b""
        arrays = await asyncio.to_thread(npz_of, answer) if ask.tensors else b""
        return msgspec.json.encode(answer.report), arrays
