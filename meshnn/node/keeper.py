"""The records of a node on its disk: written in the order they were made, and again where the disk refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from meshnn.device.store import Store
from meshnn.errors import MeshError
from meshnn.telemetry import logger

# A disk that refused is tried again after so long.
RETRY_S = 10.0

_log = logger(__name__)

Spawn = Callable[[Coroutine[object, object, None], str], None]
Record = dict[str, object]


class Keeper:
    """Writes records down. The newest of each name that the disk refused is kept in memory and tried again."""

    def __init__(self, store: Store, spawn: Spawn, told: Callable[[str, Record, str], None]) -> None:
        """`told(name, record, reason)` hears of every write: an empty reason is success."""
        self._store = store
        self._spawn = spawn
        self._told = told
        self._disk = asyncio.Lock()
        self._refused: dict[str, Record] = {}
        self._retrying = False

    async def keep(self, name: str, record: Record) -> bool:
        """Write a record; whether the disk took it. Where not, it is tried again until it does or is replaced."""
        async with self._disk:
            reason = await self._write(name, record)
            if reason:
                self._refused[name] = record
            else:
                self._refused.pop(name, None)
        self._told(name, record, reason)
        if reason and not self._retrying:
            self._retrying = True
            self._spawn(self._retry(), "records")
        return not reason

    async def _write(self, name: str, record: Record) -> str:
        try:
            await asyncio.to_thread(self._store.save_record, name, record)
        except MeshError as error:
            _log.error("disk_refused", record=name, reason=str(error))
            return str(error)
        return ""

    async def _retry(self) -> None:
        try:
            while self._refused:
                await asyncio.sleep(RETRY_S)
                for name, record in list(self._refused.items()):
                    await self.keep(name, record)
        finally:
            self._retrying = False
