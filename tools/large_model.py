"""`python -m tools.large_model MODEL`: what a model of hundreds of megabytes costs the device that cuts it, and a mesh.

First, in this process: digest, reading, describing, planning for devices that only together can hold it, cutting every
shard, writing each into a store, and running the golden vector of each. Then, with `--mesh FOLDER`, as many nodes on
this machine with that budget each: the model is added, asked from two of them and compared with the whole, and what
every node holds is listed. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device import golden
from meshnn.device.interpreter import Engine
from meshnn.device.mapping import mapped
from meshnn.device.part import digest_of_file
from meshnn.device.store import Store
from meshnn.graph.builder import random_inputs
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.splits.balance import proportional
from meshnn.graph.splits.layout import refusal, share_lengths
from meshnn.graph.writer import Written, write
from meshnn.node.library import shard_of
from meshnn.plan.devices import DeviceInfo, Links
from meshnn.plan.plan import Epoch, Plan, Recipe
from meshnn.plan.planner import solve_set
from tools.processes import Device, Mesh, until
from tools.whole import outputs_of

SAMPLE_S = 0.002
WAIT_S = 300.0
LIMIT_S, LIMIT_BYTES = 5.0, 1e9
SHARD_LIMIT_S, SHARD_LIMIT_BYTES = 2.0, 100e6


@dataclass(slots=True)
class Memory:
    """This process's memory while something goes on: the most it held in all, and the most that no file backs."""

    resident_bytes: int = 0
    anonymous_bytes: int = 0
    grown_bytes: int = 0
    took_s: float = 0.0
    worked_s: float = 0.0
    before: int = field(default=0, repr=False)

    def look(self) -> None:
        """Take the figures of now."""
        resident, anonymous = _status("self")
        self.resident_bytes = max(self.resident_bytes, resident)
        self.anonymous_bytes = max(self.anonymous_bytes, anonymous)
        self.grown_bytes = max(self.grown_bytes, anonymous - self.before)


@contextmanager
def watched() -> Iterator[Memory]:
    """Measure what is done inside: every two milliseconds."""
    memory = Memory(before=_status("self")[1])
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            memory.look()

    thread = threading.Thread(target=sample)
    thread.start()
    began, worked = time.monotonic(), time.thread_time()
    try:
        yield memory
    finally:
        memory.took_s, memory.worked_s = time.monotonic() - began, time.thread_time() - worked
        memory.look()
        over.set()
        thread.join()


