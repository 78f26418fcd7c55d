"""Inference: every shard of this device in one thread of its own, never on the event loop."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from meshnn.device import runtime
from meshnn.device.ports import Port, fill_zeros, port_of
from meshnn.device.runtime import Array, TensorInterpreter
from meshnn.errors import BusyError, MeshError, ModelError

QUEUE_LIMIT = 256
"""Jobs that may wait for the thread; admission keeps far below, so more is a fault and is refused."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A shard ready to run: its handle, its ports in the file's order, resident bytes it added, seconds it took."""

    handle: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    measured_bytes: int
    load_s: float


class Ran(NamedTuple):
    """One run: the outputs in the file's order, each a copy of its own, and the seconds of the invocation alone.

    `paced_s` is what the invocation takes in the long run under a processor quota, seconds: a quota lets some runs
    pass at full speed and holds up others, which says nothing of the device. Without a quota it is `compute_s`.
    """

    outputs: list[Array]
    compute_s: float
    paced_s: float


@dataclass(frozen=True, slots=True)
class _Shard:
    interpreter: TensorInterpreter
    loaded: Loaded


@dataclass(slots=True)
class _Claim:
    """Whether somebody still waits for a job, and whether its inputs are being read just now."""

    reading: threading.Lock = field(default_factory=threading.Lock)
    abandoned: bool = False

    def abandon(self) -> None:
        """Nobody waits any more; once this returns the inputs are not read again."""
        with self.reading:
            self.abandoned = True


class Engine:
    """The one inference thread of a device; any number of loaded shards take turns in it.

    All methods are called from the event loop. Loading holds the GIL while the runtime repacks weights (about
    0.7 ms per MB), so the file should be in the page cache by then: check its digest just before.
    """

    def __init__(self, threads: int = 1, queue_limit: int = QUEUE_LIMIT) -> None:
        """`threads` is how many threads one invocation may use inside the runtime.

        `quota_cores`, the processor time a second that this process may use, is set by whoever knows it.
        """
        self._threads = threads
        self.quota_cores = math.inf
        self._limit = queue_limit
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meshnn-inference")
        self._shards: dict[int, _Shard] = {}
        self._handles = itertools.count(1)
        self._waiting = 0
        self._closed = False

    @property
    def numeric_class(self) -> str:
        """Equal strings compute equal bytes; NodeError without a runtime."""
        return runtime.numeric_class(self._threads)

    @property
    def waiting(self) -> int:
        """Jobs in the thread or waiting for it."""
        return self._waiting

    async def load(self, path: Path) -> Loaded:
        """Map a file, allocate it and run it once on zeros; ModelError where the runtime refuses, BusyError."""
        claim = _Claim()
        handle = next(self._handles)
        shard = await self._submit(lambda: _load(path, self._threads, handle), claim)
        self._shards[handle] = shard
        return shard.loaded

    async def run(self, handle: int, inputs: Sequence[Array]) -> Ran:
        """Run a shard on its inputs in the file's order; ModelError, BusyError.

        The inputs may be views of receive buffers: they are copied in, and once this call has returned or raised
        (a cancellation included) they are not read again. A cancelled job that has not begun never runs.
        """
        shard = self._shards.get(handle)
        if shard is None:
            raise ModelError(f"shard {handle} is not loaded")
        wanted = shard.loaded.inputs
        if len(inputs) != len(wanted):
            raise ModelError(f"{len(inputs)} inputs were given, the shard takes {len(wanted)}")
        claim = _Claim()
        share = min(1.0, self.quota_cores / self._threads)
        return await self._submit(lambda: _run(shard, inputs, claim, share), claim)

    def unload(self, handle: int) -> None:
        """Forget a shard; its memory is given back in the thread, after the runs that wait for it."""
        held = [self._shards.pop(handle, None)]
        if not self._closed:
            self._executor.submit(held.clear)

    async def close(self) -> None:
        """Turn away what waits, let the running job end, give all memory back. Twice is harmless."""
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)
        self._shards.clear()

    async def _submit(self, job: Callable[[], T | None], claim: _Claim) -> T:
        """The result of a job in the thread; ModelError when the engine closed before it began."""
        if self._closed:
            raise ModelError("the engine is closed")
        if self._waiting >= self._limit:
            raise BusyError(f"{self._waiting} runs wait on this device already")
        self._waiting += 1
        future = self._executor.submit(lambda: None if self._closed or claim.abandoned else job())
        try:
            result = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            claim.abandon()
            raise
        finally:
            self._waiting -= 1
        if result is None:
            raise ModelError("the engine was closed")
        return result


def _load(path: Path, threads: int, handle: int) -> _Shard:
    """In the thread: a shard allocated and warm."""
    before = _resident_bytes()
    start = time.perf_counter()
    try:
        found = runtime.find()
        with runtime.hushed():
            interpreter = found.interpreter(path, threads)
            interpreter.allocate_tensors()
        inputs = tuple(port_of(detail) for detail in interpreter.get_input_details())
        outputs = tuple(port_of(detail) for detail in interpreter.get_output_details())
        fill_zeros(interpreter, inputs)
        interpreter.invoke()
    except MeshError:
        raise
    except runtime.ERRORS as error:
        raise ModelError(f"{path.name}: {runtime.reason(error)}") from None
    grown = max(0, _resident_bytes() - before)
    return _Shard(interpreter, Loaded(handle, inputs, outputs, grown, time.perf_counter() - start))


def _resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not tell: no shard is refused for want of a figure."""
    try:
        return int(psutil.Process().memory_info().rss)
    except (OSError, psutil.Error):
        return 0


def _run(shard: _Shard, inputs: Sequence[Array], claim: _Claim, share: float) -> Ran | None:
    """In the thread: one run, of which a quota allows this share of the time; None when nobody waits any more."""
    interpreter = shard.interpreter
    try:
        with claim.reading:
            if claim.abandoned:
                return None
            for port, value in zip(shard.loaded.inputs, inputs, strict=True):
                _check(port, value)
                interpreter.set_tensor(port.index, value)
        start, worked_from = time.perf_counter(), time.thread_time()
        interpreter.invoke()
        compute_s, worked_s = time.perf_counter() - start, time.thread_time() - worked_from
        paced_s = max(compute_s, worked_s / share) if share < 1.0 else compute_s
        # get_tensor makes a fresh array each time: no view outlives this function, the next run may begin.
        return Ran([interpreter.get_tensor(port.index) for port in shard.loaded.outputs], compute_s, paced_s)
    except runtime.ERRORS as error:
        raise ModelError(f"the run failed: {runtime.reason(error)}") from None


def _check(port: Port, value: Array) -> None:
    """Refuse a value of another type or shape by name, before the runtime does it by number."""
    if value.dtype.name != port.dtype or value.shape != port.shape:
        raise ModelError(
            f"input {port.name!r} takes {port.dtype} {list(port.shape)}, got {value.dtype.name} {list(value.shape)}"
        )
