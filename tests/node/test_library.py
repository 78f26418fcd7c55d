"""Models are taken in turn: whoever goes away leaves nothing behind, and takes nothing from whoever comes next."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meshnn.device.part import digest_of_file
from meshnn.device.store import Store
from meshnn.device.trial import Trial
from meshnn.errors import ModelError
from meshnn.graph.builder import Builder
from meshnn.graph.writer import write
from meshnn.node import library
from meshnn.node.effects import Fetch
from meshnn.node.library import Library
from tests.node.nodes import PATIENCE_S
from tests.node.shelf import A


class Trials:
    """Trials that last until the test lets them go on."""

    def __init__(self) -> None:
        """None has begun."""
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, path: Path, name: str) -> Trial:
        """Wait, and find nothing wrong."""
        self.begun.release()
        assert self.go_on.acquire(timeout=PATIENCE_S)
        return Trial({}, (), 0.0, 0)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    """Every trial of this test."""
    made = Trials()
    monkeypatch.setattr(library, "attempt", made)
    yield made
    made.go_on.release(10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one operator."""
    builder = Builder(np.random.default_rng(1))
    path = tmp_path / "m.tflite"
    path.write_bytes(write(builder.graph(builder.operator("RELU", (builder.input(1, 8),), (1, 8)))).to_bytes())
    return path


async def never(wanted: Fetch) -> Path:
    """Nobody has anything."""
    raise ModelError(f"no {wanted.kind}")


def on(folder: Path) -> tuple[Store, Library]:
    """A disk and the library on it."""
    store = Store(folder, 50_000_000)
    return store, Library(A, store, lambda digest: None, never)


async def begun(trials: Trials) -> None:
    """Wait until a trial has begun."""
    assert await asyncio.to_thread(trials.begun.acquire, timeout=PATIENCE_S)


async def gone(take: asyncio.Task[object]) -> None:
    """Its taker goes away."""
    take.cancel()
    with pytest.raises(asyncio.CancelledError):
        await take


async def test_who_goes_away_does_not_take_the_file_of_who_comes_next(
    tmp_path: Path, model: Path, trials: Trials
) -> None:
    """The second of two who bring the same file waits for the end of the first, whom nobody waits for any more."""
    store, shelf = on(tmp_path / "disk")
    first = asyncio.create_task(shelf.take(model, "m"))
    await begun(trials)
    await gone(first)
    second = asyncio.create_task(shelf.take(model, "m"))
    trials.go_on.release()
    await begun(trials)
    trials.go_on.release()
    card = await second
    await asyncio.get_running_loop().shutdown_default_executor()  # whatever still goes on in a thread ends
    assert card.digest == digest_of_file(model)
    assert store.path("model", card.digest) is not None


async def test_who_goes_away_leaves_nothing_behind(tmp_path: Path, model: Path, trials: Trials) -> None:
    """Neither while the file is tried, nor while another one is; no error without a reader either."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    store, shelf = on(tmp_path / "disk")
    tried, waiting = (asyncio.create_task(shelf.take(model, name)) for name in "ab")
    await begun(trials)
    await gone(waiting)
    await gone(tried)
    trials.go_on.release()
    last = asyncio.create_task(shelf.take(tmp_path / "none", "c"))
    with pytest.raises(ModelError, match="none"):
        await last
    assert store.path("model", digest_of_file(model)) is None
    assert store.path("card", digest_of_file(model)) is None
    del last, tried, waiting
    gc.collect()
    assert faults == []


async def test_a_model_that_was_here_stays(tmp_path: Path, model: Path, trials: Trials) -> None:
    """Whoever brings it again and goes away does not take it along."""
    store, shelf = on(tmp_path / "disk")
    trials.go_on.release()
    card = await shelf.take(model, "m")
    await begun(trials)
    again = asyncio.create_task(shelf.take(model, "m"))
    await begun(trials)
    await gone(again)
    trials.go_on.release()
    with pytest.raises(ModelError, match="none"):
        await shelf.take(tmp_path / "none", "c")
    assert store.path("model", card.digest) is not None
