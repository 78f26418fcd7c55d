"""Downloads from a real server on loopback that breaks off, lies about the length and serves wrong bytes."""

from __future__ import annotations

import email.message
import hashlib
import http.client
import io
import random
import socket
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from meshnn import addresses, download
from meshnn.download import Source, fetch, source_of
from meshnn.errors import DownloadError, MeshError, ModelError, NodeError, UsageError
from tests import web
from tests.web import Shelf

DATA = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
STALL_S = 30.0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to loopback goes there, whatever this machine's way to the internet is."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """A server that has the file."""
    with web.serving(DATA) as made:
        yield made


class Fetch:
    """`fetch` into one folder, with what it told and how often it paused."""

    def __init__(self, folder: Path) -> None:
        """Nothing is fetched yet."""
        self.folder = folder
        self.told: list[tuple[int, int | None]] = []
        self.pauses: list[float] = []

    def __call__(
        self, shelf: Shelf, *, sha256: str = SHA256, size: int | None = None, path: str = "/model.tflite"
    ) -> Path:
        """Fetch the shelf's file."""
        return self.source(Source(f"{shelf.address}{path}", sha256, size))

    def source(self, source: Source, stall_s: float = STALL_S) -> Path:
        """Fetch any source."""
        return fetch(
            source,
            self.folder,
            lambda have, total: self.told.append((have, total)),
            stall_s=stall_s,
            pause=self.pauses.append,
        )

    def left(self) -> list[str]:
        """What kinds of files lie in the folder."""
        return sorted(path.suffix for path in self.folder.iterdir())


@pytest.fixture
def fetched(tmp_path: Path) -> Fetch:
    """Downloads into a folder of this test's."""
    return Fetch(tmp_path / "downloads")


def _one_line(error: MeshError) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


def test_a_whole_file_arrives_as_it_was_sent(shelf: Shelf, fetched: Fetch) -> None:
    """One request, every byte, and the progress ends where the file does."""
    assert fetched(shelf, size=len(DATA)).read_bytes() == DATA
    assert shelf.ranges == [""]
    assert fetched.told == sorted(fetched.told)
    assert (fetched.told[0], fetched.told[-1]) == ((0, len(DATA)), (len(DATA), len(DATA)))
    assert fetched.pauses == []


def test_a_file_without_a_digest_arrives_too(shelf: Shelf, fetched: Fetch) -> None:
    """An address is enough."""
    assert fetched(shelf, sha256="").read_bytes() == DATA


def test_a_download_goes_on_where_it_broke_off(shelf: Shelf, fetched: Fetch) -> None:
    """The rest alone is asked for, of the same version only."""
    shelf.manners = [web.breaks_off(100_000), web.breaks_off(200_000)]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-", "bytes=200000-"]
    assert [headers.get("If-Range") for headers in shelf.asked] == [None, '"first"', '"first"']
    assert len(fetched.pauses) == 2


def test_a_connection_that_falls_silent_is_given_up_and_resumed(shelf: Shelf, fetched: Fetch) -> None:
    """No hang: silence counts as broken off."""
    shelf.manners = [web.stalls(150_000)]
    path = fetched.source(Source(f"{shelf.address}/model.tflite", SHA256), stall_s=1.0)
    assert path.read_bytes() == DATA
    assert shelf.ranges[:2] == ["", "bytes=150000-"]


def test_tries_that_bring_nothing_end_in_an_error_and_the_next_call_resumes(shelf: Shelf, fetched: Fetch) -> None:
    """Five in vain after the last that brought bytes; what came stays, and is not asked for again."""
    shelf.always = web.breaks_off(120_000)
    with pytest.raises(DownloadError, match=r"broke off.*0\.1 MB of 0\.3 MB.*goes on") as raised:
        fetched(shelf)
    _one_line(raised.value)
    assert len(shelf.asked) == 1 + download.TRIES
    shelf.always = None
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges[-1] == "bytes=120000-"


def test_what_is_whole_already_is_not_asked_for_again(shelf: Shelf, fetched: Fetch) -> None:
    """A second call finds the checked file."""
    fetched(shelf)
    assert fetched(shelf).read_bytes() == DATA
    assert len(shelf.asked) == 1


def test_a_server_that_ignores_the_range_sends_it_all_again(shelf: Shelf, fetched: Fetch) -> None:
    """The beginning is not written twice."""
    shelf.manners = [web.breaks_off(100_000), web.heedless]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-"]


