"""The child process of a trial: load one unknown file under limits, run it once, say what came of it.

Started as `python -P -m meshnn.device.trial_child FILE MEMORY_BYTES CPU_S WALL_S`; writes one JSON report on
standard output. Imports little, since it starts for every new model, on slow devices too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from meshnn.device import runtime
from meshnn.device.ports import fill_zeros, port_of
from meshnn.errors import MeshError

if sys.platform != "win32":
    import resource


class Ran(msgspec.Struct, frozen=True, tag="ran"):
    """The file ran: the shape of every tensor after the run by index, those only a run determines, seconds, peak."""

    shapes: dict[int, tuple[int, ...]]
    dynamic: tuple[int, ...]
    run_s: float
    peak_bytes: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The runtime refused the file, with its reason as one line."""

    reason: str


def limit(memory_bytes: int, cpu_s: int, wall_s: int) -> None:
    """Bound this process: address space beyond what it has, processor and wall time, no core file, no files."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        # Where the system runs out of memory, this process is to be ended and not the node that started it.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for kind, soft in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CPU, cpu_s)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        pages = 0
    ceiling = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, resource.getrlimit(resource.RLIMIT_AS)[1]))
    # The parent kills us first; this is for a parent that died.
    signal.alarm(wall_s + 5)


def shapes_of(path: Path) -> tuple[dict[int, tuple[int, ...]], tuple[int, ...]]:
    """The shape of every tensor of the file by index, and which are determined only by a run.

    Without delegates, for those leave tensors out. What has no memory after allocation waits for a run to size it;
    only then is one needed, and it is slow.
    """
    interpreter = runtime.find().interpreter(path, delegates=False)
    places = [int(detail["index"]) for detail in interpreter.get_tensor_details()]
    interpreter.allocate_tensors()
    dynamic = tuple(place for place in places if not _has_memory(interpreter, place))
    if dynamic:
        fill_zeros(interpreter, [port_of(detail) for detail in interpreter.get_input_details()])
        interpreter.invoke()
    details = {int(detail["index"]): detail for detail in interpreter.get_tensor_details()}
    shapes = {place: tuple(int(n) for n in details[place]["shape"]) for place in places if place in details}
    return shapes, dynamic


def _has_memory(interpreter: runtime.TensorInterpreter, place: int) -> bool:
    """Whether a tensor has its memory; the view is gone when this returns, as the next call of the runtime demands."""
    try:
        interpreter.tensor(place)()
    except ValueError:
        return False
    return True


def run_once(path: Path) -> Ran:
    """Load and run a file as a node would, after asking for its shapes; the runtime's errors."""
    shapes, dynamic = shapes_of(path)
    interpreter = runtime.find().interpreter(path)
    interpreter.allocate_tensors()
    inputs = [port_of(detail) for detail in interpreter.get_input_details()]
    for detail in interpreter.get_output_details():
        port_of(detail)
    fill_zeros(interpreter, inputs)
    start = time.perf_counter()
    interpreter.invoke()
    run_s = time.perf_counter() - start
    peak = 0
    if sys.platform != "win32":
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Ran(shapes, dynamic, run_s, peak)


def main(arguments: list[str]) -> None:
    """The whole trial; the report leaves by the old standard output, all chatter by standard error."""
    path, memory_bytes, cpu_s, wall_s = Path(arguments[0]), int(arguments[1]), int(arguments[2]), int(arguments[3])
    answer_to = os.dup(1)
    os.dup2(2, 1)
    report: Ran | Refused
    try:
        runtime.find()
        limit(memory_bytes, cpu_s, wall_s)
        report = run_once(path)
    except MeshError as error:
        report = Refused(str(error))
    except runtime.ERRORS as error:
        report = Refused(runtime.reason(error))
    with os.fdopen(answer_to, "wb") as out:
        out.write(msgspec.json.encode(report))
        out.flush()
    # Straight out: the tear-down of a runtime that an odd file has upset proves nothing.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
