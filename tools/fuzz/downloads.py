"""The border of `meshnn models pull`: what a web server may answer, and what an earlier call may have left."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
import socket
from pathlib import Path
from unittest import mock

import msgspec

from meshnn.download import Source, discard, fetch
from meshnn.errors import MeshError
from tools.fuzz.border import Border
from tools.fuzz.mutate import edge, mutated

DATA = random.Random(5).randbytes(3000)
SHA256 = hashlib.sha256(DATA).hexdigest()
URL = "http://models.example/m.tflite"
CLOSED = b"Connection: close\r\n"
ANSWERS_MAX = 3
STALL_S = 5.0


def _whole(headers: bytes = b'ETag: "1"\r\n', data: bytes = DATA) -> bytes:
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n%s\r\n%s" % (CLOSED, len(data), headers, data)


def _rest(begin: int, size: int | None = None) -> bytes:
    rest = DATA[begin:]
    whole = b"%d" % (len(DATA) if size is None else size)
    return (
        b'HTTP/1.1 206 Partial Content\r\n%sContent-Length: %d\r\nETag: "1"\r\nContent-Range: bytes %d-%d/%s\r\n\r\n%s'
        % (CLOSED, len(rest), begin, len(DATA) - 1, whole, rest)
    )


def _refusal(status: bytes, headers: bytes = b"", body: bytes = b"no") -> bytes:
    return b"HTTP/1.1 %s\r\n%s%s\r\n%s" % (status, CLOSED, headers, body)


ANSWERS = [
    _whole(),
    _whole()[:-2000],
    _whole(b"Last-Modified: Mon, 30 Nov 2026 10:00:00 GMT\r\n", DATA[:1000]),
    _whole(b"Content-Encoding: gzip\r\n"),
    b"HTTP/1.0 200 OK\r\n\r\n" + DATA,
    b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\nbb8\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (CLOSED, DATA),
    _rest(1000),
    _rest(1000, size=9999),
    _rest(0),
    _refusal(b"416 Range Not Satisfiable", b"Content-Range: bytes */3000\r\n"),
    _refusal(b"302 Found", b"Location: http://models.example/other\r\n"),
    _refusal(b"307 Temporary Redirect", b"Location: ../up?x=1#y\r\n"),
    _refusal(b"301 Moved", b"Location: file:///etc/passwd\r\n"),
    _refusal(b"303 See Other", b"URI: http://[::1%25x]:99999/\r\n"),
    _refusal(b"503 Service Unavailable", b"Retry-After: 1\r\n"),
    _refusal(b"404 Not Found"),
    _refusal(b"204 No Content", b"", b""),
    b"HTTP/1.1 100 Continue\r\n\r\n" + _whole(),
    b"",
]
NOTES = [b'{"validator":"\\"1\\"","total":3000}', b'{"validator":"","total":null}', b'{"validator":"\\"2\\""}', b"{}"]


class Given(msgspec.Struct, frozen=True):
    """What lies there from an earlier call, what is asked for, and what every connection says."""

    part: bytes | None
    note: bytes | None
    sha256: str
    size_bytes: int | None
    answers: tuple[bytes, ...]


class _Line(socket.socket):
    """One end of a pair in place of a connection to a server: it has no TCP to set options of."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "not a TCP socket")


class Downloads:
    """Downloads from a server that says anything; what is taken is what was promised, and nothing else is left."""

    def __init__(self, folder: Path) -> None:
        """Nothing is fetched yet."""
        self._folder = folder / "downloads"
        shutil.rmtree(self._folder, ignore_errors=True)  # of the episode before
        self._folder.mkdir()
        self._stem = hashlib.sha256(URL.encode()).hexdigest()[:32]

    def draw(self, rng: random.Random) -> Given:
        """Mostly a beginning that fits and answers that nearly do."""
        part = None
        if rng.random() < 0.6:
            part = DATA[: rng.choice((0, 1000, 1000, 2000, 3000))]
            part = mutated(rng, part) if rng.random() < 0.2 else part
        note = rng.choice(NOTES) if rng.random() < 0.8 else None
        if note is not None and rng.random() < 0.4:
            note = mutated(rng, note, NOTES)
        answers = [rng.choice(ANSWERS) for _ in range(rng.randint(1, ANSWERS_MAX))]
        spoilt = [mutated(rng, one, ANSWERS) if rng.random() < 0.7 else one for one in answers]
        size = rng.choice((None, None, 3000, 3000, 1 + edge(rng)))
        return Given(part, note, SHA256 if rng.random() < 0.6 else "", size, tuple(spoilt))

    def take(self, given: object) -> None:
        """Fetch it; whatever is asked beyond the drawn answers is served well."""
        assert isinstance(given, Given)
        part = self._folder / f"{self._stem}.part"
        for path, data in ((part, given.part), (part.with_suffix(".json"), given.note)):
            if data is not None:
                path.write_bytes(data)
        answers = iter(given.answers)
        lines: list[socket.socket] = []

        def connect(*_: object, **__: object) -> socket.socket:
            near, far = socket.socketpair()
            lines.append(far)
            far.sendall(next(answers, _whole()))
            far.shutdown(socket.SHUT_WR)
            return _Line(fileno=near.detach())

        try:
            with mock.patch("socket.create_connection", connect):
                path = fetch(
                    Source(URL, given.sha256, given.size_bytes),
                    self._folder,
                    lambda have, total: None,
                    stall_s=STALL_S,
                    pause=lambda _: None,
                )
            self._judge(path, given)
        finally:
            for line in lines:
                line.close()
            discard(part)
            assert not list(self._folder.iterdir()), "more was left than what was fetched"

    def _judge(self, path: Path, given: Given) -> None:
        """What `fetch` gave is what the caller asked for."""
        data = path.read_bytes()
        assert not given.sha256 or hashlib.sha256(data).hexdigest() == given.sha256, "another file was taken"
        assert given.size_bytes is None or len(data) == given.size_bytes, "another size was taken"
        assert data, "nothing was taken for a file"

    def close(self) -> None:
        """Nothing is left."""


def _downloads(rng: random.Random, folder: Path) -> Downloads:
    return Downloads(folder)


BORDERS = (Border("download", _downloads, (MeshError,), share=0.3),)