def test_another_version_is_fetched_from_its_start(shelf: Shelf, fetched: Fetch) -> None:
    """If-Range: two versions are never mixed, digest or not."""
    shelf.manners = [web.breaks_off(100_000)]
    shelf.always = web.breaks_off(100_000)
    with pytest.raises(DownloadError):
        fetched(shelf, sha256="")
    shelf.data, shelf.etag, shelf.always = DATA[::-1], '"second"', None
    assert fetched(shelf, sha256="").read_bytes() == DATA[::-1]


def test_a_server_that_mixes_versions_is_found_out(shelf: Shelf, fetched: Fetch) -> None:
    """A part under another ETag begins the download anew, even where If-Range was not heeded."""

    def mixes(request: BaseHTTPRequestHandler, on: Shelf) -> None:
        on.data, on.etag = DATA[::-1], '"second"'
        del request.headers["If-Range"]
        web.honest(request, on)

    shelf.manners = [web.breaks_off(100_000), mixes]
    assert fetched(shelf, sha256="").read_bytes() == DATA[::-1]
    assert shelf.ranges == ["", "bytes=100000-", ""]


def test_without_a_version_or_a_digest_nothing_is_resumed_later(shelf: Shelf, fetched: Fetch) -> None:
    """Where nothing can tell two versions apart, a later call starts over."""
    shelf.etag = ""
    shelf.always = web.breaks_off(100_000)
    with pytest.raises(DownloadError):
        fetched(shelf, sha256="")
    shelf.asked.clear()
    shelf.always = None
    assert fetched(shelf, sha256="").read_bytes() == DATA
    assert shelf.ranges == [""]


@pytest.mark.parametrize(
    "content_range", ["bytes 5-8/300000", "bytes 100000-100003/9", "nonsense", f"bytes 100000-100003/{1 << 40}"]
)
def test_a_part_that_was_not_asked_for_is_not_taken(shelf: Shelf, fetched: Fetch, content_range: str) -> None:
    """Another beginning, another size or no range at all: from the start again."""
    shelf.manners = [web.breaks_off(100_000), web.part(content_range)]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-", ""]


def test_a_beginning_that_is_spoilt_costs_one_more_download(shelf: Shelf, fetched: Fetch) -> None:
    """The digest tells after the resumed end; once more from the start, and it is right."""
    shelf.always = web.breaks_off(100_000)
    with pytest.raises(DownloadError):
        fetched(shelf)
    spoilt = next(fetched.folder.glob("*.part"))
    spoilt.write_bytes(bytes(100_000))
    shelf.always = None
    shelf.asked.clear()
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["bytes=100000-", ""]


def test_a_beginning_longer_than_the_file_is_none(shelf: Shelf, fetched: Fetch) -> None:
    """What lies there and is too long is not asked to go on."""
    shelf.always = web.breaks_off(100_000)
    with pytest.raises(DownloadError):
        fetched(shelf)
    next(fetched.folder.glob("*.part")).write_bytes(bytes(len(DATA) + 1))
    shelf.always = None
    shelf.asked.clear()
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == [""]


def test_a_weak_tag_is_not_held_against_a_part(shelf: Shelf, fetched: Fetch) -> None:
    """HTTP lets only a strong one stand in If-Range: with a weak one the digest alone decides."""
    shelf.etag = 'W/"weak"'
    shelf.manners = [web.breaks_off(100_000)]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-"]
    assert all("If-Range" not in headers for headers in shelf.asked)


def test_a_part_without_a_tag_keeps_the_first_ones(shelf: Shelf, fetched: Fetch) -> None:
    """A server that names the version only once is still asked for that version."""

    def silent(request: BaseHTTPRequestHandler, on: Shelf) -> None:
        on.etag = ""
        del request.headers["If-Range"]
        request.headers["If-Range"] = ""
        web.breaks_off(200_000)(request, on)
        on.etag = '"first"'

    shelf.manners = [web.breaks_off(100_000), silent]
    assert fetched(shelf, sha256="").read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-", "bytes=200000-"]
    assert shelf.asked[-1]["If-Range"] == '"first"'


