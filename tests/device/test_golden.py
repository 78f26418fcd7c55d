"""The golden vector: what computes alike passes; other bytes, or more than kinds of processors explain, do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from meshnn.device.golden import difference, facts_of, inputs_for
from meshnn.device.interpreter import Engine
from meshnn.device.ports import Port
from meshnn.device.runtime import Array
from meshnn.graph.builder import Builder
from meshnn.graph.writer import write

KEY = "ab" * 20
SAME, OTHER = "same", "other"


def ports(dtype: str = "float32", scale: tuple[float, ...] = ()) -> list[Port]:
    """Two inputs."""
    return [Port("a", (1, 5, 5, 3), dtype, scale, (0,) * len(scale), 0), Port("b", (1, 40), dtype, scale, (), 1)]


def outputs(dtype: str, seed: int = 1) -> list[npt.NDArray[Any]]:
    """What a shard might give."""
    random = np.random.default_rng(seed)
    values = [random.standard_normal((1, 30, 30, 8)) * 50, random.standard_normal((1, 40)) * 50]
    return [value.astype(dtype) for value in values]


def judged(wanted: Sequence[Array], got: Sequence[Array], numeric_class: str) -> str | None:
    """What a device of a class says that made `got` where the cutter made `wanted`."""
    return difference(facts_of(got, numeric_class), facts_of(wanted, SAME), got)


def test_the_input_follows_from_the_recipe_alone() -> None:
    """The same everywhere, another for every shard; quantised integers use their whole range, others stay small."""
    one, again, other = (inputs_for(ports(), key) for key in (KEY, KEY, "cd" * 20))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert [(v.shape, v.dtype.name) for v in one] == [((1, 5, 5, 3), "float32"), ((1, 40), "float32")]
    wide = inputs_for(ports("int8", (0.5,)), KEY)[0]
    assert (int(wide.min()) < -60, int(wide.max()) > 60) == (True, True)
    assert set(np.unique(inputs_for(ports("int32"), KEY)[0])) == {0, 1}


@pytest.mark.parametrize("dtype", ["float32", "int8", "int32"])
def test_equal_bytes_pass_and_one_changed_bit_does_not(dtype: str) -> None:
    """Within one numeric class nothing but the same bytes will do."""
    wanted, got = outputs(dtype), outputs(dtype)
    assert judged(wanted, got, SAME) is None
    got[0].reshape(-1).view(np.uint8)[77] ^= 1
    assert "other bytes" in str(judged(wanted, got, SAME))


def test_another_class_may_differ_in_the_last_digits_and_no_more() -> None:
    """Rounding at every place passes; one value in thousands that is off by a part of the largest does not."""
    wanted, near, far = outputs("float32"), outputs("float32"), outputs("float32")
    near[0] = wanted[0] + np.float32(0.9e-5) * np.abs(wanted[0]).max() * np.sign(wanted[0])
    assert judged(wanted, near, OTHER) is None
    assert judged(wanted, near, SAME) is not None
    far[0][0, 3, 4, 5] += np.float32(0.2) * np.abs(wanted[0]).max()
    assert "output 0" in str(judged(wanted, far, OTHER))


def test_another_class_may_differ_by_steps_of_an_integer() -> None:
    """A step at every place passes; a channel of nonsense does not."""
    wanted, near, far = outputs("int8"), outputs("int8"), outputs("int8")
    near[0] = wanted[0] + np.random.default_rng(3).integers(-1, 2, near[0].shape).astype(np.int8)
    assert judged(wanted, near, OTHER) is None
    far[0][..., 2] = np.random.default_rng(4).integers(-128, 128, far[0].shape[:-1])
    assert "output 0" in str(judged(wanted, far, OTHER))


def test_what_is_not_finite_is_compared_as_bytes_and_left_out_of_sums() -> None:
    """Some layers of random input give infinities; they spoil no sum."""
    wanted, got = outputs("float32"), outputs("float32")
    for values in (wanted, got):
        values[0][0, 0, 0, 0] = np.inf
        values[1][0, 0] = np.nan
    assert judged(wanted, got, SAME) is None
    assert judged(wanted, got, OTHER) is None
    assert all(np.isfinite(facts_of(got, SAME).largest))


def test_a_sum_that_is_no_number_is_refused() -> None:
    """Facts from outside may hold anything; they never count as near."""
    got = outputs("float32")
    facts = facts_of(got, OTHER)
    lie = msgspec.structs.replace(facts, numeric_class=SAME, sketches=((float("nan"),) * 4,) * 2)
    assert difference(facts, lie, got) is not None
    short = msgspec.structs.replace(facts, numeric_class=SAME, sketches=facts.sketches[:1])
    assert "1 were wanted" in str(difference(facts, short, got))


async def test_real_shards_of_the_same_and_of_other_weights(tmp_path: Path) -> None:
    """Two engines agree on one file; a file of the same form with one weight changed is refused by both rules."""

    async def made(name: str, weight: float) -> list[Array]:
        builder = Builder(np.random.default_rng(1))
        weights = np.random.default_rng(2).standard_normal((10, 16)).astype(np.float32)
        weights[3, 5] += weight
        fixed = builder.constant(weights)
        x = builder.operator("FULLY_CONNECTED", (builder.input(1, 16), fixed), (1, 10))
        graph = builder.graph(x)
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(write(graph).to_bytes())
        engine = Engine()
        try:
            loaded = await engine.load(path)
            return (await engine.run(loaded.handle, inputs_for(loaded.inputs, KEY))).outputs
        finally:
            await engine.close()

    right, again, wrong = await made("a", 0.0), await made("b", 0.0), await made("c", 0.7)
    assert judged(right, again, SAME) is None
    assert judged(right, wrong, SAME) is not None
    assert judged(right, wrong, OTHER) is not None
