"""Sockets as this transport wants them: one port number for streams and datagrams, quick to notice a dead host."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from meshnn.errors import NodeError

if sys.platform != "win32":
    import resource

DEFAULT_PORT = 7766
PORTS_TRIED = 200
BACKLOG = 128
DATAGRAM_BUFFER_BYTES = 1024 * 1024
USER_TIMEOUT_MS = 5000
MODEST_DESCRIPTORS = 512
_EVERYWHERE = "0.0.0.0"  # noqa: S104  # zero configuration means every interface; strangers are refused by Vicinity


@dataclass(frozen=True, slots=True)
class Listeners:
    """The bound sockets of a node; all have the same port number."""

    port: int
    streams: tuple[socket.socket, ...]
    datagrams: tuple[socket.socket, ...]

    def close(self) -> None:
        """Closes every socket."""
        for held in (*self.streams, *self.datagrams):
            held.close()


def listen(hosts: Sequence[str] | None, port: int) -> Listeners:
    """Binds streams and datagrams to `hosts` (None: everywhere) at `port`; 0 means 7766 or the next port free for both.

    Raises NodeError where the port is in use, or the address is not this machine's.
    """
    hosts = hosts or (_EVERYWHERE,)
    candidates = (port,) if port else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    for candidate in candidates:
        try:
            return _bind(hosts, candidate)
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise NodeError(f"cannot listen on {hosts[0]} port {candidate}: {error.strerror or error}") from error
            if port:
                reason = "is in use" if error.errno == errno.EADDRINUSE else "needs more rights"
                raise NodeError(f"port {port} {reason}: choose another with --port, or none") from error
    raise NodeError(f"no free port between {DEFAULT_PORT} and {DEFAULT_PORT + PORTS_TRIED - 1}")


def _bind(hosts: Sequence[str], port: int) -> Listeners:
    streams: list[socket.socket] = []
    datagrams: list[socket.socket] = []
    try:
        for host in hosts:
            streams.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # A port left by a node that just ended may be taken again at once; a listening one may not.
            streams[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            streams[-1].bind((host, port))
            streams[-1].listen(BACKLOG)
            datagrams.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            datagrams[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)
            datagrams[-1].bind((host, port))
    except OSError:
        Listeners(port, tuple(streams), tuple(datagrams)).close()
        raise
    for held in (*streams, *datagrams):
        held.setblocking(False)
    return Listeners(port, tuple(streams), tuple(datagrams))


def descriptors() -> int:
    """How many files and sockets this process may have open; a modest number where the system does not say."""
    if sys.platform == "win32":
        return MODEST_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MODEST_DESCRIPTORS * 16 if soft == resource.RLIM_INFINITY else soft


def tune(stream: socket.socket) -> None:
    """No delay for small messages; a host that vanished is noticed within some 10 s even on an idle link."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Other systems than Linux lack one or the other.
    for option, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        if hasattr(socket, option):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
