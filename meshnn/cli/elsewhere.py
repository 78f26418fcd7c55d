"""Who answers where no node runs here: a mesh nearby, asked over the peer protocol, or this device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshnn.cli.wish import Asker, Wish
from meshnn.client import Reply
from meshnn.config import load
from meshnn.http.visit import Visit, open_visit


@contextmanager
def asker(folder: Path) -> Iterator[Asker]:
    """Answers by a node nearby where there is one, else by this device alone."""
    config = load({"state_dir": str(folder)}, os.environ)
    with open_visit(config) as visit:
        if visit is not None:
            yield _by(visit)
            return
    from meshnn.cli.alone import answering

    with answering(folder) as alone:
        yield alone.ask


def _by(visit: Visit) -> Asker:
    def ask(data: bytes, source: str, wish: Wish) -> Reply:
        line, arrays = visit.ask(
            data, source, model=wish.model, top=wish.top, deadline_s=wish.deadline_s, tensors=wish.tensors is not None
        )
        return Reply(line, arrays)

    return ask
