"""Files between devices: fetched piece by piece from any holder, resumed, checked by digest before use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from meshnn.cluster.member import DeviceId
from meshnn.device.store import Store
from meshnn.errors import MeshError, PeerError
from meshnn.net.transport import Transport
from meshnn.node.effects import Fetch
from meshnn.node.messages import Chunk, Missing, Want
from meshnn.telemetry import logger

# What is asked for at once: the receiver writes it down before it asks for more, so a slow disk slows its sender.
PIECE_BYTES = 2 << 20
CHUNK_BYTES = 256 << 10
# A holder that sends nothing for so long is left for another, in seconds.
SILENCE_S = 10.0
SERVED_MAX = 8
ROUNDS_MAX = 3

_log = logger(__name__)


@dataclass(slots=True)
class _Piece:
    """What one `Want` has brought so far."""

    holder: DeviceId
    offset_bytes: int
    length_bytes: int
    data: bytearray = field(default_factory=bytearray)
    size_bytes: int | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    fault: str = ""

    def whole(self) -> bool:
        """Whether all of the piece is here, or the file has ended."""
        if self.size_bytes is None:
            return False
        return len(self.data) >= min(self.length_bytes, self.size_bytes - self.offset_bytes)


class Transfers:
    """Both sides of the transfer of files; tasks live in the group of the node."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        spawn: Callable[[Coroutine[None, None, None]], None],
        obtain: Callable[[Want], Awaitable[Path]],
    ) -> None:
        """`spawn` runs a task under the node's care; `obtain` finds (or cuts) the wanted file, raising MeshError."""
        self._transport = transport
        self._store = store
        self._spawn = spawn
        self._obtain = obtain
        self._pieces: dict[int, _Piece] = {}
        self._number = 0
        self._serving = 0

    async def fetch(self, wanted: Fetch) -> Path:
        """The file on this disk, checked; PeerError where no holder gives it, NodeError where the disk refuses."""
        faults: list[str] = []
        for _ in range(ROUNDS_MAX):
            for holder in wanted.holders:
                try:
                    return await self._fetch_from(holder, wanted)
                except PeerError as error:
                    faults.append(str(error))
            if not wanted.holders:
                break
        raise PeerError(
            f"no holder gave {wanted.kind} {wanted.key[:12]}: {faults[-1] if faults else 'nobody holds it'}"
        )

    async def _fetch_from(self, holder: DeviceId, wanted: Fetch) -> Path:
        """Fetch the rest of a file from one holder."""
        part = await asyncio.to_thread(self._store.open_part, wanted.kind, wanted.key, wanted.size_bytes)
        try:
            while True:
                piece = await self._ask(holder, wanted, part.offset)
                if piece.size_bytes is None or piece.size_bytes > wanted.size_bytes:
                    raise PeerError(f"{holder[:12]} says that {wanted.key[:12]} has {piece.size_bytes} bytes")
                await asyncio.to_thread(part.write, piece.data)
                if part.offset >= piece.size_bytes:
                    return await asyncio.to_thread(part.finish, wanted.sha256)
        finally:
            await asyncio.to_thread(part.close)

    async def _ask(self, holder: DeviceId, wanted: Fetch, offset_bytes: int) -> _Piece:
        """One piece of a file, whole, or PeerError."""
        self._number += 1
        number = self._number
        piece = self._pieces[number] = _Piece(holder, offset_bytes, PIECE_BYTES)
        want = Want(number, wanted.kind, wanted.key, offset_bytes, PIECE_BYTES, wanted.recipe)
        try:
            if not self._transport.send(holder, want):
                raise PeerError(f"{holder[:12]} has no link")
            await self._arrival(piece)
        finally:
            del self._pieces[number]
        if piece.fault:
            raise PeerError(f"{holder[:12]}: {piece.fault}")
        return piece

    async def _arrival(self, piece: _Piece) -> None:
        """Wait until the piece is whole; silence of the holder ends the wait, slowness does not."""
        while not piece.done.is_set():
            before = len(piece.data)
            try:
                async with asyncio.timeout(SILENCE_S):
                    await piece.done.wait()
            except TimeoutError:
                if len(piece.data) == before:
                    raise PeerError(f"{piece.holder[:12]} sent nothing for {SILENCE_S:.0f} s") from None

    def admit(self, source: DeviceId, chunk: Chunk, payload_bytes: int) -> bool:
        """Whether a chunk is one that was asked for, in its place."""
        piece = self._pieces.get(chunk.transfer)
        if piece is None or piece.holder != source:
            return False
        in_place = chunk.offset_bytes == piece.offset_bytes + len(piece.data)
        return in_place and len(piece.data) + payload_bytes <= piece.length_bytes

    def on_chunk(self, source: DeviceId, chunk: Chunk, payload: memoryview) -> None:
        """Take a chunk that was admitted."""
        piece = self._pieces.get(chunk.transfer)
        if piece is None or piece.holder != source:
            return
        piece.data += payload
        piece.size_bytes = chunk.size_bytes
        if piece.whole():
            piece.done.set()

    def on_missing(self, source: DeviceId, message: Missing) -> None:
        """A holder that cannot serve after all."""
        piece = self._pieces.get(message.transfer)
        if piece is not None and piece.holder == source:
            piece.fault = message.reason
            piece.done.set()

    def on_unlinked(self, device: DeviceId) -> None:
        """A holder that is gone sends no more."""
        for piece in self._pieces.values():
            if piece.holder == device and not piece.done.is_set():
                piece.fault = "the link broke"
                piece.done.set()

    def on_want(self, source: DeviceId, want: Want) -> None:
        """Serve a piece of a file, within bounds."""
        if self._serving >= SERVED_MAX:
            self._transport.send(source, Missing(want.transfer, "busy with other transfers"))
            return
        self._serving += 1
        self._spawn(self._serve(source, want))

    async def _serve(self, source: DeviceId, want: Want) -> None:
        try:
            path = await self._obtain(want)
            await self._send(source, want, path)
        except (MeshError, OSError) as error:
            _log.info("transfer_not_served", device=source, file=want.key[:12], reason=str(error))
            self._transport.send(source, Missing(want.transfer, str(error)))
        finally:
            self._serving -= 1

    async def _send(self, to: DeviceId, want: Want, path: Path) -> None:
        length = max(0, min(want.length_bytes, PIECE_BYTES))
        size, data = await asyncio.to_thread(_read, path, want.offset_bytes, length)
        view = memoryview(data)
        for start in range(0, max(len(view), 1), CHUNK_BYTES):
            chunk = Chunk(want.transfer, want.offset_bytes + start, size)
            async with asyncio.timeout(SILENCE_S * 3):
                await self._transport.send_tensors(to, chunk, [view[start : start + CHUNK_BYTES]])


def _read(path: Path, offset_bytes: int, length_bytes: int) -> tuple[int, bytes]:
    """The size of a file and a piece of it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(offset_bytes)
        return size, file.read(length_bytes)
