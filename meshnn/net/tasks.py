"""A supervised set of tasks: kept, watched, and awaited when their owner stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from meshnn.errors import MeshError
from meshnn.telemetry import logger

T = TypeVar("T")

_log = logger(__name__)


class TaskSet:
    """Tasks of one owner. A task that fails is logged and forgotten; it never ends its siblings.

    `stop` cancels and awaits all of them; nothing can be spawned afterwards.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[object, object, None], name: str, ended: Callable[[], None] | None = None) -> None:
        """Runs `work` in the background, then calls `ended`, also where `work` never began.

        After `stop` the work is closed at once, unrun.
        """
        if self._stopped:
            work.close()
            if ended is not None:
                ended()
            return
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if ended is not None:
            task.add_done_callback(lambda _: ended())

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", task=task.get_name(), exc_info=error)

    async def stop(self) -> None:
        """Cancels every task and waits until each has ended."""
        self._stopped = True
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def contained(work: Awaitable[T], what: str) -> T:
    """The result of work on data from outside; a fault of ours in it is logged and becomes a MeshError.

    One model, message or file that we handle wrongly must cost its own request, not every node it is sent to.
    """
    try:
        return await work
    except MeshError:
        raise
    except Exception as error:
        _log.exception("contained", what=what)
        raise MeshError(f"{what} failed on this device: {type(error).__name__}: {str(error)[:200]}") from error
