"""Small borders: a device's key, a trial's report, files that come in pieces, replies of a local node."""

from __future__ import annotations

import hashlib
import http.client
import io
import random
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshnn.client import LocalNode
from meshnn.device import trial, trial_child
from meshnn.device.store import Store
from meshnn.errors import MeshError, ModelError, NodeError, PeerError
from meshnn.net.security import KEY_FILE, Identity
from tools.fuzz.border import Border
from tools.fuzz.files import Spoilt
from tools.fuzz.mutate import edge, mutated

PIECES_MAX = 200
KEY = "b" * 40


class Keys:
    """`device.key`, spoilt: a device starts with its key, or says in a line what is wrong with it."""

    def __init__(self, folder: Path) -> None:
        """A good key."""
        self._folder = folder / "identity"
        (self._folder / KEY_FILE).unlink(missing_ok=True)  # the episode before spoilt it
        Identity.load(self._folder)
        self._good = (self._folder / KEY_FILE).read_bytes()

    def draw(self, rng: random.Random) -> bytes:
        """The file's bytes."""
        return mutated(rng, self._good)

    def take(self, given: object) -> None:
        """Start with it."""
        assert isinstance(given, bytes)
        (self._folder / KEY_FILE).write_bytes(given)
        Identity.load(self._folder)

    def close(self) -> None:
        """Nothing is left."""


def _keys(rng: random.Random, folder: Path) -> Keys:
    return Keys(folder)


def _report(rng: random.Random, folder: Path) -> Spoilt:
    said = [trial_child.Ran({0: (1, 4), 7: ()}, (7,), 0.01, 10**6), trial_child.Refused("no such operator")]

    def take(data: bytes) -> None:
        report = trial._report("m", data)  # noqa: SLF001 - the border itself
        if isinstance(report, trial_child.Refused):
            trial.explain(report.reason)

    return Spoilt([msgspec.json.encode(one) for one in said], take)


Step = tuple[str, int, bytes]


class Pieces:
    """A shard's file that comes in pieces of any size, again and again; the count of bytes always comes out."""

    def __init__(self, folder: Path) -> None:
        """An empty store."""
        self._store = Store(folder / "pieces", 10_000)
        self._whole = random.Random(5).randbytes(1000)
        self._sha256 = hashlib.sha256(self._whole).hexdigest()

    def draw(self, rng: random.Random) -> list[Step]:
        """What becomes of one part."""
        steps: list[Step] = []
        for _ in range(rng.randint(1, 6)):
            size = rng.choice((0, 1, 100, 250, 500, 1000, edge(rng) % 12_000))
            honest = rng.random() < 0.7
            steps.append((rng.choice(("write",) * 4 + ("close", "finish", "again")), size, b"" if honest else b"x"))
        return [*steps, ("finish", 0, b"")]

    def take(self, given: object) -> None:
        """Do it."""
        assert isinstance(given, list)
        part = self._store.open_part("shard", KEY, 1000)
        try:
            for step, size, fill in given:
                assert self._store.used_bytes() <= self._store.budget_bytes, "more than the budget"
                match step:
                    case "write":
                        part.write((fill * size) if fill else self._whole[part.offset : part.offset + size])
                    case "finish":
                        path = part.finish(self._sha256)
                        assert path.read_bytes() == self._whole, "a file of other bytes was taken"
                        self._store.drop("shard", KEY)
                        return
                    case _:
                        part.close()
                        part = self._store.open_part("shard", KEY, 1000)
        finally:
            part.close()

    def close(self) -> None:
        """All of it can go."""
        self._store.drop("shard", KEY)
        assert self._store.used_bytes() == 0, "bytes without a file"


def _pieces(rng: random.Random, folder: Path) -> Pieces:
    return Pieces(folder)


@dataclass
class _Said:
    """A socket on which an answer lies ready."""

    data: bytes

    def sendall(self, data: bytes) -> None:
        """Nobody listens."""

    def settimeout(self, timeout_s: float) -> None:
        """There is no waiting."""

    def makefile(self, mode: str) -> io.BytesIO:
        """The answer."""
        return io.BytesIO(self.data)

    def close(self) -> None:
        """Nothing is held."""


REPLIES = [
    b'HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 14\r\nX-Json-Bytes: 12\r\n\r\n{"ok": true}PK',
    b'HTTP/1.1 404 Not Found\r\nContent-Length: 52\r\n\r\n{"error": {"code": "busy_error", "message": "none"}}',
    b"HTTP/1.0 503 Service Unavailable\r\nConnection: close\r\n\r\nbusy",
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\n\r\n',
]


def _reply(rng: random.Random, folder: Path) -> Spoilt:
    def take(data: bytes) -> None:
        node, connection = LocalNode(1), http.client.HTTPConnection("127.0.0.1", 1)
        connection.sock = _Said(data)
        node._connection = connection  # noqa: SLF001 - in the place of a process on that port
        node._used_at = float("inf")  # noqa: SLF001
        node.get("/api/v1/status")

    return Spoilt(REPLIES, take)


BORDERS = (
    Border("key", _keys, (NodeError,), share=0.1, suspicious_s=0.02),
    Border("report", _report, (ModelError,)),
    Border("part", _pieces, (PeerError, NodeError), share=0.5),
    Border("reply", _reply, (MeshError,)),
)
