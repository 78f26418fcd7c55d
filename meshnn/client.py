"""Speaks to the node of this machine over its HTTP API, with the standard library only: quick to start."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

from meshnn.errors import DeadlineError, NoMeshError, from_code

HOST = "127.0.0.1"
# What a request may take beyond the deadline that the node itself keeps, in seconds.
SLACK_S = 5.0
QUICK_S = 10.0
# A connection not used for so long is not used again: the node ends idle ones after 75 s.
IDLE_S = 30.0
NODE_FILE = "node.json"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's JSON bytes, and what followed them."""

    line: bytes
    rest: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON is any value
        """The JSON as plain values; NoMeshError where it is none: then what listens on that port is no node."""
        try:
            return json.loads(self.line)
        except (ValueError, RecursionError):
            raise NoMeshError(
                "what answers where the node of this device should be is no node; see `meshnn status`"
            ) from None


class LocalNode:
    """The running node of one state folder; one connection, one request at a time."""

    def __init__(self, http_port: int) -> None:
        """`http_port`: where the node's API listens on loopback."""
        self.http_port = http_port
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0

    def request(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        query: Mapping[str, object] | None = None,
        timeout_s: float = QUICK_S,
    ) -> Reply:
        """One request; the node's errors come as their own classes, a node that is gone as NoMeshError."""
        filled = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(filled)}" if filled else path
        with self._mapped(timeout_s) as connection:
            length = {} if body is None or isinstance(body, bytes) else {"Content-Length": _size_of(body)}
            connection.request(method, target, body=body, headers=length)
            response = connection.getresponse()
            data = response.read()
            if response.status >= http.client.BAD_REQUEST:
                raise _failure(data, response.status)
            size = int(response.headers.get("X-Json-Bytes") or len(data))
            return Reply(data[:size], data[size:])

    def ask(self, data: bytes, source: str, deadline_s: float, query: Mapping[str, object]) -> Reply:
        """Answer one input; the errors of the node's `ask`."""
        given = {"source": source, "deadline": deadline_s, **query}
        return self.request("POST", "/api/v1/ask", data, given, deadline_s + SLACK_S)

    def get(self, path: str, timeout_s: float = QUICK_S) -> Any:  # noqa: ANN401 - JSON is any value
        """What a path says, as plain values."""
        return self.request("GET", path, timeout_s=timeout_s).json()

    def model_path(self, name: str, last: str = "") -> str:
        """The API path of a model."""
        return f"/api/v1/models/{quote(name, safe='')}{last}"

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _mapped(self, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
        """The connection, its faults in our words."""
        if time.monotonic() - self._used_at > IDLE_S:
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(HOST, self.http_port, timeout=timeout_s)
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        try:
            yield connection
            self._used_at = time.monotonic()
        except TimeoutError:
            self.close()
            raise DeadlineError(f"the node on this machine did not answer within {timeout_s:.0f} s") from None
        except (
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as error:  # the library raises ValueError for odd lengths
            self.close()
            raise NoMeshError(
                f"the node on this machine went away ({type(error).__name__}); see `meshnn status`"
            ) from error


def find(state_dir: Path) -> LocalNode | None:
    """The node that runs on a state folder, or None."""
    try:
        told = json.loads((state_dir / NODE_FILE).read_text())
        port, pid = int(told["http_port"]), int(told["pid"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not (0 < port < 1 << 16 and 0 < pid < 1 << 31):
        return None
    return LocalNode(port) if _lives(pid) and _listens(port) else None


def need(state_dir: Path) -> LocalNode:
    """The node that runs on a state folder; NoMeshError where none does."""
    node = find(state_dir)
    if node is None:
        raise NoMeshError("no node runs on this device: start one with `meshnn join`")
    return node


def _lives(pid: int) -> bool:
    """Whether a process is there; a node.json that a kill -9 left behind names one that is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listens(port: int) -> bool:
    """Whether anything listens; after a power cut the number of a node's process may belong to another."""
    try:
        socket.create_connection((HOST, port), timeout=QUICK_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _size_of(body: IO[bytes]) -> str:
    return str(os.fstat(body.fileno()).st_size)


def _failure(data: bytes, status: int) -> Exception:
    """The node's error as its own class."""
    try:
        told = json.loads(data)["error"]
        return from_code(str(told["code"]), str(told["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return NoMeshError(f"the node on this machine answered {status} without a word")
