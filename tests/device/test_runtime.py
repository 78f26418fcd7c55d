"""Which runtime is here, and which devices compute the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshnn.device import runtime
from meshnn.errors import NodeError
from tests.device import tiny

X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f\n\nprocessor\t: 1\nflags\t\t: fpu sse2 avx avx2 fma\n"
ARM = "Features\t: fp asimd asimddp\nCPU part\t: 0xD08\n\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd05\n"


def test_the_runtime_is_found() -> None:
    """The one that is installed, with its version, and an interpreter that answers from a file."""
    found = runtime.find()
    assert found.name in ("litert", "tflite-runtime")
    assert found.version[0].isdigit()
    assert runtime.available()


def test_tflite_runtime_is_refused_beside_numpy_2() -> None:
    """Its import succeeds there and its first Interpreter dies: so the version is looked at."""
    with pytest.raises(NodeError, match="numpy<2"):
        runtime._check_numpy("tflite-runtime", "2.4.6")
    runtime._check_numpy("tflite-runtime", "1.26.4")
    runtime._check_numpy("litert", "2.4.6")


def test_no_runtime_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either package the device says what to install."""
    monkeypatch.setattr(runtime, "_PACKAGES", (("absent", "absent", "no_such_module_here"),))
    with pytest.raises(NodeError, match="ai-edge-litert"):
        runtime.find.__wrapped__()


def test_features_are_those_all_cores_have() -> None:
    """A feature that one core lacks does not count; ARM's core designs do, for kernels are chosen by them."""
    assert runtime.features_of(X86) == {"sse2", "avx", "avx2", "fma"}
    assert runtime.features_of(ARM) == {"asimd", "asimddp", "part-0xd08", "part-0xd05"}
    assert runtime.features_of("") == frozenset()


def test_a_numeric_class_tells_runtime_processor_and_threads() -> None:
    """Short enough for gossip, equal for equal devices, another one for more threads."""
    found = runtime.find()
    plain = runtime.numeric_class()
    assert plain.startswith(f"{found.name}-{found.version}-")
    assert len(plain) <= 64
    assert runtime.numeric_class(1) == plain
    assert runtime.numeric_class(4) == f"{plain}-t4"


def test_a_reason_is_one_line_without_links() -> None:
    """The runtime's lines with addresses in them become one that a person can read."""
    words = "Encountered unresolved custom op: A.\nSee instructions: https://x.org/ops Node number 0 (A) failed."
    assert runtime.reason(RuntimeError(words)) == "Encountered unresolved custom op: A. Node number 0 (A) failed."
    assert runtime.reason(MemoryError()) == "not enough memory"
    assert runtime.reason(RuntimeError("")) == "it gives no reason, as when memory runs out"
    assert len(runtime.reason(ValueError("x" * 5000))) == 300


def test_the_first_interpreter_keeps_quiet(tmp_path: Path) -> None:
    """A process that loads a model prints nothing of the runtime's on standard error, and its own lines still come."""
    path = tiny.dense(tmp_path / "m.tflite", 64)
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom meshnn.device.interpreter import Engine\n"
        "async def main():\n    engine = Engine()\n    await engine.load(Path(sys.argv[1]))\n    await engine.close()\n"
        "asyncio.run(main())\nprint('ours', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stderr == "ours\n"
