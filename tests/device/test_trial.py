"""A file new to this device: what a trial in a child process tells, and how it survives what kills a runtime."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from meshnn.device import trial, trial_child
from meshnn.device.trial import attempt
from meshnn.errors import ModelError
from tests import shared_data
from tests.device import tiny


def refusal(path: Path, **limits: int) -> str:
    """The one line of a refused file."""
    with pytest.raises(ModelError) as error:
        attempt(path, **limits)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_file_tells_its_shapes(tmp_path: Path) -> None:
    """Shapes the file leaves empty are those of the run; nothing is left to the run alone."""
    tried = attempt(tiny.unstated(tmp_path / "m.tflite"))
    assert tried.shapes == dict.fromkeys(range(4), (1, 4))
    assert tried.dynamic == ()
    assert tried.run_s > 0
    assert tried.peak_bytes > 1_000_000


def test_what_only_a_run_determines_is_told(tmp_path: Path) -> None:
    """A shape made by values is marked, with the size it had in the trial (zeros in, so nothing out)."""
    tried = attempt(tiny.grown_by_value(tmp_path / "m.tflite"))
    assert tried.dynamic == (2,)
    assert tried.shapes[2] == (0,)


def test_a_missing_operator_is_named(tmp_path: Path) -> None:
    """A custom operator or a Flex one that the runtime lacks is named, with the runtime."""
    assert re.search(
        r"custom operator Strange, which .* does not have", refusal(tiny.custom(tmp_path / "c.tflite", "Strange"))
    )
    assert "FlexErf" in refusal(tiny.custom(tmp_path / "f.tflite", "FlexErf"))


def test_a_version_the_runtime_lacks_is_named() -> None:
    """A builtin operator in a version that is too new is named."""
    words = "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this builtin..."
    assert re.match(r"it needs FULLY_CONNECTED in version 12, which \S+ \S+ does not have", trial.explain(words))


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 5000])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, random and hostile bytes cost one child and one line."""
    path = tmp_path / "bad.tflite"
    path.write_bytes(content)
    assert refusal(path).startswith("bad.tflite: ")


def test_a_file_that_lies_about_its_tensors_is_refused(tmp_path: Path) -> None:
    """A tensor index beyond the file's tensors ends in a ModelError, whether the runtime sees it or dies of it."""
    assert refusal(tiny.wild(tmp_path / "wild.tflite")).startswith("wild.tflite: ")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """Half a model is refused."""
    whole = tiny.dense(tmp_path / "whole.tflite", 64).read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(whole[: len(whole) // 2])
    assert refusal(cut).startswith("cut.tflite: ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file, no child."""
    assert "No such file" in refusal(tmp_path / "none.tflite")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is bounded on Linux only")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 64 MB that may take 40 MB is refused by the limit of its child, not by the machine's end."""
    assert refusal(tiny.dense(tmp_path / "big.tflite", 4000), memory_bytes=40_000_000).startswith("big.tflite: ")


def test_time_is_bounded(tmp_path: Path) -> None:
    """A child that does not end in time is killed: no interpreter starts within a hundredth of a second."""
    path = tiny.dense(tmp_path / "m.tflite", 8)
    assert "took more than 0 s" in refusal(path, wall_s=0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("code", "stderr", "line"),
    [
        (-11, b"", "the runtime crashes on it (SIGSEGV)"),
        (-6, b"terminate called after throwing an instance of 'std::bad_alloc'", "it takes more than 7 MB"),
        (-24, b"", "too much processor time"),
        (-9, b"", "for want of memory"),
        (1, b"Traceback ...\nImportError: no numpy", "the trial failed: ImportError: no numpy"),
    ],
)
def test_a_death_is_put_in_words(code: int, stderr: bytes, line: str) -> None:
    """Each way a child dies has its line."""
    assert line in trial._death(code, stderr, 7_000_000)


def test_the_child_is_light() -> None:
    """The child imports neither the event loop nor anything else that a slow device would wait for."""
    source = Path(trial_child.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^(import|from) (asyncio|psutil|aiohttp|PIL)", source, re.MULTILINE)


def test_shapes_that_only_a_run_fixes_in_a_real_model() -> None:
    """`dilated_conv` makes its batch by arithmetic: the trial reports what the run made, not what the file says."""
    tried = attempt(shared_data.model("tflite_support__dilated_conv"))
    assert tried.shapes[35] == (36, 3, 3, 3)
    assert tried.shapes[36] == (36, 1, 1, 16)
    assert set(tried.dynamic) >= {35, 36}


def test_a_real_model_passes() -> None:
    """A real model with residuals passes, and its shapes are those of the file."""
    tried = attempt(shared_data.model("coral__mobilenet_v2_1.0_224_quant"))
    assert (1, 224, 224, 3) in tried.shapes.values()
    assert tried.dynamic == ()
    assert not np.isnan(tried.run_s)
