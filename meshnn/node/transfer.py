"""Files between devices: fetched piece by piece from any holder, resumed, checked by digest before use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from meshnn.cluster.member import DeviceId
from meshnn.device.part import Part
from meshnn.device.store import Store
from meshnn.errors import MeshError, PeerError
from meshnn.net.tasks import contained
from meshnn.net.transport import Transport
from meshnn.node.effects import Fetch
from meshnn.node.messages import Chunk, Missing, Want
from meshnn.telemetry import logger

# What is asked for at once: the receiver writes it down before it asks for more, so a slow disk slows its sender.
PIECE_BYTES = 2 << 20
CHUNK_BYTES = 256 << 10
# A holder that sends nothing for so long is left for another, in seconds.
SILENCE_S = 10.0
# A piece that comes drop by drop is given up after so long, whoever sends it, in seconds.
PIECE_S = 120.0
# Pieces read and sent at once, and those that wait for their turn; beyond that a peer hears that we are busy.
SERVED_MAX = 8
WAITING_MAX = 64
# How often every holder is asked, and the pause before the second time; each further one is twice as long.
ROUNDS_MAX = 4
PAUSE_S = 0.5
REASON_LENGTH_MAX = 200

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


@dataclass(slots=True)
class _Turn:
    """Whoever wants one file, one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Transfers:
    """Both sides of the transfer of files; tasks live in the group of the node."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        spawn: Callable[[Coroutine[object, object, None], str], None],
        obtain: Callable[[Want], Awaitable[Path]],
    ) -> None:
        """`spawn` runs a task under the node's care; `obtain` finds (or cuts) the wanted file, raising MeshError."""
        self._transport = transport
        self._store = store
        self._spawn = spawn
        self._obtain = obtain
        self._pieces: dict[int, _Piece] = {}
        self._number = 0
        self._wants = 0
        self._serving = asyncio.Semaphore(SERVED_MAX)
        self._fetching: dict[tuple[str, str], _Turn] = {}

    async def fetch(self, wanted: Fetch) -> Path:
        """The file on this disk, checked; PeerError where no holder gives it, NodeError where the disk refuses.

        Whoever wants a file that is on its way waits for it and shares it.
        """
        key = (wanted.kind, wanted.key)
        turn = self._fetching.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                path = await asyncio.to_thread(self._here, wanted)
                return path if path is not None else await self._fetch_from_any(wanted)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._fetching[key]

    def _here(self, wanted: Fetch) -> Path | None:
        """The file, where it is here already and right; blocks on the disk."""
        path = self._store.path(wanted.kind, wanted.key)
        if path is None or not wanted.sha256 or self._store.digest_of(wanted.kind, wanted.key) == wanted.sha256:
            return path
        return None

    async def _fetch_from_any(self, wanted: Fetch) -> Path:
        """Ask every holder in turn, and all of them again after a pause: a holder may be busy, or link anew."""
        faults: list[str] = []
        liars: set[DeviceId] = set()
        for round_number in range(ROUNDS_MAX):
            holders = [holder for holder in wanted.holders if holder not in liars]
            if holders and round_number:
                await asyncio.sleep(PAUSE_S * 2.0 ** (round_number - 1))
            for holder in holders:
                try:
                    return await self._fetch_from(holder, wanted, liars)
                except PeerError as error:
                    faults.append(str(error)[:REASON_LENGTH_MAX])
        told = faults[-1] if faults else "nobody holds it"
        raise PeerError(f"no holder gave {wanted.kind} {wanted.key[:12]}: {told}")

    async def _fetch_from(self, holder: DeviceId, wanted: Fetch, liars: set[DeviceId]) -> Path:
        """Fetch the rest of a file from one holder; one that alone gave a wrong file is among the `liars` after."""
        part = await self._open(wanted)
        alone = part.offset == 0
        try:
            while True:
                piece = await self._ask(holder, wanted, part.offset)
                size_bytes = piece.size_bytes
                if size_bytes is None or not part.offset <= size_bytes <= wanted.size_bytes:
                    raise PeerError(f"{holder[:12]} says that {wanted.key[:12]} has {size_bytes} bytes")
                await asyncio.to_thread(part.write, piece.data)
                if part.offset >= size_bytes:
                    break
            try:
                return await asyncio.to_thread(part.finish, wanted.sha256)
            except PeerError:
                if alone:
                    liars.add(holder)
                raise
        finally:
            part.close()  # here and now: a cancelled task gets no other thread to wait for

    async def _open(self, wanted: Fetch) -> Part:
        """The part of a file, opened in a thread; closed again where nobody waits for it any more."""
        opening = asyncio.get_running_loop().run_in_executor(
            None, self._store.open_part, wanted.kind, wanted.key, wanted.size_bytes
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_part)
            raise

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
        """Wait until the piece is whole; silence of the holder ends the wait, slowness only after long."""
        waits = int(PIECE_S / SILENCE_S)
        while not piece.done.is_set():
            before = len(piece.data)
            waits -= 1
            try:
                async with asyncio.timeout(SILENCE_S):
                    await piece.done.wait()
            except TimeoutError:
                if len(piece.data) == before:
                    raise PeerError(f"{piece.holder[:12]} sent nothing for {SILENCE_S:.0f} s") from None
                if waits <= 0:
                    raise PeerError(f"{piece.holder[:12]} sends too slowly") from None

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
        if self._wants >= WAITING_MAX:
            self._transport.send(source, Missing(want.transfer, "busy with other transfers"))
            return
        self._wants += 1
        self._spawn(self._serve(source, want), "serve")

    async def _serve(self, source: DeviceId, want: Want) -> None:
        try:
            async with self._serving:
                path = await contained(self._obtain(want), "finding a file for a peer")
                await self._send(source, want, path)
        except (MeshError, OSError, ValueError) as error:
            reason = str(error)[:REASON_LENGTH_MAX] or type(error).__name__
            _log.info("transfer_not_served", device=source, file=want.key[:12], reason=reason)
            self._transport.send(source, Missing(want.transfer, reason))
        finally:
            self._wants -= 1

    async def _send(self, to: DeviceId, want: Want, path: Path) -> None:
        length = max(0, min(want.length_bytes, PIECE_BYTES))
        size, data = await asyncio.to_thread(_read, path, want.offset_bytes, length)
        view = memoryview(data)
        for start in range(0, max(len(view), 1), CHUNK_BYTES):
            chunk = Chunk(want.transfer, want.offset_bytes + start, size)
            async with asyncio.timeout(SILENCE_S * 3):
                await self._transport.send_tensors(to, chunk, [view[start : start + CHUNK_BYTES]])


def _close_part(opening: asyncio.Future[Part]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _read(path: Path, offset_bytes: int, length_bytes: int) -> tuple[int, bytes]:
    """The size of a file and a piece of it; PeerError for a place outside of it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not 0 <= offset_bytes <= size:
            raise PeerError(f"the file has {size} bytes, and byte {offset_bytes} of it was wanted")
        file.seek(offset_bytes)
        return size, file.read(length_bytes)
