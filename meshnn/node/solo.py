"""Whole models on this device alone: the one that ships with meshnn, and any other where there is no mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.mapping import mapped
from meshnn.device.part import digest_of_file
from meshnn.errors import UnknownModelError
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.reader import read
from meshnn.known_models import shipped_file
from meshnn.node.dataplane import Outcome
from meshnn.plan.messages import StageTime
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage

NAME = "default"


class Whole:
    """Runs whole models in the engine of this device; each is loaded at its first question."""

    def __init__(self, me: DeviceId, boot: BootId, engine: Engine) -> None:
        """`engine` may be shared with the node's shards."""
        self._me = me
        self._boot = boot
        self._engine = engine
        self._handles: dict[str, int] = {}
        self._loading = asyncio.Lock()

    async def run(self, path: Path, card: Card, inputs: Mapping[str, npt.NDArray[np.generic]]) -> Outcome:
        """One answer, inputs by name; ModelError."""
        async with self._loading:
            if card.digest not in self._handles:
                self._handles[card.digest] = (await self._engine.load(path)).handle
        ran = await self._engine.run(self._handles[card.digest], [inputs[tensor.name] for tensor in card.inputs])
        stage = Stage(0, len(card.operators) - 1, (Group((Shard(self._me, self._boot),)),))
        return Outcome(
            outputs={tensor.index: array for tensor, array in zip(card.outputs, ran.outputs, strict=True)},
            plan=Plan(Epoch(0, self._me, 0), card.name, card.digest, (Lane((stage,)),)),
            lane=0,
            groups=(0,),
            times=(StageTime(0, 0, self._me, ran.compute_s * 1000, 0),),
            attempts=1,
            latency_s=ran.compute_s,
            exact=True,
        )


class Shipped:
    """The default model: a name, a file, a card made when it is first asked for."""

    def __init__(self) -> None:
        """An installation may ship none."""
        self._path = shipped_file(f"{NAME}.tflite")
        self._card: Card | None = None
        self._describing = asyncio.Lock()

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
        async with self._describing:
            if self._card is None:
                self._card = await asyncio.to_thread(describe, self.path, NAME)
            return self._card


def describe(path: Path, name: str) -> Card:
    """The card of a model file that is known to run."""
    graph = read(mapped(path), name=name)
    return card_of(graph, digest_of_file(path), path.stat().st_size, name)
