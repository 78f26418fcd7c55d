"""The tensors on their way to one neighbour: a bounded queue, written frame by frame by one task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from meshnn.errors import PeerError
from meshnn.net.link import Link
from meshnn.net.tasks import TaskSet


@dataclass(slots=True)
class _Outgoing:
    """One frame and who waits for it."""

    meta: bytes
    buffers: Sequence[memoryview]
    done: asyncio.Future[None]


class TensorOutbox:
    """Writes frames to a tensors link in the order given.

    A caller that is cancelled never cuts a frame in two: what had begun goes out whole (so its buffers must not change
    until then), what had not is left out.
    """

    def __init__(self, link: Link, queue_limit: int, tasks: TaskSet) -> None:
        self._link = link
        self._queue: asyncio.Queue[_Outgoing | None] = asyncio.Queue(queue_limit)
        self._current: _Outgoing | None = None
        self._ended = False
        tasks.spawn(self._write_all(), f"tensors to {link.device_id}")

    async def send(self, meta: bytes, buffers: Sequence[memoryview]) -> None:
        """Returns when the frame is on its way; waits while the queue is full. Raises PeerError where the link ends."""
        item = _Outgoing(meta, buffers, asyncio.get_running_loop().create_future())
        # Bounded by the link's life: a link that moves nothing for 10 s is cut, and `end` wakes everybody.
        await self._queue.put(item)
        if self._ended:
            self._fail_all()
        await item.done

    def end(self) -> None:
        """The link is gone: everybody who waits gets a PeerError."""
        if not self._ended:
            self._ended = True
            self._fail_all()

    def _fail_all(self) -> None:
        items = [self._current]
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        for item in items:
            if item is not None and not item.done.done():
                item.done.set_exception(PeerError("the link ended before the tensors were sent"))
        self._queue.put_nowait(None)  # ends the writer, if it waits for work

    async def _write_all(self) -> None:
        while (item := await self._queue.get()) is not None:
            if item.done.done():
                continue
            self._current = item
            try:
                await self._link.send_frame(item.meta, item.buffers)
            except PeerError:
                self.end()
                return
            if not item.done.done():
                item.done.set_result(None)
            self._current = None
