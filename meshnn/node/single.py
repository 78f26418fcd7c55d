"""Questions answered without a node: this device, its stored models, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from meshnn import vision
from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store
from meshnn.errors import DeadlineError, ModelError, UnknownModelError
from meshnn.graph.card import Card
from meshnn.node.answer import Answer, Question, answer_of
from meshnn.node.messages import NameRecord
from meshnn.node.solo import Shipped, Whole


class Single:
    """Answers with whole models on this device."""

    def __init__(
        self,
        me: DeviceId,
        boot: BootId,
        engine: Engine,
        store: Store,
        records: Mapping[str, NameRecord],
        describe: Callable[[str, str], Awaitable[Card]],
    ) -> None:
        """`records`: the models stored here, by name; `describe` makes the card of a digest anew, given a name."""
        self._describe = describe
        self._me = me
        self._store = store
        self._records = dict(records)
        self._shipped = Shipped()
        self._whole = Whole(me, boot, engine)

    async def ask(self, data: bytes, source: str, model: str | None, top: int, deadline_s: float) -> Answer:
        """Answer one photo or npz: InputError, UnknownModelError, ModelError, DeadlineError."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s):
                name, path, card = await self._resolve(model)
                inputs = await asyncio.to_thread(vision.read_inputs, data, source, card)
                outcome = await self._whole.run(path, card, inputs)
                question = Question(source, name, top)
                took_s = time.monotonic() - started
                return await answer_of(question, card, inputs, outcome, took_s, {self._me: "this device"})
        except TimeoutError:
            raise DeadlineError(f"{source} was not answered within {deadline_s:g} s") from None

    async def _resolve(self, model: str | None) -> tuple[str, Path, Card]:
        """The model that is meant: without a name the one that is stored, else the default."""
        if model is None and len(self._records) == 1:
            model = next(iter(self._records))
        if model in self._records:
            return (model, *await self._stored(self._records[model]))
        if model not in {None, self._shipped.name} or not self._shipped.name:
            choices = ", ".join([*sorted(self._records), *([self._shipped.name] if self._shipped.name else [])])
            raise UnknownModelError(f"no model {model or 'to ask'!r} on this device; known: {choices or 'none'}")
        return self._shipped.name, self._shipped.path, await self._shipped.card()

    async def _stored(self, record: NameRecord) -> tuple[Path, Card]:
        path = await asyncio.to_thread(self._store.path, "model", record.digest)
        if path is None:
            raise UnknownModelError(f"the file of {record.name} is not on this device; start a node with `meshnn join`")
        held = await asyncio.to_thread(self._card, record.digest)
        return path, held if held is not None else await self._describe(record.digest, record.name)

    def _card(self, digest: str) -> Card | None:
        """The card that is kept here; None where it is lost, damaged or of another version."""
        path = self._store.path("card", digest)
        try:
            return None if path is None else self._store.load_card(path)
        except ModelError:
            return None
