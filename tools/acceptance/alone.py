"""One device alone against bare LiteRT: what the mesh costs where there is none."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time

import numpy as np

from meshnn.device import runtime
from tools.acceptance.field import Field, Station
from tools.acceptance.probe import seeded_inputs
from tools.acceptance.verdict import Setting, Verdict

REQUESTS = 500
BLOCKS = 10
RATIO = 1.15
EXTRA_MS = 5.0
BENCH_S = 120.0
# Above this ratio of the clock to processor time somebody else had the processor.
BUSY = 1.25


def alone(setting: Setting) -> Verdict:
    """`bench` at concurrency 1 on one unlimited device, its blocks between blocks of bare invokes in this process."""
    verdict = Verdict("alone")
    bare = _Bare(setting)
    ours, theirs = [], []
    # A share of every processor is no limit, but it has its weight: other work on the machine comes after ours.
    with Field(dataclasses.replace(setting, cpu=os.cpu_count() or 1, rate=""), "alone", count=1) as field:
        field.start()
        field.add(field.stations[0])
        for block in range(BLOCKS):
            with field.rack.devices[0].sharing():
                theirs.append(bare.p50_ms(block))
            ours.append(_bench_p50_ms(field.stations[0], setting.name))
    mesh_ms = statistics.median(ours)
    bare_ms, cpu_ms = (statistics.median(column) for column in zip(*theirs, strict=True))
    limit_ms = RATIO * bare_ms + EXTRA_MS
    verdict.figures |= {
        "requests": REQUESTS,
        "bench_p50_ms": round(mesh_ms, 2),
        "bare_p50_ms": round(bare_ms, 2),
        "bare_processor_p50_ms": round(cpu_ms, 2),
        "limit_ms": round(limit_ms, 2),
    }
    quiet = f"the bare runtime took {bare_ms:.1f} ms for {cpu_ms:.1f} ms of work: the machine is too busy for a figure"
    verdict.check(bare_ms <= BUSY * cpu_ms, quiet)
    verdict.check(mesh_ms <= limit_ms, f"p50 {mesh_ms:.2f} ms is over {limit_ms:.2f} ms")
    return verdict


class _Bare:
    """The model on bare LiteRT, one thread."""

    def __init__(self, setting: Setting) -> None:
        self._interpreter = runtime.find().interpreter(setting.model)
        self._interpreter.allocate_tensors()
        self._seed = setting.seed

    def p50_ms(self, block: int) -> tuple[float, float]:
        """The median invoke of one block by the clock and in processor time, each with other seeded values."""
        rng = np.random.default_rng((self._seed, block))
        times, processor = [], []
        for _ in range(REQUESTS // BLOCKS):
            inputs = seeded_inputs(self._interpreter, rng)
            for row in self._interpreter.get_input_details():
                self._interpreter.set_tensor(row["index"], inputs[row["name"]])
            began, used = time.perf_counter(), time.process_time()
            self._interpreter.invoke()
            times.append((time.perf_counter() - began) * 1000)
            processor.append((time.process_time() - used) * 1000)
        return statistics.median(times), statistics.median(processor)


def _bench_p50_ms(station: Station, model: str) -> float:
    count = str(REQUESTS // BLOCKS)
    done = station.meshnn("bench", "--model", model, "--requests", count, "--json", timeout_s=BENCH_S)
    if done.code:
        raise RuntimeError(f"bench ended with {done.code}: {done.err.strip()} {done.out.strip()}")
    return float(done.json()["latency_ms"]["p50"])
