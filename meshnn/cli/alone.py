"""What a device does without a running node: keep a model for later, answer by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from meshnn.cli.wish import Wish
from meshnn.client import Reply
from meshnn.cluster.member import BootId, DeviceId
from meshnn.device.interpreter import Engine
from meshnn.device.records import load_record
from meshnn.device.store import Store
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
        library = Library(LOCAL, store, lambda _: None, _nothing)
        card: Card = asyncio.run(library.take(file, name))
        old = records.get(name)
        if old is not None and not old.removed and old.digest != card.digest and not replace:
            raise ModelConflictError(f"{name!r} is another file already; use --replace or --name")
        stamp = 1 if old is None else old.stamp + 1
        records[name] = NameRecord(name, card.digest, card.size_bytes, stamp, LOCAL)
        store.save_record("names", {"records": msgspec.to_builtins(tuple(records.values()))})
    return f"{name} is stored: {card.size_bytes / 1e6:.1f} MB; the mesh has it once `meshnn join` runs here"


def saved_names(folder: Path) -> tuple[NameRecord, ...]:
    """The model names a state folder knows, removed ones too; NodeError where they cannot be read."""
    return msgspec.convert(load_record(folder, "names").get("records", []), tuple[NameRecord, ...])


def stored_file(folder: Path, name: str) -> Path | None:
    """The file of a model that a state folder keeps, or None."""
    digest = next((record.digest for record in saved_names(folder) if record.name == name and not record.removed), None)
    return None if digest is None or not folder.is_dir() else Store(folder, DISK_BYTES).path("model", digest)


class Alone:
    """Answers on this device, with the model that was stored here or the one that ships."""

    def __init__(self, store: Store) -> None:
        """`store`: an opened state folder."""
        self._loop = asyncio.new_event_loop()
        self._engine = Engine(1)
        records = {record.name: record for record in saved_names(store.folder) if not record.removed}
        self._single = Single(LOCAL, BootId("0" * 16), self._engine, store, records)

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
    with _opened(folder) as store:
        alone = Alone(store)
        try:
            yield alone
        finally:
            alone.close()


async def _nothing(_: object) -> NoReturn:
    raise ModelError("no node runs here that could fetch a model")
