"""The model that ships with meshnn, answered by this device alone (docs/decisions says why alone)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store, digest_of_file
from meshnn.errors import UnknownModelError
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.reader import read
from meshnn.node.dataplane import Outcome
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage

NAME = "default"


def default_path() -> Path | None:
    """Where the shipped model lies: in the installed package, or in the repository it runs from."""
    packaged = Path(str(resources.files("meshnn"))) / "models" / "default.tflite"
    source = Path(str(resources.files("meshnn"))).parent / "models" / "default.tflite"
    return next((path for path in (packaged, source) if path.is_file()), None)


class Solo:
    """One whole model on this device: loaded at the first question."""

    def __init__(self, me: DeviceId, boot: BootId, engine: Engine, store: Store | None) -> None:
        """`store` keeps the card, where there is one."""
        self._me = me
        self._boot = boot
        self._engine = engine
        self._store = store
        self._path = default_path()
        self._card: Card | None = None
        self._handle: int | None = None
        self._loading = asyncio.Lock()

    @property
    def name(self) -> str:
        """The default model's name, or "" where none ships."""
        return "" if self._path is None else NAME

    @property
    def path(self) -> Path:
        """The default model's file; UnknownModelError where none ships."""
        if self._path is None:
            raise UnknownModelError("this installation ships no default model: add one with `meshnn models add FILE`")
        return self._path

    async def card(self) -> Card:
        """The default model's card."""
        async with self._loading:
            if self._card is None:
                self._card = await asyncio.to_thread(describe, self.path, NAME)
            return self._card

    async def run(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> Outcome:
        """One answer from this device alone; ModelError."""
        card = await self.card()
        async with self._loading:
            if self._handle is None:
                self._handle = (await self._engine.load(self.path)).handle
        arrays, compute_s = await self._engine.run(self._handle, [inputs[tensor.name] for tensor in card.inputs])
        last = len(card.operators) - 1
        stage = Stage(0, last, (Group((Shard(self._me, self._boot),)),))
        plan = Plan(Epoch(0, self._me, 0), NAME, card.digest, (Lane((stage,)),))
        times = (StageTime(0, 0, self._me, compute_s * 1000, 0),)
        outputs = {tensor.index: array for tensor, array in zip(card.outputs, arrays, strict=True)}
        return Outcome(
            outputs=outputs, plan=plan, lane=0, groups=(0,), times=times, attempts=1, latency_s=compute_s, exact=True
        )


def describe(path: Path, name: str) -> Card:
    """The card of a model file that is known to run."""
    graph = read(np.memmap(path, dtype=np.uint8, mode="r"), name=name)
    return card_of(graph, digest_of_file(path), path.stat().st_size, name)
