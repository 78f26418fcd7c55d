"""Who may speak to the HTTP API, and how its errors look: loopback, no foreign web page, one JSON line."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from meshnn.errors import MeshError, UsageError
from meshnn.telemetry import logger

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logger(__name__)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every MeshError becomes its status and `{"error": {"code", "message"}}`; any other is ours, and logged."""
    try:
        return await handler(request)
    except MeshError as error:
        return refusal(error)
    except web.HTTPException as error:
        return _named(error)
    except web.RequestPayloadError as error:
        return refusal(UsageError(f"the request's body cannot be read: {error}"))
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - the border: a bug answers 500, is logged, and the node lives on
        _log.exception("http_handler_failed", path=request.path, error=type(error).__name__)
        return refusal(MeshError(f"this node failed to handle the request: {type(error).__name__}"))


@web.middleware
async def same_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a foreign web page could send: a Host or Origin that is not this machine's loopback."""
    origin = request.headers.get("Origin")
    # Not `request.host`, which asks the resolver where the header is absent.
    host = request.headers.get("Host", "")
    if not _loopback(f"//{host}") or (origin is not None and not _loopback(origin)):
        raise web.HTTPForbidden(text="the API speaks to programs on this machine only")
    return await handler(request)


async def expectation(request: web.Request) -> None:
    """What a caller expects before it sends its body; aiohttp's own answer breaks on one that is no text."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="only 100-continue can be expected")
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


def refusal(error: MeshError) -> web.Response:
    """The response of an error."""
    return web.json_response({"error": {"code": error.code, "message": str(error)}}, status=error.http_status)


def number(request: web.Request, key: str, default: float, least: float, most: float) -> float:
    """A number from the query, within bounds; UsageError names the key."""
    text = request.query.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{key} must be a number, not {text!r}") from None
    if not least <= value <= most:
        raise UsageError(f"{key} must be from {least:g} to {most:g}, not {text}")
    return value


def flag(request: web.Request, key: str) -> bool:
    """A yes or no from the query."""
    return request.query.get(key, "0") in {"1", "true", "yes"}


def _loopback(url: str) -> bool:
    """Whether a URL's host is this machine's loopback; what is no URL is not."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _named(error: web.HTTPException) -> web.Response:
    """An HTTP error of aiohttp in our form: its status, and the code of the class that means it."""
    kind = UsageError if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else MeshError
    message = error.text or error.reason or str(error.status)
    return web.json_response({"error": {"code": kind("").code, "message": message}}, status=error.status)
