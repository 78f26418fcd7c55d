"""`meshnn bench --check` with a line for each request, and an eye on answers nobody asked for.

Run as a process on a device's network: `python -m tools.chaos.asker STATE_FOLDER MODEL CONCURRENCY`.
Every line of its output is one request; after SIGTERM it finishes those under way and prints the report of `bench`
with `doubled` added.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from meshnn.cli import bench
from meshnn.cli.operators import card_of_json
from meshnn.cli.reference import Reference, seeded
from meshnn.client import LocalNode, need
from meshnn.errors import MeshError

CARD_S = 40.0
FILE_S = 120.0
PAUSE_S = 0.05
FOR_EVER_S = 1e9


class Caller(LocalNode):
    """A connection that can tell whether more came than was asked for."""

    def surplus(self) -> bool:
        """Whether bytes wait on the connection although every answer was read."""
        wire = self._connection.sock if self._connection is not None else None
        if wire is None or not select.select([wire], [], [], 0)[0]:
            return False
        try:
            return bool(wire.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False


@dataclass(slots=True)
class Journal:
    """One line for each request: when it began and ended (monotonic seconds), its attempts, what came of it."""

    out: IO[str]
    doubled: int = 0
    lines: list[str] = field(default_factory=list)

    def note(self, began_s: float, attempts: int, outcome: str) -> None:
        """Write a line at once: whoever ends this process ends no journal."""
        row = {"began_s": began_s, "ended_s": time.monotonic(), "attempts": attempts, "outcome": outcome}
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()


class TracedLoad(bench.Load):
    """The load of `bench`, each request noted."""

    def __init__(self, port: int, model: str, arrays: list[bench.Arrays], expected: list[bench.Arrays]) -> None:
        """As `bench.Load`, always checked."""
        super().__init__(port, model, arrays, expected)
        self.journal = Journal(sys.stdout)

    def end(self, *_: object) -> None:
        """Send no more requests."""
        self._until = 0.0

    def _work(self) -> None:
        node = Caller(self._http_port)
        number = self._take()
        while number is not None:
            self._ask(node, number % len(self._bodies))
            self.journal.doubled += node.surplus()
            number = self._take()
        # What comes twice may come late.
        select.select([], [], [], PAUSE_S)
        self.journal.doubled += node.surplus()
        node.close()

    def _ask(self, node: LocalNode, which: int) -> None:
        began_s = time.monotonic()
        try:
            reply = node.ask(self._bodies[which], "chaos", bench.DEADLINE_S, self._query)
        except MeshError as error:
            with self.tally.lock:
                self.tally.failed += 1
                self.tally.errors.append(f"{error.code}: {error}")
                self.journal.note(began_s, 0, f"{error.code}: {error}")
            return
        attempts = int(reply.json()["attempts"])
        assert self._expected is not None
        right = bench._equal(reply.rest, self._expected[which])  # noqa: SLF001 - the very check of `bench --check`
        with self.tally.lock:
            self.tally.latencies_ms.append((time.monotonic() - began_s) * 1000)
            self.tally.attempts_max = max(self.tally.attempts_max, attempts)
            self.tally.ok += right
            self.tally.wrong += not right
            self.journal.note(began_s, attempts, "ok" if right else "wrong")


def main(given: list[str]) -> int:
    """Ask until SIGTERM; 1 if anything failed, was wrong or came twice."""
    folder, model, concurrency = given
    node = need(Path(folder))
    card = card_of_json(node.request("GET", node.model_path(model, "/card"), timeout_s=CARD_S).line)
    arrays = [seeded(card, seed) for seed in range(bench.INPUTS)]
    data = node.request("GET", node.model_path(model, "/file"), timeout_s=FILE_S).line
    with Reference(data) as reference:
        expected = [dict(reference.run(card, each)) for each in arrays]
    load = TracedLoad(node.http_port, model, arrays, expected)
    signal.signal(signal.SIGTERM, load.end)
    report: dict[str, Any] = load.run(None, FOR_EVER_S, int(concurrency))
    report["doubled"] = load.journal.doubled
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if load.tally.failed or load.tally.wrong or load.journal.doubled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
