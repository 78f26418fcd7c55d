"""The models on this device: taken from a file, tried once, described by a card, cut into shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from meshnn.cluster.member import DeviceId
from meshnn.device.mapping import mapped
from meshnn.device.store import Store
from meshnn.device.trial import Trial, attempt
from meshnn.errors import ModelError
from meshnn.graph import schema
from meshnn.graph.card import Card
from meshnn.graph.describe import card_of
from meshnn.graph.ir import Graph
from meshnn.graph.reader import read
from meshnn.graph.shapes import with_shapes
from meshnn.graph.splits.shard import shard
from meshnn.graph.writer import write
from meshnn.node.effects import Fetch
from meshnn.node.messages import NameRecord, Want
from meshnn.plan.messages import Fetch as ShardFile
from meshnn.plan.plan import Recipe


class Library:
    """Whole models, cards and shards on this disk; everything slow runs in a thread."""

    def __init__(
        self, me: DeviceId, store: Store, card: Callable[[str], Card | None], fetch: Callable[[Fetch], Awaitable[Path]]
    ) -> None:
        """`card` finds a card by digest; `fetch` brings a file from a peer."""
        self._me = me
        self._store = store
        self._card = card
        self._fetch = fetch
        self._cutting = asyncio.Lock()
        self._graphs: dict[str, tuple[Graph, Card]] = {}

    async def take(self, path: Path, name: str) -> Card:
        """Store a model file from outside: read, tried in a child process, described; ModelError, NodeError."""
        if not schema.available():
            raise ModelError("this device cannot read models (ai-edge-litert is not installed): add it on one that can")
        async with self._cutting:
            return await asyncio.to_thread(self._take, path, name)

    async def cut(self, recipes: Sequence[Recipe]) -> tuple[ShardFile, ...]:
        """The files of shards, cut where they are not here yet; ModelError."""
        async with self._cutting:
            try:
                return await asyncio.to_thread(self._cut_all, recipes)
            finally:
                self._graphs.clear()

    async def obtain(self, want: Want) -> Path:
        """The file a peer wants: from the disk, else (a shard of a model held here) cut now; ModelError."""
        path = self._store.path(want.kind, want.key)
        if path is None and want.recipe is not None and want.recipe.key == want.key:
            await self.cut([want.recipe])
            path = self._store.path(want.kind, want.key)
        if path is None:
            raise ModelError(f"no {want.kind} {want.key[:12]} here")
        return path

    async def whole(self, record: NameRecord, holders: tuple[DeviceId, ...]) -> Path:
        """The whole file of a model, fetched where it is not here; PeerError, NodeError."""
        path = self._store.path("model", record.digest)
        if path is not None:
            return path
        others = tuple(device for device in holders if device != self._me)
        return await self._fetch(Fetch("model", record.digest, record.size_bytes, record.digest, others))

    def _take(self, path: Path, name: str) -> Card:
        digest, stored = self._store.add_model(path)
        try:
            graph = read(mapped(stored), name=name)
            tried: Trial = attempt(stored)
            card = card_of(with_shapes(graph, tried.shapes), digest, stored.stat().st_size, name)
        except ModelError:
            self._store.drop("model", digest)
            raise
        self._store.save_card(card)
        return card

    def _cut_all(self, recipes: Sequence[Recipe]) -> tuple[ShardFile, ...]:
        return tuple(self._cut(recipe) for recipe in recipes)

    def _cut(self, recipe: Recipe) -> ShardFile:
        """One shard's file: its digest and size."""
        path = self._store.path("shard", recipe.key)
        if path is None:
            path = self._store.write_shard(recipe.key, write(shard_of(*self._graph(recipe.digest), recipe)).chunks())
        return ShardFile(recipe, self._store.digest_of("shard", recipe.key), path.stat().st_size, (self._me,))

    def _graph(self, digest: str) -> tuple[Graph, Card]:
        """A model held here, with every shape that its card states, and described anew, by this device's own rules."""
        if digest not in self._graphs:
            path = self._store.path("model", digest)
            card = self._card(digest)
            if path is None or card is None:
                raise ModelError(f"model {digest[:12]} is not on this device")
            graph = read(mapped(path), name=card.name)
            graph = with_shapes(graph, {tensor.index: tensor.shape for tensor in card.tensors})
            self._graphs[digest] = graph, card_of(graph, digest, card.size_bytes, card.name)
        return self._graphs[digest]


def shard_of(graph: Graph, card: Card, recipe: Recipe) -> Graph:
    """The standalone graph a recipe names; `card` describes the graph. ModelError where its split is refused."""
    return shard(graph, recipe.first, recipe.last, recipe.split, recipe.part, recipe.shares, card)
