"""The node's verbs: every one ends within its deadline with a result or a named error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from meshnn import vision
from meshnn.device import trial
from meshnn.device.trial import Trial
from meshnn.errors import (
    BusyError,
    DeadlineError,
    InputError,
    MeshError,
    ModelConflictError,
    ModelError,
    NodeError,
    NoPlanError,
    UnknownModelError,
)
from meshnn.graph.builder import Builder
from meshnn.graph.card import Card, CardTensor
from meshnn.graph.writer import write
from meshnn.node import library, service
from meshnn.node.pace import Pace
from tests.node.nodes import MODEL, NAME, PHOTO, WHOLE_BYTES, Device, check, mesh, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
DIGEST = hashlib.sha256(MODEL.read_bytes()).hexdigest()
SHORT_S = 0.3


@asynccontextmanager
async def alone(folder: Path, stock: Path | None = None, **sizes: int) -> AsyncIterator[Device]:
    """One node that leads itself."""
    async with mesh(folder) as home:
        (device,) = await home.start("a", **{"memory_bytes": WHOLE_BYTES, **sizes}, stock=stock)
        yield device


async def _live(folder: Path, stock: Path, up: asyncio.Future[Device], over: asyncio.Event) -> None:
    """A node from its beginning to its end, in one task."""
    async with alone(folder, stock) as device:
        up.set_result(device)
        await over.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def device(tmp_path_factory: pytest.TempPathFactory, stock: Path) -> AsyncIterator[Device]:
    """The node of the tests that leave it as they found it."""
    up: asyncio.Future[Device] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_live(tmp_path_factory.mktemp("service"), stock, up, over))
        yield await up
        over.set()


def small_model(path: Path, seed: int = 0) -> Path:
    """A model of one operator; another seed makes another file."""
    builder = Builder(np.random.default_rng(seed))
    result = builder.operator("RELU", (builder.input(1, 8 + seed),), (1, 8 + seed))
    path.write_bytes(write(builder.graph(result)).to_bytes())
    return path


def files_of(device: Device) -> set[str]:
    """The names of everything that lies in a state folder's model and card folders."""
    return {path.name for name in ("models", "cards") for path in (device.folder / name).iterdir()}


async def test_without_a_name_the_one_model_that_was_added_is_meant(tmp_path: Path, stock: Path) -> None:
    """One added: that one; none or several: the shipped one; a name nobody knows lists the choices."""
    async with alone(tmp_path, stock) as device:
        assert (await device.ask(None)).report["model"] == NAME
        check(await device.ask("default"))
        await device.node.service.add(small_model(tmp_path / "small.tflite"), "small", replace=False)
        assert (await device.ask(None)).report["model"] == "default"
        with pytest.raises(UnknownModelError, match=f"{NAME}, small"):
            await device.ask("nothing")
        device.node.service.remove(NAME)
        assert (await device.node.service.card(None)).name == "small"


async def test_raw_tensors_run_by_name(device: Device) -> None:
    """The library's way in: tensors by name, an outcome by index."""
    card = await device.node.service.card(NAME)
    inputs = dict(vision.read_inputs(PHOTO.read_bytes(), "cat.png", card))
    outcome = await device.node.service.tensors(NAME, inputs)
    answer = await device.ask()
    assert {t.name: outcome.outputs[t.index].tobytes() for t in card.outputs} == {
        name: array.tobytes() for name, array in answer.outputs.items()
    }


