"""A real web server on loopback that gives one file, well or badly, as a test tells it to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Manner = Callable[[BaseHTTPRequestHandler, "Shelf"], None]


@dataclass
class Shelf:
    """The file, how the next requests are to be served (honestly, when none is left), and what was asked for."""

    data: bytes
    address: str
    etag: str = '"first"'
    manners: list[Manner] = field(default_factory=list)
    always: Manner | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str]:
        """The Range of every request, "" for one without."""
        return [headers.get("Range", "") for headers in self.asked]


def honest(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
    """The file, or the part that was asked for, as HTTP says."""
    _answer(request, shelf, shelf.data)


def breaks_off(at: int) -> Manner:
    """Promises the file and closes the connection at this byte of it."""
    return lambda request, shelf: _answer(request, shelf, shelf.data, until=at)


def heedless(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
    """The whole file, whatever part was asked for."""
    _send(request, shelf, 200, {"Content-Length": str(len(shelf.data))}, shelf.data)


def gives(data: bytes) -> Manner:
    """Another file's bytes, honestly served."""
    return lambda request, shelf: _answer(request, shelf, data)


def says_length(length: int) -> Manner:
    """The file, under a length that is not its own."""
    return lambda request, shelf: _send(
        request, shelf, 200, {"Content-Length": str(length)}, shelf.data[: max(0, length)]
    )


def without_length(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
    """The file until the connection closes."""
    _send(request, shelf, 200, {}, shelf.data)


def without_length_until(at: int) -> Manner:
    """A beginning of the file, until the connection closes."""
    return lambda request, shelf: _send(request, shelf, 200, {}, shelf.data[:at])


def endless(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
    """Zeros until the other side has enough; 64 MB at most, to spare the disk of one that never has."""
    _send(request, shelf, 200, {}, b"")
    for _ in range(1000):
        request.wfile.write(bytes(65536))


def part(content_range: str) -> Manner:
    """A partial answer with a range of its own choice."""
    return lambda request, shelf: _send(
        request, shelf, 206, {"Content-Range": content_range, "Content-Length": "4"}, b"junk"
    )


def stalls(at: int) -> Manner:
    """Sends as far as this byte and then nothing more, the connection open."""

    def manner(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
        _answer(request, shelf, shelf.data, until=at)
        request.wfile.flush()
        shelf.over.wait()

    return manner


def status(code: int, **headers: str) -> Manner:
    """An answer without a file."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda request, shelf: _send(request, shelf, code, {"Content-Length": "0", **named}, b"")


def drags_on(place: str) -> Manner:
    """Leads elsewhere, with a page beside it that never comes."""

    def manner(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
        _send(request, shelf, 302, {"Location": place, "Content-Length": "1000000000"}, b"a page")
        request.wfile.flush()
        shelf.over.wait()

    return manner


def packed(request: BaseHTTPRequestHandler, shelf: Shelf) -> None:
    """A body that says it is compressed."""
    headers = {"Content-Length": str(len(shelf.data)), "Content-Encoding": "gzip"}
    _send(request, shelf, 200, headers, shelf.data)


@contextmanager
def serving(data: bytes) -> Iterator[Shelf]:
    """A server of one file at `/model.tflite` (and any other path)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.asked.append(dict(self.headers))
            manner = shelf.manners.pop(0) if shelf.manners else shelf.always or honest
            manner(self, shelf)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """The other side may go whenever it likes."""

    server = Server(("127.0.0.1", 0), Handler)
    shelf = Shelf(data, f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield shelf
    finally:
        shelf.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, shelf: Shelf, data: bytes, until: int | None = None) -> None:
    """The file or the part that was asked for; the body ends at byte `until` of the file, whatever was promised."""
    begin = _begin(request, shelf)
    if begin and begin >= len(data):
        _send(request, shelf, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}, b"")
        return
    headers = {"Content-Length": str(len(data) - begin)}
    if begin:
        headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
    _send(request, shelf, 206 if begin else 200, headers, data[begin:until])


def _begin(request: BaseHTTPRequestHandler, shelf: Shelf) -> int:
    """Where the part that was asked for begins; 0 where the version that was meant is another one."""
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    meant = request.headers.get("If-Range", shelf.etag)
    return int(found[1]) if found and meant == shelf.etag else 0


def _send(request: BaseHTTPRequestHandler, shelf: Shelf, code: int, headers: dict[str, str], body: bytes) -> None:
    request.send_response(code)
    for name, value in headers.items():
        request.send_header(name, value)
    if shelf.etag:
        request.send_header("ETag", shelf.etag)
    request.end_headers()
    request.wfile.write(body)
