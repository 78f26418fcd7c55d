"""Claims of more than there can be: refused before anything is allocated for them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import struct
import threading
from collections.abc import Callable

from meshnn.cluster.member import BootId, DeviceId
from meshnn.net.hello import Hello, encode_hello
from meshnn.net.security import Identity
from meshnn.wire.frame import HEADER, MAGIC, VERSION, Kind, head
from tools.acceptance.verdict import Verdict
from tools.borders.ground import Ground, api, peer_port, rss_bytes
from tools.processes import Device

LOCAL = "127.0.0.1"
ROUNDS = 30
WARM_ROUNDS = 10
GROWTH_BYTES_MAX = 1 << 20
WAIT_S = 20.0
REST_S = 2.0
GIANT = 4 << 30
# A small message that is none: what as many connections cost by themselves while the process is young.
CONTROL, CONTROL_ROUNDS = "short_messages", 100
SHORT = head(Kind.MESSAGE, b"", 4) + b"\xa0" * 4

BODIES: dict[str, bytes] = {
    "meta_of_4_gib": HEADER.pack(MAGIC, VERSION, Kind.MESSAGE, 2**32 - 1, 0),
    "payload_of_4_gib": HEADER.pack(MAGIC, VERSION, Kind.MESSAGE, 0, GIANT),
    "payload_of_16_eib": HEADER.pack(MAGIC, VERSION, Kind.TENSORS, 10, 2**64 - 1) + bytes(10),
    "a_million_rows": head(Kind.MESSAGE, b"\x82dSync\x81\x9a" + struct.pack(">I", 10**6) + b"\x80" * 1000),
    "text_of_4_gib": head(Kind.MESSAGE, b"\x82\x7a" + struct.pack(">I", 2**32 - 1) + b"x"),
    "depth_of_a_hundred_thousand": head(Kind.MESSAGE, b"", 100_000) + b"\x81" * 100_000,
    "half_a_megabyte_of_empty_maps": head(Kind.MESSAGE, b"", 500_003)
    + b"\x9a"
    + struct.pack(">I", 499_998)
    + b"\xa0" * 499_998,
}


def oversize(ground: Ground, verdict: Verdict) -> None:
    """Every claim, again and again, as a linked device and as a caller of the API; the memory stays as it was."""
    (node,) = ground.mesh.start("a")
    identity = Identity.load(ground.folder / "stranger")
    claims: dict[str, Callable[[], None]] = {
        **{name: _over_a_link(node, ground.mesh.mesh, identity, data) for name, data in BODIES.items()},
        "http_body_of_4_gib": _over_http(node, {"Content-Length": str(GIANT)}),
        "http_head_of_1_mib": _over_http(node, {"X": "x" * (1 << 20)}),
        "http_million_fields": _over_http(node, {f"X-{number}": "x" for number in range(2000)}),
    }
    for _ in range(WARM_ROUNDS):
        for claim in claims.values():
            claim()
    calm = _over_a_link(node, ground.mesh.mesh, identity, SHORT)
    for name, claim in {CONTROL: calm, **claims}.items():
        _rest()
        before = rss_bytes(node)
        for _ in range(ROUNDS if name != CONTROL else CONTROL_ROUNDS):
            claim()
        _rest()
        grown = rss_bytes(node) - before
        verdict.figures[f"{name}_kib"] = grown >> 10
        if name == CONTROL:
            continue
        verdict.check(grown < GROWTH_BYTES_MAX, f"{name}: {grown >> 10} KiB more after {ROUNDS} of them")
    verdict.check(node.meshnn("status").code == 0, "it answers no more")


def _rest() -> None:
    threading.Event().wait(REST_S)


def _over_a_link(node: Device, mesh: str, identity: Identity, data: bytes) -> Callable[[], None]:
    """Link as a device would, then say this, and wait to be hung up on."""

    async def say() -> None:
        hello = Hello(mesh, "big", BootId("00000000000000bb"), 1, 0, True, DeviceId(identity.device_id))
        reader, writer = await asyncio.open_connection(
            LOCAL, peer_port(node), ssl=identity.client, server_hostname="", ssl_handshake_timeout=WAIT_S
        )
        with contextlib.suppress(OSError):
            writer.write(head(Kind.HELLO, encode_hello(hello)))
            answer = await asyncio.wait_for(reader.readexactly(4), WAIT_S)
            assert answer[3] == Kind.HELLO_ACK, f"no link: {answer!r}"
            writer.write(data)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await asyncio.wait_for(reader.read(), WAIT_S)
        writer.transport.abort()

    return lambda: asyncio.run(say())


def _over_http(node: Device, headers: dict[str, str]) -> Callable[[], None]:
    """Say so to the API; it answers with a refusal, or hangs up on what it will not read."""

    def say() -> None:
        connection = http.client.HTTPConnection(LOCAL, api(node).http_port, timeout=WAIT_S)
        with contextlib.suppress(ConnectionError):
            connection.putrequest("POST", "/api/v1/ask")
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(b"x")
            assert 400 <= connection.getresponse().status < 500
        connection.close()

    return say
