"""One file from a web server to this disk: resumed where it broke off, refused unless it is what was promised.

What came so far lies as `.part` in a folder of the caller's until it is whole; the next call goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO, Annotated
from urllib.parse import urlsplit

import msgspec

from meshnn.addresses import REDIRECTS_MAX, opener, problem_of
from meshnn.device import records
from meshnn.errors import DownloadError, ModelError, NodeError, UsageError

if sys.platform != "win32":
    import fcntl

TRIES = 5
"""Tries in a row that bring nothing new before a download is given up."""

STALL_S = 30.0
READ_BYTES = 64 << 10
# Kept free on the disk, for logs and records.
MARGIN_BYTES = 8_000_000
# No TFLite file is larger: the offsets inside it have 31 bits.
SIZE_MAX_BYTES = 1 << 31
PAUSE_MAX_S = 8.0
# Answers that may be better the next time.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

Told = Callable[[int, int | None], None]


class Source(msgspec.Struct, frozen=True):
    """A file elsewhere and what it must be; "" and None are what nobody knows."""

    url: str
    sha256: str = ""
    size_bytes: int | None = None


def source_of(text: str) -> Source:
    """The source of an address with or without `#sha256=HEX`; UsageError for anything but http and https."""
    address, _, fragment = text.partition("#")
    problem = problem_of(address)
    if problem:
        raise UsageError(f"{address!r} {problem}")
    if not fragment:
        return Source(address)
    found = re.fullmatch(r"sha256=([0-9A-Fa-f]{64})", fragment)
    if found is None:
        raise UsageError(f"'#{fragment[:80]}' is no digest: say #sha256= and 64 hexadecimal digits")
    return Source(address, found[1].lower())


def fetch(
    source: Source,
    folder: Path,
    told: Told,
    *,
    stall_s: float = STALL_S,
    pause: Callable[[float], object] | None = None,
) -> Path:
    """Download a file into a folder and check it: its place there, which the caller then owns.

    `told` hears the bytes that are here and the whole, or None where the server does not say. `pause` waits some
    seconds between two tries. DownloadError: it cannot be had; ModelError: it is not what was promised, and is
    deleted; NodeError: the disk refuses, or another process fetches it.
    """
    records.make_folder(folder)
    key = hashlib.sha256(source.url.encode()).hexdigest()[:32]
    with _part_of(folder / f"{key}.part") as file:
        _Fetching(source, file, folder / f"{key}.json", told, stall_s).run(pause or threading.Event().wait)
    return folder / f"{key}.part"


def discard(path: Path) -> None:
    """Delete what `fetch` left, and what it noted."""
    for each in (path, path.with_suffix(".json")):
        with contextlib.suppress(OSError):
            each.unlink()


# What may be said back to a server in a header: visible ASCII and spaces.
_SAYABLE = r"^[ -~]*\Z"


class _Note(msgspec.Struct, frozen=True):
    """What a later try must know of an earlier one: the version of the file, and its whole size."""

    validator: Annotated[str, msgspec.Meta(pattern=_SAYABLE)] = ""
    total: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _BrokenOffError(Exception):
    """A try ended early; another may go on."""


class _Fetching:
    """One download: tries, one after the other, that append to one file."""

    def __init__(self, source: Source, file: IO[bytes], note: Path, told: Told, stall_s: float) -> None:
        self._source = source
        self._file = file
        self._note_path = note
        self._part_path = note.with_suffix(".part")
        self._told = told
        self._opener = opener()
        self._stall_s = stall_s
        self._hasher = hashlib.sha256()
        self._have = 0
        self._furthest = 0
        self._resumed = False
        self._begun_anew = False
        self._note = _Note()

    def run(self, pause: Callable[[float], object]) -> None:
        """Try until the file is whole and right."""
        self._resume()
        vain = 0
        while not self._verified():
            before = self._furthest
            try:
                self._try()
                continue
            except _BrokenOffError as broken:
                reason = str(broken)
            vain = 0 if self._furthest > before else vain + 1
            if vain >= TRIES:
                raise DownloadError(self._given_up(reason))
            pause(min(PAUSE_MAX_S, 0.5 * 2**vain))

    def _given_up(self, reason: str) -> str:
        if self._have == 0:
            return f"{self._source.url} cannot be had, after {TRIES} tries: {reason}"
        whole = "" if self._total is None else f" of {_mb(self._total)}"
        return (
            f"{self._source.url} broke off again and again, at {_mb(self._have)}{whole}: {reason}; "
            "the same command goes on from there"
        )

    @property
    def _total(self) -> int | None:
        """The size of the whole file, as far as anybody said."""
        return self._source.size_bytes if self._source.size_bytes is not None else self._note.total

    def _resume(self) -> None:
        """Take up what an earlier call left, where it can be told to be of the same file."""
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._note = msgspec.json.decode(self._note_path.read_bytes(), type=_Note)
        if not self._note.validator and not self._source.sha256:
            self._start_over()
            return
        with _on_disk(self._part_path):
            self._file.seek(0)
            while piece := self._file.read(1 << 20):
                self._hasher.update(piece)
                self._have += len(piece)
        if self._total is not None and self._have > self._total:
            self._start_over()
        self._resumed = self._have > 0
        self._furthest = self._have

    def _start_over(self) -> None:
        with _on_disk(self._part_path):
            self._file.seek(0)
            self._file.truncate()
        self._hasher = hashlib.sha256()
        self._have = 0
        self._resumed = False

    def _verified(self) -> bool:
        """Whether the file is whole and right; ModelError, and it is gone, where it is whole and wrong."""
        if self._have != self._total:
            return False
        found = self._hasher.hexdigest()
        if not self._source.sha256 or found == self._source.sha256:
            with _on_disk(self._part_path):
                self._file.flush()
                records.settle(self._file.fileno())
            return True
        if self._resumed and not self._begun_anew:  # the beginning may be of another version of the file
            self._begun_anew = True
            self._start_over()
            return False
        self._refuse(f"has sha256 {found[:16]}..., not {self._source.sha256[:16]}...")
        return False

    def _refuse(self, why: str) -> None:
        """Delete what came and say why."""
        discard(self._part_path)
        raise ModelError(f"{self._source.url} {why}: refused and deleted")

    def _try(self) -> None:
        """One request, its body appended; _BrokenOffError where it ends early."""
        try:
            with self._opener.open(self._request(), timeout=self._stall_s) as response:
                self._begin(response.status, response.headers)
                self._take(response)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):  # it may be closed already, and `with error` would mind
                self._on_refusal(error)
        except urllib.error.URLError as error:
            raise self._unreached(error.reason) from None
        except UnicodeError:
            raise DownloadError(f"{self._source.url} is no address: its host cannot be looked up") from None
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenOffError(_why(error)) from None

    def _request(self) -> urllib.request.Request:
        headers = {"User-Agent": "meshnn", "Accept-Encoding": "identity"}
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
            if self._note.validator:
                headers["If-Range"] = self._note.validator
        return urllib.request.Request(self._source.url, headers=headers)  # noqa: S310 - `source_of` checked the scheme

    def _begin(self, status: int, headers: Message) -> None:
        """Where the body belongs: after what is here, or from the start where the server gives the whole again."""
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadError(f"{self._source.url} comes packed ({headers['Content-Encoding']}), unasked")
        if status == http.client.PARTIAL_CONTENT:
            total = self._continued(headers)
        elif status == http.client.OK:
            self._start_over()
            text = headers.get("Content-Length", "")
            total = int(text) if re.fullmatch(r"\d{1,18}", text) else None
        else:
            raise DownloadError(f"{self._source.url} answered {status}, which is no file")
        self._judge(total)
        self._remember(_Note(_validator(headers) or (self._note.validator if self._have else ""), total))
        self._check_room((self._total or self._have) - self._have)
        self._told(self._have, self._total)

    def _judge(self, total: int | None) -> None:
        """Refuse a whole size that cannot be right before anything is fetched."""
        expected = self._source.size_bytes
        if expected is not None and total not in {None, expected}:
            self._refuse(f"has {total} bytes, not the {expected} it should have")
        if total == 0:
            self._refuse("is empty")
        if total is not None and total > SIZE_MAX_BYTES:
            self._refuse(f"has {_mb(total)}, more than any TFLite model")

    def _continued(self, headers: Message) -> int | None:
        """The whole size from a partial answer; one that does not begin where we stopped cannot be used."""
        found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
        total = None if found is None or found[2] == "*" else int(found[2])
        changed = _differ(total, self._note.total) or _differ(_validator(headers), self._note.validator)
        if found is None or int(found[1]) != self._have or changed:
            self._start_over()
            raise _BrokenOffError("the server sent another part than was asked for")
        self._resumed = True
        return total

    def _remember(self, note: _Note) -> None:
        if note != self._note:
            self._note = note
            records.write_atomically(self._note_path, [msgspec.json.encode(note)])

    def _take(self, response: http.client.HTTPResponse) -> None:
        """Append the body; it may not go beyond what was promised, and must not end before."""
        most = SIZE_MAX_BYTES if self._total is None else self._total
        while piece := response.read1(READ_BYTES):
            if self._have + len(piece) > most:
                self._refuse(f"is longer than the {most} bytes it may have")
            if self._total is None:
                self._check_room(len(piece))
            self._append(piece)
            self._told(self._have, self._total)
        if self._have == 0 and self._total is None:
            self._refuse("is empty")
        if self._total is None:
            self._remember(_Note(self._note.validator, self._have))  # the end of the stream is all there is to go by
        elif self._have < self._total:
            raise _BrokenOffError("the connection ended")

    def _append(self, piece: bytes) -> None:
        with _on_disk(self._part_path):
            self._file.seek(self._have)
            self._file.write(piece)
            self._file.flush()
        self._hasher.update(piece)
        self._have += len(piece)
        self._furthest = max(self._furthest, self._have)

    def _check_room(self, more_bytes: int) -> None:
        free = shutil.disk_usage(self._note_path.parent).free
        if more_bytes + MARGIN_BYTES > free:
            if self._total is None:  # it may be endless: the disk is not left full of it
                self._start_over()
            raise NodeError(
                f"no room for {self._source.url}: {_mb(more_bytes)} more are needed, {_mb(free)} are free on the disk"
            )

    def _on_refusal(self, error: urllib.error.HTTPError) -> None:
        """An answer that is no success: all is here already, or it may pass, or it is the end."""
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._on_nothing_left(error.headers)
        elif error.code in PASSING:
            raise _BrokenOffError(f"the server answered {error.code}")
        elif 300 <= error.code < 400:
            raise DownloadError(
                f"{self._source.url} redirects in a circle, or more than {REDIRECTS_MAX} times, or to nowhere"
            )
        else:
            reason = http.client.responses.get(error.code, "no reason given")
            raise DownloadError(f"{self._source.url} cannot be had: {error.code} {reason}")

    def _on_nothing_left(self, headers: Message) -> None:
        """The server has nothing beyond what is here: so it is whole, or else not of this file."""
        if self._have and headers.get("Content-Range", "").strip() == f"bytes */{self._have}":
            self._remember(_Note(self._note.validator, self._have))
        if self._have != self._total:
            self._start_over()
            raise _BrokenOffError("the server has no such part")

    def _unreached(self, reason: object) -> Exception:
        """No connection came about: what will not pass by itself is said at once."""
        host = urlsplit(self._source.url).netloc
        if isinstance(reason, socket.gaierror):
            return DownloadError(f"{host} is not known: check the address, and whether this device is on the internet")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return DownloadError(f"{host} cannot prove who it is: {reason.verify_message}")
        return _BrokenOffError(_why(reason))


def _differ(one: object, other: object) -> bool:
    """Whether two things that are both known are not the same."""
    return bool(one and other and one != other)


def _validator(headers: Message) -> str:
    """What tells one version of the file from another: a strong ETag, else a date, else nothing."""
    tag = str(headers.get("ETag", ""))
    said = tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))
    return said if re.fullmatch(_SAYABLE, said) else ""


@contextmanager
def _part_of(path: Path) -> Iterator[IO[bytes]]:
    """The file that is being fetched, for this process alone."""
    with _on_disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    file = os.fdopen(descriptor, "r+b")
    with contextlib.closing(file):
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NodeError("another command is downloading this model already: wait for it") from None
        yield file


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """The disk's word as a NodeError."""
    try:
        yield
    except OSError as error:
        raise records.refused(path, error) from None


def _why(error: object) -> str:
    """What went wrong with a connection, in few words."""
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text[:80]}" if text else type(error).__name__


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