async def test_a_deadline_holds_wherever_the_time_goes(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo that takes for ever to decode, and an engine that is busy: no ask outlives its deadline."""
    over = threading.Event()
    read = vision.read_inputs

    def endless(data: bytes, name: str, card: Card) -> dict[str, vision.Array]:
        over.wait()
        return read(data, name, card)

    try:
        for model in (NAME, "default"):
            await device.ask(model)
            with monkeypatch.context() as patch:
                patch.setattr(vision, "read_inputs", endless)
                with pytest.raises(DeadlineError):
                    await device.ask(model, SHORT_S)
        device.node.engine._executor.submit(over.wait)
        for model in (NAME, "default"):
            with pytest.raises(DeadlineError):
                await device.ask(model, SHORT_S)
    finally:
        over.set()
    check(await device.ask("default"))


async def test_too_many_at_once_are_told_at_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a named error, and none before it."""
    monkeypatch.setattr(service, "WAITING_MAX", 2)
    outcomes = await asyncio.gather(*(device.ask() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, BusyError) for outcome in outcomes) == 3
    check(await device.ask())


async def test_what_could_not_be_answered_in_time_is_refused_at_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten seconds of work waiting a request of five has no hope and hears so, and one of a minute is taken."""
    verbs = device.node.service
    pace = Pace()
    now = verbs._clock() - 4.0
    for _ in range(140):
        pace.begin()
    for number in range(40):
        pace.end(answered=True, now=now + number * 0.1)
    monkeypatch.setattr(verbs, "_pace", pace)
    with pytest.raises(BusyError, match=r"100 requests wait .* some 10\.1 s"):
        await device.ask(NAME, 5.0)
    assert pace.open == 100
    check(await device.ask(NAME, 60.0))
    assert pace.open == 100


async def test_a_model_that_fits_nowhere_is_refused_at_once(tmp_path: Path, stock: Path) -> None:
    """`add` does not wait for its deadline, and `ask` says why there is no plan."""
    async with alone(tmp_path, stock, memory_bytes=200_000) as device:
        with pytest.raises(NoPlanError, match="MB"):
            await device.node.service.add(MODEL, NAME, replace=False, deadline_s=80)
        with pytest.raises(NoPlanError, match="MB"):
            await device.ask(NAME, SHORT_S)


async def test_what_is_refused_leaves_nothing(device: Device, tmp_path: Path) -> None:
    """A file that is no model, a name that is none, a name in use: the disk is as before."""
    text = tmp_path / "text.tflite"
    text.write_bytes(b"no model")
    other = small_model(tmp_path / "other.tflite")
    refused: list[tuple[str, Path, type[MeshError]]] = [
        ("good", text, ModelError),
        ("bad/name", other, ModelError),
        (NAME, other, ModelConflictError),
    ]
    before = files_of(device)
    for name, path, error in refused:
        with pytest.raises(error):
            await device.node.service.add(path, name, replace=False)
        assert files_of(device) == before, name
    check(await device.ask())


async def test_a_failed_trial_does_not_take_a_model_that_serves(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file added again while memory is short is refused, and goes on serving."""

    def short(*_: object, **__: object) -> Trial:
        raise ModelError("not enough memory just now")

    monkeypatch.setattr(library, "attempt", short)
    with pytest.raises(ModelError, match="just now"):
        await device.node.service.add(MODEL, "again", replace=False)
    assert device.node.store.path("model", DIGEST) is not None
    check(await device.ask())


async def test_an_add_that_nobody_waits_for_leaves_nothing(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller went away while the file was tried: it is dropped when the trial ends."""
    began, over = threading.Event(), threading.Event()
    attempt = trial.attempt

    def slow(path: Path, name: str = "") -> Trial:
        began.set()
        over.wait()
        return attempt(path, name)

    before = files_of(device)
    monkeypatch.setattr(library, "attempt", slow)
    path = small_model(tmp_path / "other.tflite")
    adding = asyncio.create_task(device.node.service.add(path, "late", replace=False))
    await until(began.is_set)
    assert files_of(device) != before
    adding.cancel()
    await asyncio.wait([adding])
    over.set()
    await until(lambda: files_of(device) == before)
    assert [record.name for record in device.node.core.catalogue.records] == [NAME]


async def test_two_adds_of_one_file_at_once(tmp_path: Path) -> None:
    """Both names serve, one file lies there; removing one name leaves the other."""
    async with alone(tmp_path) as device:
        path = small_model(tmp_path / "small.tflite")
        adds = [device.node.service.add(path, name, replace=False) for name in ("one", "two", "one")]
        assert {told["name"] for told in await asyncio.gather(*adds)} == {"one", "two"}
        assert len(list((device.folder / "models").iterdir())) == 1
        device.node.service.remove("one")
        await device.node.service.tensors("two", {t.name: _ones(t.shape) for t in await _inputs(device, "two")})


async def _inputs(device: Device, name: str) -> tuple[CardTensor, ...]:
    return (await device.node.service.card(name)).inputs


def _ones(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


async def test_a_full_disk_refuses_a_model_by_name(tmp_path: Path, stock: Path) -> None:
    """A model larger than the budget: one line that says what to do, nothing left, the rest served."""
    async with alone(tmp_path, stock, disk_bytes=6_000_000) as device:
        before = files_of(device)
        large = tmp_path / "large.tflite"
        large.write_bytes(MODEL.read_bytes() + bytes(8_000_000))
        with pytest.raises(NodeError, match="raise --disk"):
            await device.node.service.add(large, "large", replace=False)
        assert files_of(device) == before
        check(await device.ask())


async def test_a_file_that_rots_on_the_disk_is_never_cut(tmp_path: Path, stock: Path) -> None:
    """Shards of a damaged file would be wrong and look right: the file is dropped, with a reason."""
    async with mesh(tmp_path) as home:
        folder = tmp_path / "rotten"
        shutil.copytree(stock, folder)
        (path,) = (folder / "models").iterdir()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        (device,) = await home.start("a", memory_bytes=WHOLE_BYTES, stock=folder)
        await until(lambda: device.node.core.book.unplanned(NAME) is not None)
        with pytest.raises(NoPlanError, match=r"damaged on the disk|not on this device"):
            await device.ask(NAME, SHORT_S)
        assert device.node.store.path("model", DIGEST) is None


async def test_bad_input_is_named(device: Device) -> None:
    """What is no photo, and tensors that do not fit."""
    with pytest.raises(InputError, match=r"cat\.jpg"):
        await device.node.service.ask(b"no photo", "cat.jpg", model=NAME)
    small = {tensor.name: np.zeros((1, 2), np.uint8) for tensor in (await device.node.service.card(NAME)).inputs}
    with pytest.raises(InputError):
        await device.node.service.tensors(NAME, small)
