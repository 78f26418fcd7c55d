"""The client of a node's API: one connection, not used again once the node may have ended it."""

from __future__ import annotations

import http.server
import threading

from meshnn.client import IDLE_S, LocalNode
from meshnn.http.patience import Patience


class _Counting(http.server.BaseHTTPRequestHandler):
    """Answers, and counts the connections."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        """Another connection."""
        super().setup()
        type(self).connections += 1

    def do_GET(self) -> None:
        """Yes."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_an_idle_connection_is_not_used_again() -> None:
    """Two requests in a row share one; after half a minute of silence there is a new one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Counting)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    node = LocalNode(server.server_port)
    try:
        for _ in range(2):
            assert node.get("/") == {}
        assert _Counting.connections == 1
        node._used_at -= IDLE_S + 1
        assert node.get("/") == {}
        assert _Counting.connections == 2
    finally:
        node.close()
        server.shutdown()
        thread.join()
        server.server_close()
    assert Patience().idle_s > IDLE_S, "the node ends connections that are idle for so long"
