"""A program that asks through the library, many requests at once, every answer checked.

Run on a device's network:

    python -m tools.chaos.flood STATE_FOLDER MODEL DEADLINE_S PEER burst COUNT      COUNT requests at once
    python -m tools.chaos.flood STATE_FOLDER MODEL DEADLINE_S PEER pour RATE:SECONDS,RATE:SECONDS...

The state folder's node gives card and file of the model; PEER is HOST:PORT of the node to ask first. The first line
names the node that is asked; then there is one line for each request, in the order they end.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import meshnn
from meshnn.caller import Mesh
from meshnn.cli import bench
from meshnn.cli.operators import card_of_json
from meshnn.cli.reference import Reference, seeded
from meshnn.client import need
from meshnn.errors import MeshError

LOOK_S = 30.0
FILE_S = 120.0


@dataclass(slots=True)
class Flood:
    """The requests of one run; `began` and `ended` are monotonic seconds of this machine."""

    mesh: Mesh
    model: str
    bodies: list[bytes]
    expected: list[bench.Arrays]
    deadline_s: float

    async def ask(self, number: int) -> None:
        """One request; its line tells what came of it."""
        began_s, which = time.monotonic(), number % len(self.bodies)
        row: dict[str, object] = {"number": number, "began_s": began_s, "attempts": 0, "asked": 0}
        try:
            answer = await self.mesh.ask(
                self.bodies[which], model=self.model, deadline_s=self.deadline_s, tensors=True, source="flood"
            )
        except MeshError as error:
            row["outcome"] = error.code
        else:
            arrays = {n.removeprefix("output:"): a for n, a in answer.tensors().items() if n.startswith("output:")}
            right = all(arrays[n].tobytes() == a.tobytes() for n, a in self.expected[which].items())
            row |= {"attempts": answer.report["attempts"], "asked": answer.asked, "outcome": "ok" if right else "wrong"}
        print(json.dumps(row | {"ended_s": time.monotonic()}), flush=True)


async def numbers(schedule: str) -> AsyncIterator[int]:
    """The numbers of an open-loop schedule, each when its request is due, whatever has become of the others."""
    number, begin_s = 0, time.monotonic()
    for part in schedule.split(","):
        rate, seconds = map(float, part.split(":"))
        for step in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin_s + step / rate - time.monotonic()))
            yield number
            number += 1
        begin_s += seconds


async def flood(model: str, deadline_s: float, peer: str, mode: str, amount: str, given: tuple[object, ...]) -> None:
    """Connect, ask everything, wait for every outcome."""
    bodies, expected = given
    assert isinstance(bodies, list)
    assert isinstance(expected, list)
    with tempfile.TemporaryDirectory(prefix="meshnn-flood-") as folder:
        async with meshnn.connect(peers=peer, state_dir=folder, look_s=LOOK_S) as mesh:
            print(json.dumps({"ingress": mesh.devices[0]}), flush=True)
            pour = Flood(mesh, model, bodies, expected, deadline_s)
            async with asyncio.TaskGroup() as group:
                if mode == "burst":
                    for number in range(int(amount)):
                        group.create_task(pour.ask(number))
                else:
                    async for number in numbers(amount):
                        group.create_task(pour.ask(number))


def inputs(folder: str, model: str) -> tuple[list[bytes], list[bench.Arrays]]:
    """Seeded inputs as npz files, and the whole model's outputs for each."""
    node = need(Path(folder))
    card = card_of_json(node.request("GET", node.model_path(model, "/card"), timeout_s=FILE_S).line)
    data = node.request("GET", node.model_path(model, "/file"), timeout_s=FILE_S).line
    arrays = [seeded(card, seed) for seed in range(bench.INPUTS)]
    bodies = []
    for each in arrays:
        held = io.BytesIO()
        np.savez(held, **each)  # type: ignore[arg-type]
        bodies.append(held.getvalue())
    with Reference(data) as reference:
        return bodies, [dict(reference.run(card, each)) for each in arrays]


if __name__ == "__main__":
    gc.freeze()  # or this program's own pauses of 50 ms count as the mesh's
    state, name, limit, first, how, much = sys.argv[1:]
    asyncio.run(flood(name, float(limit), first, how, much, inputs(state, name)))
