"""`make bench`: what the mesh costs over bare LiteRT on this machine, as ratios of medians measured in one run."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from meshnn.cli.operators import card_of_file
from meshnn.cli.reference import seeded
from meshnn.device import runtime
from tools.processes import Device, Mesh, until

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "default.tflite"
NAMES = ("one", "two", "three")
ROUNDS = 3
SEE_S = 90.0


def main(arguments: list[str] | None = None) -> int:
    """Print one row a mesh: the median of a request, and its ratio to the runtime's own invoke."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="meshnn-bench-") as folder:
        print(f"{options.model.name}, {options.requests} requests x {ROUNDS} rounds, one at a time")
        for count, memory in ((1, None), (3, options.memory)):
            with Mesh(Path(folder) / str(count)) as mesh:
                _row(mesh, count, memory, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.bench", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--memory", default="3MB", help="of each of three devices, so that they must share the model")
    return parser


def _row(mesh: Mesh, count: int, memory: str | None, options: argparse.Namespace) -> None:
    """Measure one mesh, bare runs and requests in turns."""
    names = NAMES[:count]
    devices = mesh.start(*names, options=("--memory", memory) if memory else ())
    until(lambda: all(device.sees(*names) for device in devices), SEE_S, "the devices find each other")
    added = devices[0].meshnn("models", "add", str(options.model), "--name", "benched")
    if added.code:
        sys.exit(added.err.strip())
    bare: list[float] = []
    asked: list[float] = []
    for _ in range(ROUNDS):
        bare.append(_bare_ms(options.model, options.requests))
        asked.append(_asked_ms(devices[0], options.requests))
    stages = devices[0].status()["plans"][0]["stages"]
    mine, bared = median(asked), median(bare)
    print(
        f"{count} device(s), {len(stages)} stage(s): {mine:.2f} ms a request, bare invoke {bared:.2f} ms, "
        f"ratio {mine / bared:.2f}, on top {mine - bared:.2f} ms"
    )


def _asked_ms(device: Device, requests: int) -> float:
    done = device.meshnn("bench", "--model", "benched", "--requests", str(requests), "--json", timeout_s=600)
    if done.code:
        sys.exit(f"bench failed: {done.err}{done.out}")
    return float(done.json()["latency_ms"]["p50"])


def _bare_ms(model: Path, requests: int) -> float:
    """The median of the runtime's own invoke, one thread."""
    interpreter = runtime.find().interpreter(model)
    interpreter.allocate_tensors()
    inputs = seeded(card_of_file(model), 0)
    for row in interpreter.get_input_details():
        interpreter.set_tensor(row["index"], inputs[row["name"]])
    times: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - began) * 1000)
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
