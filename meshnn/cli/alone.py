"""What a device does without a running node: keep a model for later, answer by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from meshnn.cli.stored import saved_names, stored_names
from meshnn.cli.wish import Wish
from meshnn.client import Reply
from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.store import Store, digest_of_file
from meshnn.errors import ModelConflictError, ModelError
from meshnn.graph.card import Card
from meshnn.node.answer import npz_of
from meshnn.node.catalogue import check_name
from meshnn.node.library import Library
from meshnn.node.messages import NameRecord
from meshnn.node.single import Single

LOCAL = DeviceId("local")
DISK_BYTES = 1 << 40


@contextmanager
def _opened(folder: Path) -> Iterator[Store]:
    store = Store(folder, DISK_BYTES)
    store.lock()
    try:
        yield store
    finally:
        store.unlock()


def store_model(folder: Path, file: Path, name: str, *, replace: bool) -> str:
    """Keep a model in the state folder for the node that will run on it; the line to print."""
    check_name(name)
    if not file.is_file():
        raise ModelError(f"{file} is no file")
    with _opened(folder) as store:
        records = {record.name: record for record in saved_names(folder)}
        old = records.get(name)
        if old is not None and not old.removed and old.digest != digest_of_file(file) and not replace:
            raise ModelConflictError(f"{name!r} is another file already; use --replace or --name")
        card: Card = asyncio.run(_library(store).take(file, name))
        stamp = 1 if old is None else old.stamp + 1
        records[name] = NameRecord(name, card.digest, card.size_bytes, stamp, LOCAL)
        store.save_record("names", {"records": msgspec.to_builtins(tuple(records.values()))})
    return f"{name} is stored: {card.size_bytes / 1e6:.1f} MB; the mesh has it once `meshnn join` runs here"


class Alone:
    """Answers on this device, with the model that was stored here or the one that ships."""

    def __init__(self, store: Store) -> None:
        """`store`: a state folder, which another process may read at the same time."""
        names = stored_names(store.folder)
        self._loop = asyncio.new_event_loop()
        self._engine = Engine(1)
        self._single = Single(LOCAL, BootId("0" * 16), self._engine, store, names, _library(store).describe)

    def ask(self, data: bytes, source: str, wish: Wish) -> Reply:
        """Answer one input; the errors of `node.single.Single.ask`."""
        asked = self._single.ask(data, source, wish.model, wish.top, wish.deadline_s)
        answer = self._loop.run_until_complete(asked)
        arrays = npz_of(answer) if wish.tensors else b""
        return Reply(msgspec.json.encode(answer.report), arrays)

    def close(self) -> None:
        """End the runtime's thread."""
        self._loop.run_until_complete(self._engine.close())
        self._loop.close()


@contextmanager
def answering(folder: Path) -> Iterator[Alone]:
    """This device as the one that answers; it says so."""
    click.echo("meshnn: no mesh found; this device answers alone", err=True)
    alone = Alone(Store(folder, DISK_BYTES))
    try:
        yield alone
    finally:
        alone.close()


def _library(store: Store) -> Library:
    """The models of a state folder, without peers."""
    return Library(LOCAL, store, lambda _: None, _nothing)


async def _nothing(_: object) -> NoReturn:
    raise ModelError("no node runs here that could fetch a model")
