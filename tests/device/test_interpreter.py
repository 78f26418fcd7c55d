"""Inference in its own thread: right answers, copies, refusals by name, cancellation, an orderly end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from meshnn.device import interpreter, runtime
from meshnn.device.interpreter import Engine
from meshnn.errors import BusyError, ModelError
from tests import shared_data
from tests.device import tiny

PATIENCE_S = 60


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine that is closed at the end."""
    made = Engine()
    yield made
    await made.close()


def row(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A [1, n] float32 tensor."""
    return np.array([values], np.float32)


class Gate:
    """Holds the engine's thread: what is submitted after it waits until `open`."""

    def __init__(self, engine: Engine) -> None:
        self._go = threading.Event()
        self.future = engine._executor.submit(self._go.wait, PATIENCE_S)

    def open(self) -> None:
        """Let the thread go on."""
        self._go.set()


async def test_a_shard_tells_its_ports_and_answers(engine: Engine, tmp_path: Path) -> None:
    """Ports come in the file's order with names, shapes and types; outputs are right and in order."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    assert [(port.name, port.shape, port.dtype) for port in loaded.inputs] == [
        ("a", (1, 4), "float32"),
        ("b", (1, 4), "float32"),
    ]
    assert [port.name for port in loaded.outputs] == ["sum", "double"]
    ran = await engine.run(loaded.handle, [row(1, 2, 3, 4), row(10, 20, 30, 40)])
    np.testing.assert_array_equal(ran.outputs[0], row(11, 22, 33, 44))
    np.testing.assert_array_equal(ran.outputs[1], row(22, 44, 66, 88))
    assert ran.compute_s > 0


async def test_a_run_under_a_quota_counts_as_long_as_the_quota_makes_it_in_the_long_run(
    engine: Engine, tmp_path: Path
) -> None:
    """One that passes at full speed says nothing of the pace: its processor time over the share of the quota does."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    free = await engine.run(loaded.handle, [row(1, 2, 3, 4)] * 2)
    assert free.paced_s == free.compute_s
    engine.quota_cores = 1e-6
    held = await engine.run(loaded.handle, [row(1, 2, 3, 4)] * 2)
    assert held.paced_s > 1000 * held.compute_s > 0


async def test_outputs_are_copies(engine: Engine, tmp_path: Path) -> None:
    """An answer is not overwritten by the next run, and holding it does not stop the next run."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    first = await engine.run(loaded.handle, [row(1, 1, 1, 1), row(0, 0, 0, 0)])
    await engine.run(loaded.handle, [row(7, 7, 7, 7), row(0, 0, 0, 0)])
    np.testing.assert_array_equal(first.outputs[0], row(1, 1, 1, 1))


async def test_inputs_may_be_views_of_a_receive_buffer(engine: Engine, tmp_path: Path) -> None:
    """Read-only views, views of a bytearray and strided views are taken as they are."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    received = bytearray(row(1, 2, 3, 4).tobytes())
    strided = np.arange(8, dtype=np.float32).reshape(1, 8)[:, ::2]
    view = np.frombuffer(received, np.float32).reshape(1, 4)
    ran = await engine.run(loaded.handle, [view, strided])
    np.testing.assert_array_equal(ran.outputs[0], row(1, 4, 7, 10))
    frozen = np.frombuffer(bytes(received), np.float32).reshape(1, 4)
    ran = await engine.run(loaded.handle, [frozen, frozen])
    np.testing.assert_array_equal(ran.outputs[0], row(2, 4, 6, 8))


@pytest.mark.parametrize(
    "value",
    [np.zeros((1, 4), np.int32), np.zeros((1, 5), np.float32), np.zeros(4, np.float32)],
    ids=["dtype", "size", "rank"],
)
async def test_a_value_that_does_not_fit_is_named(
    engine: Engine, tmp_path: Path, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    """A wrong type or shape is a ModelError naming the input, and the shard still runs."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    with pytest.raises(ModelError, match=r"'b' takes float32 \[1, 4\]"):
        await engine.run(loaded.handle, [row(1, 2, 3, 4), value])
    with pytest.raises(ModelError, match="1 inputs were given"):
        await engine.run(loaded.handle, [row(1, 2, 3, 4)])
    assert (await engine.run(loaded.handle, [row(1, 2, 3, 4)] * 2)).outputs[0][0, 3] == 8


async def test_a_file_the_runtime_refuses_is_a_model_error(engine: Engine, tmp_path: Path) -> None:
    """Garbage, an empty file, a missing one and a custom operator: one line each, and the engine goes on."""
    garbage = tmp_path / "garbage.tflite"
    for content in (b"", b"x" * 100):
        garbage.write_bytes(content)
        with pytest.raises(ModelError, match=r"garbage\.tflite: "):
            await engine.load(garbage)
    with pytest.raises(ModelError, match=r"nothing\.tflite"):
        await engine.load(tmp_path / "nothing.tflite")
    with pytest.raises(ModelError, match="Strange") as refusal:
        await engine.load(tiny.custom(tmp_path / "custom.tflite", "Strange"))
    assert "\n" not in str(refusal.value)
    assert "http" not in str(refusal.value)
    await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))


async def test_a_size_only_the_run_knows(engine: Engine, tmp_path: Path) -> None:
    """An output whose shape the run determines comes back in the shape of that run."""
    loaded = await engine.load(tiny.grown_by_value(tmp_path / "m.tflite"))
    for size in (3, 5):
        ran = await engine.run(loaded.handle, [np.array([size], np.int32)])
        assert ran.outputs[0].shape == (size,)


async def test_the_loop_runs_while_a_shard_runs(engine: Engine) -> None:
    """All inference happens in one thread which is not the loop's."""
    seen = await asyncio.wrap_future(engine._executor.submit(threading.current_thread))
    again = await asyncio.wrap_future(engine._executor.submit(threading.current_thread))
    assert seen is again
    assert seen is not threading.current_thread()


async def test_a_cancelled_run_never_runs_and_lets_its_inputs_go(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run cancelled while it waits is not run, and the ones behind it are."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    begun: list[object] = []
    real = interpreter._run

    def noted(shard: object, inputs: object, *rest: object) -> object:
        begun.append(inputs)
        return real(shard, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(interpreter, "_run", noted)
    gate = Gate(engine)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        dropped = group.create_task(engine.run(loaded.handle, [row(1, 1, 1, 1)] * 2))
        kept = group.create_task(engine.run(loaded.handle, [row(2, 2, 2, 2)] * 2))
        await asyncio.sleep(0)
        assert engine.waiting == 2
        dropped.cancel()
        await asyncio.wait([dropped])
        gate.open()
        assert (await kept).outputs[0][0, 0] == 4
    assert len(begun) == 1
    assert engine.waiting == 0


def test_an_abandoned_run_does_not_read_its_inputs(tmp_path: Path) -> None:
    """A job that begins after its caller has gone touches neither inputs nor interpreter."""
    shard = interpreter._load(tiny.add_and_double(tmp_path / "m.tflite"), 1, 1)
    claim = interpreter._Claim()
    claim.abandon()
    assert interpreter._run(shard, [row(1, 1, 1, 1)] * 2, claim, 1.0) is None


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """Beyond its bound the engine says that it is busy instead of queueing for ever."""
    engine = Engine(queue_limit=2)
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    gate = Gate(engine)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(engine.run(loaded.handle, [row(1, 1, 1, 1)] * 2)) for _ in range(2)]
        await asyncio.sleep(0)
        assert engine.waiting == 2
        with pytest.raises(BusyError):
            await engine.run(loaded.handle, [row(1, 1, 1, 1)] * 2)
        gate.open()
        await asyncio.gather(*waiting)
    await engine.close()


async def test_an_unloaded_shard_is_gone_and_runs_that_waited_are_answered(engine: Engine, tmp_path: Path) -> None:
    """`unload` takes effect for new runs at once; those that were accepted still finish; twice is harmless."""
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    gate = Gate(engine)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        accepted = group.create_task(engine.run(loaded.handle, [row(1, 1, 1, 1)] * 2))
        await asyncio.sleep(0)
        assert engine.waiting == 1
        engine.unload(loaded.handle)
        engine.unload(loaded.handle)
        with pytest.raises(ModelError, match="not loaded"):
            await engine.run(loaded.handle, [row(1, 1, 1, 1)] * 2)
        gate.open()
        assert (await accepted).outputs[0][0, 0] == 2


async def test_close_ends_the_thread_and_answers_everyone(tmp_path: Path) -> None:
    """Whoever waits at the end gets a named error, the thread is gone, closing twice is harmless."""
    engine = Engine()
    loaded = await engine.load(tiny.add_and_double(tmp_path / "m.tflite"))
    thread = await asyncio.wrap_future(engine._executor.submit(threading.current_thread))
    gate = Gate(engine)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        left = group.create_task(_error_of(engine, loaded.handle))
        await asyncio.sleep(0)
        assert engine.waiting == 1
        closing = group.create_task(engine.close())
        await asyncio.sleep(0)
        assert engine._closed
        gate.open()
        await closing
        assert "closed" in await left
    assert not thread.is_alive()
    await engine.close()
    with pytest.raises(ModelError, match="closed"):
        await engine.load(tmp_path / "m.tflite")


async def _error_of(engine: Engine, handle: int) -> str:
    with pytest.raises(ModelError) as error:
        await engine.run(handle, [row(1, 1, 1, 1)] * 2)
    return str(error.value)


async def test_memory_is_measured_and_given_back(engine: Engine, tmp_path: Path) -> None:
    """A shard of 36 MB of weights counts at least those, since the runtime repacks them into memory of its own."""
    loaded = await engine.load(tiny.dense(tmp_path / "big.tflite", 3000))
    assert 34_000_000 < loaded.measured_bytes < 150_000_000
    assert loaded.load_s > 0


@pytest.mark.parametrize(
    "name", ["coral__mobilenet_v2_1.0_224_quant", "tflite_support__mobilenet_v1_0.25_224_1_metadata_1"]
)
async def test_real_models_answer_as_the_bare_runtime_does(engine: Engine, name: str) -> None:
    """Every byte of a real model's answer is that of a plain Interpreter in this thread."""
    path = shared_data.model(name)
    loaded = await engine.load(path)
    port = loaded.inputs[0]
    values = np.random.default_rng(7).integers(0, 255, port.shape).astype(port.dtype)
    ran = await engine.run(loaded.handle, [values])
    bare = runtime.find().interpreter(path)
    bare.allocate_tensors()
    bare.set_tensor(port.index, values)
    bare.invoke()
    np.testing.assert_array_equal(ran.outputs[0], bare.get_tensor(loaded.outputs[0].index))