def _status(process: int | str) -> tuple[int, int]:
    """A process's resident and anonymous bytes."""
    text = Path(f"/proc/{process}/status").read_text()
    found = {name: int(size) * 1024 for name, size in re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", text, re.MULTILINE)}
    return found["VmRSS"], found["RssAnon"]


def divided(path: Path, count: int, memory_bytes: int) -> tuple[Plan, list[tuple[Recipe, Written]]]:
    """From the file to a plan for equal devices and the shards ready to be written; prints what it took."""
    with watched() as memory:
        card, graph = _described(path)
        devices = [DeviceInfo(DeviceId(f"d{n}"), BootId("now"), memory_bytes, 1.0, name=f"d{n}") for n in range(count)]
        plan = solve_set(path.stem, card, devices, Links(), Epoch(1, devices[0].device, 1)).main
        recipes = dict.fromkeys(recipe for recipe, _ in plan.placements())
        cut = [(recipe, write(shard_of(graph, card, recipe))) for recipe in recipes]
    size_mb = path.stat().st_size / 1e6
    print(f"{path.name}, {size_mb:.0f} MB, over {len(plan.devices())} devices of {memory_bytes / 1e6:.0f} MB:")
    for stage in plan.lanes[0].stages:
        group = stage.groups[0]
        print(
            f"  operators {stage.first} to {stage.last}: {group.split}, "
            f"{len(group.shards)} devices {list(group.shares)}"
        )
    print(
        f"digest, reading, describing, planning, cutting {len(cut)} shards: {memory.took_s:.2f} s "
        f"(limit {LIMIT_S:.0f}), of these {memory.worked_s:.2f} s at work; "
        f"{memory.resident_bytes / 1e6:.0f} MB resident (limit {LIMIT_BYTES / 1e6:.0f}), "
        f"{memory.anonymous_bytes / 1e6:.0f} MB of them anonymous"
    )
    return plan, cut


def _described(path: Path) -> tuple[Card, Graph]:
    digest = digest_of_file(path)
    graph = read(mapped(path), name=path.stem)
    return card_of(graph, digest, path.stat().st_size, path.stem), graph


def by_inputs(path: Path, parts: int) -> list[tuple[Recipe, Written]]:
    """A part of the largest operator split by its inputs: columns of weights, all over the file."""
    card, graph = _described(path)
    able = [n for n in range(len(card.operators)) if refusal(card, n, n, "input") is None]
    largest = max(able, key=lambda n: card.operators[n].weight_bytes, default=None)
    if largest is None:
        return []
    shares = proportional(share_lengths(card, largest, largest, "input")[0], (1.0,) * parts, 1)
    recipe = Recipe(card.digest, largest, largest, "input", 0, shares)
    return [(recipe, write(shard_of(graph, card, recipe)))]


def written(cut: list[tuple[Recipe, Written]], folder: Path) -> bool:
    """Every shard into a store, as a node does it; prints each, and whether all were within the limits."""
    store = Store(folder)
    good = True
    shards = []
    for recipe, shard in cut:
        with watched() as memory:
            path = store.write_shard(recipe.key, shard.chunks())
        shards.append((recipe, path))
        good = good and memory.took_s < SHARD_LIMIT_S and memory.grown_bytes < SHARD_LIMIT_BYTES
        print(
            f"  operators {recipe.first} to {recipe.last}, {recipe.split} part {recipe.part}: "
            f"{path.stat().st_size / 1e6:.1f} MB in {memory.took_s:.2f} s (of these {memory.worked_s:.2f} s at work, "
            f"the rest waiting for the disk), {memory.grown_bytes / 1e6:.1f} MB more anonymous"
        )
    proved(shards)
    return good


def proved(shards: list[tuple[Recipe, Path]]) -> None:
    """Run the golden vector of every shard, as the device that cuts does before a plan is prepared; prints the time."""

    async def prove() -> None:
        engine = Engine()
        for recipe, path in shards:
            loaded = await engine.load(path)
            ran = await engine.run(loaded.handle, golden.inputs_for(loaded.inputs, recipe.key))
            golden.facts_of(ran.outputs, engine.numeric_class)
            engine.unload(loaded.handle)
        await engine.close()

    with watched() as memory:
        asyncio.run(prove())
    print(
        f"golden vectors of these {len(shards)} shards: {memory.took_s:.2f} s, "
        f"at most {memory.grown_bytes / 1e6:.0f} MB more anonymous"
    )


def served(path: Path, count: int, memory_mb: int, folder: Path) -> bool:
    """The model on a mesh of this machine; whether every answer was right and no node held more than its part."""
    names = [f"d{number}" for number in range(count)]
    with Mesh(folder) as mesh:
        devices = mesh.start(*names, options=("--memory", f"{memory_mb}MB", "--threads", "1"))
        until(lambda: all(device.sees(*names) for device in devices), WAIT_S, "the nodes find each other")
        began = time.monotonic()
        added = devices[0].meshnn("models", "add", str(path), "--deadline", str(WAIT_S), timeout_s=WAIT_S + 10)
        if added.code:
            print(f"models add failed: {added.err.strip()}")
            return False
        print(f"models add: {time.monotonic() - began:.1f} s")
        good = [_asked(path, devices[number], folder, number) for number in (0, count - 1)]
        plan = json.loads(devices[0].meshnn("plan", "show", "--json").out)[0]
        held = [_holds(device, plan) for device in devices]
        return all(good) and all(held)


def _asked(path: Path, device: Device, folder: Path, seed: int) -> bool:
    """One answer, compared with the whole model in every byte."""
    graph = read(mapped(path), name=path.stem)
    given = random_inputs(graph, np.random.default_rng(seed))
    inputs = {graph.tensors[t].name: value for t, value in given.items()}
    file, out = folder / f"input-{device.name}.npz", folder / f"output-{device.name}"
    arrays: dict[str, Any] = {f"input:{name}": value for name, value in inputs.items()}
    np.savez(file, **arrays)
    typed = ("ask", str(file), "--model", path.stem, "--json", "--tensors", str(out), "--deadline", "120")
    done = device.meshnn(*typed, timeout_s=150)
    if done.code:
        print(f"ask on {device.name} failed: {done.err.strip()} {done.out.strip()}")
        return False
    with np.load(out / file.name, allow_pickle=False) as arrays:
        found = dict(arrays)
    same = all(found[f"output:{name}"].tobytes() == array.tobytes() for name, array in outputs_of(path, inputs).items())
    print(
        f"ask on {device.name}: {done.json()['latency_ms']:.0f} ms, {'equal in every byte' if same else 'OTHER BYTES'}"
    )
    return same


def _holds(device: Device, plan: dict[str, object]) -> bool:
    """What a node has on its disk and in its memory; whether it maps its own shards and no model."""
    assert device.process is not None
    sizes = {kind: _sizes(device.folder / kind) for kind in ("models", "shards")}
    maps = Path(f"/proc/{device.process.pid}/maps").read_text()
    loaded = {Path(place).name for place in re.findall(r"\S+\.tflite", maps)}
    resident, anonymous = _status(device.process.pid)
    stages: list[dict[str, object]] = plan["stages"]  # type: ignore[assignment]
    mine = [f"{s['operators']} {s['split']}" for s in stages if s["device"] == device.name]
    print(
        f"{device.name}: {', '.join(mine) or 'nothing'}; shards {sum(sizes['shards'].values()) / 1e6:.1f} MB "
        f"({len(loaded & set(sizes['shards']))} loaded), models {sum(sizes['models'].values()) / 1e6:.0f} MB on disk; "
        f"memory {resident / 1e6:.0f} MB, {anonymous / 1e6:.0f} MB of it anonymous"
    )
    return not loaded & set(sizes["models"]) and len(loaded & set(sizes["shards"])) == len(mine)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.tflite")} if folder.is_dir() else {}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 only if everything was right and the writing within its limits."""
    parser = argparse.ArgumentParser(
        prog="tools.large_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--memory-mb", type=int, default=160, help="what each device offers")
    parser.add_argument("--mesh", type=Path, metavar="FOLDER", help="run the nodes too, with their state there")
    options = parser.parse_args(arguments)
    _, cut = divided(options.model, options.devices, options.memory_mb * 1_000_000)
    with tempfile.TemporaryDirectory(dir=options.mesh) as folder:
        good = written([*cut, *by_inputs(options.model, options.devices)], Path(folder))
    if options.mesh is not None:
        good = served(options.model.resolve(), options.devices, options.memory_mb, options.mesh.resolve()) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
