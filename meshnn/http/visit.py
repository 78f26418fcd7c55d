"""A visit to a mesh nearby from synchronous code: this process links to its nodes as a caller, asks, and goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from meshnn.caller import Mesh, connect
from meshnn.config import Config
from meshnn.errors import MeshError


class Visit:
    """A mesh nearby, driven from synchronous code."""

    def __init__(self, loop: asyncio.AbstractEventLoop, mesh: Mesh) -> None:
        """Made by `open_visit`."""
        self._loop = loop
        self._mesh = mesh

    def ask(
        self, data: bytes, source: str, *, model: str | None, top: int, deadline_s: float, tensors: bool
    ) -> tuple[bytes, bytes]:
        """The JSON line of the answer and its npz; the errors of `caller.Mesh.ask`."""
        asked = self._mesh.ask_raw(data, source, model, top, deadline_s, tensors=tensors)
        line, arrays, _ = self._loop.run_until_complete(asked)
        return line, arrays


@contextmanager
def open_visit(config: Config) -> Iterator[Visit | None]:
    """A visit to a mesh nearby, or None where none is found."""
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        connection = connect(config)
        try:
            mesh = loop.run_until_complete(connection.__aenter__())
        except MeshError:
            yield None
            return
        try:
            yield Visit(loop, mesh)
        finally:
            loop.run_until_complete(connection.__aexit__(None, None, None))
