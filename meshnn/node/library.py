"""The models on this device: taken from a file, tried once, described by a card, cut into shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnn.cluster.member import DeviceId
from meshnn.device.mapping import mapped
from meshnn.device.part import digest_of_file
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
        self._taking = asyncio.Lock()
        self._cutting = asyncio.Lock()
        self._graphs: dict[str, tuple[Graph, Card]] = {}
        self._sound: set[str] = set()

    async def take(self, path: Path, name: str) -> Card:
        """Store a model file from outside: read, tried in a child process, described; ModelError, NodeError.

        What is refused, or whose taker goes away meanwhile, leaves nothing behind; a model that was here stays. Whoever
        goes away in the very moment in which all is done leaves a file without a name.
        """
        if not schema.available():
            raise ModelError("this device cannot read models (ai-edge-litert is not installed): add it on one that can")
        claim = _Claim()
        work = asyncio.get_running_loop().create_task(self._take_in_turn(path, name, claim))
        # What becomes of it when nobody waits any more is nobody's concern.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            claim.gone = True
            raise

    async def _take_in_turn(self, path: Path, name: str, claim: _Claim) -> Card:
        """Take a model alone, to the end: whoever takes the same file next must not meet a thread that drops it."""
        async with self._taking:
            claim.check()
            card, fresh = await asyncio.to_thread(self._take, path, name)
            if claim.gone and fresh:
                await asyncio.to_thread(self.forget, card.digest)
            claim.check()
            return card

    def forget(self, digest: str) -> None:
        """Drop a model and its card from this disk; what is not here is ignored. Blocks on the disk."""
        self._store.drop("model", digest)
        self._store.drop("card", digest)

    async def describe(self, digest: str, name: str) -> Card:
        """The card of a whole model on this disk, made anew and kept; ModelError, NodeError."""
        async with self._taking:
            return await asyncio.to_thread(self._describe, digest, name or digest[:12])

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

    def _take(self, path: Path, name: str) -> tuple[Card, bool]:
        """The card of a file that is stored now, and whether it was not here before."""
        here = digest_of_file(path)
        old = self._store.path("model", here) is not None
        digest, _ = self._store.add_model(path)
        try:
            return self._describe(digest, name), not old
        except BaseException:
            if not old:
                self.forget(digest)
            raise

    def _describe(self, digest: str, name: str) -> Card:
        stored = self._store.path("model", digest)
        if stored is None:
            raise ModelError(f"model {digest[:12]} is not on this device")
        graph = read(mapped(stored), name=name)
        tried: Trial = attempt(stored, name)
        card = card_of(with_shapes(graph, tried.shapes), digest, stored.stat().st_size, name)
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
            self._check(digest)
            graph = read(mapped(path), name=card.name)
            graph = with_shapes(graph, {tensor.index: tensor.shape for tensor in card.tensors if tensor.known})
            self._graphs[digest] = graph, card_of(graph, digest, card.size_bytes, card.name)
        return self._graphs[digest]

    def _check(self, digest: str) -> None:
        """Shards of a file that the disk has damaged would be wrong and look right: its digest, once in a life."""
        if digest not in self._sound:
            if not self._store.verify("model", digest, digest):
                raise ModelError(f"the file of model {digest[:12]} was damaged on the disk and is dropped")
            self._sound.add(digest)


@dataclass(slots=True)
class _Claim:
    """Whether whoever brought a model has gone away."""

    gone: bool = False

    def check(self) -> None:
        """ModelError where nobody waits any more."""
        if self.gone:
            raise ModelError("nobody waits for this model any more")


def shard_of(graph: Graph, card: Card, recipe: Recipe) -> Graph:
    """The standalone graph a recipe names; `card` describes the graph. ModelError where its split is refused."""
    return shard(graph, recipe.first, recipe.last, recipe.split, recipe.part, recipe.shares, card)
