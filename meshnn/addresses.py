"""Which addresses are fetched, and where an answer may lead: http and https, a few steps, never less encrypted."""

from __future__ import annotations

import urllib.request
from http.client import HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from meshnn.errors import DownloadError

REDIRECTS_MAX = 5


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to http and https alone, and never from https down to http."""

    max_redirections = REDIRECTS_MAX
    max_repeats = 2

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> IO[bytes] | None:
        """The answer from where it leads; DownloadError where that is no address at all."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:  # what is wrong with an address is seen in many places, and said in as many ways
            fp.close()
            place = headers.get("Location", headers.get("URI", ""))
            raise DownloadError(f"{req.full_url} redirects to {place[:200]!r}, which is no address") from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request; DownloadError for an address that may not be followed."""
        problem = problem_of(newurl)
        if req.type == "https" and urlsplit(newurl).scheme == "http":
            problem = "is not encrypted"
        fp.close()  # what is written beside a redirection is not read: it may be endless
        if problem:
            raise DownloadError(f"{req.full_url} redirects to {newurl[:200]!r}, which {problem}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener() -> urllib.request.OpenerDirector:
    """What opens http and https and nothing else: no files, no ftp, no data."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        made.add_handler(handler)
    return made


def problem_of(address: str) -> str:
    """Why an address cannot be fetched, or ""."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return "is no address"
    if parts.scheme not in {"http", "https"}:
        return "is neither http nor https"
    if not parts.hostname or port == 0 or not address.isascii() or not address.isprintable() or " " in address:
        return "is no address"
    return "has a name or password in it, which is not supported" if parts.username is not None else ""