def test_wrong_bytes_are_refused_and_deleted(shelf: Shelf, fetched: Fetch) -> None:
    """Right size, wrong digest: nothing of it stays, and it is not tried again."""
    shelf.always = web.gives(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(ModelError, match="sha256") as raised:
        fetched(shelf, size=len(DATA))
    assert raised.value.exit_code == 4
    assert SHA256[:16] in _one_line(raised.value)
    assert fetched.left() == []
    assert len(shelf.asked) == 1


def test_wrong_bytes_after_a_break_are_refused_too(shelf: Shelf, fetched: Fetch) -> None:
    """The second copy from the start is wrong as well: refused, not tried for ever."""
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    shelf.manners = [web.breaks_off(100_000)]
    shelf.always = web.gives(wrong)
    with pytest.raises(ModelError, match="refused and deleted"):
        fetched(shelf)
    assert fetched.left() == []
    assert len(shelf.asked) == 3


def test_wrong_bytes_that_always_break_off_are_refused_at_the_second_end(shelf: Shelf, fetched: Fetch) -> None:
    """A resumed download is begun anew once: not again and again."""
    wrong = web.gives(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    shelf.manners = [web.breaks_off(100_000), wrong, web.breaks_off(100_000), wrong]
    with pytest.raises(ModelError, match="refused and deleted"):
        fetched(shelf)
    assert shelf.ranges == ["", "bytes=100000-", "", "bytes=100000-"]


def test_a_length_that_promises_too_much_is_a_break(shelf: Shelf, fetched: Fetch) -> None:
    """Bytes that never come are asked for a few times, and then it is said."""
    shelf.always = web.says_length(len(DATA) + 1000)
    with pytest.raises(DownloadError, match="broke off"):
        fetched(shelf, sha256="")
    assert len(shelf.asked) <= 2 + download.TRIES


def test_a_length_that_promises_too_little_is_refused(shelf: Shelf, fetched: Fetch) -> None:
    """The digest of a file cut short is not the file's."""
    shelf.always = web.says_length(len(DATA) - 1000)
    with pytest.raises(ModelError, match="sha256"):
        fetched(shelf)
    assert fetched.left() == []


def test_a_size_that_is_not_the_catalogues_is_refused_before_it_is_fetched(shelf: Shelf, fetched: Fetch) -> None:
    """The length alone tells."""
    with pytest.raises(ModelError, match="300000 bytes, not the 299999"):
        fetched(shelf, size=len(DATA) - 1)
    assert fetched.told == []
    assert fetched.left() == []


def test_a_body_beyond_its_size_is_cut(shelf: Shelf, fetched: Fetch) -> None:
    """A stream without end or length is left at the first byte too many."""
    shelf.always = web.endless
    with pytest.raises(ModelError, match="longer than the 300000"):
        fetched(shelf, size=len(DATA))
    assert fetched.left() == []


def test_a_body_larger_than_any_model_is_refused(shelf: Shelf, fetched: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound holds where nobody knows the size: on what is said, and on what comes."""
    monkeypatch.setattr(download, "SIZE_MAX_BYTES", 200_000)
    with pytest.raises(ModelError, match="more than any TFLite model"):
        fetched(shelf, sha256="")
    shelf.always = web.endless
    with pytest.raises(ModelError, match="longer than the 200000"):
        fetched(shelf, sha256="")
    assert fetched.left() == []


def test_a_body_without_length_is_checked_by_its_digest(shelf: Shelf, fetched: Fetch) -> None:
    """The end of the connection is the end of the file; the digest says whether that is true."""
    shelf.always = web.without_length
    assert fetched(shelf).read_bytes() == DATA
    assert fetched.told[0] == (0, None)


def test_a_body_without_length_that_ends_early_is_resumed_where_the_size_is_known(shelf: Shelf, fetched: Fetch) -> None:
    """The catalogue's size says that more is to come."""
    shelf.manners = [web.without_length_until(50_000)]
    assert fetched(shelf, size=len(DATA)).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=50000-"]


def test_an_empty_file_is_refused(shelf: Shelf, fetched: Fetch) -> None:
    """Nothing is no model, with a length or without."""
    shelf.manners = [web.status(200), web.without_length_until(0)]
    for _ in range(2):
        with pytest.raises(ModelError, match="empty"):
            fetched(shelf, sha256="")
    assert fetched.left() == []


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final(shelf: Shelf, fetched: Fetch, code: int) -> None:
    """One request, one line with the code."""
    shelf.always = web.status(code)
    with pytest.raises(DownloadError, match=str(code)) as raised:
        fetched(shelf)
    assert raised.value.exit_code == 1
    _one_line(raised.value)
    assert (len(shelf.asked), fetched.pauses) == (1, [])


def test_a_server_that_is_busy_is_asked_again(shelf: Shelf, fetched: Fetch) -> None:
    """503 and 429 pass; where they do not, it is said."""
    shelf.manners = [web.status(503), web.status(429)]
    assert fetched(shelf).read_bytes() == DATA
    shelf.always = web.status(503)
    with pytest.raises(DownloadError, match="503"):
        fetched(shelf, path="/other.tflite")
    assert len(shelf.asked) == 3 + download.TRIES


def test_no_file_at_all_is_an_error(shelf: Shelf, fetched: Fetch) -> None:
    """A success without a file, or one that is packed unasked."""
    shelf.manners = [web.status(204), web.packed]
    with pytest.raises(DownloadError, match="204"):
        fetched(shelf)
    with pytest.raises(DownloadError, match="gzip"):
        fetched(shelf)


def test_a_range_beyond_the_end_starts_over(shelf: Shelf, fetched: Fetch) -> None:
    """416 where the file has become shorter: from the start."""
    shelf.manners = [web.breaks_off(100_000), web.status(416, Content_Range="bytes */50000")]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "bytes=100000-", ""]


def test_a_range_at_the_end_says_that_all_is_here(shelf: Shelf, fetched: Fetch) -> None:
    """416 that names just our size: the file is whole, though nobody had said how long it is."""
    shelf.manners = [web.without_length]
    path = fetched(shelf, sha256="")
    path.with_suffix(".json").write_bytes(b'{"validator":"\\"first\\""}')
    assert fetched(shelf, sha256="").read_bytes() == DATA
    assert shelf.ranges == ["", f"bytes={len(DATA)}-"]


def test_redirects_are_followed_with_the_range(shelf: Shelf, fetched: Fetch) -> None:
    """A few steps to the file, on resuming too."""
    there = web.status(302, Location=f"{shelf.address}/there.tflite")
    shelf.manners = [there, web.breaks_off(100_000), there, web.honest]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.ranges == ["", "", "bytes=100000-", "bytes=100000-"]


def test_redirects_are_bounded(shelf: Shelf, fetched: Fetch) -> None:
    """A circle, and a way that is too long."""
    shelf.always = web.status(302, Location="/model.tflite")
    with pytest.raises(DownloadError, match="circle"):
        fetched(shelf)
    asked = len(shelf.asked)
    assert asked <= 1 + addresses.REDIRECTS_MAX
    shelf.always = None
    shelf.manners = [web.status(302, Location=f"/{step}") for step in range(20)]
    with pytest.raises(DownloadError, match=f"more than {addresses.REDIRECTS_MAX} times"):
        fetched(shelf)
    assert len(shelf.asked) - asked <= 1 + addresses.REDIRECTS_MAX


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://u:p@127.0.0.1/"])
def test_redirects_lead_to_http_alone(shelf: Shelf, fetched: Fetch, place: str) -> None:
    """A server cannot make this device read its own files or speak other protocols."""
    shelf.always = web.status(302, Location=place)
    with pytest.raises(DownloadError) as raised:
        fetched(shelf)
    assert "http" in _one_line(raised.value) or "circle" in str(raised.value)
    assert len(shelf.asked) == 1
    assert next(fetched.folder.glob("*.part")).read_bytes() == b""


@pytest.mark.parametrize(
    "note",
    [
        b'{"validator":"\\"2\\r","total":300000}',
        b'{"validator":"2\\n","total":300000}',
        b'{"validator":"x","total":0}',
        b"no note",
    ],
)
def test_a_note_that_says_nothing_useful_is_no_note(shelf: Shelf, fetched: Fetch, note: bytes) -> None:
    """What cannot be said to a server, and a size of nothing, begin anew; an empty file is never taken."""
    path = fetched(shelf, sha256="")
    path.write_bytes(b"")
    path.with_suffix(".json").write_bytes(note)
    assert fetched(shelf, sha256="").read_bytes() == DATA


def test_a_version_that_cannot_be_said_back_is_not(shelf: Shelf, fetched: Fetch) -> None:
    """A server's ETag with a control character in it: the rest is asked for without one."""
    shelf.etag = '"2\x01"'
    shelf.manners = [web.breaks_off(100_000)]
    assert fetched(shelf).read_bytes() == DATA
    assert shelf.asked[1].get("If-Range") is None


@pytest.mark.parametrize("place", ["http://[::1%x]:99999/", "http://[\u00e9/", "//[x", "http://a:b/"])
def test_a_redirect_to_no_address_is_said(shelf: Shelf, fetched: Fetch, place: str) -> None:
    """In one line, whatever the address library trips over."""
    shelf.always = web.status(302, Location=place)
    with pytest.raises(DownloadError, match="is no address") as raised:
        fetched(shelf)
    _one_line(raised.value)


def test_what_is_written_beside_a_redirect_is_not_read(shelf: Shelf, fetched: Fetch) -> None:
    """A page of a gigabyte there costs neither memory nor time."""
    shelf.manners = [web.drags_on(f"{shelf.address}/there.tflite")]
    path = fetched.source(Source(f"{shelf.address}/model.tflite", SHA256), stall_s=1.0)
    assert path.read_bytes() == DATA
    assert fetched.pauses == []


def test_redirects_never_lose_encryption() -> None:
    """From https to http is refused, the other way is not."""
    headers = http.client.HTTPMessage(email.message.Message().policy)
    follow = addresses.Redirects().redirect_request
    safe, plain = urllib.request.Request("https://a.test/x"), urllib.request.Request("http://a.test/x")
    with pytest.raises(DownloadError, match="not encrypted"):
        follow(safe, io.BytesIO(), 302, "Found", headers, "http://a.test/y")
    assert follow(plain, io.BytesIO(), 302, "Found", headers, "https://a.test/y") is not None


def test_nobody_at_the_address_is_said_after_a_few_tries(fetched: Fetch) -> None:
    """A port where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/model.tflite"
        with pytest.raises(DownloadError, match="cannot be had, after 5 tries") as raised:
            fetched.source(Source(address))
    _one_line(raised.value)
    assert len(fetched.pauses) == download.TRIES - 1


def test_no_room_is_said_before_anything_is_fetched(
    shelf: Shelf, fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is looked at first."""
    monkeypatch.setattr(download, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(NodeError, match="no room") as raised:
        fetched(shelf)
    _one_line(raised.value)
    assert fetched.told == []


def test_a_disk_that_fills_up_is_not_left_full(shelf: Shelf, fetched: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of no known length, the disk full in the middle of it: said, and nothing of it stays."""

    def fills(have: int, _: int | None) -> None:
        if have > 100_000:
            monkeypatch.setattr(download, "MARGIN_BYTES", 1 << 60)

    shelf.always = web.endless
    with pytest.raises(NodeError, match="no room"):
        fetch(Source(f"{shelf.address}/endless.tflite"), fetched.folder, fills, pause=fetched.pauses.append)
    assert next(fetched.folder.glob("*.part")).read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_the_disks_word(shelf: Shelf, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(NodeError, match="the disk refuses"):
        Fetch(tmp_path / "state" / "downloads")(shelf)
    assert shelf.asked == []


def test_two_downloads_of_one_file_do_not_mix(shelf: Shelf, fetched: Fetch) -> None:
    """The second is told to wait while the first one writes."""
    refused: list[str] = []

    def at_once(request: BaseHTTPRequestHandler, on: Shelf) -> None:
        with pytest.raises(NodeError, match="already") as raised:
            Fetch(fetched.folder)(on)
        refused.append(_one_line(raised.value))
        web.honest(request, on)

    shelf.manners = [at_once]
    assert fetched(shelf).read_bytes() == DATA
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("https://a.test/m.tflite", Source("https://a.test/m.tflite")),
        (f"http://a.test/m?x=1#sha256={SHA256.upper()}", Source("http://a.test/m?x=1", SHA256)),
    ],
)
def test_an_address_may_carry_its_digest(text: str, source: Source) -> None:
    """`#sha256=` is taken off the address."""
    assert source_of(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.test/m.tflite",
        "file:///m.tflite",
        "http://",
        "http://a.test:99999/m",
        "http://u:secret@a.test/m",
        "http://a.test/a b",
        "http://a.test/m\r\nX: y",
        "http://a.test/m#sha256=12",
        "http://a.test/m#md5=1234",
        "http://[::1/m",
    ],
)
def test_other_addresses_are_wrong_usage(text: str) -> None:
    """Other protocols, no host, passwords, spaces, line ends, digests that are none."""
    with pytest.raises(UsageError) as raised:
        source_of(text)
    assert raised.value.exit_code == 2
    _one_line(raised.value)


def test_a_host_that_is_no_name_is_an_error(fetched: Fetch) -> None:
    """What the resolver cannot even encode."""
    with pytest.raises(DownloadError, match="no address"):
        fetched.source(Source("http://a..b/model.tflite"))
