"""The TFLite runtime of this device: LiteRT, else tflite-runtime; the same Interpreter either way."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from meshnn.errors import NodeError

Array = npt.NDArray[np.generic]

_PACKAGES = (
    ("ai-edge-litert", "litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite-runtime", "tflite_runtime.interpreter"),
)
_LINE_LENGTH_MAX = 300

# What XNNPACK and the reference kernels choose their code by; two devices with the same set run the same code.
_X86_FLAGS = frozenset(
    (
        "sse2", "ssse3", "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512cd", "avx512bw", "avx512dq",
        "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx512_fp16", "gfni", "avx_vnni", "avx_vnni_int8",
        "avx_vnni_int16", "avx10", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    )
)  # fmt: skip
_ARM_FLAGS = frozenset(
    (
        "neon", "vfpv3", "vfpv4", "asimd", "asimdrdm", "asimdhp", "fphp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve",
        "sve2", "sme", "sme2",
    )
)  # fmt: skip
_LEVELS = (
    "amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "avx", "sse4_1",
    "sme", "i8mm", "asimddp", "asimd", "neon",
)  # fmt: skip


class TensorInterpreter(Protocol):
    """What both packages' `Interpreter` offers of what this device uses."""

    def allocate_tensors(self) -> None:
        """Plan memory, apply the delegate, repack weights. Holds the GIL."""

    def invoke(self) -> None:
        """Run once. Releases the GIL."""

    def get_input_details(self) -> list[dict[str, Any]]:
        """One dictionary per input, in the file's order."""

    def get_output_details(self) -> list[dict[str, Any]]:
        """One dictionary per output, in the file's order."""

    def get_tensor_details(self) -> list[dict[str, Any]]:
        """One dictionary per tensor of the file, and after allocation per temporary."""

    def set_tensor(self, tensor_index: int, value: Array) -> None:
        """Copy a value in; ValueError where type or shape differ."""

    def get_tensor(self, tensor_index: int) -> Array:
        """A copy of a tensor's value."""

    def tensor(self, tensor_index: int) -> Callable[[], Array]:
        """A maker of views; ValueError where the tensor has no memory yet."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """An installed runtime: its short name, its version, and how to make an interpreter."""

    name: str
    version: str
    make: Callable[..., TensorInterpreter]
    plain: object
    """The operator resolver without default delegates, for questions about shapes."""

    def interpreter(self, path: Path, threads: int = 1, *, delegates: bool = True) -> TensorInterpreter:
        """An interpreter over a mapped file, not yet allocated; raises the runtime's own errors (`ERRORS`)."""
        extra: Mapping[str, object] = {} if delegates else {"experimental_op_resolver_type": self.plain}
        return self.make(model_path=str(path), num_threads=threads, **extra)


ERRORS = (ValueError, RuntimeError, TypeError, MemoryError, OSError, SystemError)
"""What an Interpreter raises on files and values it cannot take."""


@functools.cache
def find() -> Runtime:
    """The runtime of this device; NodeError where none is installed or numpy does not suit it."""
    for package, name, module in _PACKAGES:
        try:
            found = importlib.import_module(module)
            version = importlib.metadata.version(package)
        except ImportError:
            continue
        _check_numpy(name, np.__version__)
        plain = found.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return Runtime(name, version, found.Interpreter, plain)
    raise NodeError("no TFLite runtime is installed here: install ai-edge-litert, or tflite-runtime with numpy<2")


def _check_numpy(name: str, version: str) -> None:
    """Refuse tflite-runtime beside numpy 2: its import succeeds and its first Interpreter dies."""
    if name == "tflite-runtime" and int(version.split(".", 1)[0]) >= 2:
        raise NodeError(f"tflite-runtime does not work with numpy {version}: install numpy<2")


def available() -> bool:
    """Whether this device can run models at all."""
    try:
        find()
    except NodeError:
        return False
    return True


def reason(error: BaseException) -> str:
    """A runtime's error as one short line."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = re.sub(r"\s*See instructions:?\s*https?://\S*?(?=Node number|\s|$)\s*", " ", str(error))
    line = re.sub(r"\s+", " ", text).strip()
    return line[:_LINE_LENGTH_MAX] or "it gives no reason, as when memory runs out"


@functools.cache
def numeric_class(threads: int = 1) -> str:
    """Runtime, version and instruction set in at most 64 characters: equal strings compute equal bytes.

    The last part is a hash of every feature (and, on ARM, core design) that kernels are chosen by. More than one
    thread is part of it, since work is divided otherwise.
    """
    runtime = find()
    features = cpu_features()
    level = next((level for level in _LEVELS if level in features), "plain")
    mark = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]
    lanes = f"-t{threads}" if threads > 1 else ""
    return f"{runtime.name}-{runtime.version}-{platform.machine()[:10]}-{level}-{mark}{lanes}"[:64]


@functools.cache
def cpu_features() -> frozenset[str]:
    """The features of this CPU that kernels are chosen by; the processor's name where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset([platform.processor() or platform.machine()])
    return features_of(text)


def features_of(cpuinfo: str) -> frozenset[str]:
    """The features in the text of /proc/cpuinfo: of x86 the flags common to all cores, of ARM the core designs too."""
    listed = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    common = frozenset.intersection(*(frozenset(line.split()) for line in listed)) if listed else frozenset()
    parts = frozenset(f"part-{part.lower()}" for part in re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, re.MULTILINE))
    return (common & (_X86_FLAGS | _ARM_FLAGS)) | parts


_muted = threading.Lock()
_said = threading.Event()


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the runtime's one greeting ("Created TensorFlow Lite XNNPACK delegate") off standard error, once.

    Only the first use in a process diverts file descriptor 2, for the milliseconds of one allocation, which holds
    the GIL, so that no line of ours is lost.
    """
    with _muted:
        if _said.is_set():
            yield
            return
        try:
            kept = os.dup(2)
        except OSError:
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
            _said.set()
